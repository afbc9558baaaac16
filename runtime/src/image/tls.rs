//! Whom we trust when talking TLS to registries: the system's authorities, if it has any, and the configured ones.

use std::fs;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::error::{ErrorKind, ImageError, Result};

/// Where distributions keep their bundle of authorities.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client configuration that trusts the PEM certificates in `extra`, and the system's if `system`.
pub(crate) fn client_config<'a>(
    extra: impl Iterator<Item = &'a str>,
    system: bool,
) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if system {
        // SSL_CERT_FILE is how OpenSSL, Go and others are told of another bundle.
        let own = std::env::var("SSL_CERT_FILE").ok();
        let bundle = own
            .iter()
            .map(String::as_str)
            .chain(SYSTEM_BUNDLES)
            .find_map(|path| fs::read(path).ok());
        let certificates = CertificateDer::pem_slice_iter(bundle.as_deref().unwrap_or_default());
        roots.add_parsable_certificates(certificates.filter_map(|c| c.ok()));
    }
    for pem in extra {
        let bad = |e: &dyn std::fmt::Display| {
            ImageError::new(
                ErrorKind::Store,
                format!("invalid certificate authority for registries: {e}"),
            )
        };
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots
                .add(certificate.map_err(|e| bad(&e))?)
                .map_err(|e| bad(&e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder =
        versions.map_err(|e| ImageError::new(ErrorKind::Store, format!("preparing TLS: {e}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
