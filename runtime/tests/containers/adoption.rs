use std::boxed::Box as Boxed;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use amphipod_runtime::*;

use crate::support::{self, Box, kill, running, until, wait_gone};

/// Kills the keeper and waits until another one serves.
async fn lose_keeper(b: &Box) {
    let old = b.runtime.keeper_pid();
    let mut events = b.runtime.events();
    kill(old, libc::SIGKILL);
    loop {
        if events.recv().await.unwrap().kind == EventKind::Resync {
            break;
        }
    }
    assert_ne!(b.runtime.keeper_pid(), old);
}

pub async fn containers_and_exit_codes_survive_the_keeper(b: Boxed<Box>) {
    let mut spec = b.shell("c", "while read x; do :; done; exit 9");
    (spec.stdin, spec.stdin_once) = (true, true);
    b.start(&spec).await;
    b.output("done", "exit 0").await;
    b.runtime
        .create_container(&b.shell("waits", "exit 6"))
        .await
        .unwrap();
    let pid = running(&b.runtime, "c").await;
    lose_keeper(&b).await;
    assert_eq!(running(&b.runtime, "c").await, pid, "no container notices");
    assert_eq!(b.wait("done").await.code, 0);
    // Input, start and exec go on through the new keeper.
    assert_eq!(b.exec("c", &["sh", "-c", "exit 4"]).await.0, 4);
    b.runtime.start_container("waits").await.unwrap();
    assert_eq!(b.wait("waits").await.code, 6);
    b.runtime
        .attach("c")
        .await
        .unwrap()
        .stdin
        .unwrap()
        .end()
        .await
        .unwrap();
    let exit = b.wait("c").await;
    assert_eq!((exit.code, exit.lost), (9, false));
    // And once more.
    b.start(&b.shell("e", "exec sleep 1000")).await;
    lose_keeper(&b).await;
    lose_keeper(&b).await;
    b.runtime.kill("e", 15).await.unwrap();
    b.runtime.kill("e", 9).await.unwrap();
    assert_eq!(b.wait("e").await.code, 137);
}

pub async fn an_exit_while_there_is_no_keeper_is_not_lost(b: Boxed<Box>) {
    for n in 0..5 {
        b.start(&b.shell(
            &format!("c{n}"),
            &format!("while [ ! -e /dev/shm/go ]; do sleep 0.01; done; exit 1{n}"),
        ))
        .await;
    }
    // The keeper is stopped, so that it cannot notice, and then killed.
    let keeper = b.runtime.keeper_pid();
    kill(keeper, libc::SIGSTOP);
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(b.config.run_dir.join("c")).unwrap() {
        let life = std::fs::read_to_string(entry.unwrap().path().join("life.json")).unwrap();
        let pid: i32 = life.split(&[':', ','][..]).nth(1).unwrap().parse().unwrap();
        pids.push(pid);
    }
    std::fs::write(b.sandbox.shm_path.join("go"), "").unwrap();
    for pid in pids {
        wait_gone(pid).await;
    }
    lose_keeper(&b).await;
    for n in 0..5 {
        let exit = b.wait(&format!("c{n}")).await;
        assert_eq!((exit.code, exit.lost), (10 + n, false));
    }
}

pub async fn logs_go_on_after_the_keeper_died(b: Boxed<Box>) {
    b.start(&b.shell(
        "c",
        "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done",
    ))
    .await;
    until("it has begun", || b.log("c").lines().count() > 10).await;
    lose_keeper(&b).await;
    let exit = b.wait("c").await;
    assert_eq!(exit.code, 0, "nobody saw a broken pipe");
    let wanted: String = (0..300).map(|n| format!("line {n}\n")).collect();
    assert_eq!(b.log("c"), wanted);
}

pub async fn however_often_the_keeper_dies_each_line_is_logged_once(b: Boxed<Box>) {
    let mut spec = b.shell(
        "c",
        "seq 1 400000; printf 'no newline'; sleep 0.2; echo ' yet'; seq 400002 450000 >&2",
    );
    spec.log_limits.max_size = 1 << 30;
    b.start(&spec).await;
    let mut size = 0;
    for _ in 0..12 {
        // At whatever it is doing, but not before it has done something; towards the end, at once.
        until("the log grows", || {
            let now = std::fs::metadata(b.log_path("c")).map_or(0, |m| m.len());
            let grown = now > size + 10_000 || now > 14_000_000;
            if grown {
                size = now;
            }
            grown
        })
        .await;
        lose_keeper(&b).await;
    }
    assert_eq!(b.wait("c").await.code, 0);
    let text = b.log("c");
    let mut lines = text.lines();
    for n in 1..=400_000 {
        assert_eq!(lines.next(), Some(n.to_string().as_str()));
    }
    assert_eq!(lines.next(), Some("no newline yet"));
    for n in 400_002..=450_000 {
        assert_eq!(lines.next(), Some(n.to_string().as_str()));
    }
    assert_eq!(lines.next(), None);
}

