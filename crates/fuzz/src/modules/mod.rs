//! The modules that ship, in an interpreter, under a host that does what Envoy does and what it should not.
//!
//! Two workers (one with the usual filter, one with the filter that counts messages) and the service run in one
//! [`process`], and random callbacks reach them: mostly what Envoy would send, in any order that it could, sometimes what it
//! never would. From one seed follow the callbacks, what clients send, and which host calls fail.

mod guest;
mod input;
pub mod instructions;
mod process;
mod settle;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;
use wasmi::{Config, Engine, Module};

use crate::mutate::mutated;
use guest::{Context, Guest, Moment};
use input::Exchange;
use process::Process;

/// The modules, ready to be started.
#[derive(Debug)]
pub struct Modules {
    engine: Engine,
    /// By place: the service, the filter, the filter that counts messages.
    all: [Module; 3],
}

/// One run.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// All of the run follows from it.
    pub seed: u64,
    /// How many callbacks the modules get, before all streams end.
    pub callbacks: u64,
    /// Only what Envoy does, without faults, and no more memory at the end than at the beginning.
    pub steady: bool,
    /// Told every event.
    pub trace: Option<&'a dyn Fn(&str)>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, callbacks, steady, trace } = self;
        write!(
            f,
            "seed {seed}, {callbacks} callbacks, steady: {steady}, traced: {}",
            trace.is_some()
        )
    }
}

/// What a run has shown.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Callbacks.
    pub callbacks: u64,
    /// Streams that have begun.
    pub streams: u64,
    /// Streams that were answered or closed by the module.
    pub refused: u64,
    /// Streams that had to wait.
    pub paused: u64,
    /// The most instructions of one callback, by its name.
    pub most_fuel: BTreeMap<String, u64>,
    /// Keys of shared data.
    pub keys: usize,
    /// Statistics.
    pub statistics: usize,
    /// Bytes of memory of the largest VM.
    pub memory_bytes: usize,
}

impl Figures {
    /// Those of another run: sums of what happened, and the most of what is bounded.
    pub fn add(&mut self, other: Self) {
        self.callbacks += other.callbacks;
        self.streams += other.streams;
        self.refused += other.refused;
        self.paused += other.paused;
        self.keys = self.keys.max(other.keys);
        self.statistics = self.statistics.max(other.statistics);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        for (export, fuel) in other.most_fuel {
            let most = self.most_fuel.entry(export).or_default();
            *most = fuel.max(*most);
        }
    }
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Failure {
    seed: u64,
    callbacks: u64,
    steady: bool,
    problem: String,
    events: Vec<String>,
}

/// How many callbacks a run has where nobody says.
pub const CALLBACKS: u64 = 2_000;

/// What happens in a run, besides what always does.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Callbacks that Envoy would not make.
    is_rude: bool,
    /// VMs that end and begin anew.
    restarts: bool,
    /// Roots that come and go, configurations that change.
    reconfigures: bool,
    /// Of 1,000 host calls.
    failing: u32,
    has_service: bool,
}

/// A stream of a worker.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    is_connection: bool,
    is_begun: bool,
    /// Paused, and not answered.
    waits: bool,
}

struct World<'a> {
    modules: &'a Modules,
    options: Options<'a>,
    plan: Plan,
    random: Rng,
    process: Rc<RefCell<Process>>,
    guests: Vec<Option<Guest>>,
    roots: Vec<Vec<u32>>,
    streams: BTreeMap<(usize, u32), Stream>,
    next_context: u32,
    figures: Figures,
    shown: usize,
}

const SERVICE: usize = 0;
const WORKERS: [usize; 2] = [1, 2];
const NAMES: [&str; 3] = ["service", "filter", "messages"];

/// The most streams that live at a time.
const STREAMS: usize = 30;

/// The bounds that a run must keep: those of `service.yaml`, and what the modules define besides.
const KEYS_MAX: usize = 12_000;
const STATISTICS_MAX: usize = 750;
const MEMORY_MAX: usize = 64 * 1024 * 1024;

/// What a VM may still take after the first third of a steady run: an allocator finds its shape slowly. A leak of ten bytes
/// a callback is more.
const GROWTH_MAX: usize = 4 * 65_536;

