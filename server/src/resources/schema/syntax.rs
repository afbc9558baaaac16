//! Malformed JSON, told in the words of Go's decoder.

/// A syntax error in the words of Go's decoder, and how the body begins.
pub(super) fn go_syntax_error(error: &serde_json::Error, body: &[u8]) -> String {
    let text = error.to_string();
    // serde_json counts the bytes of the line that it has read, the offending one included.
    let line_start: usize = body
        .split_inclusive(|b| *b == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let at = (line_start + error.column()).saturating_sub(1);
    let offender = body
        .get(at..)
        .map(|rest| String::from_utf8_lossy(&rest[..rest.len().min(4)]).into_owned());
    let offender = offender.and_then(|rest| rest.chars().next());
    let place = [
        ("expected value", "looking for beginning of value"),
        (
            "key must be a string",
            "looking for beginning of object key string",
        ),
        ("trailing comma", "looking for beginning of value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing characters", "after top-level value"),
        ("control character", "in string literal"),
        ("invalid escape", "in string escape code"),
        ("expected ident", "in literal"),
        ("invalid number", "in numeric literal"),
    ]
    .iter()
    .find(|(ours, _)| text.starts_with(ours));
    let text = match (place, offender) {
        _ if error.is_eof() => "unexpected end of JSON input".to_owned(),
        (Some((_, place)), Some(offender)) => format!("invalid character {offender:?} {place}"),
        _ => text,
    };
    format!("{text} ({})", summary(body))
}

/// How a body begins: as text if it looks like JSON.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let shown = &body[..body.len().min(SHOWN)];
    let text = match body.first() {
        None => return "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(shown).into_owned(),
        Some(_) => shown.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > SHOWN {
        format!("{text} ...")
    } else {
        text
    }
}