pub async fn a_running_command_survives_the_keeper(b: Boxed<Box>) {
    b.start(&b.shell("c", "exec sleep 1000")).await;
    let spec = ExecSpec {
        args: ["sh", "-c", "read x; echo got $x; exit 3"]
            .map(String::from)
            .to_vec(),
        stdin: true,
        ..ExecSpec::default()
    };
    let mut session = b.runtime.exec("c", &spec).await.unwrap();
    lose_keeper(&b).await;
    let mut stdin = session.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"it\n")
        .await
        .unwrap();
    let (code, out, _) = support::finish(session).await;
    assert_eq!((code, out.as_str()), (3, "got it\n"));
}

pub async fn a_forgotten_command_does_not_hold_up_its_container(b: Boxed<Box>) {
    b.start(&b.shell("c", "exec sleep 1000")).await;
    let spec = ExecSpec {
        args: ["sleep", "1000"].map(String::from).to_vec(),
        ..ExecSpec::default()
    };
    drop(b.runtime.exec("c", &spec).await.unwrap());
    lose_keeper(&b).await;
    // The kernel ends a PID namespace only when all in it are reaped, whoever their parent is.
    b.runtime.kill("c", 9).await.unwrap();
    assert_eq!(b.wait("c").await.code, 137);
}

/// An agent in a process of its own: starts a container and goes on until it is killed.
pub fn agent(dir: &OsStr, layers: &OsStr) {
    let dir = Path::new(dir);
    let threads = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    threads.block_on(async {
        let runtime = Runtime::open(support::config(dir)).await.unwrap();
        let spec = ContainerSpec {
            id: "c".into(),
            sandbox: "pod1".into(),
            layers: layers.to_str().unwrap().split(':').map(Into::into).collect(),
            args: ["sh", "-c", "i=0; while [ ! -e /dev/shm/go ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 8"].map(String::from).to_vec(),
            log_path: Some(dir.join("logs/c.log")),
            ..ContainerSpec::default()
        };
        runtime.create_container(&spec).await.unwrap();
        runtime.start_container("c").await.unwrap();
        println!("up");
        std::future::pending::<()>().await;
    });
}

