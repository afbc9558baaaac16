//! The README's first command, run as a newcomer runs it, on a box of its own.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use amphipod_tests::{EdgeBox, Lan, Ran, binary};

/// A box whose disk holds everything that the script writes: directories of its own over those of the machine that runs the test.
fn fresh_machine(lan: &Lan) -> EdgeBox {
    let machine = EdgeBox::new(lan);
    let disk = machine.disk().to_str().unwrap().to_owned();
    // `/var/lib` and `/var/log` start empty; `/etc` and `/usr/local` show the machine's files, and take changes into the disk.
    let script = format!(
        "set -e; cd {disk}; umount /etc/amphipod /var/lib/amphipod /var/log/pods /var/log/containers; mkdir -p varlib varlog home
         mount --bind varlib /var/lib; mount --bind varlog /var/log
         for dir in etc usr/local; do
             mkdir -p upper/$dir work/$dir
             mount -t overlay overlay -o lowerdir=/$dir,upperdir=upper/$dir,workdir=work/$dir /$dir
         done
         rm -rf /etc/amphipod /etc/default/amphipod /usr/local/bin/amphipod; mkdir -p /run/home"
    );
    machine.run(&["bash", "-c", &script]).ok();
    machine
}

fn quickstart(machine: &EdgeBox, args: &[&str]) -> Ran {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("packaging/quickstart.sh");
    let mut command = vec!["env", "HOME=/run/home", script.to_str().unwrap()];
    command.extend(args);
    machine.run(&command)
}

/// Everything on the machine that amphipod could have left a trace in, one line each.
fn traces(machine: &EdgeBox) -> BTreeSet<String> {
    let script = format!(
        "find /etc /usr/local /var/lib /var/log /run | grep -v '^/run/kubectl-cache' | sed 's/^/file /'
         find /sys/fs/cgroup -path '*/{0}*' -type d | sed 's/^/cgroup /'
         cut -d' ' -f5 /proc/self/mountinfo | sed 's/^/mount /'
         ip -o link | cut -d: -f2 | sed 's/^/link /'
         ip -4 -o addr | sed 's/^/address /'; ip -4 route show table all | sed 's/^/route /'; ip rule | sed 's/^/rule /'
         nft list ruleset | sed 's/^/nft /'
         for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | cut -c-100 | sed 's/^/process /'; echo; done
         for s in ip_forward conf/all/rp_filter conf/all/route_localnet; do echo setting $s $(cat /proc/sys/net/ipv4/$s); done
         echo setting ipv6 forwarding $(cat /proc/sys/net/ipv6/conf/all/forwarding)",
        machine.name()
    );
    let lines = machine.run(&["bash", "-c", &script]).stdout;
    lines
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Leaves more to clean up than the demo does: volumes in memory and on disk, host ports, node ports, a pod that of two containers.
const MORE: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, sessionAffinity: ClientIP, selector: {app: much}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: much, labels: {app: much}}
spec:
  volumes:
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory}}
    - {name: settings, configMap: {name: settings}}
  containers:
    - name: main
      image: amphipod.local/hello
      ports: [{containerPort: 8080, hostPort: 8088}]
      resources: {limits: {memory: 64Mi, cpu: 500m}}
      volumeMounts:
        - {name: disk, mountPath: /disk}
        - {name: memory, mountPath: /memory}
        - {name: settings, mountPath: /settings}
        - {name: settings, mountPath: /one, subPath: colour}
    - name: second
      image: amphipod.local/hello
      args: [--port=8090]
"#;

/// The options that bring `machine` up from the binary under test, and keep its control groups where the box removes them.
fn install(machine: &EdgeBox, more: &[&str]) -> Ran {
    let (binary, cgroup_root) = (binary(), format!("/{}", machine.name()));
    let mut args = more.to_vec();
    args.extend([
        "--binary",
        binary.to_str().unwrap(),
        "--",
        "--cgroup-root",
        &cgroup_root,
    ]);
    quickstart(machine, &args)
}