impl Modules {
    /// Reads the modules from the folder that `cargo xtask build` fills.
    ///
    /// # Errors
    /// If one is missing, or is no module.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let mut config = Config::default();
        config.consume_fuel(true);
        let engine = Engine::new(&config);
        let load = |name: &str| {
            let file = folder.join(format!("{name}.wasm"));
            let bytes = std::fs::read(&file).map_err(|error| {
                format!("cannot read {}: {error}; `cargo xtask build` makes it", file.display())
            })?;
            Module::new(&engine, &bytes).map_err(|error| format!("{}: {error}", file.display()))
        };
        let all = [
            load("sentinel_service")?,
            load("sentinel_filter")?,
            load("sentinel_filter_messages")?,
        ];
        Ok(Self { engine, all })
    }
}

/// Does one run.
///
/// # Errors
/// At the first broken promise.
pub fn run(modules: &Modules, options: Options<'_>) -> Result<Figures, Box<Failure>> {
    let mut world = World::new(modules, options);
    match world.live() {
        Ok(()) => Ok(world.figures),
        Err(problem) => {
            world.show_events();
            Err(Box::new(Failure {
                seed: options.seed,
                callbacks: options.callbacks,
                steady: options.steady,
                problem,
                events: world.process.borrow().events.iter().cloned().collect(),
            }))
        }
    }
}

