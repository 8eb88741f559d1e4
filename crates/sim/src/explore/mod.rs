//! A model check: every interleaving of a script, at every single host call.
//!
//! The simulator draws one interleaving from a seed; here none is left out. A script ([`Script`]) says what three
//! workers do, and what the service, the clock or a trap does meanwhile; the engine is the one that ships, on the same
//! simulated Envoy, and the same checker looks at each write and each answer.
//!
//! How: depth first, by running the script again up to where it branches (a VM's stack cannot be copied). Where two
//! interleavings lead to the same state, what follows is explored once. A state is what stands under each key, the clock, the
//! checker's memory, and all that each VM was told: a VM does what follows from what it was told, so equal states have equal
//! futures. Tokens and levels of signals are told as what a VM can do with them, which is to compare: whether they still hold.
//! States are compared by 128 bits of a hash.
//!
//! Steps of which nobody sees anything branch nothing: statistics, randomness, the clock when it moves no more, and what no
//! other VM that still has something to do ever touches, as a read of a key that nobody writes any more. Who touches what is not
//! told but found out: a search takes it down, move by move, and is repeated until it has seen nothing new.
//!
//! So what is visited are states, each with every step that is possible in it, and what is covered are all interleavings: their
//! number is counted along the states, and tests compare both with a search that runs each interleaving for itself, and with
//! one in which every look is a step.
//!
//! Bounds: the scripts ([`Script::all`], `cargo xtask model --list`). Each is explored without any bound on preemptions: three
//! workers (two in `start`) with one to three moves each, up to two moves of the clock, one trap, one publication. No host
//! failure; the statistics are not looked at. A search may also be bounded in its preemptions, as a share for a test: then a VM
//! is interrupted in the middle of a move so many times at most.

mod execution;
mod script;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use execution::{Actor, Execution, Footprints};
pub use script::{Move, SERVICE, Script};

/// How to search.
#[derive(Clone, Copy, Default)]
pub struct Search<'a> {
    /// How often VMs may be interrupted in the middle of a move; `None`: as often as there is room.
    pub preemptions: Option<u32>,
    /// Whether each interleaving is run for itself, even where it leads to a state that is known.
    pub is_naive: bool,
    /// Whether every look at shared data or a signal is a step of its own, also where nobody ever touches that.
    pub is_blunt: bool,
    /// Told after each run of the script how many there were, and how many states are known.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

/// What a search has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explored {
    /// How often the script was run, at least in part.
    pub runs: u64,
    /// Different states.
    pub states: u64,
    /// Interleavings that lead through them to an end.
    pub interleavings: u128,
    /// The longest of them, in steps.
    pub longest: usize,
    /// Different states at the end.
    pub ends: BTreeSet<u128>,
    /// What requests were told, and what is left: all that can come of the script.
    pub outcomes: BTreeSet<String>,
}

/// An interleaving in which a promise does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The script.
    pub script: &'static str,
    /// What does not hold, in one sentence.
    pub what: String,
    /// How often a VM is interrupted in it: there is none with fewer, if the search was bounded step by step.
    pub preemptions: u32,
    /// Every step.
    pub steps: Vec<String>,
}

impl fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search")
            .field("preemptions", &self.preemptions)
            .field("is_naive", &self.is_naive)
            .field("is_blunt", &self.is_blunt)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { script, what, preemptions, steps } = self;
        writeln!(f, "{script}: {what}")?;
        writeln!(f, "in this order of calls, with {preemptions} preemptions:")?;
        for step in steps {
            writeln!(f, "{step}")?;
        }
        write!(f, "again: cargo xtask model --script {script}")
    }
}

impl std::error::Error for Counterexample {}

/// Explores `script`.
///
/// # Errors
/// If a promise does not hold in an interleaving: one with as few preemptions as there is.
pub fn explore(script: &Script, search: Search<'_>) -> Result<Explored, Counterexample> {
    let footprints = RefCell::new(Footprints::new(search.is_blunt));
    // What few interruptions show is most of what there is to know of who touches what.
    for preemptions in (0..2).filter(|few| search.preemptions.is_none_or(|most| *few < most)) {
        let bounded = Search { preemptions: Some(preemptions), is_naive: false, ..search };
        Explorer::new(script, bounded, &footprints).explore()?;
        footprints.borrow_mut().learn();
    }
    loop {
        let mut explorer = Explorer::new(script, search, &footprints);
        if let Err(found) = explorer.explore() {
            // The first one that is found is rarely the one to read.
            for preemptions in 0..found.preemptions {
                let bounded = Search { preemptions: Some(preemptions), ..search };
                Explorer::new(script, bounded, &footprints).explore()?;
            }
            return Err(found);
        }
        if !footprints.borrow_mut().learn() {
            return Ok(explorer.explored);
        }
    }
}

