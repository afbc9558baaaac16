//! Real kubectl, run inside a box.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::wait::{eventually, patience};

/// What a program printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; 128 + N when signal N ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Runs `command` to its end with `stdin` as its input.
    #[track_caller]
    pub fn of(command: &mut Command, stdin: &[u8]) -> Ran {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let mut pipe = child.stdin.take().unwrap();
        let stdin = stdin.to_vec();
        // From a thread, so that a program that prints before it has read everything cannot block us.
        let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
        let output = child
            .wait_with_output()
            .unwrap_or_else(|e| panic!("waiting for {command:?}: {e}"));
        writer.join().unwrap();
        output.into()
    }

    /// The standard output of a run that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "failed with:\n{}\nand printed:\n{}",
            self.stderr, self.stdout
        );
        self.stdout
    }

    /// The standard error of a run that must have failed.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_ne!(
            self.code, 0,
            "must fail, but printed:\n{}\n{}",
            self.stdout, self.stderr
        );
        self.stderr
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        use std::os::unix::process::ExitStatusExt;
        Ran {
            code: output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// kubectl in one namespace of a box's cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    /// `nsenter ... --`, which every command begins with.
    pub(crate) enter: Vec<String>,
    pub(crate) namespace: String,
    pub(crate) websockets: bool,
}

impl Kubectl {
    /// The same cluster, another namespace.
    pub fn in_namespace(&self, namespace: &str) -> Kubectl {
        Kubectl {
            namespace: namespace.to_owned(),
            ..self.clone()
        }
    }

    /// The same, as it comes: `exec`, `attach` and `cp` speak WebSocket.
    ///
    /// Elsewhere they speak SPDY. On a busy machine kubectl 1.32 loses what comes first over a WebSocket, and its error with it,
    /// because it reads before it has made its streams (kubernetes/kubernetes#131203).
    pub fn over_websockets(&self) -> Kubectl {
        Kubectl {
            websockets: true,
            ..self.clone()
        }
    }

    /// Creates a namespace and waits until its service account exists, so that pods can be created in it.
    #[track_caller]
    pub fn new_namespace(&self, name: &str) -> Kubectl {
        self.run(&["create", "namespace", name]).ok();
        let kubectl = self.in_namespace(name);
        eventually(
            "the namespace's default service account",
            Duration::from_secs(10),
            || {
                let ran = kubectl.run(&["get", "serviceaccount", "default"]);
                if ran.code == 0 {
                    Ok(())
                } else {
                    Err(ran.stderr)
                }
            },
        );
        kubectl
    }

    /// The command, ready to be spawned by the caller.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.enter[0]);
        command
            .args(&self.enter[1..])
            .args([
                "kubectl",
                "--kubeconfig=/etc/amphipod/kubeconfig",
                // Each box is another cluster behind the same address.
                "--cache-dir=/run/kubectl-cache",
                "--namespace",
                &self.namespace,
            ])
            .args(args);
        if !self.websockets {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
        }
        command
    }

    /// Runs `kubectl ARGS`.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args), b"")
    }

    /// Runs `kubectl ARGS` with `stdin`, for `-f -`.
    #[track_caller]
    pub fn run_with(&self, args: &[&str], stdin: &str) -> Ran {
        Ran::of(&mut self.command(args), stdin.as_bytes())
    }

    /// `kubectl exec POD -- ARGS`.
    #[track_caller]
    pub fn exec(&self, pod: &str, args: &[&str]) -> Ran {
        self.run(&[&["exec", pod, "--"], args].concat())
    }

    /// `kubectl apply -f -` of one or more YAML documents, which must succeed.
    #[track_caller]
    pub fn apply(&self, yaml: &str) -> String {
        self.run_with(&["apply", "-f", "-"], yaml).ok()
    }

    /// `kubectl get ARGS -o json`, parsed.
    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = ["get"]
            .iter()
            .chain(args)
            .chain(&["-o", "json"])
            .copied()
            .collect();
        serde_json::from_str(&self.run(&args).ok()).expect("kubectl prints JSON")
    }

    /// Waits until the API takes what it refused, and creates a ConfigMap of this name then.
    #[track_caller]
    pub fn wait_for_writes(&self, name: &str) {
        eventually(
            "writes to be taken",
            Duration::from_secs(30),
            || match self.run(&["create", "configmap", name]) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(ran.stderr),
            },
        );
    }

    /// Waits for a condition with `kubectl wait`, and tells on failure what the objects look like.
    #[track_caller]
    pub fn wait_for(&self, what: &str, condition: &str, seconds: u32) {
        let seconds = seconds * patience();
        let (condition, timeout) = (
            format!("--for={condition}"),
            format!("--timeout={seconds}s"),
        );
        let ran = self.run(&["wait", what, &condition, &timeout]);
        if ran.code != 0 {
            let described = self.run(&["describe", what]).stdout;
            panic!(
                "{what} was not {condition} after {seconds} s: {}\n{described}",
                ran.stderr
            );
        }
    }
}
