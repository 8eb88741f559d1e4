//! What we ask of Envoy, and nothing more.
//!
//! Both modules run against `EnvoyHost`; the simulator runs the same code against `SimHost`. Every
//! method is one host call, the unit of interleaving. A method that fails says so with a value: no
//! status of Envoy's may become a panic, because a panic takes the whole VM with it.

use alloc::vec::Vec;

use sentinel_wire::key::Key;

/// Shared data, the queue, clocks, signals and randomness of one VM.
pub trait Host {
    /// Monotonic time in nanoseconds; its zero is the same for all VMs of a process.
    fn monotonic_ns(&mut self) -> u64;

    /// Wall-clock time in nanoseconds since the Unix epoch. Read once per process, for `t0`.
    fn wall_ns(&mut self) -> u64;

    /// 64 unpredictable bits.
    fn random(&mut self) -> u64;

    /// Replaces `value` by what stands under `key`, and gives the token to replace it with; `None` (and
    /// an empty `value`) when the key does not exist.
    fn load(&mut self, key: Key, value: &mut Vec<u8>) -> Result<Option<Cas>, HostError>;

    /// Replaces what stands under `key` if nobody has since `expected` was loaded.
    fn store(&mut self, key: Key, value: &[u8], expected: Cas) -> Result<Stored, HostError>;

    /// Creates `key`. Only after [`Host::load`] said that it is not there.
    fn create(&mut self, key: Key, value: &[u8]) -> Result<Stored, HostError>;

    /// Makes this VM the consumer of the frame queue. The last one to register gets all wake-ups, so
    /// only the live service may.
    fn register_queue(&mut self) -> Result<Queue, HostError>;

    /// The frame queue, if somebody has registered it.
    fn resolve_queue(&mut self) -> Result<Option<Queue>, HostError>;

    /// Puts `frame` on the queue. [`HostError::NotFound`] when the queue has vanished: resolve again.
    fn enqueue(&mut self, queue: Queue, frame: &[u8]) -> Result<(), HostError>;

    /// Takes the oldest frame off the queue; `false` when it is empty.
    fn dequeue(&mut self, queue: Queue, frame: &mut Vec<u8>) -> Result<bool, HostError>;

    /// The level of a signal: moves whenever somebody raises it. Compare by `!=` only.
    fn level(&mut self, signal: Signal) -> u64;

    /// Moves the level of a signal for every VM of the process.
    fn raise(&mut self, signal: Signal);
}

/// Envoy's statistics.
pub trait Meter {
    /// Defines, or finds, the statistic `name` (without Envoy's `wasmcustom.`).
    fn define(&mut self, kind: MetricKind, name: &str) -> Result<MetricId, HostError>;

    /// Adds to a counter of the whole process.
    fn add(&mut self, counter: MetricId, delta: u64);

    /// Sets a gauge of the whole process.
    fn set(&mut self, gauge: MetricId, value: u64);

    /// Records one value of a histogram.
    fn record(&mut self, histogram: MetricId, value: u64);
}

/// The token of a compare-and-set: which write of a key was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas(pub u32);

/// A queue's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue(pub u32);

/// A statistic's id in this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricId(pub u32);

/// How a compare-and-set ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stored {
    /// The value stands.
    Done,
    /// Somebody else was first: load again.
    Mismatch,
}

/// A process-wide number that only ever says "look again".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The service has published a rule set.
    Published,
    /// Somebody has given tokens back.
    GivenBack,
    /// Somebody has given permits back.
    Freed,
    /// Somebody was refused while others may hold tokens or permits they do not need.
    Wanted,
    /// The service has decided something, or a breaker has changed its state.
    Decided,
}

impl Signal {
    /// All signals.
    pub const ALL: [Self; 5] =
        [Self::Published, Self::GivenBack, Self::Freed, Self::Wanted, Self::Decided];
}

/// The kinds of Envoy's statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// The last value.
    Gauge,
    /// A distribution.
    Histogram,
}

/// Why the host did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// The queue does not exist (any more).
    NotFound,
    /// Envoy answered with this status.
    Status(u32),
}
