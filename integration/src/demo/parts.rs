//! What is shown of each rule: which requests are sent for it, and how what came of them is judged.
//!
//! Rules are read as they stand in the documents, as far as a judge outside must know them. A rule that cannot be shown from
//! outside (a system rule that only great load would trigger) is named and left out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::load::Ask;
use crate::rules::{Limit, is_default, limits, of_kind};
use crate::upstream::{Behaviour, RESOURCE};

/// All that is shown.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By name, each once; the weight is requests a second.
    pub(super) asks: BTreeMap<String, Ask>,
    /// What takes time at the upstream.
    pub(super) behaviours: Vec<(String, Behaviour)>,
    pub(super) parts: Vec<Part>,
    /// Rules that are in force and not shown.
    pub(super) others: Vec<String>,
}

/// One rule on one resource.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// What the table calls it.
    pub(super) resource: String,
    pub(super) rule: String,
    /// The limit as text.
    pub(super) limit: String,
    /// The requests that it governs, by the names of their asks.
    pub(super) names: Vec<String>,
    pub(super) judge: Judge,
}

/// How a part is judged.
#[derive(Clone, Debug)]
pub(super) enum Judge {
    /// At most so many in each window; what is over is refused.
    Windows(Limit),
    /// One in each interval.
    Pace(Duration),
    /// So many a second when warm, this part of it when cold.
    WarmUp { threshold: u64, cold_factor: u64 },
    /// So many at a time.
    AtATime(u64),
    /// Tokens of one value: so many in each duration, and so many more after a rest.
    Bucket { threshold: u64, burst: u64, duration: Duration },
    /// Everybody is refused, or nobody.
    Refuses(bool),
    /// Nearly everybody is refused, since another resource has too much.
    GivesWay,
    /// It opens while the upstream is ill, and closes when it is well.
    Breaker { probes: u64, retry: Duration },
    /// Everything together.
    System(Limit),
}

impl Parts {
    /// What these documents have to show. `args` is what `paramIndex` counts.
    pub(super) fn of(documents: &[Value], args: &[String]) -> Self {
        let mut parts = Self::default();
        for limit in limits(documents) {
            let Some(ask) = ask(&limit.resource, "") else { continue };
            let name = parts.ask(ask, 3.0 * per_second(&limit));
            parts.show(
                &limit.resource,
                limit.rule.as_deref(),
                limit.text(),
                [name],
                Judge::Windows(limit.clone()),
            );
        }
        of_kind(documents, "FlowRules").for_each(|rule| parts.flow(rule));
        of_kind(documents, "IsolationRules").for_each(|rule| parts.isolation(rule));
        of_kind(documents, "HotspotRules").for_each(|rule| parts.hotspot(rule, args));
        of_kind(documents, "CircuitBreakerRules").for_each(|rule| parts.breaker(rule));
        of_kind(documents, "AuthorityRules").for_each(|rule| parts.authority(rule));
        let groups: Vec<_> = of_kind(documents, "ApiDefinitions").collect();
        of_kind(documents, "GatewayFlowRules").for_each(|rule| parts.gateway(rule, &groups));
        parts.opensergo(documents);
        of_kind(documents, "SystemRules").for_each(|rule| parts.system(rule));
        parts
    }

    /// Resources to which OpenSergo's documents bind a limit on requests.
    fn opensergo(&mut self, documents: &[Value]) {
        let specs = |kind: &'static str| {
            documents.iter().filter(move |document| text(document, "kind") == kind).filter_map(
                |document| {
                    Some((document.pointer("/metadata/name")?.as_str()?, document.get("spec")?))
                },
            )
        };
        let list = |spec: &Value, field: &str| -> Vec<Value> {
            spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        for (binding, spec) in specs("FaultToleranceRule") {
            for reference in list(spec, "strategies") {
                let (name, kind) = (text(&reference, "name"), text(&reference, "kind"));
                let Some((_, strategy)) = specs("RateLimitStrategy")
                    .find(|(known, _)| *known == name && kind == "RateLimitStrategy")
                else {
                    self.others.push(format!("{binding}: {name}"));
                    continue;
                };
                for target in list(spec, "targets") {
                    let resource = text(&target, "targetResourceName");
                    let id = format!("{binding}:{resource}:{name}:{kind}");
                    let limit = Limit {
                        rule: Some(id.clone()),
                        resource: resource.to_owned(),
                        threshold: number(strategy, "threshold"),
                        stat_interval_ms: 1000
                            * u64::from(whole(number(strategy, "statDurationSeconds")).max(1)),
                    };
                    let Some(ask) = ask(resource, "") else { return };
                    let name = self.ask(ask, 3.0 * per_second(&limit));
                    self.show(resource, Some(&id), limit.text(), [name], Judge::Windows(limit));
                }
            }
        }
    }

