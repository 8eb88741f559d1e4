//! What all VMs of one Envoy share: clocks, shared data, queues, statistics and calls to clusters.
//!
//! Everything follows from one random generator, so that a seed repeats a run. Besides answering as Envoy does
//! (`crates/sim/README.md` and the contract's tests say how), it fails as often as it is told to, and it judges what it is
//! given: a log line of two lines, a header with a line break or a metric's name with anything but its alphabet is a finding.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;

/// One Envoy.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) random: Rng,
    /// The monotonic clock; it moves a little with every reading.
    pub(super) now_ns: u64,
    /// How far the wall clock is ahead of it.
    pub(super) wall_offset_ns: u64,
    /// How many of 1,000 host calls fail.
    pub(super) failing: u32,
    /// Whether `stats_matcher` leaves our statistics out: then they are all 0.
    pub(super) has_no_statistics: bool,
    /// Keys, values and tokens.
    pub(super) data: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    cas: u32,
    /// Reads and writes of shared data so far.
    pub(super) shared_data_calls: u64,
    /// How many of the next writes of a value that is there find that somebody has been faster.
    pub(super) late_writes: u32,
    queues: Vec<(Vec<u8>, VecDeque<Vec<u8>>)>,
    metrics: Vec<Metric>,
    metric_ids: BTreeMap<String, u32>,
    /// Calls to clusters that have not been answered.
    pub(super) calls: Vec<Call>,
    next_call: u32,
    /// The first thing that a module should not have done.
    pub(super) finding: Option<String>,
    /// What has happened, the newest last.
    pub(super) events: VecDeque<String>,
    /// The last words of a module.
    pub(super) last_words: String,
}

/// One statistic.
#[derive(Debug)]
struct Metric {
    kind: u32,
    value: u64,
}

/// A call to a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// The VM that made it.
    pub(super) vm: usize,
    /// The root context that hears of its end.
    pub(super) root: u32,
    pub(super) number: u32,
}

/// proxy-wasm's statuses.
pub(super) const OK: u32 = 0;
pub(super) const NOT_FOUND: u32 = 1;
pub(super) const BAD_ARGUMENT: u32 = 2;
pub(super) const EMPTY: u32 = 7;
pub(super) const CAS_MISMATCH: u32 = 8;

/// The last of them.
const STATUSES: u32 = 12;

/// How many events are kept to be shown.
const EVENTS: usize = 60;

/// A clock that stood still would make every wait endless.
const READING_NS: u64 = 150;

/// Counters, as proxy-wasm numbers kinds; then gauges and histograms.
const COUNTER: u32 = 0;
const GAUGE: u32 = 1;

impl Process {
    pub(super) fn new(random: Rng) -> Self {
        Self {
            random,
            now_ns: 3_000_000_000,
            wall_offset_ns: 1_700_000_000_000_000_000,
            failing: 0,
            has_no_statistics: false,
            data: BTreeMap::new(),
            cas: 0,
            shared_data_calls: 0,
            late_writes: 0,
            queues: Vec::new(),
            metrics: Vec::new(),
            metric_ids: BTreeMap::new(),
            calls: Vec::new(),
            next_call: 1,
            finding: None,
            events: VecDeque::new(),
            last_words: String::new(),
        }
    }

    /// A status with which the next host call fails, if it does.
    pub(super) fn refusal(&mut self, function: &str) -> Option<u32> {
        if self.failing == 0 || self.random.u32(0..1_000) >= self.failing {
            return None;
        }
        let status = self.random.u32(1..=STATUSES);
        self.note(format!("    {function} fails with status {status}"));
        Some(status)
    }

    /// Keeps an event to be shown.
    pub(super) fn note(&mut self, event: String) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Notes what a module should not have done.
    pub(super) fn find(&mut self, finding: impl FnOnce() -> String) {
        if self.finding.is_none() {
            self.finding = Some(finding());
        }
    }

    pub(super) fn monotonic(&mut self) -> u64 {
        self.now_ns += READING_NS;
        self.now_ns
    }

    pub(super) fn wall(&mut self) -> u64 {
        self.monotonic().wrapping_add(self.wall_offset_ns)
    }

    /// A value of shared data and its token.
    pub(super) fn load(&mut self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.shared_data_calls += 1;
        self.data.get(key).cloned()
    }

    /// Writes a value if its token is `cas`, or 0, or if there is none (host facts, section 1).
    pub(super) fn store(&mut self, key: Vec<u8>, value: Vec<u8>, cas: u32) -> u32 {
        self.shared_data_calls += 1;
        if let Some((_, now)) = self.data.get_mut(&key)
            && cas != 0
        {
            if self.late_writes > 0 {
                self.late_writes -= 1;
                self.cas = self.cas.wrapping_add(1).max(1);
                *now = self.cas;
            }
            if cas != *now {
                return CAS_MISMATCH;
            }
        }
        self.cas = self.cas.wrapping_add(1).max(1);
        self.data.insert(key, (value, self.cas));
        OK
    }

