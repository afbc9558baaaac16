//! Two boxes in one fleet, and who reaches whom.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, binary, eventually, peer};

/// A server's box and one that joined it, each with a registry.
pub struct Fleet {
    args: Vec<String>,
    pub kubectl: Kubectl,
    _registries: [Registry; 2],
    /// The joined box.
    pub agent: EdgeBox,
    /// The all-in-one box.
    pub server: EdgeBox,
    pub lan: Lan,
}

impl Fleet {
    /// Two boxes on one link, in the zones `one` and `two`; `args` are those of both programs.
    #[track_caller]
    pub fn start(args: &[&str]) -> Fleet {
        let lan = Lan::new();
        let agent = EdgeBox::new(&lan);
        Fleet::join(lan, agent, args)
    }

    /// The same with the second box behind a router.
    #[track_caller]
    pub fn routed(args: &[&str]) -> Fleet {
        let lan = Lan::new();
        let agent = EdgeBox::behind_router(&lan);
        Fleet::join(lan, agent, args)
    }

    #[track_caller]
    fn join(lan: Lan, mut agent: EdgeBox, args: &[&str]) -> Fleet {
        let mut server = EdgeBox::new(&lan);
        server.start(args);
        server.wait_until_ready();
        let token = [binary().to_str().unwrap(), "token", "create"].map(str::to_owned);
        let line = server.run(&token.each_ref().map(String::as_str)).ok();
        let line: Vec<&str> = line
            .split_whitespace()
            .skip(2)
            .chain(args.iter().copied())
            .collect();
        agent.start_agent(&line);
        let kubectl = server.kubectl();
        let registries = [&server, &agent].map(Registry::start);
        eventually("the second box to join", Duration::from_secs(120), || {
            let ran = kubectl.run(&["get", "node", agent.name()]);
            let told = (ran.code == 0).then_some(());
            told.ok_or_else(|| format!("{ran:?}\n{}", agent.log()))
        });
        kubectl.wait_for(&format!("node/{}", agent.name()), "condition=Ready", 120);
        for (node, zone) in [(&server, "one"), (&agent, "two")] {
            let zone = format!("topology.kubernetes.io/zone={zone}");
            kubectl
                .run(&["label", "node", node.name(), &zone, "--overwrite"])
                .ok();
        }
        Fleet {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            kubectl,
            _registries: registries,
            agent,
            server,
            lan,
        }
    }

    /// Starts the agent of the joined box, which knows its server.
    #[track_caller]
    pub fn restart_agent(&mut self) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.agent.start_agent(&args);
    }

    /// Starts the server again, and waits until both nodes are well. What pods need of the joined box's disk is there; its registry went with the power.
    #[track_caller]
    pub fn restart_server(&mut self) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.server.start(&args);
        self.server.wait_until_ready();
        self._registries[1] = Registry::start(&self.agent);
        self.wait_for_agent();
    }

    /// Waits until the joined box is connected and its node Ready.
    #[track_caller]
    pub fn wait_for_agent(&self) {
        eventually("the joined box's node API", Duration::from_secs(60), || {
            let path = format!("/api/v1/nodes/{}/proxy/healthz", self.agent.name());
            let ran = self.kubectl.run(&["get", "--raw", &path]);
            let fine = ran.stdout == "ok";
            fine.then_some(()).ok_or(format!("{ran:?}"))
        });
        let node = format!("node/{}", self.agent.name());
        self.kubectl.wait_for(&node, "condition=Ready", 120);
    }

    /// The box of a pod whose name ends in `-a` (the server's) or `-b`.
    pub fn box_of(&self, pod: &str) -> &EdgeBox {
        if pod.ends_with("-a") {
            &self.server
        } else {
            &self.agent
        }
    }
}

/// `AMPHIPOD_TEST_OVERLAY`: how packets travel in all fleets of this file that do not care, instead of what they have by themselves.
fn forced_overlay() -> Option<String> {
    std::env::var("AMPHIPOD_TEST_OVERLAY").ok()
}

/// The fleet of this test process, started by the first caller.
#[track_caller]
pub fn fleet() -> &'static Fleet {
    static FLEET: OnceLock<Fleet> = OnceLock::new();
    FLEET.get_or_init(|| match forced_overlay() {
        Some(kind) => Fleet::start(&["--overlay", &kind]),
        None => Fleet::start(&[]),
    })
}

/// Two boxes with VXLAN (or what is forced) between them, for one test at a time: they may do with it what they want, if they put it right again.
#[track_caller]
pub fn wrapped_fleet() -> Wrapped {
    static FLEET: Mutex<Option<Fleet>> = Mutex::new(None);
    let mut fleet = FLEET.lock().unwrap_or_else(|broken| {
        // The test that failed may have left anything.
        FLEET.clear_poison();
        let mut fleet = broken.into_inner();
        *fleet = None;
        fleet
    });
    fleet.get_or_insert_with(|| {
        let kind = forced_overlay().unwrap_or_else(|| "vxlan".to_owned());
        Fleet::start(&["--overlay", &kind])
    });
    Wrapped(fleet)
}

/// A fleet that is there.
pub struct Wrapped(MutexGuard<'static, Option<Fleet>>);

impl Deref for Wrapped {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        self.0.as_ref().unwrap()
    }
}

impl DerefMut for Wrapped {
    fn deref_mut(&mut self) -> &mut Fleet {
        self.0.as_mut().unwrap()
    }
}

/// A namespace with pods that answer on ports 8080 (`http`), 8081 (`admin`) and 9000, by TCP and UDP, with their name and the client's address.
pub struct World<'a> {
    pub fleet: &'a Fleet,
    pub kubectl: Kubectl,
    /// By name.
    pub ips: BTreeMap<String, String>,
}