    /// Adds a kind of request, at so many a second at least, and returns its name.
    fn ask(&mut self, mut ask: Ask, per_second: f64) -> String {
        // Under this name it is written down at the upstream, too.
        ask = ask.clone().header(RESOURCE, &ask.name);
        let weight = whole(per_second).max(LEAST_RATE);
        let known = self.asks.entry(ask.name.clone()).or_insert_with(|| ask.weight(weight));
        known.weight = known.weight.max(weight);
        known.name.clone()
    }

    fn show<const N: usize>(
        &mut self,
        resource: &str,
        rule: Option<&str>,
        limit: String,
        names: [String; N],
        judge: Judge,
    ) {
        let rule = rule.unwrap_or("(no id)").to_owned();
        let resource = resource.to_owned();
        self.parts.push(Part { resource, rule, limit, names: names.into(), judge });
    }

    /// What [`limits`] leaves out.
    fn flow(&mut self, rule: &Value) {
        let (resource, id) = (text(rule, "resource"), rule_id(rule));
        let threshold = number(rule, "threshold");
        let rate = |ms: f64| format!("{threshold} in {} s", ms / 1000.0);
        let interval_ms = match number(rule, "statIntervalInMs") {
            interval if interval > 0.0 => interval,
            _ => 1000.0,
        };
        let limit = Limit {
            rule: id.map(str::to_owned),
            resource: resource.to_owned(),
            threshold,
            stat_interval_ms: u64::from(whole(interval_ms)),
        };
        let warms_up = !is_default(rule, "tokenCalculateStrategy", "Direct");
        if rule.get("shadow") == Some(&Value::Bool(true)) {
            self.other(rule);
        } else if text(rule, "tokenCalculateStrategy") == "MemoryAdaptive" {
            // The upper end of what may hold.
            let threshold = number(rule, "lowMemUsageThreshold");
            let limit = Limit { threshold, ..limit };
            let Some(ask) = ask(resource, "") else { return };
            let name = self.ask(ask, 2.0 * per_second(&limit));
            let text = format!("{} by memory", limit.text());
            self.show(resource, id, text, [name], Judge::Windows(limit));
        } else if text(rule, "controlBehavior") == "Throttling" {
            let interval = Duration::from_secs_f64(interval_ms / 1000.0 / threshold.max(1e-3));
            let Some(ask) = ask(resource, "") else { return };
            let name = self.ask(ask, 3.0 * per_second(&limit));
            let text = format!("1 each {:.0} ms", interval.as_secs_f64() * 1000.0);
            self.show(resource, id, text, [name], Judge::Pace(interval));
        } else if warms_up {
            let cold_factor = match number(rule, "warmUpColdFactor") {
                factor if factor >= 2.0 => factor,
                _ => 3.0,
            };
            let Some(ask) = ask(resource, "") else { return };
            let name = self.ask(ask, 3.0 * threshold);
            let judge = Judge::WarmUp {
                threshold: limit.requests(),
                cold_factor: u64::from(whole(cold_factor)),
            };
            self.show(resource, id, format!("{} when warm", limit.text()), [name], judge);
        } else if text(rule, "relationStrategy") == "AssociatedResource" {
            let other = text(rule, "refResource");
            let (Some(this), Some(other_ask)) = (ask(resource, ""), ask(other, "")) else { return };
            let name = self.ask(this, 50.0);
            let _ = self.ask(other_ask, 3.0 * threshold);
            let text = format!("{} of {other}", rate(interval_ms));
            self.show(resource, id, text, [name], Judge::GivesWay);
        } else if rule.get("regex") == Some(&Value::Bool(true)) {
            self.each_match(resource, |parts, resource, ask| {
                let name = parts.ask(ask, 3.0 * per_second(&limit));
                let limit = Limit { resource: resource.to_owned(), ..limit.clone() };
                parts.show(resource, id, limit.text(), [name], Judge::Windows(limit));
            });
        } else if resource == "*" {
            let name = "GET:/not-named";
            let Some(ask) = ask(name, "") else { return };
            let asked = self.ask(ask, 2.0 * per_second(&limit));
            self.show(name, id, limit.text(), [asked], Judge::Windows(limit));
        } else {
            self.by_caller(rule, &limit);
        }
    }

