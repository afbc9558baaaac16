//! Boxes and the local network between them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::kubectl::{Kubectl, Ran};
use crate::wait::eventually;

/// The program under test: `AMPHIPOD_BINARY`, or the one that cargo built beside the running test.
pub fn binary() -> PathBuf {
    beside_the_test("AMPHIPOD_BINARY", "amphipod")
}

/// `peer`, which talks, for use outside pods; in pods it is `/bin/peer`.
pub fn peer() -> PathBuf {
    beside_the_test("AMPHIPOD_PEER", "peer")
}

pub(crate) fn beside_the_test(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let test = std::env::current_exe().expect("a running test has a path");
    let mut dirs = test.ancestors().skip(1);
    let found = dirs
        .by_ref()
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("no {name} beside the test; build it (tests/run.sh does) or set {variable}")
    })
}

/// Numbers boxes within this test process; with the process id it makes their names unique on the machine.
static NEXT: AtomicU32 = AtomicU32::new(0);

fn unique(kind: &str) -> String {
    format!(
        "amphitest-{kind}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Namespaces with the power on: the `amphipod-box` process and PID 1 inside.
struct Power {
    supply: Child,
    switch: Option<ChildStdin>,
    pid_one: u32,
}

impl Power {
    fn on(dir: &Path, name: &str) -> Power {
        let mut supply = Command::new(beside_the_test("AMPHIPOD_BOX", "amphipod-box"))
            .arg(dir)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting amphipod-box");
        let mut line = String::new();
        BufReader::new(supply.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let pid_one = line
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("amphipod-box said {line:?} (are you root?)"));
        Power {
            switch: supply.stdin.take(),
            supply,
            pid_one,
        }
    }
}

impl Power {
    /// Cuts the power but keeps the disk.
    fn off(mut self) {
        let _ = self
            .switch
            .as_mut()
            .expect("the power is on")
            .write_all(b"k");
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        drop(self.switch.take());
        let _ = self.supply.wait();
    }
}

/// A part of a LAN: a bridge, and the first three bytes of its addresses.
#[derive(Clone, Copy)]
struct Segment {
    bridge: &'static str,
    net: &'static str,
}

const NEAR: Segment = Segment {
    bridge: "lan0",
    net: "10.99.0",
};
const FAR: Segment = Segment {
    bridge: "lan1",
    net: "10.98.0",
};

/// A layer-2 network of its own: a namespace with a bridge, 10.99.0.254/24.
pub struct Lan {
    power: Power,
    _dir: TempDir,
    next_host: AtomicU32,
}

impl Lan {
    /// A LAN without boxes.
    pub fn new() -> Lan {
        let dir = TempDir::with_prefix("amphitest-lan-").unwrap();
        let power = Power::on(dir.path(), &unique("lan"));
        let lan = Lan {
            power,
            _dir: dir,
            next_host: AtomicU32::new(1),
        };
        lan.bridge(NEAR);
        lan
    }

    fn bridge(&self, segment: Segment) {
        let Segment { bridge, net } = segment;
        for line in [
            format!("ip link add {bridge} type bridge"),
            format!("ip addr add {net}.254/24 dev {bridge}"),
            format!("ip link set {bridge} up"),
        ] {
            self.run(&line.split(' ').collect::<Vec<_>>()).ok();
        }
    }

    /// Makes a further segment, once, and the LAN's namespace the router to it.
    fn route_to(&self, segment: Segment) {
        if self.run(&["ip", "link", "show", segment.bridge]).code != 0 {
            self.bridge(segment);
            let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
            self.run(&["sh", "-c", forward]).ok();
        }
    }

    /// Runs a program on the LAN, outside every box.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(
            Command::new("nsenter")
                .args(enter(self.power.pid_one))
                .args(args),
            b"",
        )
    }
}

impl Default for Lan {
    fn default() -> Lan {
        Lan::new()
    }
}

/// The arguments of `nsenter` that lead into the namespaces of `pid_one`.
fn enter(pid_one: u32) -> Vec<String> {
    let target = pid_one.to_string();
    ["-t", &target, "-m", "-n", "-p", "-u", "-i", "--"]
        .map(str::to_owned)
        .to_vec()
}

/// One simulated edge machine. Dropping it cuts the power and throws the disk away.
pub struct EdgeBox {
    name: String,
    segment: Segment,
    address: String,
    port_on_lan: String,
    /// The running `amphipod server`, if it was started and not killed.
    program: Option<Child>,
    power: Option<Power>,
    dir: TempDir,
    /// The program of this box.
    binary: String,
    /// Where the box's own wall clock is set, if it has one.
    clock: Option<PathBuf>,
}

