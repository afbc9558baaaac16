//! Our own certificate authority: ECDSA P-256 certificates for servers and clients, and reading of certificates.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files;

/// How long a CA lives.
pub const CA_LIFETIME: Duration = days(3650);
/// How long the certificates of servers and nodes live; they are renewed long before.
pub const LEAF_LIFETIME: Duration = days(365);

const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86400)
}

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{what}: {source}")]
    Rcgen {
        what: &'static str,
        source: rcgen::Error,
    },
    #[error("reading the certificate: {0}")]
    Certificate(String),
    #[error("a certificate names at most two groups, not {0}")]
    Groups(usize),
    #[error("{0}")]
    Request(String),
}

fn rcgen_error(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Rcgen { what, source }
}

/// A certificate (chain) and its private key, as PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

/// Keys are not for logs.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Certificates and keys are a few kilobytes.
const MAX_PEM: usize = 256 * 1024;

impl Identity {
    /// Reads both files; `None` if either is not there.
    pub fn load(cert: &Path, key: &Path) -> io::Result<Option<Identity>> {
        let read = |path: &Path| match files::read_optional(path, MAX_PEM)? {
            None => Ok(None),
            Some(bytes) => String::from_utf8(bytes)
                .map(Some)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
        };
        Ok(read(cert)?
            .zip(read(key)?)
            .map(|(cert_pem, key_pem)| Identity { cert_pem, key_pem }))
    }

    /// Writes both files durably, the key first: a certificate on disk always has its key beside it.
    pub fn save(&self, cert: &Path, key: &Path) -> io::Result<()> {
        files::write_atomic(key, self.key_pem.as_bytes(), files::PRIVATE)?;
        files::write_atomic(cert, self.cert_pem.as_bytes(), files::PUBLIC)
    }
}

/// A certificate authority with its key.
pub struct Ca {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(rcgen_error("generating a key"))
}

/// A fresh ECDSA P-256 private key, PKCS #8 PEM.
pub fn generate_key() -> Result<String, PkiError> {
    Ok(new_key()?.serialize_pem())
}

fn parameters(lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Edge boxes wake up with their clock in 1970: certificates that are "not yet valid" then would cut a box off from
    // itself. Nothing is gained by a later start, since the key did not exist before.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch;
    let now = Timestamp::now().as_second().max(BUILD_TIME_FLOOR);
    params.not_after = epoch + Duration::from_secs(now as u64) + lifetime;
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial_number(Timestamp::now()));
    params
}

/// Begins the serial numbers that hold a time.
const SERIAL_MARK: u8 = 0x41;

/// A serial number that tells when the certificate was made, since `notBefore` does not: a mark, milliseconds since 1970
/// in eight bytes, and seven random bytes.
fn serial_number(made: Timestamp) -> SerialNumber {
    let mut serial = vec![SERIAL_MARK];
    serial.extend_from_slice(&made.as_millisecond().to_be_bytes());
    serial.extend_from_slice(&uuid::Uuid::new_v4().as_bytes()[9..]);
    SerialNumber::from(serial)
}

fn time_of_serial(serial: &[u8]) -> Option<Timestamp> {
    let (mark, rest) = serial.split_first()?;
    let time: [u8; 8] = rest.get(..8)?.try_into().ok()?;
    (*mark == SERIAL_MARK && serial.len() == 16)
        .then(|| Timestamp::from_millisecond(i64::from_be_bytes(time)).ok())
        .flatten()
}

/// 2026-01-01: a clock that says less is wrong, and lifetimes do not start in 1970.
const BUILD_TIME_FLOOR: i64 = 1_767_225_600;

impl Ca {
    /// Makes a new, self-signed CA.
    pub fn create(common_name: &str) -> Result<(Ca, Identity), PkiError> {
        let key = new_key()?;
        let mut params = parameters(CA_LIFETIME);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let cert = params
            .self_signed(&key)
            .map_err(rcgen_error("signing the CA certificate"))?;
        let identity = Identity {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        };
        Ok((Ca::load(&identity)?, identity))
    }

