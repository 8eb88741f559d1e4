//! Values of shared data and frames of the queue: what can be read says the same after it was written again.

use sentinel_wire::{
    DecodeError,
    carried::{Configuration, Directory},
    decisions::Decisions,
    frame::CounterFrame,
    ledger,
    rules::{self, RuleEntry, RuleSetReader},
    service::ServiceBeat,
    sources::Fetched,
    workers::{Seeds, Workers},
};

use super::holds;

/// Reads, writes, reads and writes: the second bytes must be the first ones. (What was read need not have been in the shortest
/// form, and a threshold may be NaN, so that neither the input nor the values are compared.)
fn again<T>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    encode: impl Fn(&T, &mut Vec<u8>),
) -> Result<(), String> {
    let Ok(value) = decode(bytes) else { return Ok(()) };
    let mut first = Vec::new();
    encode(&value, &mut first);
    let read =
        decode(&first).map_err(|error| format!("what it wrote it cannot read: {error:?}"))?;
    let mut second = vec![0xaa];
    encode(&read, &mut second);
    holds(first == second, || format!("read again it writes {second:02x?} instead of {first:02x?}"))
}

pub(super) fn frame(bytes: &[u8]) -> Result<(), String> {
    again(bytes, CounterFrame::decode, CounterFrame::encode)
}

pub(super) fn decisions(bytes: &[u8]) -> Result<(), String> {
    again(bytes, Decisions::decode, Decisions::encode)
}

pub(super) fn ledger(bytes: &[u8]) -> Result<(), String> {
    again(bytes, ledger::decode, |(stamp, value), bytes| ledger::encode(stamp, value, bytes))
}

pub(super) fn shared(bytes: &[u8]) -> Result<(), String> {
    again(bytes, Seeds::decode, Seeds::encode)?;
    again(bytes, Workers::decode, Workers::encode)?;
    again(bytes, ServiceBeat::decode, ServiceBeat::encode)?;
    again(bytes, Directory::decode, Directory::encode)?;
    again(bytes, Configuration::decode, Configuration::encode)?;
    again(bytes, Fetched::decode, Fetched::encode)
}

pub(super) fn rule_set(bytes: &[u8]) -> Result<(), String> {
    let Ok((header, mut reader)) = RuleSetReader::open(bytes.to_vec()) else { return Ok(()) };
    let (_, mut skipping) =
        RuleSetReader::open(bytes.to_vec()).map_err(|error| format!("{error:?}"))?;
    skipping.skip_entries(2);
    while let Ok(Some(_)) = skipping.next_entry() {}
    let mut entries: Vec<RuleEntry> = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => break,
            Err(_) => return Ok(()),
        }
    }
    for entry in &entries {
        // Looks at all of them, whatever the reader has passed.
        reader.entry_at(entry.slot, entry.sets > 0);
    }
    let Some(first) = rules::encode(&header, &entries) else { return Ok(()) };
    let unreadable = |error| format!("what it wrote it cannot read: {error:?}");
    let (header, mut reader) = RuleSetReader::open(first.clone()).map_err(unreadable)?;
    let mut entries: Vec<RuleEntry> = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(unreadable)? {
        entries.push(entry);
    }
    let second = rules::encode(&header, &entries);
    holds(second.as_ref() == Some(&first), || "read again it writes other bytes".to_owned())
}
