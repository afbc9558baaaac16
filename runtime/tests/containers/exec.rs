use std::boxed::Box as Boxed;
use std::time::{Duration, Instant};

use amphipod_runtime::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::support::{Box, finish, running, until};

fn command(args: &[&str]) -> ExecSpec {
    ExecSpec {
        args: args.iter().map(|a| a.to_string()).collect(),
        ..ExecSpec::default()
    }
}

async fn sleeper(b: &Box) {
    b.start(&b.shell(
        "c",
        "trap 'exit 0' TERM; echo up; while :; do sleep 1; done",
    ))
    .await;
}

pub async fn a_command_runs_in_the_container_with_its_streams(b: Boxed<Box>) {
    sleeper(&b).await;
    let mut spec = command(&["sh", "-c", "cat; echo bad >&2; hostname"]);
    spec.stdin = true;
    let mut session = b.runtime.exec("c", &spec).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"from outside\n").await.unwrap();
    drop(stdin);
    let (code, out, err) = finish(session).await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "from outside\npod1-host\n", "bad\n")
    );
    // Nothing of it is in the container's own log.
    assert_eq!(b.log("c"), "up\n");
}

pub async fn exit_codes_of_commands_are_told(b: Boxed<Box>) {
    sleeper(&b).await;
    assert_eq!(b.exec("c", &["sh", "-c", "exit 42"]).await.0, 42);
    assert_eq!(b.exec("c", &["sh", "-c", "kill -9 $$"]).await.0, 137);
    // Very short ones, many at once.
    let all = (0..20).map(|_| b.exec("c", &["false"]));
    let codes = futures_util::future::join_all(all).await;
    assert!(codes.iter().all(|c| c.0 == 1));
}

pub async fn a_missing_command_is_told_in_known_words(b: Boxed<Box>) {
    sleeper(&b).await;
    let error = b.runtime.exec("c", &command(&["nope"])).await.unwrap_err();
    assert!(matches!(error, Error::Exec(_)));
    assert_eq!(
        error.to_string(),
        r#"exec: "nope": executable file not found in $PATH"#
    );
    let mut spec = command(&["pwd"]);
    spec.cwd = Some("/etc/passwd".into());
    let error = b.runtime.exec("c", &spec).await.unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
}

pub async fn a_terminal_has_a_size_that_changes(b: Boxed<Box>) {
    sleeper(&b).await;
    let mut spec = command(&["sh"]);
    (spec.tty, spec.stdin) = (true, true);
    let mut session = b.runtime.exec("c", &spec).await.unwrap();
    session.resize(100, 40).unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut out = BufReader::new(session.stdout.take().unwrap());
    let mut line = String::new();
    let mut ask = async |stdin: &mut FdStream, text: &str, wanted: &str| {
        stdin.write_all(text.as_bytes()).await.unwrap();
        loop {
            line.clear();
            assert!(out.read_line(&mut line).await.unwrap() > 0, "no {wanted}");
            if line.trim() == wanted {
                break;
            }
        }
    };
    ask(&mut stdin, "stty size\n", "40 100").await;
    session.resize(132, 50).unwrap();
    ask(&mut stdin, "stty size; tty\n", "50 132").await;
    ask(
        &mut stdin,
        "[ -t 0 ] && [ -t 2 ] && echo term=$TERM\n",
        "term=xterm",
    )
    .await;
    stdin.write_all(b"exit 5\n").await.unwrap();
    drop((stdin, out));
    assert_eq!(session.wait().await.unwrap().code, 5);
}

pub async fn a_command_that_takes_too_long_is_killed(b: Boxed<Box>) {
    sleeper(&b).await;
    let mut spec = command(&["sh", "-c", "sleep 1000 & sleep 1000"]);
    spec.timeout = Some(Duration::from_millis(100));
    let mut session = b.runtime.exec("c", &spec).await.unwrap();
    let outcome = session.wait().await.unwrap();
    assert!(outcome.timed_out);
    assert_eq!(outcome.code, 137);
    // What it had started went with it: the pipes are closed.
    let mut rest = Vec::new();
    session
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut rest)
        .await
        .unwrap();
}

pub async fn commands_run_as_the_container_unless_told_otherwise(b: Boxed<Box>) {
    let mut spec = b.shell("c", "");
    spec.args = ["sleep", "1000"].map(String::from).to_vec();
    spec.user = User {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![7, 8],
    };
    spec.env = vec!["A=from container".into()];
    spec.cwd = "/home".into();
    b.start(&spec).await;
    let (_, out, _) = b
        .exec(
            "c",
            &[
                "sh",
                "-c",
                "id -u; id -G; echo $A; pwd; echo $HOME; cat /proc/1/comm",
            ],
        )
        .await;
    assert_eq!(
        out,
        "1000\n1000 7 8\nfrom container\n/home\n/home/user\nsleep\n"
    );
    let mut spec = command(&["sh", "-c", "id -u; echo $A; pwd"]);
    spec.user = Some(User::default());
    spec.env = vec!["A=mine".into()];
    spec.cwd = Some("/tmp".into());
    let (_, out, _) = finish(b.runtime.exec("c", &spec).await.unwrap()).await;
    assert_eq!(out, "0\nmine\n/tmp\n");
}

