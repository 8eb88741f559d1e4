//! One promise at a time, each over several orders of calls.

use sentinel_core::{
    config::Settings,
    rule::{BreakerStrategy, HotspotMetric, Rule, SystemMetric, TokenCalculate},
    warm_up::WarmUp,
};
use sentinel_sim::{
    Options, Report,
    rules::{breaker, flow, hotspot, isolation, of_messages, shadow, system, throttling},
    run_scenario,
    scenario::{Failures, Fault, MS, Pattern, Root, SECOND, Scenario, Traffic},
};

const SEEDS: std::ops::Range<u64> = 0..20;

fn flood(per_second: u32) -> Pattern {
    Pattern::Flood { per_second }
}

fn one_rule(threshold: f64, stat_interval_ms: u32) -> Vec<Rule> {
    vec![flow("rule", "GET:/", threshold, stat_interval_ms)]
}

#[track_caller]
fn run(seed: u64, scenario: &Scenario) -> Report {
    run_scenario(seed, scenario, Options::default()).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Runs `scenario` with threads that are lost now and then, and expects each window of its first rule to
/// admit `admitted`.
#[track_caller]
fn check_windows(scenario: Scenario, admitted: u64) {
    let scenario = Scenario { stall_one_in: 5_000, duration: 3_200 * MS, ..scenario };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        let windows = &report.windows[0];
        assert!(!windows.is_empty());
        assert!(windows.iter().all(|window| *window == admitted), "seed {seed}: {windows:?}");
    }
}

#[test]
fn four_workers_hold_a_limit_of_seven() {
    check_windows(Scenario::quiet(4, one_rule(7.0, 1_000)).with("GET:/", flood(300)), 7);
}

#[test]
fn eight_workers_hold_a_limit_of_one() {
    check_windows(Scenario::quiet(8, one_rule(1.0, 1_000)).with("GET:/", flood(300)), 1);
}

#[test]
fn a_hundred_in_a_window_of_a_second_and_a_half_are_all_admitted() {
    check_windows(Scenario::quiet(3, one_rule(100.0, 1_500)).with("GET:/", flood(600)), 100);
}

#[test]
fn a_client_in_sequence_on_one_connection_gets_the_whole_limit() {
    let client = Pattern::Sequential { reconnects: false };
    check_windows(Scenario::quiet(4, one_rule(40.0, 1_000)).with("GET:/", client), 40);
}

#[test]
fn a_give_back_reaches_who_was_refused_within_a_tick() {
    // Each request on another worker: what the last one holds is what this one lacks.
    let client = Pattern::Sequential { reconnects: true };
    check_windows(Scenario::quiet(4, one_rule(40.0, 1_000)).with("GET:/", client), 40);
}

#[test]
fn three_rules_held_crosswise_admit_what_they_allow() {
    let rules = ["a", "b", "c"].map(|id| flow(id, "GET:/", 1.0, 1_000)).to_vec();
    check_windows(Scenario::quiet(4, rules).with("GET:/", flood(200)), 1);
}

#[test]
fn what_the_short_rule_refuses_does_not_eat_the_long_ones_budget() {
    let rules = vec![flow("short", "GET:/", 10.0, 1_000), flow("long", "GET:/", 60.0, 20_000)];
    let scenario = Scenario::quiet(4, rules).with("GET:/", flood(100));
    let scenario = Scenario { duration: 8 * SECOND, ..scenario };
    for seed in SEEDS {
        assert_eq!(run(seed, &scenario).admitted, 60, "seed {seed}");
    }
}

#[test]
fn a_worker_that_dies_strands_no_more_than_two_ticks() {
    // Two workers, a request each millisecond on each: a tick of 12 to 16 ms sees at most 32 of them.
    const TWO_TICKS: u64 = 2 * 32;
    let scenario = Scenario::quiet(2, one_rule(1_000.0, 600_000)).with("GET:/", flood(2_000));
    let mut stranded = Vec::new();
    for seed in SEEDS {
        let fault = Fault::TrapWorker { worker: 0, after_calls: u32::try_from(seed).unwrap() };
        let scenario = Scenario { faults: vec![(203 * MS, fault)], ..scenario.clone() };
        let report = run(seed, &scenario);
        assert_eq!(report.traps, 1);
        assert_eq!(report.admitted + report.stranded[0], 1_000, "seed {seed}");
        stranded.push(report.stranded[0]);
    }
    assert!(stranded.iter().any(|tokens| *tokens > 0), "no worker died with tokens in hand");
    assert!(stranded.iter().all(|tokens| *tokens <= TWO_TICKS), "{stranded:?}");
}

