//! The names and meanings of all statistics, and how a total reaches Envoy exactly once.
//!
//! Envoy's statistics belong to the process: what each worker adds to a counter is in the sum, whichever
//! VM dies and whether there is a service or not. So totals are counted by the workers themselves. A
//! total is shown twice: for the proxy (`sentinel.pass_total`), and split into what it is made of: by
//! resource (`sentinel.resource.<r>.pass_total`, the resource `other` included), and refusals by
//! resource, rule and type (`sentinel.resource.<r>.rule.<id>.type.<t>.block_total`). The parts add up to
//! the whole; none is a sum of others, so that nothing counts twice in PromQL.

use alloc::string::String;

use sentinel_core::resource::metric_segment;

use crate::host::{Meter, MetricId, MetricKind};

/// The resource that everything counts under which has no series of its own.
pub const OTHER: &str = "other";

/// A counter that is told its running total and adds what is new.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Total {
    id: Metric,
    reported: u64,
}

/// A statistic that is defined when it is first needed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Metric {
    #[default]
    Undefined,
    Defined(MetricId),
    /// Envoy refused it: nothing is counted, and nobody asks again.
    Refused,
}

/// A gauge that stays as it is for long, and what this VM has set it to: an unchanged value is not set again. Where several VMs
/// set one gauge to what they see, the last change of each is to what is true by now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauge {
    metric: Metric,
    shown: Option<u64>,
}

impl Gauge {
    /// Sets the gauge, unless that is what it shows.
    pub(crate) fn show<M: Meter>(
        &mut self,
        meter: &mut M,
        value: u64,
        name: impl FnOnce(&mut String),
    ) {
        if self.shown != Some(value) {
            self.shown = Some(value);
            self.metric.set(meter, value, name);
        }
    }

    /// Somebody else has set it since.
    pub(crate) fn forget(&mut self) {
        self.shown = None;
    }
}

impl Metric {
    /// The statistic's id, defining it on the way.
    pub(crate) fn id<M: Meter>(
        &mut self,
        meter: &mut M,
        kind: MetricKind,
        name: impl FnOnce(&mut String),
    ) -> Option<MetricId> {
        if matches!(self, Self::Undefined) {
            let mut text = String::from("sentinel.");
            name(&mut text);
            *self = meter.define(kind, &text).map_or(Self::Refused, Self::Defined);
        }
        match self {
            Self::Defined(id) => Some(*id),
            Self::Undefined | Self::Refused => None,
        }
    }

    /// Sets a gauge.
    pub(crate) fn set<M: Meter>(
        &mut self,
        meter: &mut M,
        value: u64,
        name: impl FnOnce(&mut String),
    ) {
        if let Some(id) = self.id(meter, MetricKind::Gauge, name) {
            meter.set(id, value);
        }
    }
}

impl Total {
    /// Adds to Envoy's counter what `total` has grown by since the last call. A counter appears in Envoy
    /// with its first call, also at 0.
    pub(crate) fn report<M: Meter>(
        &mut self,
        meter: &mut M,
        total: u64,
        name: impl FnOnce(&mut String),
    ) {
        let Some(id) = self.id.id(meter, MetricKind::Counter, name) else { return };
        let new = total.saturating_sub(self.reported);
        if new > 0 {
            meter.add(id, new);
            self.reported = total;
        }
    }

    /// Whether `total` has grown since the last report.
    pub(crate) fn is_behind(&self, total: u64) -> bool {
        total > self.reported
    }

    /// What `total` has grown by since the last call, to be reported under another name.
    pub(crate) fn take_unreported(&mut self, total: u64) -> u64 {
        let new = total.saturating_sub(self.reported);
        self.reported = total;
        new
    }
}

/// Appends `resource.<name>.<what>`.
pub(crate) fn of_resource(name: &str, what: &str, text: &mut String) {
    text.push_str("resource.");
    metric_segment(name.as_bytes(), text);
    text.push('.');
    text.push_str(what);
}

/// Appends `resource.<name>.rule.<id>.<what>`.
pub(crate) fn of_rule(resource: &str, id: &str, what: &str, text: &mut String) {
    of_resource(resource, "rule.", text);
    metric_segment(id.as_bytes(), text);
    text.push('.');
    text.push_str(what);
}
