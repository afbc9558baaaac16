//! What the tests of fleets share: a server's box and one that joined it.

use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Ran, binary, eventually};

/// `amphipod ARGS` on a box, to its end.
#[track_caller]
pub fn amphipod(on: &EdgeBox, args: &[&str]) -> Ran {
    let program = binary();
    let args: Vec<&str> = [program.to_str().unwrap()]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    on.run(&args)
}

/// The arguments of `amphipod agent`, from the line that `amphipod token create` prints.
#[track_caller]
pub fn join_line(server: &EdgeBox) -> Vec<String> {
    let line = amphipod(server, &["token", "create"]).ok();
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[..2], ["amphipod", "agent"], "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    words[2..].to_vec()
}

pub fn start_with(on: &mut EdgeBox, args: &[String]) {
    on.start_agent(&args.iter().map(String::as_str).collect::<Vec<_>>());
}

pub const READY: &str = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";

#[track_caller]
pub fn wait_ready(kubectl: &Kubectl, node: &EdgeBox) {
    eventually("the node to be Ready", Duration::from_secs(40), || {
        let ran = kubectl.run(&["get", "node", node.name(), "-o", READY]);
        if ran.stdout == "True" {
            Ok(())
        } else {
            Err(format!("{ran:?}\n{}", node.log()))
        }
    });
}

/// A server's box and one that joined it.
pub struct Fleet {
    pub kubectl: Kubectl,
    pub agent: EdgeBox,
    pub server: EdgeBox,
    pub lan: Lan,
}

impl Fleet {
    #[track_caller]
    pub fn start() -> Fleet {
        let lan = Lan::new();
        let server = EdgeBox::ready(&lan);
        let mut agent = EdgeBox::new(&lan);
        let line = join_line(&server);
        start_with(&mut agent, &line);
        let kubectl = server.kubectl();
        wait_ready(&kubectl, &agent);
        Fleet {
            kubectl,
            agent,
            server,
            lan,
        }
    }

    /// `kubectl` on the joined box, in the name of its node.
    pub fn as_node(&self, args: &[&str]) -> Ran {
        let pki = "/var/lib/amphipod/agent/pki";
        let mut command = self.agent.command("kubectl");
        command
            .args([
                format!("--server=https://{}:6443", self.server.address()),
                format!("--certificate-authority={pki}/server-ca.crt"),
                format!("--client-certificate={pki}/client.pem"),
                format!("--client-key={pki}/client.pem"),
                "--kubeconfig=/dev/null".to_owned(),
                "--cache-dir=/run/kubectl-node-cache".to_owned(),
            ])
            .args(args);
        Ran::of(&mut command, b"")
    }

    pub fn pem(&self) -> std::path::PathBuf {
        self.agent.disk().join("lib/agent/pki/client.pem")
    }

    /// Nothing can connect to the joined box any more; what it opened itself goes on.
    #[track_caller]
    pub fn put_behind_nat(&self) {
        let rules = "table inet nat-box { chain in { type filter hook input priority -300; iifname \"eth0\" tcp flags & (syn | ack) == syn drop
}
}";
        let mut command = self.agent.command("nft");
        Ran::of(command.args(["-f", "-"]), rules.as_bytes()).ok();
        let address = self.agent.address();
        let probe = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/10250'");
        let ran = self.server.run(&["sh", "-c", &probe]);
        assert_ne!(ran.code, 0, "the box can still be connected to");
    }
}

pub fn pod(name: &str, node: &str, command: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    stdin: true
    command: [sh, -c, {command:?}]
    ports: [{{containerPort: 8080}}]
"
    )
}
