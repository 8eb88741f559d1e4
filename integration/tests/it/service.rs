//! The service fails, or is not there: limits hold, and everybody can see it.

use std::time::Duration;

use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate, Until};
use sentinel_integration::upstream;

use crate::exact;
use crate::world::{Setup, World};

#[test]
fn a_trapped_service_comes_back_through_the_stats_sink_and_no_request_is_lost_from_the_totals() {
    let world = Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 100}"])
        .with_faults()
        .start();
    let sent_before = world.flood(&[Ask::get("/limited"), Ask::get("/free")], 1000, 2).sent();

    trap_the_service(&world);
    let sent_silent = world.flood(&[Ask::get("/limited"), Ask::get("/free")], 1000, 3).sent();
    world.stats_when("the service's revival", |stats| {
        stats.sum("wasm.sentinel_service.", ".vm_reload_success") >= 1
    });
    world.stats_when("a heartbeat", |stats| stats.total("service_heartbeat_age_ms") < 2500);
    let sent_after = world.flood(&[Ask::get("/limited"), Ask::get("/free")], 1000, 2).sent();

    let sent = sent_before + 1 + sent_silent + sent_after;
    world.stats_when("whole totals", |stats| {
        stats.total("pass_total") + stats.total("block_total") == sent
    });
}

#[test]
fn without_the_service_limits_in_force_stay_exact_and_memory_does_not_grow() {
    let mut setup =
        Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 100}"]).with_faults();
    setup.revived = false;
    let world = setup.start();
    world.flood(&[Ask::get("/limited"), Ask::get("/free")], 2000, 2);
    trap_the_service(&world);
    world.stats_when("the heartbeat's age to grow", |stats| {
        stats.total("service_heartbeat_age_ms") > 3000
    });
    world.printed("heartbeat");
    let _ = world.upstream.take();

    let memory_before = world.envoy.memory_bytes().unwrap();
    let report = world.flood(&[Ask::get("/limited")], 2000, 10);
    let memory_after = world.envoy.memory_bytes().unwrap();

    let arrivals = upstream::only(world.upstream.take()).unwrap();
    let answered = &report.asks["GET:/limited"].answered;
    exact::assert_exact(1000, 100, &arrivals, answered, report.span_ns);
    let grown = memory_after.saturating_sub(memory_before);
    assert!(grown < 8 << 20, "Envoy grew by {grown} bytes while nobody drained its queue");
    assert!(world.stats().total("service_heartbeat_age_ms") > 10_000, "{world:?}");
}

#[test]
fn without_any_service_configured_everything_passes_and_it_is_said_once() {
    let world = Setup::with_rules(&["{id: limit, resource: 'GET:/limited', threshold: 0}"])
        .service(None)
        .start();

    let report = world.load(&[Ask::get("/limited")], Rate::PerSecond(1000), Until::Sent(2000));

    assert_eq!(report.status(200), 2000);
    world.stats_when("service_missing", |stats| stats.total("service_missing") == 1);
    assert_eq!(world.printed("no service").len(), 1);
    world.assert_nothing_trapped();
}

/// Sends the request that makes the service of a faults build trap, and waits until it has.
pub(crate) fn trap_the_service(world: &World) {
    let answer = world.client().send("GET", "/fault", &[("x-sentinel-fault", "service")]).unwrap();
    assert_eq!(answer.status, 200);
    clock::wait_for("the service to trap", Duration::from_secs(10), || {
        Ok(world.envoy.log_lines("panicked")?.into_iter().next())
    })
    .unwrap();
}
