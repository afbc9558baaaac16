//! The server's keys and certificates in `DATA_DIR/pki`: made at the first start, renewed when a third of their life
//! is left or when they lack a name, at each start and while running.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use amphipod_api::files::{self, PRIVATE, PUBLIC};
use amphipod_api::jwt::TokenKeys;
use amphipod_api::kubeconfig;
use amphipod_api::pki::{
    Ca, CertInfo, Grant, Identity, LEAF_LIFETIME, create_request, generate_key,
};
use amphipod_api::tls::{self, CurrentCert};
use anyhow::{Context, anyhow};
use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::auth::{MASTERS, NODES};

const ADMIN: &str = "amphipod:admin";
/// The identity under which the server calls the agents' node API. It has no rights in our own API.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// Everything the server signs and proves itself with.
pub struct Pki {
    dir: PathBuf,
    ca: Ca,
    /// Names and addresses of the serving certificate.
    sans: RwLock<Vec<String>>,
    pub token_keys: Arc<TokenKeys>,
    admin: RwLock<Arc<Identity>>,
    kubelet_client: RwLock<Arc<Identity>>,
    /// The serving certificate of the moment: renewed under a running listener.
    serving: CurrentCert,
    /// When something is due, seconds since 1970 by the wall clock.
    due_at: AtomicI64,
    renewing: Mutex<()>,
    renewed: watch::Sender<()>,
}

/// Keys are not for logs.
impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn current<T: Clone>(of: &RwLock<T>) -> T {
    of.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn replace<T>(of: &RwLock<T>, by: T) {
    *of.write().unwrap_or_else(PoisonError::into_inner) = by;
}

/// The end of a certificate's time.
fn end_of(key: &CertifiedKey) -> Timestamp {
    let info = key
        .cert
        .first()
        .and_then(|der| CertInfo::from_der(der).ok());
    info.map_or(Timestamp::MIN, |info| info.not_after)
}

/// When a certificate that ends then should be renewed, seconds since 1970.
fn renewal_of(end: Timestamp) -> i64 {
    end.as_second() - (LEAF_LIFETIME.as_secs() / 3) as i64
}

impl ResolvesServerCert for Pki {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Whenever somebody connects: a clock that was set needs no timer that knows of it.
        if Timestamp::now().as_second() >= self.due_at.load(Ordering::Relaxed)
            && let Ok(_renewing) = self.renewing.try_lock()
            && let Err(error) = self.renew()
        {
            tracing::error!(
                "certificates were not renewed: {error:#}; make the data directory writable"
            );
        }
        Some(self.serving.get())
    }
}

impl Pki {
    /// Takes up the keys of `data_dir`, making what is missing and renewing what is due.
    ///
    /// # Errors
    /// A directory that cannot be written, or key files that do not fit each other.
    pub fn open(data_dir: &Path, sans: Vec<String>) -> anyhow::Result<Pki> {
        let dir = data_dir.join("pki");
        files::create_private_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let ca = match load(&dir, "ca")? {
            Some(identity) => Ca::load(&identity).context("reading the cluster CA")?,
            None => {
                let (ca, identity) = Ca::create("amphipod-ca").context("making the cluster CA")?;
                save(&dir, "ca", &identity)?;
                ca
            }
        };
        let sa_path = dir.join("service-account.key");
        let sa_key = match files::read_optional(&sa_path, 64 << 10)? {
            Some(key) => String::from_utf8(key).context("service-account.key is not PEM")?,
            None => {
                let key = generate_key().context("making the service account key")?;
                files::write_atomic(&sa_path, key.as_bytes(), PRIVATE)
                    .with_context(|| format!("writing {}", sa_path.display()))?;
                key
            }
        };
        let serving = ensure(
            &dir,
            "apiserver",
            |old| covers(old, &sans),
            || ca.issue_server("kube-apiserver", &sans, LEAF_LIFETIME),
        )?;
        let admin = ensure(
            &dir,
            "admin",
            |_| true,
            || ca.issue_client(ADMIN, &[MASTERS], LEAF_LIFETIME),
        )?;
        let kubelet_client = ensure(
            &dir,
            "kubelet-client",
            |_| true,
            || ca.issue_client(KUBELET_CLIENT, &[], LEAF_LIFETIME),
        )?;
        let key = chain(&serving, &ca)?;
        let due_at = renewal_of(end_of(&key));
        Ok(Pki {
            ca,
            sans: RwLock::new(sans),
            token_keys: Arc::new(
                TokenKeys::load(&sa_key).context("reading the service account key")?,
            ),
            admin: RwLock::new(Arc::new(admin)),
            kubelet_client: RwLock::new(Arc::new(kubelet_client)),
            serving: CurrentCert::new(key),
            due_at: AtomicI64::new(due_at),
            renewing: Mutex::new(()),
            renewed: watch::Sender::new(()),
            dir,
        })
    }

