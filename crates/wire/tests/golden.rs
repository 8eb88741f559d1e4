//! The bytes of each layout, frozen. A change of any of them is a new layout version: two versions of the
//! modules run side by side while Envoy drains the old one.

use expect_test::{Expect, expect};
use sentinel_core::{
    config::Settings,
    ledger::RateLedger,
    rule::{Common, FlowRule, Rule},
    window::{BUCKETS_MAX, BucketId},
};
use sentinel_wire::{
    DecodeError,
    frame::{CounterFrame, FrameEntry},
    ledger,
    rules::{self, RuleEntry, RuleSetHeader, RuleSetReader},
    service::{Ack, ServiceBeat},
    workers::{Seeds, WorkerSlot, Workers},
};

#[track_caller]
fn check_bytes(bytes: &[u8], expected: &Expect) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    expected.assert_eq(&hex);
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0xaa];
    encode(&mut bytes);
    bytes
}

fn beat() -> ServiceBeat {
    let acks = vec![Ack { incarnation: 7, sequence: 300 }];
    ServiceBeat { instance: 1, config_hash: 2, heartbeat_ns: 1_000_000, rules_version: 4, acks }
}

fn frame() -> CounterFrame {
    let hello = FrameEntry {
        resource: 0x1122_3344_5566_7788,
        name: Some("GET:/hello".into()),
        pass: 100,
        block: 1_000,
        complete: 99,
        error: 1,
        rt_ms: 70_000,
        in_flight: 1,
        histogram: vec![(0, 98), (40, 1)],
    };
    CounterFrame {
        incarnation: 7,
        sequence: 300,
        at_ns: 1_000_000,
        entries: vec![hello, FrameEntry::default()],
    }
}

fn rule_set() -> (RuleSetHeader, Vec<RuleEntry>) {
    let rule = Rule::Flow(FlowRule {
        id: "hello".into(),
        resource: "GET:/hello".into(),
        threshold: 100.0,
        stat_interval_ms: 1_000,
        common: Common::default(),
    });
    let header = RuleSetHeader {
        version: 1,
        next_generation: 2,
        settings: Settings::default(),
        metrics_resources: vec!["GET:/cart".into()],
        series_max: 10_000,
        rules: 1,
    };
    (header, vec![RuleEntry { slot: 0, generation: 1, rule }])
}

#[test]
fn a_version_1_ledger_is_these_bytes_for_ever() {
    let mut granted = [0; BUCKETS_MAX];
    granted[..2].copy_from_slice(&[3, 7]);
    let ledger = RateLedger {
        generation: 1,
        version: 2,
        threshold: 10.5,
        newest: BucketId::new(5),
        granted,
    };

    check_bytes(
        &encoded(|bytes| ledger::encode(&ledger, 2, bytes)),
        &expect![
            "010102010000000000000002000000000000000000000000002540050000000000000003000000000000000700000000000000"
        ],
    );
}

#[test]
fn version_1_seeds_are_these_bytes_for_ever() {
    let seeds = Seeds { t0_ns: 1_900_000_000_000_000_000, hash_key: *b"0123456789abcdef" };
    let bytes = encoded(|bytes| seeds.encode(bytes));

    check_bytes(&bytes, &expect!["01fd00003ef1ee275e1a30313233343536373839616263646566"]);
    assert_eq!(Seeds::decode(&bytes), Ok(seeds));
}

#[test]
fn a_version_1_census_is_these_bytes_for_ever() {
    let workers = Workers {
        slots: vec![WorkerSlot { incarnation: 7, heartbeat_ns: 1_000_000, rules_version: 1 }],
    };
    let bytes = encoded(|bytes| workers.encode(bytes));

    check_bytes(&bytes, &expect!["010107fc40420f0001"]);
    assert_eq!(Workers::decode(&bytes), Ok(workers));
}

#[test]
fn a_version_1_heartbeat_is_these_bytes_for_ever() {
    let bytes = encoded(|bytes| beat().encode(bytes));

    check_bytes(&bytes, &expect!["010102fc40420f00040107fb2c01"]);
    assert_eq!(ServiceBeat::decode(&bytes), Ok(beat()));
}

#[test]
fn a_version_1_frame_is_these_bytes_for_ever() {
    let bytes = encoded(|bytes| frame().encode(bytes));

    check_bytes(
        &bytes,
        &expect![
            "0107fb2c01fc40420f0002fd8877665544332211010a4745543a2f68656c6c6f64fbe8036301fc70110100010200622801000000000000000000"
        ],
    );
    assert_eq!(CounterFrame::decode(&bytes), Ok(frame()));
}

#[test]
fn a_version_1_rule_set_is_these_bytes_for_ever() {
    let (header, entries) = rule_set();
    let bytes = rules::encode(&header, &entries).unwrap();

    check_bytes(
        &bytes,
        &expect![
            "0131000000010200fbb80b0a0afb3075fb60eafbe803fc00000004fb1027fb1027fb0001fbe80301094745543a2f63617274fb102701230000000001000568656c6c6f0a4745543a2f68656c6c6f0000000000005940fbe80300000001"
        ],
    );
    let (found, mut reader) = RuleSetReader::open(bytes).unwrap();
    assert_eq!(found, header);
    assert_eq!(reader.next_entry(), Ok(entries.first().cloned()));
    assert_eq!(reader.next_entry(), Ok(None));
}

#[test]
fn whatever_is_cut_off_is_malformed_and_whatever_is_newer_is_newer() {
    let bytes = encoded(|bytes| frame().encode(bytes));
    for end in 0..bytes.len() {
        assert_eq!(
            CounterFrame::decode(&bytes[..end]),
            Err(DecodeError::Malformed),
            "cut at {end}"
        );
    }
    let newer: Vec<u8> = [2].into_iter().chain(bytes[1..].iter().copied()).collect();
    assert_eq!(CounterFrame::decode(&newer), Err(DecodeError::Newer { found: 2, known: 1 }));
}

#[test]
fn a_rule_set_that_was_cut_off_is_malformed_and_allocates_no_more_than_it_is_long() {
    let (header, entries) = rule_set();
    let bytes = rules::encode(&header, &entries).unwrap();
    for end in 0..bytes.len() {
        let read = RuleSetReader::open(bytes[..end].to_vec())
            .and_then(|(_, mut reader)| reader.next_entry());
        assert_eq!(read, Err(DecodeError::Malformed), "cut at {end}");
    }
}
