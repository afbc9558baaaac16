//! What the image tests stand on: a real registry, images made in memory, and a proxy that counts and cuts.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amphipod_runtime::image::{Digest, Image, ImageError, ImageStore, PullOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// bcrypt of "secret".
const HTPASSWD: &str = "user:$2b$04$JsXXAAobUdfrJHA8YWsZa.qwiqIG1WW00X8UyuuDD2RCJu9e5dMIe\n";

/// Debian's docker-registry on a loopback port; killed and forgotten when dropped.
pub struct Registry {
    child: Child,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    scheme: &'static str,
    password: bool,
    ca: Option<String>,
}

#[derive(Default)]
pub struct RegistryOptions {
    pub password: bool,
    pub tls: bool,
}

impl Registry {
    pub async fn start() -> Self {
        Self::start_with(RegistryOptions::default()).await
    }

    pub async fn start_with(options: RegistryOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let data = dir.path().join("data");
        let mut http = json!({ "addr": address.to_string() });
        let mut ca = None;
        if options.tls {
            let key = rcgen::KeyPair::generate().unwrap();
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let certificate = rcgen::CertificateParams::new(names)
                .unwrap()
                .self_signed(&key)
                .unwrap();
            std::fs::write(dir.path().join("cert.pem"), certificate.pem()).unwrap();
            std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
            http["tls"] = json!({ "certificate": dir.path().join("cert.pem"), "key": dir.path().join("key.pem") });
            ca = Some(certificate.pem());
        }
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": data } },
            "http": http,
        });
        if options.password {
            let path = dir.path().join("htpasswd");
            std::fs::write(&path, HTPASSWD).unwrap();
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": path } });
        }
        // JSON is YAML.
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // SAFETY: only an async-signal-safe call between fork and exec. The registry ends with a test that is killed.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command
            .spawn()
            .expect("docker-registry must be installed (apt-get install docker-registry)");
        let started = Instant::now();
        while StdStream::connect(address).is_err() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "the registry does not answer"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let scheme = if options.tls { "https" } else { "http" };
        let password = options.password;
        Self {
            child,
            address,
            dir,
            scheme,
            password,
            ca,
        }
    }

    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    /// The file in which the registry keeps a blob.
    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    fn client(&self) -> reqwest::Client {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(pem) = &self.ca {
            use rustls::pki_types::pem::PemObject;
            roots
                .add(rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
                .unwrap();
        }
        let tls = rustls::ClientConfig::builder_with_provider(
            rustls::crypto::ring::default_provider().into(),
        )
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .build()
            .unwrap()
    }

    /// Pushes an image with its blobs; returns the digest of its manifest.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) -> Digest {
        for layer in &image.layers {
            self.push_blob(repository, &layer.blob).await;
        }
        self.push_blob(repository, image.config().to_string().as_bytes())
            .await;
        self.push_manifest(repository, tag, &image.manifest(), OCI_MANIFEST)
            .await
    }

    pub async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let base = format!("{}://{}", self.scheme, self.address);
        let send = |request: reqwest::RequestBuilder| {
            if self.password {
                request.basic_auth("user", Some("secret")).send()
            } else {
                request.send()
            }
        };
        let client = self.client();
        let started = send(client.post(format!("{base}/v2/{repository}/blobs/uploads/")))
            .await
            .unwrap();
        assert_eq!(started.status(), 202);
        let location = started.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with('/') {
            format!("{base}{location}")
        } else {
            location
        };
        let joint = if location.contains('?') { '&' } else { '?' };
        let put = client
            .put(format!("{location}{joint}digest={}", Digest::sha256(blob)))
            .body(blob.to_vec());
        assert_eq!(send(put).await.unwrap().status(), 201);
    }

    pub async fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        manifest: &Value,
        media_type: &str,
    ) -> Digest {
        let url = format!(
            "{}://{}/v2/{repository}/manifests/{tag}",
            self.scheme, self.address
        );
        let body = manifest.to_string();
        let digest = Digest::sha256(body.as_bytes());
        let mut put = self
            .client()
            .put(url)
            .header("content-type", media_type)
            .body(body);
        if self.password {
            put = put.basic_auth("user", Some("secret"));
        }
        let answer = put.send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        digest
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_address() -> SocketAddr {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// One layer as it is sent, and the digest of what it unpacks to.
#[derive(Clone)]
pub struct TestLayer {
    pub blob: Vec<u8>,
    pub diff: Digest,
    pub media_type: String,
}

impl TestLayer {
    pub fn plain(tar: Vec<u8>) -> Self {
        let diff = Digest::sha256(&tar);
        Self {
            blob: tar,
            diff,
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        }
    }

    pub fn gzip(tar: Vec<u8>) -> Self {
        let diff = Digest::sha256(&tar);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).unwrap();
        let blob = encoder.finish().unwrap();
        Self {
            blob,
            diff,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        }
    }

    pub fn zstd(tar: Vec<u8>) -> Self {
        let diff = Digest::sha256(&tar);
        let blob = ruzstd::encoding::compress_to_vec(
            tar.as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        Self {
            blob,
            diff,
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(),
        }
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.blob)
    }
}

#[derive(Clone, Default)]
pub struct TestImage {
    pub layers: Vec<TestLayer>,
    pub run: Value,
}

impl TestImage {
    pub fn new(layers: Vec<TestLayer>) -> Self {
        Self {
            layers,
            run: json!({ "Cmd": ["/bin/app"] }),
        }
    }

    pub fn config(&self) -> Value {
        let diffs: Vec<String> = self.layers.iter().map(|l| l.diff.to_string()).collect();
        json!({ "architecture": "amd64", "os": "linux", "config": self.run,
            "rootfs": { "type": "layers", "diff_ids": diffs } })
    }

    pub fn id(&self) -> Digest {
        Digest::sha256(self.config().to_string().as_bytes())
    }

    pub fn manifest(&self) -> Value {
        let config = self.config().to_string();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| json!({ "mediaType": l.media_type, "digest": l.digest(), "size": l.blob.len() }))
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(config.as_bytes()),
                "size": config.len(),
            },
            "layers": layers,
        })
    }
}

