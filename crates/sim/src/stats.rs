//! Envoy's statistics: of the process, not of a VM.
//!
//! Whoever defines a name that exists gets the same one, so that what all VMs add ends up in one sum.

use std::collections::BTreeMap;

use sentinel_engine::host::MetricKind;

/// All statistics; one's id is its place.
#[derive(Debug, Default)]
pub struct Stats {
    ids: BTreeMap<String, u32>,
    values: Vec<(MetricKind, u64)>,
}

impl Stats {
    /// Defines or finds `name`. `None` if it exists and is of another kind.
    pub fn define(&mut self, kind: MetricKind, name: &str) -> Option<u32> {
        if let Some(&id) = self.ids.get(name) {
            let (known, _) = self.values.get(usize::try_from(id).ok()?)?;
            return (*known == kind).then_some(id);
        }
        let id = u32::try_from(self.values.len()).ok()?;
        self.values.push((kind, 0));
        self.ids.insert(name.to_owned(), id);
        Some(id)
    }

    /// Adds to a counter; for a histogram, one more recording.
    pub fn add(&mut self, id: u32, delta: u64) {
        self.change(id, |value| *value = value.saturating_add(delta));
    }

    /// Sets a gauge.
    pub fn set(&mut self, id: u32, value: u64) {
        self.change(id, |stored| *stored = value);
    }

    /// The value of a counter or a gauge, the number of recordings of a histogram; 0 if nobody has
    /// defined it.
    pub fn value(&self, name: &str) -> u64 {
        let place = self.ids.get(name).and_then(|id| usize::try_from(*id).ok());
        place.and_then(|place| self.values.get(place)).map_or(0, |(_, value)| *value)
    }

    /// All names with their values, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.ids.keys().map(|name| (name.as_str(), self.value(name)))
    }

    fn change(&mut self, id: u32, change: impl FnOnce(&mut u64)) {
        let place = usize::try_from(id).ok().and_then(|place| self.values.get_mut(place));
        if let Some((_, value)) = place {
            change(value);
        }
    }
}