#[test]
fn a_dead_service_changes_no_limit_and_fills_no_queue() {
    let scenario = Scenario::quiet(4, one_rule(20.0, 1_000)).with("GET:/", flood(200));
    let scenario = Scenario {
        faults: vec![(250 * MS, Fault::KillService)],
        duration: 20 * SECOND,
        ..scenario
    };
    for seed in SEEDS.take(5) {
        let report = run(seed, &scenario);
        assert!(report.windows[0].iter().all(|window| *window == 20), "{:?}", report.windows[0]);
        // At most one a second from each until the service counts as lost.
        assert!(report.backlog <= 4 * 4, "{} frames", report.backlog);
    }
}

#[test]
fn without_a_service_everything_passes() {
    let scenario = Scenario::quiet(3, Vec::new()).with("GET:/", flood(200));
    let report = run(1, &Scenario { service: false, ..scenario });
    assert!(report.admitted > 0);
    assert_eq!(report.refused, 0);
}

#[test]
fn a_changed_threshold_holds_for_all_workers() {
    let scenario = Scenario::quiet(4, one_rule(50.0, 1_000)).with("GET:/", flood(400));
    let rule_sets = vec![(0, one_rule(50.0, 1_000)), (1_600 * MS, one_rule(5.0, 1_000))];
    let scenario = Scenario { rule_sets, duration: 4 * SECOND, ..scenario };
    for seed in SEEDS {
        let windows = run(seed, &scenario).windows.remove(0);
        assert_eq!(
            (windows.first(), windows.last()),
            (Some(&50), Some(&5)),
            "seed {seed}: {windows:?}"
        );
    }
}

fn stream(resource: &str, per_second: u32) -> Traffic {
    Traffic::of(resource, flood(per_second))
}

#[test]
fn requests_that_wait_go_at_their_pace_over_all_workers_and_none_is_lost() {
    let rules = vec![throttling("pace", "GET:/", 100.0, 500)];
    let scenario = Scenario::quiet(4, rules).with("GET:/", flood(400));
    let scenario = Scenario { duration: 3 * SECOND, ..scenario };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        // One at once, 100 a second, and half a second's worth that still waits at the end.
        assert!((349..=352).contains(&report.admitted), "seed {seed}: {report:?}");
        assert!(report.waited >= report.admitted - 2, "seed {seed}: {report:?}");
        assert!(report.latest <= 17 * MS, "seed {seed}: {report:?}");
    }
}

#[test]
fn a_warm_up_begins_with_a_third_and_ends_with_all() {
    let mut rule = flow("warm", "GET:/", 90.0, 1_000);
    if let Rule::Flow(flow) = &mut rule {
        flow.calculate = TokenCalculate::WarmUp(WarmUp { period_sec: 4, cold_factor: 3 });
    }
    let scenario = Scenario::quiet(4, vec![rule]).with("GET:/", flood(500));
    let scenario = Scenario { duration: 9 * SECOND, ..scenario };
    for seed in SEEDS.take(5) {
        let windows = run(seed, &scenario).windows.remove(0);
        let (first, last) = (windows[0], windows[windows.len() - 1]);
        // Of a window that began in the first second, half lies in the second.
        assert!((30..=40).contains(&first), "seed {seed}: {windows:?}");
        assert!(last >= 89, "seed {seed}: {windows:?}");
        assert!(windows.is_sorted(), "seed {seed}: {windows:?}");
    }
}

#[test]
fn permits_are_all_used_and_all_come_back() {
    let traffic = Traffic { open_ns: 100 * MS, ..stream("GET:/", 2_000) };
    let scenario = Scenario::quiet(4, vec![isolation("five", "GET:/", 5)]);
    let scenario = Scenario { traffic: vec![traffic], ..scenario };
    for seed in SEEDS {
        // Five at a time, each for 50 ms on average, for two seconds.
        let report = run(seed, &scenario);
        assert!(report.admitted >= 150, "seed {seed}: {report:?}");
    }
}

