//! How a box becomes a node of a cluster, and stays one: the first contact by a join token, the certificate by a
//! CertificateSigningRequest, and its renewal.
//!
//! What is kept, in `pki/` of the agent's data directory: `client.pem`, the key and its certificate in one file so that they always fit
//! each other; `server-ca.crt`; `membership.json`, where the cluster is and what it is like.

use std::path::{Path, PathBuf};
use std::time::Duration;

use amphipod_api::client::{Auth, Client, ClientConfig, ClientError, Target};
use amphipod_api::files::{self, PRIVATE};
use amphipod_api::join::{CLUSTER_PATH, ClusterFacts, JoinToken, NODE_SIGNER};
use amphipod_api::meta::{self, array_at, str_at};
use amphipod_api::pki::{self, CertInfo, LEAF_LIFETIME};
use amphipod_api::reflector::{Backoff, Event, Reflector, ReflectorConfig};
use amphipod_api::tls;
use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use crate::config::{AgentConfig, ServerCredentials};

/// How a box is told to join. Both are needed the first time only.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    /// `https://HOST:PORT`; a later start with another one says that the server has moved.
    pub server: Option<String>,
    /// What `amphipod token create` printed.
    pub token: Option<String>,
    pub node_name: String,
    /// The agent's data directory.
    pub data_dir: PathBuf,
}

/// A box's place in a cluster.
#[derive(Debug, Clone)]
pub struct Membership {
    pub server_url: String,
    pub credentials: ServerCredentials,
    pub cluster: ClusterFacts,
}

/// What is remembered of a cluster.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    server: String,
    node_name: String,
    cluster: ClusterFacts,
}

const UNKNOWN_TOKEN: &str = "the server does not know this token any more (they expire after a day, if not told otherwise): run `amphipod token create` there again";

/// Where the files are.
fn credentials(data_dir: &Path) -> ServerCredentials {
    let dir = data_dir.join("pki");
    ServerCredentials {
        ca: dir.join("server-ca.crt"),
        cert: dir.join("client.pem"),
        key: dir.join("client.pem"),
    }
}

/// The box's place: from disk if it has joined before, else by the token, waiting for the server and for approval.
///
/// A box that has joined before is not kept waiting by a token, nor by the server.
///
/// # Errors
/// Neither membership nor token; a token that is refused or that belongs to another cluster; a disk that cannot be written.
pub async fn join(config: &JoinConfig) -> Result<Membership> {
    let credentials = credentials(&config.data_dir);
    let path = config.data_dir.join("pki/membership.json");
    let remembered: Option<Remembered> = match files::read_optional(&path, 64 << 10)? {
        None => None,
        Some(text) => Some(
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?,
        ),
    };
    let url = config
        .server
        .as_deref()
        .map(|url| url.trim_end_matches('/'));
    let Some(token) = &config.token else {
        let mut remembered = remembered.with_context(|| {
            "this box has not joined a cluster yet: run `amphipod token create` on the server, and here the line that it prints"
        })?;
        ensure!(
            remembered.node_name == config.node_name,
            "this box has joined as node {:?}, not {:?}: start it with --node-name {:?}, or join again with a token",
            remembered.node_name,
            config.node_name,
            remembered.node_name
        );
        if let Some(url) = url.filter(|url| *url != remembered.server) {
            remembered.server = url.to_owned();
            remember(&path, &remembered)?;
        }
        return Ok(Membership {
            server_url: remembered.server,
            credentials,
            cluster: remembered.cluster,
        });
    };
    let token: JoinToken = token.parse().map_err(|why: String| anyhow!(why))?;
    let server = match (url, &remembered) {
        (Some(url), _) => url.to_owned(),
        (None, Some(remembered)) => remembered.server.clone(),
        (None, None) => {
            bail!("--token needs --server, the URL that `amphipod token create` prints")
        }
    };
    if let Some(old) = remembered.filter(|old| old.node_name == config.node_name) {
        let ca = std::fs::read_to_string(&credentials.ca).unwrap_or_default();
        ensure!(
            pki::ca_hash(&ca).is_ok_and(|hash| hash == token.ca_hash),
            "this box belongs to another cluster, at {}: `amphipod reset --yes` makes it forget that, and everything in it",
            old.server
        );
        let pem = std::fs::read(&credentials.cert).unwrap_or_default();
        if tls::client_config(ca.as_bytes(), Some((&pem, &pem))).is_ok() {
            // Pods come first: whether the certificate is still good, and if not, joining again, is for `keep_valid`.
            let same = Remembered {
                server: server.clone(),
                ..old
            };
            remember(&path, &same)?;
            return Ok(Membership {
                server_url: same.server,
                credentials,
                cluster: same.cluster,
            });
        }
    }
    let (ca, cluster) = enter(&server, &token, config, &credentials).await?;
    files::write_if_changed(&credentials.ca, ca.as_bytes(), files::PUBLIC)
        .with_context(|| format!("writing {}", credentials.ca.display()))?;
    let new = Remembered {
        server,
        node_name: config.node_name.clone(),
        cluster,
    };
    remember(&path, &new)?;
    tracing::info!(
        node = new.node_name,
        server = new.server,
        "joined the cluster"
    );
    Ok(Membership {
        server_url: new.server,
        credentials,
        cluster: new.cluster,
    })
}

