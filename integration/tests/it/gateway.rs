//! Gateway rules: groups of paths, and values of a request that count in them.

use std::time::Duration;

use sentinel_integration::clock;
use sentinel_integration::load::Ask;
use sentinel_integration::upstream::Behaviour;

use crate::hotspot::statuses;
use crate::world::{Setup, World};

#[test]
fn the_paths_of_an_api_group_share_one_limit_and_others_are_free() {
    let group = |name: &str, predicates: &str| {
        format!("{{apiName: {name}, predicateItems: [{predicates}]}}")
    };
    let rule = |group: &str, count: u32| {
        format!(
            "{{id: {group}, resource: {group}, resourceMode: 1, count: {count}, intervalSec: 3600}}"
        )
    };
    let groups = [
        group("exact", "{pattern: /exact, matchStrategy: 0}, {pattern: /also, matchStrategy: 0}"),
        group(
            "ant",
            "{pattern: '/shop/**', matchStrategy: 1}, {pattern: '/a/?/*.html', matchStrategy: 1}",
        ),
        group("regex", "{pattern: '/v[0-9]+/.*', matchStrategy: 2}"),
    ];
    let rules = [rule("exact", 3), rule("ant", 5), rule("regex", 4)];
    let world = Setup::new()
        .rules("ApiDefinitions", &groups.each_ref().map(String::as_str))
        .rules("GatewayFlowRules", &rules.each_ref().map(String::as_str))
        .start();
    let admitted = |paths: &[&str]| {
        let answers = paths.iter().flat_map(|path| statuses(&world, path, &[], 3));
        answers.filter(|status| *status == 200).count()
    };

    assert_eq!(admitted(&["/exact", "/also?x=y", "/exact"]), 3);
    assert_eq!(admitted(&["/shop/a", "/shop/b/c", "/a/b/c.html"]), 5);
    assert_eq!(admitted(&["/v1/a", "/v22/b?c"]), 4);
    assert_eq!(admitted(&["/exact/more", "/a/bb/c.html", "/v/1", "/other"]), 12);

    let answer = world.get("/exact");
    assert_eq!((answer.status, answer.header("x-sentinel-block")), (429, Some("FlowControl")));
    assert_eq!(answer.header("x-sentinel-rule"), Some("exact"));
    world.assert_nothing_trapped();
}

#[test]
fn every_parse_and_match_strategy_counts_the_values_it_should() {
    let rule = |id: &str, item: &str| {
        format!(
            "{{id: {id}, resource: 'GET:/{id}', resourceMode: 0, count: 2, intervalSec: 3600, paramItem: {{{item}}}}}"
        )
    };
    let rules = [
        rule("ip", "parseStrategy: 0"),
        rule("host", "parseStrategy: 1"),
        rule("header", "parseStrategy: 2, fieldName: X-User"),
        rule("url", "parseStrategy: 3, fieldName: user"),
        rule("cookie", "parseStrategy: 4, fieldName: sid"),
        rule("exact", "parseStrategy: 2, fieldName: x-user, pattern: abc, matchStrategy: 0"),
        rule("prefix", "parseStrategy: 2, fieldName: x-user, pattern: abc, matchStrategy: 1"),
        rule("regex", "parseStrategy: 2, fieldName: x-user, pattern: 'a.c', matchStrategy: 2"),
        rule("contains", "parseStrategy: 2, fieldName: x-user, pattern: abc, matchStrategy: 3"),
    ];
    let world =
        Setup::new().rules("GatewayFlowRules", &rules.each_ref().map(String::as_str)).start();
    let admitted = |path: &str, name: &str, value: &str| {
        let statuses = statuses(&world, path, &[(name, value)], 4);
        statuses.iter().filter(|status| **status == 200).count()
    };

    assert_eq!(admitted("/ip", "x-nothing", "1"), 2);
    for (path, name) in [("/host", "host"), ("/header", "x-user")] {
        assert_eq!([admitted(path, name, "a"), admitted(path, name, "b")], [2, 2], "{path}");
        assert_eq!(admitted(path, name, "a"), 0, "{path}");
    }
    assert_eq!([admitted("/url?user=a", "x-n", "1"), admitted("/url?user=b", "x-n", "1")], [2, 2]);
    assert_eq!(admitted("/cookie", "cookie", "sid=a"), 2);
    assert_eq!(admitted("/cookie", "cookie", "sid=b"), 2);
    // Without the value the rule is skipped.
    for path in ["/header", "/url", "/cookie"] {
        assert_eq!(admitted(path, "x-nothing", "1"), 4, "{path}");
    }

    // What the pattern does not match passes.
    for (path, matching, other) in [
        ("/exact", ["abc", "abc"], "abcd"),
        ("/prefix", ["abc", "abcd"], "xabc"),
        ("/regex", ["abc", "axc"], "abcd"),
        ("/contains", ["xabcx", "abc"], "axc"),
    ] {
        assert_eq!(
            matching.map(|value| admitted(path, "x-user", value)).iter().max(),
            Some(&2),
            "{path}"
        );
        assert_eq!(admitted(path, "x-user", matching[0]), 0, "{path}");
        assert_eq!(admitted(path, "x-user", other), 4, "{path}");
    }
    world.assert_nothing_trapped();
}

#[test]
fn interval_burst_pace_and_concurrency_hold() {
    let world = Setup::new()
        .rules(
            "GatewayFlowRules",
            &[
                "{id: burst, resource: 'GET:/burst', count: 4, intervalSec: 2, burst: 3}",
                "{id: pace, resource: 'GET:/pace', count: 5, intervalSec: 1, controlBehavior: 2, maxQueueingTimeoutMs: 450}",
                "{id: held, resource: 'GET:/held', count: 6, grade: 0}",
            ],
        )
        .start();
    let admitted = |world: &World| {
        statuses(world, "/burst", &[], 10).iter().filter(|status| **status == 200).count()
    };

    let first = admitted(&world);
    clock::pause(Duration::from_millis(2050));
    assert_eq!([first, admitted(&world)], [7, 4]);

    let mut paced: Vec<_> = (0..4).map(|_| world.hang("/pace", &[])).collect();
    let mut statuses: Vec<_> =
        paced.iter_mut().map(|one| one.status(Duration::from_secs(5)).unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 429]);

    world.upstream.behave("GET:/held", Behaviour::default().after_ms(20));
    let report = world.flood(&[Ask::get("/held")], 1500, 3);
    assert_eq!(world.upstream.open("GET:/held").most, 6);
    assert!(report.asks["GET:/held"].by_rule["held"] > 0);
    world.assert_nothing_trapped();
}
