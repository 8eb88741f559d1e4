//! `check`: rule files, read by the very code that the service reads them with.
//!
//! So a file that passes here is one that the service takes, and what it would complain about stands in
//! front of whoever writes the file, all of it at once.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use sentinel_core::{
    config::Settings,
    param::Param,
    rule::{
        BreakerStrategy, Control, FlowRule, HotspotMetric, HotspotRule, LimitApp, Rule,
        SystemMetric, TokenCalculate,
        compile::{Source, compile_set},
        error::{Reason, Refusal, Refusals, Site},
        node::Node,
    },
};
use sentinel_engine::document;

/// Checks `files`, each by itself and all as one set, and writes to `out` what is wrong with them, a line
/// each, and what the good ones hold. `color` marks the verdicts for a terminal.
///
/// The answer is whether all are right. Settings are the defaults; what the service's configuration
/// sets, and the rules in it, are not looked at.
///
/// # Errors
///
/// If nothing can be written to `out`. A file that cannot be read is a refused one.
pub fn check(files: &[PathBuf], out: &mut impl Write, color: bool) -> io::Result<bool> {
    let mut all_right = true;
    let mut right: Vec<(String, Vec<Node>)> = Vec::new();
    for file in files {
        let name = file.display().to_string();
        match read(file, &name) {
            Ok((documents, rules)) => {
                let count = if rules.len() == 1 {
                    "1 rule".into()
                } else {
                    format!("{} rules", rules.len())
                };
                writeln!(out, "{name}: {}, {count}", verdict("ok", GREEN, color))?;
                write_rules(&rules, out)?;
                right.push((name, documents));
            }
            Err(refusals) => {
                all_right = false;
                write_refusals(&refusals, out)?;
                writeln!(out, "{name}: {}", verdict("refused", RED, color))?;
            }
        }
    }
    // Ids must differ over all files.
    let sources: Vec<Source<'_>> =
        right.iter().map(|(name, documents)| Source { documents, ..Source::of(name) }).collect();
    if let Err(refusals) = compile_set(&sources, &Settings::DEFAULT) {
        all_right = false;
        write_refusals(&refusals, out)?;
        writeln!(out, "all files together: {}", verdict("refused", RED, color))?;
    }
    Ok(all_right)
}

fn read(file: &Path, name: &str) -> Result<(Vec<Node>, Vec<Rule>), Refusals> {
    let bytes = fs::read(file).map_err(|error| Refusal {
        site: Site::of_source(name),
        field: String::new(),
        reason: Reason::Malformed(format!("cannot be read: {error}")),
    })?;
    let documents = document::documents(&bytes).map_err(|error| error.in_source(name))?;
    let rules =
        compile_set(&[Source { documents: &documents, ..Source::of(name) }], &Settings::DEFAULT)?;
    Ok((documents, rules))
}