fn remember(path: &Path, what: &Remembered) -> Result<()> {
    let text = serde_json::to_vec_pretty(what)?;
    files::write_if_changed(path, &text, PRIVATE)
        .map(drop)
        .with_context(|| format!("writing {}", path.display()))
}

fn is_refusal(error: &ClientError) -> bool {
    error.status().is_some_and(|status| status.code == 401)
}

/// The first contact: finds the CA by its hash, shows the token, gets a certificate and stores it. Returns the CA, PEM.
async fn enter(
    server: &str,
    token: &JoinToken,
    config: &JoinConfig,
    files: &ServerCredentials,
) -> Result<(String, ClusterFacts)> {
    let mut failures = 0;
    let mut patience = async |error: &dyn std::fmt::Display| {
        if failures == 0 {
            tracing::warn!(
                "the server {server} cannot be reached yet; trying until it can: {error}"
            );
        }
        failures += 1;
        tokio::time::sleep(Backoff::default().delay(failures)).await;
    };
    let ca = loop {
        match find_ca(server, token).await {
            Ok(ca) => break ca,
            Err(Contact::Wrong(why)) => bail!(why),
            Err(Contact::Unreachable(why)) => patience(&why).await,
        }
    };
    let client = Client::new(ClientConfig::new(server, &ca, Auth::Token(token.bearer())))?;
    loop {
        let facts = client.raw(Method::GET, CLUSTER_PATH, None).await;
        let entered = match facts {
            Ok(facts) => {
                let facts: ClusterFacts =
                    serde_json::from_slice(&facts).context("reading what the cluster is like")?;
                certify(&client, &config.node_name, files)
                    .await
                    .map(|()| facts)
            }
            Err(error) => Err(error.into()),
        };
        match entered {
            Ok(facts) => return Ok((ca, facts)),
            Err(error) => match error.downcast_ref::<ClientError>() {
                Some(why) if is_refusal(why) => bail!(UNKNOWN_TOKEN),
                Some(why) if why.is_retryable() => patience(why).await,
                _ => return Err(error),
            },
        }
    }
}

/// Why the first contact failed.
enum Contact {
    /// Worth another try.
    Unreachable(String),
    Wrong(String),
}

/// The CA of the server, if it is the one that the token names.
async fn find_ca(server: &str, token: &JoinToken) -> Result<String, Contact> {
    let (host, port) = host_port(server).map_err(|e| Contact::Wrong(format!("{e:#}")))?;
    let wrong = |why: &dyn std::fmt::Display| Contact::Wrong(why.to_string());
    let (tls, pinned) = tls::pinned_client_config(&token.ca_hash).map_err(|e| wrong(&e))?;
    let name = ServerName::try_from(host.clone()).map_err(|e| wrong(&e))?;
    let contact = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        let connector = TlsConnector::from(std::sync::Arc::new(tls));
        connector.connect(name, tcp).await
    };
    let connected = tokio::time::timeout(Duration::from_secs(15), contact).await;
    match connected {
        Ok(Ok(_)) => pinned
            .found()
            .ok_or_else(|| wrong(&"the server showed no certificate authority")),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(Contact::Wrong(format!(
                "the server {server} is not the one that the token is for, or --server names it by an address that is not in its certificate: {error}"
            )))
        }
        Ok(Err(error)) => Err(Contact::Unreachable(error.to_string())),
        Err(_) => Err(Contact::Unreachable("no answer in 15 s".to_owned())),
    }
}

