//! What the service has last fetched of a source, so that a service that was revived goes on with it.
//!
//! Without it a source that does not answer just then would have no rules until it does.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};

/// The layout of this build.
pub const LAYOUT: u8 = 1;

/// The last good contents of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The process's hash of where the source is: another source has the same place after a change of configuration.
    pub identity: u64,
    /// What the server called this version of it (`etag`); empty if it did not.
    pub etag: Vec<u8>,
    /// The texts it consists of: one, or one for each file of an index.
    pub texts: Vec<FetchedText>,
}

/// One text of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedText {
    /// What errors call it.
    pub name: String,
    /// What a bare list in it is, where an index says so: `flow`, `hotspot` …
    pub kind: Option<String>,
    /// The text.
    pub bytes: Vec<u8>,
}

impl Fetched {
    /// Replaces `bytes` by this value.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        codec::encode(LAYOUT, self, bytes);
    }

    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(LAYOUT, bytes)
    }
}
