use expect_test::{Expect, expect};
use sentinel_core::{
    config::{
        CONSOLE_FIELDS, ENVOY_STATS_FIELDS, FILE_FIELDS, FILTER_FIELDS, HTTP_FIELDS,
        METRICS_FIELDS, RESOURCE_FIELDS, SERIES_MAX, SERVICE_FIELDS, SETTINGS, SOURCE_FIELDS,
    },
    rule::compile::{
        DOCUMENT_FIELDS, KINDS, OPENSERGO_KINDS, PARAM_ITEM_FIELDS, PREDICATE_FIELDS,
        RESPONSE_FIELDS, SPECIFIC_ITEM_FIELDS,
    },
};

use std::{fs, path::Path};

use super::*;

mod warnings;

const HEAD: &str =
    "apiVersion: datasource.sentinel.io/v1alpha1\nkind: FlowRules\nspec:\n  rules:\n";

/// A folder with `files`.
fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Whether `check` finds all right, and what it says; names are those in `folder`.
#[track_caller]
fn said(folder: &Path, options: &Options) -> (bool, String) {
    let mut out = Vec::new();
    let right = check(options, &mut out).unwrap();
    let said = String::from_utf8(out).unwrap();
    (right, said.replace(&format!("{}/", folder.display()), ""))
}

/// Writes `files` and says what `check` says of them, which go by what `filter` says.
#[track_caller]
fn check_with(files: &[(&str, &str)], filter: Option<&str>, right: bool, expected: &Expect) {
    let folder = folder_of(files);
    let path = |name: &str| folder.path().join(name);
    let mut options = Options::of(files.iter().map(|(name, _)| path(name)).collect());
    if let Some(filter) = filter {
        fs::write(path("filter"), filter).unwrap();
        options.filter = Some(path("filter"));
    }
    let (is_right, text) = said(folder.path(), &options);
    expected.assert_eq(&text);
    assert_eq!(is_right, right);
}

#[track_caller]
fn check_files(files: &[(&str, &str)], right: bool, expected: &Expect) {
    check_with(files, None, right, expected);
}

/// The warnings about one file of `rules` of this kind, where requests go by what `filter` says.
#[track_caller]
fn check_warnings(kind: &str, rules: &str, filter: Option<&str>, expected: &Expect) {
    let text = format!(
        "apiVersion: datasource.sentinel.io/v1alpha1\nkind: {kind}\nspec:\n  rules:\n{rules}"
    );
    let folder = folder_of(&[("a.yaml", &text)]);
    let mut options = Options::of(vec![folder.path().join("a.yaml")]);
    if let Some(filter) = filter {
        fs::write(folder.path().join("filter"), filter).unwrap();
        options.filter = Some(folder.path().join("filter"));
    }
    let (right, text) = said(folder.path(), &options);
    assert!(right, "{text}");
    let warnings: String = text
        .lines()
        .filter(|line| line.starts_with("warning"))
        .map(|line| format!("{line}\n"))
        .collect();
    expected.assert_eq(&warnings);
    options.deny_warnings = true;
    assert_eq!(said(folder.path(), &options).0, warnings.is_empty());
}