pub async fn commands_are_in_the_container_s_cgroup(b: Boxed<Box>) {
    sleeper(&b).await;
    let session = b
        .runtime
        .exec("c", &command(&["sleep", "1000"]))
        .await
        .unwrap();
    let read = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (theirs, own) = (read(running(&b.runtime, "c").await), read(session.pid()));
    assert_eq!(theirs, own);
    assert!(
        own.contains(&format!("{}/burstable/podpod1/c", b.config.cgroup_root)),
        "{own}"
    );
    session.kill(libc::SIGKILL).await.unwrap();
}

pub async fn commands_need_a_running_container(b: Boxed<Box>) {
    b.output("c", "true").await;
    let error = b.runtime.exec("c", &command(&["true"])).await.unwrap_err();
    assert!(matches!(error, Error::State(_)), "{error:?}");
    let error = b.runtime.attach("c").await.unwrap_err();
    assert!(matches!(error, Error::State(_)), "{error:?}");
}

pub async fn attach_copies_output_and_gives_input(b: Boxed<Box>) {
    let mut spec = b.shell("c", "while read x; do echo got $x; echo err $x >&2; done");
    spec.stdin = true;
    b.start(&spec).await;
    let mut first = b.runtime.attach("c").await.unwrap();
    let mut second = b.runtime.attach("c").await.unwrap();
    first
        .stdin
        .as_mut()
        .unwrap()
        .stream
        .write_all(b"one\n")
        .await
        .unwrap();
    for session in [&mut first, &mut second] {
        let mut buf = [0; 64];
        let n = session.stdout.read(&mut buf).await.unwrap();
        assert_eq!(&buf[..n], b"got one\n");
        let n = session
            .stderr
            .as_mut()
            .unwrap()
            .read(&mut buf)
            .await
            .unwrap();
        assert_eq!(&buf[..n], b"err one\n");
    }
    drop(second);
    // Without stdin_once a client's end is not the container's.
    first.stdin.take().unwrap().end().await.unwrap();
    let mut third = b.runtime.attach("c").await.unwrap();
    third
        .stdin
        .as_mut()
        .unwrap()
        .stream
        .write_all(b"two\n")
        .await
        .unwrap();
    until("both lines are logged", || b.log("c").contains("got two")).await;
    b.runtime.kill("c", 9).await.unwrap();
    let mut rest = String::new();
    third.stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "got two\n", "ends with the container");
}

pub async fn attach_to_a_terminal_can_talk_to_a_shell(b: Boxed<Box>) {
    let mut spec = b.shell("c", "");
    spec.args = vec!["sh".into()];
    (spec.terminal, spec.stdin) = (true, true);
    b.start(&spec).await;
    let mut session = b.runtime.attach("c").await.unwrap();
    assert!(session.stderr.is_none());
    session.resize(90, 30).unwrap();
    let input = &mut session.stdin.as_mut().unwrap().stream;
    input
        .write_all(b"stty size; ls -l /dev/console | cut -c1; exit 4\n")
        .await
        .unwrap();
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("30 90\r\nc\r\n"), "{text:?}");
    assert_eq!(b.wait("c").await.code, 4);
    assert!(b.log("c").contains("30 90"), "terminals are logged too");
}

pub async fn input_once_ends_with_the_first_client(b: Boxed<Box>) {
    let mut spec = b.shell("c", "cat; echo end");
    (spec.stdin, spec.stdin_once) = (true, true);
    b.start(&spec).await;
    let mut session = b.runtime.attach("c").await.unwrap();
    let mut input = session.stdin.take().unwrap();
    input.stream.write_all(b"all of it\n").await.unwrap();
    input.end().await.unwrap();
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "all of it\nend\n");
    assert_eq!(b.wait("c").await.code, 0);
}

pub async fn a_slow_client_loses_nothing(b: Boxed<Box>) {
    let mut spec = b.shell("c", "read x; seq 1 100000");
    spec.stdin = true;
    b.start(&spec).await;
    let mut session = b.runtime.attach("c").await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .stream
        .write_all(b"go\n")
        .await
        .unwrap();
    // The pipe fills while nobody reads.
    until("output has begun", || b.log("c").lines().count() > 1000).await;
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text.lines().count(), 100_000);
    b.wait("c").await;
    assert!(b.log("c") == text, "the log is the same");
}

pub async fn exec_is_quick(b: Boxed<Box>) {
    sleeper(&b).await;
    let mut times = Vec::new();
    for _ in 0..30 {
        let start = Instant::now();
        assert_eq!(b.exec("c", &["true"]).await.0, 0);
        times.push(start.elapsed());
    }
    times.sort();
    print!("[exec {:.1?} p50] ", times[15]);
    assert!(times[15].as_millis() < 1000);
}
