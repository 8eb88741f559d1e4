//! Ledgers as bytes.
//!
//! Read and written on the way of a request that has to claim, so the layout is fixed-width. A value is one
//! rule's ledger, or one set of a table of them:
//!
//! | bytes | field |
//! | --- | --- |
//! | 1 | layout version |
//! | 1 | kind: 1 rate, 2 pace, 3 permits, 4 bucket, 5 breaker; 16 more for a set |
//! | 8 | generation |
//! | 8 | rule-set version |
//! | 8 | threshold, IEEE 754 |
//! | | the ledger, or for a set each entry: 16 bytes of hash, then the ledger |
//!
//! | ledger | |
//! | --- | --- |
//! | rate | 1 number of buckets *n*, at most 21; 1 whether it warms up; 8 newest bucket; 8 *n* granted tokens, newest bucket first; if it warms up 4 period, 4 cold factor, 8 threshold, 8 stored, 8 filled |
//! | pace | 8 last slot; 1 whether it warms up, then a rate |
//! | permits | 2 number of records, at most 512; 24 each: incarnation, permits, seen |
//! | bucket | 8 tokens; 8 filled |
//! | breaker | 8 epoch; 1 state (0 closed, 1 half-open, 2 open); 8 retry at; 4 good; 2 number of probes, at most 1,000; 24 each: incarnation, id, since |
//!
//! All integers are little-endian.

use alloc::vec::Vec;

use sentinel_core::{
    ledger::{
        Ledger, Stamp,
        breaker::{BreakerLedger, BreakerState, PROBES_MAX, Probe},
        bucket::BucketLedger,
        pace::PaceLedger,
        permits::{HOLDERS_MAX, Holder, PermitLedger},
        rate::{RING, RateLedger},
        set::{LedgerSet, SET_MAX},
    },
    rule::Keeps,
    time::Nanos,
    warm_up::{WarmUp, WarmUpState},
    window::BucketId,
};

use crate::codec::{self, DecodeError};

/// The layout of this build.
pub const LAYOUT: u8 = 2;

const OF_SET: u8 = 16;

/// What stands under one ledger key.
#[cfg_attr(
    target_pointer_width = "32",
    expect(
        clippy::large_enum_variant,
        reason = "the large one is the common one: no box on a request's way"
    )
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// One rule's ledger.
    Single(Ledger),
    /// One set of a rule's table.
    Set(Keeps, LedgerSet<Ledger>),
}

/// Replaces `bytes` by `value`.
pub fn encode(stamp: &Stamp, value: &Value, bytes: &mut Vec<u8>) {
    bytes.clear();
    let kind = match value {
        Value::Single(ledger) => kind_of(ledger.keeps()),
        Value::Set(keeps, _) => kind_of(*keeps) | OF_SET,
    };
    bytes.extend_from_slice(&[LAYOUT, kind]);
    for field in [stamp.generation, stamp.version, stamp.threshold.to_bits()] {
        put_u64(bytes, field);
    }
    match value {
        Value::Single(ledger) => put(bytes, ledger),
        Value::Set(_, set) => {
            for (hash, ledger) in &set.entries {
                bytes.extend_from_slice(&hash.to_le_bytes());
                put(bytes, ledger);
            }
        }
    }
}

/// Reads a value.
pub fn decode(bytes: &[u8]) -> Result<(Stamp, Value), DecodeError> {
    let body = codec::body(LAYOUT, bytes)?;
    read(&mut Reader { rest: body }).ok_or(DecodeError::Malformed)
}

fn read(reader: &mut Reader<'_>) -> Option<(Stamp, Value)> {
    let kind = reader.u8()?;
    let keeps = match kind & !OF_SET {
        1 => Keeps::Rate,
        2 => Keeps::Pace,
        3 => Keeps::Permits,
        4 => Keeps::Bucket,
        5 => Keeps::Breaker,
        _ => return None,
    };
    let stamp = Stamp {
        generation: reader.u64()?,
        version: reader.u64()?,
        threshold: f64::from_bits(reader.u64()?),
    };
    let value = if kind & OF_SET == 0 {
        Value::Single(reader.ledger(keeps)?)
    } else {
        let mut set = LedgerSet::default();
        while !reader.rest.is_empty() {
            // Besides the values the one that others share.
            if set.entries.len() > SET_MAX {
                return None;
            }
            let hash = u128::from_le_bytes(reader.bytes()?);
            set.entries.push((hash, reader.ledger(keeps)?));
        }
        Value::Set(keeps, set)
    };
    reader.rest.is_empty().then_some((stamp, value))
}

