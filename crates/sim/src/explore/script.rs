//! The scripts: small ones, so that all their interleavings can be had.
//!
//! Each is about one place of the protocol where it is easy to get wrong. Three workers unless it says otherwise; what
//! does not matter for it is done before, by one after the other.

use sentinel_core::{
    config::Settings,
    rule::{Rule, SystemMetric},
};

use crate::rules::{flow, isolation, system};

/// What happens, but not in which order.
#[derive(Clone, Debug)]
pub struct Script {
    /// What it is called.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Rule sets, the first in force from the start on.
    pub rules: Vec<Vec<Rule>>,
    /// The settings that go with them.
    pub settings: Settings,
    /// Monotonic time at the start, in milliseconds; a full second of the shared clock is at 0.
    pub start_ms: u64,
    /// What is done first, each by whom, with nobody in between.
    pub before: Vec<(usize, Move)>,
    /// What each worker does, one after the other.
    pub workers: Vec<Vec<Move>>,
    /// What the service does meanwhile.
    pub service: Vec<Move>,
    /// The times to which the clock moves on, each at any moment after the one before.
    pub clock_ms: Vec<u64>,
    /// The worker whose VM traps, at any moment.
    pub trap: Option<usize>,
    /// Whether nobody has started yet: the service is configured and each worker starts in the midst of the others.
    pub is_cold: bool,
    /// Whether nobody ever takes more than his request needs: then also before any tick all is spent or given back.
    pub is_even: bool,
    /// Whether there is enough for all: then nobody may be refused.
    pub is_ample: bool,
}

/// One thing that a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// A request to this resource.
    Ask(&'static str),
    /// This worker's request of this number, counted from 0, has ended (nothing, if it was refused).
    End(usize),
    /// The timer.
    Tick,
    /// What a tick does if everything is due.
    Settle,
    /// The service is configured with the first rules.
    Configure,
    /// The service gets this rule set.
    Replace(usize),
}

use Move::{Ask, Configure, End, Replace, Settle, Tick};

const X: &str = "GET:/x";
const Y: &str = "GET:/y";

impl Script {
    fn new(name: &'static str, about: &'static str, rules: Vec<Rule>) -> Self {
        Self {
            name,
            about,
            rules: vec![rules],
            settings: Settings::DEFAULT,
            start_ms: 400,
            before: Vec::new(),
            workers: Vec::new(),
            service: Vec::new(),
            clock_ms: Vec::new(),
            trap: None,
            is_cold: false,
            is_even: false,
            is_ample: false,
        }
    }