    pub(super) fn register_queue(&mut self, name: &[u8]) -> u32 {
        if let Some(known) = self.resolve_queue(name) {
            return known;
        }
        self.queues.push((name.to_vec(), VecDeque::new()));
        u32::try_from(self.queues.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn resolve_queue(&self, name: &[u8]) -> Option<u32> {
        let place = self.queues.iter().position(|(known, _)| known == name)?;
        u32::try_from(place + 1).ok()
    }

    pub(super) fn enqueue(&mut self, queue: u32, value: Vec<u8>) -> u32 {
        let Some(frames) = self.queue(queue) else { return NOT_FOUND };
        frames.push_back(value);
        OK
    }

    pub(super) fn dequeue(&mut self, queue: u32) -> Result<Vec<u8>, u32> {
        self.queue(queue).ok_or(NOT_FOUND)?.pop_front().ok_or(EMPTY)
    }

    /// How much stands in all queues.
    pub(super) fn backlog(&self) -> usize {
        self.queues.iter().map(|(_, frames)| frames.len()).sum()
    }

    /// All that stands in queues.
    pub(super) fn frames(&self) -> Vec<Vec<u8>> {
        self.queues.iter().flat_map(|(_, frames)| frames.iter().cloned()).collect()
    }

    fn queue(&mut self, queue: u32) -> Option<&mut VecDeque<Vec<u8>>> {
        let place = usize::try_from(queue).ok()?.checked_sub(1)?;
        self.queues.get_mut(place).map(|(_, frames)| frames)
    }

    /// The id of a statistic, which is made if there is none.
    pub(super) fn define(&mut self, kind: u32, name: &[u8]) -> u32 {
        let name = String::from_utf8_lossy(name).into_owned();
        let is_sound =
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:/-.%[]".contains(&byte));
        if !is_sound {
            self.find(|| format!("defines the metric {name:?}, which forges a label"));
        }
        if let Some(known) = self.metric_ids.get(&name) {
            return *known;
        }
        self.metrics.push(Metric { kind, value: 0 });
        let id = u32::try_from(self.metrics.len()).unwrap_or(u32::MAX);
        self.metric_ids.insert(name, id);
        id
    }

    pub(super) fn increment(&mut self, id: u32, offset: i64) -> u32 {
        let Some(metric) = self.metric(id) else { return BAD_ARGUMENT };
        if metric.kind == COUNTER && offset <= 0 {
            return BAD_ARGUMENT;
        }
        metric.value = metric.value.wrapping_add_signed(offset);
        OK
    }

    pub(super) fn record(&mut self, id: u32, value: u64) -> u32 {
        let Some(metric) = self.metric(id) else { return BAD_ARGUMENT };
        metric.value = match metric.kind {
            COUNTER => metric.value.wrapping_add(value),
            GAUGE => value,
            _ => 0,
        };
        OK
    }

    pub(super) fn value(&self, id: u32) -> Result<u64, u32> {
        let place = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        let metric = place.and_then(|place| self.metrics.get(place)).ok_or(BAD_ARGUMENT)?;
        if metric.kind > GAUGE {
            return Err(BAD_ARGUMENT);
        }
        Ok(if self.has_no_statistics { 0 } else { metric.value })
    }

    /// The name and value of every statistic.
    pub(super) fn statistics(&self) -> impl Iterator<Item = (&str, u64)> {
        self.metric_ids
            .iter()
            .map(|(name, id)| (name.as_str(), self.value(*id).unwrap_or_default()))
    }

    /// The value of the statistic of this very name; 0 if there is none.
    pub(super) fn statistic(&self, name: &str) -> u64 {
        self.metric_ids.get(name).map_or(0, |id| self.value(*id).unwrap_or_default())
    }

    fn metric(&mut self, id: u32) -> Option<&mut Metric> {
        self.metrics.get_mut(usize::try_from(id).ok()?.checked_sub(1)?)
    }

    /// A call begins, if the cluster is known. Every second one is.
    pub(super) fn call(&mut self, vm: usize, root: u32) -> Option<u32> {
        if self.calls.len() > CALLS_MAX || self.random.u32(0..4) == 0 {
            return None;
        }
        let number = self.next_call;
        self.next_call += 1;
        self.calls.push(Call { vm, root, number });
        Some(number)
    }

    /// What a module says in the log.
    pub(super) fn log(&mut self, level: u32, line: &[u8]) {
        let Ok(text) = core::str::from_utf8(line) else {
            self.find(|| format!("logs {line:?}, which is no text"));
            return;
        };
        if level == CRITICAL {
            text.clone_into(&mut self.last_words);
        } else if text.contains(['\n', '\r']) {
            self.find(|| format!("logs {text:?}, which is more than one line"));
        }
        self.note(format!("    logs: {text}"));
    }
}

/// A panic's last words have two lines.
const CRITICAL: u32 = 5;

/// More than any configuration asks at a time.
const CALLS_MAX: usize = 500;