    /// Takes up a CA from its PEM files.
    pub fn load(identity: &Identity) -> Result<Ca, PkiError> {
        let key =
            KeyPair::from_pem(&identity.key_pem).map_err(rcgen_error("reading the CA key"))?;
        let issuer = Issuer::from_ca_cert_pem(&identity.cert_pem, key)
            .map_err(rcgen_error("reading the CA certificate"))?;
        Ok(Ca {
            cert_pem: identity.cert_pem.clone(),
            issuer,
        })
    }

    /// The CA certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<String, PkiError> {
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(key, &self.issuer)
            .map_err(rcgen_error("signing the certificate"))?;
        Ok(cert.pem())
    }

    /// A serving certificate for DNS names and addresses (each `sans` entry that parses as an IP address is one).
    pub fn issue_server(
        &self,
        common_name: &str,
        sans: &[String],
        lifetime: Duration,
    ) -> Result<Identity, PkiError> {
        let key = new_key()?;
        let mut params = parameters(lifetime);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.subject_alt_names = subject_alt_names(sans)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(Identity {
            cert_pem: self.sign(params, &key)?,
            key_pem: key.serialize_pem(),
        })
    }

    /// A client certificate: the user is the common name, groups are organizations (at most two).
    pub fn issue_client(
        &self,
        user: &str,
        groups: &[&str],
        lifetime: Duration,
    ) -> Result<Identity, PkiError> {
        let key = new_key()?;
        let mut params = parameters(lifetime);
        params.distinguished_name = subject(user, groups)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Identity {
            cert_pem: self.sign(params, &key)?,
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs the key of a certificate signing request. Everything else comes from `grant`, not from the request: a
    /// requester gets what the server decided, whatever it asked for.
    pub fn sign_request(&self, csr_pem: &str, grant: &Grant<'_>) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| {
            PkiError::Request(format!("reading the certificate signing request: {e}"))
        })?;
        let mut params = parameters(grant.lifetime);
        params.serial_number = Some(serial_number(grant.made));
        params.distinguished_name = subject(grant.common_name, grant.organizations)?;
        params.subject_alt_names = subject_alt_names(grant.sans)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if grant.server {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if grant.client {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        self.sign(params, &request.public_key)
    }
}

/// What a signed request may be used for.
#[derive(Clone, Debug)]
pub struct Grant<'a> {
    pub common_name: &'a str,
    pub organizations: &'a [&'a str],
    pub sans: &'a [String],
    pub server: bool,
    pub client: bool,
    pub lifetime: Duration,
    /// What [`CertInfo::made`] will tell.
    pub made: Timestamp,
}

fn subject(common_name: &str, organizations: &[&str]) -> Result<DistinguishedName, PkiError> {
    // rcgen keeps one value of each attribute type; the same type by its number counts as another.
    let types = [
        DnType::OrganizationName,
        DnType::CustomDnType(vec![2, 5, 4, 10]),
    ];
    if organizations.len() > types.len() {
        return Err(PkiError::Groups(organizations.len()));
    }
    let mut name = DistinguishedName::new();
    for (kind, organization) in types.into_iter().zip(organizations) {
        name.push(kind, *organization);
    }
    name.push(DnType::CommonName, common_name);
    Ok(name)
}

fn subject_alt_names(sans: &[String]) -> Result<Vec<SanType>, PkiError> {
    let read = |san: &String| match san.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => {
            let name = san.as_str().try_into();
            Ok(SanType::DnsName(name.map_err(rcgen_error(
                "reading a subject alternative name",
            ))?))
        }
    };
    sans.iter().map(read).collect()
}

/// A certificate signing request for a key: what a node sends to get or renew its certificate.
pub fn create_request(
    key_pem: &str,
    common_name: &str,
    organizations: &[&str],
    sans: &[String],
) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem).map_err(rcgen_error("reading the key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(common_name, organizations)?;
    params.subject_alt_names = subject_alt_names(sans)?;
    let request = params
        .serialize_request(&key)
        .map_err(rcgen_error("signing the request"))?;
    request.pem().map_err(rcgen_error("writing the request"))
}

/// What a certificate says, as far as we use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    /// The subject's common name: the user of client certificates.
    pub common_name: String,
    /// The subject's organizations: the groups of client certificates.
    pub organizations: Vec<String>,
    /// DNS names and addresses, as text.
    pub sans: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub is_ca: bool,
    /// Lower-case hex of the serial number.
    pub serial: String,
    /// When our CA made it, to the millisecond; the serial number tells.
    pub made: Option<Timestamp>,
}

