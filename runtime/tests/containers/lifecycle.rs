use std::boxed::Box as Boxed;
use std::collections::BTreeMap;
use std::time::Instant;

use amphipod_runtime::*;

use crate::support::{Box, running};

pub async fn a_container_runs_and_its_exit_code_is_known(b: Boxed<Box>) {
    let mut events = b.runtime.events();
    let (exit, text) = b.run(&b.shell("c", "echo hello; exit 3")).await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed, exit.lost),
        (3, None, false, false)
    );
    assert_eq!(text, "hello\n");
    let mut kinds = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.id, "c");
        kinds.push(match event.kind {
            EventKind::Created => "created",
            EventKind::Started { .. } => "started",
            EventKind::Exited(_) => "exited",
            _ => "other",
        });
    }
    assert_eq!(kinds, ["created", "started", "exited"]);
}

pub async fn a_signal_is_told_as_128_plus_its_number(b: Boxed<Box>) {
    b.start(&b.shell("c", "exec sleep 1000")).await;
    b.runtime.kill("c", libc::SIGKILL).await.unwrap();
    let exit = b.wait("c").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    let mut spec = b.shell(
        "d",
        "trap 'exit 7' QUIT; echo ready; while :; do sleep 1; done",
    );
    spec.stop_signal = "SIGQUIT".into();
    b.start(&spec).await;
    crate::support::until("the trap is set", || b.log("d") == "ready\n").await;
    let signal = b.runtime.stop_signal("d").await.unwrap();
    b.runtime.kill("d", signal).await.unwrap();
    assert_eq!(b.wait("d").await.code, 7);
    // Signals to the dead are no errors.
    b.runtime.kill("d", 15).await.unwrap();
}

pub async fn a_created_container_waits_until_it_is_started(b: Boxed<Box>) {
    b.runtime
        .create_container(&b.shell("c", "echo ran"))
        .await
        .unwrap();
    let state = b.runtime.container("c").await.unwrap().state;
    assert_eq!(state, ContainerState::Created);
    assert_eq!(b.log("c"), "");
    let told = b.runtime.start_container("c").await.unwrap();
    b.wait("c").await;
    assert_eq!(b.log("c"), "ran\n");
    // Whoever asks later hears of the same moment.
    match b.runtime.container("c").await.unwrap().state {
        ContainerState::Exited { started_at, .. } => assert_eq!(started_at, Some(told)),
        other => panic!("{other:?}"),
    }
    let again = b.runtime.start_container("c").await.unwrap_err();
    assert!(matches!(again, Error::State(_)), "{again}");
}

pub async fn layers_lie_over_each_other_and_writes_stay_in_the_container(b: Boxed<Box>) {
    let text = b
        .output(
            "c",
            "cat /etc/layer; echo; echo new > /etc/layer; cat /etc/layer",
        )
        .await;
    assert_eq!(text, "upper\nnew\n");
    let written = std::fs::read_to_string(b.runtime.writable_layer("c").join("etc/layer"));
    assert_eq!(written.unwrap(), "new\n");
    assert_eq!(b.output("d", "cat /etc/layer").await, "upper\n");
}

pub async fn many_containers_start_at_once(b: Boxed<Box>) {
    let ids: Vec<String> = (0..30).map(|n| format!("c{n}")).collect();
    let work = ids.iter().map(|id| async {
        b.start(&b.shell(id, &format!("exit {}", id.len()))).await;
        b.wait(id).await.code
    });
    let codes = futures_util::future::join_all(work).await;
    let wanted: Vec<i32> = ids.iter().map(|id| id.len() as i32).collect();
    assert_eq!(codes, wanted);
}

pub async fn a_missing_program_is_told_in_known_words_and_leaves_nothing(b: Boxed<Box>) {
    for (args, text) in [
        ("foo", r#"exec: "foo": executable file not found in $PATH"#),
        (
            "/no/foo",
            r#"exec: "/no/foo": stat /no/foo: no such file or directory"#,
        ),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let mut spec = b.shell("c", "");
        spec.args = vec![args.into()];
        let error = b.runtime.create_container(&spec).await.unwrap_err();
        assert!(matches!(error, Error::Exec(_)), "{error:?}");
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(b.runtime.list_containers().await.unwrap(), []);
    assert!(!b.config.state_dir.join("containers/c").exists());
    assert!(!b.config.run_dir.join("c/c").exists());
    // The name is free again.
    b.output("c", "true").await;
}

pub async fn a_file_that_is_no_program_fails_at_start(b: Boxed<Box>) {
    let mut spec = b.shell("c", "");
    spec.args = vec!["/etc/script".into()];
    b.runtime.create_container(&spec).await.unwrap();
    let error = b.runtime.start_container("c").await.unwrap_err();
    assert_eq!(error.to_string(), "exec /etc/script: exec format error");
    assert_eq!(b.wait("c").await.code, 128);
}

pub async fn labels_and_states_are_listed(b: Boxed<Box>) {
    let mut spec = b.shell("c", "exec sleep 1000");
    spec.labels = BTreeMap::from([("io.kubernetes.pod.name".into(), "web \"1\"".into())]);
    b.start(&spec).await;
    b.output("d", "true").await;
    let mut list = b.runtime.list_containers().await.unwrap();
    list.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].labels, spec.labels);
    assert_eq!(list[0].sandbox, "pod1");
    assert!(matches!(list[0].state, ContainerState::Running { .. }));
    assert!(
        matches!(&list[1].state, ContainerState::Exited { exit, started_at: Some(_) } if exit.code == 0)
    );
}

