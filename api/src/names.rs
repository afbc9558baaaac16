//! What names, labels and other identifiers must look like. Every check returns the problems in upstream's words, none if
//! the value is fine: `FieldError::invalid(path, value, problem)` for each.
//!
//! Source: apimachinery's `validation` and `validate/content` packages (v1.36).

use std::collections::BTreeMap;

use crate::field::{FieldError, FieldPath};
use crate::ip;

/// What is wrong with a value; empty means valid.
pub type Problems = Vec<String>;

pub const LABEL_MAX: usize = 63;
pub const SUBDOMAIN_MAX: usize = 253;
/// All annotations of an object together.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Of the older checks.
fn max_len(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// Of the checks of label keys and values, which upstream has reworded.
fn max_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn regex_problem(message: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{regex}')",
        examples.join(" or ")
    )
}

fn is_lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Begins with `first`, ends with a lower-case alphanumeric, with those and hyphens between.
fn is_label_shape(s: &str, first: fn(u8) -> bool) -> bool {
    let bytes = s.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&a), Some(&z)) => {
            first(a) && is_lower_alnum(z) && bytes.iter().all(|&b| is_lower_alnum(b) || b == b'-')
        }
        _ => false,
    }
}

fn is_subdomain_shape(s: &str) -> bool {
    s.split('.')
        .all(|label| is_label_shape(label, is_lower_alnum))
}

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// A DNS label (RFC 1123): names of namespaces, containers, volumes, ...
pub fn dns1123_label(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.len() > LABEL_MAX {
        problems.push(max_len(LABEL_MAX));
    }
    if !is_label_shape(value, is_lower_alnum) {
        problems.push(if is_subdomain_shape(value) {
            "must not contain dots".into()
        } else {
            regex_problem(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                DNS1123_LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    problems
}

/// A DNS subdomain (RFC 1123): names of most objects.
pub fn dns1123_subdomain(value: &str) -> Problems {
    subdomain(value, max_len)
}

fn subdomain(value: &str, too_long: fn(usize) -> String) -> Problems {
    let mut problems = Problems::new();
    if value.len() > SUBDOMAIN_MAX {
        problems.push(too_long(SUBDOMAIN_MAX));
    }
    if !is_subdomain_shape(value) {
        problems.push(regex_problem(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            DNS1123_SUBDOMAIN,
            &["example.com"],
        ));
    }
    problems
}

/// A DNS label (RFC 1035): names of services.
pub fn dns1035_label(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.len() > LABEL_MAX {
        problems.push(max_len(LABEL_MAX));
    }
    if !is_label_shape(value, |b| b.is_ascii_lowercase()) {
        problems.push(regex_problem(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    problems
}

/// A subdomain behind `*.`: ingress hosts.
pub fn wildcard_dns1123_subdomain(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.len() > SUBDOMAIN_MAX {
        problems.push(max_len(SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(is_subdomain_shape) {
        problems.push(regex_problem(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{DNS1123_SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    problems
}

fn is_qualified_shape(s: &str) -> bool {
    let bytes = s.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(a), Some(z)) => {
            a.is_ascii_alphanumeric()
                && z.is_ascii_alphanumeric()
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

fn qualified_shape_problem() -> String {
    regex_problem(
        "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
        &["MyName", "my.name", "123-abc"],
    )
}

/// A label key or other qualified name: `[prefix/]name`.
pub fn qualified_name(value: &str) -> Problems {
    let mut problems = Problems::new();
    let parts: Vec<&str> = value.splitn(3, '/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".into());
            } else {
                problems.extend(
                    subdomain(prefix, max_bytes)
                        .into_iter()
                        .map(|p| format!("prefix part {p}")),
                );
            }
            name
        }
        _ => {
            problems.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                qualified_shape_problem()
            ));
            return problems;
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part {}", max_bytes(LABEL_MAX)));
    }
    if !is_qualified_shape(name) {
        problems.push(format!("name part {}", qualified_shape_problem()));
    }
    problems
}

/// The value of a label.
pub fn label_value(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.len() > LABEL_MAX {
        problems.push(max_bytes(LABEL_MAX));
    }
    if !value.is_empty() && !is_qualified_shape(value) {
        problems.push(regex_problem(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    problems
}

/// A name that is one segment of a URL path: RBAC names and others that are no DNS names.
pub fn path_segment(value: &str) -> Problems {
    match value {
        "." | ".." => return vec![format!("may not be '{value}'")],
        _ => {}
    }
    ["/", "%"]
        .into_iter()
        .filter(|bad| value.contains(bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// The name of a port: at most 15 lower-case alphanumerics and hyphens (RFC 6335's IANA_SVC_NAME).
pub fn port_name(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.len() > 15 {
        problems.push(max_len(15));
    }
    if value.is_empty() || !value.bytes().all(|b| is_lower_alnum(b) || b == b'-') {
        problems
            .push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        problems.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        problems.push("must not begin or end with a hyphen".into());
    }
    problems
}

/// `must be between LO and HI, inclusive`
pub fn in_range(value: i64, low: i64, high: i64) -> Problems {
    if (low..=high).contains(&value) {
        return Problems::new();
    }
    vec![format!("must be between {low} and {high}, inclusive")]
}

/// A port number, 1 to 65535.
pub fn port_number(value: i64) -> Problems {
    in_range(value, 1, 65535)
}

/// A numeric user or group.
pub fn user_or_group_id(value: i64) -> Problems {
    in_range(value, 0, 0xffff_ffff)
}

/// The name of an environment variable (relaxed as since v1.34: printable ASCII without `=`).
pub fn env_var_name(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.is_empty() {
        problems.push("environment variable name must be non-empty".into());
    }
    if value
        .bytes()
        .any(|b| !(0x20..0x7f).contains(&b) || b == b'=')
    {
        problems.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        );
    }
    problems
}

/// A C identifier.
pub fn c_identifier(value: &str) -> Problems {
    let ok = !value.is_empty()
        && !value.as_bytes()[0].is_ascii_digit()
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if ok {
        return Problems::new();
    }
    vec![regex_problem(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// A key of a ConfigMap's or Secret's data: a file name that cannot leave its directory.
pub fn config_map_key(value: &str) -> Problems {
    let mut problems = Problems::new();
    if value.len() > SUBDOMAIN_MAX {
        problems.push(max_len(SUBDOMAIN_MAX));
    }
    if value.is_empty()
        || !value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        problems.push(regex_problem(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => problems.push("must not be '.'".into()),
        ".." => problems.push("must not be '..'".into()),
        _ if value.starts_with("..") => problems.push("must not start with '..'".into()),
        _ => {}
    }
    problems
}

/// The name of an HTTP header.
pub fn http_header_name(value: &str) -> Problems {
    if !value.is_empty()
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        return Problems::new();
    }
    vec![regex_problem(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A percentage: digits and `%`.
pub fn percent(value: &str) -> Problems {
    if value
        .strip_suffix('%')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    {
        return Problems::new();
    }
    vec![regex_problem(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// An IP address (leading zeros are taken, as upstream still does).
pub fn ip_address(value: &str) -> Problems {
    match ip::parse_ip(value) {
        Some(_) => Problems::new(),
        None => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

/// A CIDR.
pub fn cidr(value: &str) -> Problems {
    match ip::parse_cidr(value) {
        Some(_) => Problems::new(),
        None => vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()],
    }
}

/// Checks every key and value of an object's labels.
pub fn labels<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    path: &FieldPath<'_>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in pairs {
        errors.extend(
            qualified_name(key)
                .into_iter()
                .map(|p| FieldError::invalid(path, key, p)),
        );
        errors.extend(
            label_value(value)
                .into_iter()
                .map(|p| FieldError::invalid(path, value, p)),
        );
    }
    errors
}

/// Checks the keys of an object's annotations and their total size.
pub fn annotations<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    path: &FieldPath<'_>,
) -> Vec<FieldError> {
    let (mut errors, mut size) = (Vec::new(), 0);
    for (key, value) in pairs {
        // Upstream takes upper case in annotation keys.
        let problems = qualified_name(&key.to_lowercase());
        errors.extend(
            problems
                .into_iter()
                .map(|p| FieldError::invalid(path, key, p)),
        );
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX_BYTES));
    }
    errors
}

/// As [`labels`], for a map.
pub fn label_map(map: &BTreeMap<String, String>, path: &FieldPath<'_>) -> Vec<FieldError> {
    labels(map.iter().map(|(k, v)| (k.as_str(), v.as_str())), path)
}

const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Bytes of a generated name before its five random ones.
const GENERATED_BASE_MAX: usize = LABEL_MAX - 5;

/// `count` random characters of the alphabet that generated names use (no vowels: no words).
pub fn random_suffix(count: usize) -> String {
    let mut out = String::with_capacity(count);
    while out.len() < count {
        for byte in uuid::Uuid::new_v4().into_bytes() {
            // 216 is the largest multiple of 27: every character is equally likely. Version bits make two of the
            // sixteen bytes less random; they are below it or skipped, and good enough for names.
            if byte < 216 && out.len() < count {
                out.push(SUFFIX_ALPHABET[usize::from(byte) % 27] as char);
            }
        }
    }
    out
}

/// What a `generateName` is checked as: it may end with a dash, since more will follow.
pub fn mask_trailing_dash(base: &str) -> String {
    match base.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => base.into(),
    }
}

/// A name from `metadata.generateName`: the base, cut to fit a label, and five random characters.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(GENERATED_BASE_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix(5))
}

/// Encodes a 32-bit hash with the same alphabet, as `pod-template-hash` is: each decimal digit becomes a character.
pub fn safe_encode(hash: u32) -> String {
    hash.to_string()
        .bytes()
        .map(|b| SUFFIX_ALPHABET[usize::from(b) % 27] as char)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subdomains_are_explained_as_upstream_explains_them() {
        assert!(dns1123_subdomain("a.b-c.0").is_empty());
        assert_eq!(
            dns1123_subdomain("My_Name"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        for bad in ["", ".", "a..b", "-a", "a-", "A", "a_b", "é", "a\n"] {
            assert_eq!(dns1123_subdomain(bad).len(), 1, "{bad}");
        }
        assert_eq!(
            dns1123_subdomain(&"a".repeat(254)),
            ["must be no more than 253 characters"]
        );
    }

    #[test]
    fn labels_must_not_contain_dots() {
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_label("a b"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert!(dns1035_label("0a").len() == 1 && dns1035_label("a0").is_empty());
    }

    #[test]
    fn qualified_names_have_at_most_one_prefix() {
        for good in ["a", "app.kubernetes.io/name", "A_b.c", "1"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(qualified_name("")[0], "name part must be non-empty");
        assert_eq!(qualified_name("").len(), 2);
        assert!(label_value("").is_empty() && label_value("a b").len() == 1);
        assert_eq!(
            label_value(&"a".repeat(64)),
            ["must be no more than 63 bytes"]
        );
        assert_eq!(
            qualified_name(&format!("{}/a", "a".repeat(254))),
            ["prefix part must be no more than 253 bytes"]
        );
    }

    #[test]
    fn other_identifiers_have_their_rules() {
        assert!(port_name("http-2").is_empty());
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_name("-a--b").len(), 2);
        assert!(path_segment("system:node").is_empty());
        assert_eq!(
            path_segment("a/b%c"),
            ["may not contain '/'", "may not contain '%'"]
        );
        assert_eq!(path_segment(".."), ["may not be '..'"]);
        assert!(
            env_var_name("MY.VAR").is_empty()
                && env_var_name("a=b").len() == 1
                && env_var_name("").len() == 1
        );
        assert_eq!(config_map_key("..a"), ["must not start with '..'"]);
        assert!(config_map_key("a/b").len() == 1);
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(percent("25%").is_empty() && percent("%").len() == 1);
    }

    #[test]
    fn annotations_have_a_size_limit() {
        let path = FieldPath::new("metadata.annotations");
        let big = "x".repeat(ANNOTATIONS_MAX_BYTES);
        let errors = annotations([("A/B", "x"), ("k", big.as_str())], &path);
        assert_eq!(errors.len(), 1);
        assert_eq!(
            errors[0].to_string(),
            "metadata.annotations: Too long: may not be more than 262144 bytes"
        );
    }

    #[test]
    fn generated_names_fit_a_label() {
        let name = generate_name(&format!("{}é", "a".repeat(57)));
        assert_eq!(name.len(), 57 + 5);
        let other = generate_name("web-");
        assert!(other.starts_with("web-") && other.len() == 9);
        assert!(other.bytes().skip(4).all(|b| SUFFIX_ALPHABET.contains(&b)));
        assert_eq!(safe_encode(1_234_567_890), "56789bcdf4");
    }
}
