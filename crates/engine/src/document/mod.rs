//! From bytes to [`Node`]s: YAML, JSON and `google.protobuf.Struct`.
//!
//! What comes in was written by somebody else, and a panic here takes a whole VM with it: sizes, depth
//! and number of values are bounded before anything is built, and all that is wrong is an error that
//! says where.

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};
use core::{error::Error, fmt};

use sentinel_core::rule::{
    error::{Reason, Refusal, Site},
    node::{Map, Node, Position, Value},
};

mod protobuf;
mod scalar;
mod yaml;

pub use protobuf::structure;
pub use yaml::documents;

/// The longest source, in bytes. A longer one is refused: no rule set that fits the rules' value in
/// shared data needs as much.
pub const SOURCE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why bytes are no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// Where, if the source has lines.
    pub position: Option<Position>,
    /// What is wrong and what would do.
    pub problem: String,
}

/// The configuration of a plugin as Envoy hands it over: a `google.protobuf.Struct` in its serialized
/// form, or a `StringValue`'s text, which is YAML or JSON. Nothing at all is an empty map.
pub fn configuration(bytes: &[u8]) -> Result<Node, DocumentError> {
    if bytes.is_empty() {
        return Ok(Node::new(Value::Map(Map::default())));
    }
    // A Struct begins with the tag of its first field. A text that begins with an empty line does so
    // too, but then reads as no Struct.
    if bytes.first() == Some(&STRUCT_TAG)
        && let Some(node) = structure(bytes)?
    {
        return Ok(node);
    }
    let mut nodes = documents(bytes)?;
    let node = nodes.pop();
    if !nodes.is_empty() {
        return Err(DocumentError::new(None, "has several documents, but a configuration is one"));
    }
    match node {
        None => Ok(Node::new(Value::Map(Map::default()))),
        Some(Node { value: Value::Null, position }) => Ok(Node { value: Value::Map(Map::default()), position }),
        Some(node @ Node { value: Value::Map(_), .. }) => Ok(node),
        Some(node) => {
            let problem = alloc::format!("the configuration is {}, but must be a map", node.describe());
            Err(DocumentError { position: node.position, problem })
        }
    }
}

/// Field 1 (`fields`), length-delimited.
const STRUCT_TAG: u8 = 0x0a;

impl DocumentError {
    fn new(position: Option<Position>, problem: &str) -> Self {
        Self { position, problem: problem.to_string() }
    }

    /// The error as one of `source`'s refusals.
    pub fn in_source(self, source: &str) -> Refusal {
        let site = Site { position: self.position, ..Site::of_source(source) };
        Refusal { site, field: String::new(), reason: Reason::Malformed(self.problem) }
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clone().in_source("").fmt(f)
    }
}

impl Error for DocumentError {}