    /// `limitApp`: the caller that a rule names, or somebody whom none names.
    fn by_caller(&mut self, rule: &Value, limit: &Limit) {
        let caller = match text(rule, "limitApp") {
            "" | "default" => return,
            "other" => "somebody",
            origin => origin,
        };
        let Some(ask) = ask(&limit.resource, &format!(" by {caller}")) else { return };
        let name = self.ask(ask.header(ORIGIN, caller), 3.0 * per_second(limit));
        // All callers together are the other rules' too.
        for part in &mut self.parts {
            if part.resource == limit.resource {
                part.names.push(name.clone());
            }
        }
        let shown = name.clone();
        self.show(&shown, rule_id(rule), limit.text(), [name], Judge::Windows(limit.clone()));
    }

    fn isolation(&mut self, rule: &Value) {
        if rule.get("shadow") == Some(&Value::Bool(true)) {
            self.other(rule);
            return;
        }
        let threshold = number(rule, "threshold");
        let show = |parts: &mut Self, resource: &str, ask: Ask| {
            // 50 ms each: 20 a second for each place.
            let name = parts.ask(ask, 3.0 * 20.0 * threshold);
            parts.behaviours.push((name.clone(), Behaviour::default().after_ms(50)));
            let judge = Judge::AtATime(u64::from(whole(threshold)));
            parts.show(resource, rule_id(rule), format!("{threshold} at a time"), [name], judge);
        };
        let resource = text(rule, "resource");
        if rule.get("regex") == Some(&Value::Bool(true)) {
            self.each_match(resource, show);
        } else if let Some(ask) = ask(resource, "") {
            show(self, resource, ask);
        }
    }

    fn hotspot(&mut self, rule: &Value, args: &[String]) {
        let resource = text(rule, "resource");
        let index = rule.get("paramIndex").and_then(Value::as_u64).unwrap_or(0);
        let arg = || usize::try_from(index).ok().and_then(|index| args.get(index));
        let param = match text(rule, "paramKey") {
            "" => arg().map_or("", String::as_str),
            key => key,
        };
        let threshold = number(rule, "threshold");
        for value in ["ann", "bob"] {
            let Some(ask) = ask(resource, &format!(" of {value}")) else { return };
            let Some(ask) = with_param(ask, param, value) else {
                self.other(rule);
                return;
            };
            self.value(rule, ask, threshold, "durationInSec", "burstCount", "metricType");
        }
    }

