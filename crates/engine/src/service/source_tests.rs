//! Sources and carried rules, with a host in memory: what is asked, what is taken up, and what stays when it cannot be.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use sentinel_core::config::Settings;
use sentinel_wire::rules::RuleSetReader;

use super::{tests::TinyHost, *};
use crate::{carried::Carrier, document};

/// A service with this configuration, at 0 ms, which has the role.
fn service(host: &mut TinyHost, configuration: &str) -> Service {
    let node = document::configuration_text(configuration.as_bytes()).unwrap();
    let config = ServiceConfig::from_node(&node).unwrap_or_else(|refusals| panic!("{refusals}"));
    let mut service = Service::configure(host, config);
    service.tick(host);
    assert!(service.is_holder());
    service
}

/// A document of flow rules, each by its id, resource and threshold.
fn flow(rules: &[(&str, &str, i32)]) -> String {
    let rules: Vec<String> = rules
        .iter()
        .map(|(id, resource, threshold)| {
            format!("{{id: {id}, resource: {resource}, threshold: {threshold}}}")
        })
        .collect();
    format!(
        "apiVersion: datasource.sentinel.io/v1alpha1\nkind: FlowRules\nspec: {{rules: [{}]}}\n",
        rules.join(", ")
    )
}

/// The rules in force: ids and thresholds, and whether a source is still to come.
fn in_force(host: &mut TinyHost) -> (Vec<(String, u64)>, bool) {
    let mut bytes = Vec::new();
    host.load(Key::Rules, &mut bytes).unwrap();
    let (header, mut reader) = RuleSetReader::open(bytes).unwrap();
    let mut rules = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let Rule::Flow(flow) = &entry.rule else { panic!("{:?}", entry.rule) };
        rules.push((flow.id.clone(), sentinel_core::ledger::rate::whole_tokens(flow.threshold)));
    }
    rules.sort();
    (rules, header.pending)
}

fn rules(host: &mut TinyHost) -> Vec<(String, u64)> {
    in_force(host).0
}

fn named(rules: &[(&str, u64)]) -> Vec<(String, u64)> {
    rules.iter().map(|(id, threshold)| (id.to_string(), *threshold)).collect()
}

/// Answers everything that is asked now; `serve` is given path and etag.
fn answer_all(
    host: &mut TinyHost,
    service: &mut Service,
    serve: &dyn Fn(&str, &[u8]) -> Answer,
) -> Vec<String> {
    let mut asked = Vec::new();
    while let Some(fetch) = service.next_fetch(host) {
        asked.push(fetch.path.to_string());
        let (id, answer) = (fetch.id, serve(fetch.path, fetch.etag));
        service.take_answer(host, id, answer);
    }
    asked
}

fn ok(body: &str) -> Answer {
    Answer { status: 200, etag: Vec::new(), body: body.as_bytes().to_vec() }
}

const SHOP: &str = "{sources: [{name: shop, http: {cluster: config, path: /shop.yaml}}]}";
const LOCAL: &str = "{sources: [{name: local, file: {cluster: files, path: /rules/index.yaml}}]}";
const TWO: &str = "{sources: [{name: a, http: {cluster: c, path: /a}, intervalMs: 1000},
                              {name: b, http: {cluster: c, path: /b}, intervalMs: 1000}]}";

#[test]
fn a_source_is_asked_at_once_and_then_in_its_interval_and_what_it_says_is_in_force() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, SHOP);

    let serve = |_: &str, _: &[u8]| ok(&flow(&[("x", "r", 5)]));
    assert_eq!(answer_all(&mut host, &mut service, &serve), ["/shop.yaml"]);
    assert_eq!(rules(&mut host), named(&[("x", 5)]));

    assert!(answer_all(host.at_ms(1_999), &mut service, &serve).is_empty());
    let serve = |_: &str, _: &[u8]| ok(&flow(&[("x", "r", 6)]));
    assert_eq!(answer_all(host.at_ms(2_000), &mut service, &serve), ["/shop.yaml"]);
    assert_eq!(rules(&mut host), named(&[("x", 6)]));
}

#[test]
fn only_one_question_of_a_source_is_under_way() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, SHOP);

    assert!(service.next_fetch(&mut host).is_some());
    assert!(service.next_fetch(host.at_ms(60_000)).is_none());
}

