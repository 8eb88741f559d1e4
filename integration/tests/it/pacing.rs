//! Throttling: requests go one after the other at an even pace, and wait for it.

use std::time::Duration;

use sentinel_integration::clock;
use sentinel_integration::load::Ask;
use sentinel_integration::pacing::{Pace, waits};

use crate::world::{self, Setup};

#[test]
fn requests_go_at_the_pace_none_early_and_each_a_tick_late_at_most() {
    let world = Setup::with_rules(&[
        "{id: slow, resource: 'GET:/slow', threshold: 20, controlBehavior: Throttling, maxQueueingTimeMs: 500}",
        "{id: quick, resource: 'GET:/quick', threshold: 500, controlBehavior: Throttling, maxQueueingTimeMs: 40}",
        "{id: third, resource: 'GET:/third', threshold: 3, controlBehavior: Throttling, maxQueueingTimeMs: 1000}",
    ])
    .start();

    let asks = [
        Ask::get("/slow").weight(60),
        Ask::get("/quick").weight(900),
        Ask::get("/third").weight(12),
    ];
    let report = world.flood(&asks, 972, 8);
    let arrivals = world.upstream.take();

    for (path, interval, longest_ms) in [
        ("slow", Duration::from_millis(50), 500),
        ("quick", Duration::from_millis(2), 40),
        ("third", Duration::from_nanos(333_333_334), 1000),
    ] {
        let name = format!("GET:/{path}");
        let pace = Pace::of(&arrivals[&name], interval);
        let seen = &report.asks[&name];
        println!("{name}: {} of {} went, {}", pace.count, seen.sent(), pace.text());

        assert_eq!(pace.ahead, 0, "{name}: more than 1 + rate × elapsed had arrived: {pace:?}");
        assert!(seen.refused() > 0, "{name}: nobody was refused, so the queue was never full");
        assert_eq!(seen.status(200) + seen.refused(), seen.sent(), "{:?}", seen.by_status);
        assert!(pace.late(50) < 2 * TICK, "{name}: {}", pace.text());
        assert!(pace.late(99) < TICK_AND_NOISE, "{name}: {}", pace.text());
        let waits = waits(&seen.answered, &report.span_ns);
        let long = waits[waits.len() * 99 / 100];
        let bound = Duration::from_millis(longest_ms) + TICK_AND_NOISE;
        assert!(long < bound, "{name}: one of a hundred waited {long:?}");
    }
    world.stats_when("nobody to wait", |stats| stats.total("waiting") == 0);
    assert_eq!(world.stats().total("pacing_slots_lost"), 0);
    world.assert_nothing_trapped();
}

#[test]
fn a_client_that_goes_away_while_it_waits_is_forgotten_and_the_others_keep_their_slots() {
    let world = Setup::with_rules(&[
        "{id: pace, resource: 'GET:/pace', threshold: 1, statIntervalInMs: 3000, controlBehavior: Throttling, maxQueueingTimeMs: 20000}",
    ])
    .start();

    let mut first = world.hang("/pace", &[]);
    assert_eq!(first.status(PATIENCE).unwrap(), 200);
    let leaving: Vec<_> = (0..2).map(|_| world.hang("/pace", &[])).collect();
    world.stats_when("two to wait", |stats| stats.total("waiting") == 2);
    let mut staying = world.hang("/pace", &[]);
    drop(leaving);
    let stayed = staying.head(PATIENCE).unwrap();

    assert_eq!(stayed.status, 200);
    world.stats_when("nobody to wait", |stats| stats.total("waiting") == 0);
    let arrivals = &world.upstream.take()["GET:/pace"];
    assert_eq!(arrivals.len(), 2, "those that had gone went on: {arrivals:?}");
    assert_eq!(world.get("/pace").status, 200);
    world.stats_when("all to be counted", |stats| {
        stats.total("in_flight") == 0 && stats.total("pass_total") == 5
    });
    world.assert_nothing_trapped();
}

