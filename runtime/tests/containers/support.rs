//! A box for a test: directories, cgroup, keeper, a busybox image; all gone afterwards.

use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amphipod_runtime::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::io::AsyncReadExt;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

fn base() -> PathBuf {
    format!("/tmp/amphipod-rt-{}", std::process::id()).into()
}

/// Mounts that we make are seen by nobody else.
pub fn enter_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// Two layers: busybox with its names, and one with little files.
pub fn make_image() {
    let (lower, upper) = (base().join("layer0"), base().join("layer1"));
    for dir in [
        "bin",
        "etc",
        "tmp",
        "root",
        "home/user",
        "dev",
        "proc",
        "sys",
    ] {
        std::fs::create_dir_all(lower.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap();
    for name in String::from_utf8(list.stdout).unwrap().lines() {
        let _ = symlink("busybox", lower.join("bin").join(name));
    }
    std::fs::write(
        lower.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(lower.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    std::fs::write(lower.join("etc/layer"), "lower").unwrap();
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc/layer"), "upper").unwrap();
    std::fs::write(upper.join("etc/script"), "no program").unwrap();
    std::fs::set_permissions(
        upper.join("etc/script"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    std::fs::set_permissions(
        lower.join("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .unwrap();
}

pub fn remove_image() {
    let _ = std::fs::remove_dir_all(base());
}

pub struct Box {
    pub dir: PathBuf,
    pub config: RuntimeConfig,
    pub runtime: Runtime,
    pub sandbox: Sandbox,
}

pub fn config(dir: &Path) -> RuntimeConfig {
    RuntimeConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        cgroup_root: format!(
            "/amphipod-test-{}",
            dir.file_name().unwrap().to_str().unwrap()
        ),
        helper: "/proc/self/exe".into(),
    }
}

/// Runs one test in a box of its own and cleans up, also after a panic.
pub fn run<F, Fut>(test: F)
where
    F: FnOnce(std::boxed::Box<Box>) -> Fut,
    Fut: Future<Output = ()>,
{
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = base().join(format!("{}-{number}", std::process::id()));
    std::fs::create_dir_all(dir.join("logs")).unwrap();
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        threads.block_on(async {
            let made = Box::new(&dir).await;
            tokio::time::timeout(Duration::from_secs(60), test(std::boxed::Box::new(made)))
                .await
                .expect("test takes too long");
        });
    }));
    if result.is_err() {
        let log = std::fs::read_to_string(dir.join("run/keeper.log")).unwrap_or_default();
        eprintln!("keeper.log:\n{log}");
    }
    threads.block_on(clean_up(&dir));
    drop(threads);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn clean_up(dir: &Path) {
    let runtime = Runtime::open(config(dir)).await.unwrap();
    for sandbox in runtime.list_sandboxes().await.unwrap() {
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    for container in runtime.list_containers().await.unwrap() {
        runtime.remove_container(&container.id).await.unwrap();
    }
    runtime.remove_cgroup("").await.unwrap();
    runtime.stop_keeper().await.unwrap();
    remove_test_cgroup(dir);
    std::fs::remove_dir_all(dir).unwrap();
}

/// The runtime never removes its root group; tests do.
fn remove_test_cgroup(dir: &Path) {
    let name = config(dir).cgroup_root;
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    for mount in hierarchies
        .map(|e| e.path())
        .chain(["/sys/fs/cgroup".into()])
    {
        let _ = std::fs::remove_dir(mount.join(name.trim_start_matches('/')));
    }
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: integers only.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until a process is gone (or only waits to be reaped).
pub async fn wait_gone(pid: i32) {
    until("a process ends", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    })
    .await;
}

/// Waits for a condition that has no event.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Box {
    pub async fn new(dir: &Path) -> Self {
        let config = config(dir);
        let runtime = Runtime::open(config.clone()).await.unwrap();
        let sandbox = runtime.create_sandbox(&sandbox_spec("pod1")).await.unwrap();
        Box {
            dir: dir.to_path_buf(),
            config,
            runtime,
            sandbox,
        }
    }

    /// A container of the standard image and pod that runs a shell script.
    pub fn shell(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            sandbox: self.sandbox.id.clone(),
            layers: vec![base().join("layer0"), base().join("layer1")],
            args: ["sh", "-c", script].map(String::from).to_vec(),
            capabilities: DEFAULT_CAPABILITIES.map(String::from).to_vec(),
            seccomp: Seccomp::RuntimeDefault,
            log_path: Some(self.log_path(id)),
            ..ContainerSpec::default()
        }
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{id}.log"))
    }

    /// The content of the log without its first three fields.
    pub fn log(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.log_path(id)).unwrap_or_default();
        text.lines()
            .map(|l| format!("{}\n", l.splitn(4, ' ').nth(3).unwrap_or("")))
            .collect()
    }

    pub async fn start(&self, spec: &ContainerSpec) {
        self.runtime.create_container(spec).await.unwrap();
        self.runtime.start_container(&spec.id).await.unwrap();
    }

    pub async fn wait(&self, id: &str) -> Exit {
        wait(&self.runtime, id).await
    }

    /// Runs a container to its end: its exit and what it wrote.
    pub async fn run(&self, spec: &ContainerSpec) -> (Exit, String) {
        self.start(spec).await;
        let exit = self.wait(&spec.id).await;
        (exit, self.log(&spec.id))
    }

    /// Runs a script to its end and gives what it wrote.
    pub async fn output(&self, id: &str, script: &str) -> String {
        let (exit, text) = self.run(&self.shell(id, script)).await;
        assert_eq!(exit.code, 0, "{text}");
        text
    }

    pub async fn exec(&self, id: &str, args: &[&str]) -> (i32, String, String) {
        let spec = ExecSpec {
            args: args.iter().map(|a| a.to_string()).collect(),
            ..ExecSpec::default()
        };
        finish(self.runtime.exec(id, &spec).await.unwrap()).await
    }
}

/// Reads a session to its end: code, stdout, stderr.
pub async fn finish(mut session: ExecSession) -> (i32, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    session
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut out)
        .await
        .unwrap();
    if let Some(mut stderr) = session.stderr.take() {
        stderr.read_to_end(&mut err).await.unwrap();
    }
    let outcome = tokio::time::timeout(PATIENCE, session.wait())
        .await
        .unwrap()
        .unwrap();
    (
        outcome.code,
        String::from_utf8_lossy(&out).into_owned(),
        String::from_utf8_lossy(&err).into_owned(),
    )
}

pub fn sandbox_spec(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.into(),
        hostname: format!("{id}-host"),
        cgroup: PodCgroup {
            path: format!("burstable/pod{id}"),
            resources: Resources::default(),
        },
        ..SandboxSpec::default()
    }
}

/// Waits for a container's end, by events.
pub async fn wait(runtime: &Runtime, id: &str) -> Exit {
    let mut events = runtime.events();
    let waiting = async {
        loop {
            match runtime.container(id).await {
                Ok(status) => {
                    if let ContainerState::Exited { exit, .. } = status.state {
                        return exit;
                    }
                }
                Err(Error::Keeper(_)) => {}
                Err(e) => panic!("{e}"),
            }
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("container does not end")
}

pub async fn running(runtime: &Runtime, id: &str) -> i32 {
    match runtime.container(id).await.unwrap().state {
        ContainerState::Running { pid, .. } => pid,
        other => panic!("{id} is {other:?}"),
    }
}
