use std::boxed::Box as Boxed;

use amphipod_runtime::*;

use crate::support::{Box, running, until};

pub async fn the_process_is_who_it_should_be(b: Boxed<Box>) {
    let mut spec = b.shell("c", "id -u; id -g; id -G; echo $HOME; echo hi > /dev/stdout; touch /tmp/f && stat -c %u /tmp/f; umask");
    spec.user = User {
        uid: 1000,
        gid: 1001,
        additional_gids: vec![5, 6],
    };
    let (exit, text) = b.run(&spec).await;
    assert_eq!(
        (exit.code, text.as_str()),
        (0, "1000\n1001\n1001 5 6\n/home/user\nhi\n1000\n0022\n")
    );
    // Root without supplementary groups has none, also none of the keeper's.
    assert_eq!(b.output("d", "id -G").await, "0\n");
    // Signals are as a program expects them.
    let mut spec = b.shell("e", "");
    spec.args = ["grep", "-E", "^(SigIgn|SigBlk)", "/proc/self/status"]
        .map(String::from)
        .to_vec();
    let (_, text) = b.run(&spec).await;
    assert_eq!(
        text,
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

pub async fn the_working_directory_is_made_when_missing(b: Boxed<Box>) {
    let mut spec = b.shell("c", "pwd; stat -c '%u %a' .");
    spec.cwd = "/srv/app/data".into();
    spec.user.uid = 1000;
    let (_, text) = b.run(&spec).await;
    assert_eq!(text, "/srv/app/data\n0 755\n");
    let mut spec = b.shell("d", "true");
    spec.cwd = "/proc/self/fd/3".into();
    let error = b.runtime.create_container(&spec).await.unwrap_err();
    assert!(
        matches!(error, Error::Exec(_)),
        "no way out of the container: {error:?}"
    );
}

pub async fn capabilities_are_exactly_those_asked_for(b: Boxed<Box>) {
    let script = "grep -E '^Cap' /proc/self/status | cut -f2 | tr '\\n' ' '";
    let mut spec = b.shell("c", script);
    spec.capabilities = vec!["CAP_CHOWN".into(), "net_raw".into()];
    let (_, text) = b.run(&spec).await;
    let set = "0000000000002001";
    let none = "0000000000000000";
    assert_eq!(text.trim(), format!("{none} {set} {set} {set} {none}"));
    let mut spec = ContainerSpec {
        id: "d".into(),
        log_path: Some(b.log_path("d")),
        ..spec
    };
    spec.user.uid = 1000;
    let (_, text) = b.run(&spec).await;
    assert_eq!(
        text.trim(),
        format!("{none} {none} {none} {set} {none}"),
        "a user's are only bounds"
    );
    spec.id = "e".into();
    spec.capabilities = vec!["CAP_FLY".into()];
    assert!(matches!(
        b.runtime.create_container(&spec).await,
        Err(Error::Invalid(_))
    ));
}

pub async fn what_the_box_lacks_is_clipped_not_refused(b: Boxed<Box>) {
    let mut spec = b.shell("c", "ulimit -n; cat /proc/self/oom_score_adj");
    spec.capabilities = vec!["CAP_SYS_RESOURCE".into(), "CAP_CHOWN".into()];
    spec.oom_score_adj = Some(-998);
    spec.rlimits = vec![Rlimit {
        kind: "RLIMIT_NOFILE".into(),
        soft: 512,
        hard: u64::MAX >> 1,
    }];
    let (exit, text) = b.run(&spec).await;
    assert_eq!(exit.code, 0);
    assert!(text.starts_with("512\n"), "{text}");
    let mut spec = b.shell("d", "cat /proc/self/oom_score_adj");
    spec.oom_score_adj = Some(937);
    assert_eq!(b.run(&spec).await.1, "937\n");
    let (_, out, _) = {
        let mut spec = b.shell("e", "exec sleep 1000");
        spec.oom_score_adj = Some(936);
        b.start(&spec).await;
        b.exec("e", &["cat", "/proc/self/oom_score_adj"]).await
    };
    assert_eq!(out, "936\n");
}

/// A system call that needs no capability but is forbidden: unshare of a user namespace.
const UNSHARE: &str = "unshare -U true 2>&1; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | cut -f2 | tr '\\n' ' '";

pub async fn the_default_seccomp_profile_bites(b: Boxed<Box>) {
    for (id, nnp) in [("c", false), ("d", true)] {
        let mut spec = b.shell(id, UNSHARE);
        spec.no_new_privileges = nnp;
        let (_, text) = b.run(&spec).await;
        assert!(text.contains("Operation not permitted"), "{text}");
        assert!(text.ends_with(&format!("{} 2 \n", u8::from(nnp))), "{text}");
    }
    let mut spec = b.shell("e", UNSHARE);
    spec.seccomp = Seccomp::Unconfined;
    let (_, text) = b.run(&spec).await;
    assert_eq!(text, "0 0 \n", "allowed without a profile");
    let mut spec = b.shell("f", UNSHARE);
    spec.user.uid = 1000;
    let (_, text) = b.run(&spec).await;
    assert!(text.contains("not permitted"), "for users too: {text}");
}

pub async fn seccomp_holds_for_exec_too(b: Boxed<Box>) {
    let mut spec = b.shell("c", "exec sleep 1000");
    spec.user.uid = 1000;
    b.start(&spec).await;
    let (_, out, _) = b.exec("c", &["sh", "-c", UNSHARE]).await;
    assert!(out.contains("Operation not permitted"), "{out}");
    assert!(out.ends_with("0 2 "), "{out}");
}

pub async fn a_profile_from_a_file_is_obeyed(b: Boxed<Box>) {
    let path = b.dir.join("profile.json");
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    std::fs::write(&path, json).unwrap();
    let mut spec = b.shell("c", "mkdir /tmp/x 2>&1; unshare -U true && echo fine");
    spec.seccomp = Seccomp::Localhost(path);
    let (_, text) = b.run(&spec).await;
    assert!(text.contains("Permission denied"), "{text}");
    assert!(text.ends_with("fine\n"), "{text}");
    spec.id = "d".into();
    spec.seccomp = Seccomp::Localhost("/no/such/profile".into());
    let error = b.runtime.create_container(&spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/profile"), "{error}");
}

pub async fn the_root_can_be_read_only(b: Boxed<Box>) {
    let mut spec = b.shell("c", "touch /x 2>&1; touch /tmp/x 2>&1; echo a > /vol/f && cat /vol/f; echo b > /dev/shm/g && echo ok");
    spec.read_only_root = true;
    let vol = b.dir.join("vol");
    std::fs::create_dir(&vol).unwrap();
    spec.mounts = vec![Mount {
        source: vol,
        destination: "/vol".into(),
        ..Mount::default()
    }];
    let (_, text) = b.run(&spec).await;
    assert_eq!(
        text,
        "touch: /x: Read-only file system\ntouch: /tmp/x: Read-only file system\na\nok\n"
    );
}

pub async fn privileged_containers_see_devices_and_write_sys(b: Boxed<Box>) {
    let script = "grep CapEff /proc/self/status | cut -f2; grep -c . /proc/filesystems; mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1; grep Seccomp: /proc/self/status | cut -f2; test -c /dev/kmsg && echo kmsg";
    let mut spec = b.shell("c", script);
    spec.privileged = true;
    let (_, text) = b.run(&spec).await;
    let host = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = host
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:\t"))
        .unwrap();
    assert!(text.starts_with(&format!("{all}\n")), "{text}");
    let wanted = if std::path::Path::new("/dev/kmsg").exists() {
        "mounted\nrw\n0\nkmsg\n"
    } else {
        "mounted\nrw\n0\n"
    };
    assert!(text.ends_with(wanted), "{text}");
    let (_, text) = b.run(&b.shell("d", "mkdir /tmp/m; mount -t tmpfs none /tmp/m 2>&1; grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1")).await;
    assert!(
        text.contains("permission denied") || text.contains("not permitted"),
        "{text}"
    );
    assert!(text.ends_with("ro\n"), "{text}");
}

pub async fn unprivileged_containers_cannot_use_device_files_they_make(b: Boxed<Box>) {
    // kmsg stands for a disk: 1:11. Writing to it needs no capability.
    let script = "{ mknod /tmp/k c 1 11; echo x > /tmp/k; mknod /dev/k c 1 11; echo x > /dev/k; echo; head -c4 /dev/zero | wc -c; } 2>&1";
    let (_, text) = b.run(&b.shell("c", script)).await;
    let refused = text.matches("Permission denied").count() + text.matches("not permitted").count();
    assert_eq!(refused, 2, "{text}");
    assert!(text.ends_with("4\n"), "{text}");
}

pub async fn given_devices_work_as_given(b: Boxed<Box>) {
    if !std::path::Path::new("/dev/kmsg").exists() {
        return;
    }
    let given = |id: &str, permissions: &str| {
        let mut spec = b.shell(
            id,
            "ls -l /dev/given | cut -c1; echo x > /dev/given && echo written",
        );
        spec.devices = vec![Device {
            host_path: "/dev/kmsg".into(),
            container_path: "/dev/given".into(),
            permissions: permissions.into(),
        }];
        spec
    };
    assert_eq!(b.run(&given("c", "rw")).await.1, "c\nwritten\n");
    let (_, text) = b.run(&given("d", "r")).await;
    assert!(!text.contains("written"), "{text}");
    let mut spec = given("e", "rwm");
    spec.devices[0].host_path = "/bin/busybox".into();
    let error = b.runtime.create_container(&spec).await.unwrap_err();
    assert_eq!(error.to_string(), "/bin/busybox is not a device");
}

pub async fn kernel_files_are_masked(b: Boxed<Box>) {
    let script = "wc -c < /proc/interrupts; ls /sys/firmware | wc -l; echo 1 2>&1 > /proc/sys/kernel/pid_max; touch /proc/sys/kernel/x 2>&1";
    let (_, text) = b.run(&b.shell("c", &format!("{{ {script}; }} 2>&1"))).await;
    assert!(text.starts_with("0\n0\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    let mut spec = b.shell("d", "[ $(wc -c < /proc/interrupts) -gt 0 ] && echo -");
    spec.masked_paths = Some(vec![]);
    assert_eq!(b.run(&spec).await.1, "-\n", "procMount Unmasked");
}

pub async fn memory_limits_kill_with_137_and_say_so(b: Boxed<Box>) {
    let mut spec = b.shell("c", "exec tail /dev/zero");
    spec.resources.memory_limit = Some(20 << 20);
    let (exit, _) = b.run(&spec).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    let mut spec = b.shell("d", "true");
    spec.resources.memory_limit = Some(20 << 20);
    let (exit, _) = b.run(&spec).await;
    assert_eq!((exit.code, exit.oom_killed), (0, false));
}

pub async fn process_limits_hold(b: Boxed<Box>) {
    let mut spec = b.shell(
        "c",
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 3 & done 2>&1; true",
    );
    spec.resources.pids_limit = Some(5);
    let (_, text) = b.run(&spec).await;
    assert!(text.contains("Resource temporarily unavailable"), "{text}");
}

pub async fn limits_change_while_running(b: Boxed<Box>) {
    let mut spec = b.shell("c", "read x; exec tail /dev/zero");
    spec.stdin = true;
    b.start(&spec).await;
    assert_eq!(b.runtime.stats("c").await.unwrap().memory_limit, None);
    let limit = Resources {
        memory_limit: Some(24 << 20),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        ..Resources::default()
    };
    b.runtime.update_resources("c", &limit).await.unwrap();
    assert_eq!(
        b.runtime.stats("c").await.unwrap().memory_limit,
        Some(24 << 20)
    );
    b.runtime
        .update_sandbox_resources(
            "pod1",
            &Resources {
                memory_limit: Some(20 << 20),
                ..Resources::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(
        b.runtime.sandbox_stats("pod1").await.unwrap().memory_limit,
        Some(20 << 20)
    );
    let mut session = b.runtime.attach("c").await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut session.stdin.as_mut().unwrap().stream, b"go\n")
        .await
        .unwrap();
    assert_eq!(b.wait("c").await.code, 137);
}

pub async fn stats_tell_cpu_and_memory(b: Boxed<Box>) {
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 5000000 /dev/zero > /dev/shm/x; echo done; exec sleep 1000";
    b.start(&b.shell("c", script)).await;
    until("it has worked", || b.log("c") == "done\n").await;
    for stats in [
        b.runtime.stats("c").await.unwrap(),
        b.runtime.sandbox_stats("pod1").await.unwrap(),
        b.runtime.cgroup_stats("burstable").await.unwrap(),
        b.runtime.cgroup_stats("").await.unwrap(),
    ] {
        assert!(stats.cpu_usage_ns.unwrap() > 1_000_000, "{stats:?}");
        assert!(stats.memory_working_set.unwrap() > 5_000_000, "{stats:?}");
        assert!(stats.pids.unwrap() >= 1, "{stats:?}");
        assert_eq!(stats.oom_kills, Some(0));
    }
}

pub async fn mounts_are_where_they_should_be(b: Boxed<Box>) {
    let vol = b.dir.join("vol");
    std::fs::create_dir_all(vol.join("sub")).unwrap();
    std::fs::write(vol.join("file"), "content").unwrap();
    let mut spec = b.shell("c", "cat /a/file /etc/one; echo; touch /a/x 2>&1; echo ok > /rw/y; df -P /t | tail -1 | awk '{print $2}'; stat -c %a /t; ls -d /rw/sub");
    let mount = |source: std::path::PathBuf, destination: &str, readonly| Mount {
        source,
        destination: destination.into(),
        readonly,
        recursive: true,
        ..Mount::default()
    };
    spec.mounts = vec![
        mount(vol.clone(), "/a", true),
        mount(vol.join("file"), "/etc/one", true),
        mount(vol.clone(), "/rw", false),
        Mount {
            kind: MountKind::Tmpfs {
                size: Some(1 << 20),
                mode: 0o1777,
            },
            destination: "/t".into(),
            ..Mount::default()
        },
    ];
    let (_, text) = b.run(&spec).await;
    assert_eq!(
        text,
        "contentcontent\ntouch: /a/x: Read-only file system\n1024\n1777\n/rw/sub\n"
    );
    assert_eq!(std::fs::read_to_string(vol.join("y")).unwrap(), "ok\n");
    let mut spec = b.shell("d", "true");
    spec.mounts = vec![mount("/no/such/source".into(), "/a", false)];
    let error = b.runtime.create_container(&spec).await.unwrap_err();
    assert!(matches!(error, Error::Create(_)), "{error:?}");
}

pub async fn host_mounts_reach_a_container_that_asks_for_them(b: Boxed<Box>) {
    let vol = b.dir.join("shared");
    std::fs::create_dir_all(vol.join("in")).unwrap();
    std::fs::create_dir_all(vol.join("out")).unwrap();
    let none = None::<&str>;
    // A shared mount, as a host's are.
    nix::mount::mount(Some(&vol), &vol, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
    nix::mount::mount(none, &vol, none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
    let mount = |propagation| Mount {
        source: vol.clone(),
        destination: "/vol".into(),
        recursive: true,
        propagation,
        ..Mount::default()
    };
    let mut spec = b.shell("slave", "exec sleep 1000");
    spec.mounts = vec![mount(Propagation::HostToContainer)];
    b.start(&spec).await;
    let mut spec = b.shell("private", "exec sleep 1000");
    spec.mounts = vec![mount(Propagation::Private)];
    b.start(&spec).await;
    nix::mount::mount(
        Some("tmpfs"),
        &vol.join("in"),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .unwrap();
    std::fs::write(vol.join("in/f"), "").unwrap();
    assert_eq!(b.exec("slave", &["ls", "/vol/in"]).await.1, "f\n");
    assert_eq!(b.exec("private", &["ls", "/vol/in"]).await.1, "");
    let mut spec = b.shell(
        "both",
        "mount -t tmpfs none /vol/out && touch /vol/out/g && exec sleep 1000",
    );
    spec.mounts = vec![mount(Propagation::Bidirectional)];
    spec.privileged = true;
    b.start(&spec).await;
    until("the container's mount is on the host", || {
        vol.join("out/g").exists()
    })
    .await;
    for id in ["slave", "private", "both"] {
        b.runtime.remove_container(id).await.unwrap();
    }
    for path in ["out", "in", ""] {
        nix::mount::umount2(&vol.join(path), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

pub async fn nothing_stays_in_the_cgroup_after_removal(b: Boxed<Box>) {
    // A daemon in the host's PID namespace outlives the container's first process.
    let mut pod = crate::support::sandbox_spec("pod2");
    pod.pid = PidMode::Host;
    let made = b.runtime.create_sandbox(&pod).await.unwrap();
    let mut spec = b.shell("c", "sleep 1000 & sleep 1000 & exit 0");
    spec.sandbox = "pod2".into();
    b.start(&spec).await;
    b.wait("c").await;
    let mut other = b.shell("d", "sleep 1000 & exec sleep 1000");
    other.sandbox = "pod2".into();
    b.start(&other).await;
    running(&b.runtime, "d").await;
    b.runtime.remove_container("c").await.unwrap();
    b.runtime.remove_container("d").await.unwrap();
    let found = std::process::Command::new("find")
        .args([
            "/sys/fs/cgroup",
            "-path",
            &format!("*{}/[cd]", made.cgroup_path),
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}
