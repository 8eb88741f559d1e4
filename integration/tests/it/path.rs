//! What a request costs in calls that take the process-wide lock: none, for nearly all of them.

use sentinel_integration::load::{Ask, Rate, Until};
use std::time::Duration;

use crate::world::{Setup, World};

#[test]
fn a_request_makes_next_to_no_shared_data_and_queue_calls() {
    let world = Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 4000}"])
        .workers(2)
        .start();

    let calls = calls_per_request(&world, "/limited", 20_000);

    assert!(calls < 0.05, "{calls} shared-data and queue calls per request");
}

#[test]
fn calls_per_admitted_request_fall_as_the_threshold_grows() {
    let world = Setup::with_rules(&[
        "{id: small, resource: 'GET:/small', threshold: 40}",
        "{id: large, resource: 'GET:/large', threshold: 2000}",
    ])
    .workers(2)
    .start();

    let small = calls_per_request(&world, "/small", 400) * 400.0 / 40.0;
    let large = calls_per_request(&world, "/large", 6000) * 6000.0 / 2000.0;

    assert!(large < small, "{large} calls per admitted request at 2000/s, but {small} at 40/s");
}

#[test]
fn a_refused_request_makes_no_calls_between_re_checks() {
    let world =
        Setup::with_rules(&["{id: none, resource: 'GET:/none', threshold: 0}"]).workers(2).start();

    let calls = calls_per_request(&world, "/none", 5000);

    assert!(calls < 0.02, "{calls} shared-data and queue calls per refused request");
}

/// In a steady run of four seconds, after one to get going. Calls come with time and not with requests: on a machine that
/// does not send as many as it should, they are held against those that it should have sent.
fn calls_per_request(world: &World, path: &str, per_second: u32) -> f64 {
    let asks = [Ask::get(path)];
    let rate = Rate::PerSecond(per_second);
    world.load(&asks, rate, Until::Elapsed(Duration::from_secs(1)));
    let calls = || {
        let stats = world.stats();
        f64::from(
            u32::try_from(stats.total("shared_data_calls") + stats.total("queue_calls")).unwrap(),
        )
    };
    let before = calls();
    let sent = world.load(&asks, rate, Until::Elapsed(Duration::from_secs(4))).sent();
    let sent = sent.max(4 * u64::from(per_second));
    let after = calls();
    assert!(after > 0.0, "the modules do not count their calls: {world:?}");
    (after - before) / f64::from(u32::try_from(sent).unwrap())
}
