//! Links of proxied pages and redirections. A page below `.../proxy/` that links to `/style.css` means its own server's, not ours:
//! such links get the prefix of the proxied object, as kube-apiserver does it. What else pages hold is passed on as it came.

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::http::body::Body;

/// Longer tags are passed on unread.
const LONGEST_TAG: usize = 64 << 10;

/// Which attributes of which elements hold one URL (HTML 4 and 5).
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like, and where it ends.
const TEXT: &[(&str, &str)] = &[
    ("script", "</script"),
    ("style", "</style"),
    ("textarea", "</textarea"),
    ("title", "</title"),
];

/// How the links of one proxied object are changed.
#[derive(Clone, Debug)]
pub struct Links {
    /// The path of the request up to and with `/proxy`.
    pub prefix: String,
    /// Hosts that mean the proxied server: its own, and the one that the client asked.
    pub hosts: [String; 2],
}

impl Links {
    /// The link as the client must follow it. `None`: as it is (relative, or to somebody else).
    pub fn link(&self, url: &str) -> Option<String> {
        let after_scheme = match url.split_once("//") {
            Some(("", rest)) => Some(rest),
            Some((scheme, rest))
                if ["http:", "https:"]
                    .iter()
                    .any(|s| s.eq_ignore_ascii_case(scheme)) =>
            {
                Some(rest)
            }
            _ => None,
        };
        let path = match after_scheme {
            None => url,
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                if !self.hosts.iter().any(|h| h == host) {
                    return None;
                }
                path
            }
        };
        if !path.starts_with('/') {
            return None;
        }
        if path.starts_with(&self.prefix) {
            return (path.len() != url.len()).then(|| path.to_owned());
        }
        Some(format!("{}{path}", self.prefix))
    }

    /// The page with its links changed, as it comes in.
    pub fn page(self, body: Incoming) -> Body {
        let state = Some((body, Rewriter::new(self)));
        Body::Stream(Box::pin(stream::unfold(state, |state| async move {
            let (mut body, mut rewriter) = state?;
            loop {
                let bytes = match body.frame().await {
                    None => return Some((Bytes::from(rewriter.finish()), None)),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a proxied answer ended early");
                        return None;
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => rewriter.push(&data),
                        Err(_) => continue,
                    },
                };
                if !bytes.is_empty() {
                    return Some((Bytes::from(bytes), Some((body, rewriter))));
                }
            }
        })))
    }
}

/// Reads a page piece by piece. Text and what is not understood leave as they came; a tag waits until it is whole.
struct Rewriter {
    links: Links,
    pending: Vec<u8>,
    /// Inside a comment or an element of text: where it ends.
    until: Option<&'static str>,
}

impl Rewriter {
    fn new(links: Links) -> Self {
        Rewriter {
            links,
            pending: Vec::new(),
            until: None,
        }
    }

    /// What can be passed on after these further bytes.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut out = Vec::with_capacity(pending.len() + self.links.prefix.len());
        let mut rest = pending.as_slice();
        loop {
            if let Some(end) = self.until {
                let Some(at) = find(rest, end) else {
                    // Its end may be here in part.
                    let sure = rest.len().saturating_sub(end.len() - 1);
                    out.extend_from_slice(&rest[..sure]);
                    rest = &rest[sure..];
                    break;
                };
                let (text, more) = rest.split_at(at + end.len());
                out.extend_from_slice(text);
                (rest, self.until) = (more, None);
            }
            let Some(at) = rest.iter().position(|b| *b == b'<') else {
                out.extend_from_slice(rest);
                rest = &[];
                break;
            };
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            if rest.starts_with(b"<!--") {
                self.until = Some("-->");
            } else if b"<!--".starts_with(rest) {
                break;
            } else if !rest[1].is_ascii_alphabetic() {
                out.push(b'<');
                rest = &rest[1..];
            } else if let Some(length) = tag_length(rest) {
                let (tag, more) = rest.split_at(length);
                self.until = self.tag(tag, &mut out);
                rest = more;
            } else if rest.len() > LONGEST_TAG {
                out.push(b'<');
                rest = &rest[1..];
            } else {
                break;
            }
        }
        self.pending = rest.to_vec();
        out
    }

    /// The page has ended: what still waits.
    fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Passes on a whole start tag. Tells where the text that it begins ends, if it begins one.
    fn tag(&self, tag: &[u8], out: &mut Vec<u8>) -> Option<&'static str> {
        let end_of_name = 1 + tag[1..]
            .iter()
            .position(|b| !b.is_ascii_alphanumeric())
            .unwrap_or(0);
        let name = String::from_utf8_lossy(&tag[1..end_of_name]).to_ascii_lowercase();
        let wanted = ATTRIBUTES
            .iter()
            .find(|(element, _)| *element == name)
            .map_or(&[][..], |(_, attributes)| attributes);
        let mut copied = 0;
        for (attribute, value) in attributes(tag, end_of_name) {
            let is_link = std::str::from_utf8(&tag[attribute])
                .is_ok_and(|a| wanted.iter().any(|w| w.eq_ignore_ascii_case(a)));
            let link = std::str::from_utf8(&tag[value.clone()])
                .ok()
                .filter(|_| is_link)
                .and_then(|url| self.links.link(url));
            if let Some(link) = link {
                out.extend_from_slice(&tag[copied..value.start]);
                out.extend_from_slice(link.as_bytes());
                copied = value.end;
            }
        }
        out.extend_from_slice(&tag[copied..]);
        TEXT.iter()
            .find(|(element, _)| *element == name)
            .map(|(_, end)| *end)
    }
}