impl CertInfo {
    /// Reads one certificate.
    pub fn from_der(der: &[u8]) -> Result<CertInfo, PkiError> {
        let bad = |what: String| PkiError::Certificate(what);
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| bad(e.to_string()))?;
        let time = |t: x509_parser::time::ASN1Time| {
            Timestamp::from_second(t.timestamp()).map_err(|e| bad(e.to_string()))
        };
        let subject = cert.subject();
        let common_name = subject
            .iter_common_name()
            .next()
            .and_then(|a| a.as_str().ok())
            .unwrap_or("");
        let organizations = subject
            .iter_organization()
            .filter_map(|a| a.as_str().ok())
            .map(String::from)
            .collect();
        let mut sans = Vec::new();
        if let Ok(Some(extension)) = cert.subject_alternative_name() {
            use x509_parser::extensions::GeneralName;
            for name in &extension.value.general_names {
                match name {
                    GeneralName::DNSName(name) => sans.push((*name).to_string()),
                    GeneralName::IPAddress(bytes) => {
                        sans.extend(address(bytes).map(|ip| ip.to_string()));
                    }
                    _ => {}
                }
            }
        }
        Ok(CertInfo {
            common_name: common_name.into(),
            organizations,
            sans,
            not_before: time(cert.validity().not_before)?,
            not_after: time(cert.validity().not_after)?,
            is_ca: cert.is_ca(),
            serial: cert
                .raw_serial()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
            made: time_of_serial(cert.raw_serial()),
        })
    }

    /// Reads the first certificate of a PEM text.
    pub fn from_pem(pem: &str) -> Result<CertInfo, PkiError> {
        CertInfo::from_der(&first_der(pem)?)
    }
}

fn first_der(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::Certificate(e.to_string()))
}

/// What a certificate signing request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// DNS names and addresses, as text.
    pub sans: Vec<String>,
    /// There are alternative names of other kinds (e-mail addresses, URIs).
    pub other_sans: bool,
}

impl RequestInfo {
    /// Reads a request. Its signature, which proves that the requester has the key, is checked by [`Ca::sign_request`].
    pub fn from_pem(csr_pem: &str) -> Result<RequestInfo, PkiError> {
        use x509_parser::certification_request::X509CertificationRequest;
        use x509_parser::extensions::{GeneralName, ParsedExtension};
        let bad = |what: String| PkiError::Request(what);
        let (_, pem) = x509_parser::pem::parse_x509_pem(csr_pem.as_bytes())
            .map_err(|e| bad(format!("reading the PEM: {e}")))?;
        let (_, request) = X509CertificationRequest::from_der(&pem.contents)
            .map_err(|e| bad(format!("reading the request: {e}")))?;
        let subject = &request.certification_request_info.subject;
        let texts = |attributes: &mut dyn Iterator<
            Item = &x509_parser::x509::AttributeTypeAndValue<'_>,
        >| {
            attributes
                .map(|a| a.as_str().map(String::from).map_err(|e| bad(e.to_string())))
                .collect::<Result<Vec<String>, _>>()
        };
        let names = texts(&mut subject.iter_common_name())?;
        let mut info = RequestInfo {
            common_name: names.into_iter().next().unwrap_or_default(),
            organizations: texts(&mut subject.iter_organization())?,
            sans: Vec::new(),
            other_sans: false,
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => info.sans.push((*name).to_string()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(ip) => info.sans.push(ip.to_string()),
                        None => info.other_sans = true,
                    },
                    _ => info.other_sans = true,
                }
            }
        }
        Ok(info)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ip.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// A certificate as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The hash by which a join token pins a CA: `sha256:` and the hex digest of its public key info, as kubeadm has it.
pub fn ca_hash(ca_pem: &str) -> Result<String, PkiError> {
    ca_hash_der(&first_der(ca_pem)?)
}

