//! The certificate of the node API: asked of the cluster by a CertificateSigningRequest, renewed, and asked anew when this box has
//! other addresses. <https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/#certificate-rotation>
//!
//! What is kept: `pki/serving.pem` in the agent's data directory, key and certificate in one file. A box whose client certificate
//! names the node (the server's own box) needs no other. Until the certificate is there the client certificate is shown, which
//! nobody who checks names accepts.

use std::path::PathBuf;
use std::sync::Arc;

use amphipod_api::client::Client;
use amphipod_api::files::{self, PRIVATE};
use amphipod_api::join::SERVING_SIGNER;
use amphipod_api::pki::CertInfo;
use amphipod_api::reflector::Backoff;
use amphipod_api::tls::{self, CurrentCert};
use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};

use crate::config::AgentConfig;
use crate::deps::Deps;
use crate::join::{AHEAD, LOOK, SLOWLY, obtain};

fn path(config: &AgentConfig) -> PathBuf {
    config.data_dir.join("pki/serving.pem")
}

/// What can be shown now.
///
/// # Errors
/// The node's client certificate cannot be read.
pub(crate) fn current(config: &AgentConfig) -> Result<CurrentCert> {
    let own = || {
        let pem = std::fs::read(path(config)).ok()?;
        tls::certified_key(&pem, &pem).ok()
    };
    let client = &config.credentials;
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let (cert, key) = (read(&client.cert)?, read(&client.key)?);
    let own = own().filter(|_| !names_node(config, &cert));
    Ok(CurrentCert::new(match own {
        Some(own) => own,
        None => tls::certified_key(&cert, &key)?,
    }))
}

/// Whether a certificate is good for serving in the node's name.
fn names_node(config: &AgentConfig, pem: &[u8]) -> bool {
    let info = std::str::from_utf8(pem).map(CertInfo::from_pem);
    matches!(info, Ok(Ok(info)) if info.sans.contains(&config.node_name))
}

/// Keeps the certificate valid. Ends only where none is needed.
pub(crate) async fn keep_valid(deps: Arc<Deps>, client: Client, shown: Arc<CurrentCert>) {
    let config = &deps.config;
    if std::fs::read(&config.credentials.cert).is_ok_and(|pem| names_node(config, &pem)) {
        return;
    }
    let mut failures = 0;
    loop {
        let names = names(&config.node_name, &deps.node().host_ips);
        let left = std::fs::read_to_string(path(config))
            .ok()
            .and_then(|pem| CertInfo::from_pem(&pem).ok())
            .filter(|info| names.iter().all(|name| info.sans.contains(name)))
            .map(|info| info.not_after.duration_since(Timestamp::now()))
            .unwrap_or(SignedDuration::ZERO);
        let wait = std::time::Duration::try_from(left - AHEAD).unwrap_or_default();
        if !wait.is_zero() {
            failures = 0;
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK)) => {}
                () = deps.readdressed.notified() => {}
            }
            continue;
        }
        let renewed = tokio::select! {
            renewed = renew(config, &client, &names, &shown) => renewed,
            // What was asked for is out of date.
            () = deps.readdressed.notified() => continue,
        };
        match renewed {
            Ok(()) => tracing::info!(?names, "the node API has a new certificate"),
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(
                        "the node API got no certificate of its own, trying again; the server reaches this box by the connection that it keeps: {error:#}"
                    );
                }
                tokio::select! {
                    () = tokio::time::sleep(SLOWLY.delay(failures)) => {}
                    () = client.answers_again() => tokio::time::sleep(Backoff::default().delay(0)).await,
                }
                failures += 1;
            }
        }
    }
}

/// The node's name, and its addresses.
fn names(node: &str, addresses: &[std::net::IpAddr]) -> Vec<String> {
    let addresses = addresses.iter().filter(|ip| !ip.is_loopback());
    let mut names = vec![node.to_owned()];
    names.extend(addresses.map(ToString::to_string));
    names
}

async fn renew(
    config: &AgentConfig,
    client: &Client,
    names: &[String],
    shown: &CurrentCert,
) -> Result<()> {
    let usages = ["digital signature", "server auth"];
    let pem = obtain(client, &config.node_name, SERVING_SIGNER, &usages, names).await?;
    shown.replace(tls::certified_key(pem.as_bytes(), pem.as_bytes())?);
    let path = path(config);
    files::write_atomic(&path, pem.as_bytes(), PRIVATE)
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_the_node_and_where_it_is_reached() {
        let addresses = ["10.0.0.7", "127.0.0.1"]
            .map(|ip| ip.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(names("box-7", &addresses), ["box-7", "10.0.0.7"]);
    }
}