/// Where a box has its files, by the folder of its disk that holds them (as `amphipod-box` mounts them).
const FOLDERS: [(&str, &str); 4] = [
    ("lib", "/var/lib/amphipod"),
    ("pods", "/var/log/pods"),
    ("containers", "/var/log/containers"),
    ("etc", "/etc/amphipod"),
];

impl EdgeBox {
    /// A powered box on `lan`, with nothing running in it.
    #[track_caller]
    pub fn new(lan: &Lan) -> EdgeBox {
        EdgeBox::on(lan, NEAR)
    }

    /// The same behind a router: in 10.98.0.0/24, whose router is the LAN's namespace, 10.98.0.254. It knows nothing of pods.
    #[track_caller]
    pub fn behind_router(lan: &Lan) -> EdgeBox {
        lan.route_to(FAR);
        EdgeBox::on(lan, FAR)
    }

    #[track_caller]
    fn on(lan: &Lan, segment: Segment) -> EdgeBox {
        let mut edge_box = EdgeBox::unplugged(lan, segment);
        edge_box.power_on(lan);
        edge_box
    }

    /// A box like that, whose files are on an ext4 file system of its own that can fill up or fail. Its own log and the data of
    /// registries are elsewhere. The file system can be seen from inside only, at [`EdgeBox::small_disk`].
    #[track_caller]
    pub fn with_small_disk(lan: &Lan, megabytes: u64) -> EdgeBox {
        let mut edge_box = EdgeBox::unplugged(lan, NEAR);
        let image = edge_box.disk_image();
        let file = fs::File::create(&image).unwrap();
        file.set_len(megabytes << 20).unwrap();
        // No blocks are kept for root, so that full is full; like a card's file system, it goes read-only when it finds an error.
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-m", "0", "-e", "remount-ro"]).arg(&image);
        Ran::of(&mut mkfs, b"").ok();
        edge_box.power_on(lan);
        edge_box
    }

    fn unplugged(lan: &Lan, segment: Segment) -> EdgeBox {
        let number = lan.next_host.fetch_add(1, Ordering::Relaxed);
        EdgeBox {
            name: unique("box"),
            segment,
            address: format!("{}.{number}", segment.net),
            port_on_lan: format!("port{number}"),
            program: None,
            power: None,
            dir: TempDir::with_prefix("amphitest-disk-").unwrap(),
            binary: binary().to_str().expect("a UTF-8 path").to_owned(),
            clock: None,
        }
    }

    fn disk_image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// Where a box with a small disk has it mounted.
    pub fn small_disk(&self) -> PathBuf {
        self.dir.path().join("small")
    }

    /// Mounts the small disk over the folders of the large one. The kernel detaches the loop device with the box's mounts.
    fn mount_small_disk(&self) {
        let small = self.small_disk();
        fs::create_dir_all(&small).unwrap();
        let (small, image) = (small.to_str().unwrap(), self.disk_image());
        let image = image.to_str().unwrap();
        // As at any boot. 1: something was repaired.
        let checked = self.run(&["fsck.ext4", "-p", image]);
        assert!(checked.code <= 1, "{checked:?}");
        self.run(&["mount", "-o", "loop", image, small]).ok();
        for (folder, path) in FOLDERS {
            let source = format!("{small}/{folder}");
            self.run(&["mkdir", "-p", &source]).ok();
            self.run(&["mount", "--bind", &source, path]).ok();
        }
    }

    /// Switches the box on and plugs it into the LAN.
    #[track_caller]
    pub fn power_on(&mut self, lan: &Lan) {
        let power = Power::on(self.dir.path(), &self.name);
        let (inside, outside) = (power.pid_one.to_string(), lan.power.pid_one.to_string());
        self.power = Some(power);
        // After a power cut the kernel takes the old cable away in its own time; be first.
        lan.run(&["ip", "link", "del", &self.port_on_lan]);
        // The veth pair is made inside the box and one end moved to the LAN; the host's namespace never sees it.
        for line in [
            format!(
                "ip link add eth0 type veth peer name {} netns {outside}",
                self.port_on_lan
            ),
            format!("ip addr add {}/24 dev eth0", self.address),
            "ip link set eth0 up".to_owned(),
        ] {
            Ran::of(
                Command::new("nsenter")
                    .args(["-t", &inside, "-n", "--"])
                    .args(line.split(' ')),
                b"",
            )
            .ok();
        }
        for line in [
            format!(
                "ip link set {} master {}",
                self.port_on_lan, self.segment.bridge
            ),
            format!("ip link set {} up", self.port_on_lan),
        ] {
            lan.run(&line.split(' ').collect::<Vec<_>>()).ok();
        }
        let router = format!("{}.254", self.segment.net);
        self.run(&["ip", "route", "add", "default", "via", &router])
            .ok();
        if self.disk_image().exists() {
            self.mount_small_disk();
        }
    }

