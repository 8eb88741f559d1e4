//! One interleaving of a script, step by step.
//!
//! Nobody goes on by himself: whoever explores says whose step is next. A step is one host call of a VM with all
//! that the VM does until its next one, or a VM's beginning with a request's end, a move of the clock, a trap.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hash, Hasher as _},
    rc::Rc,
};

use sentinel_core::ledger::Ledger;
use sentinel_engine::host::Signal;
use sentinel_wire::{
    key::Key,
    ledger::{self, Value},
    workers::Workers,
};

use super::script::{Move, SERVICE, Script};
use crate::{
    checker::{Broken, Checker},
    host::Call,
    process::Process,
    scenario::{MS, SECOND, config},
    vm::{Answer, Decision, Done, Order, Said, Vm},
};

/// Whose step: a worker by its number, then the service, the clock, the trap.
pub(super) type Actor = usize;

/// A VM that makes more calls than this in a script will never decide its request.
const CALLS_MOST: usize = 2_000;

/// A request to a resource that no rule names: whoever starts must see one.
const UNRULED: &str = "GET:/start";

/// What has been seen or written so far, as a number: equal for equal rows, and for others with a probability of 2⁻¹²⁸.
#[derive(Clone)]
pub(super) struct Digest([DefaultHasher; 2]);

/// One VM on its way through the script.
struct Player {
    vm: Option<Vm>,
    id: u32,
    moves: VecDeque<Move>,
    pending: Pending,
    /// All that it has been told: it does what follows from that, and nothing else.
    told: Digest,
    calls: usize,
    /// How often it has read each key since that was last written: so many of its tokens still hold, the newest ones.
    current: BTreeMap<Key, u32>,
    /// Signals that have been raised since it last read them; a VM asks for no more of them.
    raised: BTreeSet<usize>,
    /// Which of its moves it is at.
    at: usize,
    /// Numbers of its requests, in the order in which they came.
    streams: Vec<u64>,
    incarnation: u64,
}

/// What a VM does when it is next.
enum Pending {
    Begin(Move),
    Call(Call),
    Nothing,
}

/// What a step reads or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Key(Key),
    Signal(usize),
    Queue,
}

/// What each VM has ever been seen to do in a script, by VM and move.
///
/// A search begins with none of it and is repeated until it has seen nothing new. So whatever it then took for touched by
/// nobody is touched by nobody, in any interleaving.
#[derive(Debug)]
pub(super) struct Footprints {
    /// Whether everything is taken for touched by all.
    is_blunt: bool,
    /// What this search goes by; `true`: changes it. It stays as it is until the search is over, since a run is repeated
    /// step by step.
    known: BTreeSet<Footprint>,
    /// What it has seen besides.
    seen: BTreeSet<Footprint>,
}

/// Who, in which move, touches what, and whether he changes it.
type Footprint = (Actor, usize, Thing, bool);

/// Adds to a [`Digest`] what is written to it.
struct Into<'d>(&'d mut Digest);

/// An interleaving under way.
pub(super) struct Execution<'s> {
    script: &'s Script,
    footprints: &'s RefCell<Footprints>,
    process: Rc<RefCell<Process>>,
    checker: Checker,
    /// The workers, and then the service.
    players: Vec<Player>,
    service: u32,
    clock_moves: usize,
    has_trapped: bool,
    /// Whether the script's own moves are under way.
    is_begun: bool,
    /// What stands under each key, and how often it was written.
    written: BTreeMap<Key, (Digest, usize)>,
    /// The generation and the rule set that each ledger names.
    stamps: BTreeMap<Key, (u64, u64)>,
    /// What each request was told, by its number.
    answers: BTreeMap<u64, String>,
    /// At the upstream.
    open: BTreeMap<u64, usize>,
    /// Each step, for people.
    trace: Option<Vec<String>>,
}

impl Digest {
    pub(super) fn new() -> Self {
        let mut second = DefaultHasher::new();
        second.write_u8(1);
        Self([DefaultHasher::new(), second])
    }

