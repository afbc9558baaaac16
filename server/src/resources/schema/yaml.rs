//! YAML bodies that would cost too much, found before they are read.
//!
//! A megabyte of opening brackets takes libyaml hours, because the work for each token grows with the depth; a long text that is named
//! once and referred to a hundred thousand times takes more memory than there is. So libyaml is first asked for the events of the body
//! alone, one by one, and stopped when they lead too far.

use std::collections::HashMap;
use std::ffi::CStr;
use std::mem::MaybeUninit;

use unsafe_libyaml::{
    yaml_event_delete, yaml_event_t, yaml_event_type_t as Kind, yaml_parser_delete,
    yaml_parser_initialize, yaml_parser_parse, yaml_parser_set_input_string, yaml_parser_t,
};

/// The deepest nesting; more would be refused by the decoder anyway.
const MAX_DEPTH: usize = 128;
/// The most that aliases may add to a body: as many bytes of text, and values, as the largest body that is read has bytes.
const MAX_ALIASED: usize = 3 << 20;

/// Whether a body can be read at a cost that fits its size.
///
/// # Errors
/// What leads too far. Whether it is valid is for the decoder to say.
pub fn check(body: &[u8]) -> Result<(), String> {
    let mut events = Events::new(body);
    let mut open: Vec<Open> = Vec::new();
    let mut weights: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut aliased = 0usize;
    while let Some(event) = events.next() {
        let (weight, anchor) = match event {
            Event::Begin(anchor) => {
                if open.len() >= MAX_DEPTH {
                    return Err(format!("yaml: nested deeper than {MAX_DEPTH} levels"));
                }
                open.push(Open { anchor, weight: 1 });
                continue;
            }
            Event::End => match open.pop() {
                Some(closed) => (closed.weight, closed.anchor),
                None => continue,
            },
            Event::Scalar(anchor, length) => (length.saturating_add(1), anchor),
            Event::Alias(anchor) => {
                let weight = weights.get(&anchor).copied().unwrap_or(0);
                aliased = aliased.saturating_add(weight);
                if aliased > MAX_ALIASED {
                    return Err("yaml: document contains excessive aliasing".to_owned());
                }
                (weight, None)
            }
            Event::Other => continue,
        };
        if let Some(anchor) = anchor {
            weights.insert(anchor, weight);
        }
        if let Some(parent) = open.last_mut() {
            parent.weight = parent.weight.saturating_add(weight);
        }
    }
    Ok(())
}

/// A list or a map whose end has not come yet.
struct Open {
    anchor: Option<Vec<u8>>,
    weight: usize,
}

enum Event {
    Begin(Option<Vec<u8>>),
    End,
    /// With the bytes of its text.
    Scalar(Option<Vec<u8>>, usize),
    Alias(Vec<u8>),
    Other,
}

/// The events of a body up to its first error.
struct Events<'a> {
    parser: Box<MaybeUninit<yaml_parser_t>>,
    _body: &'a [u8],
    ended: bool,
}

impl<'a> Events<'a> {
    fn new(body: &'a [u8]) -> Self {
        let mut parser = Box::new(MaybeUninit::uninit());
        // SAFETY: the parser is initialised where it stays, and reads from a body that outlives it.
        let ended = unsafe {
            if yaml_parser_initialize(parser.as_mut_ptr()).fail {
                true
            } else {
                yaml_parser_set_input_string(parser.as_mut_ptr(), body.as_ptr(), body.len() as u64);
                false
            }
        };
        Events {
            parser,
            _body: body,
            ended,
        }
    }

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let mut raw = MaybeUninit::<yaml_event_t>::uninit();
        // SAFETY: the parser was initialised. A successful parse fills the event, whose kind says which part of the union it holds;
        // its texts are copied before it is deleted.
        unsafe {
            if yaml_parser_parse(self.parser.as_mut_ptr(), raw.as_mut_ptr()).fail {
                self.ended = true;
                return None;
            }
            let event = raw.assume_init_ref();
            let copied = match event.type_ {
                Kind::YAML_STREAM_END_EVENT | Kind::YAML_NO_EVENT => {
                    self.ended = true;
                    Event::Other
                }
                Kind::YAML_SEQUENCE_START_EVENT => {
                    Event::Begin(text(event.data.sequence_start.anchor))
                }
                Kind::YAML_MAPPING_START_EVENT => {
                    Event::Begin(text(event.data.mapping_start.anchor))
                }
                Kind::YAML_SEQUENCE_END_EVENT | Kind::YAML_MAPPING_END_EVENT => Event::End,
                Kind::YAML_SCALAR_EVENT => {
                    let scalar = event.data.scalar;
                    let length = usize::try_from(scalar.length).unwrap_or(usize::MAX);
                    Event::Scalar(text(scalar.anchor), length)
                }
                Kind::YAML_ALIAS_EVENT => {
                    Event::Alias(text(event.data.alias.anchor).unwrap_or_default())
                }
                _ => Event::Other,
            };
            yaml_event_delete(raw.as_mut_ptr());
            Some(copied)
        }
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: initialising fills the parser also when it fails, and nothing uses it after this.
        unsafe { yaml_parser_delete(self.parser.as_mut_ptr()) }
    }
}

/// A name of libyaml's, copied; `None` for none.
///
/// # Safety
/// `name` is null, or ends with a zero.
unsafe fn text(name: *const u8) -> Option<Vec<u8>> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(name.cast()) }.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_documents_pass_also_broken_ones() {
        for body in [
            "",
            "a: [1, {b: c}]\nd: &x {e: f}\ng: *x\n",
            "a: b: c",
            "[",
            "*nothing",
            "--- a\n--- b\n",
            "{\"a\": [1, 2, {\"b\": null}]}",
        ] {
            assert_eq!(check(body.as_bytes()), Ok(()), "{body:?}");
        }
    }

    #[test]
    fn nesting_ends_somewhere() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check(nested(MAX_DEPTH).as_bytes()), Ok(()));
        assert!(check(nested(MAX_DEPTH + 1).as_bytes()).is_err());
        assert!(check("[".repeat(3 << 20).as_bytes()).is_err());
        assert!(check("- ".repeat(1 << 20).as_bytes()).is_err());
    }

    #[test]
    fn aliases_may_not_multiply_what_they_name() {
        let long = format!("a: &a {}\n", "x".repeat(1 << 16));
        let refer = |times: usize| {
            (0..times)
                .map(|n| format!("k{n}: *a\n"))
                .collect::<String>()
        };
        assert_eq!(check(format!("{long}{}", refer(40)).as_bytes()), Ok(()));
        assert!(check(format!("{long}{}", refer(60)).as_bytes()).is_err());
        let mut laughs = "a0: &a0 [x]\n".to_owned();
        for n in 1..12 {
            let name = format!("*a{},", n - 1).repeat(9);
            laughs.push_str(&format!("a{n}: &a{n} [{name}]\n"));
        }
        assert!(check(laughs.as_bytes()).is_err());
    }
}
