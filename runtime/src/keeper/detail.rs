//! libcontainer's errors are shallow; what happened is in its log. Its first error line is kept and told with the error.

use std::fmt::{Debug, Write};
use std::os::fd::RawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::children::{ChildMessage, tell};

/// The result socket of this forked child.
static RESULT: AtomicI32 = AtomicI32::new(-1);
static FIRST: Once = Once::new();

/// Sends the first error that libcontainer logs, in this process or in those it forks, through `result`.
pub(super) fn forward_first_error(result: RawFd) {
    RESULT.store(result, Ordering::Relaxed);
    // The keeper itself has no subscriber; a child that cannot set one works without.
    let _ = tracing::subscriber::set_global_default(FirstError);
}

struct FirstError;

impl Subscriber for FirstError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        FIRST.call_once(|| {
            let mut text = Text::default();
            event.record(&mut text);
            let text = format!("{}{}", text.message, text.fields);
            tell(
                RESULT.load(Ordering::Relaxed),
                &ChildMessage::Detail { text },
            );
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, ", {}: {value:?}", field.name())
        };
    }
}