#[test]
fn orphans_of_a_worker_that_died_count_until_they_must_have_ended() {
    // Those that a dead worker leaves at the upstream run for longer than it is taken to live.
    let settings = Settings { worker_ttl_ms: 1_000, orphan_ttl_ms: 1_000, ..Settings::DEFAULT };
    let traffic = Traffic { open_ns: 1_900 * MS, ..stream("GET:/", 200) };
    let scenario = Scenario::quiet(3, vec![isolation("ten", "GET:/", 10)]);
    let fault = |at, worker| (at, Fault::TrapWorker { worker, after_calls: 3 });
    let scenario = Scenario {
        settings,
        traffic: vec![traffic],
        faults: vec![fault(500 * MS, 0), fault(2_700 * MS, 1), fault(4_100 * MS, 0)],
        duration: 8 * SECOND,
        ..scenario
    };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        assert_eq!(report.traps, 3);
        assert!(report.admitted >= 40, "what is reaped is there again, seed {seed}: {report:?}");
    }
}

#[test]
fn a_breaker_opens_lets_probes_out_and_closes_when_all_is_well_again() {
    let rules = vec![breaker("breaker", "GET:/", 200, 3)];
    let scenario = Scenario::quiet(4, rules).with("GET:/", flood(500));
    let outages = vec![(1_000 * MS, 2_000 * MS)];
    let scenario = Scenario { outages, duration: 4 * SECOND, ..scenario };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        let moves = report.moves;
        assert_eq!((moves.opened, moves.closed, report.not_closed), (1, 1, 0), "seed {seed}");
        // Each time it is probed in vain up to three are out, of which the first bad one ends it.
        assert!((2..=5).contains(&moves.reopened), "seed {seed}: {moves:?}");
        assert!(moves.probes <= 3 * (moves.reopened + 1), "seed {seed}: {moves:?}");
        assert!(report.admitted >= 1_300, "seed {seed}: {report:?}");
    }
}

#[test]
fn an_open_breaker_closes_without_the_service() {
    let rules = vec![breaker("breaker", "GET:/", 200, 2)];
    let scenario = Scenario::quiet(4, rules).with("GET:/", flood(500));
    let scenario = Scenario {
        outages: vec![(500 * MS, 2_000 * MS)],
        faults: vec![(1_400 * MS, Fault::KillService)],
        duration: 4 * SECOND,
        ..scenario
    };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        assert_eq!((report.moves.opened, report.moves.closed), (1, 1), "seed {seed}");
        assert_eq!(report.not_closed, 0, "seed {seed}");
    }
}

#[test]
fn a_service_that_is_revived_does_not_count_again_what_workers_say_again() {
    let rules = vec![breaker("breaker", "GET:/", 200, 1)];
    // All are errors, and never ten of them in a second; in the seconds before there were enough. Of the other
    // resource a new service hears first.
    let failing = Traffic { fails_one_in: 1, ..stream("GET:/", 3) };
    let rules = [rules, vec![breaker("other", "GET:/other", 200, 1)]].concat();
    let scenario = Scenario::quiet(6, rules).with("GET:/other", flood(600));
    let scenario = Scenario {
        traffic: [scenario.traffic, vec![failing]].concat(),
        faults: vec![(5_000 * MS, Fault::TrapService { after_calls: 0 })],
        duration: 10 * SECOND,
        ..scenario
    };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        assert_eq!(report.moves.opened, 0, "seed {seed}: {report:?}");
    }
}

#[test]
fn a_resource_whose_breaker_is_gone_counts_for_no_other() {
    let Rule::CircuitBreaker(mut gone) = breaker("1", "GET:/gone", 200, 1) else { return };
    gone.strategy = BreakerStrategy::ErrorCount(1_000_000);
    let kept = breaker("2", "GET:/kept", 200, 1);
    let failing = Traffic { fails_one_in: 1, open_ns: SECOND, ..stream("GET:/gone", 300) };
    let scenario = Scenario::quiet(3, Vec::new()).with("GET:/kept", flood(50));
    let scenario = Scenario {
        rule_sets: vec![
            (0, vec![Rule::CircuitBreaker(gone), kept.clone()]),
            (1_500 * MS, vec![kept]),
        ],
        traffic: [scenario.traffic, vec![failing]].concat(),
        duration: 3 * SECOND,
        ..scenario
    };
    for seed in SEEDS.take(5) {
        assert_eq!(run(seed, &scenario).moves.opened, 0, "seed {seed}");
    }
}