    /// Cuts the power: everything inside is killed at once, the namespaces are gone, the disk stays.
    pub fn power_off(&mut self) {
        if let Some(power) = self.power.take() {
            power.off();
        }
        if let Some(mut program) = self.program.take() {
            let _ = program.wait();
        }
    }

    /// Pulls the box's plug out of the LAN: packets vanish both ways, and nobody is told.
    #[track_caller]
    pub fn unplug_cable(&self, lan: &Lan) {
        lan.run(&["ip", "link", "set", &self.port_on_lan, "down"])
            .ok();
    }

    /// Puts it back.
    #[track_caller]
    pub fn plug_in_cable(&self, lan: &Lan) {
        lan.run(&["ip", "link", "set", &self.port_on_lan, "up"])
            .ok();
    }

    /// Ends the box as the death of the test's process would: its power supply alone cleans up.
    pub fn unplug_and_forget(mut self) {
        self.dir.disable_cleanup(true);
        drop(self.power.take());
    }

    /// A powered box that runs a ready all-in-one node.
    #[track_caller]
    pub fn ready(lan: &Lan) -> EdgeBox {
        let mut edge_box = EdgeBox::new(lan);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        edge_box
    }

    /// The box's disk, as seen from outside. `lib` below it is /var/lib/amphipod.
    pub fn disk(&self) -> &Path {
        self.dir.path()
    }