#[test]
fn the_quickstart_serves_a_page_and_is_harmless_the_second_time() {
    let lan = Lan::new();
    let machine = fresh_machine(&lan);
    let first = install(&machine, &[]).ok();
    assert!(
        first.contains("Hello from Amphipod, served by hello-"),
        "{first}"
    );
    assert!(
        first.contains(machine.name()) && first.contains("service/hello"),
        "{first}"
    );
    let pods = || {
        let list = machine.kubectl().get(&["pods"]);
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 2, "{list}");
        items
            .iter()
            .map(|pod| pod["metadata"]["uid"].to_string())
            .collect::<BTreeSet<_>>()
    };
    let running = pods();
    // Nothing is built, installed or restarted, and the options are remembered.
    let second = quickstart(&machine, &["--binary", binary().to_str().unwrap()]).ok();
    assert!(second.contains("already runs"), "{second}");
    assert!(
        second.contains("Hello from Amphipod, served by hello-"),
        "{second}"
    );
    assert_eq!(pods(), running, "the pods were touched");
    quickstart(&machine, &["--uninstall"]).ok();
}

#[test]
fn uninstalling_leaves_no_trace() {
    let lan = Lan::new();
    let machine = fresh_machine(&lan);
    let before = traces(&machine);
    install(&machine, &["--no-demo"]).ok();
    machine.kubectl().apply(MORE);
    machine
        .kubectl()
        .wait_for("pod/much", "condition=Ready", 30);
    quickstart(&machine, &["--uninstall"]).ok();

    let after = traces(&machine);
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
    let taken: Vec<_> = before.difference(&after).collect();
    assert!(taken.is_empty(), "taken away: {taken:#?}");
    // And once more, with nothing there.
    quickstart(&machine, &["--uninstall"]).ok();
}

#[test]
fn a_program_that_dies_is_started_again() {
    let lan = Lan::new();
    let machine = fresh_machine(&lan);
    install(&machine, &["--no-demo"]).ok();
    machine
        .run(&[
            "bash",
            "-c",
            "kill -9 $(cat /proc/$(cat /run/amphipod-supervisor.pid)/task/*/children)",
        ])
        .ok();
    amphipod_tests::eventually(
        "the program to be started again",
        std::time::Duration::from_secs(20),
        || {
            let log = machine.run(&["cat", "/var/log/amphipod.log"]).stdout;
            let ran = machine.kubectl().run(&["get", "nodes"]);
            if log.contains("starting it again") && ran.code == 0 {
                Ok(())
            } else {
                Err(format!("{ran:?}\n{log}"))
            }
        },
    );
    quickstart(&machine, &["--uninstall"]).ok();
}

#[test]
fn failures_say_what_to_do() {
    let lan = Lan::new();
    let machine = fresh_machine(&lan);
    let binary = binary();
    for args in [
        &["--frobnicate"][..],
        &["--binary"],
        &["--binary", "/no/such/file"],
        &["--binary", "/bin/false"],
    ] {
        let refusal = quickstart(&machine, args).refused();
        assert!(refusal.contains("what to do:"), "{args:?}: {refusal}");
    }
    let mut other = machine
        .command(binary.to_str().unwrap())
        .args(["hello", "--port=6443"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    amphipod_tests::eventually(
        "the other program to listen",
        std::time::Duration::from_secs(5),
        || {
            let ran = machine.run(&["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/6443"]);
            if ran.code == 0 {
                Ok(())
            } else {
                Err(ran.stderr)
            }
        },
    );
    let refusal = quickstart(&machine, &["--binary", binary.to_str().unwrap()]).refused();
    assert!(
        refusal.contains("port 6443") && refusal.contains("what to do:"),
        "{refusal}"
    );
    let _ = other.kill();
    let _ = other.wait();
}
