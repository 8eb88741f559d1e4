//! Tables: what a function must say of each input.
//!
//! Each asks the product's own function; what is here only turns the table's words into its arguments and its
//! answer into the table's words.

use anyhow::{Context as _, Result, bail, ensure};
use sentinel_core::{
    config::Settings,
    param::{MatchStrategy, ParamValue, Request as _},
    pattern::Pattern,
    rule::{HotspotRule, Rule, compile::is_valid_in_golang},
    stat::{LeapArray, MetricBucket, same_ratio},
    time::{Nanos, Span},
    window::{Reuse, WindowShape, reuse},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    request::VectorRequest,
    rules::{Dialect, node},
};

/// One line of a table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    #[serde(default)]
    input: Value,
    #[serde(default)]
    expect: Value,
}

/// The array of every resource in sentinel-golang: 20 buckets over 10 s.
const RESOURCE_BUCKETS: u32 = 20;
const RESOURCE_INTERVAL_MS: u32 = 10_000;

/// Checks all rows of a table of `kind`.
///
/// # Errors
/// If a row says something else than the product, or nothing here knows the kind.
pub(super) fn run(kind: &str, dialect: Dialect, rows: &[Row]) -> Result<()> {
    ensure!(!rows.is_empty(), "a table of `{kind}` without rows");
    for (index, row) in rows.iter().enumerate() {
        check(kind, dialect, row).with_context(|| format!("row {} ({})", index + 1, row.input))?;
    }
    Ok(())
}

fn check(kind: &str, dialect: Dialect, row: &Row) -> Result<()> {
    let Row { input, expect } = row;
    let (found, remark) = match kind {
        "stat-for" => (json!(stat_for(input)?), None),
        "reuse-check" => (json!(reuse_check(input)?), None),
        "leap-index" => (leap_index(input)?, None),
        "float-equals" => {
            let [a, b] = numbers(input, Value::as_f64)?;
            (json!(same_ratio(a, b)), None)
        }
        "gateway-param" => (gateway_param(dialect, input)?, None),
        _ => match kind.strip_prefix("validity-") {
            Some(rules) => {
                let (valid, refused) = validity(rules, dialect, input)?;
                (json!(valid), refused)
            }
            None => bail!("a table of `{kind}` is not supported"),
        },
    };
    let remark = remark.map(|remark| format!(": {remark}")).unwrap_or_default();
    ensure!(found == without_remark(expect), "expected {expect}, got {found}{remark}");
    Ok(())
}

/// What a text says before its remark in parentheses.
fn without_remark(expect: &Value) -> Value {
    match expect.as_str().and_then(|text| text.split_once(" (")) {
        Some((text, _)) => json!(text),
        None => expect.clone(),
    }
}

/// Which window a flow rule reads, and whether the reference would have to count for it apart. We always do: a
/// ledger is one rule's.
fn stat_for(input: &Value) -> Result<String> {
    let interval_ms = input.as_u64().and_then(|interval_ms| u32::try_from(interval_ms).ok());
    let interval_ms = interval_ms.context("an interval is a number of milliseconds")?;
    let shape = WindowShape::for_flow(interval_ms);
    let millis = |span: Span| u32::try_from(span.get() / 1_000_000);
    let (buckets, window_ms) = (u32::from(shape.buckets()), millis(shape.window())?);
    let text = format!("{buckets}x{}", millis(shape.bucket())?);
    let by_default = if shape == WindowShape::for_flow(0) { "default " } else { "" };
    Ok(match reuse(buckets, window_ms, RESOURCE_BUCKETS, RESOURCE_INTERVAL_MS) {
        Reuse::Possible => format!("{by_default}{text}, shared"),
        Reuse::Impossible => format!("own {text}"),
        Reuse::NoWindow | Reuse::NoArray => bail!("{text} is no window"),
    })
}

fn reuse_check(input: &Value) -> Result<&'static str> {
    let as_u32 = |number: &Value| number.as_u64().and_then(|number| u32::try_from(number).ok());
    let [buckets, interval_ms, array_buckets, array_interval_ms] = numbers(input, as_u32)?;
    Ok(match reuse(buckets, interval_ms, array_buckets, array_interval_ms) {
        Reuse::Possible => "reusable",
        Reuse::Impossible => "not-reusable",
        Reuse::NoWindow => "illegal-rule-params",
        Reuse::NoArray => "illegal-global-params",
    })
}

