//! Facts about the machine, read once at the start.

use std::net::IpAddr;
use std::path::Path;

use amphipod_api::host;

/// What `nodeInfo` and `capacity` say.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    /// Size of the file system that holds pods and images.
    pub disk_bytes: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// Go's name of the architecture.
    pub architecture: String,
    pub swap_bytes: i64,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_string()
}

/// A line `KEY: N kB` of /proc/meminfo, in bytes.
pub fn meminfo(text: &str, key: &str) -> Option<i64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()? * 1024)
}

fn os_image(release: &str) -> String {
    let value = |key: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_string())
    };
    value("PRETTY_NAME")
        .or_else(|| value("NAME"))
        .unwrap_or_else(|| "Linux".into())
}

impl Machine {
    // The C types of statvfs are narrower on 32-bit machines.
    #[allow(clippy::unnecessary_cast)]
    pub fn look(data_dir: &Path) -> Machine {
        let memory = read("/proc/meminfo");
        let disk = nix::sys::statvfs::statvfs(data_dir).ok();
        let machine_id = [read("/etc/machine-id"), read("/var/lib/dbus/machine-id")]
            .into_iter()
            .find(|s| !s.is_empty())
            .unwrap_or_default();
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as i64),
            memory_bytes: meminfo(&memory, "MemTotal").unwrap_or_default(),
            swap_bytes: meminfo(&memory, "SwapTotal").unwrap_or_default(),
            disk_bytes: disk.map_or(0, |d| {
                (d.blocks() as u64).saturating_mul(d.fragment_size() as u64) as i64
            }),
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_image(&read("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                "x86" => "386",
                other => other,
            }
            .into(),
        }
    }
}

/// The address of this machine that others use: the one its default route has, else any IPv4 address that is not of a pod.
pub fn own_address() -> Option<IpAddr> {
    host::routed_addresses().next().or_else(|| {
        // Our own devices and pods' links come and go.
        let others = host::interface_addresses()
            .into_iter()
            .filter(|(name, ip)| ip.is_ipv4() && !name.starts_with("amphi"));
        others.map(|(_, ip)| ip).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        assert_eq!(
            meminfo("MemTotal:       100 kB\nMemFree: 7 kB\n", "MemFree"),
            Some(7168)
        );
        assert_eq!(meminfo("MemTotal:       100 kB\n", "Mem"), None);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
    }
}