pub async fn a_running_container_can_be_removed(b: Boxed<Box>) {
    b.start(&b.shell("c", "sleep 1000 & exec sleep 1000")).await;
    let pid = running(&b.runtime, "c").await;
    b.runtime.remove_container("c").await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(matches!(
        b.runtime.container("c").await,
        Err(Error::ContainerNotFound(_))
    ));
    assert!(!b.config.state_dir.join("containers/c").exists());
    // Twice is no error.
    b.runtime.remove_container("c").await.unwrap();
}

pub async fn a_removal_that_was_cut_short_can_be_finished(b: Boxed<Box>) {
    b.start(&b.shell("c", "exec sleep 1000")).await;
    // The keeper has forgotten it, its files are there.
    let left = b.config.state_dir.join("containers/gone");
    std::fs::create_dir_all(left.join("upper/etc")).unwrap();
    let known = b.runtime.list_containers().await.unwrap();
    assert_eq!(b.runtime.half_removed(&known).await.unwrap(), ["gone"]);
    b.runtime.remove_container("gone").await.unwrap();
    assert!(!left.exists());
    assert_eq!(b.runtime.half_removed(&known).await.unwrap(), [""; 0]);
    running(&b.runtime, "c").await;
}

pub async fn ids_are_unique_and_unknown_ones_are_told(b: Boxed<Box>) {
    b.start(&b.shell("c", "exec sleep 1000")).await;
    let again = b
        .runtime
        .create_container(&b.shell("c", "true"))
        .await
        .unwrap_err();
    assert!(matches!(again, Error::AlreadyExists(_)), "{again:?}");
    // The first is unharmed.
    running(&b.runtime, "c").await;
    let unknown = b.runtime.kill("nope", 9).await.unwrap_err();
    assert!(
        matches!(unknown, Error::ContainerNotFound(_)),
        "{unknown:?}"
    );
    let mut spec = b.shell("d", "true");
    spec.sandbox = "nope".into();
    let unknown = b.runtime.create_container(&spec).await.unwrap_err();
    assert!(matches!(unknown, Error::SandboxNotFound(_)), "{unknown:?}");
    spec.id = "../d".into();
    assert!(matches!(
        b.runtime.create_container(&spec).await,
        Err(Error::Invalid(_) | Error::SandboxNotFound(_))
    ));
}

pub async fn images_of_many_layers_work(b: Boxed<Box>) {
    let mut spec = b.shell("c", "cat /etc/n119; ls /etc | grep -c ^n");
    for n in 0..120 {
        let layer = b.dir.join(format!(
            "a-layer-with-a-rather-long-name-so-that-options-overflow-{n}"
        ));
        std::fs::create_dir_all(layer.join("etc")).unwrap();
        std::fs::write(layer.join(format!("etc/n{n}")), format!("{n}\n")).unwrap();
        spec.layers.push(layer);
    }
    let (exit, text) = b.run(&spec).await;
    assert_eq!((exit.code, text.as_str()), (0, "119\n120\n"));
}

/// Not a benchmark: only that nothing grossly slow has crept in. Debug builds on shared machines.
pub async fn creation_is_quick(b: Boxed<Box>) {
    let mut times = Vec::new();
    for n in 0..20 {
        let id = format!("c{n}");
        let spec = b.shell(&id, "true");
        let start = Instant::now();
        b.runtime.create_container(&spec).await.unwrap();
        let created = start.elapsed();
        b.runtime.start_container(&id).await.unwrap();
        times.push((start.elapsed(), created));
        b.wait(&id).await;
        b.runtime.remove_container(&id).await.unwrap();
    }
    times.sort();
    let (total, created) = times[10];
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", b.runtime.keeper_pid())).unwrap();
    let ticks: Vec<u64> = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .skip(13)
        .take(2)
        .map(|f| f.parse().unwrap())
        .collect();
    // Clock ticks of 10 ms over 20 containers.
    print!(
        "[create {created:.1?}, create+start {total:.1?} p50; CPU of the children {} + {} ms each] ",
        ticks[0] as f64 / 2.0,
        ticks[1] as f64 / 2.0
    );
    assert!(total.as_millis() < 1000, "{total:?}");
}
