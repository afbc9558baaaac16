//! Times as Go's decoder reads them, and as the API prints them.

use amphipod_api::time::{format_micro_time, format_time, parse_time};

/// `metav1.Time`: printed in UTC with whole seconds. Err is Go's parse error.
pub fn whole_time(s: &str) -> Result<String, String> {
    parse_time(s)
        .map(format_time)
        .ok_or_else(|| go_error(s, "2006-01-02T15:04:05Z07:00"))
}

/// `metav1.MicroTime`: printed in UTC with six digits of fraction.
pub fn micro_time(s: &str) -> Result<String, String> {
    parse_time(s)
        .map(format_micro_time)
        .ok_or_else(|| go_error(s, "2006-01-02T15:04:05.000000Z07:00"))
}

/// Go names the first part of the layout that does not fit.
fn go_error(s: &str, layout: &str) -> String {
    let digits = |s: &str, n: usize| {
        s.len() >= n && s.is_char_boundary(n) && s[..n].bytes().all(|b| b.is_ascii_digit())
    };
    let mut rest = s;
    let mut wanted = "2006";
    for (n, separator, name) in [
        (4, "-", "2006"),
        (2, "-", "01"),
        (2, "T", "02"),
        (2, ":", "15"),
        (2, ":", "04"),
        (2, "", "05"),
    ] {
        wanted = name;
        if !digits(rest, n) {
            break;
        }
        rest = &rest[n..];
        wanted = separator;
        match rest.strip_prefix(separator) {
            Some(after) => rest = after,
            None => break,
        }
        wanted = "Z07:00";
    }
    format!("parsing time {s:?} as {layout:?}: cannot parse {rest:?} as {wanted:?}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_printed_in_utc_and_errors_are_those_of_go() {
        assert_eq!(
            whole_time("2024-01-01T01:00:00.5+01:00").as_deref(),
            Ok("2024-01-01T00:00:00Z")
        );
        assert_eq!(
            micro_time("2024-01-01T00:00:00Z").as_deref(),
            Ok("2024-01-01T00:00:00.000000Z")
        );
        assert_eq!(
            whole_time("soon").unwrap_err(),
            r#"parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006""#
        );
        assert_eq!(
            whole_time("2024-01-01").unwrap_err(),
            r#"parsing time "2024-01-01" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#
        );
    }
}
