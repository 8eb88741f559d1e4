//! Envoy's statistics: of the process, not of a VM.
//!
//! Whoever defines a name gets an id for it that is his own, and all ids of one name are one statistic, so that what
//! all VMs add ends up in one sum. A counter, a gauge and a histogram may have the same name.

use std::collections::BTreeMap;

use sentinel_engine::host::MetricKind;

/// All statistics, and the ids under which VMs know them.
#[derive(Debug, Default)]
pub struct Stats {
    values: BTreeMap<String, Kinds>,
    /// By VM; an id is its place.
    ids: BTreeMap<u32, Vec<(MetricKind, String)>>,
}

/// What stands under one name.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    counter: Option<u64>,
    gauge: Option<u64>,
    /// The number of recordings.
    histogram: Option<u64>,
}

impl Kinds {
    fn of(&mut self, kind: MetricKind) -> &mut Option<u64> {
        match kind {
            MetricKind::Counter => &mut self.counter,
            MetricKind::Gauge => &mut self.gauge,
            MetricKind::Histogram => &mut self.histogram,
        }
    }
}

impl Stats {
    /// Defines or finds `name` for a VM, under a new id.
    pub fn define(&mut self, vm: u32, kind: MetricKind, name: &str) -> u32 {
        self.values.entry(name.to_owned()).or_default().of(kind).get_or_insert(0);
        let ids = self.ids.entry(vm).or_default();
        ids.push((kind, name.to_owned()));
        u32::try_from(ids.len() - 1).unwrap_or(u32::MAX)
    }

    /// Adds to a counter.
    pub fn add(&mut self, vm: u32, id: u32, delta: u64) {
        self.change(vm, id, MetricKind::Counter, |value| *value = value.saturating_add(delta));
    }

    /// Sets a gauge.
    pub fn set(&mut self, vm: u32, id: u32, value: u64) {
        self.change(vm, id, MetricKind::Gauge, |stored| *stored = value);
    }

    /// Records a value of a histogram: one more.
    pub fn record(&mut self, vm: u32, id: u32) {
        self.change(vm, id, MetricKind::Histogram, |count| *count = count.saturating_add(1));
    }

    /// What a VM reads by its id; `None` for a histogram.
    pub fn read(&self, vm: u32, id: u32) -> Option<u64> {
        let (kind, name) = self.ids.get(&vm)?.get(usize::try_from(id).ok()?)?;
        let kinds = self.values.get(name)?;
        match kind {
            MetricKind::Counter => kinds.counter,
            MetricKind::Gauge => kinds.gauge,
            MetricKind::Histogram => None,
        }
    }

    /// The value of the counter or the gauge of this name, the number of recordings of the histogram; 0 if nobody
    /// has defined it.
    pub fn value(&self, name: &str) -> u64 {
        let of = |kinds: &Kinds| kinds.counter.or(kinds.gauge).or(kinds.histogram);
        self.values.get(name).and_then(of).unwrap_or(0)
    }

    /// All names with their values, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.values.keys().map(|name| (name.as_str(), self.value(name)))
    }

    fn change(&mut self, vm: u32, id: u32, kind: MetricKind, change: impl FnOnce(&mut u64)) {
        let ids = self.ids.get(&vm);
        let found = usize::try_from(id).ok().and_then(|place| ids?.get(place));
        let Some((_, name)) = found.filter(|(known, _)| *known == kind) else { return };
        if let Some(value) = self.values.get_mut(name).and_then(|kinds| kinds.of(kind).as_mut()) {
            change(value);
        }
    }
}