/// Where `end` (lower case) is, in any case.
fn find(text: &[u8], end: &str) -> Option<usize> {
    text.windows(end.len())
        .position(|w| w.eq_ignore_ascii_case(end.as_bytes()))
}

/// Bytes of the tag at the beginning of `text`, with its `>`, if it is whole. Values in quotes may hold `>`.
fn tag_length(text: &[u8]) -> Option<usize> {
    let (mut quote, mut after_equals) = (None, false);
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (Some(q), b) if q == b => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if after_equals => quote = Some(byte),
            (None, _) => {}
        }
        after_equals = *byte == b'=' || (after_equals && byte.is_ascii_whitespace());
    }
    None
}

/// The attributes of a whole tag: where their names and their values (without quotes) are.
fn attributes(tag: &[u8], mut at: usize) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let skip = |from: usize, what: &dyn Fn(u8) -> bool| {
        from + tag[from..].iter().take_while(|b| what(**b)).count()
    };
    let blank = |b: u8| b.is_ascii_whitespace();
    let mut found = Vec::new();
    loop {
        at = skip(at, &|b| blank(b) || b == b'/');
        let name = at..skip(at, &|b| !blank(b) && !matches!(b, b'=' | b'>' | b'/'));
        at = skip(name.end, &blank);
        if tag.get(at) != Some(&b'=') {
            if name.is_empty() {
                // The `>`, or nothing that HTML knows.
                return found;
            }
            continue;
        }
        at = skip(at + 1, &blank);
        let value = match tag.get(at) {
            Some(q @ (b'"' | b'\'')) => at + 1..skip(at + 1, &|b| b != *q),
            _ => at..skip(at, &|b| !blank(b) && b != b'>'),
        };
        // Behind the closing quote, if there is one.
        at = value.end + usize::from(matches!(tag.get(value.end), Some(b'"' | b'\'')));
        found.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn links() -> Links {
        Links {
            prefix: "/api/v1/namespaces/a/pods/x:80/proxy".into(),
            hosts: ["10.0.0.2:80".into(), "localhost:8001".into()],
        }
    }

    #[test]
    fn links_to_the_proxied_server_go_through_the_proxy() {
        let link = |url| links().link(url);
        let through = |path: &str| Some(format!("/api/v1/namespaces/a/pods/x:80/proxy{path}"));
        assert_eq!(link("/"), through("/"));
        assert_eq!(link("/a/b?c=/d#e"), through("/a/b?c=/d#e"));
        assert_eq!(link("http://10.0.0.2:80/a"), through("/a"));
        assert_eq!(link("//localhost:8001/a"), through("/a"));
        assert_eq!(
            link("HTTP://localhost:8001/api/v1/namespaces/a/pods/x:80/proxy/a"),
            through("/a")
        );
        for stays in [
            "",
            "a",
            "./a",
            "?q=//x",
            "#top",
            "mailto:a@b",
            "data:text/plain,//x/y",
            "https://example.org/a",
            "//example.org/a",
            "http://10.0.0.2:80",
            "/api/v1/namespaces/a/pods/x:80/proxy/a",
        ] {
            assert_eq!(link(stays), None, "{stays}");
        }
    }

    /// The page after it came in pieces of every size; all must agree.
    fn page(text: &str) -> String {
        let links = Links {
            prefix: "/p".into(),
            hosts: [String::new(), String::new()],
        };
        let mut seen = Vec::new();
        for size in 1..=text.len() {
            let mut rewriter = Rewriter::new(links.clone());
            let mut out: Vec<u8> = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                out.extend(rewriter.push(chunk));
            }
            out.extend(rewriter.finish());
            seen.push(String::from_utf8(out).unwrap());
        }
        assert!(seen.iter().all(|s| *s == seen[0]), "{seen:?}");
        seen.swap_remove(0)
    }

    #[test]
    fn links_in_tags_are_changed() {
        assert_eq!(page(r#"<a href="/x">t</a>"#), r#"<a href="/p/x">t</a>"#);
        assert_eq!(
            page("<IMG alt='a>b' SRC = '/x.png' ><a href=/y>z"),
            "<IMG alt='a>b' SRC = '/p/x.png' ><a href=/p/y>z"
        );
        assert_eq!(
            page(r#"<input disabled src="/a" formaction="/b"/>"#),
            r#"<input disabled src="/p/a" formaction="/p/b"/>"#
        );
        assert_eq!(
            page(r#"<script src="/a.js"></script><a href="/b">"#),
            r#"<script src="/p/a.js"></script><a href="/p/b">"#
        );
    }

    #[test]
    fn everything_else_is_passed_on_as_it_came() {
        for same in [
            "1 < 2 <b title=\"/x\"> <a name=/x> <a href=\"x\"> </a href=\"/x\">",
            "<!-- <a href=\"/x\"> -->",
            "<!DOCTYPE html><br/>",
            "<script>if (a <b href=\"/x\">c) {}</script>",
            "<style>a[href=\"/x\"] > b {}</STYLE>",
            "<a href=\"/x",
            "<a = = href>",
            "<",
            "<!",
            "<!-- never ends",
            "<a href=\"\u{e4}\">\u{e4}</a>",
        ] {
            assert_eq!(page(same), same);
        }
    }

    #[test]
    fn never_panics() {
        let alphabet = b"<>=\"'/ !-aAhrefsciptl\n\xff";
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..20_000 {
            let mut text = Vec::new();
            for _ in 0..24 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                text.push(alphabet[usize::try_from(seed % alphabet.len() as u64).unwrap()]);
            }
            let mut rewriter = Rewriter::new(links());
            let mut out = rewriter.push(&text[..12]);
            out.extend(rewriter.push(&text[12..]));
            out.extend(rewriter.finish());
            assert!(out.len() >= text.len());
        }
    }
}
