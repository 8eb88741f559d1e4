//! The bytes of each layout, frozen. A change of any of them is a new layout version: two versions of the
//! modules run side by side while Envoy drains the old one.

use expect_test::{Expect, expect};
use sentinel_core::{
    config::Settings,
    ledger::{
        Ledger, Stamp,
        breaker::{BreakerLedger, BreakerState, Probe},
        bucket::BucketLedger,
        pace::PaceLedger,
        permits::{Holder, PermitLedger},
        rate::{RING, RateLedger},
        set::LedgerSet,
    },
    param::{MatchStrategy, Param, ParamMatch},
    rule::{
        ApiGroup, AuthorityRule, BreakerStrategy, CircuitBreakerRule, Common, Control, FlowRule,
        HotspotMetric, HotspotRule, IsolationRule, ItemValue, Keeps, LimitApp, OnHostFailure,
        OnServiceLoss, Overflow, ParamPick, PathPredicate, Response, Rule, SpecificItem,
        SystemMetric, SystemRule, Target, TokenCalculate, Unit,
    },
    time::Nanos,
    warm_up::{WarmUp, WarmUpState},
    window::BucketId,
};
use sentinel_wire::{
    DecodeError,
    carried::{self, CarriedSet, Configuration, Directory},
    decisions::{Decision, Decisions},
    frame::{BreakerCounts, CounterFrame, FrameEntry},
    ledger::{self, Value},
    rules::{self, RuleEntry, RuleSetHeader, RuleSetReader},
    service::{Ack, ServiceBeat},
    sources::{Fetched, FetchedText},
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
        rt_min: u64::MAX - 3,
        breakers: vec![BreakerCounts { generation: 2, epoch: 300, complete: 99, bad: 7 }],
        histogram: vec![(0, 98), (40, 1)],
    };
    CounterFrame {
        incarnation: 7,
        sequence: 300,
        at_ns: 1_000_000,
        waiting: 4,
        permits_owed: 1,
        entries: vec![hello, FrameEntry::default()],
    }
}

fn resource() -> Target {
    Target::Resource("GET:/hello".into())
}

/// A rule of each kind, and among them each way to say each thing.
fn every_rule() -> Vec<Rule> {
    let response = Response {
        status: Some(503),
        headers: vec![("x-why".into(), "busy".into())],
        body: Some("no".into()),
    };
    let common = Common {
        shadow: true,
        response: Some(response),
        on_service_loss: OnServiceLoss::Block,
        on_host_failure: OnHostFailure::Pass,
        unit: Unit::Message,
    };
    let plain = Common::default();
    let group = ApiGroup {
        name: "g".into(),
        predicates: vec![
            PathPredicate::Exact("/a".into()),
            PathPredicate::Prefix("/b/**".into()),
            PathPredicate::Regex("/c.*".into()),
        ],
    };
    let matching = ParamMatch { strategy: MatchStrategy::Regex, pattern: "a.*".into() };
    let items = [
        (ItemValue::Int(-7), 1),
        (ItemValue::String("vip".into()), 2),
        (ItemValue::Bool(true), 3),
        (ItemValue::Float(0.5), 4),
    ];
    vec![
        Rule::Authority(AuthorityRule {
            id: "a".into(),
            target: resource(),
            origins: vec!["app".into()],
            white_list: true,
            common: plain.clone(),
        }),
        Rule::System(SystemRule {
            id: "s".into(),
            metric: SystemMetric::CpuUsage { bbr: true },
            trigger: 0.75,
            common: plain.clone(),
        }),
        Rule::Gateway(HotspotRule {
            id: "g".into(),
            target: Target::Group(group),
            param: None,
            metric: HotspotMetric::Throttling { duration_ms: 1_000, max_queueing_ms: 500 },
            threshold: 5,
            items: vec![],
            capacity: 1,
            overflow: Overflow::Share,
            common: plain.clone(),
        }),
        Rule::Flow(FlowRule {
            id: "hello".into(),
            target: resource(),
            limit_app: LimitApp::Default,
            threshold: 100.0,
            stat_interval_ms: 1_000,
            calculate: TokenCalculate::Direct,
            control: Control::Reject,
            ref_resource: None,
            common: plain.clone(),
        }),
        Rule::Flow(FlowRule {
            id: "f".into(),
            target: Target::Pattern("GET:/.*".into()),
            limit_app: LimitApp::Origin("app".into()),
            threshold: 1.5,
            stat_interval_ms: 10_000,
            calculate: TokenCalculate::WarmUp(WarmUp { period_sec: 10, cold_factor: 3 }),
            control: Control::Throttling { max_queueing_ms: 500 },
            ref_resource: Some("GET:/other".into()),
            common,
        }),
        Rule::Isolation(IsolationRule {
            id: "i".into(),
            target: Target::Default,
            threshold: 8,
            common: plain.clone(),
        }),
        Rule::Hotspot(HotspotRule {
            id: "h".into(),
            target: resource(),
            param: Some(ParamPick {
                key: Some(Param::Header("x-user".into())),
                index: Some(-1),
                matching: Some(matching),
            }),
            metric: HotspotMetric::Reject { duration_ms: 1_000, burst: 3 },
            threshold: 5,
            items: items.map(|(value, threshold)| SpecificItem { value, threshold }).to_vec(),
            capacity: 4_000,
            overflow: Overflow::Block,
            common: plain.clone(),
        }),
        Rule::CircuitBreaker(CircuitBreakerRule {
            id: "b".into(),
            target: resource(),
            strategy: BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms: 50, ratio: 0.5 },
            retry_timeout_ms: 3_000,
            min_request_amount: 10,
            stat_interval_ms: 5_000,
            buckets: 10,
            probe_num: 2,
            error_statuses: Some(vec![(500, 502), (504, 504)]),
            grpc_error_statuses: Some(vec![14]),
            close_live_connections: true,
            common: plain,
        }),
    ]
}

