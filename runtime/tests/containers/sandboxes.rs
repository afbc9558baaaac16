use std::boxed::Box as Boxed;
use std::path::Path;

use amphipod_runtime::*;

use crate::support::{Box, running, sandbox_spec, until};

pub async fn containers_of_a_pod_share_its_network_and_names(b: Boxed<Box>) {
    let namespaces = "for n in net ipc uts; do readlink /proc/self/ns/$n; done; hostname";
    let one = b.output("a", namespaces).await;
    let two = b.output("b", namespaces).await;
    assert_eq!(one, two);
    assert!(one.ends_with("pod1-host\n"));
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!one.contains(host.to_str().unwrap()));
    let netns = b.sandbox.netns_path.clone().unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(netns).unwrap());
    assert!(one.contains(&inode.to_string()), "the pinned one");
    b.start(&b.shell("p", "exec sleep 1000")).await;
    let (_, other, _) = b.exec("p", &["readlink", "/proc/1/ns/pid"]).await;
    assert_ne!(b.output("q", "readlink /proc/self/ns/pid").await, other);
}

pub async fn loopback_is_up_and_sysctls_are_set(b: Boxed<Box>) {
    let mut spec = sandbox_spec("pod2");
    spec.sysctls = [
        ("net.ipv4.ip_local_port_range", "2000\t3000"),
        ("kernel.msgmax", "16384"),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into();
    b.runtime.create_sandbox(&spec).await.unwrap();
    let mut c = b.shell("c", "ping -c1 -W2 127.0.0.1 >/dev/null && echo up; cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax");
    c.sandbox = "pod2".into();
    let (_, text) = b.run(&c).await;
    assert_eq!(text, "up\n2000\t3000\n16384\n");
    let mut bad = sandbox_spec("pod3");
    bad.sysctls = [("net.nope".to_string(), "1".to_string())].into();
    let error = b.runtime.create_sandbox(&bad).await.unwrap_err();
    assert!(error.to_string().contains("net.nope"), "{error}");
    assert!(
        !b.config.run_dir.join("s/pod3").exists(),
        "nothing stays of a failed one"
    );
}

pub async fn a_shared_pid_namespace_has_an_init(b: Boxed<Box>) {
    let mut spec = sandbox_spec("pod2");
    spec.pid = PidMode::Pod;
    b.runtime.create_sandbox(&spec).await.unwrap();
    let mut one = b.shell("one", "exec sleep 1111");
    one.sandbox = "pod2".into();
    b.start(&one).await;
    let mut two = b.shell("two", "ps -o pid,args; (sleep 0 &) ; sleep 0.1; cat /proc/1/comm; ls /proc/1/root/ 2>&1 | head -1; kill -9 1 2>&1; true");
    two.sandbox = "pod2".into();
    let (_, text) = b.run(&two).await;
    assert!(text.contains("sleep 1111"), "{text}");
    assert!(text.contains("pod-init\n"), "{text}");
    assert!(
        text.contains("ermission denied"),
        "the init's root is out of reach: {text}"
    );
    let pid = running(&b.runtime, "one").await;
    // What a container leaves behind ends with it, although the namespace goes on.
    let mut three = b.shell("three", "sleep 2222 & sleep 0.1; exit 0");
    three.sandbox = "pod2".into();
    b.run(&three).await;
    let (_, text, _) = b.exec("one", &["ps", "-o", "args"]).await;
    until("the left-over process is gone", || !text.contains("2222")).await;
    running(&b.runtime, "one").await;
    b.runtime.remove_sandbox("pod2").await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

pub async fn shared_memory_is_shared_and_limited(b: Boxed<Box>) {
    let mut spec = sandbox_spec("pod2");
    spec.shm_size = Some(1 << 20);
    b.runtime.create_sandbox(&spec).await.unwrap();
    let mut one = b.shell("one", "echo x > /dev/shm/f; dd if=/dev/zero of=/dev/shm/big bs=1M count=2 2>&1 | grep -o 'No space.*'");
    one.sandbox = "pod2".into();
    let (_, text) = b.run(&one).await;
    assert_eq!(text, "No space left on device\n");
    let mut two = b.shell("two", "cat /dev/shm/f");
    two.sandbox = "pod2".into();
    assert_eq!(b.run(&two).await.1, "x\n");
    let three = b.output("three", "ls /dev/shm | wc -l").await;
    assert_eq!(three, "0\n", "another pod's is its own");
}

pub async fn host_namespaces_are_the_hosts(b: Boxed<Box>) {
    let mut spec = sandbox_spec("pod2");
    (spec.network, spec.ipc, spec.pid) = (NamespaceMode::Host, NamespaceMode::Host, PidMode::Host);
    let made = b.runtime.create_sandbox(&spec).await.unwrap();
    assert_eq!(made.netns_path, None);
    let mut c = b.shell(
        "c",
        "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done",
    );
    c.sandbox = "pod2".into();
    let (exit, text) = b.run(&c).await;
    assert_eq!(exit.code, 0);
    let mine: String = ["net", "ipc", "uts", "pid"]
        .iter()
        .map(|n| {
            format!(
                "{}\n",
                std::fs::read_link(format!("/proc/self/ns/{n}"))
                    .unwrap()
                    .display()
            )
        })
        .collect();
    assert_eq!(text, mine);
}

pub async fn removal_takes_everything_along(b: Boxed<Box>) {
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut spec = sandbox_spec("pod2");
    spec.pid = PidMode::Pod;
    let made = b.runtime.create_sandbox(&spec).await.unwrap();
    let again = b.runtime.create_sandbox(&spec).await.unwrap_err();
    assert!(matches!(again, Error::AlreadyExists(_)), "{again:?}");
    for id in ["a", "b"] {
        let mut c = b.shell(id, "exec sleep 1000");
        c.sandbox = "pod2".into();
        b.start(&c).await;
    }
    assert_eq!(b.runtime.sandbox("pod2").await.unwrap(), made);
    b.runtime.remove_sandbox("pod2").await.unwrap();
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(before, after);
    assert_eq!(b.runtime.list_containers().await.unwrap(), []);
    assert!(matches!(
        b.runtime.sandbox("pod2").await,
        Err(Error::SandboxNotFound(_))
    ));
    assert!(!b.config.run_dir.join("s/pod2").exists());
    b.runtime.remove_sandbox("pod2").await.unwrap();
}

/// As `creation_is_quick`: no benchmark.
pub async fn sandboxes_are_quick(b: Boxed<Box>) {
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let spec = sandbox_spec(&format!("quick{n}"));
        let start = std::time::Instant::now();
        b.runtime.create_sandbox(&spec).await.unwrap();
        made.push(start.elapsed());
        let start = std::time::Instant::now();
        b.runtime.remove_sandbox(&spec.id).await.unwrap();
        removed.push(start.elapsed());
    }
    made.sort();
    removed.sort();
    print!("[create {:.1?}, remove {:.1?} p50] ", made[10], removed[10]);
    assert!(made[10].as_millis() < 1000);
}