fn leap_index(input: &Value) -> Result<Value> {
    let [bucket_ms, buckets, now_ms] = numbers(input, Value::as_u64)?;
    let array: LeapArray<MetricBucket> =
        LeapArray::new(Span::from_millis(bucket_ms), usize::try_from(buckets)?);
    let (index, start) = array.place_of(Nanos::from_millis(now_ms));
    Ok(json!([index, start.get() / 1_000_000]))
}

/// What a gateway rule counts a request by: its value, `$NM` for one that the rule's pattern does not mean, null
/// where the request has none.
fn gateway_param(dialect: Dialect, input: &Value) -> Result<Value> {
    let item = input.get("paramItem").context("there is no `paramItem`")?;
    let rule = json!([{"resource": "route", "count": 1, "intervalSec": 1, "paramItem": item}]);
    let rules = dialect
        .compile("gateway", &rule)?
        .map_err(|refusals| anyhow::anyhow!("the rule is refused: {refusals}"))?;
    let [Rule::Gateway(HotspotRule { param: Some(pick), .. })] = rules.as_slice() else {
        bail!("the rule has become {rules:?}");
    };
    let mut request = described(input.get("request").unwrap_or(&Value::Null))?;
    let key = pick.key.as_ref().context("the rule counts by no named parameter")?;
    let Some(value) = request.param(key) else { return Ok(Value::Null) };
    if let Some(matching) = &pick.matching {
        let pattern = match matching.strategy {
            MatchStrategy::Regex => {
                Some(Pattern::new(&matching.pattern).map_err(anyhow::Error::msg)?)
            }
            MatchStrategy::Exact | MatchStrategy::Prefix | MatchStrategy::Contains => None,
        };
        if !matching.accepts(&value, pattern.as_ref()) {
            return Ok(json!("$NM"));
        }
    }
    text_of(&value)
}

fn text_of(value: &ParamValue) -> Result<Value> {
    Ok(json!(String::from_utf8(value.text()).context("the value is no text")?))
}

/// The request of a `gateway-param` row: each field is `name=value`, or several of them.
fn described(fields: &Value) -> Result<VectorRequest> {
    let mut request = VectorRequest::default();
    let none = Map::new();
    for (field, value) in fields.as_object().unwrap_or(&none) {
        for text in texts(value)? {
            let pair =
                || text.split_once('=').with_context(|| format!("{text} is no `name=value`"));
            match field.as_str() {
                "clientIp" => request.client_ip = Some(text),
                "host" => request.set_host(&text),
                "path" => request.path.insert_str(0, &text),
                "header" => {
                    let (name, value) = pair()?;
                    request.headers.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                "cookie" => {
                    add(request.headers.entry("cookie".to_owned()).or_default(), "", "; ", &text);
                }
                "query" => add(&mut request.path, "?", "&", &text),
                _ => bail!("the field `{field}` of a request is not supported"),
            }
        }
    }
    Ok(request)
}

fn add(list: &mut String, before: &str, between: &str, text: &str) {
    list.push_str(if list.contains('=') { between } else { before });
    list.push_str(text);
}

fn texts(value: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = match value {
        Value::Array(list) => list.iter().map(text).collect(),
        Value::Object(map) => {
            map.iter().map(|(name, value)| Some(format!("{name}={}", value.as_str()?))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text(value).map(|text| vec![text])
        }
    };
    list.with_context(|| format!("{value} must be text"))
}

/// Whether a rule is valid, and if not, what the loader says.
///
/// Of sentinel-golang's rules a table asks what sentinel-golang's own check says, which lets some by that its
/// builder then drops; our loader refuses those too.
fn validity(rules: &str, dialect: Dialect, input: &Value) -> Result<(bool, Option<String>)> {
    let refused = dialect.compile(rules, &json!([input]))?.err().map(|refusals| {
        let lines: Vec<String> = refusals.lines().collect();
        lines.join("; ")
    });
    let valid = match dialect {
        Dialect::Golang => is_valid_in_golang(rules, &node(input)?, &Settings::DEFAULT),
        Dialect::Java | Dialect::Documents => refused.is_none(),
    };
    Ok((valid, refused))
}

/// The numbers of a list of exactly so many.
fn numbers<T, const N: usize>(input: &Value, read: impl Fn(&Value) -> Option<T>) -> Result<[T; N]> {
    let list = input.as_array().context("the input must be a list")?;
    let numbers: Option<Vec<T>> = list.iter().map(read).collect();
    let numbers: Option<[T; N]> = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.with_context(|| format!("the input must be {N} numbers"))
}
