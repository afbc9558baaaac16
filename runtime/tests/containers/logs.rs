use std::boxed::Box as Boxed;

use amphipod_runtime::*;

use crate::support::Box;

pub async fn both_streams_are_logged_in_cri_format(b: Boxed<Box>) {
    b.run(&b.shell("c", "echo out; echo err >&2")).await;
    let text = std::fs::read_to_string(b.log_path("c")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_by_key(|l| l.split(' ').nth(1).map(str::to_owned));
    assert_eq!(lines.len(), 2, "{text}");
    for (line, rest) in lines.into_iter().zip(["stderr F err", "stdout F out"]) {
        let (time, tail) = line.split_once(' ').unwrap();
        assert_eq!(tail, rest);
        assert_eq!(time.len(), 30, "{time}");
        assert!(time.ends_with('Z'));
        time.parse::<jiff::Timestamp>().unwrap();
    }
}

pub async fn logs_rotate_without_losing_a_line(b: Boxed<Box>) {
    let mut spec = b.shell(
        "c",
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
    );
    spec.log_limits = LogLimits {
        max_size: 100_000,
        max_files: 1000,
    };
    let (exit, _) = b.run(&spec).await;
    assert_eq!(exit.code, 0);
    let name = b
        .log_path("c")
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_string();
    let mut files: Vec<_> = std::fs::read_dir(b.dir.join("logs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            p.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&format!("{name}."))
        })
        .collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    files.push(b.log_path("c"));
    let mut next = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.len() <= 200_000, "{}", text.len());
        for line in text.lines() {
            assert_eq!(
                line.splitn(4, ' ').nth(3),
                Some(format!("line {next}").as_str())
            );
            next += 1;
        }
    }
    assert_eq!(next, 20000);
}

pub async fn a_line_without_end_is_logged(b: Boxed<Box>) {
    assert_eq!(b.output("c", "printf abc; printf def").await, "abcdef\n");
    let long = b
        .output("d", "head -c 40000 /dev/zero | tr '\\0' x; echo")
        .await;
    let lengths: Vec<usize> = long.lines().map(str::len).collect();
    assert_eq!(lengths, [16384, 16384, 7232]);
    let text = std::fs::read_to_string(b.log_path("d")).unwrap();
    let tags: Vec<&str> = text.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags, ["P", "P", "F"]);
}

pub async fn output_before_the_exit_event_is_in_the_log(b: Boxed<Box>) {
    for n in 0..10 {
        let id = format!("c{n}");
        let mut events = b.runtime.events();
        b.start(&b.shell(&id, "seq 1 5000")).await;
        loop {
            if let EventKind::Exited(_) = events.recv().await.unwrap().kind {
                break;
            }
        }
        assert_eq!(b.log(&id).lines().count(), 5000);
    }
}