    /// One value of a hot-parameter or gateway rule.
    fn value(
        &mut self,
        rule: &Value,
        ask: Ask,
        threshold: f64,
        duration: &str,
        burst: &str,
        metric: &str,
    ) {
        let seconds = number(rule, duration).max(1.0);
        let burst = number(rule, burst);
        let (limit, judge, rate) = match rule.get(metric) {
            Some(metric) if metric == "Concurrency" || metric == 0 => {
                let text = format!("{threshold} at a time");
                (text, Judge::AtATime(u64::from(whole(threshold))), 60.0 * threshold)
            }
            _ if text(rule, "controlBehavior") == "Throttling" => {
                let interval = Duration::from_secs_f64(seconds / threshold.max(1e-3));
                let text = format!("1 each {:.0} ms", interval.as_secs_f64() * 1000.0);
                (text, Judge::Pace(interval), 3.0 * threshold / seconds)
            }
            _ => {
                let text = match burst {
                    0.0 => format!("{threshold} in {seconds} s"),
                    burst => format!("{threshold} in {seconds} s, burst {burst}"),
                };
                let duration = Duration::from_secs_f64(seconds);
                let (tokens, burst) = (u64::from(whole(threshold)), u64::from(whole(burst)));
                let judge = Judge::Bucket { threshold: tokens, burst, duration };
                (text, judge, 3.0 * threshold / seconds)
            }
        };
        let name = self.ask(ask, rate);
        if matches!(judge, Judge::AtATime(_)) {
            self.behaviours.push((name.clone(), Behaviour::default().after_ms(50)));
        }
        let shown = name.clone();
        self.show(&shown, rule_id(rule), limit, [name], judge);
    }

    fn breaker(&mut self, rule: &Value) {
        let resource = text(rule, "resource");
        let Some(ask) = ask(resource, "") else { return };
        let name = self.ask(ask, 60.0);
        let threshold = number(rule, "threshold");
        let limit = match text(rule, "strategy") {
            "ErrorCount" => format!("{threshold} errors"),
            "SlowRequestRatio" => {
                format!("{threshold} % over {} ms", number(rule, "maxAllowedRtMs"))
            }
            _ => format!("{threshold} % errors"),
        };
        let judge = Judge::Breaker {
            probes: u64::from(whole(number(rule, "probeNum")).max(1)),
            retry: Duration::from_millis(u64::from(whole(number(rule, "retryTimeoutMs")))),
        };
        self.show(resource, rule_id(rule), limit, [name], judge);
    }

    fn authority(&mut self, rule: &Value) {
        let resource = text(rule, "resource");
        let white = is_default(rule, "strategy", "White");
        let named = text(rule, "limitApp").split(',').next().unwrap_or_default();
        for (caller, refuses) in [(named, !white), ("somebody", white)] {
            let Some(ask) = ask(resource, &format!(" by {caller}")) else { return };
            let name = self.ask(ask.header(ORIGIN, caller), 0.0);
            let limit = if white { "white list" } else { "black list" };
            self.show(
                &name.clone(),
                rule_id(rule),
                limit.to_owned(),
                [name],
                Judge::Refuses(refuses),
            );
        }
    }

    fn gateway(&mut self, rule: &Value, groups: &[&Value]) {
        let resource = text(rule, "resource");
        let group = groups.iter().find(|group| text(group, "apiName") == resource);
        let of_group = ["ApiGroup", "1"].contains(&text(rule, "resourceMode"));
        let resource = match group.filter(|_| of_group) {
            None => resource.to_owned(),
            Some(group) => {
                let items = group.get("predicateItems").and_then(Value::as_array);
                let exact = items
                    .into_iter()
                    .flatten()
                    .find(|item| is_default(item, "matchStrategy", "Exact"));
                format!("GET:{}", exact.map_or("", |item| text(item, "pattern")))
            }
        };
        let threshold = number(rule, "count");
        let Some(item) = rule.get("paramItem") else {
            let Some(ask) = ask(&resource, "") else { return self.other(rule) };
            self.value(rule, ask, threshold, "intervalSec", "burst", "grade");
            return;
        };
        let kind = match text(item, "parseStrategy") {
            "Header" => "header",
            "UrlParam" => "query",
            "Cookie" => "cookie",
            _ => return self.other(rule),
        };
        let param = format!("{kind}:{}", text(item, "fieldName"));
        for value in ["ann", "bob"] {
            let value = format!("{}{value}", text(item, "pattern"));
            let Some(ask) = ask(&resource, &format!(" of {value}")) else { return };
            let Some(ask) = with_param(ask, &param, &value) else { return };
            self.value(rule, ask, threshold, "intervalSec", "burst", "grade");
        }
    }

