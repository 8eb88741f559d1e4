//! Sentinel's metrics as Envoy's admin endpoint shows them.
//!
//! The names are the contract's: `wasmcustom.sentinel.[resource.<r>.][rule.<id>.][type.<t>.]<name>`, where bytes of a
//! segment outside `A-Za-z0-9_:/-` are written `%XX`.

use std::collections::BTreeMap;

/// All counters and gauges of one look at `/stats`, by full name.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    values: BTreeMap<String, u64>,
}

/// What a series of Sentinel's speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// The resource, unescaped.
    pub resource: Option<String>,
    /// The rule's id, unescaped.
    pub rule: Option<String>,
    /// The block type.
    pub block_type: Option<String>,
    /// The name of the metric, such as `pass_total`.
    pub name: String,
}

impl Stats {
    /// Reads the text of `/stats`. Histograms and text values, which are no plain numbers, are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let number = |line: &str| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self { values: text.lines().filter_map(number).collect() }
    }

    /// A value by its full name, Envoy's own too. `None`: there is no such number.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<u64> {
        self.values.get(name).copied()
    }

    /// The proxy's total: Sentinel's metric without segments. 0 when it has not been defined (yet).
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.value(&format!("{PREFIX}{name}")).unwrap_or(0)
    }

    /// The sum of a metric of one resource over rules and types. 0 when there is none.
    ///
    /// Where a resource has the metric both with and without a rule, the one without is the sum already, and is taken.
    #[must_use]
    pub fn resource(&self, resource: &str, name: &str) -> u64 {
        let of_resource: Vec<_> = self
            .series()
            .filter(|(series, _)| {
                series.name == name && series.resource.as_deref() == Some(resource)
            })
            .collect();
        match of_resource
            .iter()
            .find(|(series, _)| series.rule.is_none() && series.block_type.is_none())
        {
            Some((_, whole)) => *whole,
            None => of_resource.iter().map(|(_, value)| value).sum(),
        }
    }

    /// The sum of a metric of one rule over resources and types. 0 when there is none.
    #[must_use]
    pub fn rule(&self, rule: &str, name: &str) -> u64 {
        let of_rule = |series: &Series| series.name == name && series.rule.as_deref() == Some(rule);
        self.series().filter(|(series, _)| of_rule(series)).map(|(_, value)| value).sum()
    }

    /// Every series of Sentinel's with its value.
    pub fn series(&self) -> impl Iterator<Item = (Series, u64)> {
        self.values.iter().filter_map(|(name, value)| Some((Series::parse(name)?, *value)))
    }

    /// The sum of all values whose full name begins and ends so: `("wasm.", ".vm_reload")`.
    #[must_use]
    pub fn sum(&self, begins: &str, ends: &str) -> u64 {
        let chosen = |name: &str| name.starts_with(begins) && name.ends_with(ends);
        self.values.iter().filter(|(name, _)| chosen(name)).map(|(_, value)| value).sum()
    }
}

impl Series {
    /// Takes a full name apart; `None` when it is not one of Sentinel's.
    #[must_use]
    pub fn parse(full_name: &str) -> Option<Self> {
        let mut segments = full_name.strip_prefix(PREFIX)?.split('.').peekable();
        let mut series = Self::default();
        for (label, place) in [
            ("resource", &mut series.resource),
            ("rule", &mut series.rule),
            ("type", &mut series.block_type),
        ] {
            if segments.next_if_eq(&label).is_some() {
                *place = Some(unescape(segments.next()?));
            }
        }
        series.name = segments.next()?.to_owned();
        segments.next().is_none().then_some(series)
    }
}

fn unescape(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        if let Some(byte) = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = after.get(2..).unwrap_or("");
        } else {
            bytes.push(b'%');
            rest = after;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

const PREFIX: &str = "wasmcustom.sentinel.";

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
server.live: 1
wasmcustom.sentinel.block_total: 5
wasmcustom.sentinel.pass_total: 12
wasmcustom.sentinel.resource.GET:/a%2Eb.pass_total: 7
wasmcustom.sentinel.resource.GET:/a%2Eb.rule.first.type.FlowControl.block_total: 3
wasmcustom.sentinel.resource.GET:/a%2Eb.rule.second.type.FlowControl.block_total: 2
wasmcustom.sentinel.resource.GET:/a%2Eb.rt_ms: P0(nan,1.0) P25(nan,1.025)
cluster.upstream.name: \"text\"
";

    #[test]
    fn a_series_is_found_by_its_resource_and_by_its_rule() {
        let stats = Stats::parse(TEXT);

        assert_eq!(stats.value("server.live"), Some(1));
        assert_eq!(stats.total("pass_total"), 12);
        assert_eq!(stats.resource("GET:/a.b", "pass_total"), 7);
        assert_eq!(stats.resource("GET:/a.b", "block_total"), 5);
        assert_eq!(stats.rule("second", "block_total"), 2);
        assert_eq!(stats.total("no_such_thing"), 0);
    }

    #[test]
    fn a_resource_called_rule_is_still_a_resource() {
        let series = Series::parse("wasmcustom.sentinel.resource.rule.pass_total");

        let expected = Series {
            resource: Some("rule".to_owned()),
            name: "pass_total".to_owned(),
            ..Series::default()
        };
        assert_eq!(series, Some(expected));
    }
}
