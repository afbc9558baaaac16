//! The patches of the API: JSON Patch (RFC 6902), JSON merge patch (RFC 7386), strategic merge patch.
//!
//! All work on `serde_json::Value`, never panic, and need no more stack than the documents' own depth (which the JSON
//! parser limits). Types: <https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/>.

mod json;
mod merge;
mod strategic;

pub use json::{MAX_OPERATIONS, apply_json_patch};
pub use merge::apply_merge_patch;
pub use strategic::{Field, NoSchema, PatchSchema, apply_strategic_merge_patch};

use crate::status::{Reason, Status, StatusDetails};

/// The kind of a patch, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// All of them, in the order in which documents list them.
    pub const ALL: [PatchType; 4] = [
        PatchType::Json,
        PatchType::Merge,
        PatchType::StrategicMerge,
        PatchType::Apply,
    ];

    /// The media type of the request body.
    pub const fn content_type(self) -> &'static str {
        match self {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::StrategicMerge => "application/strategic-merge-patch+json",
            PatchType::Apply => "application/apply-patch+yaml",
        }
    }

    /// Reads a Content-Type header; parameters are ignored.
    pub fn from_content_type(header: &str) -> Option<PatchType> {
        let media_type = header.split(';').next().unwrap_or("").trim();
        Self::ALL
            .into_iter()
            .find(|p| p.content_type().eq_ignore_ascii_case(media_type))
    }
}

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object (a failed `test`, a missing path).
    #[error("{0}")]
    DoesNotApply(String),
    /// More work than we are willing to do.
    #[error("{0}")]
    TooLarge(String),
}

impl PatchError {
    /// The answer to the client: 400, 422 or 413, as upstream.
    pub fn to_status(&self) -> Status {
        match self {
            PatchError::Malformed(message) => Status::bad_request(message.clone()),
            PatchError::DoesNotApply(message) => Status::failure(
                422,
                Reason::INVALID,
                format!(
                    "the server rejected our request due to an error in our request: {message}"
                ),
            )
            .with_details(StatusDetails::default()),
            PatchError::TooLarge(message) => Status::request_entity_too_large(message),
        }
    }
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Status {
        error.to_status()
    }
}