#[test]
fn what_a_server_says_it_has_not_changed_is_kept_and_the_server_is_told_which_version_that_is() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, SHOP);
    let body = flow(&[("x", "r", 5)]);
    let serve = |_: &str, etag: &[u8]| match etag {
        b"\"1\"" => Answer { status: 304, ..Answer::default() },
        _ => Answer { etag: b"\"1\"".to_vec(), ..ok(&body) },
    };

    answer_all(&mut host, &mut service, &serve);
    let published = host.level(Signal::Published);
    answer_all(host.at_ms(2_000), &mut service, &serve);
    assert_eq!(host.level(Signal::Published), published);
    assert_eq!(rules(&mut host), named(&[("x", 5)]));
}

#[test]
fn until_a_source_has_been_there_its_fallback_counts_and_one_without_leaves_the_set_pending() {
    let mut host = TinyHost::new();
    let fallback = flow(&[("x", "r", 1)]).replace('\n', ", ");
    let fallback = fallback.trim_end_matches(", ");
    let yaml = format!(
        "{{sources: [{{name: a, http: {{cluster: c, path: /a}}, fallback: [{{{fallback}}}]}}, {{name: b, http: {{cluster: c, path: /b}}}}]}}"
    );
    let mut service = service(&mut host, &yaml);
    assert_eq!(in_force(&mut host), (named(&[("x", 1)]), true));

    let serve = |path: &str, _: &[u8]| match path {
        "/a" => Answer { status: 503, ..Answer::default() },
        _ => ok(&flow(&[("y", "r", 2)])),
    };
    answer_all(&mut host, &mut service, &serve);
    assert_eq!(in_force(&mut host), (named(&[("x", 1), ("y", 2)]), false));

    let serve = |_: &str, _: &[u8]| ok(&flow(&[]));
    answer_all(host.at_ms(100), &mut service, &serve);
    assert_eq!(rules(&mut host), named(&[("y", 2)]), "an answer replaces the fallback");
}

#[test]
fn a_source_that_fails_keeps_what_it_said_last() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, SHOP);
    answer_all(&mut host, &mut service, &|_, _| ok(&flow(&[("x", "r", 5)])));

    for status in [0, 404, 500] {
        host.at_ms(10_000 + 2_000 * u64::from(status));
        answer_all(&mut host, &mut service, &|_, _| Answer { status, ..Answer::default() });
        assert_eq!(rules(&mut host), named(&[("x", 5)]), "{status}");
    }
    assert_eq!(host.gauge("rules_rejected"), Some(0));
}

#[test]
fn a_bad_set_is_refused_whole_and_counted_once() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, SHOP);
    answer_all(&mut host, &mut service, &|_, _| ok(&flow(&[("x", "r", 5), ("y", "s", 5)])));

    for at_ms in [2_000, 4_000] {
        let bad = flow(&[("x", "r", 9), ("y", "s", -1)]);
        answer_all(host.at_ms(at_ms), &mut service, &|_, _| ok(&bad));
        assert_eq!(rules(&mut host), named(&[("x", 5), ("y", 5)]));
        assert_eq!(host.gauge("rules_rejected"), Some(1));
    }
    answer_all(host.at_ms(6_000), &mut service, &|_, _| ok("{"));
    assert_eq!(host.gauge("rules_rejected"), Some(2));
    answer_all(host.at_ms(8_000), &mut service, &|_, _| ok(&flow(&[("x", "r", 6)])));
    assert_eq!(rules(&mut host), named(&[("x", 6)]));
}

#[test]
fn an_index_names_files_and_a_change_counts_when_two_looks_have_seen_it() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, LOCAL);
    let serve = |threshold: i32| {
        move |path: &str, _: &[u8]| match path {
            "/rules/index.yaml" => ok("files: [a.yaml, {path: sub/b.json, kind: flow}]"),
            "/rules/a.yaml" => ok(&flow(&[("x", "r", threshold)])),
            _ => ok(r#"[{"id": "y", "resource": "s", "threshold": 2}]"#),
        }
    };
    let asked = answer_all(&mut host, &mut service, &serve(1));
    assert_eq!(asked, ["/rules/index.yaml", "/rules/a.yaml", "/rules/sub/b.json"]);
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 2)]), "the first look counts at once");

    answer_all(host.at_ms(1_000), &mut service, &serve(7));
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 2)]), "half written?");
    answer_all(host.at_ms(1_100), &mut service, &serve(8));
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 2)]), "still being written");
    answer_all(host.at_ms(1_200), &mut service, &serve(8));
    assert_eq!(rules(&mut host), named(&[("x", 8), ("y", 2)]));
}

