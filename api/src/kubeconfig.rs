//! Writing and reading kubeconfig files.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::client::{Auth, ClientConfig};

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

/// The server and the user of a kubeconfig's current context. Understands what [`kubeconfig`] writes: everything embedded.
///
/// # Errors
/// Text that is none, or that refers to files or programs.
pub fn parse(text: &str) -> Result<ClientConfig, String> {
    let config: Value =
        serde_yaml_ng::from_str(text).map_err(|e| format!("reading the kubeconfig: {e}"))?;
    let named = |list: &str, name: &Value, part: &str| {
        let found = config[list].as_array().into_iter().flatten();
        found
            .into_iter()
            .find(|entry| entry["name"] == *name)
            .map(|entry| entry[part].clone())
            .ok_or_else(|| format!("the kubeconfig has no {part} named {name}"))
    };
    let context = named("contexts", &config["current-context"], "context")?;
    let cluster = named("clusters", &context["cluster"], "cluster")?;
    let user = named("users", &context["user"], "user")?;
    let embedded = |from: &Value, field: &str| {
        let text = from[field]
            .as_str()
            .ok_or_else(|| format!("the kubeconfig has no {field}"))?;
        let bytes = STANDARD
            .decode(text)
            .map_err(|e| format!("{field} of the kubeconfig: {e}"))?;
        String::from_utf8(bytes).map_err(|e| format!("{field} of the kubeconfig: {e}"))
    };
    let server = cluster["server"]
        .as_str()
        .ok_or("the kubeconfig has no server")?;
    let auth = match user["token"].as_str() {
        Some(token) => Auth::Token(token.to_owned()),
        None => Auth::Certificate {
            cert_pem: embedded(&user, "client-certificate-data")?,
            key_pem: embedded(&user, "client-key-data")?,
        },
    };
    let ca_pem = embedded(&cluster, "certificate-authority-data")?;
    Ok(ClientConfig::new(server, ca_pem, auth))
}

/// A YAML double-quoted scalar: JSON strings are such.
fn quoted(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    #[test]
    fn what_is_written_can_be_read() {
        let credential = Credential::ClientCertificate {
            cert_pem: "C",
            key_pem: "K",
        };
        let read = parse(&kubeconfig("edge", "https://h:1", "CA", credential)).unwrap();
        assert_eq!(
            (read.server.as_str(), read.ca_pem.as_str()),
            ("https://h:1", "CA")
        );
        assert!(
            matches!(read.auth, Auth::Certificate { cert_pem, key_pem } if cert_pem == "C" && key_pem == "K")
        );
        assert!(parse("kind: Config").is_err());
    }
}
