//! Rules in a few words.

use sentinel_core::{
    param::Param,
    rule::{
        BreakerStrategy, Control, FlowRule, HotspotMetric, HotspotRule, LimitApp, ParamPick, Rule,
        SystemMetric, TokenCalculate, Unit,
    },
};

/// What rules of this kind are called, as sentinel-golang calls their lists.
pub(crate) fn kind(rule: &Rule) -> &'static str {
    match rule {
        Rule::Authority(_) => "authority",
        Rule::System(_) => "system",
        Rule::Gateway(_) => "gateway",
        Rule::Flow(_) => "flow",
        Rule::Isolation(_) => "isolation",
        Rule::Hotspot(_) => "hotspot",
        Rule::CircuitBreaker(_) => "circuitbreaker",
    }
}

/// The same where there is little room.
pub(crate) fn short_kind(rule: &Rule) -> &'static str {
    match kind(rule) {
        "circuitbreaker" => "breaker",
        kind => kind,
    }
}

/// What a rule allows, in a few words.
pub(crate) fn limit(rule: &Rule) -> String {
    match rule.common().unit {
        Unit::Request => limit_of(rule),
        Unit::Message => format!("messages: {}", limit_of(rule)),
    }
}

fn limit_of(rule: &Rule) -> String {
    match rule {
        Rule::Authority(rule) => {
            let origins = named(&rule.origins);
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
        let name = param(pick);
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

/// The first few of a list.
fn named(names: &[String]) -> String {
    const SHOWN: usize = 5;

    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// Where a value comes from, as documents write it.
pub(crate) fn param(pick: &ParamPick) -> String {
    match (&pick.key, pick.index) {
        (Some(Param::Header(name)), _) => format!("header:{name}"),
        (Some(Param::Query(name)), _) => format!("query:{name}"),
        (Some(Param::Cookie(name)), _) => format!("cookie:{name}"),
        (Some(Param::Sni), _) => "sni".to_owned(),
        (Some(Param::FilterChain), _) => "filter_chain".to_owned(),
        (Some(Param::ClientIp), _) => "client_ip".to_owned(),
        (Some(Param::PathSegment(number)), _) => format!("path_segment:{number}"),
        (Some(Param::Attachment(name)), _) => format!("attachment {name}"),
        (None, index) => format!("args[{}]", index.unwrap_or(0)),
    }
}
