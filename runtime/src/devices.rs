//! The host's devices in containers: files in /dev, and who may use what.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

use crate::cgroup::{DeviceRule, MKNOD, READ, WRITE};
use crate::error::{Error, IoContext, Result};
use crate::spec::{ContainerSpec, Device};

/// A device file of the host.
fn inspect(device: &Device) -> Result<(char, u64, u64, u32, u32, u32)> {
    let path = &device.host_path;
    let what = || format!("device {}", path.display());
    let meta = std::fs::metadata(path).context(what)?;
    let kind = if meta.file_type().is_char_device() {
        'c'
    } else if meta.file_type().is_block_device() {
        'b'
    } else {
        return Err(Error::Invalid(format!(
            "{} is not a device",
            path.display()
        )));
    };
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    Ok((
        kind,
        major.into(),
        minor.into(),
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
    ))
}

pub(crate) fn devices(spec: &ContainerSpec) -> Result<Vec<Value>> {
    let mut list = Vec::new();
    let mut add = |device: &Device| -> Result<()> {
        let (kind, major, minor, mode, uid, gid) = inspect(device)?;
        list.push(json!({
            "path": device.container_path, "type": kind.to_string(), "major": major, "minor": minor,
            "fileMode": mode, "uid": uid, "gid": gid,
        }));
        Ok(())
    };
    if spec.privileged {
        for device in host_devices(Path::new("/dev")) {
            // It may have gone meanwhile.
            let _ = add(&device);
        }
    }
    for device in &spec.devices {
        add(device)?;
    }
    Ok(list)
}

/// All devices of the host, for privileged containers; what every container has in its own /dev is left to that.
fn host_devices(directory: &Path) -> Vec<Device> {
    const OWN: [&str; 12] = [
        "null", "zero", "full", "tty", "random", "urandom", "ptmx", "console", "pts", "shm",
        "mqueue", "fd",
    ];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if directory == Path::new("/dev") && OWN.iter().any(|own| name == *own) {
            continue;
        }
        if kind.is_dir() {
            found.extend(host_devices(&path));
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(Device {
                host_path: path.clone(),
                container_path: path,
                permissions: "rwm".into(),
            });
        }
    }
    found
}

fn access(device: &Device) -> &str {
    if device.permissions.is_empty() {
        "rwm"
    } else {
        &device.permissions
    }
}

/// For version 1. libcontainer adds what every container may use.
pub(crate) fn device_rules(spec: &ContainerSpec) -> Result<Vec<Value>> {
    if spec.privileged {
        return Ok(vec![json!({"allow": true, "access": "rwm"})]);
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for device in &spec.devices {
        let (kind, major, minor, ..) = inspect(device)?;
        rules.push(json!({
            "allow": true, "type": kind.to_string(), "major": major, "minor": minor, "access": access(device),
        }));
    }
    Ok(rules)
}

/// For version 2; `None` = anything.
pub(crate) fn device_filter(spec: &ContainerSpec) -> Result<Option<Vec<DeviceRule>>> {
    if spec.privileged {
        return Ok(None);
    }
    let rule = |device: &Device| {
        let (kind, major, minor, ..) = inspect(device)?;
        let bits = access(device).chars().map(|c| match c {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        });
        Ok(DeviceRule {
            block: kind == 'b',
            major: u32::try_from(major).ok(),
            minor: u32::try_from(minor).ok(),
            access: bits.fold(0, |all, bit| all | bit),
        })
    };
    spec.devices
        .iter()
        .map(rule)
        .collect::<Result<_>>()
        .map(Some)
}
