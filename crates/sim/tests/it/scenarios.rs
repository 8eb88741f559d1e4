//! One promise at a time, each over several orders of calls.

use sentinel_core::rule::Rule;
use sentinel_sim::{
    Options, Report, run_scenario,
    scenario::{Fault, MS, Pattern, SECOND, Scenario, flow},
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
