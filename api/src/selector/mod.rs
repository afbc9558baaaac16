//! Selectors: label selectors (text and object form), field selectors, node selectors.

mod fields;
mod labels;
mod node;
mod parser;

pub use fields::{FieldRequirement, FieldSelector};
pub use labels::{LabelSelector, Labels, Operator, Requirement};
pub use node::{NodeSelector, NodeSelectorTerm};

/// Why a selector cannot be read; prints in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// Longest selector text that is looked at: more would not fit a URL either.
const MAX_TEXT: usize = 256 * 1024;
