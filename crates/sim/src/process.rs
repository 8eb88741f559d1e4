//! What all VMs of one Envoy process share.
//!
//! Nothing in here yields or decides: a call goes in, its effect is there, and whoever owns the process
//! can look at all of it.

use sentinel_engine::host::{Cas, HostError, Signal, Stored};
use sentinel_wire::key::{Key, QUEUE};

use crate::{shared_data::SharedData, shared_queue::SharedQueues, stats::Stats};

/// The token that no key has: it creates a key that is missing and mismatches on one that is there.
const IMPOSSIBLE: u32 = u32::MAX;

/// Shared data, queues, statistics, signals, clocks and randomness.
#[derive(Debug)]
pub struct Process {
    /// Envoy's shared data.
    pub shared_data: SharedData,
    /// Envoy's shared queues.
    pub queues: SharedQueues,
    /// Envoy's statistics.
    pub stats: Stats,
    /// Monotonic time in nanoseconds.
    pub monotonic_ns: u64,
    /// The wall clock in nanoseconds since the Unix epoch at monotonic time 0: a step of the wall clock
    /// changes it.
    pub wall_at_zero_ns: u64,
    /// One of so many calls fails now; 0: none.
    pub fails_one_in: u32,
    random: fastrand::Rng,
    signals: [u64; Signal::ALL.len()],
    journal: Option<Vec<Write>>,
    name: String,
}

/// A write that went through.
#[derive(Debug)]
pub struct Write {
    /// By whom.
    pub vm: u32,
    /// When, in monotonic nanoseconds.
    pub at_ns: u64,
    /// What was written.
    pub key: Key,
    /// To this value.
    pub value: Vec<u8>,
}

impl Process {
    /// A process just started, at monotonic time 0.
    pub fn new(seed: u64, wall_ns: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            shared_data: SharedData::after_token(random.u32(..)),
            queues: SharedQueues::default(),
            stats: Stats::default(),
            monotonic_ns: 0,
            wall_at_zero_ns: wall_ns,
            fails_one_in: 0,
            random,
            signals: [0; Signal::ALL.len()],
            journal: None,
            name: String::new(),
        }
    }

    /// From now on all writes are kept for [`Process::take_writes`].
    pub fn keep_writes(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// The writes since the last call, oldest first.
    pub fn take_writes(&mut self) -> Vec<Write> {
        self.journal.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether the call on `key` that is made now fails. (A VM that cannot read the seeds is on its own, and agrees with
    /// nobody: nothing is promised of it.)
    pub(crate) fn fails(&mut self, key: Option<Key>) -> Result<(), HostError> {
        const INTERNAL_FAILURE: u32 = 10;
        if key == Some(Key::Seeds) {
            return Ok(());
        }
        if self.fails_one_in > 0 && self.random.u32(..self.fails_one_in) == 0 {
            return Err(HostError::Status(INTERNAL_FAILURE));
        }
        Ok(())
    }

    /// From here on randomness follows from `seed`.
    pub(crate) fn reseed(&mut self, seed: u64) {
        self.random = fastrand::Rng::with_seed(seed);
    }

    /// The levels of all signals.
    pub(crate) fn levels(&self) -> &[u64; Signal::ALL.len()] {
        &self.signals
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.random.u64(..)
    }

    pub(crate) fn load(&mut self, key: Key, value: &mut Vec<u8>) -> Option<Cas> {
        value.clear();
        key.write_name(&mut self.name);
        let (stored, token) = self.shared_data.value(&self.name)?;
        value.extend_from_slice(stored);
        Some(Cas(token))
    }

    pub(crate) fn store(&mut self, vm: u32, key: Key, value: &[u8], expected: Cas) -> Stored {
        key.write_name(&mut self.name);
        if self.shared_data.set(&self.name, value, expected.0).is_err() {
            return Stored::Mismatch;
        }
        if let Some(journal) = &mut self.journal {
            journal.push(Write { vm, at_ns: self.monotonic_ns, key, value: value.to_vec() });
        }
        Stored::Done
    }

    pub(crate) fn create(&mut self, vm: u32, key: Key, value: &[u8]) -> Stored {
        self.store(vm, key, value, Cas(IMPOSSIBLE))
    }

    pub(crate) fn register_queue(&mut self, vm: u32) -> u32 {
        self.queues.register(QUEUE, vm)
    }

    pub(crate) fn resolve_queue(&self) -> Option<u32> {
        self.queues.resolve(QUEUE)
    }

    pub(crate) fn enqueue(&mut self, queue: u32, frame: &[u8]) -> Result<(), HostError> {
        self.queues.enqueue(queue, frame).map_err(|_| HostError::NotFound)
    }

    pub(crate) fn dequeue(&mut self, queue: u32, frame: &mut Vec<u8>) -> Result<bool, HostError> {
        frame.clear();
        let message = self.queues.dequeue(queue).map_err(|_| HostError::NotFound)?;
        let found = message.is_some();
        *frame = message.unwrap_or_default();
        Ok(found)
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> &mut u64 {
        let [published, given_back, freed, wanted, decided] = &mut self.signals;
        match signal {
            Signal::Published => published,
            Signal::GivenBack => given_back,
            Signal::Freed => freed,
            Signal::Wanted => wanted,
            Signal::Decided => decided,
        }
    }
}
