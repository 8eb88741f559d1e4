//! A limit admits what it says: never more, hardly less, however many workers share it.

use std::ops::Range;
use std::time::Duration;

use sentinel_integration::accuracy::{self, Flood, Outcome};
use sentinel_integration::client;
use sentinel_integration::clock;
use sentinel_integration::windows::{Arrival, Shape};

use crate::world::{self, Setup};

#[test]
fn every_limit_is_exact_with_any_number_of_workers() {
    for flood in accuracy::floods() {
        check_flood(&flood);
    }
}

#[test]
fn windows_of_every_length_are_exact() {
    accuracy::floods_of_window_lengths().iter().for_each(check_flood);
}

#[test]
fn one_client_on_one_connection_gets_exactly_the_threshold() {
    let world =
        Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 100}"]).start();
    let mut client = world.client();

    at_the_beginning_of_a_bucket();
    let statuses: Vec<_> = (0..150).map(|_| client.get("/limited").unwrap().status).collect();

    let expected: Vec<_> = (0..150).map(|number| if number < 100 { 200 } else { 429 }).collect();
    assert_eq!(statuses, expected);
}

#[test]
fn one_client_on_ever_new_connections_gets_the_threshold_within_a_tick_of_asking_on() {
    let world = Setup::with_rules(&[
        "{id: limit, resource: 'GET:/limited', threshold: 100, statIntervalInMs: 5000}",
    ])
    .start();

    at_the_beginning_of_a_bucket();
    let mut admitted = 0;
    let mut first_refusal_ns = None;
    let mut last_admission_ns = 0;
    let give_up = clock::now() + Duration::from_secs(3);
    while admitted < 100 && clock::now() < give_up {
        let answer = client::get(world.proxy(), "/limited").unwrap();
        if answer.status == 200 {
            admitted += 1;
            last_admission_ns = answer.sent_ns;
        } else {
            first_refusal_ns.get_or_insert(answer.sent_ns);
        }
    }
    assert_eq!(admitted, 100, "{world:?}");
    let asked_on_ns =
        first_refusal_ns.map_or(0, |refusal| last_admission_ns.saturating_sub(refusal));
    assert!(
        asked_on_ns < TICK_AND_NOISE_NS,
        "the last of the threshold came {asked_on_ns} ns after the first refusal"
    );

    for _ in 0..50 {
        assert_eq!(client::get(world.proxy(), "/limited").unwrap().status, 429);
    }
}

#[test]
fn a_threshold_of_nothing_admits_nothing_and_a_fraction_admits_its_whole_part() {
    let world = Setup::with_rules(&[
        "{id: none, resource: 'GET:/none', threshold: 0}",
        "{id: two-and-a-half, resource: 'GET:/two', threshold: 2.5, statIntervalInMs: 20000}",
    ])
    .start();
    let mut client = world.client();

    let none: Vec<_> = (0..20).map(|_| client.get("/none").unwrap().status).collect();
    assert_eq!(none, [429; 20]);
    let two = (0..20).filter(|_| client.get("/two").unwrap().status == 200).count();
    assert!((2..=4).contains(&two), "2 in each window, and two windows at most: {two}");
}

#[track_caller]
fn check_flood(flood: &Flood) {
    let _turn = world::machine();
    let outcomes = flood.run_saturated(&world::envoy(), &world::dist()).unwrap();
    assert!(outcomes.iter().all(Outcome::exact), "\n{}", accuracy::table(&outcomes));
}

/// As [`assert_held`]; and there was such a window.
#[track_caller]
pub(crate) fn assert_exact(
    stat_interval_ms: u64,
    threshold: u64,
    arrivals: &[Arrival],
    answered: &[Arrival],
    flood: Range<u64>,
) {
    let saturated = assert_held(stat_interval_ms, threshold, arrivals, answered, flood);
    assert!(
        saturated > 0,
        "the machine was too busy to ask for more than {threshold} in any window: {} of {} went",
        arrivals.len(),
        answered.len()
    );
}

/// No window was charged with more than `threshold`, and where more was asked for, none with less than 99 % of it. In how
/// many windows that was: a busy machine may find time for it in none.
#[track_caller]
pub(crate) fn assert_held(
    stat_interval_ms: u64,
    threshold: u64,
    arrivals: &[Arrival],
    answered: &[Arrival],
    flood: Range<u64>,
) -> usize {
    let shape = Shape::of(stat_interval_ms);
    let windows = shape.count(arrivals, flood.clone());
    assert!(windows.never_over(threshold), "over {threshold}: {:?}", windows.all());
    let saturated = shape.saturated(arrivals, answered, flood, threshold);
    let count = saturated.full().count();
    assert!(
        count == 0 || saturated.hardly_under(threshold),
        "under {threshold}: {:?}",
        saturated.all()
    );
    count
}

/// So that half a second passes before any window moves on.
fn at_the_beginning_of_a_bucket() {
    let bucket_ns = Shape::of(1000).bucket_ns();
    clock::pause(Duration::from_nanos(bucket_ns - clock::wall_nanos() % bucket_ns));
}

/// A tick is 10 ms and comes a few late; the rest is what a busy machine adds.
const TICK_AND_NOISE_NS: u64 = 100_000_000;