/// Writes archives entry by entry, also such that no honest tool would write.
#[derive(Clone)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, tar::EntryType::Regular, "", 0o644, content)
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(path, tar::EntryType::Directory, "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Symlink, target, 0o777, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Link, target, 0o644, b"")
    }

    pub fn device(mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = raw_header(path, kind, "", 0o666, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.append(&header, b"");
        self
    }

    pub fn entry(
        mut self,
        path: &str,
        kind: tar::EntryType,
        link: &str,
        mode: u32,
        content: &[u8],
    ) -> Self {
        let mut header = raw_header(path, kind, link, mode, content.len() as u64);
        header.set_cksum();
        self.append(&header, content);
        self
    }

    /// A file with any header the caller likes.
    pub fn custom(mut self, change: impl FnOnce(&mut tar::Header), content: &[u8]) -> Self {
        let mut header = raw_header(
            "x",
            tar::EntryType::Regular,
            "",
            0o644,
            content.len() as u64,
        );
        change(&mut header);
        header.set_cksum();
        self.append(&header, content);
        self
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self.0
            .extend_from_slice(without_end(&builder.into_inner().unwrap()));
        self
    }

    fn append(&mut self, header: &tar::Header, content: &[u8]) {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(header, content).unwrap();
        self.0
            .extend_from_slice(without_end(&builder.into_inner().unwrap()));
    }

    pub fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// An archive without the two zero blocks at its end.
fn without_end(archive: &[u8]) -> &[u8] {
    &archive[..archive.len() - 1024]
}

/// The tar crate refuses hostile paths, so names are written into the header's bytes.
fn raw_header(path: &str, kind: tar::EntryType, link: &str, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    let bytes = header.as_mut_bytes();
    bytes[..path.len()].copy_from_slice(path.as_bytes());
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A TCP proxy before the registry: it notes the requests and can cut connections after some bytes.
pub struct Proxy {
    pub address: SocketAddr,
    /// Request lines with their `Range` header, if any.
    requests: Arc<Mutex<Vec<String>>>,
    /// Bytes that may still pass to the client.
    budget: Arc<AtomicI64>,
    pub cuts: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let budget = Arc::new(AtomicI64::new(i64::MAX));
        let cuts = Arc::new(AtomicUsize::new(0));
        let (r, b, c) = (requests.clone(), budget.clone(), cuts.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, upstream, r.clone(), b.clone(), c.clone()));
            }
        });
        Self {
            address,
            requests,
            budget,
            cuts,
            task,
        }
    }

    /// From now on only so many bytes pass; then each connection is cut, until this is called again.
    pub fn allow(&self, bytes: i64) {
        self.budget.store(bytes, Ordering::SeqCst);
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub fn forget_requests(&self) {
        self.requests.lock().unwrap().clear();
    }

    pub fn count(&self, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    mut client: TcpStream,
    upstream: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    budget: Arc<AtomicI64>,
    cuts: Arc<AtomicUsize>,
) {
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        return;
    };
    let (mut from_client, mut from_server) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(n @ 1..) = read else { return };
                let text = String::from_utf8_lossy(&from_client[..n]).into_owned();
                if let Some(line) = text.lines().next().filter(|line| line.contains(" HTTP/1.1")) {
                    let range = text.lines().find(|l| l.to_lowercase().starts_with("range:")).unwrap_or("");
                    requests.lock().unwrap().push(format!("{line} {range}"));
                }
                if server.write_all(&from_client[..n]).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(n @ 1..) = read else { return };
                if budget.fetch_sub(n as i64, Ordering::SeqCst) < n as i64 {
                    cuts.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if client.write_all(&from_server[..n]).await.is_err() { return }
            }
        }
    }
}

