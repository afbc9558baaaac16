//! Who owns which fields: `metadata.managedFields`, and server-side apply, which needs it (KEP-555).
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/>
//!
//! Pure: objects, schemas and owners in, objects and owners out. The road of a write is [`crate::registry`]'s.
//!
//! **Ownership is kept only of objects that were applied once**, as upstream does with tracking on creation off: the first apply makes
//! entries for what was there before ([`managed::Managed::before_first_apply`]). All other objects have no `managedFields` and cost nothing.

mod managed;
mod set;
#[cfg(test)]
mod tests;
mod typed;
mod update;

pub use managed::{LAST_APPLIED, Managed, Manager, Operation};
pub use set::FieldSet;
pub use typed::Duplicate;
pub use update::{Applied, Applying, Conflict, apply, conflict_message, note_update};
