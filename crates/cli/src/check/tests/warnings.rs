//! What is no error and probably not meant.

use expect_test::expect;

use super::*;

#[test]
fn rules_that_say_the_same_are_warned_of() {
    check_warnings(
        "FlowRules",
        "  - {id: a, resource: 'GET:/a', threshold: 1}
  - {id: b, resource: 'GET:/a', threshold: 1, statIntervalInMs: 1000}
  - {id: c, resource: 'GET:/a', threshold: 1, statIntervalInMs: 2000}
  - {id: d, resource: 'GET:/b', threshold: 1}
",
        None,
        &expect![[r#"
            warning: a.yaml:6:5: document 1 (FlowRules): rules[1] (b): says the same as a.yaml:5:5: document 1 (FlowRules): rules[0] (a): leave one of them out
        "#]],
    );
    check_warnings(
        "CircuitBreakerRules",
        "  - {id: a, resource: 'GET:/a', strategy: ErrorRatio, threshold: 50, retryTimeoutMs: 1, statIntervalMs: 1000}
  - {id: b, resource: 'GET:/a', strategy: ErrorRatio, threshold: 50, retryTimeoutMs: 1, statIntervalMs: 1000}
  - {id: c, resource: 'GET:/a', strategy: ErrorRatio, threshold: 50, retryTimeoutMs: 2, statIntervalMs: 1000}
",
        None,
        &expect![[r#"
            warning: a.yaml:6:5: document 1 (CircuitBreakerRules): rules[1] (b): says the same as a.yaml:5:5: document 1 (CircuitBreakerRules): rules[0] (a): leave one of them out
        "#]],
    );
}

#[test]
fn a_looser_limit_beside_a_stricter_one_is_warned_of() {
    check_warnings(
        "FlowRules",
        "  - {id: loose, resource: 'GET:/a', threshold: 20}
  - {id: strict, resource: 'GET:/a', threshold: 10}
  - {id: same, resource: 'GET:/a', threshold: 10.5}
  - {id: tried, resource: 'GET:/a', threshold: 30, shadow: true}
  - {id: shop, resource: 'GET:/a', threshold: 11, limitApp: shop}
",
        None,
        &expect![[r#"
            warning: a.yaml:5:5: document 1 (FlowRules): rules[0] (loose): never refuses anything: a.yaml:6:5: document 1 (FlowRules): rules[1] (strict) allows no more (10 in 1 s, and here 20 in 1 s)
            warning: a.yaml:7:5: document 1 (FlowRules): rules[2] (same): changes nothing: a.yaml:6:5: document 1 (FlowRules): rules[1] (strict) allows no more (10 in 1 s, and here 10.5 in 1 s)
            warning: a.yaml:8:5: document 1 (FlowRules): rules[3] (tried): never reports anything: a.yaml:6:5: document 1 (FlowRules): rules[1] (strict) allows no more (10 in 1 s, and here 30 in 1 s)
            warning: a.yaml:9:5: document 1 (FlowRules): rules[4] (shop): never refuses anything: a.yaml:6:5: document 1 (FlowRules): rules[1] (strict) allows no more (10 in 1 s, and here 11 in 1 s, for shop)
        "#]],
    );
    // Each of these refuses something that the others let through.
    check_warnings(
        "FlowRules",
        "  - {id: tried, resource: 'GET:/a', threshold: 5, shadow: true}
  - {id: other-interval, resource: 'GET:/a', threshold: 20, statIntervalInMs: 2000}
  - {id: strict, resource: 'GET:/a', threshold: 10}
  - {id: shop, resource: 'GET:/a', threshold: 9, limitApp: shop}
  - {id: pub, resource: 'GET:/a', threshold: 9.5, limitApp: pub}
  - {id: paced, resource: 'GET:/a', threshold: 20, controlBehavior: Throttling}
  - {id: cold, resource: 'GET:/a', threshold: 20, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 9}
  - {id: of-b, resource: 'GET:/a', threshold: 20, relationStrategy: 1, refResource: 'GET:/b'}
  - {id: pattern, resource: 'GET:/.*', regex: true, threshold: 20}
  - {id: failing, resource: 'GET:/a', threshold: 20, onHostFailure: pass}
  - {id: default, resource: '*', threshold: 20}
  - {id: own-words, resource: 'GET:/a', threshold: 10, response: {status: 418}}
",
        None,
        &expect![[""]],
    );
    check_warnings(
        "IsolationRules",
        "  - {id: a, resource: 'GET:/a', threshold: 2}\n  - {id: b, resource: 'GET:/a', threshold: 3}\n",
        None,
        &expect![[r#"
            warning: a.yaml:6:5: document 1 (IsolationRules): rules[1] (b): never refuses anything: a.yaml:5:5: document 1 (IsolationRules): rules[0] (a) allows no more (2 at a time, and here 3 at a time)
        "#]],
    );
    check_warnings(
        "SystemRules",
        "  - {id: a, metricType: AvgRT, triggerCount: 2}
  - {id: b, metricType: AvgRT, triggerCount: 3}
  - {id: c, metricType: CpuUsage, triggerCount: 80}
  - {id: d, metricType: CpuUsage, strategy: BBR, triggerCount: 90}
",
        None,
        &expect![[r#"
            warning: a.yaml:6:5: document 1 (SystemRules): rules[1] (b): never refuses anything: a.yaml:5:5: document 1 (SystemRules): rules[0] (a) allows no more (while they take less than 2 ms on average, and here while they take less than 3 ms on average)
        "#]],
    );
}

#[test]
fn a_default_for_what_a_pattern_takes_whole_is_warned_of() {
    check_warnings(
        "IsolationRules",
        "  - {resource: '*', threshold: 2}\n  - {resource: '.*', regex: true, threshold: 3}\n",
        None,
        &expect![[r#"
            warning: a.yaml:5:16: document 1 (IsolationRules): rules[0] (*): `resource` is "*", for what no other rule of the kind names or matches: a.yaml:6:5: document 1 (IsolationRules): rules[1] (.*) matches everything
        "#]],
    );
    check_warnings(
        "IsolationRules",
        "  - {resource: '*', threshold: 2}\n  - {resource: 'GET:.*', regex: true, threshold: 3}\n",
        None,
        &expect![[""]],
    );
}

#[test]
fn a_pattern_of_another_kind_takes_nothing_from_a_default() {
    let text = format!(
        "{HEAD}  - {{resource: '.*', regex: true, threshold: 3}}
---
{{apiVersion: datasource.sentinel.io/v1alpha1, kind: IsolationRules, spec: {{rules: [{{resource: '*', threshold: 2}}]}}}}
"
    );
    let folder = folder_of(&[("a.yaml", &text)]);
    let options =
        Options { deny_warnings: true, ..Options::of(vec![folder.path().join("a.yaml")]) };
    let (right, text) = said(folder.path(), &options);
    assert!(right, "{text}");
}

#[test]
fn a_name_that_one_of_several_filters_gives_is_right() {
    let wasm = |from: &str| {
        format!(
            "{{'@type': x/envoy.extensions.filters.http.wasm.v3.Wasm, config: {{name: sentinel, configuration: {{value: {{resource: {{from: {from}}}}}}}}}}}"
        )
    };
    let filters = format!("http_filters: [{}, {}]", wasm("method_path"), wasm("path"));
    check_warnings(
        "FlowRules",
        "  - {resource: 'GET:/a', threshold: 1}
  - {resource: /a, threshold: 1}
  - {resource: a, threshold: 1}
",
        Some(&filters),
        &expect![[r#"
            warning: a.yaml:7:16: document 1 (FlowRules): rules[2] (a): `resource` is "a", but no filter of filter calls a request so: it must be METHOD:/path, such as "GET:/hello"
        "#]],
    );
}

#[test]
fn groups_and_strategies_that_nobody_uses_are_warned_of() {
    let text = "apiVersion: datasource.sentinel.io/v1alpha1
kind: ApiDefinitions
spec: {rules: [{apiName: shop, predicateItems: [{pattern: /shop}]}, {apiName: pub, predicateItems: [{pattern: pub}, {pattern: '/pub?a'}]}]}
---
apiVersion: datasource.sentinel.io/v1alpha1
kind: GatewayFlowRules
spec: {rules: [{resource: pub, resourceMode: ApiGroup, count: 10}]}
---
apiVersion: fault-tolerance.opensergo.io/v1alpha1
kind: ConcurrencyLimitStrategy
metadata: {name: eight}
spec: {maxConcurrency: 8}
---
apiVersion: fault-tolerance.opensergo.io/v1alpha1
kind: ConcurrencyLimitStrategy
metadata: {name: nine}
spec: {maxConcurrency: 9}
---
apiVersion: fault-tolerance.opensergo.io/v1alpha1
kind: FaultToleranceRule
metadata: {name: mine}
spec: {targets: [{targetResourceName: 'GET:/a'}], strategies: [{name: nine}]}
";
    check_files(
        &[("all.yaml", text)],
        true,
        &expect![[r#"
        warning: all.yaml:3:26: document 1 (ApiDefinitions): rules[0] (shop): `apiName` is used by no gateway rule, so that nothing limits it
        warning: all.yaml:7:27: document 2 (GatewayFlowRules): rules[0] (pub): `resource` is the API group `pub`, whose pattern "pub" matches no path: a path begins with a slash
        warning: all.yaml:7:27: document 2 (GatewayFlowRules): rules[0] (pub): `resource` is the API group `pub`, whose pattern "/pub?a" matches no path: the query string is no part of a name
        warning: all.yaml:11:11: document 3 (ConcurrencyLimitStrategy): `metadata` (`eight`) is bound by no FaultToleranceRule, so that nobody keeps it
        all.yaml: ok, 2 rules
        ┌───────────────────┬───────────┬──────────┬─────────────┬─────────────┐
        │ rule              ┆ kind      ┆ resource ┆ limit       ┆ at          │
        ╞═══════════════════╪═══════════╪══════════╪═════════════╪═════════════╡
        │ gateway:pub:group ┆ gateway   ┆ pub      ┆ 10 in 1 s   ┆ all.yaml:7  │
        │ mine:GET:/a:nine  ┆ isolation ┆ GET:/a   ┆ 9 at a time ┆ all.yaml:19 │
        └───────────────────┴───────────┴──────────┴─────────────┴─────────────┘
        2 rules: 1 gateway, 1 isolation; 4 warnings
    "#]],
    );
}

#[test]
fn a_name_that_no_request_has_is_warned_of() {
    let rules = "  - {resource: /hello, threshold: 1}
  - {resource: hello, threshold: 1}
  - {resource: 'get:/hello', threshold: 1}
  - {resource: 'GET:hello', threshold: 1}
  - {resource: 'GET:/hello?x=1', threshold: 1}
  - {resource: 'GET:/users/{id}', threshold: 1}
  - {resource: 'GET:/hello', threshold: 1}
  - {resource: 'OPTIONS:*', threshold: 1}
  - {resource: 'CONNECT:', threshold: 1}
  - {resource: 'tcp:mysql', threshold: 1}
  - {resource: 'no.*', regex: true, threshold: 1}
  - {resource: '*', threshold: 1}
  - {resource: 'GET:/a', threshold: 1, relationStrategy: 1, refResource: b}
  - {resource: /shop.Cart/Add, threshold: 1}
";
    check_warnings(
        "FlowRules",
        rules,
        None,
        &expect![[r#"
        warning: a.yaml:5:16: document 1 (FlowRules): rules[0] (/hello): `resource` is "/hello", but a filter that names by method and path calls no request so: it must be METHOD:/path, such as "GET:/hello" (if yours names otherwise, say `--filter FILE`)
        warning: a.yaml:6:16: document 1 (FlowRules): rules[1] (hello): `resource` is "hello", but a filter that names by method and path calls no request so: it must be METHOD:/path, such as "GET:/hello" (if yours names otherwise, say `--filter FILE`)
        warning: a.yaml:7:16: document 1 (FlowRules): rules[2] (get:/hello): `resource` is "get:/hello", but a filter that names by method and path calls no request so: it must begin with a method in capitals, such as "GET:/hello" (if yours names otherwise, say `--filter FILE`)
        warning: a.yaml:8:16: document 1 (FlowRules): rules[3] (GET:hello): `resource` is "GET:hello", but a filter that names by method and path calls no request so: a path begins with a slash (if yours names otherwise, say `--filter FILE`)
        warning: a.yaml:9:16: document 1 (FlowRules): rules[4] (GET:/hello?x=1): `resource` is "GET:/hello?x=1", but a filter that names by method and path calls no request so: the query string is no part of a name (if yours names otherwise, say `--filter FILE`)
        warning: a.yaml:10:16: document 1 (FlowRules): rules[5] (GET:/users/{id}): `resource` is "GET:/users/{id}", but a filter that names by method and path calls no request so: it is not among the filter's `templates` (if yours names otherwise, say `--filter FILE`)
        warning: a.yaml:17:74: document 1 (FlowRules): rules[12] (GET:/a): `refResource` is "b", but a filter that names by method and path calls no request so: it must be METHOD:/path, such as "GET:/hello" (if yours names otherwise, say `--filter FILE`)
    "#]],
    );
    // What stands in a header, or in Envoy's routes, nobody knows here.
    check_warnings("FlowRules", rules, Some("resource: {from: {header: x-r}}"), &expect![[""]]);
    check_warnings(
        "FlowRules",
        rules,
        Some("resource: {from: path}"),
        &expect![[r#"
        warning: a.yaml:6:16: document 1 (FlowRules): rules[1] (hello): `resource` is "hello", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:7:16: document 1 (FlowRules): rules[2] (get:/hello): `resource` is "get:/hello", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:8:16: document 1 (FlowRules): rules[3] (GET:hello): `resource` is "GET:hello", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:9:16: document 1 (FlowRules): rules[4] (GET:/hello?x=1): `resource` is "GET:/hello?x=1", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:10:16: document 1 (FlowRules): rules[5] (GET:/users/{id}): `resource` is "GET:/users/{id}", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:11:16: document 1 (FlowRules): rules[6] (GET:/hello): `resource` is "GET:/hello", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:12:16: document 1 (FlowRules): rules[7] (OPTIONS:*): `resource` is "OPTIONS:*", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:13:16: document 1 (FlowRules): rules[8] (CONNECT:): `resource` is "CONNECT:", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:17:16: document 1 (FlowRules): rules[12] (GET:/a): `resource` is "GET:/a", but no filter of filter calls a request so: a path begins with a slash
        warning: a.yaml:17:74: document 1 (FlowRules): rules[12] (GET:/a): `refResource` is "b", but no filter of filter calls a request so: a path begins with a slash
    "#]],
    );
}

#[test]
fn a_path_that_a_template_swallows_is_warned_of() {
    check_warnings(
        "FlowRules",
        "  - {resource: 'GET:/users/{id}', threshold: 1}
  - {resource: 'GET:/users/7', threshold: 1}
  - {resource: 'GET:/users/{name}', threshold: 1}
  - {resource: 'GET:/users/me', threshold: 1}
  - {resource: 'GET:/users', threshold: 1}
  - {resource: 'GET:/teams/{id}', threshold: 1}
",
        Some("resource: {templates: ['/users/{id}', /users/me, '/users/{other}']}"),
        &expect![[r#"
            warning: a.yaml:6:16: document 1 (FlowRules): rules[1] (GET:/users/7): `resource` is "GET:/users/7", but no filter of filter calls a request so: by the filter's `templates` such a request is called "GET:/users/{id}"
            warning: a.yaml:7:16: document 1 (FlowRules): rules[2] (GET:/users/{name}): `resource` is "GET:/users/{name}", but no filter of filter calls a request so: by the filter's `templates` such a request is called "GET:/users/{id}"
            warning: a.yaml:10:16: document 1 (FlowRules): rules[5] (GET:/teams/{id}): `resource` is "GET:/teams/{id}", but no filter of filter calls a request so: it is not among the filter's `templates`
        "#]],
    );
}

#[test]
fn callers_and_arguments_that_no_filter_knows_are_warned_of() {
    let callers = "  - {resource: 'GET:/a', threshold: 1, limitApp: shop}
  - {resource: 'GET:/a', threshold: 1, limitApp: other}
  - {resource: 'GET:/a', threshold: 2}
";
    check_warnings(
        "FlowRules",
        callers,
        Some("args: []"),
        &expect![[r#"
        warning: a.yaml:5:50: document 1 (FlowRules): rules[0] (GET:/a): `limitApp` is about callers, but no filter of filter has an `origin` to know them by: the rule limits nobody
        warning: a.yaml:6:50: document 1 (FlowRules): rules[1] (GET:/a): `limitApp` is about callers, but no filter of filter has an `origin` to know them by: the rule limits nobody
    "#]],
    );
    check_warnings("FlowRules", callers, Some("origin: client_ip"), &expect![[""]]);
    // Nobody has said what the filter is told.
    check_warnings("FlowRules", callers, None, &expect![[""]]);
    check_warnings(
        "AuthorityRules",
        "  - {resource: 'GET:/a', limitApp: shop}\n",
        Some("args: []"),
        &expect![[r#"
            warning: a.yaml:5:36: document 1 (AuthorityRules): rules[0] (GET:/a): `limitApp` is about callers, but no filter of filter has an `origin` to know them by: everybody passes
        "#]],
    );
    let values = "  - {resource: 'GET:/a', metricType: Concurrency, threshold: 1, paramIndex: 1}
  - {resource: 'GET:/a', metricType: Concurrency, threshold: 1, paramIndex: 2}
  - {resource: 'GET:/a', metricType: Concurrency, threshold: 1, paramIndex: -2}
  - {resource: 'GET:/a', metricType: Concurrency, threshold: 1, paramIndex: -3}
  - {resource: 'GET:/a', metricType: Concurrency, threshold: 1, paramKey: client_ip}
";
    check_warnings(
        "HotspotRules",
        values,
        Some("args: [client_ip, 'query:x']"),
        &expect![[r#"
        warning: a.yaml:6:77: document 1 (HotspotRules): rules[1] (GET:/a): `paramIndex` is 2, but the filters of filter have at most 2 of `args` (the first is 0): the rule never counts anything
        warning: a.yaml:8:77: document 1 (HotspotRules): rules[3] (GET:/a): `paramIndex` is -3, but the filters of filter have at most 2 of `args` (the first is 0): the rule never counts anything
    "#]],
    );
    check_warnings("HotspotRules", values, None, &expect![[""]]);
}

#[test]
fn a_filter_s_configuration_that_is_wrong_is_an_error() {
    let flow = format!("{HEAD}  - {{resource: 'GET:/a', threshold: 1}}\n");
    check_with(
        &[("flow.yaml", &flow)],
        Some("resource: {form: path}"),
        false,
        &expect![[r#"
            filter:1:12: `resource.form` is an unknown field; did you mean `from`?
            flow.yaml: ok, 1 rule
            the filter's configuration is refused, so that names are not checked
        "#]],
    );
}

#[test]
fn a_rule_of_messages_is_warned_of_and_no_twin_of_one_of_requests() {
    check_warnings(
        "FlowRules",
        "  - {id: requests, resource: 'POST:/a.A/B', threshold: 1}
  - {id: messages, resource: 'POST:/a.A/B', threshold: 2, unit: message}
",
        None,
        &expect![[r#"
            warning: a.yaml:6:65: document 1 (FlowRules): rules[1] (messages): `unit` is message, which only sentinel_filter_messages.wasm counts: with sentinel_filter.wasm the rule never refuses anything
        "#]],
    );
}
