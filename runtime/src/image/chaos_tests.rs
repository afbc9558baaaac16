//! Random damage to everything that comes from outside: nothing may panic, hang, take memory or leave its directory.
//! A failure prints the seed; `IMAGE_CHAOS_SEED` runs it again, `IMAGE_CHAOS_ROUNDS` makes it longer.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::AtomicBool;

use super::challenge::challenges;
use super::error::ErrorKind;
use super::manifest::{parse_config, parse_document, parse_manifest};
use super::reference::Reference;
use super::tar::header;
use super::unpack::{LayerLimits, apply};

/// A small generator of random numbers (xorshift): the seed is all there is to a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

/// Runs `round` with many seeds.
fn rounds(default: u64, mut round: impl FnMut(&mut Dice)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match number("IMAGE_CHAOS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("IMAGE_CHAOS_ROUNDS").unwrap_or(default),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            round(&mut Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        }));
        assert!(outcome.is_ok(), "IMAGE_CHAOS_SEED={seed}");
    }
}

/// An archive of random entries out of few names, so that they collide in every way.
fn archive(dice: &mut Dice) -> Vec<u8> {
    const NAMES: [&str; 18] = [
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "./a",
        "a/",
        "b/",
        ".wh.a",
        ".wh.b",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        "a/../b",
        "/a",
        "..",
        "a/./b",
        "",
    ];
    const LINKS: [&str; 9] = [
        "a",
        "b",
        "a/b",
        "..",
        "../b",
        "/",
        "/etc",
        "../../../etc/passwd",
        "b/../a",
    ];
    const FLAGS: &[u8] = b"0000111222555534670LKxgS";
    let mut tar = Vec::new();
    for _ in 0..dice.roll(12) {
        let flag = FLAGS[dice.roll(FLAGS.len())];
        let content: Vec<u8> = match flag {
            b'0' | b'7' => (0..dice.roll(700)).map(|i| i as u8).collect(),
            b'L' | b'K' => NAMES[dice.roll(NAMES.len())].into(),
            b'x' | b'g' => match dice.roll(4) {
                0 => b"12 path=a/b\n".to_vec(),
                1 => b"30 SCHILY.xattr.user.x=abcdef\n".to_vec(),
                2 => b"10 size=5\n".to_vec(),
                _ => b"20 mtime=-5.0000001\n".to_vec(),
            },
            _ => Vec::new(),
        };
        let modes = [0o644, 0o755, 0o4755, 0o1777, 0];
        let mut block = header(
            NAMES[dice.roll(NAMES.len())],
            flag,
            modes[dice.roll(5)],
            content.len() as u64,
        );
        let link = LINKS[dice.roll(LINKS.len())].as_bytes();
        block[157..157 + link.len()].copy_from_slice(link);
        if flag == b'3' {
            block[329..337].copy_from_slice(b"0000001\0");
            block[337..345].copy_from_slice(b"0000003\0");
        }
        seal(&mut block);
        tar.extend_from_slice(&block);
        tar.extend_from_slice(&content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Makes a header's checksum right again.
fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn damage(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..dice.roll(6) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.roll(bytes.len());
        match dice.roll(5) {
            0 => bytes[at] = dice.roll(256) as u8,
            1 => bytes[at] ^= 1 << dice.roll(8),
            2 => bytes.truncate(at),
            3 => {
                let end = (at + dice.roll(64)).min(bytes.len());
                bytes[at..end].fill([0, 0xff, b'7', b'/'][dice.roll(4)]);
            }
            _ => {
                let end = (at + dice.roll(600)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = dice.roll(bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
}

#[test]
fn random_layers_never_leave_their_directory() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("witness"), b"untouched").unwrap();
    let limits = LayerLimits {
        bytes: 1 << 20,
        entries: 100,
        reserved: 0,
    };
    let mut accepted = 0;
    rounds(3000, |dice| {
        let mut bytes = archive(dice);
        if dice.roll(3) > 0 {
            damage(dice, &mut bytes);
            if dice.roll(2) > 0 {
                let headers = bytes.len() / 512;
                for number in 0..headers {
                    let block = &mut bytes[number * 512..(number + 1) * 512];
                    if block[257..262] == *b"ustar" {
                        seal(block);
                    }
                }
            }
        }
        if dice.roll(8) == 0 {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&bytes).unwrap();
            bytes = encoder.finish().unwrap();
            damage(dice, &mut bytes);
        }
        let root = outside.join("root");
        fs::create_dir(&root).unwrap();
        let result = apply(
            bytes.as_slice(),
            File::open(&root).unwrap().into(),
            &[],
            &limits,
            &AtomicBool::new(false),
        );
        match result {
            Ok(_) => accepted += 1,
            Err(e) => assert!(
                !matches!(e.kind(), ErrorKind::Store | ErrorKind::NoSpace),
                "blamed on the box: {e}"
            ),
        }
        fs::remove_dir_all(&root).unwrap();
        let left: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|item| item.unwrap().file_name())
            .collect();
        assert_eq!(left, ["witness"]);
        assert_eq!(fs::read(outside.join("witness")).unwrap(), b"untouched");
    });
    assert!(
        accepted > 100,
        "only {accepted} archives were good enough to test anything"
    );
}

#[test]
fn random_documents_and_words_never_panic() {
    let digest = super::digest::Digest::sha256(b"");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":1}},"layers":[]}}"#
    );
    let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Volumes":{"/a":{}}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let words = [
        "localhost:5000/a/b:tag",
        "Bearer realm=\"https://x/y\",scope=\"a\\\"b\"",
        "a@sha256:0",
    ];
    rounds(3000, |dice| {
        let mut bytes = manifest.clone().into_bytes();
        damage(dice, &mut bytes);
        let _ = parse_document(&bytes, "");
        let _ = parse_manifest(&bytes);
        let mut bytes = config.as_bytes().to_vec();
        damage(dice, &mut bytes);
        let _ = parse_config(&bytes, &parse_manifest(manifest.as_bytes()).unwrap());
        let mut bytes = words[dice.roll(words.len())].as_bytes().to_vec();
        damage(dice, &mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = challenges([text.as_str()].into_iter());
        if let Ok(reference) = text.parse::<Reference>() {
            assert_eq!(
                reference.to_string().parse::<Reference>().unwrap(),
                reference
            );
        }
    });
}