#[test]
fn an_index_of_no_use_is_refused_once_and_changes_nothing() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, LOCAL);
    let good = |path: &str, _: &[u8]| match path {
        "/rules/index.yaml" => ok("files: [a.yaml]"),
        _ => ok(&flow(&[("x", "r", 1)])),
    };
    answer_all(&mut host, &mut service, &good);

    for at_ms in [1_000, 2_000] {
        answer_all(host.at_ms(at_ms), &mut service, &|_, _| ok("files: [a b.yaml, {pth: c}]"));
        assert_eq!(host.gauge("rules_rejected"), Some(1));
    }
    let missing = |path: &str, _: &[u8]| match path {
        "/rules/index.yaml" => ok("files: [a.yaml, gone.yaml]"),
        "/rules/gone.yaml" => Answer { status: 404, ..Answer::default() },
        _ => ok(&flow(&[("x", "r", 2)])),
    };
    answer_all(host.at_ms(3_000), &mut service, &missing);
    answer_all(host.at_ms(4_000), &mut service, &missing);
    assert_eq!(rules(&mut host), named(&[("x", 1)]));
}

#[test]
fn sources_that_clash_are_mended_in_either_of_them_and_hold_up_nobody_else() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, TWO);
    let serve = |a: &'static str, b: &'static str| {
        move |path: &str, _: &[u8]| match path {
            "/a" => ok(&flow(&[(a, "r", 1)])),
            _ => ok(&flow(&[(b, "s", 1)])),
        }
    };
    answer_all(&mut host, &mut service, &serve("x", "y"));
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 1)]));

    answer_all(host.at_ms(1_000), &mut service, &serve("y", "y"));
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 1)]));
    assert_eq!(host.gauge("rules_rejected"), Some(1));

    answer_all(host.at_ms(2_000), &mut service, &serve("y", "z"));
    assert_eq!(rules(&mut host), named(&[("y", 1), ("z", 1)]), "what was refused is tried again");
    assert_eq!(host.gauge("rules_rejected"), Some(1));
}

#[test]
fn a_source_that_stays_bad_does_not_hold_up_the_other() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, TWO);
    let serve = |a: &'static str, b: i32| {
        move |path: &str, _: &[u8]| match path {
            "/a" => ok(&flow(&[(a, "r", 1)])),
            _ => ok(&flow(&[("y", "s", b)])),
        }
    };
    answer_all(&mut host, &mut service, &serve("x", 1));
    answer_all(host.at_ms(1_000), &mut service, &serve("y", 1));
    answer_all(host.at_ms(2_000), &mut service, &serve("y", 2));
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 2)]));
}

#[test]
fn a_revived_service_goes_on_with_what_the_last_one_fetched() {
    let mut host = TinyHost::new();
    let mut first = service(&mut host, TWO);
    let serve = |path: &str, _: &[u8]| match path {
        "/a" => Answer { etag: b"\"7\"".to_vec(), ..ok(&flow(&[("x", "r", 1)])) },
        _ => ok(&flow(&[("y", "s", 1)])),
    };
    answer_all(&mut host, &mut first, &serve);
    drop(first);

    // The first one's heartbeat has to be old.
    host.at_ms(5_000);
    let mut second = service(&mut host, TWO);
    assert_eq!(in_force(&mut host), (named(&[("x", 1), ("y", 1)]), false));
    let serve = |path: &str, etag: &[u8]| match path {
        "/a" if etag == b"\"7\"" => Answer { status: 304, ..Answer::default() },
        _ => ok(&flow(&[("y", "s", 2)])),
    };
    answer_all(&mut host, &mut second, &serve);
    assert_eq!(rules(&mut host), named(&[("x", 1), ("y", 2)]));
}

#[test]
fn settings_hold_before_the_first_rules_and_a_set_without_sources_is_never_pending() {
    let mut host = TinyHost::new();
    let _service = service(
        &mut host,
        "{sources: [{name: a, http: {cluster: c, path: /a}}], settings: {beforeFirstRules: block}}",
    );
    let mut bytes = Vec::new();
    host.load(Key::Rules, &mut bytes).unwrap();
    let (header, _) = RuleSetReader::open(bytes).unwrap();
    assert!(header.pending);
    assert_ne!(header.settings, Settings::DEFAULT);

    let mut host = TinyHost::new();
    let _service = service(&mut host, "{}");
    assert!(!in_force(&mut host).1);
}

fn carrying(rules: &[(&str, &str, i32)]) -> Vec<u8> {
    let indented = flow(rules).replace('\n', "\n  ");
    format!("rules:\n- {}\n", indented.trim_end()).into_bytes()
}

/// The service has been woken.
fn woken(host: &mut TinyHost, service: &mut Service) {
    service.take_frame(host);
}