    pub(super) fn add(&mut self, what: impl Hash) {
        self.0.iter_mut().for_each(|hasher| what.hash(hasher));
    }

    pub(super) fn value(&self) -> u128 {
        let [first, second] = &self.0;
        u128::from(first.finish()) << 64 | u128::from(second.finish())
    }
}

impl Player {
    fn new(vm: Option<Vm>, id: u32, moves: &[Move]) -> Self {
        Self {
            vm,
            id,
            moves: moves.iter().copied().collect(),
            pending: Pending::Nothing,
            told: Digest::new(),
            calls: 0,
            current: BTreeMap::new(),
            raised: BTreeSet::new(),
            at: 0,
            streams: Vec::new(),
            incarnation: 0,
        }
    }

    /// Stops before the next move.
    fn line_up(&mut self) {
        self.at += 1;
        self.pending = self.moves.pop_front().map_or(Pending::Nothing, Pending::Begin);
    }
}

impl fmt::Write for Into<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.add(text);
        Ok(())
    }
}

impl Footprints {
    pub(super) fn new(is_blunt: bool) -> Self {
        Self { is_blunt, known: BTreeSet::new(), seen: BTreeSet::new() }
    }

    /// The next search goes by what this one has seen as well. `false` if that was nothing new.
    pub(super) fn learn(&mut self) -> bool {
        let before = self.known.len();
        self.known.append(&mut self.seen);
        self.known.len() > before
    }

    /// Whether another VM than `actor` may still touch `thing`, or change it if `actor` itself does not; `at` says for each VM
    /// which of its moves it is at, if it lives.
    fn may_meet(
        &self,
        actor: Actor,
        thing: Thing,
        changes: bool,
        at: impl Fn(Actor) -> Option<usize>,
    ) -> bool {
        self.is_blunt
            || self.known.iter().any(|(other, then, its, it_changes)| {
                // Whoever raises a signal does not look at it, and it makes no difference who raises it first.
                let both_raise = changes && *it_changes && matches!(thing, Thing::Signal(_));
                *other != actor
                    && *its == thing
                    && (changes || *it_changes)
                    && !both_raise
                    && at(*other).is_some_and(|at| *then >= at)
            })
    }
}

impl Thing {
    /// What a call touches, and whether it changes that; `None` if nobody else sees anything of it.
    fn of(call: Call) -> Option<(Self, bool)> {
        match call {
            Call::Clock | Call::Random | Call::Meter => None,
            Call::Load(key) => Some((Self::Key(key), false)),
            Call::Store(key) | Call::Create(key) => Some((Self::Key(key), true)),
            Call::Queue(_) => Some((Self::Queue, true)),
            Call::Level(signal) => Some((Self::Signal(place(signal)), false)),
            Call::Raise(signal) => Some((Self::Signal(place(signal)), true)),
        }
    }
}