fn rule_set() -> (RuleSetHeader, Vec<RuleEntry>) {
    let rules = every_rule();
    let header = RuleSetHeader {
        version: 1,
        pending: true,
        next_generation: 9,
        settings: Settings::default(),
        metrics_resources: vec!["GET:/cart".into()],
        series_max: 10_000,
        rules: 8,
    };
    let entry = |(generation, rule): (u32, Rule)| RuleEntry {
        slot: generation - 1,
        sets: rule.table_capacity(4_000).div_ceil(8),
        generation: u64::from(generation),
        rule,
    };
    (header, (1..).zip(rules).map(entry).collect())
}

fn rate(warm_up: Option<WarmUpState>) -> RateLedger {
    let mut granted = [0; RING];
    granted[..2].copy_from_slice(&[3, 7]);
    RateLedger { newest: BucketId::new(5), granted, warm_up }
}

fn warm() -> RateLedger {
    let terms = WarmUp { period_sec: 10, cold_factor: 3 };
    rate(Some(WarmUpState { terms, threshold: 10.5, stored: 80, filled_ms: 4_000 }))
}

#[track_caller]
fn check_ledger(value: &Value, expected: &Expect) {
    let stamp = Stamp { generation: 1, version: 2, threshold: 10.5 };
    let bytes = encoded(|bytes| ledger::encode(&stamp, value, bytes));
    check_bytes(&bytes, expected);
    assert_eq!(ledger::decode(&bytes), Ok((stamp, value.clone())));
}

#[test]
fn a_version_2_ledger_of_a_rate_is_these_bytes_for_ever() {
    check_ledger(
        &Value::Single(Ledger::Rate(rate(None))),
        &expect![
            "02010100000000000000020000000000000000000000000025400200050000000000000003000000000000000700000000000000"
        ],
    );
    check_ledger(
        &Value::Single(Ledger::Rate(warm())),
        &expect![
            "020101000000000000000200000000000000000000000000254002010500000000000000030000000000000007000000000000000a0000000300000000000000000025405000000000000000a00f000000000000"
        ],
    );
}

#[test]
fn a_version_2_ledger_of_a_pace_is_these_bytes_for_ever() {
    let last = Nanos::new(1_000_000);
    check_ledger(
        &Value::Single(Ledger::Pace(PaceLedger { last, passed: None })),
        &expect!["020201000000000000000200000000000000000000000000254040420f000000000000"],
    );
    check_ledger(
        &Value::Single(Ledger::Pace(PaceLedger { last, passed: Some(warm()) })),
        &expect![
            "020201000000000000000200000000000000000000000000254040420f00000000000102010500000000000000030000000000000007000000000000000a0000000300000000000000000025405000000000000000a00f000000000000"
        ],
    );
}