#[test]
fn a_filter_s_rules_come_with_its_first_tick_and_leave_with_its_last_root() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, "{}");
    let (mut one, mut other) = (Carrier::new(&mut host), Carrier::new(&mut host));
    for carrier in [&mut one, &mut other] {
        carrier.take(2, "edge".to_string(), carrying(&[("x", "r", 5)]));
    }
    woken(&mut host, &mut service);
    assert!(rules(&mut host).is_empty(), "nothing before the first tick");

    one.tick(&mut host);
    other.tick(&mut host);
    woken(&mut host, &mut service);
    assert_eq!(rules(&mut host), named(&[("x", 5)]));

    one.leave(&mut host, 2);
    woken(&mut host, &mut service);
    assert_eq!(rules(&mut host), named(&[("x", 5)]), "another VM carries them still");

    other.leave(&mut host, 2);
    woken(&mut host, &mut service);
    assert!(rules(&mut host).is_empty());
}

#[test]
fn beside_a_draining_listener_the_newer_rules_count_rule_by_rule() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, "{}");
    let mut carrier = Carrier::new(&mut host);
    carrier.take(2, "edge".to_string(), carrying(&[("x", "r", 5), ("old", "s", 1)]));
    carrier.tick(&mut host);
    carrier.take(3, "edge".to_string(), carrying(&[("x", "r", 9), ("new", "t", 2)]));
    carrier.tick(host.at_ms(10));
    woken(&mut host, &mut service);
    assert_eq!(rules(&mut host), named(&[("new", 2), ("old", 1), ("x", 9)]));
    assert_eq!(host.gauge("rules_rejected"), Some(0));

    // Envoy goes back to the first configuration while its root still lives.
    carrier.take(2, "edge".to_string(), carrying(&[("x", "r", 5), ("old", "s", 1)]));
    carrier.tick(host.at_ms(20));
    woken(&mut host, &mut service);
    assert_eq!(rules(&mut host), named(&[("new", 2), ("old", 1), ("x", 5)]));

    carrier.leave(&mut host, 3);
    woken(&mut host, &mut service);
    assert_eq!(rules(&mut host), named(&[("old", 1), ("x", 5)]));
}

#[test]
fn plugins_of_different_names_must_not_clash() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, "{}");
    let mut carrier = Carrier::new(&mut host);
    carrier.take(2, "edge".to_string(), carrying(&[("x", "r", 5)]));
    carrier.tick(&mut host);
    woken(&mut host, &mut service);
    carrier.take(3, "mesh".to_string(), carrying(&[("x", "r", 9)]));
    carrier.tick(host.at_ms(10));
    woken(&mut host, &mut service);

    assert_eq!(rules(&mut host), named(&[("x", 5)]));
    assert_eq!(host.gauge("rules_rejected"), Some(1));
}

#[test]
fn what_nobody_shows_to_carry_leaves_after_half_a_minute_of_the_service_s_own_time() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, "{}");
    let mut carrier = Carrier::new(&mut host);
    carrier.take(2, "edge".to_string(), carrying(&[("x", "r", 5)]));
    carrier.tick(&mut host);
    woken(&mut host, &mut service);

    // A process that was stopped for an hour finds the sign of life old, and the VM alive.
    host.at_ms(3_600_000);
    service.tick(&mut host);
    assert_eq!(rules(&mut host), named(&[("x", 5)]));
    carrier.tick(&mut host);

    // A VM that trapped never comes back with this incarnation.
    drop(carrier);
    for second in 1..=40 {
        service.tick(host.at_ms(3_600_000 + second * 1_000));
    }
    assert!(rules(&mut host).is_empty());
}

#[test]
fn what_one_vm_has_compiled_no_other_needs_to() {
    let mut host = TinyHost::new();
    let (mut one, mut other) = (Carrier::new(&mut host), Carrier::new(&mut host));
    let configurations: Vec<Vec<u8>> = (0..20).map(|n| carrying(&[("x", "r", n)])).collect();
    for configuration in &configurations {
        assert!(!other.is_checked(&mut host, configuration));
        one.note_checked(&mut host, configuration);
        assert!(other.is_checked(&mut host, configuration));
    }
    assert!(!other.is_checked(&mut host, &configurations[0]), "the last sixteen");
}

#[test]
fn more_configurations_than_there_is_room_for_are_left_out() {
    let mut host = TinyHost::new();
    let mut service = service(&mut host, "{}");
    let mut carrier = Carrier::new(&mut host);
    for n in 0..65 {
        let id = format!("r{n}");
        carrier.take(n, format!("plugin{n}"), carrying(&[(id.as_str(), "r", 1)]));
    }
    carrier.tick(&mut host);
    woken(&mut host, &mut service);
    assert_eq!(rules(&mut host).len(), 64);
}