impl<'a> World<'a> {
    /// Names end in `-a` for the server's box, in `-b` for the other. Labels: `name`, and `app`, the name up to the dash.
    #[track_caller]
    pub fn new(fleet: &'a Fleet, namespace: &str, pods: &[&str]) -> World<'a> {
        let kubectl = fleet.kubectl.new_namespace(namespace);
        let mut world = World {
            fleet,
            kubectl,
            ips: BTreeMap::new(),
        };
        world.add(pods);
        world
    }

    /// Adds pods and waits until they are ready.
    #[track_caller]
    pub fn add(&mut self, pods: &[&str]) {
        let manifests: Vec<String> = pods
            .iter()
            .map(|name| {
                let app = name.split('-').next().unwrap();
                let node = self.fleet.box_of(name).name();
                format!(
                    "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}, name: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [peer, serve, '8080', '8081', '9000']
    ports: [{{name: http, containerPort: 8080}}, {{name: admin, containerPort: 8081}}]
    readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}
"
                )
            })
            .collect();
        self.kubectl.apply(&manifests.join("---\n"));
        for name in pods {
            self.kubectl
                .wait_for(&format!("pod/{name}"), "condition=Ready", 120);
            let pod = self.kubectl.get(&["pod", name]);
            let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
            self.ips.insert((*name).to_owned(), ip);
        }
    }

    #[track_caller]
    pub fn ip(&self, pod: &str) -> &str {
        &self.ips[pod]
    }

    /// Applies a service whose `spec` is one line of YAML, and waits until it has its endpoints; its spec as stored.
    #[track_caller]
    pub fn service(&self, name: &str, spec: &str) -> serde_json::Value {
        self.kubectl.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        ));
        self.kubectl.get(&["service", name])["spec"].clone()
    }

    /// Applies a NetworkPolicy whose `spec` is YAML.
    #[track_caller]
    pub fn policy(&self, name: &str, spec: &str) {
        self.kubectl.apply(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        ));
    }

    /// What a pod hears from each of the targets, in order; `-` without an answer, and why where it could not be asked.
    #[track_caller]
    pub fn ask(&self, pod: &str, targets: &[String]) -> Vec<String> {
        let mut args = vec!["exec", pod, "--", "peer", "reach"];
        args.extend(targets.iter().map(String::as_str));
        let ran = self.kubectl.run(&args);
        let said: Vec<String> = ran.stdout.lines().map(str::to_owned).collect();
        match said.len() == targets.len() {
            true => said,
            false => vec![format!("kubectl exec: {ran:?}"); targets.len()],
        }
    }

    /// `POD:PORT` with the pod's address in place of its name, after `udp:` or not; what is no pod stays.
    pub fn address(&self, target: &str) -> String {
        let (kind, rest) = match target.strip_prefix("udp:") {
            Some(rest) => ("udp:", rest),
            None => ("", target),
        };
        let (host, port) = rest.rsplit_once(':').unwrap();
        let host = self.ips.get(host).map_or(host, String::as_str);
        format!("{kind}{host}:{port}")
    }

    /// Waits until each of the clients reaches exactly those of the targets for which `expected` is true.
    #[track_caller]
    pub fn reaches(
        &self,
        what: &str,
        clients: &[&str],
        targets: &[&str],
        expected: impl Fn(&str, &str) -> bool,
    ) {
        let addresses: Vec<String> = targets.iter().map(|t| self.address(t)).collect();
        eventually(what, Duration::from_secs(60), || {
            let answers = std::thread::scope(|scope| {
                let addresses = &addresses;
                let ask = |&client| scope.spawn(move || (client, self.ask(client, addresses)));
                let asked: Vec<_> = clients.iter().map(ask).collect();
                asked
                    .into_iter()
                    .map(|one| one.join().unwrap())
                    .collect::<Vec<_>>()
            });
            let mut wrong = Vec::new();
            for (client, answers) in answers {
                for (target, answer) in targets.iter().zip(&answers) {
                    if (answer != "-") != expected(client, target) {
                        wrong.push(format!("{client} to {target}: {answer:?}"));
                    }
                }
            }
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        });
    }

    /// Waits until many connections from a pod are answered by exactly these pods.
    #[track_caller]
    pub fn answered_by(&self, client: &str, target: &str, names: &[&str]) {
        self.answers(&format!("{client} to {target}"), names, || {
            self.ask(client, &vec![target.to_owned(); 12])
        });
    }

    /// The same from a box, or from outside.
    #[track_caller]
    pub fn answers(&self, what: &str, names: &[&str], ask: impl Fn() -> Vec<String>) {
        eventually(
            &format!("{what}: an answer of {names:?}"),
            Duration::from_secs(60),
            || {
                let said = ask();
                let mut seen: Vec<&str> = said
                    .iter()
                    .map(|s| s.split(' ').next().unwrap_or_default())
                    .collect();
                seen.sort_unstable();
                seen.dedup();
                if seen == names {
                    Ok(())
                } else {
                    Err(format!("{said:?}"))
                }
            },
        );
    }
}

/// `peer reach` from a box.
#[track_caller]
pub fn ask_from(from: &EdgeBox, targets: &[String]) -> Vec<String> {
    let program = peer();
    let mut args = vec![program.to_str().unwrap(), "reach"];
    args.extend(targets.iter().map(String::as_str));
    from.run(&args).ok().lines().map(str::to_owned).collect()
}

/// `peer reach` from the LAN: 10.99.0.254 to the boxes.
#[track_caller]
pub fn ask_outside(lan: &Lan, targets: &[String]) -> Vec<String> {
    let program = peer();
    let mut args = vec![program.to_str().unwrap(), "reach"];
    args.extend(targets.iter().map(String::as_str));
    lan.run(&args).ok().lines().map(str::to_owned).collect()
}