impl<'a> World<'a> {
    fn new(modules: &'a Modules, options: Options<'a>) -> Self {
        let mut random = Rng::with_seed(options.seed);
        let calm = options.steady;
        let plan = Plan {
            is_rude: !calm && random.u32(0..4) == 0,
            restarts: !calm && random.u32(0..3) == 0,
            reconfigures: !calm && random.bool(),
            failing: random.choice([0, 0, 0, 5, 50, 300]).filter(|_| !calm).unwrap_or(0),
            has_service: calm || random.u32(0..8) > 0,
        };
        let mut process = Process::new(random.fork());
        process.failing = plan.failing;
        process.has_no_statistics = !calm && random.u32(0..10) == 0;
        Self {
            modules,
            options,
            plan,
            random,
            process: Rc::new(RefCell::new(process)),
            guests: vec![None, None, None],
            roots: vec![Vec::new(), Vec::new(), Vec::new()],
            streams: BTreeMap::new(),
            next_context: 1,
            figures: Figures::default(),
            shown: 0,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        self.note(format!("{:?}", self.plan));
        let first = if self.plan.has_service { SERVICE } else { 1 };
        for vm in first..NAMES.len() {
            self.start(vm)?;
        }
        let warm = self.options.callbacks / 3;
        let mut memory = None;
        while self.figures.callbacks < self.options.callbacks {
            self.step()?;
            if memory.is_none() && self.figures.callbacks >= warm {
                memory = Some(self.memory_bytes());
            }
        }
        let before = memory.unwrap_or_default();
        let after = self.memory_bytes();
        let has_grown =
            before.iter().zip(&after).any(|(before, after)| before + GROWTH_MAX < *after);
        if self.options.steady && has_grown {
            return Err(format!(
                "memory grew from {before:?} to {after:?} bytes after the first third of the callbacks"
            ));
        }
        self.settle()?;
        self.measure()
    }

    fn memory_bytes(&self) -> Vec<usize> {
        self.guests.iter().flatten().map(Guest::memory_bytes).collect()
    }

    /// Holds what must be bounded against its bounds.
    fn measure(&mut self) -> Result<(), String> {
        let process = self.process.borrow();
        self.figures.keys = process.data.len();
        self.figures.statistics = process.statistics().count();
        self.figures.memory_bytes = self.memory_bytes().into_iter().max().unwrap_or(0);
        let bounds = [
            ("keys of shared data", self.figures.keys, KEYS_MAX),
            ("statistics", self.figures.statistics, STATISTICS_MAX),
            ("bytes of a VM's memory", self.figures.memory_bytes, MEMORY_MAX),
        ];
        match bounds.into_iter().find(|(_, found, most)| found > most) {
            Some((what, found, most)) => {
                Err(format!("{found} {what}, but {most} at most were expected"))
            }
            None => Ok(()),
        }
    }

    /// A VM begins, as Envoy lets it.
    fn start(&mut self, vm: usize) -> Result<(), String> {
        let Some(module) = self.modules.all.get(vm) else { return Ok(()) };
        self.streams.retain(|(its, _), _| *its != vm);
        self.process.borrow_mut().calls.retain(|call| call.vm != vm);
        let guest = Guest::start(&self.modules.engine, module, Rc::clone(&self.process), vm);
        let guest = guest.map_err(|error| format!("{} does not start: {error}", name(vm)))?;
        self.note(format!("{} starts", name(vm)));
        if let Some(place) = self.guests.get_mut(vm) {
            *place = Some(guest);
        }
        if let Some(roots) = self.roots.get_mut(vm) {
            roots.clear();
        }
        let exchange = Exchange::connection(&mut self.random);
        let root = self.create(vm, 0, exchange)?;
        self.call(vm, "proxy_on_vm_start", &[root, 0], Moment::Start, root)?;
        let is_taken = self.configure(vm, root, configuration(vm).into())?;
        // Else the whole run would be about nothing.
        if !is_taken && self.plan.failing == 0 {
            return Err(format!("{} refuses its configuration", name(vm)));
        }
        Ok(())
    }

    /// A context begins; of a root where `root` is 0.
    fn create(&mut self, vm: usize, root: u32, exchange: Exchange) -> Result<u32, String> {
        let context = self.next_context;
        self.next_context += 1;
        if let Some(state) = self.state(vm) {
            state.contexts.insert(context, Context::new(root, exchange));
        }
        if root == 0
            && let Some(roots) = self.roots.get_mut(vm)
        {
            roots.push(context);
        }
        self.call(vm, "proxy_on_context_create", &[context, root], Moment::Root, context)?;
        Ok(context)
    }

    /// Whether the module takes the configuration.
    fn configure(&mut self, vm: usize, root: u32, configuration: Vec<u8>) -> Result<bool, String> {
        let size = u32::try_from(configuration.len()).unwrap_or(u32::MAX);
        if let Some(state) = self.state(vm) {
            state.configuration = configuration;
        }
        Ok(self.call(vm, "proxy_on_configure", &[root, size], Moment::Configure, root)? == 1)
    }

    /// Time goes on, timers fire, what has arrived is told, and one thing happens to one stream.
    fn step(&mut self) -> Result<(), String> {
        let passed_us = match self.random.u32(0..100) {
            0 => self.random.u64(0..3_000_000),
            1..50 => self.random.u64(0..12_000),
            _ => self.random.u64(0..500),
        };
        self.pass(passed_us * 1_000)?;
        self.process_events()?;
        let odds = self.random.u32(0..400);
        match odds {
            0 if self.plan.restarts => {
                let vm = self.random.usize(0..NAMES.len());
                if self.guests.get(vm).is_some_and(Option::is_some) || vm == SERVICE {
                    self.start(vm)?;
                }
            }
            1..4 if self.plan.reconfigures => self.reconfigure()?,
            4 if !self.options.steady => {
                // The wall clock is set.
                let mut process = self.process.borrow_mut();
                let moved = self.random.u64(0..20_000_000_000);
                process.wall_offset_ns =
                    process.wall_offset_ns.wrapping_add(moved).wrapping_sub(10_000_000_000);
            }
            5..25 if self.plan.is_rude => self.intrude()?,
            _ => {}
        }
        self.stream_event()
    }

    /// `passed_ns` go by, and every timer fires that is due.
    fn pass(&mut self, passed_ns: u64) -> Result<(), String> {
        self.process.borrow_mut().now_ns += passed_ns;
        for vm in 0..NAMES.len() {
            let now = self.process.borrow().now_ns;
            let Some(state) = self.state(vm) else { continue };
            let mut due = Vec::new();
            for (root, (period_ms, at)) in &mut state.timers {
                if *at <= now {
                    *at = now + u64::from(*period_ms) * 1_000_000;
                    due.push(*root);
                }
            }
            for root in due {
                self.call(vm, "proxy_on_tick", &[root], Moment::Root, root)?;
            }
        }
        Ok(())
    }

    /// The service hears of frames, and of answers to its calls.
    fn process_events(&mut self) -> Result<(), String> {
        let Some(root) = self.roots.get(SERVICE).and_then(|roots| roots.last()).copied() else {
            return Ok(());
        };
        if self.process.borrow().backlog() > 0 && self.random.u32(0..4) > 0 {
            self.call(SERVICE, "proxy_on_queue_ready", &[root, 1], Moment::Root, root)?;
        }
        let mut process = self.process.borrow_mut();
        if process.calls.is_empty() || self.random.u32(0..4) > 0 {
            return Ok(());
        }
        let place = self.random.usize(0..process.calls.len());
        let call = process.calls.swap_remove(place);
        drop(process);
        let body = match self.random.u32(0..6) {
            0 => Vec::new(),
            1 => "files: [a.yaml, b.yaml]\n".into(),
            2 => "server.memory_allocated: 700000000\n".into(),
            3 if !self.options.steady => {
                mutated(&mut self.random, FETCHED.as_bytes(), FETCHED.as_bytes())
            }
            _ => FETCHED.into(),
        };
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let answer = Exchange::call_answer(&mut self.random, body);
        let headers = if self.random.u32(0..6) == 0 {
            0
        } else {
            u32::try_from(answer.response.len()).unwrap_or(1)
        };
        if let Some(state) = self.state(call.vm) {
            state.call_answer = answer;
        }
        let arguments = [call.root, call.number, headers, size, 0];
        self.call(
            call.vm,
            "proxy_on_http_call_response",
            &arguments,
            Moment::CallAnswer,
            call.root,
        )?;
        Ok(())
    }

    /// A root comes, goes, or is told something else.
    fn reconfigure(&mut self) -> Result<(), String> {
        let vm = self.random.usize(0..NAMES.len());
        if self.guests.get(vm).is_none_or(Option::is_none) {
            return Ok(());
        }
        let roots = self.roots.get(vm).cloned().unwrap_or_default();
        let text = match self.random.u32(0..4) {
            0 => mutated(&mut self.random, configuration(vm).as_bytes(), FETCHED.as_bytes()),
            1 if vm != SERVICE => format!("{}{CARRIED}", configuration(vm)).into(),
            _ => configuration(vm).into(),
        };
        let oldest = roots.first().copied();
        match oldest.filter(|_| self.random.bool()) {
            Some(root) if roots.len() > 1 => {
                if let Some(roots) = self.roots.get_mut(vm) {
                    roots.retain(|other| *other != root);
                }
                self.delete(vm, root)
            }
            Some(root) => self.configure(vm, root, text).map(drop),
            None if roots.len() < 4 => {
                let exchange = Exchange::connection(&mut self.random);
                let root = self.create(vm, 0, exchange)?;
                self.configure(vm, root, text).map(drop)
            }
            None => Ok(()),
        }
    }

    /// A callback that Envoy would not make, or not now.
    fn intrude(&mut self) -> Result<(), String> {
        const EXPORTS: [(&str, usize, Moment); 10] = [
            ("proxy_on_request_headers", 3, Moment::Request),
            ("proxy_on_request_body", 3, Moment::Body),
            ("proxy_on_new_connection", 1, Moment::Connection),
            ("proxy_on_downstream_data", 3, Moment::Data),
            ("proxy_on_upstream_data", 3, Moment::Data),
            ("proxy_on_log", 1, Moment::Log),
            ("proxy_on_delete", 1, Moment::Root),
            ("proxy_on_tick", 1, Moment::Root),
            ("proxy_on_queue_ready", 2, Moment::Root),
            ("proxy_on_http_call_response", 5, Moment::CallAnswer),
        ];
        let vm = self.random.usize(0..NAMES.len());
        if self.guests.get(vm).is_none_or(Option::is_none) {
            return Ok(());
        }
        let Some((export, count, moment)) = self.random.choice(EXPORTS) else { return Ok(()) };
        let live: Vec<u32> =
            self.streams.keys().filter(|(its, _)| *its == vm).map(|(_, id)| *id).collect();
        let arguments: Vec<u32> = (0..count)
            .map(|_| match self.random.u32(0..5) {
                0 => 0,
                1 => u32::MAX,
                2 => self.random.u32(0..self.next_context),
                _ => self.random.choice(&live).copied().unwrap_or(1),
            })
            .collect();
        let context = arguments.first().copied().unwrap_or(0);
        // What Envoy calls deleted is gone for it as well.
        if export == "proxy_on_delete" {
            let is_root = self.roots.iter().flatten().any(|root| *root == context);
            return if is_root { Ok(()) } else { self.delete(vm, context) };
        }
        self.call(vm, export, &arguments, moment, context)?;
        Ok(())
    }

    /// A stream begins, goes on, or ends.
    fn stream_event(&mut self) -> Result<(), String> {
        let begins = self.streams.len() < STREAMS && self.random.u32(0..3) == 0;
        if begins || self.streams.is_empty() {
            let vm = self.random.choice(WORKERS).unwrap_or(1);
            return self.begin(vm);
        }
        let place = self.random.usize(0..self.streams.len());
        let Some((&(vm, id), &stream)) = self.streams.iter().nth(place) else { return Ok(()) };
        match self.random.u32(0..8) {
            0 => self.end(vm, id),
            _ if !stream.is_begun => self.enter(vm, id, stream.is_connection),
            1..3 => self.end(vm, id),
            _ => self.send(vm, id, stream),
        }
    }

    fn begin(&mut self, vm: usize) -> Result<(), String> {
        let roots = self.roots.get(vm).cloned().unwrap_or_default();
        let Some(root) = self.random.choice(roots) else { return Ok(()) };
        let is_connection = self.random.u32(0..5) == 0;
        let exchange = if is_connection {
            Exchange::connection(&mut self.random)
        } else {
            Exchange::request(&mut self.random)
        };
        let id = self.create(vm, root, exchange)?;
        self.figures.streams += 1;
        self.streams.insert((vm, id), Stream { is_connection, ..Stream::default() });
        Ok(())
    }

    /// The headers of a request are there, or a client has connected.
    fn enter(&mut self, vm: usize, id: u32, is_connection: bool) -> Result<(), String> {
        let flow = if is_connection {
            self.call(vm, "proxy_on_new_connection", &[id], Moment::Connection, id)?
        } else {
            let end = u32::from(self.random.bool());
            self.call(vm, "proxy_on_request_headers", &[id, 5, end], Moment::Request, id)?
        };
        if flow > 1 {
            return Err(format!("a callback for stream {id} returned {flow}, which is no action"));
        }
        let is_answered = self.state(vm).is_some_and(|state| state.answered.contains(&id));
        let waits = flow == 1 && !is_answered;
        self.figures.refused += u64::from(is_answered);
        self.figures.paused += u64::from(waits);
        if let Some(stream) = self.streams.get_mut(&(vm, id)) {
            stream.is_begun = true;
            stream.waits = waits;
        }
        Ok(())
    }

    /// Bytes of a stream are there.
    fn send(&mut self, vm: usize, id: u32, stream: Stream) -> Result<(), String> {
        if stream.waits {
            return Ok(());
        }
        let body = input::body(&mut self.random);
        let mut size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        if !self.options.steady && self.random.u32(0..50) == 0 {
            // More than there is.
            size = size.wrapping_add(self.random.u32(..));
        }
        if let Some(context) = self.state(vm).and_then(|state| state.contexts.get_mut(&id)) {
            context.exchange.body = body;
        }
        let arguments = [id, size, u32::from(self.random.bool())];
        let (export, moment) = match (stream.is_connection, self.random.bool()) {
            (false, _) => ("proxy_on_request_body", Moment::Body),
            (true, false) => ("proxy_on_downstream_data", Moment::Data),
            (true, true) => ("proxy_on_upstream_data", Moment::Data),
        };
        let flow = self.call(vm, export, &arguments, moment, id)?;
        if flow > 3 {
            return Err(format!("{export} returned {flow}, which is no action"));
        }
        Ok(())
    }

    /// A stream ends; now and then without a word in the access log.
    fn end(&mut self, vm: usize, id: u32) -> Result<(), String> {
        let mut random = self.random.fork();
        if let Some(context) = self.state(vm).and_then(|state| state.contexts.get_mut(&id)) {
            context.exchange.answer(&mut random);
        }
        if self.options.steady || self.random.u32(0..10) > 0 {
            self.call(vm, "proxy_on_log", &[id], Moment::Log, id)?;
        }
        self.delete(vm, id)
    }

    fn delete(&mut self, vm: usize, context: u32) -> Result<(), String> {
        self.call(vm, "proxy_on_delete", &[context], Moment::Root, context)?;
        if let Some(state) = self.state(vm) {
            state.contexts.remove(&context);
            state.timers.remove(&context);
        }
        self.process.borrow_mut().calls.retain(|call| (call.vm, call.root) != (vm, context));
        self.streams.remove(&(vm, context));
        Ok(())
    }

    /// One callback, and what must hold after each.
    fn call(
        &mut self,
        vm: usize,
        export: &str,
        arguments: &[u32],
        moment: Moment,
        context: u32,
    ) -> Result<u32, String> {
        let line = format!("{} {export}{arguments:?}{}", name(vm), self.about(vm, context, moment));
        self.note(line);
        let Some(Some(guest)) = self.guests.get_mut(vm) else { return Ok(0) };
        let called = guest.call(export, arguments, moment, context);
        self.figures.callbacks += 1;
        let mut process = self.process.borrow_mut();
        let called = called.map_err(|error| {
            let words = core::mem::take(&mut process.last_words);
            format!("{} traps in {export}: {error} {words}", name(vm))
        })?;
        if let Some(finding) = process.finding.take() {
            return Err(format!("{} in {export}: {finding}", name(vm)));
        }
        drop(process);
        let most = self.figures.most_fuel.entry(export.to_owned()).or_default();
        *most = called.fuel.max(*most);
        let bound = fuel_max(export);
        if called.fuel > bound {
            return Err(format!(
                "{} took {} instructions in {export}, but {bound} are the most",
                name(vm),
                called.fuel
            ));
        }
        let continued = core::mem::take(&mut guest.state().continued);
        for id in continued {
            if let Some(stream) = self.streams.get_mut(&(vm, id)) {
                stream.waits = false;
            }
        }
        self.show_events();
        Ok(called.value)
    }

    /// What a callback is about, for people to read.
    fn about(&mut self, vm: usize, context: u32, moment: Moment) -> String {
        let now_ms = self.process.borrow().now_ns / 1_000_000;
        let request = self
            .state(vm)
            .and_then(|state| state.contexts.get(&context))
            .filter(|_| moment == Moment::Request);
        let shown: Vec<String> = request
            .into_iter()
            .flat_map(|context| &context.exchange.request)
            .map(|(name, value)| {
                let value = value.get(..80).unwrap_or(value);
                format!("{}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
            })
            .collect();
        format!(" at {now_ms} ms {}", shown.join(" "))
    }

    fn state(&mut self, vm: usize) -> Option<&mut guest::State> {
        self.guests.get_mut(vm)?.as_mut().map(Guest::state)
    }

    fn note(&mut self, event: String) {
        self.process.borrow_mut().note(event);
        self.shown += 1;
    }

    /// Tells what has been noted since the last time.
    fn show_events(&mut self) {
        if let Some(trace) = self.options.trace {
            for event in self.process.borrow_mut().events.drain(..) {
                trace(&event);
            }
        }
    }
}

fn name(vm: usize) -> &'static str {
    NAMES.get(vm).copied().unwrap_or("?")
}

/// What each module is told at first.
fn configuration(vm: usize) -> &'static str {
    if vm == SERVICE { include_str!("service.yaml") } else { include_str!("filter.yaml") }
}

