use std::{fs, path::Path};

use expect_test::{Expect, expect};

use super::*;

/// What is said of a request under `rules`.
#[track_caller]
fn said(rules: &str, filter: Option<&str>, mut options: Options) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), rules).unwrap();
    options.rules = vec![folder.path().to_owned()];
    options.filter = filter.map(|text| {
        let path = folder.path().join("filter.yml.txt");
        fs::write(&path, text).unwrap();
        path
    });
    let mut out = Vec::new();
    let could = explain(&options, &mut out).unwrap();
    let said = String::from_utf8(out).unwrap();
    (could, said.replace(&format!("{}/", folder.path().display()), ""))
}

#[track_caller]
fn check(rules: &str, request: &str, headers: &[&str], expected: &Expect) {
    let options = Options {
        request: request.to_owned(),
        headers: headers.iter().map(|header| (*header).to_owned()).collect(),
        ..Options::default()
    };
    let (could, text) = said(rules, None, options);
    expected.assert_eq(&text);
    assert!(could);
}

fn document(kind: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: datasource.sentinel.io/v1alpha1\nkind: {kind}\nspec:\n  rules:\n{rules}"
    )
}

/// Rules of every kind on one resource.
fn every_kind() -> String {
    [
        document(
            "AuthorityRules",
            "  - {id: known, resource: 'GET:/pay', limitApp: 'shop,app'}\n",
        ),
        document(
            "SystemRules",
            "  - {id: cpu, metricType: CpuUsage, triggerCount: 80}\n  - {id: all, metricType: InboundQPS, triggerCount: 100}\n",
        ),
        document(
            "ApiDefinitions",
            "  - {apiName: money, predicateItems: [{pattern: '/p*', matchStrategy: Prefix}]}
  - {apiName: other, predicateItems: [{pattern: /other}]}
",
        ),
        document(
            "GatewayFlowRules",
            "  - {id: money, resource: money, resourceMode: ApiGroup, count: 10}
  - {id: other, resource: other, resourceMode: ApiGroup, count: 0}
  - {id: money-by-team, resource: money, resourceMode: ApiGroup, count: 5, paramItem: {parseStrategy: Header, fieldName: x-team, pattern: team-, matchStrategy: Prefix}}
",
        ),
        document(
            "FlowRules",
            "  - {id: paced, resource: 'GET:/pay', threshold: 5, controlBehavior: Throttling, maxQueueingTimeMs: 100}
  - {id: ten, resource: 'GET:/pay', threshold: 10}
  - {id: of-shop, resource: 'GET:/pay', threshold: 3, limitApp: shop}
  - {id: of-pub, resource: 'GET:/pay', threshold: 3, limitApp: pub}
  - {id: of-others, resource: 'GET:/pay', threshold: 3, limitApp: other}
  - {id: while-idle, resource: 'GET:/pay', threshold: 3, relationStrategy: AssociatedResource, refResource: 'GET:/idle'}
  - {id: elsewhere, resource: 'GET:/cart', threshold: 0}
  - {id: matching, resource: 'GET:/p[a-z]+', regex: true, threshold: 7}
  - {id: default, resource: '*', threshold: 0}
",
        ),
        document("IsolationRules", "  - {id: each, resource: '*', threshold: 2}\n"),
        document(
            "HotspotRules",
            "  - {id: by-user, resource: 'GET:/pay', metricType: QPS, paramKey: 'header:x-user', threshold: 5, durationInSec: 1, specificItems: [{valKind: KindInt, valStr: '7', threshold: 1}]}
  - {id: by-page, resource: 'GET:/pay', metricType: Concurrency, paramIndex: 1, threshold: 5}
  - {id: by-address, resource: 'GET:/pay', metricType: Concurrency, paramKey: client_ip, threshold: 5}
  - {id: by-nothing, resource: 'GET:/pay', metricType: Concurrency, paramIndex: 5, threshold: 5}
",
        ),
        document(
            "CircuitBreakerRules",
            "  - {id: failing, resource: 'GET:/pay', strategy: ErrorRatio, threshold: 50, retryTimeoutMs: 1000, statIntervalMs: 1000}\n",
        ),
    ]
    .concat()
}

