//! Several rules on one resource: a request spends the budget of all of them, or of none.

use sentinel_integration::accuracy::wait_for_bucket;
use sentinel_integration::load::Ask;
use sentinel_integration::upstream;
use sentinel_integration::windows::Shape;

use crate::exact;
use crate::world::Setup;

#[test]
fn what_the_short_rule_refuses_does_not_eat_the_budget_of_the_long_one() {
    let world = Setup::with_rules(&[
        "{id: short, resource: 'GET:/both', threshold: 10}",
        "{id: long, resource: 'GET:/both', threshold: 60, statIntervalInMs: 20000}",
    ])
    .start();

    wait_for_bucket(Shape::of(20_000));
    let report = world.flood(&[Ask::get("/both")], 400, 21);
    let arrivals = upstream::only(world.upstream.take()).unwrap();

    let long = Shape::of(20_000).count(&arrivals, report.span_ns.clone());
    assert!(long.never_over(60) && long.least_possible() >= Some(60), "{:?}", long.all());
    let short = Shape::of(1000).count(&arrivals, report.span_ns);
    assert!(short.never_over(10), "{:?}", short.all());
    // 60 in portions of 10 take six seconds; two seconds at least they take whatever the blur.
    assert!(short.full().filter(|count| count.admitted > 0).count() >= 6, "{:?}", short.all());
}

#[test]
fn three_rules_whose_leases_are_held_crosswise_admit_what_they_allow() {
    let world = Setup::with_rules(&[
        "{id: a, resource: 'GET:/three', threshold: 3}",
        "{id: b, resource: 'GET:/three', threshold: 3}",
        "{id: c, resource: 'GET:/three', threshold: 3}",
    ])
    .workers(8)
    .start();

    let report = world.flood(&[Ask::get("/three")], 800, 6);
    let arrivals = upstream::only(world.upstream.take()).unwrap();

    exact::assert_exact(1000, 3, &arrivals, &report.asks["GET:/three"].answered, report.span_ns);
}