#[test]
fn more_than_the_queue_holds_are_refused_at_once() {
    let world = Setup::with_rules(&[
        "{id: none-waits, resource: 'GET:/none', threshold: 2, controlBehavior: Throttling}",
        "{id: pace, resource: 'GET:/pace', threshold: 10, controlBehavior: Throttling, maxQueueingTimeMs: 5000}",
    ])
    .settings("{waitingMax: 2}")
    .workers(1)
    .start();

    let mut none: Vec<_> = (0..5).map(|_| world.hang("/none", &[])).collect();
    let mut paced: Vec<_> = (0..8).map(|_| world.hang("/pace", &[])).collect();

    let count = |requests: &mut [sentinel_integration::hanging::Hanging], wanted: u16| {
        let statuses: Vec<_> =
            requests.iter_mut().map(|request| request.status(PATIENCE).unwrap()).collect();
        statuses.iter().filter(|status| **status == wanted).count()
    };
    assert_eq!((count(&mut none, 200), none.len()), (1, 5));
    // One at once and two that wait; of the one worker's others none finds room.
    let admitted = count(&mut paced, 200);
    assert!((3..=4).contains(&admitted), "{admitted} of 8 were admitted");
    world.assert_nothing_trapped();
}

#[test]
fn a_cold_resource_is_paced_slowly_at_first() {
    let world = Setup::with_rules(&[
        "{id: warm, resource: 'GET:/warm', threshold: 90, tokenCalculateStrategy: WarmUp, controlBehavior: Throttling, warmUpPeriodSec: 3, warmUpColdFactor: 3, maxQueueingTimeMs: 200}",
    ])
    .start();

    world::begin_a_second();
    let report = world.flood(&[Ask::get("/warm")], 300, 9);
    let arrivals = &world.upstream.take()["GET:/warm"];

    let second = |number: u64| {
        let start = report.span_ns.start + number * 1_000_000_000;
        let within = start..start + 1_000_000_000;
        arrivals.iter().filter(|arrival| within.contains(&arrival.arrived_ns)).count()
    };
    let seconds: Vec<_> = (0..8).map(second).collect();
    println!("{seconds:?} a second");
    // A third of it while cold; all of it in the end, and never more.
    assert!(seconds[0] <= 36, "{seconds:?}");
    assert!(seconds[7] >= 85, "{seconds:?}");
    let pace = Pace::of(arrivals, Duration::from_nanos(11_111_111));
    assert_eq!(pace.ahead, 0, "{seconds:?}");
}

#[test]
fn the_clients_that_wait_are_woken_by_every_worker_even_when_nothing_else_happens() {
    let world = Setup::with_rules(&[
        "{id: pace, resource: 'GET:/pace', threshold: 1, controlBehavior: Throttling, maxQueueingTimeMs: 9000}",
    ])
    .start();
    let started = clock::now();

    let mut waiting: Vec<_> = (0..8).map(|_| world.hang("/pace", &[])).collect();
    let heads: Vec<_> = waiting.iter_mut().map(|one| one.head(PATIENCE).unwrap()).collect();
    assert!(heads.iter().all(|head| head.status == 200), "{heads:?}; {world:?}");
    let arrivals = &world.upstream.take()["GET:/pace"];
    let at: Vec<_> = arrivals.iter().map(|arrival| arrival.arrived_ns).collect();

    assert!(clock::now() - started > Duration::from_millis(6900));
    for (number, pair) in at.windows(2).enumerate() {
        let apart = Duration::from_nanos(pair[1] - pair[0]);
        let late = apart.abs_diff(Duration::from_secs(1));
        assert!(late < TICK_AND_NOISE, "{apart:?} between {number} and the next");
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
/// 10 ms, which the kernel's timers make 12.
const TICK: Duration = Duration::from_millis(12);
/// What a busy machine adds: clients, Envoy and upstream share two processors.
const TICK_AND_NOISE: Duration = Duration::from_millis(250);