impl<'s> Execution<'s> {
    /// Everything that comes before the script's moves.
    pub(super) fn start(
        script: &'s Script,
        footprints: &'s RefCell<Footprints>,
        is_traced: bool,
    ) -> Result<Self, Broken> {
        let mut process = Process::new(1, 1_900_000_020 * SECOND);
        process.keep_writes();
        process.monotonic_ns = script.start_ms * MS;
        let process = Rc::new(RefCell::new(process));
        let rules = script.rules.first().cloned().unwrap_or_default();
        let config = Rc::new(config(rules, script.settings.clone()));
        let workers = script.workers.len();
        let service = u32::try_from(workers).unwrap_or(u32::MAX);
        let mut players: Vec<Player> = (0..service)
            .zip(&script.workers)
            .map(|(id, moves)| Player::new(Some(Vm::worker(&process, id)), id, moves))
            .collect();
        let vm = Vm::service(&process, service, config);
        players.push(Player::new(Some(vm), service, &script.service));
        let mut execution = Self {
            script,
            footprints,
            process,
            checker: Checker::default(),
            players,
            service,
            clock_moves: 0,
            has_trapped: false,
            is_begun: false,
            written: BTreeMap::new(),
            stamps: BTreeMap::new(),
            answers: BTreeMap::new(),
            open: BTreeMap::new(),
            trace: None,
        };
        if !script.is_cold {
            execution.drive(workers, Move::Configure)?;
            execution.drive(workers, Move::Tick)?;
            for worker in 0..workers {
                execution.drive(worker, Move::Ask(UNRULED))?;
                execution.drive(worker, Move::End(0))?;
                execution.forget_start(worker);
            }
        }
        for (who, what) in &script.before {
            let who = if *who == SERVICE { workers } else { *who };
            execution.drive(who, *what)?;
        }
        execution.trace = is_traced.then(Vec::new);
        execution.is_begun = true;
        for player in &mut execution.players {
            player.line_up();
        }
        for actor in 0..execution.players.len() {
            execution.skip_invisible(actor)?;
        }
        Ok(execution)
    }

    fn forget_start(&mut self, worker: usize) {
        if let Some(player) = self.players.get_mut(worker) {
            player.streams.clear();
        }
    }

    /// Who can take a step.
    pub(super) fn enabled(&self) -> Vec<Actor> {
        let players = self.players.iter().enumerate();
        let can =
            |player: &Player| player.vm.is_some() && !matches!(player.pending, Pending::Nothing);
        let mut enabled: Vec<Actor> =
            players.filter(|(_, player)| can(player)).map(|(actor, _)| actor).collect();
        if self.clock_moves < self.script.clock_ms.len() {
            enabled.push(self.clock());
        }
        if self.script.trap.is_some() && !self.has_trapped {
            enabled.push(self.clock() + 1);
        }
        enabled
    }

    /// Whether this one is a VM in the middle of something.
    pub(super) fn is_in_the_middle(&self, actor: Actor) -> bool {
        self.players
            .get(actor)
            .is_some_and(|player| player.vm.is_some() && matches!(player.pending, Pending::Call(_)))
    }

    /// Whether this one is a VM, and neither the clock nor the trap.
    pub(super) fn is_vm(&self, actor: Actor) -> bool {
        actor < self.players.len()
    }

    /// Where this execution is: equal only where everything that follows is.
    ///
    /// A VM does what follows from what it was told, so what it was told stands for its memory. Tokens are compared with
    /// the current one and with nothing else, so that it is enough how many of a VM's still hold; levels of signals
    /// are only compared with the last, so that it is enough whether there was a raise since. What the checker remembers
    /// is part of the state as it is.
    pub(super) fn state(&self) -> Digest {
        let mut state = Digest::new();
        state.add((self.clock_moves, self.has_trapped));
        for (key, (written, _)) in &self.written {
            state.add((key, written.value()));
        }
        for player in &self.players {
            state.add((player.told.value(), &player.raised));
            state.add(&player.current);
        }
        let process = self.process.borrow();
        // Digests do not fail.
        let _ = write!(Into(&mut state), "{:?} {:?}", self.checker, process.queues);
        state
    }