    /// Renews what is due now. Called now and then while the server runs, and when somebody connects after it was due.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn renew(&self) -> anyhow::Result<()> {
        let sans = self.names();
        let serving = ensure(
            &self.dir,
            "apiserver",
            |old| covers(old, &sans),
            || self.ca.issue_server("kube-apiserver", &sans, LEAF_LIFETIME),
        )?;
        let key = chain(&serving, &self.ca)?;
        let admin = ensure(
            &self.dir,
            "admin",
            |_| true,
            || self.ca.issue_client(ADMIN, &[MASTERS], LEAF_LIFETIME),
        )?;
        let kubelet_client = ensure(
            &self.dir,
            "kubelet-client",
            |_| true,
            || self.ca.issue_client(KUBELET_CLIENT, &[], LEAF_LIFETIME),
        )?;
        self.due_at
            .store(renewal_of(end_of(&key)), Ordering::Relaxed);
        self.serving.replace(key);
        replace(&self.kubelet_client, Arc::new(kubelet_client));
        let new = admin.cert_pem != current(&self.admin).cert_pem;
        replace(&self.admin, Arc::new(admin));
        if new {
            tracing::info!("the server's certificates were renewed");
            self.renewed.send_replace(());
        }
        Ok(())
    }

    /// Tells when the administrator's certificate was renewed.
    pub fn renewals(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// When the serving certificate ends.
    pub fn serving_until(&self) -> Timestamp {
        end_of(&self.serving.get())
    }

    /// Names and addresses of the server: nobody else may have a certificate for them.
    pub fn names(&self) -> Vec<String> {
        current(&self.sans)
    }

    /// Serves these names and addresses from now on.
    ///
    /// # Errors
    /// As [`Pki::open`].
    pub fn rename(&self, sans: Vec<String>) -> anyhow::Result<()> {
        let before = self.names();
        if before == sans {
            return Ok(());
        }
        let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&self.sans, sans);
        let renewed = self.renew();
        if renewed.is_err() {
            // Or the next attempt would find nothing to do.
            replace(&self.sans, before);
        }
        renewed
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.ca.cert_pem()
    }

    /// The identity for calls to agents, as of now.
    pub fn kubelet_client(&self) -> Arc<Identity> {
        current(&self.kubelet_client)
    }

    /// The identity of the agent on this box, as client and as server of the node API.
    ///
    /// # Errors
    /// A name that is none, or a directory that cannot be written.
    pub fn node(&self, name: &str) -> anyhow::Result<Identity> {
        let user = format!("system:node:{name}");
        let sans = [
            name.to_owned(),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
        ];
        let fits = |old: &CertInfo| old.common_name == user && covers(old, &sans);
        ensure(&self.dir, "node", fits, || {
            let key_pem = generate_key()?;
            let request = create_request(&key_pem, &user, &[NODES], &sans)?;
            let grant = Grant {
                common_name: &user,
                organizations: &[NODES],
                sans: &sans,
                server: true,
                client: true,
                lifetime: LEAF_LIFETIME,
                made: Timestamp::now(),
            };
            Ok(Identity {
                cert_pem: self.ca.sign_request(&request, &grant)?,
                key_pem,
            })
        })
    }

    /// The CA itself, for certificate signing requests.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// The administrator's kubeconfig for a server URL.
    pub fn admin_kubeconfig(&self, url: &str) -> String {
        let admin = current(&self.admin);
        let credential = kubeconfig::Credential::ClientCertificate {
            cert_pem: &admin.cert_pem,
            key_pem: &admin.key_pem,
        };
        kubeconfig::kubeconfig("amphipod", url, self.ca_pem(), credential)
    }
}

/// The serving certificate with the CA behind it: who joins knows the CA by its hash only, and must be shown it.
fn chain(serving: &Identity, ca: &Ca) -> Result<CertifiedKey, tls::TlsError> {
    let chain = format!("{}{}", serving.cert_pem, ca.cert_pem());
    tls::certified_key(chain.as_bytes(), serving.key_pem.as_bytes())
}