pub async fn containers_survive_the_agent(b: Boxed<Box>) {
    // The keeper belongs to the other agent.
    let keeper = b.runtime.keeper_pid();
    let layers = layers(&b);
    let mut agent = Command::new("/proc/self/exe")
        .arg("agent")
        .arg(&b.dir)
        .arg(layers.join(":"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let pid = running(&b.runtime, "c").await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let count = b.log("c").lines().count();
    until("its log goes on", || b.log("c").lines().count() > count + 5).await;
    let again = Runtime::open(b.config.clone()).await.unwrap();
    assert_eq!(again.keeper_pid(), keeper);
    assert_eq!(running(&again, "c").await, pid);
    std::fs::write(b.sandbox.shm_path.join("go"), "").unwrap();
    assert_eq!(support::wait(&again, "c").await.code, 8);
}

/// The layers of the containers of a box, as `agent` is told of them.
fn layers(b: &Box) -> Vec<String> {
    let spec = b.shell("", "");
    spec.layers
        .iter()
        .map(|l| l.display().to_string())
        .collect()
}

/// Another process is the agent, and parent of a keeper, of the container `c`; it is told which layers that is made of. The keeper's process number beside it.
fn agent_of_its_own(dir: &Path, layers: &[String]) -> (Child, i32) {
    let mut agent = Command::new("/proc/self/exe")
        .arg("agent")
        .arg(dir)
        .arg(layers.join(":"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let keeper = std::fs::read_dir("/proc").unwrap().flatten().find_map(|e| {
        let pid: i32 = e.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: u32 = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
        let keeper = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .ok()?
            .contains("\0keeper\0");
        (parent == agent.id() && keeper).then_some(pid)
    });
    (agent, keeper.unwrap())
}

pub async fn a_keeper_that_was_asked_to_end_stays_for_its_containers_and_no_longer(b: Boxed<Box>) {
    let layers = layers(&b);
    let shm = b.sandbox.shm_path.clone();
    let (dir, log) = (b.dir.clone(), b.dir.join("logs/c.log"));
    let Box {
        runtime,
        config,
        sandbox: _sandbox,
        ..
    } = *b;
    runtime.stop_keeper().await.unwrap();
    let (mut agent, keeper) = agent_of_its_own(&dir, &layers);
    agent.kill().unwrap();
    agent.wait().unwrap();
    // As a machine that shuts down: everybody is asked once.
    kill(keeper, libc::SIGTERM);
    let lines = || {
        std::fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let count = lines();
    until("the log goes on", || lines() > count + 5).await;
    std::fs::write(shm.join("go"), "").unwrap();
    wait_gone(keeper).await;
    // What it saw is not lost.
    let again = Runtime::open(config).await.unwrap();
    assert_eq!(support::wait(&again, "c").await.code, 8);
}

pub async fn containers_survive_keeper_and_agent_together(b: Boxed<Box>) {
    let layers = layers(&b);
    let log = |b: &Box| b.log("c");
    let dir = b.dir.clone();
    // Nothing of it is held by this process.
    let shm = b.sandbox.shm_path.clone();
    let Box {
        runtime,
        config,
        sandbox,
        ..
    } = *b;
    runtime.stop_keeper().await.unwrap();
    let (mut agent, keeper) = agent_of_its_own(&dir, &layers);
    kill(keeper, libc::SIGKILL);
    agent.kill().unwrap();
    agent.wait().unwrap();
    wait_gone(keeper).await;
    let again = Runtime::open(config.clone()).await.unwrap();
    let b = Box {
        dir,
        config,
        runtime: again,
        sandbox,
    };
    running(&b.runtime, "c").await;
    let count = log(&b).lines().count();
    until("its log goes on", || log(&b).lines().count() > count + 5).await;
    std::fs::write(shm.join("go"), "").unwrap();
    assert_eq!(b.wait("c").await.code, 8);
    for (n, line) in log(&b).lines().enumerate() {
        assert_eq!(line, format!("line {n}"), "no line is lost");
    }
}

pub async fn a_create_that_dies_half_way_leaves_nothing(b: Boxed<Box>) {
    let keeper = b.runtime.keeper_pid();
    let children = || -> Vec<i32> {
        let text = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        text.unwrap_or_default()
            .split_whitespace()
            .map(|p| p.parse().unwrap())
            .collect()
    };
    let mut failed = 0;
    for n in 0..30u32 {
        let id = format!("c{n}");
        let spec = b.shell(&id, "exit 0");
        let killer = async {
            while children().is_empty() {
                tokio::task::yield_now().await;
            }
            // Later each time: other steps of the creation.
            tokio::time::sleep(std::time::Duration::from_micros(u64::from(n) * 700)).await;
            for pid in children() {
                kill(pid, libc::SIGKILL);
            }
        };
        let (created, ()) = tokio::join!(b.runtime.create_container(&spec), killer);
        match created {
            // It was made before, or only the helper died: the container is an ordinary one.
            Ok(()) => {}
            Err(e) => {
                failed += 1;
                assert!(matches!(e, Error::Create(_)), "{e:?}");
                assert!(!b.config.state_dir.join("containers").join(&id).exists());
                // And it can be made again.
                b.start(&spec).await;
                assert_eq!(b.wait(&id).await.code, 0);
            }
        }
        b.runtime.remove_container(&id).await.unwrap();
    }
    assert!(failed > 3, "{failed}");
    until("no process is left", || children().is_empty()).await;
}

pub async fn the_keeper_upgrades_itself_in_place(b: Boxed<Box>) {
    let program = b.dir.join("new-program");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    b.start(&b.shell("c", "i=0; while [ ! -e /dev/shm/go ]; do printf 'half '; sleep 0.01; echo line $i; i=$((i+1)); done; exit 5")).await;
    b.start(&b.shell("d", "exec sleep 1000")).await;
    b.output("e", "exit 0").await;
    let spec = ExecSpec {
        args: [
            "sh",
            "-c",
            "while [ ! -e /dev/shm/go ]; do sleep 0.01; done; exit 2",
        ]
        .map(String::from)
        .to_vec(),
        ..ExecSpec::default()
    };
    let mut session = b.runtime.exec("d", &spec).await.unwrap();
    let mut attached = b.runtime.attach("c").await.unwrap();
    let keeper = b.runtime.keeper_pid();
    until("it has begun", || b.log("c").lines().count() > 10).await;
    assert!(!b.runtime.keeper_is_outdated());
    for _ in 0..3 {
        b.runtime.upgrade_keeper(&program).await.unwrap();
    }
    assert_eq!(b.runtime.keeper_pid(), keeper, "the same process");
    let exe = std::fs::read_link(format!("/proc/{keeper}/exe")).unwrap();
    assert_eq!(exe, program);
    assert!(b.runtime.keeper_is_outdated(), "no longer our own program");
    let count = b.log("c").lines().count();
    until("its log goes on", || b.log("c").lines().count() > count + 5).await;
    std::fs::write(b.sandbox.shm_path.join("go"), "").unwrap();
    assert_eq!(b.wait("c").await.code, 5);
    assert_eq!(session.wait().await.unwrap().code, 2);
    assert_eq!(b.wait("e").await.code, 0);
    for (n, line) in b.log("c").lines().enumerate() {
        assert_eq!(line, format!("half line {n}"));
    }
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut attached.stdout, &mut text)
        .await
        .unwrap();
    assert!(
        text.ends_with(b.log("c").lines().last().unwrap().trim_end_matches('\n'))
            || text
                .trim_end()
                .ends_with(b.log("c").trim_end().lines().last().unwrap()),
        "attached all along"
    );
    // All of it still works.
    b.output("f", "true").await;
    b.runtime.kill("d", 9).await.unwrap();
    assert_eq!(b.wait("d").await.code, 137);
}

pub async fn a_failed_upgrade_changes_nothing(b: Boxed<Box>) {
    b.start(&b.shell("c", "exec sleep 1000")).await;
    let error = b
        .runtime
        .upgrade_keeper(Path::new("/no/such/program"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    running(&b.runtime, "c").await;
    b.output("d", "true").await;
}

pub async fn after_a_reboot_containers_are_known_as_lost(b: Boxed<Box>) {
    b.start(&b.shell("ran", "exec sleep 1000")).await;
    b.output("ended", "exit 0").await;
    let (exit, _) = b.run(&b.shell("failed", "exit 3")).await;
    // As a power cut does it: processes gone, the tmpfs empty, the disk as it was.
    let (pid, keeper) = (running(&b.runtime, "ran").await, b.runtime.keeper_pid());
    let Box {
        runtime, config, ..
    } = *b;
    drop(runtime);
    kill(keeper, libc::SIGKILL);
    kill(pid, libc::SIGKILL);
    wait_gone(keeper).await;
    wait_gone(pid).await;
    std::fs::remove_dir_all(config.run_dir.join("c")).unwrap();
    let runtime = Runtime::open(config).await.unwrap();
    assert_eq!(support::wait(&runtime, "failed").await, exit);
    assert_eq!(support::wait(&runtime, "ended").await.code, 0);
    let exit = support::wait(&runtime, "ran").await;
    assert_eq!((exit.code, exit.lost), (255, true));
    runtime.remove_container("ran").await.unwrap();
}

/// The promise is one megabyte of private memory; debug builds and libcontainer's tables are part of this one.
pub async fn the_keeper_is_small(b: Boxed<Box>) {
    let private = |pid: i32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        text.lines()
            .filter(|l| l.starts_with("Private_Dirty:"))
            .map(|l| l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
            .sum()
    };
    let keeper = b.runtime.keeper_pid();
    // Pages that a forked child still shares do not count as private.
    let alone = || {
        std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))
            .unwrap()
            .is_empty()
    };
    until("the sandbox's child has gone", alone).await;
    let empty = private(keeper);
    for n in 0..20 {
        b.start(&b.shell(&format!("c{n}"), "echo hello; exec sleep 1000"))
            .await;
    }
    let full = private(keeper);
    print!("[private {empty} KiB, with 20 containers {full} KiB] ");
    assert!(empty < 4096, "{empty} KiB");
    assert!(full - empty < 400, "{empty} to {full} KiB");
}