/// A value's bucket where it stands among the bytes of its set. Nearly every request with a value is about one that is
/// there: so it is found and changed without reading the others.
#[derive(Debug)]
pub struct BucketPlace<'a> {
    /// Whose the set is.
    pub stamp: Stamp,
    /// What stands there.
    pub bucket: BucketLedger,
    fields: &'a mut [[u8; 8]],
    place: &'a mut [[u8; 8]],
}

impl<'a> BucketPlace<'a> {
    /// The bucket of the value with this hash. `None`: there is none, or the bytes are no set of buckets.
    pub fn find(bytes: &'a mut [u8], hash: u128) -> Option<Self> {
        let ([LAYOUT, OF_BUCKETS, fields @ ..], entries) = bytes.split_first_chunk_mut::<HEAD>()?
        else {
            return None;
        };
        let (fields, _) = fields.as_chunks_mut();
        let [generation, version, threshold] = *fields else { return None };
        let (entries, []) = entries.as_chunks_mut::<32>() else { return None };
        for entry in entries {
            let (known, place) = entry.split_first_chunk_mut()?;
            if u128::from_le_bytes(*known) == hash {
                let (place, _) = place.as_chunks_mut();
                let [tokens, filled] = *place else { return None };
                return Some(Self {
                    stamp: Stamp {
                        generation: u64::from_le_bytes(generation),
                        version: u64::from_le_bytes(version),
                        threshold: f64::from_le_bytes(threshold),
                    },
                    bucket: BucketLedger {
                        tokens: u64::from_le_bytes(tokens),
                        filled: Nanos::new(u64::from_le_bytes(filled)),
                    },
                    fields,
                    place,
                });
            }
        }
        None
    }

    /// Writes the bucket and the set's stamp.
    pub fn write(self) {
        let Self { stamp, bucket, fields, place } = self;
        if let ([generation, version, threshold], [tokens, filled]) = (fields, place) {
            *generation = stamp.generation.to_le_bytes();
            *version = stamp.version.to_le_bytes();
            *threshold = stamp.threshold.to_le_bytes();
            *tokens = bucket.tokens.to_le_bytes();
            *filled = bucket.filled.get().to_le_bytes();
        }
    }
}

/// Layout, kind and stamp.
const HEAD: usize = 26;

const OF_BUCKETS: u8 = 4 | OF_SET;

fn kind_of(keeps: Keeps) -> u8 {
    match keeps {
        Keeps::Nothing => 0,
        Keeps::Rate => 1,
        Keeps::Pace => 2,
        Keeps::Permits => 3,
        Keeps::Bucket => 4,
        Keeps::Breaker => 5,
    }
}

fn put(bytes: &mut Vec<u8>, ledger: &Ledger) {
    match ledger {
        Ledger::Rate(rate) => put_rate(bytes, rate),
        Ledger::Pace(pace) => {
            put_u64(bytes, pace.last.get());
            bytes.push(u8::from(pace.passed.is_some()));
            if let Some(passed) = &pace.passed {
                put_rate(bytes, passed);
            }
        }
        Ledger::Permits(permits) => {
            put_u16(bytes, permits.holders.len());
            for holder in &permits.holders {
                put_u64(bytes, holder.incarnation);
                put_u64(bytes, holder.permits);
                put_u64(bytes, holder.seen.get());
            }
        }
        Ledger::Bucket(bucket) => {
            put_u64(bytes, bucket.tokens);
            put_u64(bytes, bucket.filled.get());
        }
        Ledger::Breaker(breaker) => {
            put_u64(bytes, breaker.epoch);
            bytes.push(match breaker.state {
                BreakerState::Closed => 0,
                BreakerState::HalfOpen => 1,
                BreakerState::Open => 2,
            });
            put_u64(bytes, breaker.retry_at.get());
            bytes.extend_from_slice(&breaker.good.to_le_bytes());
            put_u16(bytes, breaker.out.len());
            for probe in &breaker.out {
                put_u64(bytes, probe.incarnation);
                put_u64(bytes, probe.id);
                put_u64(bytes, probe.since.get());
            }
        }
    }
}