#[test]
fn a_version_2_ledger_of_permits_is_these_bytes_for_ever() {
    let holder =
        |incarnation, permits| Holder { incarnation, permits, seen: Nanos::new(1_000_000) };
    let holders = vec![holder(7, 3), holder(8, 300)];
    check_ledger(
        &Value::Single(Ledger::Permits(PermitLedger { holders })),
        &expect![
            "020301000000000000000200000000000000000000000000254002000700000000000000030000000000000040420f000000000008000000000000002c0100000000000040420f0000000000"
        ],
    );
}

#[test]
fn a_version_2_ledger_of_a_bucket_is_these_bytes_for_ever() {
    let bucket = BucketLedger { tokens: 4, filled: Nanos::new(1_000_000) };
    check_ledger(
        &Value::Single(Ledger::Bucket(bucket)),
        &expect![
            "0204010000000000000002000000000000000000000000002540040000000000000040420f0000000000"
        ],
    );
}

#[test]
fn a_version_2_ledger_of_a_breaker_is_these_bytes_for_ever() {
    for (state, expected) in [
        (
            BreakerState::Closed,
            expect![
                "020501000000000000000200000000000000000000000000254003000000000000000080841e00000000000100000001000700000000000000010000000000000040420f0000000000"
            ],
        ),
        (
            BreakerState::HalfOpen,
            expect![
                "020501000000000000000200000000000000000000000000254003000000000000000180841e00000000000100000001000700000000000000010000000000000040420f0000000000"
            ],
        ),
        (
            BreakerState::Open,
            expect![
                "020501000000000000000200000000000000000000000000254003000000000000000280841e00000000000100000001000700000000000000010000000000000040420f0000000000"
            ],
        ),
    ] {
        let out = vec![Probe { incarnation: 7, id: 1, since: Nanos::new(1_000_000) }];
        let breaker =
            BreakerLedger { epoch: 3, state, retry_at: Nanos::new(2_000_000), good: 1, out };
        check_ledger(&Value::Single(Ledger::Breaker(breaker)), &expected);
    }
}

#[test]
fn a_version_2_set_of_a_table_is_these_bytes_for_ever() {
    let bucket = |tokens| Ledger::Bucket(BucketLedger { tokens, filled: Nanos::new(1_000_000) });
    let entries = vec![(u128::MAX - 1, bucket(4)), (0, bucket(5))];
    check_ledger(
        &Value::Set(Keeps::Bucket, LedgerSet { entries }),
        &expect![
            "0214010000000000000002000000000000000000000000002540feffffffffffffffffffffffffffffff040000000000000040420f000000000000000000000000000000000000000000050000000000000040420f0000000000"
        ],
    );
    let permits =
        PermitLedger { holders: vec![Holder { incarnation: 7, permits: 3, seen: Nanos::new(9) }] };
    let entries = vec![(1, Ledger::Permits(permits))];
    check_ledger(
        &Value::Set(Keeps::Permits, LedgerSet { entries }),
        &expect![
            "0213010000000000000002000000000000000000000000002540010000000000000000000000000000000100070000000000000003000000000000000900000000000000"
        ],
    );
    check_ledger(
        &Value::Set(Keeps::Rate, LedgerSet::default()),
        &expect!["0211010000000000000002000000000000000000000000002540"],
    );
}