    /// What requests were told and what is left in shared data, for comparison.
    pub(super) fn outcome(&self) -> String {
        let mut outcome = String::new();
        for (stream, answer) in &self.answers {
            outcome.push_str(&format!("{stream} {answer}; "));
        }
        let process = self.process.borrow();
        let mut name = String::new();
        for key in self.written.keys() {
            key.write_name(&mut name);
            if let (Key::Ledger(_) | Key::Set(_), Some((bytes, _))) =
                (key, process.shared_data.value(&name))
            {
                outcome.push_str(&format!("{key:?} {}; ", brief(*key, bytes)));
            }
        }
        outcome
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    /// Lets one take its step.
    pub(super) fn step(&mut self, actor: Actor) -> Result<(), Broken> {
        if self.is_vm(actor) {
            self.step_vm(actor)?;
            self.skip_invisible(actor)
        } else if actor == self.clock() {
            self.move_clock();
            for actor in 0..self.players.len() {
                self.skip_invisible(actor)?;
            }
            Ok(())
        } else {
            self.trap();
            Ok(())
        }
    }

    /// Everything is done: all come to rest, and then nothing may be left over.
    pub(super) fn finish(&mut self) -> Result<(), Broken> {
        self.is_begun = false;
        if self.script.is_even {
            let now = self.checker.now(self.process.borrow().monotonic_ns);
            self.checker.nothing_is_held(now, &[])?;
        }
        let mut living = Vec::new();
        for round in 0..2 {
            for worker in 0..self.script.workers.len() {
                if self.players.get(worker).is_none_or(|player| player.vm.is_none()) {
                    continue;
                }
                if round == 0 {
                    for stream in 0..self.streams_of(worker) {
                        self.drive(worker, Move::End(stream))?;
                    }
                }
                self.drive(worker, Move::Settle)?;
                if round == 1 {
                    living.extend(self.players.get(worker).map(|player| player.incarnation));
                }
            }
        }
        self.checker.no_permits_are_held(&living)?;
        if !self.has_trapped {
            let now = self.checker.now(self.process.borrow().monotonic_ns);
            self.checker.nothing_is_held(now, &living)?;
        }
        self.everybody_is_counted(&living)
    }

    /// Each living worker has one slot among the workers.
    fn everybody_is_counted(&self, living: &[u64]) -> Result<(), Broken> {
        let mut name = String::new();
        Key::Workers.write_name(&mut name);
        let process = self.process.borrow();
        let bytes = process.shared_data.value(&name).map(|(bytes, _)| bytes).unwrap_or_default();
        let workers = Workers::decode(bytes).map_err(|error| error.to_string())?;
        for incarnation in living {
            let slots = workers.slots.iter().filter(|slot| slot.incarnation == *incarnation);
            let slots = slots.count();
            if slots != 1 {
                return Err(format!("a worker has {slots} slots among the workers"));
            }
        }
        Ok(())
    }

    /// Lets VMs that stand in the middle of something come to an end: to unwind their stacks takes longer.
    pub(super) fn abandon(mut self) {
        for player in &mut self.players {
            let Some(vm) = &mut player.vm else { continue };
            if matches!(player.pending, Pending::Call(_)) {
                for _ in 0..CALLS_MOST {
                    if !matches!(vm.resume(Order::GoOn), Some(Said::Calls(_))) {
                        break;
                    }
                }
            }
        }
    }

    fn clock(&self) -> Actor {
        self.players.len()
    }

    fn streams_of(&self, worker: usize) -> usize {
        self.players.get(worker).map_or(0, |player| player.streams.len())
    }

    /// One move with nobody in between.
    fn drive(&mut self, actor: Actor, what: Move) -> Result<(), Broken> {
        let Some(player) = self.players.get_mut(actor) else { return Ok(()) };
        let rest = std::mem::take(&mut player.moves);
        player.pending = Pending::Begin(what);
        loop {
            self.step_vm(actor)?;
            let Some(player) = self.players.get_mut(actor) else { return Ok(()) };
            if !matches!(player.pending, Pending::Call(_)) {
                player.moves = rest;
                return Ok(());
            }
        }
    }

    /// Takes steps that nobody else's steps can change, and which change nobody else's, as long as there are such:
    /// in which order they fall makes no difference.
    fn skip_invisible(&mut self, actor: Actor) -> Result<(), Broken> {
        loop {
            let clock_stands = self.clock_moves >= self.script.clock_ms.len();
            let Some(player) = self.players.get(actor) else { return Ok(()) };
            let is_invisible = player.vm.is_some()
                && match &player.pending {
                    // When a request ends at the upstream is seen from outside.
                    Pending::Begin(Move::End(_)) | Pending::Nothing => false,
                    Pending::Begin(_) => true,
                    Pending::Call(Call::Clock) => clock_stands,
                    Pending::Call(call) => Thing::of(*call).is_none_or(|(thing, changes)| {
                        let at = |other| self.at(other);
                        !self.footprints.borrow().may_meet(actor, thing, changes, at)
                    }),
                };
            if !is_invisible {
                return Ok(());
            }
            self.step_vm(actor)?;
        }
    }

    /// Which of its moves a VM is at, if it lives and has not done them all.
    fn at(&self, actor: Actor) -> Option<usize> {
        let player = self.players.get(actor)?;
        let is_done = player.vm.is_none() || matches!(player.pending, Pending::Nothing);
        (!is_done).then_some(player.at)
    }

    /// Takes down what a step touches.
    fn leave_footprint(&self, actor: Actor, call: Call) {
        if let (true, Some((thing, changes)), Some(player)) =
            (self.is_begun, Thing::of(call), self.players.get(actor))
        {
            self.footprints.borrow_mut().seen.insert((actor, player.at, thing, changes));
        }
    }

    fn step_vm(&mut self, actor: Actor) -> Result<(), Broken> {
        let Some(player) = self.players.get_mut(actor) else { return Ok(()) };
        let (order, call) = match std::mem::replace(&mut player.pending, Pending::Nothing) {
            Pending::Begin(what) => (self.begin(actor, what), None),
            Pending::Call(call) => (Order::GoOn, Some(call)),
            Pending::Nothing => return Ok(()),
        };
        if let Some(call) = call {
            self.leave_footprint(actor, call);
        }
        let Some(player) = self.players.get_mut(actor) else { return Ok(()) };
        player.calls += 1;
        if player.calls > CALLS_MOST {
            return Err(format!("a VM has made {CALLS_MOST} calls and has decided nothing"));
        }
        let mut process = self.process.borrow_mut();
        match call {
            Some(Call::Clock) => player.told.add(process.monotonic_ns),
            Some(Call::Random) => {
                process.reseed((u64::from(player.id) << 32) + player.calls as u64);
            }
            Some(Call::Load(key)) => {
                player.told.add(self.written.get(&key).map(|(written, _)| written.value()));
                *player.current.entry(key).or_default() += 1;
            }
            Some(Call::Level(signal)) => player.told.add(player.raised.remove(&place(signal))),
            Some(Call::Queue(_)) => {
                player.told.add((process.resolve_queue(), process.queues.backlog()));
            }
            Some(Call::Store(_) | Call::Create(_) | Call::Raise(_) | Call::Meter) => {}
            // What comes next in the script is no secret.
            None => player.told.add(0),
        }
        drop(process);
        let said = player.vm.as_mut().and_then(|vm| vm.resume(order));
        let writes = self.process.borrow_mut().take_writes();
        if let Some(Call::Store(_) | Call::Create(_)) = call {
            player.told.add(writes.is_empty());
        }
        for write in &writes {
            let (written, count) =
                self.written.entry(write.key).or_insert_with(|| (Digest::new(), 0));
            *written = Digest::new();
            written.add(&write.value);
            *count += 1;
            for player in &mut self.players {
                player.current.remove(&write.key);
            }
        }
        if let Some(Call::Raise(signal)) = call {
            for player in &mut self.players {
                player.raised.insert(place(signal));
            }
        }
        if let (Some(call), true) = (call, self.trace.is_some()) {
            self.note(actor, &self.describe(call, !writes.is_empty()));
        }
        for write in &writes {
            let is_put_once = matches!(write.key, Key::Seeds | Key::Missing);
            if is_put_once && self.written.get(&write.key).is_some_and(|(_, count)| *count > 1) {
                return Err(format!("{:?} is written a second time", write.key));
            }
            self.stamp_goes_on(write.key, &write.value)?;
            self.checker.written(write, self.service == write.vm)?;
        }
        let Some(player) = self.players.get_mut(actor) else { return Ok(()) };
        match said {
            Some(Said::Calls(call)) => player.pending = Pending::Call(call),
            Some(Said::Done(done)) => {
                player.line_up();
                self.done(actor, done)?;
            }
            None => return Err("a VM has ended by itself".to_owned()),
        }
        Ok(())
    }

    /// No older generation writes over a newer one, and no older rule set within one.
    fn stamp_goes_on(&mut self, key: Key, value: &[u8]) -> Result<(), Broken> {
        let (Key::Ledger(_) | Key::Set(_), Ok((stamp, _))) = (key, ledger::decode(value)) else {
            return Ok(());
        };
        let new = (stamp.generation, stamp.version);
        match self.stamps.insert(key, new) {
            Some(old) if old > new => Err(format!(
                "set {} of generation {} has written over set {} of generation {} in {key:?}",
                new.1, new.0, old.1, old.0,
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn begin(&mut self, actor: Actor, what: Move) -> Order {
        match what {
            Move::Ask(resource) => {
                let stream = (actor as u64 + 1) * 100 + self.streams_of(actor) as u64;
                if let Some(player) = self.players.get_mut(actor) {
                    player.streams.push(stream);
                }
                Order::Enter { stream, resource: resource.into(), batch: 1, user: None }
            }
            Move::End(number) => {
                let stream = self.players.get(actor).and_then(|player| player.streams.get(number));
                let stream = stream.copied().unwrap_or(0);
                if self.open.remove(&stream).is_some() {
                    self.note(actor, &format!("request {stream} has ended"));
                    self.ended(stream);
                }
                Order::Exit { stream, failed: false }
            }
            Move::Tick => Order::Tick,
            Move::Settle => Order::Settle,
            Move::Configure => Order::GoOn,
            Move::Replace(index) => {
                let rules = self.script.rules.get(index).cloned().unwrap_or_default();
                Order::Replace(Rc::new(config(rules, self.script.settings.clone())))
            }
        }
    }

    fn done(&mut self, actor: Actor, done: Done) -> Result<(), Broken> {
        match done {
            Done::Answered(mut answer) => {
                // Where a ledger says that there is a newer set, a worker that is behind goes by that.
                let loaded = answer.seen.loaded.iter().map(|(_, stamp, _)| stamp.version);
                let newest = loaded.max().unwrap_or(0);
                answer.rules_version = answer.rules_version.max(newest);
                self.answered(actor, &answer)
            }
            Done::Settled { incarnation, .. } => {
                if let Some(player) = self.players.get_mut(actor) {
                    player.incarnation = incarnation;
                }
                Ok(())
            }
            Done::Ticked(..) | Done::Counted(_) | Done::Nothing => Ok(()),
        }
    }

    fn answered(&mut self, actor: Actor, answer: &Answer) -> Result<(), Broken> {
        let stream = answer.stream;
        let (what, version) = match &answer.decision {
            Decision::Passes => ("passes".to_owned(), answer.rules_version),
            Decision::Waits(until) => (format!("waits until {until:?}"), answer.rules_version),
            Decision::RefusedBy(rule) => (format!("is refused by {rule}"), answer.rules_version),
        };
        self.note(
            actor,
            &format!("request {stream} to {} {what} under set {version}", answer.resource),
        );
        if &*answer.resource != UNRULED {
            self.answers.insert(stream, what);
        }
        let now = self.checker.now(self.process.borrow().monotonic_ns);
        match &answer.decision {
            Decision::Passes | Decision::Waits(_) => {
                self.open.insert(stream, actor);
                self.checker.admitted(answer, now, false).map(|_| ())
            }
            Decision::RefusedBy(rule) if self.script.is_ample => {
                Err(format!("rule {rule} refuses a request, and there is enough for all"))
            }
            Decision::RefusedBy(rule) => self.checker.refused(answer, rule, false),
        }
    }

    fn ended(&mut self, stream: u64) {
        let now = self.checker.now(self.process.borrow().monotonic_ns);
        self.checker.ended(stream, false, now);
    }

    fn move_clock(&mut self) {
        let Some(ms) = self.script.clock_ms.get(self.clock_moves) else { return };
        self.clock_moves += 1;
        let before = self.process.borrow().monotonic_ns;
        self.process.borrow_mut().monotonic_ns = ms * MS;
        self.note(self.clock(), &format!("the clock moves on to {ms} ms"));
        // No request lives longer than `orphanTtlMs`: that is what this setting promises.
        let longest = u64::from(self.script.settings.orphan_ttl_ms) * MS;
        if ms * MS - before > longest {
            for stream in std::mem::take(&mut self.open).into_keys() {
                self.ended(stream);
            }
        }
    }

    fn trap(&mut self) {
        self.has_trapped = true;
        let Some(worker) = self.script.trap else { return };
        self.note(worker, "traps");
        if let Some(player) = self.players.get_mut(worker) {
            player.vm = None;
            player.told.add("trapped");
        }
    }

    fn note(&mut self, actor: Actor, what: &str) {
        let ms = self.process.borrow().monotonic_ns / MS;
        let who = match actor {
            worker if worker < self.script.workers.len() => format!("worker {worker}"),
            service if service < self.players.len() => "service".to_owned(),
            _ => "-".to_owned(),
        };
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{ms:>7} ms  {who:<8}  {what}"));
        }
    }

    /// A call and what came of it.
    fn describe(&self, call: Call, has_written: bool) -> String {
        let process = self.process.borrow();
        let mut name = String::new();
        let mut value = |key: Key| {
            key.write_name(&mut name);
            match process.shared_data.value(&name) {
                Some((bytes, token)) => format!("{} (token {token})", brief(key, bytes)),
                None => "nothing".to_owned(),
            }
        };
        match call {
            Call::Load(key) => format!("loads {key:?}: {}", value(key)),
            Call::Store(key) | Call::Create(key) if has_written => {
                format!("{call}: {}", value(key))
            }
            Call::Store(_) | Call::Create(_) => format!("{call}: too late"),
            Call::Level(signal) => {
                let mut levels = process.levels().iter().zip(Signal::ALL);
                let level = levels.find(|(_, known)| *known == signal);
                format!("{call}: {}", level.map_or(0, |(level, _)| *level))
            }
            Call::Clock | Call::Random | Call::Queue(_) | Call::Raise(_) | Call::Meter => {
                call.to_string()
            }
        }
    }
}

/// A signal's place among all.
fn place(signal: Signal) -> usize {
    Signal::ALL.iter().position(|known| *known == signal).unwrap_or(Signal::ALL.len())
}

/// A value for people.
fn brief(key: Key, bytes: &[u8]) -> String {
    if !matches!(key, Key::Ledger(_) | Key::Set(_)) {
        return format!("{} bytes", bytes.len());
    }
    let Ok((stamp, value)) = ledger::decode(bytes) else { return "unreadable".to_owned() };
    let what = match &value {
        Value::Single(Ledger::Rate(rate)) => {
            let granted: Vec<String> = rate.granted.iter().take(4).map(u64::to_string).collect();
            format!("bucket {}, granted {} and before", rate.newest.get(), granted.join(", "))
        }
        Value::Single(Ledger::Permits(permits)) => {
            let holders = permits.holders.iter();
            let holders: Vec<String> = holders
                .map(|holder| format!("{} of {:04x}", holder.permits, holder.incarnation >> 48))
                .collect();
            format!("permits {}", holders.join(" and "))
        }
        Value::Single(Ledger::Pace(_) | Ledger::Bucket(_) | Ledger::Breaker(_))
        | Value::Set(..) => {
            format!("{value:?}")
        }
    };
    format!(
        "generation {:x}, set {}, threshold {}: {what}",
        stamp.generation, stamp.version, stamp.threshold
    )
}
