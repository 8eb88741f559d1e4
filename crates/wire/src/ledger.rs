//! A rate rule's ledger as bytes.
//!
//! Read and written on the way of a request that has to claim, so the layout is fixed-width and neither
//! direction allocates:
//!
//! | bytes | field |
//! | --- | --- |
//! | 1 | layout version |
//! | 1 | kind: 1 rate |
//! | 1 | number of buckets *n*, 1 to 20 |
//! | 8 | generation |
//! | 8 | rule-set version |
//! | 8 | threshold, IEEE 754 |
//! | 8 | newest bucket |
//! | 8 *n* | granted tokens, newest bucket first |
//!
//! All integers are little-endian.

use alloc::vec::Vec;

use sentinel_core::{
    ledger::RateLedger,
    window::{BUCKETS_MAX, BucketId},
};

use crate::codec::{self, DecodeError};

/// The layout of this build.
pub const LAYOUT: u8 = 1;

const KIND_RATE: u8 = 1;

/// Replaces `bytes` by the ledger of a window of `buckets`.
pub fn encode(ledger: &RateLedger, buckets: u8, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(&[LAYOUT, KIND_RATE, buckets]);
    for field in
        [ledger.generation, ledger.version, ledger.threshold.to_bits(), ledger.newest.get()]
    {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for granted in ledger.granted.iter().take(usize::from(buckets)) {
        bytes.extend_from_slice(&granted.to_le_bytes());
    }
}

/// Reads a ledger.
pub fn decode(bytes: &[u8]) -> Result<RateLedger, DecodeError> {
    let body = codec::body(LAYOUT, bytes)?;
    let Some((&[KIND_RATE, buckets], fields)) = body.split_first_chunk() else {
        return Err(DecodeError::Malformed);
    };
    let (fields, rest) = fields.as_chunks::<8>();
    let [generation, version, threshold, newest, counts @ ..] = fields else {
        return Err(DecodeError::Malformed);
    };
    if !rest.is_empty() || counts.len() != usize::from(buckets) || counts.len() > BUCKETS_MAX {
        return Err(DecodeError::Malformed);
    }
    let mut granted = [0; BUCKETS_MAX];
    for (granted, count) in granted.iter_mut().zip(counts) {
        *granted = u64::from_le_bytes(*count);
    }
    Ok(RateLedger {
        generation: u64::from_le_bytes(*generation),
        version: u64::from_le_bytes(*version),
        threshold: f64::from_bits(u64::from_le_bytes(*threshold)),
        newest: BucketId::new(u64::from_le_bytes(*newest)),
        granted,
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn ledger() -> RateLedger {
        let mut granted = [0; BUCKETS_MAX];
        granted[0] = 3;
        granted[1] = 7;
        RateLedger { generation: 1, version: 2, threshold: 10.0, newest: BucketId::new(5), granted }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut bytes = vec![];
        encode(&ledger(), 2, &mut bytes);
        assert_eq!(decode(&bytes), Ok(ledger()));
    }

    #[test]
    fn a_newer_layout_is_recognised_as_newer() {
        let mut bytes = vec![];
        encode(&ledger(), 2, &mut bytes);
        bytes[0] = LAYOUT + 1;
        assert_eq!(decode(&bytes), Err(DecodeError::Newer { found: LAYOUT + 1, known: LAYOUT }));
    }

    #[test]
    fn a_ledger_that_was_cut_off_anywhere_is_malformed() {
        let mut bytes = vec![];
        encode(&ledger(), 2, &mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Err(DecodeError::Malformed), "cut at {end}");
        }
    }
}
