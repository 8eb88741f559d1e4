//! One door to the serialiser.
//!
//! bincode 2.0.1 is the last working release and gets no more fixes, so nothing outside this module
//! names it: a replacement that writes the same bytes (the golden tests say whether it does) drops in
//! here. Every value is one layout byte and then the fields in order, integers as varints.

use alloc::vec::Vec;
use core::fmt;

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

/// The largest value that is ever decoded: a rule set (8 MiB). Decoding allocates no more than this.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The value has a newer layout than this build knows.
    Newer {
        /// The layout that was found.
        found: u8,
        /// The newest layout that this build reads.
        known: u8,
    },
    /// The bytes are not a value of this layout.
    Malformed,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { found, known } => {
                write!(f, "layout version {found}, but this build reads {known}")
            }
            Self::Malformed => f.write_str("the bytes are malformed"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Appends `value` behind its layout byte.
pub fn encode<T: Serialize>(layout: u8, value: &T, bytes: &mut Vec<u8>) {
    bytes.push(layout);
    append(value, bytes);
}

/// Reads a whole value of `layout`.
pub fn decode<T: DeserializeOwned>(layout: u8, bytes: &[u8]) -> Result<T, DecodeError> {
    let body = body(layout, bytes)?;
    let (value, read) = read(body)?;
    if read == body.len() { Ok(value) } else { Err(DecodeError::Malformed) }
}

/// What follows the layout byte, if the layout is one that this build reads.
pub(crate) fn body(layout: u8, bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&found, body)) if found == layout => Ok(body),
        Some((&found, _)) if found > layout => Err(DecodeError::Newer { found, known: layout }),
        Some(_) | None => Err(DecodeError::Malformed),
    }
}

/// Appends `value` without a layout byte.
pub(crate) fn append<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    // Writing to a Vec fails only for types that cannot be serialised at all, and ours can: tested.
    match bincode::serde::encode_to_vec(value, CONFIG) {
        Ok(encoded) => bytes.extend_from_slice(&encoded),
        Err(error) => debug_assert!(false, "{error}"),
    }
}

/// Reads a value and says how many bytes it took.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|_| DecodeError::Malformed)
}

const CONFIG: Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>> =
    config::standard().with_limit::<VALUE_BYTES_MAX>();
