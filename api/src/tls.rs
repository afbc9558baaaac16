//! rustls configurations from PEM: our own CA only, ring, HTTP/2 and HTTP/1.1.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName};
use rustls::{Error, SignatureScheme};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading {what} as PEM: {source}")]
    Pem {
        what: &'static str,
        source: rustls_pki_types::pem::Error,
    },
    #[error("no certificate in {0}")]
    Empty(&'static str),
    #[error("TLS configuration: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("certificate verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Makes ring the process's provider, if none is yet. Everything here names it explicitly; libraries that do not need this.
pub fn install_provider() {
    // An error says that one is installed already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    match CryptoProvider::get_default() {
        Some(provider) => provider.clone(),
        None => Arc::new(rustls::crypto::ring::default_provider()),
    }
}

/// All certificates of a PEM text, in order.
pub fn certificates(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if all.is_empty() {
        Err(TlsError::Empty(what))
    } else {
        Ok(all)
    }
}

/// The first private key of a PEM text (PKCS #8, SEC 1 or PKCS #1).
pub fn private_key(pem: &[u8], what: &'static str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| TlsError::Pem { what, source })
}

fn roots(pem: &[u8], what: &'static str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, what)? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

/// A certificate chain with its key, ready to serve: what a [`ResolvesServerCert`] hands out, also after renewal.
pub fn certified_key(cert_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(cert_pem, "the serving certificate")?;
    let key = private_key(key_pem, "the serving key")?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}

/// A server with one certificate. With a client CA, clients may (and need not) show a certificate that it signed;
/// a certificate of anybody else ends the handshake.
pub fn server_config(
    cert_pem: &[u8],
    key_pem: &[u8],
    client_ca_pem: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let key = certified_key(cert_pem, key_pem)?;
    server_config_with(
        Arc::new(rustls::sign::SingleCertAndKey::from(key)),
        client_ca_pem,
    )
}

/// The certificate of the moment, renewed under a running listener.
#[derive(Debug)]
pub struct CurrentCert(RwLock<Arc<CertifiedKey>>);

impl CurrentCert {
    pub fn new(key: CertifiedKey) -> CurrentCert {
        CurrentCert(RwLock::new(Arc::new(key)))
    }

    /// From now on shows this one.
    pub fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }

    pub fn get(&self) -> Arc<CertifiedKey> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for CurrentCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

/// Judges certificates as another verifier does, except that their time may be over or not have begun.
///
/// The clocks of boxes are wrong more often than certificates are stolen: a box without a battery begins in 1970, and a clock that was
/// set must not cut a box off from its server. Between our own parties, all of one CA, time is therefore looked at where it matters:
/// the server gives an expired client certificate no rights but to be renewed.
#[derive(Debug)]
struct AnyTime<V: ?Sized>(Arc<V>);

/// A moment at which the certificate is valid, if its time is all that is wrong.
fn within(error: &Error, certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let Error::InvalidCertificate(
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
    ) = error
    else {
        return None;
    };
    let end = crate::pki::CertInfo::from_der(certificate).ok()?.not_after;
    let seconds = u64::try_from(end.as_second()).ok()?.saturating_sub(1);
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        seconds,
    )))
}

/// What `verify` says now, or, when the certificate's time is all that is wrong, what it says of a moment within that time.
fn at_any_time<T>(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<T, Error>,
) -> Result<T, Error> {
    verify(now).or_else(|error| match within(&error, certificate) {
        Some(at) => verify(at),
        None => Err(error),
    })
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for AnyTime<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        at_any_time(end_entity, now, |at| {
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for AnyTime<V> {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        at_any_time(end_entity, now, |at| {
            self.0.verify_client_cert(end_entity, intermediates, at)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// As [`server_config`], for certificates that change while the server runs. A client certificate that is expired ends no handshake:
/// the caller looks at [`crate::pki::CertInfo::not_after`] before it gives rights.
pub fn server_config_with(
    resolver: Arc<dyn ResolvesServerCert>,
    client_ca_pem: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match client_ca_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = roots(pem, "the client CA")?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = verifier.allow_unauthenticated().build()?;
            builder.with_client_cert_verifier(Arc::new(AnyTime(verifier)))
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts one CA (and nobody else) and may show a certificate: `(chain, key)` as PEM. By whatever clock: a server whose
/// certificate is over by ours is still known by its CA and name.
pub fn client_config(
    ca_pem: &[u8],
    identity: Option<(&[u8], &[u8])>,
) -> Result<ClientConfig, TlsError> {
    let roots = roots(ca_pem, "the server CA")?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyTime(verifier)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder.with_client_auth_cert(
            certificates(cert, "the client certificate")?,
            private_key(key, "the client key")?,
        )?,
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client for the first contact with a server of which only the hash of its CA is known ([`crate::pki::ca_hash`]): the CA must
/// be in the chain that the server shows, and the server's certificate must be good by it. [`PinnedCa::found`] then tells the CA.
pub fn pinned_client_config(ca_hash: &str) -> Result<(ClientConfig, Arc<PinnedCa>), TlsError> {
    let pinned = Arc::new(PinnedCa {
        hash: ca_hash.to_owned(),
        provider: provider(),
        found: Mutex::default(),
    });
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    Ok((config, pinned))
}

/// A client that takes every certificate, for servers in pods: theirs are often signed by nobody. What is sent may be read by
/// whoever holds the address, as with plain HTTP.
pub fn unverified_client_config() -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll(schemes)))
        .with_no_client_auth())
}

/// Accepts every certificate.
#[derive(Debug)]
struct AcceptAll(Vec<SignatureScheme>);

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// Trusts the one CA that has a certain hash.
#[derive(Debug)]
pub struct PinnedCa {
    hash: String,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl PinnedCa {
    /// The CA's certificate, PEM, after a handshake that succeeded.
    pub fn found(&self) -> Option<String> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_deref().map(crate::pki::certificate_pem)
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_it = |der: &CertificateDer<'_>| {
            crate::pki::ca_hash_der(der).is_ok_and(|hash| hash == self.hash)
        };
        let ca = intermediates
            .iter()
            .find(|der| is_it(der))
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let by_ca =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        let verified = AnyTime(by_ca).verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pki::{Ca, LEAF_LIFETIME, ca_hash};

    /// Whether a client that pins `hash` takes a server of `signer` that shows `shown` along.
    fn accepted(hash: &str, signer: &Ca, shown: &Ca) -> bool {
        let leaf = signer
            .issue_server("s", &["10.0.0.1".to_owned()], LEAF_LIFETIME)
            .unwrap();
        let chain = certificates((leaf.cert_pem + shown.cert_pem()).as_bytes(), "chain").unwrap();
        let (_, pinned) = pinned_client_config(hash).unwrap();
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let verified =
            pinned.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now());
        assert_eq!(verified.is_ok(), pinned.found().is_some());
        verified.is_ok()
    }

    #[test]
    fn a_first_contact_takes_only_the_ca_with_the_hash() {
        let ((ours, _), (other, _)) = (Ca::create("ours").unwrap(), Ca::create("other").unwrap());
        let hash = ca_hash(ours.cert_pem()).unwrap();
        assert!(accepted(&hash, &ours, &ours));
        assert!(!accepted(&hash, &other, &other), "another CA");
        assert!(
            !accepted(&hash, &other, &ours),
            "the right CA shown by somebody whom it did not sign"
        );
    }
}