#[test]
fn every_rule_that_looks_says_what_it_thinks_and_the_others_why_they_do_not() {
    check(
        &every_kind(),
        "GET /pay?page=3",
        &["x-origin: shop", "X-User: 7", "x-team: red"],
        &expect![[r#"
            GET /pay?page=3

            resource  GET:/pay (named by method_path, envoy/envoy.yaml)
            groups    money
            caller    shop (header x-origin)

            What rules say to it, in the order in which they are checked, each by itself and from empty state:
            ┌────────────┬───────────┬────────────────────────────────┬───────────────────────────────┬────────┐
            │ rule       ┆ kind      ┆ limit                          ┆ counts                        ┆ says   │
            ╞════════════╪═══════════╪════════════════════════════════╪═══════════════════════════════╪════════╡
            │ known      ┆ authority ┆ only shop, app                 ┆                               ┆ passes │
            │ all        ┆ system    ┆ 100 a second, all together     ┆                               ┆ passes │
            │ cpu        ┆ system    ┆ while the CPU is at most 0.8   ┆                               ┆ passes │
            │ money      ┆ gateway   ┆ 10 in 1 s                      ┆                               ┆ passes │
            │ matching   ┆ flow      ┆ 7 in 1 s                       ┆ resource "GET:/pay"           ┆ passes │
            │ of-shop    ┆ flow      ┆ 3 in 1 s, for shop             ┆                               ┆ passes │
            │ paced      ┆ flow      ┆ 5 in 1 s, evenly, waiting up   ┆                               ┆ passes │
            │            ┆           ┆ to 100 ms                      ┆                               ┆        │
            │ ten        ┆ flow      ┆ 10 in 1 s                      ┆                               ┆ passes │
            │ while-idle ┆ flow      ┆ 3 in 1 s, of GET:/idle         ┆                               ┆ passes │
            │ each       ┆ isolation ┆ 2 at a time                    ┆ resource "GET:/pay"           ┆ passes │
            │ by-page    ┆ hotspot   ┆ 5 at a time, for each value of ┆ args[1] (query:page) "3"      ┆ passes │
            │            ┆           ┆ args[1]                        ┆                               ┆        │
            │ by-user    ┆ hotspot   ┆ 5 in 1 s, for each value of    ┆ header:x-user "7", which may  ┆ passes │
            │            ┆           ┆ header:x-user, 1 value apart   ┆ have 1                        ┆        │
            │ failing    ┆ breaker   ┆ none while, of 0 or more in 1  ┆                               ┆ passes │
            │            ┆           ┆ s, 0.5 of them fail; a probe   ┆                               ┆        │
            │            ┆           ┆ after 1 s                      ┆                               ┆        │
            └────────────┴───────────┴────────────────────────────────┴───────────────────────────────┴────────┘

            Rules of the resource that do not look at it:
              money-by-team (5 in 1 s, for each value of header:x-team that matches team-): the value "red" of header:x-team does not match its pattern
              of-others (3 in 1 s, for each caller that no other rule names): it is about callers that no other rule names, and of-shop names "shop"
              of-pub (3 in 1 s, for pub): it is about the caller "pub", and "shop" calls
              by-address (5 at a time, for each value of client_ip): it counts client_ip: say the client's address with `--client-ip`
              by-nothing (5 at a time, for each value of args[5]): it counts args[5], but the filter has 2 of `args`

            It passes.
        "#]],
    );
    check(
        &every_kind(),
        "GET /pay",
        &[],
        &expect![[r#"
            GET /pay

            resource  GET:/pay (named by method_path, envoy/envoy.yaml)
            groups    money
            caller    nobody knows (header x-origin)

            What rules say to it, in the order in which they are checked, each by itself and from empty state:
            ┌────────────┬───────────┬──────────────────────────────────────────┬─────────────────────┬────────┐
            │ rule       ┆ kind      ┆ limit                                    ┆ counts              ┆ says   │
            ╞════════════╪═══════════╪══════════════════════════════════════════╪═════════════════════╪════════╡
            │ known      ┆ authority ┆ only shop, app                           ┆                     ┆ passes │
            │ all        ┆ system    ┆ 100 a second, all together               ┆                     ┆ passes │
            │ cpu        ┆ system    ┆ while the CPU is at most 0.8             ┆                     ┆ passes │
            │ money      ┆ gateway   ┆ 10 in 1 s                                ┆                     ┆ passes │
            │ matching   ┆ flow      ┆ 7 in 1 s                                 ┆ resource "GET:/pay" ┆ passes │
            │ paced      ┆ flow      ┆ 5 in 1 s, evenly, waiting up to 100 ms   ┆                     ┆ passes │
            │ ten        ┆ flow      ┆ 10 in 1 s                                ┆                     ┆ passes │
            │ while-idle ┆ flow      ┆ 3 in 1 s, of GET:/idle                   ┆                     ┆ passes │
            │ each       ┆ isolation ┆ 2 at a time                              ┆ resource "GET:/pay" ┆ passes │
            │ failing    ┆ breaker   ┆ none while, of 0 or more in 1 s, 0.5 of  ┆                     ┆ passes │
            │            ┆           ┆ them fail; a probe after 1 s             ┆                     ┆        │
            └────────────┴───────────┴──────────────────────────────────────────┴─────────────────────┴────────┘

            Rules of the resource that do not look at it:
              money-by-team (5 in 1 s, for each value of header:x-team that matches team-): the request has no header:x-team
              of-others (3 in 1 s, for each caller that no other rule names): it is about callers that are known, and nobody knows who calls (header x-origin)
              of-pub (3 in 1 s, for pub): it is about the caller "pub", and nobody knows who calls (header x-origin)
              of-shop (3 in 1 s, for shop): it is about the caller "shop", and nobody knows who calls (header x-origin)
              by-address (5 at a time, for each value of client_ip): it counts client_ip: say the client's address with `--client-ip`
              by-nothing (5 at a time, for each value of args[5]): it counts args[5], but the filter has 2 of `args`
              by-page (5 at a time, for each value of args[1]): the request has no args[1] (query:page)
              by-user (5 in 1 s, for each value of header:x-user, 1 value apart): the request has no header:x-user

            It passes.
        "#]],
    );
}

#[test]
fn a_request_that_a_rule_refuses_shows_what_its_client_gets() {
    let rules = document(
        "FlowRules",
        "  - {id: none, resource: 'GET:/closed', threshold: 0, response: {status: 418, headers: {x-why: closed}}}
  - {id: tried, resource: 'GET:/tried', threshold: 0, shadow: true}
",
    );
    check(
        &rules,
        "GET /closed",
        &[],
        &expect![[r#"
            GET /closed

            resource  GET:/closed (named by method_path, envoy/envoy.yaml)
            caller    nobody knows (header x-origin)

            What rules say to it, in the order in which they are checked, each by itself and from empty state:
            ┌──────┬──────┬──────────┬────────┬─────────┐
            │ rule ┆ kind ┆ limit    ┆ counts ┆ says    │
            ╞══════╪══════╪══════════╪════════╪═════════╡
            │ none ┆ flow ┆ 0 in 1 s ┆        ┆ refuses │
            └──────┴──────┴──────────┴────────┴─────────┘

            It is refused by none. The client gets:
              418
              content-type: application/json
              x-sentinel-block: FlowControl
              x-sentinel-rule: none
              x-why: closed

              {"code":418,"message":"Blocked by Sentinel: FlowControl","resource":"GET:/closed","rule":"none"}
        "#]],
    );
    check(
        &rules,
        "GET /closed",
        &["content-type: application/grpc+proto"],
        &expect![[r#"
            GET /closed

            resource  GET:/closed (named by method_path, envoy/envoy.yaml)
            caller    nobody knows (header x-origin)

            What rules say to it, in the order in which they are checked, each by itself and from empty state:
            ┌──────┬──────┬──────────┬────────┬─────────┐
            │ rule ┆ kind ┆ limit    ┆ counts ┆ says    │
            ╞══════╪══════╪══════════╪════════╪═════════╡
            │ none ┆ flow ┆ 0 in 1 s ┆        ┆ refuses │
            └──────┴──────┴──────────┴────────┴─────────┘

            It is refused by none. The client gets:
              grpc-status: 8
              grpc-message: Blocked by Sentinel: FlowControl
              x-sentinel-block: FlowControl
              x-sentinel-rule: none
              x-why: closed
        "#]],
    );
    check(
        &rules,
        "GET /tried",
        &[],
        &expect![[r#"
            GET /tried

            resource  GET:/tried (named by method_path, envoy/envoy.yaml)
            caller    nobody knows (header x-origin)

            What rules say to it, in the order in which they are checked, each by itself and from empty state:
            ┌───────┬──────┬──────────┬────────┬───────────────────────┐
            │ rule  ┆ kind ┆ limit    ┆ counts ┆ says                  │
            ╞═══════╪══════╪══════════╪════════╪═══════════════════════╡
            │ tried ┆ flow ┆ 0 in 1 s ┆        ┆ would refuse (shadow) │
            └───────┴──────┴──────────┴────────┴───────────────────────┘

            It passes.
        "#]],
    );
    check(
        &rules,
        "GET /open",
        &[],
        &expect![[r#"
        GET /open

        resource  GET:/open (named by method_path, envoy/envoy.yaml)
        caller    nobody knows (header x-origin)

        No rule looks at this request.

        It passes.
    "#]],
    );
    let rules =
        document("AuthorityRules", "  - {id: staff, resource: 'GET:/a', limitApp: staff}\n");
    check(
        &rules,
        "GET /a",
        &["x-origin: crawler"],
        &expect![[r#"
            GET /a

            resource  GET:/a (named by method_path, envoy/envoy.yaml)
            caller    crawler (header x-origin)

            What rules say to it, in the order in which they are checked, each by itself and from empty state:
            ┌───────┬───────────┬────────────┬────────┬─────────┐
            │ rule  ┆ kind      ┆ limit      ┆ counts ┆ says    │
            ╞═══════╪═══════════╪════════════╪════════╪═════════╡
            │ staff ┆ authority ┆ only staff ┆        ┆ refuses │
            └───────┴───────────┴────────────┴────────┴─────────┘

            It is refused by staff. The client gets:
              403
              content-type: application/json
              x-sentinel-block: Authority
              x-sentinel-rule: staff

              {"code":403,"message":"Blocked by Sentinel: Authority","resource":"GET:/a","rule":"staff"}
        "#]],
    );
    let options = Options {
        request: "GET /a".to_owned(),
        client_ip: Some("10.0.0.1".to_owned()),
        ..Options::default()
    };
    let (_, text) = said(&rules, Some("{origin: client_ip, exposeRule: false}"), options);
    expect![[r#"
        GET /a

        resource  GET:/a (named by method_path, filter.yml.txt)
        caller    10.0.0.1 (client_ip)

        What rules say to it, in the order in which they are checked, each by itself and from empty state:
        ┌───────┬───────────┬────────────┬────────┬─────────┐
        │ rule  ┆ kind      ┆ limit      ┆ counts ┆ says    │
        ╞═══════╪═══════════╪════════════╪════════╪═════════╡
        │ staff ┆ authority ┆ only staff ┆        ┆ refuses │
        └───────┴───────────┴────────────┴────────┴─────────┘

        It is refused by staff. The client gets:
          403
          content-type: application/json
          x-sentinel-block: Authority

          {"code":403,"message":"Blocked by Sentinel: Authority"}
    "#]].assert_eq(&text);
}

#[test]
fn a_request_is_called_what_the_filter_calls_it() {
    let rules = document("FlowRules", "  - {id: a, resource: mine, threshold: 1}\n");
    let name = |filter: &str, options: Options| {
        let request = "GET /users/7?x=1".to_owned();
        let (could, text) = said(&rules, Some(filter), Options { request, ..options });
        assert!(could, "{text}");
        text.lines().find(|line| line.starts_with("resource")).unwrap().to_owned()
    };
    let none = Options::default;
    let header = |text: &str| Options { headers: vec![text.to_owned()], ..none() };
    for (filter, options, expected) in [
        ("{}", none(), "resource  GET:/users/7 (named by method_path, filter.yml.txt)"),
        (
            "resource: {templates: ['/users/{id}']}",
            none(),
            "resource  GET:/users/{id} (named by method_path, filter.yml.txt)",
        ),
        ("resource: {from: path}", none(), "resource  /users/7 (named by path, filter.yml.txt)"),
        (
            "resource: {from: authority}",
            header("Host: shop"),
            "resource  shop (named by authority, filter.yml.txt)",
        ),
        (
            "resource: {from: {header: x-r}}",
            header("X-R: mine"),
            "resource  mine (named by header x-r, filter.yml.txt)",
        ),
        (
            "resource: {from: route}",
            Options { route: Some("mine".to_owned()), ..none() },
            "resource  mine (named by route, filter.yml.txt)",
        ),
        (
            "resource: {from: cluster}",
            Options { cluster: Some("mine".to_owned()), ..none() },
            "resource  mine (named by cluster, filter.yml.txt)",
        ),
        (
            "resource: {from: route}",
            none(),
            "resource  none, so that no rule names it: named by route (filter.yml.txt); say its route with `--route NAME`",
        ),
    ] {
        assert_eq!(name(filter, options), expected);
    }
}

#[test]
fn what_cannot_be_explained_says_what_would_do() {
    let of = |request: &str| Options { request: request.to_owned(), ..Options::default() };
    let flow = document("FlowRules", "  - {id: a, resource: mine, threshold: -1}\n");
    let (could, text) = said(&flow, None, of("GET /a"));
    assert!(!could);
    expect![[r#"
        a.yaml:6:40: document 1 (FlowRules): rules[0] (a): `threshold` is -1, but must be 0 or more
    "#]]
    .assert_eq(&text);
    let (could, text) = said("", None, of("GET"));
    assert!(!could);
    expect![[r#"
        `GET` is no request: write a method and a path, such as 'GET /hello?user=7'
    "#]]
    .assert_eq(&text);
    let (could, text) = said("", None, Options { headers: vec!["x".to_owned()], ..of("GET /a") });
    assert!(!could);
    expect![[r#"
        `x` is no header: write a name, a colon and a value, such as 'x-user: 7'
    "#]]
    .assert_eq(&text);
    let (could, text) = said("", Some("orgin: client_ip"), Options { json: true, ..of("GET /a") });
    assert!(!could);
    expect![[r#"
        {"errors":["filter.yml.txt:1:1: `orgin` is an unknown field; did you mean `origin`?"]}
    "#]]
    .assert_eq(&text);
    let wasm = |from: &str| {
        format!(
            r#"{{"@type": "x/envoy.extensions.filters.http.wasm.v3.Wasm", "config": {{"name": "{from}", "configuration": {{"value": {{"resource": {{"from": "{from}"}}}}}}}}}}"#
        )
    };
    let bootstrap = format!("{{\"http_filters\": [{}, {}]}}", wasm("route"), wasm("path"));
    let (could, text) = said("", Some(&bootstrap), of("GET /a"));
    assert!(!could);
    expect![[r#"
        filter.yml.txt has several filters that differ (`route`, `path`): name a file with the configuration of one alone
    "#]].assert_eq(&text);
}

#[test]
fn machines_get_one_object() {
    let options = Options {
        request: "GET /pay?page=3".to_owned(),
        headers: vec!["x-origin: nobody".to_owned()],
        json: true,
        ..Options::default()
    };
    let rules =
        document("AuthorityRules", "  - {id: known, resource: 'GET:/pay', limitApp: shop}\n")
            + &document(
                "FlowRules",
                "  - {id: of-shop, resource: 'GET:/pay', threshold: 3, limitApp: shop}\n",
            )
            + &document(
                "IsolationRules",
                "  - {id: each, resource: '*', threshold: 2, shadow: true}\n",
            );
    let (could, text) = said(&rules, None, options);
    assert!(could);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text.lines().count(), 1);
    expect![[r#"
        {
          "answer": {
            "body": "{\"code\":403,\"message\":\"Blocked by Sentinel: Authority\",\"resource\":\"GET:/pay\",\"rule\":\"known\"}",
            "grpc_status": null,
            "headers": [
              [
                "content-type",
                "application/json"
              ],
              [
                "x-sentinel-block",
                "Authority"
              ],
              [
                "x-sentinel-rule",
                "known"
              ]
            ],
            "rule": "known",
            "status": 403,
            "verdict": "refuse",
            "wait_ms": null
          },
          "caller": "nobody",
          "filter": "envoy/envoy.yaml",
          "groups": [],
          "method": "GET",
          "named_by": "method_path",
          "path": "/pay?page=3",
          "resource": "GET:/pay",
          "rules": [
            {
              "counts": null,
              "file": "a.yaml",
              "id": "known",
              "kind": "authority",
              "limit": "only shop",
              "line": 6,
              "reason": null,
              "resource": "GET:/pay",
              "says": "refuse",
              "shadow": false,
              "wait_ms": null
            },
            {
              "counts": null,
              "file": "a.yaml",
              "id": "of-shop",
              "kind": "flow",
              "limit": "3 in 1 s, for shop",
              "line": 12,
              "reason": "it is about the caller \"shop\", and \"nobody\" calls",
              "resource": "GET:/pay",
              "says": null,
              "shadow": false,
              "wait_ms": null
            },
            {
              "counts": "resource \"GET:/pay\"",
              "file": "a.yaml",
              "id": "each",
              "kind": "isolation",
              "limit": "2 at a time",
              "line": 18,
              "reason": null,
              "resource": "*",
              "says": "pass",
              "shadow": true,
              "wait_ms": null
            }
          ]
        }"#]].assert_eq(&format!("{value:#}"));
}

#[test]
fn the_rule_that_refuses_the_request_is_the_first_that_refuses_it_alone() {
    let rules = [
        ("AuthorityRules", "  - {id: refuses-1, resource: 'GET:/a', limitApp: staff}\n"),
        ("SystemRules", "  - {id: refuses-2, metricType: InboundQPS, triggerCount: 0}\n"),
        ("FlowRules", "  - {id: refuses-3, resource: 'GET:/.*', regex: true, threshold: 0}\n"),
        ("FlowRules", "  - {id: tries, resource: 'GET:/a', threshold: 0, shadow: true}\n"),
        (
            "HotspotRules",
            "  - {id: refuses-4, resource: 'GET:/a', metricType: QPS, paramKey: 'header:x-origin', threshold: 0, durationInSec: 1}\n",
        ),
        (
            "FlowRules",
            "  - {id: refuses-0, resource: 'GET:/a', threshold: 0, controlBehavior: Throttling}\n",
        ),
    ];
    for chosen in 0..1_u32 << rules.len() {
        let set: String = rules
            .iter()
            .enumerate()
            .filter(|(index, _)| chosen & (1 << index) != 0)
            .map(|(_, (kind, rules))| document(kind, rules))
            .collect();
        let options = Options {
            request: "GET /a".to_owned(),
            headers: vec!["x-origin: crawler".to_owned()],
            json: true,
            ..Options::default()
        };
        let (could, text) = said(&set, None, options);
        assert!(could);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let met = value["rules"].as_array().unwrap();
        assert_eq!(met.len(), usize::try_from(chosen.count_ones()).unwrap());
        let first = met.iter().find(|rule| rule["says"] == "refuse" && rule["shadow"] == false);
        let expected = first.map_or(&serde_json::Value::Null, |rule| &rule["id"]);
        assert_eq!(value["answer"]["rule"], *expected, "{set}");
    }
}

#[test]
fn every_example_can_be_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (request, verdict) in [
        ("GET /hello", "It passes.\n"),
        ("GET /blocked", "It is refused by blocked. The client gets:\n"),
        ("GET /storefront/7", "It passes.\n"),
        ("POST /nowhere", "It passes.\n"),
    ] {
        let options = Options {
            rules: vec![root.join("rules")],
            request: request.to_owned(),
            ..Options::default()
        };
        let mut out = Vec::new();
        assert!(explain(&options, &mut out).unwrap());
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(verdict), "{text}");
    }
}
