//! Go's ways of printing, where Kubernetes messages depend on them.

use std::fmt::Write as _;

/// Quotes a string as Go's `%q` does: double quotes, Go escapes, printable Unicode kept.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\x7f' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if is_unprintable(c) => {
                let _ = if (c as u32) < 0x10000 {
                    write!(out, "\\u{:04x}", c as u32)
                } else {
                    write!(out, "\\U{:08x}", c as u32)
                };
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Code points that Go's `strconv.IsPrint` refuses and that appear in practice: C1 controls, every space but ASCII's,
/// zero-width and bidirectional controls, private use, non-characters.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || (c != ' ' && c.is_whitespace())
        || matches!(c as u32,
            0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb
            | 0xe000..=0xf8ff | 0xf0000..=0x10ffff | 0xfffe..=0xffff)
}

/// JSON as Go's `json.Marshal` prints it: compact, with `<`, `>` and `&` (and U+2028/9) escaped.
pub fn go_json(value: &serde_json::Value) -> String {
    let plain = value.to_string();
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain;
    }
    let mut out = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// A decoded JSON value as Go's `%v` prints it: `map[a:1 b:[x <nil>]]`.
pub fn go_value(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_value).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{k}:{}", go_value(v)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        assert_eq!(quote("a"), "\"a\"");
        assert_eq!(
            quote("a\"b\\\n\u{1}é\u{200b}"),
            "\"a\\\"b\\\\\\n\\x01é\\u200b\""
        );
    }

    #[test]
    fn json_escapes_html_as_go_does() {
        assert_eq!(
            go_json(&serde_json::json!({"a": "<b>&"})),
            r#"{"a":"\u003cb\u003e\u0026"}"#
        );
    }

    #[test]
    fn values_print_as_go_prints_them() {
        let value = serde_json::json!({"b": [1, "x", null], "a": true});
        assert_eq!(go_value(&value), "map[a:true b:[1 x <nil>]]");
    }
}