struct Explorer<'a> {
    script: &'a Script,
    search: Search<'a>,
    footprints: &'a RefCell<Footprints>,
    explored: Explored,
    /// States that are explored, and how many interleavings lead from each to an end.
    known: BTreeMap<u128, u128>,
    path: Vec<Actor>,
}

/// What a state is besides the execution's own, where preemptions are bounded.
#[derive(Clone, Copy, Default, Hash)]
struct Budget {
    /// The VM that went last.
    last: Option<Actor>,
    used: u32,
}

impl<'a> Explorer<'a> {
    fn new(script: &'a Script, search: Search<'a>, footprints: &'a RefCell<Footprints>) -> Self {
        Self {
            script,
            search,
            footprints,
            explored: Explored::default(),
            known: BTreeMap::new(),
            path: Vec::new(),
        }
    }

    fn explore(&mut self) -> Result<(), Counterexample> {
        let outcome =
            self.execution().and_then(|execution| self.from(execution, Budget::default()));
        match outcome {
            Ok(interleavings) => {
                self.explored.interleavings = interleavings;
                Ok(())
            }
            Err(what) => Err(self.counterexample(what)),
        }
    }

    /// Explores everything from where `execution` is. The answer is how many interleavings that are.
    fn from(&mut self, mut execution: Execution<'a>, budget: Budget) -> Result<u128, String> {
        let mut state = execution.state();
        if self.search.preemptions.is_some() {
            state.add(budget);
        }
        let state = state.value();
        if !self.search.is_naive
            && let Some(interleavings) = self.known.get(&state)
        {
            execution.abandon();
            return Ok(*interleavings);
        }
        self.explored.longest = self.explored.longest.max(self.path.len());
        let nexts: Vec<(Actor, Budget)> = execution
            .enabled()
            .into_iter()
            .filter_map(|actor| Some((actor, self.spend(&execution, budget, actor)?)))
            .collect();
        let mut interleavings = 0;
        if nexts.is_empty() {
            self.explored.ends.insert(state);
            guarded(|| execution.finish())?;
            self.explored.outcomes.insert(execution.outcome());
            interleavings = 1;
        } else {
            // All but the last go on with a run of their own.
            let mut execution = Some(execution);
            let last = nexts.len() - 1;
            for (place, (actor, budget)) in nexts.into_iter().enumerate() {
                let again = if place < last { Some(self.replay()?) } else { execution.take() };
                let Some(mut next) = again else { continue };
                self.path.push(actor);
                guarded(|| next.step(actor))?;
                interleavings += self.from(next, budget)?;
                self.path.pop();
            }
        }
        self.explored.states = self.explored.states.max(self.known.len() as u64 + 1);
        self.known.insert(state, interleavings);
        Ok(interleavings)
    }

    /// What is left of the budget if `actor` goes next; `None` if that is too much.
    fn spend(&self, execution: &Execution<'a>, budget: Budget, actor: Actor) -> Option<Budget> {
        if !execution.is_vm(actor) {
            return Some(budget);
        }
        let interrupts =
            budget.last.is_some_and(|last| last != actor && execution.is_in_the_middle(last));
        let used = budget.used + u32::from(interrupts);
        let allowed = self.search.preemptions.is_none_or(|most| used <= most);
        allowed.then_some(Budget { last: Some(actor), used })
    }

    fn execution(&mut self) -> Result<Execution<'a>, String> {
        self.explored.runs += 1;
        if let Some(progress) = self.search.progress {
            progress(self.explored.runs, self.known.len() as u64);
        }
        guarded(|| Execution::start(self.script, self.footprints, false))
    }

    /// A run of its own up to where the search is.
    fn replay(&mut self) -> Result<Execution<'a>, String> {
        let mut execution = self.execution()?;
        for actor in &self.path {
            execution.step(*actor)?;
        }
        Ok(execution)
    }

    /// The path that was just taken, for people.
    fn counterexample(&self, what: String) -> Counterexample {
        let mut steps = Vec::new();
        let mut budget = Budget::default();
        if let Ok(mut execution) = guarded(|| Execution::start(self.script, self.footprints, true))
        {
            for actor in &self.path {
                if let Some(spent) = self.spend(&execution, budget, *actor) {
                    budget = spent;
                }
                if guarded(|| execution.step(*actor)).is_err() {
                    break;
                }
            }
            steps = execution.take_trace();
        }
        Counterexample { script: self.script.name, what, preemptions: budget.used, steps }
    }
}

/// What a VM says when it panics is a failure like any other.
fn guarded<R>(run: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(format!("a VM panicked: {said}"))
    })
}