    /// The script of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|script| script.name == name)
    }

    /// All scripts.
    pub fn all() -> Vec<Self> {
        vec![
            Self {
                workers: vec![vec![Ask(X), Ask(X)], vec![Ask(X)], vec![Ask(X)]],
                ..Self::new(
                    "first-claim",
                    "nobody has claimed of the rule yet: three create its ledger at once, and two of their four requests may go",
                    vec![flow("x", X, 2.0, 1_000)],
                )
            },
            Self {
                start_ms: 499,
                before: vec![(0, Ask(X))],
                workers: vec![vec![Ask(X), Ask(X)], vec![Ask(X)], vec![Ask(X)]],
                clock_ms: vec![500, 1_000],
                ..Self::new(
                    "bucket-change",
                    "two buckets end while three claim: one token is spent in the first and leaves the window with it",
                    vec![flow("x", X, 2.0, 1_000)],
                )
            },
            Self {
                start_ms: 499,
                workers: vec![vec![Ask(X)], vec![Ask(X)], vec![Ask(X)]],
                clock_ms: vec![500],
                is_ample: true,
                ..Self::new(
                    "late-to-a-bucket",
                    "a bucket ends while three claim, with tokens for all: who has read the clock before that is not refused for it",
                    vec![flow("x", X, 10.0, 1_000)],
                )
            },
            Self {
                // A worker that has spent two in a tick may lease.
                before: vec![(0, Ask(X)), (0, Ask(X)), (0, Tick)],
                workers: vec![vec![Ask(X), Ask(X), Tick], vec![Ask(X)], vec![Ask(X)]],
                clock_ms: vec![500],
                ..Self::new(
                    "give-back",
                    "one spends of what it holds and gives back the rest while two others claim and a bucket ends",
                    vec![flow("x", X, 30.0, 1_000)],
                )
            },
            Self {
                before: vec![(2, Ask(X))],
                workers: vec![vec![Ask(X), End(0)], vec![Ask(X), End(0)], vec![End(0)]],
                ..Self::new(
                    "permits",
                    "two claim a permit and give it back while a third gives back his: one is free at first",
                    vec![isolation("x", X, 2)],
                )
            },
            Self {
                before: vec![(2, Ask(X)), (2, Ask(X))],
                workers: vec![vec![Ask(X)], vec![Ask(X)], vec![Ask(X)]],
                // Requests may still be open, and then the record is old enough.
                clock_ms: vec![50_000, 600_000],
                trap: Some(2),
                ..Self::new(
                    "reap",
                    "a worker dies with two or three permits, or only loses its thread, and its record is reaped when it is old enough",
                    vec![isolation("x", X, 3)],
                )
            },
            Self {
                rules: vec![vec![flow("x", X, 3.0, 1_000)], vec![flow("x", X, 1.0, 1_000)]],
                before: vec![(2, Ask(X)), (SERVICE, Replace(1)), (0, Settle)],
                workers: vec![vec![Ask(X)], vec![Ask(X), Ask(X)], vec![Ask(X)]],
                ..Self::new(
                    "threshold-change",
                    "the first has taken up a lower threshold and two are behind: it holds for all from the first claim under it",
                    Vec::new(),
                )
            },
            Self {
                rules: vec![vec![flow("x", X, 3.0, 1_000)], vec![flow("x", X, 2.0, 2_000)]],
                before: vec![(2, Ask(X)), (SERVICE, Replace(1)), (0, Settle)],
                workers: vec![vec![Ask(X), Ask(X)], vec![Ask(X)], vec![Tick, Ask(X)]],
                ..Self::new(
                    "generation-change",
                    "the first has taken up another window, which begins its ledger anew, and two are behind and hold tokens of the old one",
                    Vec::new(),
                )
            },
            Self {
                rules: vec![vec![flow("x", X, 2.0, 1_000)], vec![flow("x", X, 1.0, 1_000)]],
                workers: vec![vec![Ask(X), Tick, Ask(X)], vec![Ask(X)], vec![Ask(X)]],
                service: vec![Replace(1)],
                ..Self::new(
                    "publication",
                    "the service publishes a lower threshold while three workers claim; one takes it up at its tick",
                    Vec::new(),
                )
            },
            Self {
                // Nobody keeps a token of the requests with which workers start.
                before: [0, 1, 2, 0, 1, 2].map(|worker| (worker, Tick)).to_vec(),
                workers: vec![vec![Ask(X)], vec![Ask(Y)], vec![Ask(X)]],
                is_even: true,
                ..Self::new(
                    "all-or-nothing",
                    "each resource has a rule of its own, and one rule is over both: who gets only one of his two tokens gives it back",
                    vec![
                        flow("x", X, 1.0, 1_000),
                        flow("y", Y, 1.0, 1_000),
                        // Three were spent when the workers started.
                        system("all", SystemMetric::InboundQps, 5.0),
                    ],
                )
            },
            Self {
                workers: vec![vec![Ask(X)], vec![Ask(X)]],
                service: vec![Configure, Tick],
                is_cold: true,
                ..Self::new(
                    "start",
                    "the service is configured and two workers start at once: they agree on one clock, and the rule holds from when it is published",
                    vec![flow("x", X, 1.0, 1_000)],
                )
            },
        ]
        .into_iter()
        .map(|mut script| {
            script.rules.retain(|rules| !rules.is_empty());
            script
        })
        .collect()
    }
}

/// Stands for the service where [`Script::before`] names a worker.
pub const SERVICE: usize = usize::MAX;