    fn system(&mut self, rule: &Value) {
        let shadow = rule.get("shadow") == Some(&Value::Bool(true));
        if text(rule, "metricType") != "InboundQPS" || shadow {
            self.other(rule);
            return;
        }
        let limit = Limit {
            rule: rule_id(rule).map(str::to_owned),
            resource: "everything".to_owned(),
            threshold: number(rule, "triggerCount"),
            stat_interval_ms: 1000,
        };
        self.show("everything", rule_id(rule), limit.text(), [], Judge::System(limit));
    }

    /// Two resources that a simple pattern matches: one that has nothing to choose from but `[0-9]+` and `[a-z]+`.
    fn each_match(&mut self, pattern: &str, mut show: impl FnMut(&mut Self, &str, Ask)) {
        for (digits, letters) in [("1", "a"), ("2", "b")] {
            let resource = pattern.replace("[0-9]+", digits).replace("[a-z]+", letters);
            if resource.contains(|c: char| r"[](){}*+?|\^$".contains(c)) {
                self.others.push(pattern.to_owned());
                return;
            }
            if let Some(ask) = ask(&resource, "") {
                show(self, &resource, ask);
            }
        }
    }

    fn other(&mut self, rule: &Value) {
        self.others.extend(rule_id(rule).map(str::to_owned));
    }
}

/// A request of this resource, if that is `METHOD:/path`; `more` tells it from others of the same.
fn ask(resource: &str, more: &str) -> Option<Ask> {
    let (method, path) = resource
        .split_once(':')
        .filter(|(method, path)| !method.is_empty() && path.starts_with('/'))?;
    Some(Ask { name: format!("{resource}{more}"), method: method.to_owned(), ..Ask::get(path) })
}

/// The request with a value where `param` says.
fn with_param(ask: Ask, param: &str, value: &str) -> Option<Ask> {
    let (place, name) = param.split_once(':')?;
    Some(match place {
        "header" => ask.header(name, value),
        "cookie" => ask.header("cookie", &format!("{name}={value}")),
        "query" => Ask { path: format!("{}?{name}={value}", ask.path), ..ask },
        _ => return None,
    })
}

pub(super) fn per_second(limit: &Limit) -> f64 {
    limit.threshold * 1000.0 / f64::from(u32::try_from(limit.stat_interval_ms).unwrap_or(u32::MAX))
}

fn text<'a>(rule: &'a Value, field: &str) -> &'a str {
    rule.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn number(rule: &Value, field: &str) -> f64 {
    rule.get(field).and_then(Value::as_f64).unwrap_or_default()
}

fn rule_id(rule: &Value) -> Option<&str> {
    rule.get("id").and_then(Value::as_str)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, and nothing here is negative"
)]
fn whole(number: f64) -> u32 {
    number as u32
}

/// The header that says who calls, as in `envoy/envoy.yaml`.
const ORIGIN: &str = "x-origin";
const LEAST_RATE: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules;

    #[test]
    fn every_kind_of_the_shipped_rules_is_shown() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../rules");
        let documents = rules::read(std::path::Path::new(shipped)).unwrap();
        let parts = Parts::of(&documents, &["header:x-user".to_owned(), "query:page".to_owned()]);

        let shown = |rule: &str| parts.parts.iter().filter(|part| part.rule == rule).count();
        for rule in [
            "hello",
            "mail",
            "catalog",
            "import",
            "export",
            "creating-first",
            "partners",
            "partners-shop",
            "partners-other",
            "everything-else",
            "pay-errors",
            "quote-slow",
            "stock-errors",
            "render",
            "storefront",
            "inbound-qps",
            "greeting:GET:/greeting:ten-a-second:RateLimitStrategy",
        ] {
            assert_eq!(shown(rule), 1, "{rule}");
        }
        for rule in [
            "items",
            "profile-user",
            "list-page",
            "download-session",
            "teams",
            "staff",
            "no-crawlers",
        ] {
            assert_eq!(shown(rule), 2, "{rule}");
        }
        let partners = parts.parts.iter().find(|part| part.rule == "partners").unwrap();
        assert_eq!(partners.names.len(), 3, "{partners:?}");
        assert!(parts.asks.values().map(|ask| ask.weight).sum::<u32>() < 9000);
    }
}
