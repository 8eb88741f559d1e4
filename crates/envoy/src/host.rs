//! `EnvoyHost`: what the engine asks, asked of Envoy.

use sentinel_engine::host::{
    Cas, Host, HostError, Meter, MetricId, MetricKind, Queue, Signal, Stored,
};
use sentinel_wire::key::{Key, NameRoom, QUEUE};

use crate::ffi::{self, Clock};

/// One VM's access to Envoy.
#[derive(Debug)]
pub struct EnvoyHost {
    value: Vec<u8>,
    /// The counters that carry the signals; `None` where Envoy's statistics are switched off.
    signals: Option<[u32; Signal::ALL.len()]>,
    calls: Calls,
}

/// Host calls that are worth counting, since the start of the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Reads and writes of shared data.
    pub shared_data: u64,
    /// Operations on the shared queue.
    pub queue: u64,
}

/// A token that no value has in practice: a store with it creates a key that is missing and fails on one
/// that is there.
const IMPOSSIBLE: u32 = u32::MAX;

impl EnvoyHost {
    /// Defines the signals and tests them: a `stats_matcher` that leaves out `wasmcustom` turns them into
    /// statistics that stay 0, and then keys of shared data carry them.
    pub fn new() -> Self {
        let defined =
            Signal::ALL.map(|signal| ffi::define_metric(COUNTER, signal_name(signal)).ok());
        let works = ffi::define_metric(COUNTER, "sentinel.signal.selftest").is_ok_and(|selftest| {
            let before = ffi::metric(selftest);
            ffi::increment_metric(selftest, 1);
            before.is_some() && ffi::metric(selftest) != before
        });
        let signals = match defined {
            [Some(published), Some(given_back), Some(freed), Some(wanted), Some(decided)]
                if works =>
            {
                Some([published, given_back, freed, wanted, decided])
            }
            _ => {
                log::warn!(
                    "Envoy does not keep our statistics (stats_matcher?): signals go through shared data"
                );
                None
            }
        };
        Self { value: Vec::new(), signals, calls: Calls::default() }
    }

