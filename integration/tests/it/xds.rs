//! Rules in the filter's own configuration, as listeners (LDS) or the filter alone (ECDS) carry them.

use std::time::Duration;

use sentinel_integration::bootstrap::at;
use sentinel_integration::client::{self, Client};
use sentinel_integration::clock;
use sentinel_integration::envoy::DRAIN;
use sentinel_integration::load::{Ask, Rate};
use sentinel_integration::xds;
use serde_json::{Value, json};

use crate::exact;
use crate::world::{ByXds, IN_A_ROW, Setup, World, document};

const IN_LISTENER: &str =
    "/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config";
const IN_FILTER: &str = "/typed_config/config";

/// The listener or the filter, with these flow rules in the filter's configuration, each `id`, path and threshold.
fn with_rules(world: &World, what: ByXds, rules: &[(&str, &str, u32)]) -> Value {
    let texts: Vec<_> = rules
        .iter()
        .map(|(id, path, threshold)| {
            format!("{{id: {id}, resource: 'GET:{path}', threshold: {threshold}}}")
        })
        .collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let mut resource = world.resource();
    let place = match what {
        ByXds::Listener => IN_LISTENER,
        ByXds::Filter => IN_FILTER,
    };
    let configuration = at(&mut resource, &format!("{place}/configuration/value")).unwrap();
    configuration["rules"] = json!([document("FlowRules", &texts)]);
    resource
}

fn check_life(what: ByXds) {
    let world = Setup::with_rules(&["{id: inline, resource: 'GET:/inline', threshold: 0}"])
        .by_xds(what)
        .start();
    let publish = |rules: &[(&str, &str, u32)]| {
        if rules.is_empty() {
            world.publish(&[world.resource()]);
        } else {
            world.publish(&[with_rules(&world, what, rules)]);
        }
    };
    let asks = ["/inline", "/a", "/b", "/free"].map(Ask::get);
    let (report, own) = world.while_loading(&asks, Rate::PerSecond(1000), || {
        let mut own = 0;
        let mut becomes = |path: &str, status: u16, patience: Duration| {
            clock::wait_for(&format!("{status} for {path}"), patience, || {
                let mut answers = (0..IN_A_ROW).map(|_| {
                    own += 1;
                    world.get(path).status
                });
                Ok(answers.all(|answer| answer == status).then_some(()))
            })
            .unwrap_or_else(|error| panic!("{error:#}; {world:?}"));
        };
        publish(&[("a", "/a", 0)]);
        becomes("/a", 429, SOON);
        publish(&[("a", "/b", 0), ("free", "/free", 1_000_000)]);
        becomes("/b", 429, SOON);
        becomes("/a", 200, SOON);
        publish(&[]);
        let left = clock::now();
        // What a listener carries leaves when it has drained, what a filter by ECDS carries at once.
        let patience = if what == ByXds::Listener { DRAIN + SOON } else { SOON };
        becomes("/b", 200, patience);
        println!("{what:?}: the rules left after {:?}", clock::now() - left);
        becomes("/inline", 429, SOON);
        own
    });

    let seen = |path: &str| &report.asks[&format!("GET:{path}")];
    assert_eq!(seen("/inline").status(429), seen("/inline").sent());
    assert_eq!(seen("/free").status(200), seen("/free").sent());
    assert!(seen("/a").status(429) > 0 && seen("/b").status(429) > 0);
    world.stats_when("every request to be counted once", |stats| {
        stats.total("pass_total") + stats.total("block_total") == report.sent() + own
    });
    assert_eq!(world.stats().total("rules_rejected"), 0);
    world.assert_nothing_trapped();
}

#[test]
fn a_filter_with_rules_is_added_changed_and_removed_by_lds_while_traffic_flows() {
    check_life(ByXds::Listener);
}

#[test]
fn a_filter_with_rules_is_added_changed_and_removed_by_ecds_while_traffic_flows() {
    check_life(ByXds::Filter);
}

#[test]
fn with_the_filter_itself_its_rules_leave() {
    let world = Setup::new().by_xds(ByXds::Filter).start();
    world.publish(&[with_rules(&world, ByXds::Filter, &[("a", "/a", 0), ("b", "/b", 0)])]);
    world.becomes("/a", 429);
    world.printed("is in force: 2 rules");

    world.publish(&[xds::no_filter()]);
    world.becomes("/a", 200);
    world.printed("is in force: 0 rules");

    world.publish(&[with_rules(&world, ByXds::Filter, &[("b", "/a", 0)])]);
    world.becomes("/a", 429);
    world.becomes("/b", 200);
    world.assert_nothing_trapped();
}

