//! Image references as users write them (the grammar of github.com/distribution/reference, with Docker's defaults).

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::error::{ErrorKind, ImageError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A parsed reference with all defaults filled in: `nginx` is `docker.io/library/nginx:latest`.
///
/// A digest wins over a tag: `nginx:1.27@sha256:…` is `docker.io/library/nginx@sha256:…`, as the registry is asked by
/// digest alone. `Display` is the canonical form, which parses to the same value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    target: Target,
}

/// What of a repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// The registry's host, with a port if one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path inside the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn tag(&self) -> Option<&str> {
        match &self.target {
            Target::Tag(tag) => Some(tag),
            Target::Digest(_) => None,
        }
    }

    pub fn digest(&self) -> Option<&Digest> {
        match &self.target {
            Target::Tag(_) => None,
            Target::Digest(digest) => Some(digest),
        }
    }

    /// The same repository at `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            target: Target::Digest(digest),
            ..self.clone()
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.target {
            Target::Tag(tag) => write!(f, ":{tag}"),
            Target::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| {
            ImageError::new(
                ErrorKind::InvalidName,
                format!("couldn't parse image name {text:?}: {reason}"),
            )
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    const FORMAT: &str = "invalid reference format";
    if text.is_empty() {
        return Err("repository name must have at least one component");
    }
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("invalid repository name, cannot specify 64-byte hexadecimal strings");
    }

    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse::<Digest>();
            (rest, Some(digest.map_err(|_| FORMAT)?))
        }
        None => (text, None),
    };

    let (registry, path_and_tag) = split_registry(rest);
    let (path, tag) = match path_and_tag.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path_and_tag, None),
    };
    if !is_registry(&registry) {
        return Err(FORMAT);
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(FORMAT);
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') && !path.is_empty() {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    if !repository.split('/').all(is_path_component) {
        return Err(FORMAT);
    }
    if repository.len() > NAME_LIMIT {
        return Err("repository name must not be more than 255 characters");
    }

    let target = match digest {
        Some(digest) => Target::Digest(digest),
        None => Target::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
    };
    Ok(Reference {
        registry,
        repository,
        target,
    })
}

/// The first component is a registry only if it looks like a host: it has a dot or a port, is `localhost`, or has
/// upper-case letters (which a repository may not have).
fn split_registry(text: &str) -> (String, &str) {
    if let Some((first, rest)) = text.split_once('/') {
        let host_like = first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase());
        if host_like {
            let registry = match first {
                "index.docker.io" => DEFAULT_REGISTRY,
                other => other,
            };
            return (registry.to_owned(), rest);
        }
    }
    (DEFAULT_REGISTRY.to_owned(), text)
}

fn is_registry(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, rest)) => {
                if address.is_empty()
                    || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
                {
                    return false;
                }
                if rest.is_empty() {
                    return true;
                }
                match rest.strip_prefix(':') {
                    Some(port) => ("v6", Some(port)),
                    None => return false,
                }
            }
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(is_label)
        && port.is_none_or(|port| port.parse::<u16>().is_ok() && !port.starts_with('+'))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let Some(&first) = tag.as_bytes().first() else {
        return false;
    };
    tag.len() <= TAG_LIMIT && word(first) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_get_the_defaults_that_docker_gives_them() {
        let digest = format!("nginx:1.27@sha256:{HEX}");
        let canonical_digest = format!("docker.io/library/nginx@sha256:{HEX}");
        for (written, canonical) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("quay.io/a/b/c:d", "quay.io/a/b/c:d"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("a-b__c/e.f--g", "docker.io/a-b__c/e.f--g:latest"),
            (&digest, &canonical_digest),
        ] {
            let parsed: Reference = written.parse().unwrap();
            assert_eq!(parsed.to_string(), canonical, "{written}");
            assert_eq!(
                canonical.parse::<Reference>().unwrap(),
                parsed,
                "{written} twice"
            );
        }
    }

    #[test]
    fn invalid_names_say_that_the_name_could_not_be_parsed() {
        let long = "a/".repeat(140) + "a";
        for written in [
            "",
            "Nginx",
            "docker.io/Library/nginx",
            "nginx:",
            "nginx:a b",
            "nginx@sha256:12",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "x:5000:3/y",
            "host:port/x",
            "a.b:/c",
            "../etc",
            " nginx",
            "nginx\n",
            HEX,
            &long,
            "[::1/x",
            "nginx:-x",
            "a@b",
            "ex..ample.com/x",
        ] {
            let error = written.parse::<Reference>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName);
            assert!(
                error.to_string().contains("couldn't parse image name"),
                "{written}: {error}"
            );
        }
    }

    #[test]
    fn parts_are_told_apart() {
        let r: Reference = "localhost:5000/team/app:v1".parse().unwrap();
        assert_eq!(
            (r.registry(), r.repository(), r.tag()),
            ("localhost:5000", "team/app", Some("v1"))
        );
        assert_eq!(r.name(), "localhost:5000/team/app");
        assert!(r.digest().is_none());
        let d = r.with_digest(Digest::sha256(b""));
        assert_eq!(
            d.to_string(),
            format!("localhost:5000/team/app@sha256:{HEX}")
        );
    }
}