#[test]
fn each_user_has_a_budget_of_his_own_whichever_worker_he_meets() {
    let metric = HotspotMetric::Reject { duration_ms: 60_000, burst: 1 };
    let traffic = Traffic { users: 50, ..stream("GET:/", 1_000) };
    let scenario = Scenario::quiet(4, vec![hotspot("user", "GET:/", 2, metric)]);
    let scenario = Scenario { traffic: vec![traffic], stall_one_in: 5_000, ..scenario };
    for seed in SEEDS {
        assert_eq!(run(seed, &scenario).admitted, 50 * 3, "seed {seed}");
    }
}

#[test]
fn more_users_than_there_is_room_for_share_what_is_left_and_no_more() {
    let metric = HotspotMetric::Reject { duration_ms: 60_000, burst: 0 };
    let Rule::Hotspot(mut rule) = hotspot("user", "GET:/", 2, metric) else { return };
    rule.capacity = 1;
    let traffic = Traffic { users: 500, ..stream("GET:/", 1_500) };
    let scenario = Scenario::quiet(4, vec![Rule::Hotspot(rule)]);
    let scenario = Scenario { traffic: vec![traffic], ..scenario };
    for seed in SEEDS.take(5) {
        // 32 values with two each, and two for all others.
        assert_eq!(run(seed, &scenario).admitted, 32 * 2 + 2, "seed {seed}");
    }
}

#[test]
fn each_user_has_as_many_requests_at_a_time_as_allowed() {
    let traffic = Traffic { users: 5, open_ns: 300 * MS, ..stream("GET:/", 800) };
    let rules = vec![hotspot("user", "GET:/", 2, HotspotMetric::Concurrency)];
    let scenario = Scenario { traffic: vec![traffic], ..Scenario::quiet(4, rules) };
    for seed in SEEDS.take(5) {
        let report = run(seed, &scenario);
        assert!(report.admitted >= 100, "seed {seed}: {report:?}");
    }
}

#[test]
fn a_request_that_any_rule_refuses_costs_no_other_rule_anything() {
    let metric = HotspotMetric::Reject { duration_ms: 60_000, burst: 0 };
    let rules = vec![
        system("all", SystemMetric::InboundQps, 1_000.0),
        flow("rate", "GET:/", 30.0, 600_000),
        isolation("permits", "GET:/", 3),
        hotspot("user", "GET:/", 10, metric),
        throttling("pace", "GET:/", 20.0, 100),
        breaker("breaker", "GET:/", 100, 1),
    ];
    let traffic = Traffic { users: 10, open_ns: 60 * MS, ..stream("GET:/", 600) };
    let scenario = Scenario::quiet(4, rules);
    let scenario = Scenario { traffic: vec![traffic], duration: 4 * SECOND, ..scenario };
    for seed in SEEDS {
        // Nothing but the rate is used up: if a refusal cost any of it, fewer would get through.
        assert_eq!(run(seed, &scenario).admitted, 30, "seed {seed}");
    }
}

#[test]
fn a_shadow_rule_of_any_kind_refuses_nobody() {
    let rules = vec![
        flow("a", "GET:/", 1.0, 1_000),
        throttling("b", "GET:/", 1.0, 100),
        isolation("c", "GET:/", 1),
        hotspot("d", "GET:/", 1, HotspotMetric::Concurrency),
        hotspot("e", "GET:/", 0, HotspotMetric::Reject { duration_ms: 1_000, burst: 0 }),
        breaker("f", "GET:/", 60_000, 1),
        system("g", SystemMetric::Concurrency, 1.0),
    ];
    let traffic = Traffic { users: 3, fails_one_in: 1, ..stream("GET:/", 300) };
    let scenario = Scenario::quiet(3, rules.into_iter().map(shadow).collect());
    let scenario = Scenario { traffic: vec![traffic], ..scenario };
    for seed in SEEDS.take(5) {
        let report = run(seed, &scenario);
        assert_eq!((report.refused, report.waited), (0, 0), "seed {seed}");
        assert!(report.admitted > 300, "seed {seed}");
    }
}

