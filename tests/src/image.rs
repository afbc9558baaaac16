//! Images made by hand, so that tests can make bad ones too.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::edge_box::beside_the_test;

/// The name of the image that most tests run, as a pod refers to it: busybox, with `/bin/sh` and its other applets.
pub const BUSYBOX: &str = "127.0.0.1:5000/busybox:1";

/// Applets that the tests' image links to busybox.
const APPLETS: &str = "sh ash cat echo sleep wget nc nslookup ls id touch mkdir rm ps env hostname httpd tar stat mount umount ip ping \
kill seq date head tail grep sed awk dd chmod chown stty tee true false test wc sort cut tr expr find du df mv cp ln readlink \
sha256sum md5sum yes printf pwd uname which xargs basename dirname timeout nohup trap mkfifo setsid tty vi ulimit printenv sync";

/// `sha256:HEX` of some bytes, as OCI names content.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// An image in the making: layers (uncompressed tar archives), lowest first, and the `config` part of its configuration.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    /// `Env`, `Entrypoint`, `Cmd`, `User`, ... as the OCI image specification has them.
    pub config: Value,
}

impl Image {
    /// Debian's static busybox, which runs a shell, and `peer`, which talks.
    pub fn busybox() -> Image {
        let mut tar = Tar::default();
        for dir in ["bin", "etc", "tmp", "root"] {
            tar.entry(
                dir,
                tar::EntryType::Directory,
                if dir == "tmp" { 0o1777 } else { 0o755 },
                b"",
                "",
            );
        }
        let program =
            fs::read("/bin/busybox").expect("busybox-static is installed (tests/run.sh does it)");
        tar.entry("bin/busybox", tar::EntryType::Regular, 0o755, &program, "");
        let peer =
            fs::read(beside_the_test("AMPHIPOD_PEER", "peer")).expect("the test tool can be read");
        tar.entry("bin/peer", tar::EntryType::Regular, 0o755, &peer, "");
        for applet in APPLETS.split_whitespace() {
            tar.entry(
                &format!("bin/{applet}"),
                tar::EntryType::Symlink,
                0o777,
                b"",
                "busybox",
            );
        }
        tar.file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1234:2345:web:/:/bin/sh\n",
        );
        tar.file("etc/group", "root:x:0:\nweb:x:2345:\nextra:x:3456:web\n");
        Image {
            layers: vec![tar.finish()],
            config: json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/"}),
        }
    }

    /// The same image with one more layer on top.
    pub fn layer(mut self, tar: Tar) -> Image {
        self.layers.push(tar.finish());
        self
    }

    /// Writes the image into the data directory of a `docker-registry`, as `name:tag`; returns the manifest's digest.
    ///
    /// The layout is that of the registry's filesystem driver: blobs by digest, and links to them for each repository.
    pub fn store(&self, registry: &Path, name: &str, tag: &str) -> String {
        let root = registry.join("docker/registry/v2");
        let repository = root.join("repositories").join(name);
        let blob = |bytes: &[u8]| {
            let digest = digest(bytes);
            let hex = &digest["sha256:".len()..];
            write(
                &root
                    .join("blobs/sha256")
                    .join(&hex[..2])
                    .join(hex)
                    .join("data"),
                bytes,
            );
            write(
                &repository.join("_layers/sha256").join(hex).join("link"),
                digest.as_bytes(),
            );
            digest
        };
        let mut layers = Vec::new();
        for tar in &self.layers {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(tar).unwrap();
            let bytes = gzip.finish().unwrap();
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": blob(&bytes), "size": bytes.len(),
            }));
        }
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|tar| digest(tar)).collect::<Vec<_>>()},
        }))
        .unwrap();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(&config), "size": config.len()},
            "layers": layers,
        }))
        .unwrap();
        let digest = blob(&manifest);
        let hex = &digest["sha256:".len()..];
        let manifests = repository.join("_manifests");
        write(
            &manifests.join("revisions/sha256").join(hex).join("link"),
            digest.as_bytes(),
        );
        write(
            &manifests.join("tags").join(tag).join("current/link"),
            digest.as_bytes(),
        );
        write(
            &manifests
                .join("tags")
                .join(tag)
                .join("index/sha256")
                .join(hex)
                .join("link"),
            digest.as_bytes(),
        );
        digest
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A tar archive that takes any name and any size claim, also those that no honest tool writes.
#[derive(Debug, Clone, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// A regular file, mode 0644.
    pub fn file(&mut self, path: &str, text: &str) -> &mut Tar {
        self.entry(path, tar::EntryType::Regular, 0o644, text.as_bytes(), "")
    }

    /// Any entry. `path` (up to 100 bytes) goes into the header unchecked.
    pub fn entry(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        content: &[u8],
        link: &str,
    ) -> &mut Tar {
        self.claiming(path, kind, mode, content, link, content.len() as u64)
    }

    /// An entry whose header claims `size` bytes, whatever `content` holds.
    pub fn claiming(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        content: &[u8],
        link: &str,
        size: u64,
    ) -> &mut Tar {
        let mut header = tar::Header::new_ustar();
        {
            let raw = header.as_old_mut();
            raw.name[..path.len()].copy_from_slice(path.as_bytes());
            raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end marker.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}
