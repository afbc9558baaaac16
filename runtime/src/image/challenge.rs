//! `WWW-Authenticate` challenges (RFC 9110, section 11.6.1), as registries send them.

/// One scheme with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub fn is(&self, scheme: &str) -> bool {
        self.scheme.eq_ignore_ascii_case(scheme)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// Reads all challenges of all header values; what cannot be understood is left out.
pub fn challenges<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    for header in headers {
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            let (word, after) = rest.split_at(end);
            // A word with `=` behind it is a parameter of the last scheme, any other starts a scheme.
            match after.trim_start().strip_prefix('=') {
                Some(value) => {
                    let (value, after) = parameter(value.trim_start());
                    if let Some(challenge) = found.last_mut() {
                        challenge.parameters.push((word.to_owned(), value));
                    }
                    rest = after;
                }
                None => {
                    found.push(Challenge {
                        scheme: word.to_owned(),
                        parameters: Vec::new(),
                    });
                    rest = after;
                }
            }
        }
    }
    found
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A quoted or bare value, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_and_basic_challenges_are_read_from_one_header_or_several() {
        let bearer = r#"Bearer realm="https://auth.example/token",service="reg,istry",scope="repository:a/b:pull,push""#;
        let all = challenges([bearer, "Basic realm=simple"].into_iter());
        assert_eq!(all.len(), 2);
        assert!(all[0].is("bearer") && all[1].is("BASIC"));
        assert_eq!(all[0].get("realm"), Some("https://auth.example/token"));
        assert_eq!(all[0].get("service"), Some("reg,istry"));
        assert_eq!(all[0].get("scope"), Some("repository:a/b:pull,push"));
        let one = format!("{bearer}, Basic realm=\"q\\\"uoted\"");
        let all = challenges([one.as_str()].into_iter());
        assert_eq!(all[1].get("realm"), Some("q\"uoted"));
    }

    #[test]
    fn nonsense_yields_nothing_and_does_not_hang() {
        for text in ["", ",,,", "\"", "=x", "Bearer realm=\"", "Bearer =", "é"] {
            let _ = challenges([text].into_iter());
        }
    }
}
