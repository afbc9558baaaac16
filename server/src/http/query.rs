//! Query strings: decoding, and the typed option sets of `meta/v1` with upstream's errors for values that do not parse.

use std::borrow::Cow;

/// The parameters of a request in their order; the first of a repeated name wins where one value is wanted.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`. Pairs that do not decode as UTF-8 get replacement characters, as nothing that we look up has them.
    pub fn parse(raw: &str) -> Query {
        if raw.is_empty() {
            return Query::default();
        }
        Query(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (
                        decode(key, true).into_owned(),
                        decode(value, true).into_owned(),
                    )
                })
                .collect(),
        )
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// The first value of `name` unless it is empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// A boolean as `runtime.Convert_Slice_string_To_bool` reads it: present and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(truth)
    }

    /// As [`Query::flag`], with absence kept apart.
    pub fn optional_flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(truth)
    }

    /// An integer.
    ///
    /// # Errors
    /// The text that upstream's conversion gives for anything else.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, String> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => text.parse::<i64>().map(Some).map_err(|error| {
                let why = match error.kind() {
                    std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                        "value out of range"
                    }
                    _ => "invalid syntax",
                };
                format!("strconv.ParseInt: parsing {text:?}: {why}")
            }),
        }
    }

    /// Whether there is no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn truth(value: &str) -> bool {
    !(value.eq_ignore_ascii_case("false") || value == "0")
}

/// Percent-decodes a path.
pub fn decode_path(raw: &str) -> String {
    decode(raw, false).into_owned()
}

fn decode(raw: &str, plus_is_space: bool) -> Cow<'_, str> {
    let bytes = raw.as_bytes();
    if !bytes
        .iter()
        .any(|&b| b == b'%' || (plus_is_space && b == b'+'))
    {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' if plus_is_space => out.push(b' '),
            b'%' => match (hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            byte => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(
        String::from_utf8(out)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
    )
}

fn hex(byte: Option<&u8>) -> Option<u8> {
    (*byte? as char).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_decode_and_keep_repeats() {
        let q = Query::parse("command=sh&command=-c&labelSelector=a%3Db%2Cc+in+%28d%29&watch");
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["sh", "-c"]);
        assert_eq!(q.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(q.flag("watch"));
        assert!(!Query::parse("watch=False").flag("watch"));
        assert!(!Query::parse("watch=0").flag("watch"));
        assert!(Query::parse("watch=maybe").flag("watch"));
    }

    #[test]
    fn a_limit_that_is_no_number_is_told_as_go_tells_it() {
        assert_eq!(
            Query::parse("limit=x").integer("limit"),
            Err("strconv.ParseInt: parsing \"x\": invalid syntax".to_owned())
        );
        assert_eq!(Query::parse("limit=").integer("limit"), Ok(None));
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(decode_path("/a%2/b%zz"), "/a%2/b%zz");
        assert_eq!(decode_path("/a+b"), "/a+b");
    }
}