/// Host (without brackets) and port of an `https://` URL.
pub(crate) fn host_port(url: &str) -> Result<(String, u16)> {
    let uri: http::Uri = url
        .parse()
        .with_context(|| format!("reading the URL {url:?}"))?;
    ensure!(
        uri.scheme_str() == Some("https"),
        "the server's URL must begin with https://, not be {url:?}"
    );
    let host = uri
        .host()
        .with_context(|| format!("the URL {url:?} names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), uri.port_u16().unwrap_or(443)))
}

fn requests() -> Target {
    Target::new("certificates.k8s.io", "v1", "certificatesigningrequests")
}

/// A new key and a certificate for it by which this node is known to the server, stored.
async fn certify(client: &Client, node: &str, files: &ServerCredentials) -> Result<()> {
    let usages = ["digital signature", "client auth"];
    let pem = obtain(client, node, NODE_SIGNER, &usages, &[]).await?;
    if let Some(dir) = files.cert.parent() {
        files::create_private_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    files::write_atomic(&files.cert, pem.as_bytes(), PRIVATE)
        .with_context(|| format!("writing {}", files.cert.display()))
}

/// A new key and this node's certificate for it, PEM. Waits for approval as long as it takes.
pub(crate) async fn obtain(
    client: &Client,
    node: &str,
    signer: &str,
    usages: &[&str],
    sans: &[String],
) -> Result<String> {
    let key = pki::generate_key()?;
    let user = format!("system:node:{node}");
    let request = pki::create_request(&key, &user, &["system:nodes"], sans)?;
    let csr = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {
            "request": STANDARD.encode(request),
            "signerName": signer,
            "usages": usages,
            "expirationSeconds": LEAF_LIFETIME.as_secs(),
        },
    });
    let created = client.create(&requests(), &csr).await?;
    let name = meta::name(&created).to_owned();
    let cert = issued(client, &name).await?;
    let cert = String::from_utf8(STANDARD.decode(cert)?)?;
    tls::certified_key(cert.as_bytes(), key.as_bytes())
        .context("the certificate that came does not fit the key")?;
    Ok(format!("{cert}{key}"))
}

/// The certificate of a request, base64, once it is there.
async fn issued(client: &Client, name: &str) -> Result<String> {
    let mut changes = Reflector::spawn(
        client.clone(),
        requests().name(name),
        ReflectorConfig::default(),
    );
    let waiting = tokio::time::sleep(Duration::from_secs(5));
    tokio::pin!(waiting);
    let mut told = false;
    loop {
        let event = tokio::select! {
            event = changes.next() => event.context("watching the certificate request ended")?,
            () = &mut waiting, if !told => {
                told = true;
                tracing::info!("waiting for approval; `kubectl certificate approve {name}` on the server gives it");
                continue;
            }
        };
        let csr = match event {
            Event::Applied(csr) => csr,
            Event::Restarted(all) => match all.into_iter().next() {
                Some(csr) => csr,
                None => bail!("the certificate request {name} was deleted"),
            },
            Event::Deleted(_) => bail!("the certificate request {name} was deleted"),
        };
        if let Some(cert) = outcome(&csr)? {
            return Ok(cert);
        }
    }
}

/// The certificate, if it is there.
///
/// # Errors
/// The request was denied, or could not be signed.
fn outcome(csr: &Value) -> Result<Option<String>> {
    for condition in array_at(csr, &["status", "conditions"]) {
        if let kind @ ("Denied" | "Failed") = str_at(condition, &["type"]) {
            bail!(
                "the certificate request of this box has {}: {}",
                kind.to_lowercase(),
                str_at(condition, &["message"])
            );
        }
    }
    let cert = str_at(csr, &["status", "certificate"]);
    Ok((!cert.is_empty()).then(|| cert.to_owned()))
}

/// How long before its end a certificate is renewed: 30 % of its life.
pub(crate) const AHEAD: SignedDuration =
    SignedDuration::from_secs(LEAF_LIFETIME.as_secs() as i64 * 3 / 10);
/// The longest sleep: clocks of boxes jump.
pub(crate) const LOOK: Duration = Duration::from_secs(12 * 3600);

/// Between attempts to get one.
pub(crate) const SLOWLY: Backoff = Backoff {
    min: Duration::from_secs(5),
    max: Duration::from_secs(3600),
};

/// What the server thinks of this node's certificate, as far as we heard.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Unknown,
    Good,
    /// It was good, and then the server refused it.
    Doubted,
}