#[test]
fn users_who_share_an_entry_have_as_many_requests_at_a_time_as_one() {
    let Rule::Hotspot(mut rule) = hotspot("user", "GET:/", 2, HotspotMetric::Concurrency) else {
        return;
    };
    rule.capacity = 1;
    // About 600 at a time, if they could: 32 users with two each, and two for all others.
    let traffic = Traffic { users: 500, open_ns: 800 * MS, ..stream("GET:/", 1_500) };
    let scenario = Scenario::quiet(4, vec![Rule::Hotspot(rule)]);
    let scenario = Scenario { traffic: vec![traffic], ..scenario };
    for seed in SEEDS.take(5) {
        let report = run(seed, &scenario);
        assert!(report.admitted >= 66, "seed {seed}: {report:?}");
    }
}

#[test]
fn permits_that_are_kept_are_counted_also_beside_batches() {
    let pair = Traffic { batch: 2, open_ns: 20 * MS, ..stream("GET:/", 500) };
    let traffic = vec![pair, Traffic { open_ns: 20 * MS, ..stream("GET:/", 1_500) }];
    // Two workers keep up to four each.
    let scenario = Scenario::quiet(2, vec![isolation("many", "GET:/", 64)]);
    let scenario = Scenario { traffic, ..scenario };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        assert!(report.admitted > 3_000, "seed {seed}: {report:?}");
    }
}

#[test]
fn a_rule_that_is_gone_lets_those_go_who_wait_for_it_and_those_of_others_keep_their_slots() {
    let both = || {
        vec![throttling("slow", "GET:/", 2.0, 60_000), throttling("fast", "GET:/", 20.0, 60_000)]
    };
    let traffic = Scenario::quiet(2, both()).with("GET:/", flood(60));
    let until = |rules: Vec<Rule>| {
        let scenario = Scenario {
            rule_sets: vec![(0, both()), (500 * MS, rules)],
            duration: 450 * MS,
            ..traffic.clone()
        };
        // The checker sees to it that nobody goes too early or late.
        SEEDS
            .map(|seed| run(seed, &scenario))
            .map(|report| (report.waited, report.all_gone))
            .collect::<Vec<_>>()
    };
    for (waited, ended) in until(Vec::new()) {
        assert!(waited > 10 && ended < SECOND, "{waited} waited until {ended}");
    }
    for (waited, ended) in until(both().split_off(1)) {
        // 27 or so at 20 a second.
        assert!(
            waited > 10 && (SECOND..3 * SECOND).contains(&ended),
            "{waited} waited until {ended}"
        );
    }
    let only_counts = vec![
        shadow(throttling("slow", "GET:/", 2.0, 60_000)),
        throttling("fast", "GET:/", 20.0, 60_000),
    ];
    for (waited, ended) in until(only_counts) {
        assert!(
            waited > 10 && (SECOND..3 * SECOND).contains(&ended),
            "{waited} waited until {ended}"
        );
    }
    for (waited, ended) in until(both()) {
        assert!(waited > 10 && ended > 5 * SECOND, "{waited} waited until {ended}");
    }
}

#[test]
fn rules_that_the_host_would_not_take_are_published_as_soon_as_it_does() {
    let scenario = Scenario::quiet(3, one_rule(50.0, 1_000)).with("GET:/", flood(300));
    let scenario = Scenario {
        rule_sets: vec![(0, one_rule(50.0, 1_000)), (600 * MS, one_rule(5.0, 1_000))],
        failures: Some(Failures { from: 400 * MS, until: 900 * MS, one_in: 1 }),
        duration: 4 * SECOND,
        ..scenario
    };
    for seed in SEEDS.take(5) {
        let windows = run(seed, &scenario).windows.remove(0);
        assert_eq!(windows.last(), Some(&5), "seed {seed}: {windows:?}");
    }
}

#[test]
fn a_worker_that_lives_shortly_is_not_forgotten_while_its_requests_are_open() {
    // The service forgets who is silent for three seconds, and what a worker says after that it would not count.
    let settings = Settings { worker_ttl_ms: 2_000, orphan_ttl_ms: 1_000, ..Settings::DEFAULT };
    let traffic = Traffic { open_ns: 6 * SECOND, ..stream("GET:/", 20) };
    let scenario = Scenario::quiet(3, vec![isolation("many", "GET:/", 1_000)]);
    let scenario = Scenario { settings, traffic: vec![traffic], duration: SECOND, ..scenario };
    for seed in SEEDS.take(5) {
        // The service has counted the end of each: see the checks at rest.
        assert!(run(seed, &scenario).admitted > 5, "seed {seed}");
    }
}