#[test]
fn a_good_file_is_shown_as_it_was_understood() {
    let rules = "  - {id: hello, resource: 'GET:/hello', threshold: 100}
  - {resource: 'GET:/users/{id}', threshold: 1.5, statIntervalInMs: 1500, shadow: true}
  - {resource: 'GET:/hello', threshold: 60, statIntervalInMs: 20000, tokenCalculateStrategy: Direct, controlBehavior: 0}
";
    check_files(
        &[("flow.yaml", &format!("{HEAD}{rules}")), ("empty.yaml", "# nothing\n")],
        true,
        &expect![[r#"
            warning: flow.yaml:6:16: document 1 (FlowRules): rules[1] (GET:/users/{id}): `resource` is "GET:/users/{id}", but a filter that names by method and path calls no request so: it is not among the filter's `templates` (if yours names otherwise, say `--filter FILE`)
            flow.yaml: ok, 3 rules
            empty.yaml: ok, 0 rules
            ┌─────────────────────────────┬───────────┬─────────────────┬────────────────────────┬─────────────┐
            │ rule                        ┆ kind      ┆ resource        ┆ limit                  ┆ at          │
            ╞═════════════════════════════╪═══════════╪═════════════════╪════════════════════════╪═════════════╡
            │ hello                       ┆ flow      ┆ GET:/hello      ┆ 100 in 1 s             ┆ flow.yaml:5 │
            │ flow:GET:/users/_id_:1500ms ┆ flow      ┆ GET:/users/{id} ┆ 1.5 in 1500 ms, shadow ┆ flow.yaml:6 │
            │ :09740cf5a149cbdb           ┆           ┆                 ┆                        ┆             │
            │ flow:GET:/hello:20000ms     ┆ flow      ┆ GET:/hello      ┆ 60 in 20 s             ┆ flow.yaml:7 │
            └─────────────────────────────┴───────────┴─────────────────┴────────────────────────┴─────────────┘
            3 rules: 3 flow; 1 warning
        "#]],
    );
}

#[test]
fn everything_that_is_wrong_with_a_file_is_said_at_once() {
    let rules = r#"  - {id: hello, resource: "GET:/hello", threshold: -1}
  - {resource: "", threshold: .inf, treshold: 1}
  - {resource: [a], threshold: "100"}
  - resource: GET:/cart
    statIntervalInMs: -5
    shadow: yes
    onServiceLoss: open
    onHostFailure: 0
    response: {status: 99, headers: {x-a: 1, content-length: "3", "b c": d}, body: 7}
  - {id: "a b", resource: a, threshold: 1e300, thrshld: 1, Threshold: 2}
  - just text
  - {resource: a, threshold: ~}
---
kind: FlowRule
---
apiVersion: v1
kind: FlowRules
sepc: {}
---
[1, 2]
"#;
    check_files(
        &[("flow.yaml", &format!("{HEAD}{rules}"))],
        false,
        &expect![[r#"
            flow.yaml:5:52: document 1 (FlowRules): rules[0] (hello): `threshold` is -1, but must be 0 or more
            flow.yaml:6:16: document 1 (FlowRules): rules[1]: `resource` is "", but must be a resource's name, such as "GET:/hello"
            flow.yaml:6:31: document 1 (FlowRules): rules[1]: `threshold` is inf, but must be a number of 0 or more
            flow.yaml:6:37: document 1 (FlowRules): rules[1]: `treshold` is an unknown field; did you mean `threshold`?
            flow.yaml:7:16: document 1 (FlowRules): rules[2]: `resource` is a list, but must be text
            flow.yaml:7:32: document 1 (FlowRules): rules[2]: `threshold` is "100", but must be a number of 0 or more
            flow.yaml:8:5: document 1 (FlowRules): rules[3] (GET:/cart): `threshold` is missing
            flow.yaml:9:23: document 1 (FlowRules): rules[3] (GET:/cart): `statIntervalInMs` is -5, but must be a whole number from 0 to 4294967295
            flow.yaml:10:13: document 1 (FlowRules): rules[3] (GET:/cart): `shadow` is "yes", but must be true or false
            flow.yaml:11:20: document 1 (FlowRules): rules[3] (GET:/cart): `onServiceLoss` is "open", but must be keep, pass or block
            flow.yaml:12:20: document 1 (FlowRules): rules[3] (GET:/cart): `onHostFailure` is 0, but must be pass or block
            flow.yaml:13:24: document 1 (FlowRules): rules[3] (GET:/cart): `response.status` is 99, but must be a whole number from 200 to 599
            flow.yaml:13:38: document 1 (FlowRules): rules[3] (GET:/cart): `response.headers.x-a` is not text: put it in quotes
            flow.yaml:13:46: document 1 (FlowRules): rules[3] (GET:/cart): `response.headers.content-length` is Envoy's to set: leave it out
            flow.yaml:13:67: document 1 (FlowRules): rules[3] (GET:/cart): `response.headers.b c` is no header's name: only letters, digits and -_.!#$%&'*+^`|~
            flow.yaml:13:84: document 1 (FlowRules): rules[3] (GET:/cart): `response.body` is 7, but must be text: put it in quotes
            flow.yaml:14:10: document 1 (FlowRules): rules[4] (a b): `id` is "a b", but must be 1 to 64 characters of A-Z, a-z, 0-9 and ._:/-
            flow.yaml:14:41: document 1 (FlowRules): rules[4] (a b): `threshold` is 1e300, but must be at most 2^53
            flow.yaml:14:48: document 1 (FlowRules): rules[4] (a b): `thrshld` is an unknown field; did you mean `threshold`?
            flow.yaml:14:60: document 1 (FlowRules): rules[4] (a b): `Threshold` is an unknown field; did you mean `threshold`?
            flow.yaml:15:5: document 1 (FlowRules): rules[5]: is "just text", but must be a map
            flow.yaml:16:5: document 1 (FlowRules): rules[6] (a): `threshold` is missing
            flow.yaml:18:1: document 2: `apiVersion` is missing
            flow.yaml:18:7: document 2: `kind` is "FlowRule", but must be one of Sentinel's kinds; did you mean `FlowRules`?
            flow.yaml:20:1: document 3 (FlowRules): `spec` is missing
            flow.yaml:20:13: document 3 (FlowRules): `apiVersion` is "v1", but must be datasource.sentinel.io/v1alpha1
            flow.yaml:22:1: document 3 (FlowRules): `sepc` is an unknown field; did you mean `spec`?
            flow.yaml:24:2: document 4 (FlowRules): rules[0]: is 1, but must be a map
            flow.yaml:24:5: document 4 (FlowRules): rules[1]: is 2, but must be a map
            flow.yaml: refused
            the set is refused: nothing of it would be loaded
        "#]],
    );
}

#[test]
fn every_kind_of_rule_is_shown_as_it_was_understood() {
    let rules = r#"  - {resource: a, threshold: 10, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 10}
  - {id: memory, resource: a, tokenCalculateStrategy: 2, lowMemUsageThreshold: 9, highMemUsageThreshold: 1, memLowWaterMarkBytes: 1, memHighWaterMarkBytes: 2}
  - {resource: a, threshold: 5, controlBehavior: Throttling, maxQueueingTimeMs: 500}
  - {resource: a, threshold: 1, relationStrategy: AssociatedResource, refResource: b}
  - {resource: 'GET:/a/[0-9]+', threshold: 1, regex: true, limitApp: other}
  - {resource: "*", threshold: 1, limitApp: shop}
---
apiVersion: datasource.sentinel.io/v1alpha1
kind: CircuitBreakerRules
spec:
  rules:
  - {resource: a, strategy: SlowRequestRatio, maxAllowedRtMs: 50, threshold: 60, retryTimeoutMs: 5000, minRequestAmount: 5, statIntervalMs: 1000}
  - {resource: a, strategy: ErrorRatio, threshold: 50, retryTimeoutMs: 500, statIntervalMs: 1500}
  - {resource: a, strategy: ErrorCount, threshold: 9, retryTimeoutMs: 5000, statIntervalMs: 1000}
---
apiVersion: datasource.sentinel.io/v1alpha1
kind: HotspotRules
spec:
  rules:
  - {resource: a, metricType: QPS, paramKey: "header:x-user", threshold: 5, burstCount: 2, durationInSec: 1, specificItems: [{valKind: KindString, valStr: vip, threshold: 50}]}
  - {resource: a, metricType: Concurrency, paramIndex: -1, threshold: 5}
---
{apiVersion: datasource.sentinel.io/v1alpha1, kind: IsolationRules, spec: {rules: [{resource: a, threshold: 7}]}}
---
{apiVersion: datasource.sentinel.io/v1alpha1, kind: SystemRules, spec: {rules: [{metricType: CpuUsage, strategy: BBR, triggerCount: 80}, {metricType: AvgRT, triggerCount: 20}]}}
---
{apiVersion: datasource.sentinel.io/v1alpha1, kind: AuthorityRules, spec: {rules: [{resource: a, limitApp: "shop,app", strategy: White}]}}
---
apiVersion: datasource.sentinel.io/v1alpha1
kind: GatewayFlowRules
spec:
  rules:
  - {resource: shop, resourceMode: ApiGroup, count: 10, intervalSec: 2, controlBehavior: Throttling, paramItem: {parseStrategy: UrlParam, fieldName: p, pattern: x}}
---
{apiVersion: datasource.sentinel.io/v1alpha1, kind: ApiDefinitions, spec: {rules: [{apiName: shop, predicateItems: [{pattern: /shop/**, matchStrategy: Prefix}]}]}}
---
{apiVersion: fault-tolerance.opensergo.io/v1alpha1, kind: ConcurrencyLimitStrategy, metadata: {name: at-once}, spec: {maxConcurrency: 8, limitMode: Local}}
---
{apiVersion: fault-tolerance.opensergo.io/v1alpha1, kind: FaultToleranceRule, metadata: {name: mine}, spec: {targets: [{targetResourceName: a}], strategies: [{name: at-once}]}}
"#;
    check_with(
        &[("all.yaml", &format!("{HEAD}{rules}"))],
        Some("resource: {from: route}\norigin: client_ip\nargs: [client_ip]\n"),
        true,
        &expect![[r#"
            warning: all.yaml:43:1: document 10 (FaultToleranceRule): never refuses anything: all.yaml:27:84: document 4 (IsolationRules): rules[0] (a) allows no more (7 at a time, and here 8 at a time)
            all.yaml: ok, 17 rules
            ┌──────────────────────────┬───────────┬───────────────────┬─────────────────────────┬─────────────┐
            │ rule                     ┆ kind      ┆ resource          ┆ limit                   ┆ at          │
            ╞══════════════════════════╪═══════════╪═══════════════════╪═════════════════════════╪═════════════╡
            │ flow:a                   ┆ flow      ┆ a                 ┆ 10 (cold: 1/3 of it) in ┆ all.yaml:5  │
            │                          ┆           ┆                   ┆ 1 s                     ┆             │
            │ memory                   ┆ flow      ┆ a                 ┆ 1 to 9 by memory in 1 s ┆ all.yaml:6  │
            │ flow:a:throttling        ┆ flow      ┆ a                 ┆ 5 in 1 s, evenly,       ┆ all.yaml:7  │
            │                          ┆           ┆                   ┆ waiting up to 500 ms    ┆             │
            │ flow:a:ref.b             ┆ flow      ┆ a                 ┆ 1 in 1 s, of b          ┆ all.yaml:8  │
            │ flow:GET:/a/_0-9__:regex ┆ flow      ┆ GET:/a/[0-9]+     ┆ 1 in 1 s, for each      ┆ all.yaml:9  │
            │ :other:a95732f0f8c5e4a3  ┆           ┆                   ┆ caller that no other    ┆             │
            │                          ┆           ┆                   ┆ rule names              ┆             │
            │ flow::default:origin.sho ┆ flow      ┆ *                 ┆ 1 in 1 s, for shop      ┆ all.yaml:10 │
            │ p                        ┆           ┆                   ┆                         ┆             │
            │ breaker:a:slow_ratio.50  ┆ breaker   ┆ a                 ┆ none while, of 5 or     ┆ all.yaml:16 │
            │                          ┆           ┆                   ┆ more in 1 s, 0.6 of     ┆             │
            │                          ┆           ┆                   ┆ them take longer than   ┆             │
            │                          ┆           ┆                   ┆ 50 ms; a probe after 5  ┆             │
            │                          ┆           ┆                   ┆ s                       ┆             │
            │ breaker:a:error_ratio:15 ┆ breaker   ┆ a                 ┆ none while, of 0 or     ┆ all.yaml:17 │
            │ 00ms                     ┆           ┆                   ┆ more in 1500 ms, 0.5 of ┆             │
            │                          ┆           ┆                   ┆ them fail; a probe      ┆             │
            │                          ┆           ┆                   ┆ after 500 ms            ┆             │
            │ breaker:a:error_count    ┆ breaker   ┆ a                 ┆ none while, of 0 or     ┆ all.yaml:18 │
            │                          ┆           ┆                   ┆ more in 1 s, 9 fail; a  ┆             │
            │                          ┆           ┆                   ┆ probe after 5 s         ┆             │
            │ hotspot:a:header.x-user  ┆ hotspot   ┆ a                 ┆ 5 in 1 s and 2 more     ┆ all.yaml:24 │
            │                          ┆           ┆                   ┆ after a rest, for each  ┆             │
            │                          ┆           ┆                   ┆ value of header:x-user, ┆             │
            │                          ┆           ┆                   ┆ 1 value apart           ┆             │
            │ hotspot:a:arg.-1:concurr ┆ hotspot   ┆ a                 ┆ 5 at a time, for each   ┆ all.yaml:25 │
            │ ency                     ┆           ┆                   ┆ value of args[-1]       ┆             │
            │ isolation:a              ┆ isolation ┆ a                 ┆ 7 at a time             ┆ all.yaml:27 │
            │ system:cpu_usage.bbr     ┆ system    ┆ all that comes in ┆ while the CPU is at     ┆ all.yaml:29 │
            │                          ┆           ┆                   ┆ most 0.8, beyond it as  ┆             │
            │                          ┆           ┆                   ┆ many as can be served   ┆             │
            │                          ┆           ┆                   ┆ (BBR)                   ┆             │
            │ system:avg_rt            ┆ system    ┆ all that comes in ┆ while they take less    ┆ all.yaml:29 │
            │                          ┆           ┆                   ┆ than 20 ms on average   ┆             │
            │ authority:a:white        ┆ authority ┆ a                 ┆ only shop, app          ┆ all.yaml:31 │
            │ gateway:shop:group:query ┆ gateway   ┆ shop              ┆ 10 in 2 s, evenly,      ┆ all.yaml:37 │
            │ .p:exact.x:throttling:20 ┆           ┆                   ┆ waiting up to 500 ms,   ┆             │
            │ 00ms                     ┆           ┆                   ┆ for each value of       ┆             │
            │                          ┆           ┆                   ┆ query:p that matches x  ┆             │
            │ mine:a:at-once           ┆ isolation ┆ a                 ┆ 8 at a time             ┆ all.yaml:43 │
            └──────────────────────────┴───────────┴───────────────────┴─────────────────────────┴─────────────┘
            17 rules: 1 authority, 2 system, 1 gateway, 6 flow, 2 isolation, 2 hotspot, 3 circuitbreaker; 1 warning
        "#]],
    );
}

#[test]
fn fields_that_mean_nothing_for_a_rule_are_taken_as_sentinel_golang_writes_them() {
    let rules = r#"[{"resource": "abc", "tokenCalculateStrategy": 0, "controlBehavior": 0, "threshold": 10, "relationStrategy": 0, "refResource": "",
            "maxQueueingTimeMs": 0, "warmUpPeriodSec": 0, "warmUpColdFactor": 0, "statIntervalInMs": 0, "id": "", "limitApp": "default", "regex": false,
            "lowMemUsageThreshold": 0, "highMemUsageThreshold": 0, "memLowWaterMarkBytes": 0, "memHighWaterMarkBytes": 0}]"#;
    let json = format!(
        r#"{{"apiVersion": "datasource.sentinel.io/v1alpha1", "kind": "FlowRules", "metadata": {{"name": "x"}}, "spec": {{"rules": {rules}}}}}"#
    );
    check_files(
        &[("flow.json", &json)],
        true,
        &expect![[r#"
            warning: flow.json:1:131: document 1 (FlowRules): rules[0] (abc): `resource` is "abc", but a filter that names by method and path calls no request so: it must be METHOD:/path, such as "GET:/hello" (if yours names otherwise, say `--filter FILE`)
            flow.json: ok, 1 rule
            ┌──────────┬───────────┬──────────┬───────────┬─────────────┐
            │ rule     ┆ kind      ┆ resource ┆ limit     ┆ at          │
            ╞══════════╪═══════════╪══════════╪═══════════╪═════════════╡
            │ flow:abc ┆ flow      ┆ abc      ┆ 10 in 1 s ┆ flow.json:1 │
            └──────────┴───────────┴──────────┴───────────┴─────────────┘
            1 rule: 1 flow; 1 warning
        "#]],
    );
}

#[test]
fn rules_that_cannot_be_told_apart_are_named_both() {
    let one = format!(
        "{HEAD}  - {{resource: a, threshold: 1}}\n  - {{id: x, resource: b, threshold: 1}}\n"
    );
    let two = format!(
        "{HEAD}  - {{resource: a, threshold: 2, statIntervalInMs: 1000}}\n  - {{id: x, resource: c, threshold: 1}}\n"
    );
    check_files(
        &[("one.yaml", &one), ("two.yaml", &two)],
        false,
        &expect![[r#"
            two.yaml:5:5: document 1 (FlowRules): rules[0] (a): `id` is missing: the rule counts the same as one.yaml:5:5: document 1 (FlowRules): rules[0] (a); give both an `id`
            two.yaml:6:5: document 1 (FlowRules): rules[1] (x): `id` is also the id of one.yaml:6:5: document 1 (FlowRules): rules[1] (x); ids must differ
            one.yaml: ok
            two.yaml: refused
            the set is refused: nothing of it would be loaded
        "#]],
    );
    let both =
        format!("{HEAD}  - {{resource: a, threshold: 1}}\n  - {{resource: a, threshold: 2}}\n");
    check_files(
        &[("both.yaml", &both)],
        false,
        &expect![[r#"
            both.yaml:6:5: document 1 (FlowRules): rules[1] (a): `id` is missing: the rule counts the same as both.yaml:5:5: document 1 (FlowRules): rules[0] (a); give both an `id`
            both.yaml: refused
            the set is refused: nothing of it would be loaded
        "#]],
    );
}

#[test]
fn a_file_that_is_no_document_is_refused_with_the_place() {
    check_files(
        &[("a.yaml", "a: [1\n"), ("b.yaml", "a: \u{1}")],
        false,
        &expect![[r#"
            a.yaml:2:1: the bracket of line 1, column 4 is not closed: close it, or indent what belongs to it
            b.yaml:1:4: the control character U+0001 may not stand here
            a.yaml: refused
            b.yaml: refused
            the set is refused: nothing of it would be loaded
        "#]],
    );
    let mut out = Vec::new();
    let options = Options { terminal: true, ..Options::of(vec!["no/such.yaml".into()]) };
    assert!(!check(&options, &mut out).unwrap());
    expect![[r#"
        no/such.yaml: cannot be read: No such file or directory (os error 2)
        no/such.yaml: ESC[31mrefusedESC[0m
        the set is ESC[31mrefusedESC[0m: nothing of it would be loaded
    "#]]
    .assert_eq(&String::from_utf8(out).unwrap().replace('\u{1b}', "ESC"));
}

fn rules_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules")
}

#[test]
fn every_example_file_passes_without_a_warning() {
    for filter in [None, Some(rules_folder().join("../envoy/envoy.yaml"))] {
        let deny_warnings = true;
        let options = Options { filter, deny_warnings, ..Options::of(vec![rules_folder()]) };
        let mut out = Vec::new();
        let right = check(&options, &mut out).unwrap();
        assert!(right, "{}", String::from_utf8_lossy(&out));
    }
}

#[test]
fn the_readme_of_the_rules_names_every_field_and_every_setting_with_its_range() {
    let readme = fs::read_to_string(rules_folder().join("README.md")).unwrap();
    let names = [
        DOCUMENT_FIELDS,
        RESPONSE_FIELDS,
        SPECIFIC_ITEM_FIELDS,
        PARAM_ITEM_FIELDS,
        PREDICATE_FIELDS,
        SERVICE_FIELDS,
        METRICS_FIELDS,
        ENVOY_STATS_FIELDS,
        FILTER_FIELDS,
        RESOURCE_FIELDS,
        CONSOLE_FIELDS,
        SOURCE_FIELDS,
        HTTP_FIELDS,
        FILE_FIELDS,
    ];
    let mut names = names.concat();
    for kind in KINDS {
        names.push(kind.name);
        names.extend(kind.fields);
    }
    for (kind, fields) in OPENSERGO_KINDS {
        names.push(kind);
        names.extend(*fields);
    }
    for name in names {
        assert!(readme.contains(&format!("`{name}`")), "rules/README.md does not name `{name}`");
    }
    for setting in SETTINGS.iter().chain([&SERIES_MAX]) {
        let row = format!(
            "| `{}` | {} | {} to {} | {} | {} | {} |",
            setting.name,
            setting.default,
            setting.min,
            setting.max,
            setting.unit,
            setting.meaning,
            setting.at_bound
        );
        assert!(readme.contains(&row), "rules/README.md has no row\n{row}");
    }
}

const LIST: &str = r#"[{"resource": "GET:/hello", "threshold": 100}]"#;

#[test]
fn all_files_are_one_set() {
    let groups = "apiVersion: datasource.sentinel.io/v1alpha1
kind: ApiDefinitions
spec: {rules: [{apiName: shop, predicateItems: [{pattern: /shop}]}]}
";
    let gateway = "apiVersion: datasource.sentinel.io/v1alpha1
kind: GatewayFlowRules
spec: {rules: [{resource: shop, resourceMode: ApiGroup, count: 10}]}
";
    check_files(
        &[("gateway.yaml", gateway), ("groups.yaml", groups)],
        true,
        &expect![[r#"
            gateway.yaml: ok, 1 rule
            groups.yaml: ok, 0 rules
            ┌────────────────────┬───────────┬──────────┬───────────┬────────────────┐
            │ rule               ┆ kind      ┆ resource ┆ limit     ┆ at             │
            ╞════════════════════╪═══════════╪══════════╪═══════════╪════════════════╡
            │ gateway:shop:group ┆ gateway   ┆ shop     ┆ 10 in 1 s ┆ gateway.yaml:3 │
            └────────────────────┴───────────┴──────────┴───────────┴────────────────┘
            1 rule: 1 gateway
        "#]],
    );
    check_files(
        &[("gateway.yaml", gateway)],
        false,
        &expect![[r#"
        gateway.yaml:3:16: document 1 (GatewayFlowRules): rules[0] (shop): `resource` is no API group: add an ApiDefinitions document with one of this `apiName`, or leave out `resourceMode: ApiGroup`
        gateway.yaml: refused
        the set is refused: nothing of it would be loaded
    "#]],
    );
    check_files(
        &[("groups.yaml", groups)],
        true,
        &expect![[r#"
        warning: groups.yaml:3:26: document 1 (ApiDefinitions): rules[0] (shop): `apiName` is used by no gateway rule, so that nothing limits it
        groups.yaml: ok, 0 rules
        0 rules; 1 warning
    "#]],
    );
}

#[test]
fn a_bare_list_is_what_its_file_is_called() {
    check_files(
        &[("flow.json", LIST), ("isolation.json", LIST), ("rules.json", LIST)],
        false,
        &expect![[r#"
            rules.json:1:1: document 1: a list of rules, which could be flow or isolation: name the file after its kind, such as `flow.json`, or say `kind: flow` for the source; or write a document with `apiVersion`, `kind` and `spec`
            flow.json: ok
            isolation.json: ok
            rules.json: refused
            the set is refused: nothing of it would be loaded
        "#]],
    );
}

#[test]
fn a_folder_is_its_rule_files() {
    let flow = format!("{HEAD}  - {{resource: 'GET:/a', threshold: 1}}\n");
    let folder = folder_of(&[
        ("b.yml", &flow),
        ("flow.json", LIST),
        (".hidden.yaml", "["),
        ("README.md", "["),
        ("a.yaml", "# nothing\n"),
    ]);
    fs::create_dir(folder.path().join("more.yaml")).unwrap();
    let file = folder.path().join("more.yaml/../b.yml");
    // A file that is named twice is one file.
    let options = Options::of(vec![folder.path().to_owned(), file]);
    let (right, text) = said(folder.path(), &options);
    assert!(right);
    expect![[r#"
        a.yaml: ok, 0 rules
        b.yml: ok, 1 rule
        flow.json: ok, 1 rule
        ┌─────────────────┬───────────┬────────────┬────────────┬─────────────┐
        │ rule            ┆ kind      ┆ resource   ┆ limit      ┆ at          │
        ╞═════════════════╪═══════════╪════════════╪════════════╪═════════════╡
        │ flow:GET:/a     ┆ flow      ┆ GET:/a     ┆ 1 in 1 s   ┆ b.yml:5     │
        │ flow:GET:/hello ┆ flow      ┆ GET:/hello ┆ 100 in 1 s ┆ flow.json:1 │
        └─────────────────┴───────────┴────────────┴────────────┴─────────────┘
        2 rules: 2 flow
    "#]]
    .assert_eq(&text);

    let empty = tempfile::tempdir().unwrap();
    let (right, text) =
        said(empty.path().parent().unwrap(), &Options::of(vec![empty.path().to_owned()]));
    assert!(!right);
    assert!(text.contains(": has no rule files (*.yaml, *.yml, *.json): add one"), "{text}");
}

#[test]
fn an_index_says_which_files_there_are() {
    let folder = folder_of(&[
        (
            "index.yaml",
            "files: [flow.json, /rules/more.json, {path: list.json, kind: isolation}]\n",
        ),
        ("flow.json", LIST),
        ("more.json", "[]"),
        ("list.json", LIST),
    ]);
    let of_folder = Options::of(vec![folder.path().to_owned()]);
    let (right, text) = said(folder.path(), &of_folder);
    assert!(right, "{text}");
    expect![[r#"
        flow.json: ok, 1 rule
        index.yaml: ok, an index of 3 files
        list.json: ok, 1 rule
        more.json: ok, 0 rules
        ┌──────────────────────┬───────────┬────────────┬───────────────┬─────────────┐
        │ rule                 ┆ kind      ┆ resource   ┆ limit         ┆ at          │
        ╞══════════════════════╪═══════════╪════════════╪═══════════════╪═════════════╡
        │ flow:GET:/hello      ┆ flow      ┆ GET:/hello ┆ 100 in 1 s    ┆ flow.json:1 │
        │ isolation:GET:/hello ┆ isolation ┆ GET:/hello ┆ 100 at a time ┆ list.json:1 │
        └──────────────────────┴───────────┴────────────┴───────────────┴─────────────┘
        2 rules: 1 flow, 1 isolation
    "#]]
    .assert_eq(&text);
    let of_index = Options::of(vec![folder.path().join("index.yaml")]);
    // By itself, in its own order.
    let (right, text) = said(folder.path(), &of_index);
    assert!(right && text.ends_with("2 rules: 1 flow, 1 isolation\n"), "{text}");

    fs::write(folder.path().join("extra.yaml"), "").unwrap();
    let (right, text) = said(folder.path(), &of_folder);
    assert!(right);
    assert!(
        text.starts_with(
            "warning: extra.yaml: is not listed in the folder's index, so that nobody loads it\n"
        ),
        "{text}"
    );

    fs::write(
        folder.path().join("index.yaml"),
        "files:\n- flow.json\n- gone.yaml\n- 7\n- {kind: flow}\n",
    )
    .unwrap();
    let (right, text) = said(folder.path(), &of_index);
    assert!(!right);
    expect![[r#"
        index.yaml:4:3: `files[2]` is 7, but must be a map
        index.yaml:5:3: `files[3].path` is missing
        index.yaml:5:3: `files[3]` is "", but must be a file's path without spaces, such as flow.yaml
        index.yaml: refused
        the set is refused: nothing of it would be loaded
    "#]].assert_eq(&text);
    fs::write(folder.path().join("index.yaml"), "files:\n- flow.json\n- gone.yaml\n").unwrap();
    let (right, text) = said(folder.path(), &of_index);
    assert!(!right);
    expect![[r#"
        index.yaml:3:3: `files[1]` is "gone.yaml", but there is no gone.yaml
        index.yaml: refused
        flow.json: ok
        the set is refused: nothing of it would be loaded
    "#]]
    .assert_eq(&text);
    fs::write(folder.path().join("index.yaml"), "files: flow.json\n").unwrap();
    let (_, text) = said(folder.path(), &of_index);
    expect![[r#"
        index.yaml:1:8: `files` is "flow.json", but must be a list
        index.yaml: refused
        the set is refused: nothing of it would be loaded
    "#]]
    .assert_eq(&text);
}

#[test]
fn machines_get_one_object() {
    let json = |files: &[(&str, &str)], expected: &Expect| {
        let folder = folder_of(files);
        let paths = files.iter().map(|(name, _)| folder.path().join(name)).collect();
        let (right, text) = said(folder.path(), &Options { json: true, ..Options::of(paths) });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], right);
        assert_eq!(text.lines().count(), 1);
        expected.assert_eq(&format!("{value:#}"));
    };
    let flow = format!(
        "{HEAD}  - {{id: a, resource: 'GET:/a', threshold: 1, shadow: true}}\n  - {{id: b, resource: b, threshold: 1}}\n"
    );
    json(
        &[("flow.yaml", &flow)],
        &expect![[r#"
        {
          "errors": [],
          "files": [
            {
              "file": "flow.yaml",
              "ok": true,
              "rules": 2
            }
          ],
          "ok": true,
          "rules": [
            {
              "file": "flow.yaml",
              "id": "a",
              "kind": "flow",
              "limit": "1 in 1 s",
              "line": 5,
              "resource": "GET:/a",
              "shadow": true
            },
            {
              "file": "flow.yaml",
              "id": "b",
              "kind": "flow",
              "limit": "1 in 1 s",
              "line": 6,
              "resource": "b",
              "shadow": false
            }
          ],
          "warnings": [
            {
              "column": 23,
              "document": 1,
              "field": "resource",
              "file": "flow.yaml",
              "kind": "FlowRules",
              "line": 6,
              "message": "`resource` is \"b\", but a filter that names by method and path calls no request so: it must be METHOD:/path, such as \"GET:/hello\" (if yours names otherwise, say `--filter FILE`)",
              "name": "b",
              "rule": 1
            }
          ]
        }"#]],
    );
    let wrong = format!("{HEAD}  - {{id: c, resource: 'GET:/a', threshold: -1}}\n");
    json(
        &[("flow.yaml", &flow), ("wrong.yaml", &wrong), ("no.yaml", "[")],
        &expect![[r#"
            {
              "errors": [
                {
                  "column": 2,
                  "document": null,
                  "field": null,
                  "file": "no.yaml",
                  "kind": null,
                  "line": 1,
                  "message": "the bracket of line 1, column 1 is not closed: close it, or indent what belongs to it",
                  "name": null,
                  "rule": null
                },
                {
                  "column": 44,
                  "document": 1,
                  "field": "threshold",
                  "file": "wrong.yaml",
                  "kind": "FlowRules",
                  "line": 5,
                  "message": "`threshold` is -1, but must be 0 or more",
                  "name": "c",
                  "rule": 0
                }
              ],
              "files": [
                {
                  "file": "flow.yaml",
                  "ok": true,
                  "rules": 0
                },
                {
                  "file": "wrong.yaml",
                  "ok": false,
                  "rules": 0
                },
                {
                  "file": "no.yaml",
                  "ok": false,
                  "rules": 0
                }
              ],
              "ok": false,
              "rules": [],
              "warnings": []
            }"#]],
    );
    json(
        &[("flow.yaml", &flow), ("no.yaml", "[")],
        &expect![[r#"
            {
              "errors": [
                {
                  "column": 2,
                  "document": null,
                  "field": null,
                  "file": "no.yaml",
                  "kind": null,
                  "line": 1,
                  "message": "the bracket of line 1, column 1 is not closed: close it, or indent what belongs to it",
                  "name": null,
                  "rule": null
                }
              ],
              "files": [
                {
                  "file": "flow.yaml",
                  "ok": true,
                  "rules": 0
                },
                {
                  "file": "no.yaml",
                  "ok": false,
                  "rules": 0
                }
              ],
              "ok": false,
              "rules": [],
              "warnings": []
            }"#]],
    );
    let many = format!("{HEAD}{}", "  - {resource: ''}\n".repeat(101));
    let folder = folder_of(&[("many.yaml", &many)]);
    let options = Options { json: true, ..Options::of(vec![folder.path().join("many.yaml")]) };
    let (_, text) = said(folder.path(), &options);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["errors"].as_array().unwrap().len(), 101);
    assert_eq!(value["errors"][100]["message"], "… and 102 more");
}

#[test]
fn the_table_of_many_rules_is_cut() {
    let rules: String =
        (0..600).map(|n| format!("  - {{resource: 'GET:/{n}', threshold: 1}}\n")).collect();
    let folder = folder_of(&[("many.yaml", &format!("{HEAD}{rules}"))]);
    let (right, text) = said(folder.path(), &Options::of(vec![folder.path().join("many.yaml")]));
    assert!(right);
    assert_eq!(text.lines().filter(|line| line.contains("GET:/")).count(), 500);
    assert!(text.ends_with("… and 100 more (`--json` names all)\n600 rules: 600 flow\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100));
}
