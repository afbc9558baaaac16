//! Writing kubeconfig files.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// How the user proves who it is.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    ClientCertificate { cert_pem: &'a str, key_pem: &'a str },
    Token(&'a str),
}

/// The YAML of a kubeconfig with one cluster, one user and one context, everything embedded. `name` names all three.
pub fn kubeconfig(
    name: &str,
    server_url: &str,
    ca_pem: &str,
    credential: Credential<'_>,
) -> String {
    let name = quoted(name);
    let mut out = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {}\n    \
         certificate-authority-data: {}\nusers:\n- name: {name}\n  user:\n",
        quoted(server_url),
        STANDARD.encode(ca_pem),
    );
    // Writing to a String cannot fail.
    let _ = match credential {
        Credential::ClientCertificate { cert_pem, key_pem } => writeln!(
            out,
            "    client-certificate-data: {}\n    client-key-data: {}",
            STANDARD.encode(cert_pem),
            STANDARD.encode(key_pem)
        ),
        Credential::Token(token) => writeln!(out, "    token: {}", quoted(token)),
    };
    let _ = writeln!(
        out,
        "contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}"
    );
    out
}

/// A YAML double-quoted scalar: JSON strings are such.
fn quoted(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_a_kubeconfig() {
        let text = kubeconfig(
            "edge",
            "https://127.0.0.1:6443",
            "CA",
            Credential::Token("t"),
        );
        let expected = "apiVersion: v1\nkind: Config\nclusters:\n- name: \"edge\"\n  cluster:\n    \
            server: \"https://127.0.0.1:6443\"\n    certificate-authority-data: Q0E=\nusers:\n- name: \"edge\"\n  \
            user:\n    token: \"t\"\ncontexts:\n- name: \"edge\"\n  context:\n    cluster: \"edge\"\n    \
            user: \"edge\"\ncurrent-context: \"edge\"\n";
        assert_eq!(text, expected);
    }
}