/// Keeps this node's certificate valid; `renewed` hears of each new one. Never ends.
///
/// The node renews by its certificate, also when that is over by our clock or by the server's: the server takes it for this one
/// purpose. A join token helps where that fails: at the start, and when the certificate is over. A box that was removed while it ran
/// does not come back by the token with which it came.
pub(crate) async fn keep_valid(
    config: AgentConfig,
    client: Client,
    renewed: watch::Sender<()>,
    mut clock: watch::Receiver<()>,
) {
    let files = &config.credentials;
    let token: Option<JoinToken> = config.join_token.as_deref().and_then(|t| t.parse().ok());
    let mut standing = Standing::Unknown;
    let mut failures = 0;
    loop {
        let left = std::fs::read_to_string(&files.cert)
            .ok()
            .and_then(|pem| CertInfo::from_pem(&pem).ok())
            .map(|info| info.not_after.duration_since(Timestamp::now()))
            .unwrap_or_default();
        let over = left <= SignedDuration::ZERO;
        let refused = standing != Standing::Good && !over && {
            let node = Target::core("nodes").name(&config.node_name);
            match client.get(&node).await {
                Err(error) if error.is_unreachable() => {
                    failures += 1;
                    tokio::time::sleep(Backoff::default().delay(failures)).await;
                    continue;
                }
                Err(error) if is_refusal(&error) => true,
                _ => {
                    standing = Standing::Good;
                    false
                }
            }
        };
        if let Ok(wait) = Duration::try_from(left - AHEAD)
            && !wait.is_zero()
            && !refused
        {
            failures = 0;
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK)) => {}
                Ok(()) = clock.changed() => {}
                () = client.refused() => {
                    if standing == Standing::Good {
                        standing = Standing::Doubted;
                    }
                }
            }
            continue;
        }
        let certified = match (certify(&client, &config.node_name, files).await, &token) {
            (Err(error), Some(token))
                if over
                    || (standing == Standing::Unknown
                        && error.downcast_ref().is_some_and(is_refusal)) =>
            {
                tracing::info!("the certificate of this box is no longer good; joining again");
                certify_by_token(token, &config).await
            }
            (certified, _) => certified,
        };
        match certified.and_then(|()| take_up(&client, files)) {
            Ok(()) => {
                failures = 0;
                standing = Standing::Good;
                renewed.send_replace(());
                tracing::info!("this node has a new certificate");
            }
            Err(error) => {
                failures += 1;
                tracing::warn!("this node got no new certificate, trying again: {error:#}");
                tokio::time::sleep(SLOWLY.delay(failures)).await;
            }
        }
    }
}

async fn certify_by_token(token: &JoinToken, config: &AgentConfig) -> Result<()> {
    let ca = match find_ca(&config.server_url, token).await {
        Ok(ca) => ca,
        Err(Contact::Wrong(why) | Contact::Unreachable(why)) => bail!(why),
    };
    let auth = Auth::Token(token.bearer());
    let client = Client::new(ClientConfig::new(&config.server_url, ca, auth))?;
    match certify(&client, &config.node_name, &config.credentials).await {
        Err(error) if error.downcast_ref().is_some_and(is_refusal) => bail!(UNKNOWN_TOKEN),
        certified => certified,
    }
}

fn take_up(client: &Client, files: &ServerCredentials) -> Result<()> {
    let pem = std::fs::read_to_string(&files.cert)
        .with_context(|| format!("reading {}", files.cert.display()))?;
    let auth = Auth::Certificate {
        cert_pem: pem.clone(),
        key_pem: pem,
    };
    Ok(client.set_auth(auth)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let parts = |url: &str| host_port(url).unwrap();
        assert_eq!(
            parts("https://10.0.0.1:6443"),
            ("10.0.0.1".to_owned(), 6443)
        );
        assert_eq!(
            parts("https://[fd00::1]:6443/"),
            ("fd00::1".to_owned(), 6443)
        );
        assert_eq!(
            parts("https://edge.example"),
            ("edge.example".to_owned(), 443)
        );
        assert!(host_port("http://10.0.0.1").is_err());
        assert!(host_port("10.0.0.1:6443").is_err());
    }

    #[test]
    fn a_denied_request_says_why() {
        let with = |kind: &str| json!({"status": {"conditions": [{"type": kind, "message": "who are you?"}]}});
        assert!(outcome(&with("Approved")).unwrap().is_none());
        let error = outcome(&with("Denied")).unwrap_err().to_string();
        assert!(error.ends_with("denied: who are you?"), "{error}");
        let issued = json!({"status": {"certificate": "eA=="}});
        assert_eq!(outcome(&issued).unwrap().as_deref(), Some("eA=="));
    }

    #[tokio::test]
    async fn a_box_that_never_joined_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let config = JoinConfig {
            server: None,
            token: None,
            node_name: "box-1".to_owned(),
            data_dir: dir.path().to_owned(),
        };
        let error = join(&config).await.unwrap_err().to_string();
        assert!(error.contains("amphipod token create"), "{error}");
        let token = format!("abcdef.0123456789abcdef.{}", "0".repeat(64));
        let with = JoinConfig {
            token: Some(token),
            ..config
        };
        let error = join(&with).await.unwrap_err().to_string();
        assert!(error.contains("--server"), "{error}");
    }
}