#[test]
fn version_1_decisions_are_these_bytes_for_ever() {
    let decision = |generation, value| Decision { generation, value };
    let decisions = Decisions { decisions: vec![decision(1, 3), decision(300, u64::MAX)] };
    let bytes = encoded(|bytes| decisions.encode(bytes));

    check_bytes(&bytes, &expect!["01020103fb2c01fdffffffffffffffff"]);
    assert_eq!(Decisions::decode(&bytes), Ok(decisions));
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
fn a_version_2_frame_is_these_bytes_for_ever() {
    let bytes = encoded(|bytes| frame().encode(bytes));

    check_bytes(
        &bytes,
        &expect![
            "0207fb2c01fc40420f00040102fd8877665544332211010a4745543a2f68656c6c6f64fbe8036301fc7011010001fdfcffffffffffffff0102fb2c01630702006228010000000000000000000000"
        ],
    );
    assert_eq!(CounterFrame::decode(&bytes), Ok(frame()));
}

#[test]
fn a_version_4_rule_set_is_these_bytes_for_ever() {
    let (header, entries) = rule_set();
    let bytes = rules::encode(&header, &entries).unwrap();

    check_bytes(
        &bytes,
        &expect![
            "043200000001010900fbb80b0a0afb3075fb60eafbe803fc00000004fb1027fb1027fb0001fbe80301094745543a2f63617274fb1027081d000000000001000161000a4745543a2f68656c6c6f0103617070010000000100150000000100020101730301000000000000e83f00000001002c0000000200030201670301670300022f6101052f622f2a2a02042f632e2a0002fbe803fbf4010500010000000001002a000000030004030568656c6c6f000a4745543a2f68656c6c6f000000000000005940fbe80300000000000001004d00000004fbf4010503016601074745543a2f2e2a0203617070000000000000f83ffb1027010a0301fbf401010a4745543a2f6f74686572010101fbf7010105782d776879046275737901026e6f0200010f00000005fbf40106040169020800000001004c00000006fbf40107050168000a4745543a2f68656c6c6f01010006782d757365720101010203612e2a01fbe803030504000d0101037669700202010303000000000000e03f04fba00f0100000001003c000000070008060162000a4745543a2f68656c6c6f0032000000000000e03ffbb80b0afb88130a020102fbf401fbf601fbf801fbf80101010e010000000100"
        ],
    );
    let (found, mut reader) = RuleSetReader::open(bytes).unwrap();
    assert_eq!(found, header);
    for entry in entries {
        assert_eq!(reader.next_entry(), Ok(Some(entry)));
    }
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
    let newer: Vec<u8> = [3].into_iter().chain(bytes[1..].iter().copied()).collect();
    assert_eq!(CounterFrame::decode(&newer), Err(DecodeError::Newer { found: 3, known: 2 }));
}

#[test]
fn a_rule_set_that_was_cut_off_is_malformed_and_allocates_no_more_than_it_is_long() {
    let (header, entries) = rule_set();
    let bytes = rules::encode(&header, &entries).unwrap();
    for end in 0..bytes.len() {
        let read = RuleSetReader::open(bytes[..end].to_vec()).and_then(|(_, mut reader)| {
            while reader.next_entry()?.is_some() {}
            Ok(())
        });
        assert_eq!(read, Err(DecodeError::Malformed), "cut at {end}");
    }
}

#[test]
fn a_version_1_directory_of_carried_rules_is_these_bytes_for_ever() {
    let set = CarriedSet {
        digest: 0x1122_3344_5566_7788,
        order: 3,
        plugin: "sentinel_filter".into(),
        slot: 1,
        stored: true,
        holders: vec![carried::Holder { vm: 7, seen_ns: 1_000_000 }],
    };
    let directory = Directory { newest: 3, checked: vec![9], sets: vec![set] };
    let bytes = encoded(|bytes| directory.encode(bytes));

    check_bytes(
        &bytes,
        &expect![
            "0103010901fd8877665544332211030f73656e74696e656c5f66696c74657201010107fc40420f00"
        ],
    );
    assert_eq!(Directory::decode(&bytes), Ok(directory));
}

#[test]
fn a_version_1_carried_configuration_is_these_bytes_for_ever() {
    let configuration = Configuration { digest: 9, bytes: b"rules: []".to_vec() };
    let bytes = encoded(|bytes| configuration.encode(bytes));

    check_bytes(&bytes, &expect!["01090972756c65733a205b5d"]);
    assert_eq!(Configuration::decode(&bytes), Ok(configuration));
}

#[test]
fn a_version_1_fetched_source_is_these_bytes_for_ever() {
    let text = |name: &str, kind: Option<&str>| FetchedText {
        name: name.into(),
        kind: kind.map(Into::into),
        bytes: b"[]".to_vec(),
    };
    let texts = vec![text("rules/flow.yaml", None), text("rules/golang.json", Some("flow"))];
    let fetched = Fetched { identity: 5, etag: b"\"7\"".to_vec(), texts };
    let bytes = encoded(|bytes| fetched.encode(bytes));

    check_bytes(
        &bytes,
        &expect![
            "010503223722020f72756c65732f666c6f772e79616d6c00025b5d1172756c65732f676f6c616e672e6a736f6e0104666c6f77025b5d"
        ],
    );
    assert_eq!(Fetched::decode(&bytes), Ok(fetched));
}