    /// The first function without which nothing works and which Envoy refuses this module
    /// (`capability_restriction_config`). With a clock that stands still, a limit once reached would never
    /// open again.
    pub fn refused_function() -> Option<&'static str> {
        if ffi::clock_ns(Clock::Monotonic) == 0 || ffi::clock_ns(Clock::Realtime) == 0 {
            return Some("clock_time_get");
        }
        ffi::random().is_none().then_some("random_get")
    }

    /// What has been called so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    fn load_into(&mut self, key: Key, value: &mut Vec<u8>) -> Result<Option<Cas>, HostError> {
        self.calls.shared_data += 1;
        match ffi::load(key.name(&mut NameRoom::default()), value) {
            Ok(cas) => Ok(Some(Cas(cas))),
            Err(HostError::NotFound) => {
                value.clear();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn store_with(&mut self, key: Key, value: &[u8], cas: u32) -> Result<Stored, HostError> {
        self.calls.shared_data += 1;
        match ffi::store(key.name(&mut NameRoom::default()), value, cas) {
            Ok(()) => Ok(Stored::Done),
            Err(HostError::Status(ffi::CAS_MISMATCH)) => Ok(Stored::Mismatch),
            Err(error) => Err(error),
        }
    }

    fn signal_level_in_key(&mut self, signal: Signal) -> u64 {
        let mut value = core::mem::take(&mut self.value);
        let level = match self.load_into(Key::Signal(index(signal)), &mut value) {
            Ok(Some(_)) => value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
            Ok(None) | Err(_) => 0,
        };
        self.value = value;
        level
    }

    fn raise_key(&mut self, signal: Signal) {
        let key = Key::Signal(index(signal));
        let mut value = core::mem::take(&mut self.value);
        if let Ok(seen) = self.load_into(key, &mut value) {
            let level = value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let next = level.wrapping_add(1).to_le_bytes();
            // A mismatch is as good: somebody has moved the level since it was read. A failure only delays:
            // whatever a signal announces is also looked for once a second, or ends with its bucket.
            let _: Result<Stored, HostError> =
                self.store_with(key, &next, seen.map_or(IMPOSSIBLE, |cas| cas.0));
        }
        self.value = value;
    }
}

impl Default for EnvoyHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for EnvoyHost {
    fn monotonic_ns(&mut self) -> u64 {
        ffi::clock_ns(Clock::Monotonic)
    }

    fn wall_ns(&mut self) -> u64 {
        ffi::clock_ns(Clock::Realtime)
    }

    fn random(&mut self) -> u64 {
        // Where Envoy refuses randomness, two instances still differ in when they ask.
        ffi::random()
            .unwrap_or_else(|| ffi::clock_ns(Clock::Monotonic).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn load(&mut self, key: Key, value: &mut Vec<u8>) -> Result<Option<Cas>, HostError> {
        self.load_into(key, value)
    }

    fn store(&mut self, key: Key, value: &[u8], expected: Cas) -> Result<Stored, HostError> {
        self.store_with(key, value, expected.0)
    }

    fn create(&mut self, key: Key, value: &[u8]) -> Result<Stored, HostError> {
        self.store_with(key, value, IMPOSSIBLE)
    }

    fn register_queue(&mut self) -> Result<Queue, HostError> {
        self.calls.queue += 1;
        ffi::register_queue(QUEUE).map(Queue)
    }

    fn resolve_queue(&mut self) -> Result<Option<Queue>, HostError> {
        self.calls.queue += 1;
        match ffi::resolve_queue(QUEUE) {
            Ok(queue) => Ok(Some(Queue(queue))),
            Err(HostError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn enqueue(&mut self, queue: Queue, frame: &[u8]) -> Result<(), HostError> {
        self.calls.queue += 1;
        ffi::enqueue(queue.0, frame)
    }

    fn dequeue(&mut self, queue: Queue, frame: &mut Vec<u8>) -> Result<bool, HostError> {
        self.calls.queue += 1;
        match ffi::dequeue(queue.0, frame) {
            Ok(()) => Ok(true),
            Err(HostError::Status(ffi::EMPTY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn level(&mut self, signal: Signal) -> u64 {
        match self.signals.and_then(|ids| ids.get(usize::from(index(signal))).copied()) {
            Some(metric) => ffi::metric(metric).unwrap_or(0),
            None => self.signal_level_in_key(signal),
        }
    }

    fn raise(&mut self, signal: Signal) {
        match self.signals.and_then(|ids| ids.get(usize::from(index(signal))).copied()) {
            Some(metric) => ffi::increment_metric(metric, 1),
            None => self.raise_key(signal),
        }
    }
}

impl Meter for EnvoyHost {
    fn define(&mut self, kind: MetricKind, name: &str) -> Result<MetricId, HostError> {
        let kind = match kind {
            MetricKind::Counter => COUNTER,
            MetricKind::Gauge => 1,
            MetricKind::Histogram => 2,
        };
        ffi::define_metric(kind, name).map(MetricId)
    }

    fn add(&mut self, counter: MetricId, delta: u64) {
        ffi::increment_metric(counter.0, i64::try_from(delta).unwrap_or(i64::MAX));
    }

    fn set(&mut self, gauge: MetricId, value: u64) {
        ffi::record_metric(gauge.0, value);
    }

    fn record(&mut self, histogram: MetricId, value: u64) {
        ffi::record_metric(histogram.0, value);
    }
}

/// The value of a counter or a gauge of the whole process, by its id.
pub fn metric_value(metric: u32) -> Option<u64> {
    ffi::metric(metric)
}

const COUNTER: u32 = 0;

const fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Published => "sentinel.signal.published",
        Signal::GivenBack => "sentinel.signal.given_back",
        Signal::Freed => "sentinel.signal.freed",
        Signal::Wanted => "sentinel.signal.wanted",
        Signal::Decided => "sentinel.signal.decided",
    }
}

const fn index(signal: Signal) -> u8 {
    match signal {
        Signal::Published => 0,
        Signal::GivenBack => 1,
        Signal::Freed => 2,
        Signal::Wanted => 3,
        Signal::Decided => 4,
    }
}