fn write_refusals(refusals: &Refusals, out: &mut impl Write) -> io::Result<()> {
    for line in refusals.lines() {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn write_rules(rules: &[Rule], out: &mut impl Write) -> io::Result<()> {
    let width = |text: fn(&Rule) -> &str| {
        rules.iter().map(|rule| text(rule).chars().count()).max().unwrap_or(0)
    };
    let (ids, resources) = (width(Rule::id), width(Rule::resource));
    for rule in rules {
        let (id, resource) = (rule.id(), rule.resource());
        let limit = limit(rule);
        let shadow = if rule.common().shadow { ", shadow" } else { "" };
        writeln!(out, "  {id:ids$}  {resource:resources$}  {limit}{shadow}")?;
    }
    Ok(())
}

/// What a rule allows, in a few words.
fn limit(rule: &Rule) -> String {
    match rule {
        Rule::Authority(rule) => {
            let origins = rule.origins.join(", ");
            if rule.white_list { format!("only {origins}") } else { format!("all but {origins}") }
        }
        Rule::System(rule) => {
            let trigger = rule.trigger;
            match rule.metric {
                SystemMetric::InboundQps => format!("{trigger} a second, all together"),
                SystemMetric::Concurrency => format!("{trigger} at a time, all together"),
                SystemMetric::AvgRt => format!("while they take less than {trigger} ms on average"),
                SystemMetric::CpuUsage { bbr: false } => {
                    format!("while the CPU is at most {trigger}")
                }
                SystemMetric::CpuUsage { bbr: true } => {
                    format!(
                        "while the CPU is at most {trigger}, beyond it as many as can be served (BBR)"
                    )
                }
            }
        }
        Rule::Flow(rule) => flow_limit(rule),
        Rule::Isolation(rule) => format!("{} at a time", rule.threshold),
        Rule::Gateway(rule) | Rule::Hotspot(rule) => hotspot_limit(rule),
        Rule::CircuitBreaker(rule) => {
            let window = span(u64::from(rule.stat_interval_ms));
            let trip = match rule.strategy {
                BreakerStrategy::SlowRequestRatio { max_allowed_rt_ms, ratio } => {
                    format!("{ratio} of them take longer than {max_allowed_rt_ms} ms")
                }
                BreakerStrategy::ErrorRatio(ratio) => format!("{ratio} of them fail"),
                BreakerStrategy::ErrorCount(count) => format!("{count} fail"),
            };
            let least = rule.min_request_amount;
            format!(
                "none while, of {least} or more in {window}, {trip}; a probe after {}",
                span(u64::from(rule.retry_timeout_ms))
            )
        }
    }
}

fn flow_limit(rule: &FlowRule) -> String {
    let mut text = match &rule.calculate {
        TokenCalculate::Direct => rule.threshold.to_string(),
        TokenCalculate::WarmUp(warm_up) => {
            format!("{} (cold: 1/{} of it)", rule.threshold, warm_up.cold_factor)
        }
        TokenCalculate::MemoryAdaptive(marks) => {
            format!("{} to {} by memory", marks.high_threshold, marks.low_threshold)
        }
    };
    text.push_str(&format!(" in {}", span(u64::from(rule.stat_interval_ms))));
    if let Control::Throttling { max_queueing_ms } = rule.control {
        text.push_str(&format!(", evenly, waiting up to {max_queueing_ms} ms"));
    }
    match &rule.limit_app {
        LimitApp::Default => {}
        LimitApp::Other => text.push_str(", for each caller that no other rule names"),
        LimitApp::Origin(origin) => text.push_str(&format!(", for {origin}")),
    }
    if let Some(resource) = &rule.ref_resource {
        text.push_str(&format!(", of {resource}"));
    }
    text
}

fn hotspot_limit(rule: &HotspotRule) -> String {
    let threshold = rule.threshold;
    let mut text = match rule.metric {
        HotspotMetric::Concurrency => format!("{threshold} at a time"),
        HotspotMetric::Reject { duration_ms, burst: 0 } => {
            format!("{threshold} in {}", span(duration_ms))
        }
        HotspotMetric::Reject { duration_ms, burst } => {
            format!("{threshold} in {} and {burst} more after a rest", span(duration_ms))
        }
        HotspotMetric::Throttling { duration_ms, max_queueing_ms } => {
            format!(
                "{threshold} in {}, evenly, waiting up to {max_queueing_ms} ms",
                span(duration_ms)
            )
        }
    };
    if let Some(pick) = &rule.param {
        let name = match (&pick.key, pick.index) {
            (Some(Param::Header(name)), _) => format!("header:{name}"),
            (Some(Param::Query(name)), _) => format!("query:{name}"),
            (Some(Param::Cookie(name)), _) => format!("cookie:{name}"),
            (Some(Param::ClientIp), _) => "client_ip".to_owned(),
            (Some(Param::PathSegment(number)), _) => format!("path_segment:{number}"),
            (Some(Param::Attachment(name)), _) => format!("attachment {name}"),
            (None, index) => format!("args[{}]", index.unwrap_or(0)),
        };
        text.push_str(&format!(", for each value of {name}"));
        if let Some(matching) = &pick.matching {
            text.push_str(&format!(" that matches {}", matching.pattern));
        }
    }
    match rule.items.len() {
        0 => {}
        1 => text.push_str(", 1 value apart"),
        count => text.push_str(&format!(", {count} values apart")),
    }
    text
}

fn span(interval_ms: u64) -> String {
    if interval_ms.is_multiple_of(1_000) {
        format!("{} s", interval_ms / 1_000)
    } else {
        format!("{interval_ms} ms")
    }
}

const GREEN: u8 = 32;
const RED: u8 = 31;

fn verdict(word: &str, hue: u8, color: bool) -> String {
    if color { format!("\u{1b}[{hue}m{word}\u{1b}[0m") } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use sentinel_core::{
        config::{
            CONSOLE_FIELDS, ENVOY_STATS_FIELDS, FILTER_FIELDS, METRICS_FIELDS, RESOURCE_FIELDS, SERIES_MAX,
            SERVICE_FIELDS, SETTINGS,
        },
        rule::compile::{
            DOCUMENT_FIELDS, KINDS, OPENSERGO_KINDS, PARAM_ITEM_FIELDS, PREDICATE_FIELDS,
            RESPONSE_FIELDS, SPECIFIC_ITEM_FIELDS,
        },
    };

    use super::*;

    const HEAD: &str =
        "apiVersion: datasource.sentinel.io/v1alpha1\nkind: FlowRules\nspec:\n  rules:\n";

    /// Writes `files` and says what `check` says of them.
    #[track_caller]
    fn check_files(files: &[(&str, &str)], right: bool, expected: &Expect) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files
            .iter()
            .map(|(name, text)| {
                let path = folder.path().join(name);
                fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let mut out = Vec::new();
        assert_eq!(check(&paths, &mut out, false).unwrap(), right);
        let said = String::from_utf8(out).unwrap();
        expected.assert_eq(&said.replace(&format!("{}/", folder.path().display()), ""));
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
            flow.yaml: ok, 3 rules
              hello                                         GET:/hello       100 in 1 s
              flow:GET:/users/_id_:1500ms:09740cf5a149cbdb  GET:/users/{id}  1.5 in 1500 ms, shadow
              flow:GET:/hello:20000ms                       GET:/hello       60 in 20 s
            empty.yaml: ok, 0 rules
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
        check_files(
            &[("all.yaml", &format!("{HEAD}{rules}"))],
            true,
            &expect![[r#"
            all.yaml: ok, 17 rules
              flow:a                                                a                          10 (cold: 1/3 of it) in 1 s
              memory                                                a                          1 to 9 by memory in 1 s
              flow:a:throttling                                     a                          5 in 1 s, evenly, waiting up to 500 ms
              flow:a:ref.b                                          a                          1 in 1 s, of b
              flow:GET:/a/_0-9__:regex:other:a95732f0f8c5e4a3       GET:/a/[0-9]+              1 in 1 s, for each caller that no other rule names
              flow::default:origin.shop                             *                          1 in 1 s, for shop
              breaker:a:slow_ratio.50                               a                          none while, of 5 or more in 1 s, 0.6 of them take longer than 50 ms; a probe after 5 s
              breaker:a:error_ratio:1500ms                          a                          none while, of 0 or more in 1500 ms, 0.5 of them fail; a probe after 500 ms
              breaker:a:error_count                                 a                          none while, of 0 or more in 1 s, 9 fail; a probe after 5 s
              hotspot:a:header.x-user                               a                          5 in 1 s and 2 more after a rest, for each value of header:x-user, 1 value apart
              hotspot:a:arg.-1:concurrency                          a                          5 at a time, for each value of args[-1]
              isolation:a                                           a                          7 at a time
              system:cpu_usage.bbr                                  __total_inbound_traffic__  while the CPU is at most 0.8, beyond it as many as can be served (BBR)
              system:avg_rt                                         __total_inbound_traffic__  while they take less than 20 ms on average
              authority:a:white                                     a                          only shop, app
              gateway:shop:group:query.p:exact.x:throttling:2000ms  shop                       10 in 2 s, evenly, waiting up to 500 ms, for each value of query:p that matches x
              mine:a:at-once                                        a                          8 at a time
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
            flow.json: ok, 1 rule
              flow:abc  abc  10 in 1 s
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
            one.yaml: ok, 2 rules
              flow:a  a  1 in 1 s
              x       b  1 in 1 s
            two.yaml: ok, 2 rules
              flow:a  a  2 in 1 s
              x       c  1 in 1 s
            two.yaml:5:5: document 1 (FlowRules): rules[0] (a): `id` is missing: the rule counts the same as one.yaml:5:5: document 1 (FlowRules): rules[0] (a); give both an `id`
            two.yaml:6:5: document 1 (FlowRules): rules[1] (x): `id` is also the id of one.yaml:6:5: document 1 (FlowRules): rules[1] (x); ids must differ
            all files together: refused
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
        "#]],
        );
    }

    #[test]
    fn a_file_that_is_no_document_is_refused_with_the_place() {
        check_files(
            &[("a.yaml", "a: [1\n"), ("b.yaml", "a: \u{1}")],
            false,
            &expect![[r#"
            a.yaml:2:1: while parsing a flow sequence, expected ',' or ']'
            a.yaml: refused
            b.yaml:1:4: the control character U+0001 may not stand here
            b.yaml: refused
        "#]],
        );
        let mut out = Vec::new();
        assert!(!check(&[PathBuf::from("no/such.yaml")], &mut out, true).unwrap());
        expect![[r#"
            no/such.yaml: cannot be read: No such file or directory (os error 2)
            no/such.yaml: ESC[31mrefusedESC[0m
        "#]]
        .assert_eq(&String::from_utf8(out).unwrap().replace('\u{1b}', "ESC"));
    }

    fn rules_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules")
    }

    #[test]
    fn every_example_file_passes() {
        let files = fs::read_dir(rules_folder()).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect();
        assert!(!files.is_empty());
        let mut out = Vec::new();
        let right = check(&files, &mut out, false).unwrap();
        assert!(right, "{}", String::from_utf8_lossy(&out));
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
            assert!(
                readme.contains(&format!("`{name}`")),
                "rules/README.md does not name `{name}`"
            );
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
}