/// The stored identity if it is good and not due, else a new one, stored.
fn ensure(
    dir: &Path,
    name: &str,
    still_fits: impl FnOnce(&CertInfo) -> bool,
    make: impl FnOnce() -> Result<Identity, amphipod_api::pki::PkiError>,
) -> anyhow::Result<Identity> {
    if let Some(identity) = load(dir, name)?
        && let Ok(info) = CertInfo::from_pem(&identity.cert_pem)
        && !due(&info)
        && still_fits(&info)
    {
        return Ok(identity);
    }
    let identity = make().with_context(|| format!("making the certificate {name}"))?;
    if let Err(error) = save(dir, name, &identity) {
        // The disk may be full or read-only: what is in memory serves as well until the next start.
        tracing::error!(
            "{error:#}; the new certificate {name} is used, but lost with this process"
        );
    }
    Ok(identity)
}

/// Whether less than a third of the usual lifetime is left. A clock that stands before the certificate's making never renews.
fn due(info: &CertInfo) -> bool {
    let left = info.not_after.duration_since(Timestamp::now());
    left.as_secs() < (LEAF_LIFETIME.as_secs() / 3) as i64
}

fn covers(info: &CertInfo, sans: &[String]) -> bool {
    sans.iter().all(|san| info.sans.contains(san))
}

fn load(dir: &Path, name: &str) -> anyhow::Result<Option<Identity>> {
    let (cert, key) = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
    );
    let cert_pem = files::read_optional(&cert, 256 << 10)
        .with_context(|| format!("reading {}", cert.display()))?;
    let key_pem = files::read_optional(&key, 64 << 10)
        .with_context(|| format!("reading {}", key.display()))?;
    match (cert_pem, key_pem) {
        (Some(cert_pem), Some(key_pem)) => Ok(Some(Identity {
            cert_pem: String::from_utf8(cert_pem)
                .with_context(|| format!("{} is not PEM", cert.display()))?,
            key_pem: String::from_utf8(key_pem)
                .with_context(|| format!("{} is not PEM", key.display()))?,
        })),
        // The key is written first: a certificate without its key was not written by us.
        (Some(_), None) if name == "ca" => Err(anyhow!(
            "{} is there but {} is not: restore the key, or remove both to start a new cluster identity",
            cert.display(),
            key.display()
        )),
        _ => Ok(None),
    }
}

fn save(dir: &Path, name: &str, identity: &Identity) -> anyhow::Result<()> {
    let (cert, key) = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
    );
    files::write_atomic(&key, identity.key_pem.as_bytes(), PRIVATE)
        .with_context(|| format!("writing {}", key.display()))?;
    files::write_atomic(&cert, identity.cert_pem.as_bytes(), PUBLIC)
        .with_context(|| format!("writing {}", cert.display()))
}

/// The data directory itself, private.
///
/// # Errors
/// It cannot be made.
pub fn data_dir(path: &Path) -> anyhow::Result<()> {
    files::create_private_dir(path).with_context(|| format!("making {}", path.display()))?;
    fs::metadata(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sans(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn keys_survive_a_restart_and_nothing_is_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), sans(&["kubernetes", "127.0.0.1"])).unwrap();
        let time = |name: &str| {
            fs::metadata(dir.path().join("pki").join(name))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before = (
            time("ca.crt"),
            time("apiserver.crt"),
            time("service-account.key"),
        );
        let second = Pki::open(dir.path(), sans(&["kubernetes", "127.0.0.1"])).unwrap();
        assert_eq!(
            before,
            (
                time("ca.crt"),
                time("apiserver.crt"),
                time("service-account.key")
            )
        );
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.token_keys.key_id(), second.token_keys.key_id());
        assert_eq!(
            current(&first.admin).cert_pem,
            current(&second.admin).cert_pem
        );
    }

    #[test]
    fn a_new_address_gets_a_new_serving_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let read = || {
            CertInfo::from_pem(&fs::read_to_string(dir.path().join("pki/apiserver.crt")).unwrap())
                .unwrap()
        };
        Pki::open(dir.path(), sans(&["kubernetes"])).unwrap();
        assert!(!read().sans.contains(&"10.0.0.1".to_owned()));
        Pki::open(dir.path(), sans(&["kubernetes", "10.0.0.1"])).unwrap();
        assert!(read().sans.contains(&"10.0.0.1".to_owned()));
    }

    #[test]
    fn a_lost_ca_key_is_told_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path(), sans(&["a"])).unwrap();
        fs::remove_file(dir.path().join("pki/ca.key")).unwrap();
        let error = Pki::open(dir.path(), sans(&["a"]))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("restore the key"), "{error}");
    }
}
