//! Where admission plugins meet the engine.

use amphipod_api::Status;
use serde_json::Value;

use super::Context;
use crate::resources::Lookup;

/// What a request does, as admission names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// What admission may know of a request.
pub struct Request<'a> {
    /// Who asks, for which kind and subresource, in which namespace, and whether it is a dry run.
    pub context: &'a Context,
    pub operation: Operation,
    /// Empty while a name is still to be generated.
    pub name: &'a str,
    /// The stored object, for updates and deletions.
    pub old: Option<&'a Value>,
    /// Other objects.
    pub lookup: &'a dyn Lookup,
}

/// The plugins. `admit` may change what comes in, `validate` sees what would be stored.
#[allow(unused_variables)]
pub trait Admission: Send + Sync {
    /// Changes or refuses a create or an update before it is prepared and validated.
    ///
    /// # Errors
    /// Why it is refused; usually [`Status::forbidden`].
    fn admit(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Refuses what must not happen. `object` is `None` for deletions.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }
}

/// Lets everything pass; for tests of the engine itself.
pub struct Open;

impl Admission for Open {}
