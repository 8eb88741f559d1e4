//! Every interleaving of small scripts keeps the promises.
//!
//! Here is what a slow machine does in a minute: most scripts in full, the others with few preemptions. `cargo xtask model`
//! explores all of them in full.

use std::collections::BTreeSet;

use sentinel_sim::explore::{Explored, Move, Script, Search, explore};

fn script(name: &str) -> Script {
    Script::named(name).unwrap_or_else(|| panic!("there is no script {name}"))
}

#[track_caller]
#[expect(clippy::print_stdout, reason = "how far a bounded search goes is for people to judge")]
fn explored(script: &Script, search: Search<'_>) -> Explored {
    let explored = explore(script, search).unwrap_or_else(|found| panic!("{found}"));
    let Explored { runs, states, interleavings, longest, .. } = &explored;
    println!(
        "{}: {interleavings} interleavings of up to {longest} steps, {states} states, {runs} runs",
        script.name
    );
    explored
}

#[test]
fn three_who_create_a_ledger_at_once_keep_its_limit_in_every_interleaving() {
    let explored = explored(&script("first-claim"), Search::default());

    assert!(explored.interleavings > 1_000);
    for outcome in &explored.outcomes {
        assert_eq!(outcome.matches(" passes; ").count(), 2, "{outcome}");
    }
}

/// Scripts that take longer in full than this test may.
const LONG: [&str; 4] = ["bucket-change", "give-back", "permits", "start"];

#[test]
fn every_script_keeps_its_promises_in_full_or_however_one_vm_is_interrupted() {
    for script in Script::all() {
        let preemptions = LONG.contains(&script.name).then_some(1);
        let explored = explored(&script, Search { preemptions, ..Search::default() });
        assert!(explored.interleavings > 1, "{} has nothing to interleave", script.name);
        if script.name == "reap" {
            // Two permits of three were the dead worker's, and can be had again.
            let mut outcomes = explored.outcomes.iter();
            assert!(outcomes.any(|outcome| outcome.matches(" passes; ").count() == 3));
        }
    }
}

#[test]
fn what_nobody_touches_need_not_be_a_step() {
    for script in [small(), script("first-claim")] {
        let blunt = explored(&script, Search { is_blunt: true, ..Search::default() });
        let usual = explored(&script, Search::default());

        assert_eq!(usual.outcomes, blunt.outcomes, "{}", script.name);
        assert!(usual.interleavings < blunt.interleavings, "{}", script.name);
    }
}

/// A script so small that each of its interleavings can be run for itself.
fn small() -> Script {
    let mut small = script("bucket-change");
    small.workers = vec![vec![Move::Ask("GET:/x")], vec![Move::Ask("GET:/x")]];
    small.clock_ms.truncate(1);
    small
}

#[test]
fn where_equal_states_are_explored_once_nothing_is_missed_that_running_each_interleaving_finds() {
    let all = explored(&small(), Search { is_naive: true, ..Search::default() });
    let each_state_once = explored(&small(), Search::default());

    assert_eq!(each_state_once.ends, all.ends);
    assert_eq!(each_state_once.outcomes, all.outcomes);
    assert_eq!(each_state_once.interleavings, all.interleavings);
    assert!(
        each_state_once.runs * 2 < all.runs,
        "{} runs, {} runs",
        each_state_once.runs,
        all.runs
    );
}

#[test]
fn with_more_preemptions_more_can_come_until_all_has_come() {
    let few: Vec<Explored> = (0..3)
        .map(|most| explored(&small(), Search { preemptions: Some(most), ..Search::default() }))
        .collect();
    let all = explored(&small(), Search::default());

    assert!(few.windows(2).all(|pair| pair[0].interleavings < pair[1].interleavings));
    assert!(few.iter().all(|few| few.outcomes.is_subset(&all.outcomes)));
    assert!(few[2].interleavings <= all.interleavings);
}

#[test]
fn whoever_comes_first_gets_the_last_token() {
    let mut small = small();
    small.clock_ms.clear();
    let outcomes = explored(&small, Search::default()).outcomes;

    let answers: BTreeSet<&str> =
        outcomes.iter().filter_map(|outcome| outcome.split(" Ledger").next()).collect();
    let expected = [
        "100 passes; 101 passes; 200 is refused by x;",
        "100 passes; 101 is refused by x; 200 passes;",
    ];
    assert_eq!(answers, BTreeSet::from(expected));
}

#[test]
fn a_promise_that_does_not_hold_is_found_and_shown_call_by_call() {
    // Requests of the third worker live longer than `orphanTtlMs`, which operators promise they do not.
    let mut broken = script("reap");
    broken.settings.worker_ttl_ms = 5_000;
    broken.settings.orphan_ttl_ms = 5_000;
    broken.clock_ms = vec![5_000, 10_000, 15_000];
    broken.trap = None;

    let found = explore(&broken, Search::default()).unwrap_err();
    assert_eq!(found.what, "rule x: 4 are in flight, and 3 are the most");
    assert_eq!(found.preemptions, 0);
    let shown = found.to_string();
    for part in [
        "the clock moves on to 15000 ms",
        "  loads Ledger(0): generation 1, set 1, threshold 3: permits 2 of ",
        "under set 1",
    ] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
}