#[test]
fn a_second_service_takes_over_when_the_first_is_gone_and_a_breaker_opens_by_its_word() {
    let rules = vec![breaker("breaker", "GET:/", 200, 1)];
    let scenario = Scenario::quiet(3, rules).with("GET:/", flood(300));
    let scenario = Scenario {
        second_service: Some(300 * MS),
        faults: vec![(800 * MS, Fault::KillService)],
        outages: vec![(4 * SECOND, 5 * SECOND)],
        duration: 6 * SECOND,
        ..scenario
    };
    for seed in SEEDS.take(5) {
        let moves = run(seed, &scenario).moves;
        assert_eq!(moves.opened, 1, "seed {seed}: {moves:?}");
    }
}

#[test]
fn without_wake_ups_a_breaker_opens_at_the_service_s_next_tick() {
    let rules = vec![breaker("breaker", "GET:/", 200, 1)];
    let scenario = Scenario::quiet(3, rules).with("GET:/", flood(300));
    let scenario = Scenario {
        wake_ups_lost_one_in: 1,
        outages: vec![(500 * MS, 2_500 * MS)],
        duration: 4 * SECOND,
        ..scenario
    };
    for seed in SEEDS.take(5) {
        assert!(run(seed, &scenario).moves.opened >= 1, "seed {seed}");
    }
}

#[test]
fn messages_of_open_streams_are_as_many_as_allowed_and_requests_are_not_among_them() {
    let rules = vec![of_messages(flow("messages", "GET:/", 20.0, 600_000))];
    let traffic = Traffic { open_ns: 200 * MS, pieces: 5, ..stream("GET:/", 100) };
    let scenario = Scenario::quiet(3, rules);
    let scenario = Scenario { traffic: vec![traffic], ..scenario };
    for seed in SEEDS.take(5) {
        let report = run(seed, &scenario);
        assert_eq!(report.refused, 0, "seed {seed}");
        // A piece of three does not fit where two are left.
        assert!((18..=20).contains(&report.messages), "seed {seed}: {report:?}");
    }
}

/// Two roots of one plugin, the second an update of the first, under threads that are lost now and then.
fn updated_from(until: u64) -> Scenario {
    let root = |threshold, from, until| Root {
        rules: vec![flow("carried", "GET:/", threshold, 1_000)],
        from,
        until,
    };
    Scenario {
        roots: vec![root(50.0, 0, Some(until)), root(7.0, 600 * MS, None)],
        stall_one_in: 5_000,
        duration: 4 * SECOND,
        ..Scenario::quiet(4, Vec::new()).with("GET:/", flood(200))
    }
}

#[test]
fn the_rules_of_an_update_hold_beside_the_root_it_replaces_and_after_it() {
    for until in [640 * MS, 2 * SECOND] {
        for seed in SEEDS {
            let report = run(seed, &updated_from(until));
            // More than 7 in each of the windows of the update, and at most 50 before it.
            assert!((7 * 2..=50 + 50 + 7 * 5).contains(&report.admitted), "{}", report.admitted);
            assert!(report.refused > 100, "seed {seed}: {}", report.refused);
        }
    }
}

#[test]
fn before_a_late_service_everybody_passes_and_then_the_rules_hold() {
    let scenario = Scenario {
        service_from: 500 * MS,
        stall_one_in: 5_000,
        ..Scenario::quiet(4, one_rule(5.0, 1_000)).with("GET:/", flood(400))
    };
    for seed in SEEDS {
        let report = run(seed, &scenario);
        assert!((100..500).contains(&report.admitted), "seed {seed}: {}", report.admitted);
        assert!(report.refused > 300, "seed {seed}: {}", report.refused);
    }
}

#[test]
fn messages_at_a_pace_wait_and_each_has_a_slot_of_its_own() {
    let mut scenario =
        Scenario::quiet(3, vec![of_messages(throttling("pace", "GET:/", 100.0, 400))]);
    scenario.traffic.push(Traffic {
        open_ns: SECOND,
        pieces: 4,
        ..Traffic::of("GET:/", flood(20))
    });
    for seed in SEEDS {
        let report = run(seed, &scenario);
        assert!(report.messages_waited > 20, "seed {seed}: {}", report.messages_waited);
    }
}
