//! The rule set that is in force, as one value.
//!
//! One value, so that taking it up is all or nothing. Behind the header each rule stands with its own
//! length, so that a worker can compile ten thousand of them in slices beside the set in force:
//!
//! | bytes | field |
//! | --- | --- |
//! | 1 | layout version |
//! | 4 + *n* | length, [`RuleSetHeader`] |
//! | 4 + *n* each | length, [`RuleEntry`] |

use alloc::{string::String, vec::Vec};

use sentinel_core::{config::Settings, rule::Rule};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::codec::{self, DecodeError, VALUE_BYTES_MAX};

/// The layout of this build.
pub const LAYOUT: u8 = 4;

/// What holds for the set as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleSetHeader {
    /// Grows with each set that is published; 1 for the first.
    pub version: u64,
    /// Whether a source of rules has never been fetched and has no fallback: `beforeFirstRules` still holds.
    pub pending: bool,
    /// The generation that the next occupant of any ledger slot gets.
    pub next_generation: u64,
    /// Settings that reach the workers with the rules.
    pub settings: Settings,
    /// Resources without a rule that have series of their own.
    pub metrics_resources: Vec<String>,
    /// The most series that may be defined.
    pub series_max: u32,
    /// How many entries follow.
    pub rules: u32,
}

/// One rule, or a reference to one that is only written, and the ledger it counts in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleEntry<R = Rule> {
    /// The ledger's slot: the `n` of its key; for a rule with a table the first of its sets.
    pub slot: u32,
    /// How many sets the rule's table has; 0: the rule has one ledger, or none.
    pub sets: u32,
    /// Which occupant of the slot the rule is.
    pub generation: u64,
    /// The rule.
    pub rule: R,
}

/// A rule set that is being read, entry by entry.
#[derive(Debug)]
pub struct RuleSetReader {
    bytes: Vec<u8>,
    offset: usize,
    left: u32,
}

/// The set as bytes, or `None` if it is larger than a value may be (8 MiB).
pub fn encode<R: Serialize>(header: &RuleSetHeader, entries: &[RuleEntry<R>]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.push(LAYOUT);
    append_sized(header, &mut bytes)?;
    for entry in entries {
        append_sized(entry, &mut bytes)?;
    }
    (bytes.len() <= VALUE_BYTES_MAX).then_some(bytes)
}

impl RuleSetReader {
    /// Reads the header.
    pub fn open(bytes: Vec<u8>) -> Result<(RuleSetHeader, Self), DecodeError> {
        codec::body(LAYOUT, &bytes)?;
        let mut reader = Self { bytes, offset: 1, left: 0 };
        let header: RuleSetHeader = reader.next_sized()?;
        reader.left = header.rules;
        Ok((header, reader))
    }

    /// The next entry; `None` after the last.
    pub fn next_entry(&mut self) -> Result<Option<RuleEntry>, DecodeError> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        self.next_sized().map(Some)
    }

    /// Passes over so many entries without reading them; over all if there are fewer.
    pub fn skip_entries(&mut self, entries: u32) {
        for _ in 0..entries.min(self.left) {
            let rest = self.bytes.get(self.offset..).unwrap_or_default();
            let Some((length, _)) = rest.split_first_chunk::<4>() else { return };
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            self.offset = self.offset.saturating_add(4).saturating_add(length);
            self.left = self.left.saturating_sub(1);
        }
    }

    fn next_sized<T: DeserializeOwned>(&mut self) -> Result<T, DecodeError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(DecodeError::Malformed)?;
        let length =
            usize::try_from(u32::from_le_bytes(*length)).map_err(|_| DecodeError::Malformed)?;
        let body = rest.get(..length).ok_or(DecodeError::Malformed)?;
        let (value, read) = codec::read(body)?;
        if read != length {
            return Err(DecodeError::Malformed);
        }
        self.offset = self.offset.saturating_add(4).saturating_add(length);
        Ok(value)
    }
}

fn append_sized<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Option<()> {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    codec::append(value, bytes);
    let length = u32::try_from(bytes.len().checked_sub(start)?.checked_sub(4)?).ok()?;
    let place = bytes.get_mut(start..)?.first_chunk_mut::<4>()?;
    *place = length.to_le_bytes();
    Some(())
}