pub fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    (dir, store)
}

pub async fn pull(store: &ImageStore, name: &str) -> Result<Image, ImageError> {
    store
        .pull(&name.parse().unwrap(), &PullOptions::default())
        .await
}

/// Files and directories that a failed pull must not leave behind: layers, and half-made ones.
pub fn layers_on_disk(dir: &Path) -> Vec<String> {
    let items = std::fs::read_dir(dir.join("layers")).unwrap();
    items
        .map(|item| item.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// An OCI image layout as one tar archive; `name` goes into the annotations.
pub fn oci_archive(image: &TestImage, name: Option<&str>) -> Vec<u8> {
    let manifest = image.manifest().to_string();
    let mut entry = json!({ "mediaType": OCI_MANIFEST, "digest": Digest::sha256(manifest.as_bytes()), "size": manifest.len() });
    if let Some(name) = name {
        entry["annotations"] =
            json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": "v1" });
    }
    let index =
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] }).to_string();
    let mut archive = Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.as_bytes());
    let config = image.config().to_string();
    let layers = image.layers.iter().map(|l| l.blob.as_slice());
    for blob in [config.as_bytes(), manifest.as_bytes()]
        .into_iter()
        .chain(layers)
    {
        archive = archive.file(
            &format!("blobs/sha256/{}", Digest::sha256(blob).hex()),
            blob,
        );
    }
    archive.done()
}

pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
    }
}

pub struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: String::new(),
            body: body.into(),
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }
}

/// A web server of a few lines, for registries that misbehave.
pub struct HttpServer {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl HttpServer {
    pub async fn start(
        answer: impl Fn(&Request, SocketAddr) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    let mut buffer = vec![0; 4096];
                    loop {
                        let Ok(n @ 1..) = stream.read(&mut buffer).await else {
                            return;
                        };
                        bytes.extend_from_slice(&buffer[..n]);
                        // Not HTTP but TLS: hang up, as web servers do.
                        if bytes[0] == 0x16 {
                            return;
                        }
                        let Some(request) = parse_request(&bytes) else {
                            continue;
                        };
                        let made = answer(&request, address);
                        let length = made.body.len();
                        let head = format!(
                            "HTTP/1.1 {} x\r\ncontent-length: {length}\r\nconnection: close\r\n{}\r\n",
                            made.status, made.headers
                        );
                        let _ = stream.write_all(head.as_bytes()).await;
                        if request.method != "HEAD" {
                            let _ = stream.write_all(&made.body).await;
                        }
                        return;
                    }
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn parse_request(bytes: &[u8]) -> Option<Request> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(n, _)| n == "content-length")
        .map_or(0, |(_, v)| v.parse().unwrap_or(0));
    (body.len() >= length).then(|| Request {
        method,
        path,
        headers,
        body: body.to_owned(),
    })
}