#[test]
fn a_listener_that_drains_and_its_successor_keep_one_limit_and_the_newer_says_which() {
    let world = Setup::new().by_xds(ByXds::Listener).start();
    let first = with_rules(&world, ByXds::Listener, &[("a", "/a", 200), ("old", "/old", 0)]);
    world.publish(&[first]);
    world.becomes("/old", 429);
    let mut old = Client::connect(world.proxy()).unwrap();
    assert_eq!(old.get("/free").unwrap().status, 200);
    let _ = world.upstream.take();

    let (report, drained) = world.while_loading(&[Ask::get("/a")], Rate::PerSecond(3000), || {
        clock::pause(Duration::from_secs(2));
        let second = with_rules(&world, ByXds::Listener, &[("a", "/a", 200), ("new", "/new", 0)]);
        world.publish(&[second]);
        let replaced = clock::now();
        world.becomes("/new", 429);
        // While the old one lives, what it alone says still holds, for both.
        assert_eq!(world.get("/old").status, 429);
        assert_eq!(old.get("/old").unwrap().status, 429);
        assert_eq!(old.get("/new").unwrap().status, 429);
        clock::wait_for("the old listener to leave", DRAIN + SOON, || {
            Ok((world.get("/old").status == 200).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}; {world:?}"));
        let drained = clock::now() - replaced;
        clock::pause(Duration::from_secs(1));
        drained
    });

    println!("the old listener's rules left after {drained:?}");
    assert!(drained + Duration::from_secs(1) > DRAIN, "it left while it drained: {drained:?}");
    let arrivals = &world.upstream.take()["GET:/a"];
    exact::assert_exact(1000, 200, arrivals, &report.asks["GET:/a"].answered, report.span_ns);
    assert_eq!(world.get("/new").status, 429);
    world.assert_nothing_trapped();
}

#[test]
fn an_update_with_a_bad_rule_is_rejected_by_envoy_and_publishes_nothing() {
    for (what, rejected) in [
        (ByXds::Listener, "listener_manager.lds.update_rejected"),
        (ByXds::Filter, ".update_rejected"),
    ] {
        let world = Setup::new().by_xds(what).start();
        world.publish(&[with_rules(&world, what, &[("a", "/a", 0)])]);
        world.becomes("/a", 429);
        let sets = || world.envoy.log_lines("is in force").unwrap();
        let before = sets();

        let mut bad = with_rules(&world, what, &[("a", "/b", 0), ("bad", "/b", 0)]);
        let place = if what == ByXds::Listener { IN_LISTENER } else { IN_FILTER };
        let rules = at(&mut bad, &format!("{place}/configuration/value/rules/0/spec/rules"));
        rules.unwrap()[1]["threshold"] = json!(-1);
        world.publish(&[bad]);
        world.stats_when("the rejection", |stats| stats.sum("", rejected) >= 1);
        let said = world.printed("must be 0 or more").concat();
        assert!(said.contains("`threshold` is -1") && said.contains("bad"), "{said}");
        clock::pause(Duration::from_secs(1));

        assert_eq!(world.get("/a").status, 429);
        assert_eq!(world.get("/b").status, 200);
        assert_eq!(sets(), before);
        world.stats_when("the rejection to be counted", |stats| stats.total("rules_rejected") >= 1);

        world.publish(&[with_rules(&world, what, &[("a", "/b", 0)])]);
        world.becomes("/b", 429);
        world.becomes("/a", 200);
        world.assert_nothing_trapped();
    }
}

#[test]
fn plugins_of_two_names_may_not_use_one_id_and_what_is_in_force_stays() {
    let world = Setup::new().by_xds(ByXds::Listener).start();
    let ours = with_rules(&world, ByXds::Listener, &[("one", "/one", 0)]);
    let other = |rules: &[(&str, &str, u32)]| {
        let mut other = with_rules(&world, ByXds::Listener, rules);
        other["name"] = json!("other");
        *at(&mut other, &format!("{IN_LISTENER}/name")).unwrap() = json!("sentinel_other");
        other
    };
    world.publish(std::slice::from_ref(&ours));
    world.becomes("/one", 429);

    world.publish(&[ours.clone(), other(&[("one", "/two", 0)])]);
    world.stats_when("a rejection", |stats| stats.total("rules_rejected") >= 1);
    let said = world.printed("rules refused").concat();
    assert!(said.contains("sentinel_filter") && said.contains("sentinel_other"), "{said}");
    let listener = world.when("the other listener", || world.envoy.listener("other").ok());
    assert_eq!(client::get(listener, "/one").unwrap().status, 429, "one set for all listeners");
    assert_eq!(client::get(listener, "/two").unwrap().status, 200);

    world.publish(&[ours, other(&[("two", "/two", 0)])]);
    world.becomes("/two", 429);
    assert_eq!(world.get("/one").status, 429);
    world.assert_nothing_trapped();
}

/// How soon a change that nothing drains for must be there.
const SOON: Duration = Duration::from_secs(10);