    /// The box's host name, which is its node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The box's address on the LAN.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn enter(&self) -> Vec<String> {
        enter(self.power.as_ref().expect("the box is powered").pid_one)
    }

    /// The box's network namespace, as a path.
    pub fn netns(&self) -> String {
        let power = self.power.as_ref().expect("the box is powered");
        format!("/proc/{}/ns/net", power.pid_one)
    }

    /// The memory that all amphipod's processes in the box have for themselves (without the program's own pages), bytes.
    #[track_caller]
    pub fn memory(&self) -> u64 {
        let script = "for p in $(pgrep -f '^[^ ]*amphipod[^ ]* (server|agent|keeper)'); do grep '^Pss_Anon:' /proc/$p/smaps_rollup; done";
        let text = self.run(&["bash", "-c", script]).ok();
        let kib = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.sum::<u64>() << 10
    }

    /// A program to be run inside the box.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program);
        command
    }

    /// Runs a program inside the box to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args[0]).args(&args[1..]), b"")
    }

    /// Starts `amphipod server` (all-in-one) in the box; its log is `amphipod.log` on the disk.
    #[track_caller]
    pub fn start(&mut self, args: &[&str]) {
        self.start_program("server", args);
    }

    /// Starts `amphipod agent` in the box, otherwise as [`EdgeBox::start`].
    #[track_caller]
    pub fn start_agent(&mut self, args: &[&str]) {
        self.start_program("agent", args);
    }

    #[track_caller]
    fn start_program(&mut self, subcommand: &str, args: &[&str]) {
        assert!(
            self.program.is_none(),
            "amphipod already runs in {}",
            self.name
        );
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        // How full the disk of the machine is that runs the tests says nothing about the box, unless it has its own.
        let thresholds = if self.disk_image().exists() {
            "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%"
        } else {
            "memory.available<100Mi"
        };
        let mut command = match &self.clock {
            None => self.command(&self.binary),
            Some(clock) => {
                let wrapper = beside_the_test("AMPHIPOD_CLOCK", "amphipod-clock");
                let mut command = self.command(wrapper.to_str().expect("a UTF-8 path"));
                command.arg(clock).arg(&self.binary);
                command
            }
        };
        command
            .args([subcommand, "--cgroup-root", &format!("/{}", self.name)])
            .args(["--eviction-hard", thresholds])
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.program = Some(command.spawn().expect("starting nsenter"));
    }

    /// From the next start on, the box has a wall clock of its own, which [`EdgeBox::set_clock`] sets. Containers keep the
    /// machine's.
    #[track_caller]
    pub fn give_clock(&mut self) {
        let clock = self.dir.path().join("clock");
        self.clock = Some(clock);
        self.set_clock(0);
        // A program that does not find the vDSO's functions asks the kernel, where `amphipod-clock` can answer.
        let mut program = fs::read(&self.binary).unwrap();
        let mark = b"__vdso_";
        let places: Vec<usize> = (0..program.len() - mark.len())
            .filter(|at| program[*at] == mark[0] && program[*at..].starts_with(mark))
            .collect();
        assert!(!places.is_empty(), "no vDSO names in the program");
        for place in places {
            program[place] = b'X';
        }
        self.install(&program);
    }

    /// Sets the box's wall clock so many seconds beside the machine's, at once and also while the program runs.
    #[track_caller]
    pub fn set_clock(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        let path = self.clock.as_ref().expect("the box has a clock of its own");
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path);
        file.and_then(|file| file.write_all_at(&seconds.to_le_bytes(), 0))
            .unwrap();
    }

    /// Puts another build of the program in the place of the box's, as an upgrade does: written beside it and renamed over it.
    #[track_caller]
    pub fn install(&mut self, program: &[u8]) {
        use std::os::unix::fs::PermissionsExt;
        let place = self.dir.path().join("amphipod");
        let new = self.dir.path().join("amphipod.new");
        fs::write(&new, program).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &place).unwrap();
        self.binary = place.to_str().expect("a UTF-8 path").to_owned();
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("amphipod.log")
    }

    /// What amphipod logged in this box so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Has the disk refuse writes to files (a shell pattern), or take them again. One that is immutable refuses them also through
    /// descriptors that are open. chattr(1)
    #[track_caller]
    pub fn refuse_writes(&self, files: &str, refuse: bool) {
        let flag = if refuse { "+i" } else { "-i" };
        let command = format!("chattr {flag} {files}");
        self.run(&["sh", "-c", &command]).ok();
    }

    /// The process id, as the host counts, of the running `amphipod server`.
    #[track_caller]
    pub fn program_pid(&self) -> u32 {
        let nsenter = self.program.as_ref().expect("amphipod was started").id();
        // nsenter forks when it enters a PID namespace: the program is its child, a moment after the start.
        let children = format!("/proc/{nsenter}/task/{nsenter}/children");
        eventually("amphipod's process", Duration::from_secs(5), || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            let first = text
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok());
            first.ok_or(text)
        })
    }

    /// `kill -9` of the one process that is both server and agent. Containers and their keeper are not touched.
    #[track_caller]
    pub fn kill_program(&mut self) {
        self.end_program(nix::sys::signal::Signal::SIGKILL);
    }

    /// Stops it in order, as a service manager does.
    #[track_caller]
    pub fn stop_program(&mut self) {
        self.end_program(nix::sys::signal::Signal::SIGTERM);
    }

    /// Freezes it (SIGSTOP): it hears of nothing any more, until it is killed.
    #[track_caller]
    pub fn freeze_program(&self) {
        let pid = nix::unistd::Pid::from_raw(self.program_pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    }

    #[track_caller]
    fn end_program(&mut self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.program_pid() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
        let mut nsenter = self.program.take().expect("amphipod was started");
        // It stopped with a program that was frozen.
        let pid = nix::unistd::Pid::from_raw(nsenter.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT);
        let _ = nsenter.wait();
    }

    /// Waits for a program that ends by itself; its exit code.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> i32 {
        let mut program = self.program.take().expect("amphipod was started");
        let ended = eventually("amphipod to end", Duration::from_secs(30), || {
            let ended = program.try_wait().expect("waiting for amphipod");
            ended.ok_or_else(|| self.log())
        });
        ended.code().unwrap_or(-1)
    }

    /// Waits until the API answers and the box's node is Ready.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let kubectl = self.kubectl();
        let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        eventually("the node to be Ready", Duration::from_secs(30), || {
            if let Some(status) = self
                .program
                .as_mut()
                .and_then(|p| p.try_wait().ok().flatten())
            {
                panic!("amphipod ended with {status}:\n{}", self.log());
            }
            let ran = kubectl.run(&["get", "node", &self.name, "-o", condition]);
            if ran.stdout == "True" {
                Ok(())
            } else {
                Err(format!("{ran:?}\n{}", self.log()))
            }
        });
    }

    /// kubectl in this box, in the namespace `default`.
    pub fn kubectl(&self) -> Kubectl {
        let enter = std::iter::once("nsenter".to_owned())
            .chain(self.enter())
            .collect();
        Kubectl {
            enter,
            namespace: "default".to_owned(),
            websockets: false,
        }
    }
}

impl Drop for EdgeBox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}\n---", self.name, self.log());
        }
        self.power_off();
    }
}