/// Only as many buckets as anything was granted in: the others are 0.
fn put_rate(bytes: &mut Vec<u8>, rate: &RateLedger) {
    let buckets = rate.granted.iter().rposition(|granted| *granted > 0).map_or(0, |last| last + 1);
    bytes.push(u8::try_from(buckets).unwrap_or(0));
    bytes.push(u8::from(rate.warm_up.is_some()));
    put_u64(bytes, rate.newest.get());
    for granted in rate.granted.iter().take(buckets) {
        put_u64(bytes, *granted);
    }
    if let Some(state) = &rate.warm_up {
        bytes.extend_from_slice(&state.terms.period_sec.to_le_bytes());
        bytes.extend_from_slice(&state.terms.cold_factor.to_le_bytes());
        for field in [state.threshold.to_bits(), state.stored, state.filled_ms] {
            put_u64(bytes, field);
        }
    }
}

fn put_u16(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend_from_slice(&u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes());
}

fn put_u64(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn nanos(&mut self) -> Option<Nanos> {
        self.u64().map(Nanos::new)
    }

    /// A number of things, of which there may be `most`.
    fn count(&mut self, most: usize) -> Option<usize> {
        let count = usize::from(u16::from_le_bytes(self.bytes()?));
        (count <= most).then_some(count)
    }

    fn ledger(&mut self, keeps: Keeps) -> Option<Ledger> {
        Some(match keeps {
            Keeps::Nothing => return None,
            Keeps::Rate => Ledger::Rate(self.rate()?),
            Keeps::Pace => {
                let last = self.nanos()?;
                let passed = if self.u8()? == 0 { None } else { Some(self.rate()?) };
                Ledger::Pace(PaceLedger { last, passed })
            }
            Keeps::Permits => {
                let mut holders = Vec::new();
                for _ in 0..self.count(HOLDERS_MAX)? {
                    let (incarnation, permits) = (self.u64()?, self.u64()?);
                    holders.push(Holder { incarnation, permits, seen: self.nanos()? });
                }
                Ledger::Permits(PermitLedger { holders })
            }
            Keeps::Bucket => {
                Ledger::Bucket(BucketLedger { tokens: self.u64()?, filled: self.nanos()? })
            }
            Keeps::Breaker => {
                let epoch = self.u64()?;
                let state = match self.u8()? {
                    0 => BreakerState::Closed,
                    1 => BreakerState::HalfOpen,
                    2 => BreakerState::Open,
                    _ => return None,
                };
                let (retry_at, good) = (self.nanos()?, self.u32()?);
                let mut out = Vec::new();
                for _ in 0..self.count(usize::try_from(PROBES_MAX).unwrap_or(0))? {
                    let (incarnation, id) = (self.u64()?, self.u64()?);
                    out.push(Probe { incarnation, id, since: self.nanos()? });
                }
                Ledger::Breaker(BreakerLedger { epoch, state, retry_at, good, out })
            }
        })
    }

    fn rate(&mut self) -> Option<RateLedger> {
        let buckets = usize::from(self.u8()?);
        let warms_up = self.u8()? != 0;
        let newest = BucketId::new(self.u64()?);
        let mut granted = [0; RING];
        if buckets > RING {
            return None;
        }
        for place in granted.iter_mut().take(buckets) {
            *place = self.u64()?;
        }
        let warm_up = if warms_up {
            let terms = WarmUp { period_sec: self.u32()?, cold_factor: self.u32()? };
            Some(WarmUpState {
                terms,
                threshold: f64::from_bits(self.u64()?),
                stored: self.u64()?,
                filled_ms: self.u64()?,
            })
        } else {
            None
        };
        Some(RateLedger { newest, granted, warm_up })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const STAMP: Stamp = Stamp { generation: 1, version: 2, threshold: 10.0 };

    fn rate() -> RateLedger {
        let mut granted = [0; RING];
        granted[0] = 3;
        granted[1] = 7;
        let warm_up = WarmUpState {
            terms: WarmUp { period_sec: 10, cold_factor: 3 },
            threshold: 10.0,
            stored: 80,
            filled_ms: 4_000,
        };
        RateLedger { newest: BucketId::new(5), granted, warm_up: Some(warm_up) }
    }

    fn values() -> Vec<Value> {
        let holder = Holder { incarnation: 7, permits: 3, seen: Nanos::new(9) };
        let probe = Probe { incarnation: 7, id: 1, since: Nanos::new(9) };
        let breaker = BreakerLedger {
            epoch: 3,
            state: BreakerState::HalfOpen,
            retry_at: Nanos::new(4),
            good: 1,
            out: vec![probe],
        };
        let ledgers = [
            Ledger::Rate(rate()),
            Ledger::Pace(PaceLedger { last: Nanos::new(8), passed: Some(rate()) }),
            Ledger::Permits(PermitLedger { holders: vec![holder, holder] }),
            Ledger::Bucket(BucketLedger { tokens: 4, filled: Nanos::new(5) }),
            Ledger::Breaker(breaker),
        ];
        let set = |ledger: &Ledger| {
            let entries = vec![(1, ledger.clone()), (0, ledger.clone())];
            Value::Set(ledger.keeps(), LedgerSet { entries })
        };
        let sets: Vec<Value> = ledgers.iter().map(set).collect();
        ledgers.into_iter().map(Value::Single).chain(sets).collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        for value in values() {
            let mut bytes = vec![];
            encode(&STAMP, &value, &mut bytes);
            assert_eq!(decode(&bytes), Ok((STAMP, value)));
        }
    }

    #[test]
    fn a_bucket_that_is_changed_where_it_stands_is_the_one_that_would_be_written() {
        let stamp = Stamp { generation: 3, version: 4, threshold: 5.5 };
        let bucket = |tokens| BucketLedger { tokens, filled: Nanos::new(tokens + 10) };
        let set = |stamp, second| {
            let entries = vec![(7, Ledger::Bucket(bucket(1))), (u128::MAX, Ledger::Bucket(second))];
            let mut bytes = vec![];
            encode(&stamp, &Value::Set(Keeps::Bucket, LedgerSet { entries }), &mut bytes);
            bytes
        };
        let mut bytes = set(STAMP, bucket(2));
        let mut place = BucketPlace::find(&mut bytes, u128::MAX).unwrap();
        assert_eq!((place.stamp, &place.bucket), (STAMP, &bucket(2)));
        (place.stamp, place.bucket) = (stamp, bucket(9));
        place.write();
        assert_eq!(bytes, set(stamp, bucket(9)));
    }

    #[test]
    fn no_bucket_is_found_where_the_value_is_not_or_the_bytes_are_something_else() {
        for value in values() {
            let mut bytes = vec![];
            encode(&STAMP, &value, &mut bytes);
            let is_there = matches!(value, Value::Set(Keeps::Bucket, _));
            assert_eq!(BucketPlace::find(&mut bytes, 1).is_some(), is_there, "{value:?}");
            assert!(BucketPlace::find(&mut bytes, 2).is_none(), "{value:?}");
            bytes[0] = LAYOUT + 1;
            assert!(BucketPlace::find(&mut bytes, 1).is_none(), "{value:?}");
            bytes[0] = LAYOUT;
            bytes.pop();
            assert!(BucketPlace::find(&mut bytes, 1).is_none(), "{value:?}");
        }
    }

    #[test]
    fn a_newer_layout_is_recognised_as_newer() {
        let mut bytes = vec![];
        encode(&STAMP, &Value::Single(Ledger::Rate(rate())), &mut bytes);
        bytes[0] = LAYOUT + 1;
        assert_eq!(decode(&bytes), Err(DecodeError::Newer { found: LAYOUT + 1, known: LAYOUT }));
    }

    #[test]
    fn a_ledger_that_was_cut_off_anywhere_is_malformed_or_a_smaller_set() {
        for value in values() {
            let mut bytes = vec![];
            encode(&STAMP, &value, &mut bytes);
            for end in 0..bytes.len() {
                match (decode(&bytes[..end]), &value) {
                    (Ok((_, Value::Set(_, cut))), Value::Set(_, whole)) => {
                        assert!(cut.entries.len() < whole.entries.len(), "cut at {end}");
                    }
                    (cut, _) => assert_eq!(cut, Err(DecodeError::Malformed), "cut at {end}"),
                }
            }
        }
    }
}