/// As [`ca_hash`], of a certificate in DER.
pub fn ca_hash_der(der: &[u8]) -> Result<String, PkiError> {
    let (_, cert) =
        X509Certificate::from_der(der).map_err(|e| PkiError::Certificate(e.to_string()))?;
    let digest = Sha256::digest(cert.public_key().raw);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn issued_certificates_say_who_and_until_when() {
        let (ca, identity) = Ca::create("edge-ca").unwrap();
        let info = CertInfo::from_pem(&identity.cert_pem).unwrap();
        assert!(info.is_ca && info.common_name == "edge-ca");

        let client = ca
            .issue_client("system:node:n1", &["system:nodes", "extra"], LEAF_LIFETIME)
            .unwrap();
        let info = CertInfo::from_pem(&client.cert_pem).unwrap();
        assert_eq!(info.common_name, "system:node:n1");
        assert_eq!(info.organizations, ["system:nodes", "extra"]);
        assert_eq!(
            info.not_before.as_second(),
            0,
            "valid on a box whose clock is in 1970"
        );
        assert!(info.not_after > Timestamp::now());

        let sans = [
            "kubernetes.default.svc".to_string(),
            "10.43.0.1".into(),
            "fd00::1".into(),
        ];
        let server = ca.issue_server("server", &sans, LEAF_LIFETIME).unwrap();
        let info = CertInfo::from_pem(&server.cert_pem).unwrap();
        assert_eq!(info.sans, sans);
        assert!(!info.is_ca);
    }

    #[test]
    fn three_groups_are_refused_rather_than_lost() {
        let (ca, _) = Ca::create("ca").unwrap();
        assert!(matches!(
            ca.issue_client("u", &["a", "b", "c"], LEAF_LIFETIME),
            Err(PkiError::Groups(3))
        ));
    }

    #[test]
    fn a_request_gets_what_was_granted_not_what_it_asks_for() {
        let (ca, _) = Ca::create("ca").unwrap();
        let key = generate_key().unwrap();
        let request = create_request(
            &key,
            "system:admin",
            &["system:masters"],
            &["evil.example".into()],
        )
        .unwrap();
        let grant = Grant {
            common_name: "system:node:n1",
            organizations: &["system:nodes"],
            sans: &[],
            server: false,
            client: true,
            lifetime: LEAF_LIFETIME,
            made: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let asked = RequestInfo::from_pem(&request).unwrap();
        assert_eq!(asked.common_name, "system:admin");
        assert_eq!(asked.organizations, ["system:masters"]);
        assert_eq!(asked.sans, ["evil.example"]);
        let cert = ca.sign_request(&request, &grant).unwrap();
        let info = CertInfo::from_pem(&cert).unwrap();
        assert_eq!(info.made, Some(grant.made));
        assert_eq!(
            (info.common_name.as_str(), info.sans.len()),
            ("system:node:n1", 0)
        );
        assert_eq!(info.organizations, ["system:nodes"]);
        assert!(
            crate::tls::certified_key(cert.as_bytes(), key.as_bytes()).is_ok(),
            "certificate and key belong together"
        );
        assert!(ca.sign_request("nonsense", &grant).is_err());
    }

    #[test]
    fn a_ca_is_the_same_after_it_was_loaded_again() {
        let (ca, identity) = Ca::create("ca").unwrap();
        let again = Ca::load(&identity).unwrap();
        assert_eq!(ca.cert_pem(), again.cert_pem());
        let hash = ca_hash(ca.cert_pem()).unwrap();
        assert!(hash.starts_with("sha256:") && hash.len() == 7 + 64);
        let der = first_der(ca.cert_pem()).unwrap();
        assert_eq!(ca_hash(&certificate_pem(&der)).unwrap(), hash);
        let (other, _) = Ca::create("ca").unwrap();
        assert_ne!(ca_hash(other.cert_pem()).unwrap(), hash);
    }

    #[test]
    fn identities_are_saved_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        assert!(Identity::load(&cert, &key).unwrap().is_none());
        let (_, identity) = Ca::create("ca").unwrap();
        identity.save(&cert, &key).unwrap();
        assert_eq!(
            std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let loaded = Identity::load(&cert, &key).unwrap().unwrap();
        assert!(Ca::load(&loaded).is_ok());
    }

    #[test]
    fn keys_do_not_show_up_in_logs() {
        let (_, identity) = Ca::create("ca").unwrap();
        assert_eq!(format!("{identity:?}"), "Identity { .. }");
    }
}
