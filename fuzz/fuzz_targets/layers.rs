//! Image layers: archives, plain or compressed, unpacked into a directory that nothing may leave.
//!
//! The work is done by one thread in a mount namespace of its own, whose root is a small tmpfs: what would lead out of the layer's
//! directory leads into that, where it is seen. Needs root, as unpacking does.
#![no_main]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};

use amphipod_runtime::image::{LayerLimits, apply_layer};
use libfuzzer_sys::fuzz_target;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const BLOCK: usize = 512;
const LIMITS: LayerLimits = LayerLimits {
    bytes: 1 << 20,
    entries: 200,
    reserved: 0,
};

fuzz_target!(|data: &[u8]| {
    static WORKER: OnceLock<Mutex<(Sender<Vec<u8>>, Receiver<()>)>> = OnceLock::new();
    let worker = WORKER.get_or_init(|| Mutex::new(start()));
    let Ok(worker) = worker.lock() else { return };
    worker.0.send(sealed(data)).expect("the worker lives");
    worker.1.recv().expect("the worker answers");
});

/// The archive with right checksums, which random changes would never get right. What is compressed stays as it is.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    if data.starts_with(&[0x1f, 0x8b]) || data.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return archive;
    }
    let mut at = 0;
    while let Some(header) = archive
        .get_mut(at..at + BLOCK)
        .filter(|block| block.iter().any(|byte| *byte != 0))
    {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..136]
            .split(|byte| !(b'0'..=b'7').contains(byte))
            .next()
            .unwrap_or_default();
        let size = digits.iter().fold(0usize, |size, digit| {
            size.wrapping_mul(8) + usize::from(digit - b'0')
        });
        at += BLOCK + size.min(data.len()).next_multiple_of(BLOCK);
    }
    archive
}

fn start() -> (Sender<Vec<u8>>, Receiver<()>) {
    let ((jobs, inbox), (outbox, done)) = (channel::<Vec<u8>>(), channel());
    std::thread::spawn(move || {
        enter();
        for archive in inbox {
            unpack(&archive);
            if outbox.send(()).is_err() {
                return;
            }
        }
    });
    (jobs, done)
}

/// Makes the root of this thread an empty tmpfs with something to lose in it.
fn enter() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this target needs root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(
        Some("tmpfs"),
        "/tmp",
        Some("tmpfs"),
        MsFlags::MS_NODEV,
        Some("size=64m"),
    )
    .expect("a tmpfs");
    nix::unistd::chroot("/tmp").expect("a root");
    nix::unistd::chdir("/").expect("a directory");
    fs::create_dir("/etc").expect("a directory");
    fs::write("/etc/passwd", "untouched").expect("a file");
}

/// Everything outside the layer, with what could be changed of it.
fn outside() -> Vec<String> {
    let mut seen = Vec::new();
    for path in ["/", "/etc", "/etc/passwd"] {
        let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let facts = (
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.size(),
        );
        // The root's own times change with the layer's directory.
        let time = if path == "/" { 0 } else { meta.ctime_nsec() };
        seen.push(format!("{path} {facts:?} {time}"));
    }
    for dir in ["/", "/etc"] {
        let mut names: Vec<_> = fs::read_dir(dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        seen.push(format!("{names:?}"));
    }
    seen.push(fs::read_to_string("/etc/passwd").unwrap_or_default());
    seen
}

fn unpack(archive: &[u8]) {
    let root = Path::new("/layer");
    fs::create_dir(root).expect("a directory");
    let before = outside();
    let opened: OwnedFd = fs::File::open(root).expect("the directory opens").into();
    let result = apply_layer(archive, opened, &[], &LIMITS, &AtomicBool::new(false));
    assert_eq!(
        before,
        outside(),
        "unpacking changed something outside the layer: {result:?}"
    );
    if let Ok(applied) = result {
        assert!(applied.inodes <= LIMITS.entries * 300, "{applied:?}");
    }
    fs::remove_dir_all(root).expect("what was unpacked can be removed");
}
