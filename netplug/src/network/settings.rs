//! Kernel settings that pods need: turned on where they are off, and turned off again when everything is removed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Error, NetConfig, Result};

/// Packets are forwarded. ip-sysctl in the kernel's documentation.
const FORWARDING: [(bool, &str); 2] = [
    (true, "/proc/sys/net/ipv4/ip_forward"),
    (false, "/proc/sys/net/ipv6/conf/all/forwarding"),
];

/// The settings that were off before us.
#[derive(Debug)]
pub(super) struct Settings {
    /// Names them, a line each. It ends with the boot, as they do: what is on after the next is the will of others.
    record: PathBuf,
    /// Opened when we had the namespace of the box around us: so they mean that one, whoever writes.
    files: Vec<File>,
}

impl Settings {
    /// Turns on what is off. Written only where it differs.
    pub fn turn_on(config: &NetConfig) -> Result<Settings> {
        // Beside the directory, whose files are all of pods.
        let record = config.state_dir.with_extension("turned-on");
        let before = fs::read_to_string(&record).unwrap_or_default();
        let mut known: Vec<&str> = before.lines().collect();
        let mut files = Vec::new();
        for (v4, path) in FORWARDING {
            if !config.pod_cidrs.iter().any(|n| n.addr().is_ipv4() == v4) {
                continue;
            }
            let is_on = fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
            let is_ours = known.contains(&path);
            if is_on && !is_ours {
                continue;
            }
            if !is_ours {
                known.push(path);
                // First, so that a crash between the two loses nothing.
                fs::write(&record, known.join("\n")).map_err(Error::state("writing", &record))?;
            }
            let failed = || Error::state("turning on IP forwarding in", Path::new(path));
            let file = OpenOptions::new()
                .write(true)
                .open(path)
                .map_err(failed())?;
            if !is_on {
                set(&file, b"1").map_err(failed())?;
            }
            files.push(file);
        }
        Ok(Settings { record, files })
    }

    /// Turns off what we turned on.
    pub fn put_back(&mut self) -> Result<()> {
        for file in self.files.drain(..) {
            set(&file, b"0").map_err(Error::state("putting back", Path::new("/proc/sys/net")))?;
        }
        Error::removing(&self.record, fs::remove_file(&self.record))
    }
}

/// A setting is written from its beginning, or nothing happens.
fn set(file: &File, value: &[u8]) -> io::Result<()> {
    file.write_all_at(value, 0)
}
