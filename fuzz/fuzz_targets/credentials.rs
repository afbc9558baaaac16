//! What callers prove who they are with, before anybody knows: bearer tokens, certificates and requests for them, join tokens, and
//! files with credentials.
#![no_main]

use std::sync::OnceLock;

use amphipod_api::join::{JoinToken, bootstrap_token};
use amphipod_api::jwt::TokenKeys;
use amphipod_api::pki::{CertInfo, RequestInfo, generate_key};
use amphipod_api::{kubeconfig, pki};
use amphipod_runtime::image::RegistryAuth;
use amphipod_server::auth::authn::CertificateUser;
use libfuzzer_sys::fuzz_target;

fn keys() -> &'static TokenKeys {
    static KEYS: OnceLock<TokenKeys> = OnceLock::new();
    KEYS.get_or_init(|| TokenKeys::load(&generate_key().expect("a key")).expect("a key that loads"))
}

fuzz_target!(|data: &[u8]| {
    let _ = CertInfo::from_der(data);
    if let Some(user) = CertificateUser::read(data) {
        let _ = (user.user(), user.made());
    }
    let _ = pki::ca_hash_der(data);
    let _ = RegistryAuth::from_docker_config(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    assert!(
        keys().verify(text, "issuer", &[], 0).is_err(),
        "a token that nobody signed"
    );
    let _ = CertInfo::from_pem(text);
    let _ = RequestInfo::from_pem(text);
    let _ = pki::ca_hash(text);
    let _ = kubeconfig::parse(text);
    let _ = bootstrap_token(text);
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
});