/// Rules that a filter carries.
const CARRIED: &str = "rules: [{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules, spec: {rules: [{id: carried, resource: \"GET:/carried\", threshold: 7}]}}]\n";

/// What a server of rules answers.
const FETCHED: &str = "apiVersion: datasource.sentinel.io/v1alpha1\nkind: FlowRules\nspec:\n  rules:\n  - {id: fetched, resource: \"GET:/fetched\", threshold: 70}\n";

/// The most instructions that a callback may take: three times the most that thousands of runs have shown, or more.
fn fuel_max(export: &str) -> u64 {
    match export {
        // Reads and compiles rules, damaged ones of up to 48 KB too.
        "proxy_on_configure" | "proxy_on_http_call_response" => 60_000_000,
        // A worker's first stream takes up a rule set as a whole.
        "proxy_on_tick"
        | "proxy_on_queue_ready"
        | "proxy_on_request_headers"
        | "proxy_on_new_connection" => 25_000_000,
        _ => 4_000_000,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        let Self { seed, callbacks, steady, problem, .. } = self;
        let steady = if *steady { " --steady" } else { "" };
        writeln!(f, "seed {seed}: {problem}")?;
        write!(f, "again: cargo xtask fuzz modules --seed {seed} --callbacks {callbacks}{steady}")
    }
}
