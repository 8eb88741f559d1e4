//! What the modules that ship do for each request, message, connection, frame and tick, in instructions and host calls.
//!
//! Envoy behaves here: no call fails, time passes only where a case says so, and the wake-ups come in order. So a figure is the
//! same in every run of the same module, and a slow-down shows where timing is noise. Each case proves that it has
//! measured what it says: by what the request is answered, by the counters that moved, by the calls on shared data.

mod cases;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;
use sentinel_wire::workers::Seeds;
use wasmi::{Config, Engine, Module};

use super::guest::{Context, Guest, Moment, Work};
use super::input::Exchange;
use super::process::Process;

/// The modules, each of which counts its instructions.
#[derive(Debug)]
pub struct Counting {
    engine: Engine,
    service: Counter,
    filter: Counter,
    messages: Counter,
}

#[derive(Debug)]
struct Counter {
    module: Module,
    functions: Vec<String>,
}

/// What one case takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Figure {
    /// What is done.
    pub name: String,
    /// What it takes: instructions, those of them that copy or fill memory, host calls, those of them that return bytes, those
    /// of them on shared data.
    pub counts: [u64; 5],
}

/// What [`Figure::counts`] are.
const COUNTS: [&str; 5] = ["instructions", "copies", "host calls", "with bytes", "shared data"];

/// Where the instructions of a case are.
#[derive(Clone, Debug)]
pub struct Share {
    /// The function.
    pub function: String,
    /// How often it is called, its own instructions, and all until it has ended; of all repetitions.
    pub counts: [u64; 3],
}

/// How far a figure may be off, in hundredths: one build differs from the other a little by the toolchain.
const TOLERANCE_PERCENT: u64 = 2;

impl Counting {
    /// Reads the modules from a folder of `cargo xtask bench instructions`. Beside one that also tells which functions run
    /// stands a file with their names.
    ///
    /// # Errors
    /// If one is missing, or is no module.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let mut config = Config::default();
        config.consume_fuel(true);
        let engine = Engine::new(&config);
        let load = |name: &str| {
            let file = folder.join(format!("{name}.wasm"));
            let bytes = std::fs::read(&file)
                .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            let module = Module::new(&engine, &bytes)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            let functions = std::fs::read_to_string(folder.join(format!("{name}.functions")));
            let functions = functions.unwrap_or_default().lines().map(ToOwned::to_owned).collect();
            Ok::<_, String>(Counter { module, functions })
        };
        Ok(Self {
            service: load("sentinel_service")?,
            filter: load("sentinel_filter")?,
            messages: load("sentinel_filter_messages")?,
            engine,
        })
    }
}

/// All figures of the modules in `folder`.
///
/// # Errors
/// If a case did not measure what it says.
pub fn measure(folder: &Path) -> Result<Vec<Figure>, String> {
    let counting = Counting::load(folder)?;
    let mut figures = Vec::new();
    for case in cases::all() {
        figures.extend(case.run(&counting)?.figures);
    }
    Ok(figures)
}

/// Where the instructions of one case are, those functions first that run most themselves.
///
/// # Errors
/// If there is no such case, or it did not measure what it says.
pub fn profile(folder: &Path, name: &str) -> Result<(Vec<Figure>, Vec<Share>), String> {
    let case = cases::all().into_iter().find(|case| case.name() == name).ok_or_else(|| {
        let names: Vec<String> =
            cases::all().iter().map(|case| format!("\n  {}", case.name())).collect();
        format!("there is no case `{name}`, but{}", names.concat())
    })?;
    let outcome = case.run(&Counting::load(folder)?)?;
    let mut shares: Vec<Share> = outcome
        .by_function
        .into_iter()
        .map(|(function, counts)| Share { function, counts })
        .collect();
    shares.sort_by_key(|share| core::cmp::Reverse(share.counts[1]));
    Ok((outcome.figures, shares))
}

/// The figures as a file has them: a line for each.
pub fn written(figures: &[Figure]) -> String {
    let mut text = String::from(HEADER);
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    let mut line = |name: &str, counts: [&str; 5]| {
        let [instructions, copies, calls, with_bytes, shared] = counts;
        let _ = writeln!(
            text,
            "{name:<width$} | {instructions:>12} | {copies:>6} | {calls:>10} | {with_bytes:>10} | {shared:>11}"
        );
    };
    line("", COUNTS);
    for Figure { name, counts } in figures {
        let counts = counts.map(|count| count.to_string());
        line(name, counts.each_ref().map(String::as_str));
    }
    text
}

const HEADER: &str = "\
# What the modules that ship do, in instructions of WebAssembly and calls of Envoy's functions.
# Written by `cargo xtask bench instructions --write`; `cargo xtask test` compares it with what they do now.
";

/// Reads a file of figures.
///
/// # Errors
/// At the first line that is none.
pub fn read(text: &str) -> Result<Vec<Figure>, String> {
    let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let name = cells.next().unwrap_or_default().to_owned();
        let mut counts = [0; 5];
        for count in &mut counts {
            *count = cells
                .next()
                .and_then(|cell| cell.parse().ok())
                .ok_or_else(|| format!("this is no figure: {row}"))?;
        }
        Ok(Figure { name, counts })
    })
    .collect()
}

/// What differs between the figures of the file and those of now, a line for each.
pub fn differences(known: &[Figure], now: &[Figure]) -> Vec<String> {
    let find = |figures: &[Figure], name: &str| {
        figures.iter().find(|figure| figure.name == name).map(|figure| figure.counts)
    };
    let mut lines = Vec::new();
    for Figure { name, counts } in now {
        let Some(before) = find(known, name) else {
            lines.push(format!("{name}: is new"));
            continue;
        };
        for ((what, before), now) in COUNTS.into_iter().zip(before).zip(*counts) {
            if is_off(before, now) {
                let by = (i128::from(now) - i128::from(before)) * 1_000 / i128::from(before.max(1));
                let (sign, by) = (if by < 0 { '-' } else { '+' }, by.unsigned_abs());
                lines.push(format!(
                    "{name}: {now} {what}, and {before} before ({sign}{}.{} %)",
                    by / 10,
                    by % 10
                ));
            }
        }
    }
    for Figure { name, .. } in known {
        if find(now, name).is_none() {
            lines.push(format!("{name}: is gone"));
        }
    }
    lines
}

fn is_off(before: u64, now: u64) -> bool {
    now.abs_diff(before) * 100 > before * TOLERANCE_PERCENT
}

/// What a case has shown.
#[derive(Debug, Default)]
struct Outcome {
    figures: Vec<Figure>,
    by_function: BTreeMap<String, [u64; 3]>,
}

/// One Envoy with the service, and one worker that has no other thread beside it.
struct Envoy<'a> {
    counting: &'a Counting,
    process: Rc<RefCell<Process>>,
    service: Vm,
    filter: Vm,
    next_context: u32,
    by_function: BTreeMap<String, [u64; 3]>,
}

/// A module, and the one root context in it.
#[derive(Debug)]
struct Vm {
    guest: Guest,
    root: u32,
}

/// Which VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Service,
    Filter,
}

/// How a request is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Answer {
    Passes,
    /// With these details in Envoy's access log.
    Refused(String),
    Waits,
}

const MS: u64 = 1_000_000;

impl<'a> Envoy<'a> {
    /// An Envoy with these configurations, in which the rules are in force. `counts_messages`: with the other filter.
    fn start(
        counting: &'a Counting,
        service: &str,
        filter: &str,
        counts_messages: bool,
    ) -> Result<Self, String> {
        let process = Rc::new(RefCell::new(Process::new(Rng::with_seed(7))));
        let start = |module: &Counter, place| {
            let process = Rc::clone(&process);
            let guest = Guest::start(&counting.engine, &module.module, process, place);
            let guest = guest.map_err(|error| format!("a module does not start: {error}"))?;
            Ok::<_, String>(Vm { guest, root: 0 })
        };
        let of_filter = if counts_messages { &counting.messages } else { &counting.filter };
        let mut envoy = Self {
            counting,
            service: start(&counting.service, 0)?,
            filter: start(of_filter, 1)?,
            process,
            next_context: 1,
            by_function: BTreeMap::new(),
        };
        envoy.configure(Place::Service, service)?;
        envoy.pass(200)?;
        envoy.configure(Place::Filter, filter)?;
        envoy.pass(50)?;
        Ok(envoy)
    }

    fn configure(&mut self, place: Place, configuration: &str) -> Result<(), String> {
        let root = self.create(place, 0, Exchange::default())?;
        self.vm(place).root = root;
        self.call(place, "proxy_on_vm_start", &[root, 0], Moment::Start)?;
        self.vm(place).guest.state().configuration = configuration.into();
        let size = u32::try_from(configuration.len()).unwrap_or(u32::MAX);
        let taken = self.call(place, "proxy_on_configure", &[root, size], Moment::Configure)?;
        if taken == 1 {
            return Ok(());
        }
        let events: Vec<String> = self.process.borrow().events.iter().cloned().collect();
        Err(format!("a module refuses its configuration:\n{}", events.join("\n")))
    }

    const fn vm(&mut self, place: Place) -> &mut Vm {
        match place {
            Place::Service => &mut self.service,
            Place::Filter => &mut self.filter,
        }
    }

    /// A context begins; a root where `root` is 0.
    fn create(&mut self, place: Place, root: u32, exchange: Exchange) -> Result<u32, String> {
        let context = self.next_context;
        self.next_context += 1;
        let state = self.vm(place).guest.state();
        state.contexts.insert(context, Context::new(root, exchange));
        self.call(place, "proxy_on_context_create", &[context, root], Moment::Root)?;
        Ok(context)
    }

    fn delete(&mut self, context: u32) -> Result<(), String> {
        self.call(Place::Filter, "proxy_on_delete", &[context], Moment::Root)?;
        self.filter.guest.state().contexts.remove(&context);
        Ok(())
    }

    /// A callback about the context that stands first.
    fn call(
        &mut self,
        place: Place,
        export: &str,
        arguments: &[u32],
        moment: Moment,
    ) -> Result<u32, String> {
        let context = arguments.first().copied().unwrap_or(0);
        let called = self.vm(place).guest.call(export, arguments, moment, context);
        let mut process = self.process.borrow_mut();
        let called = called.map_err(|error| {
            format!("{export} traps: {error} {}", core::mem::take(&mut process.last_words))
        })?;
        match process.finding.take() {
            Some(finding) => Err(format!("{export}: {finding}")),
            None => Ok(called.value),
        }
    }

    /// Time passes, and whatever is due happens: each timer at its time, and the service hears of frames.
    fn pass(&mut self, ms: u64) -> Result<(), String> {
        for _ in 0..ms {
            self.process.borrow_mut().now_ns += MS;
            for place in [Place::Filter, Place::Service] {
                let now = self.process.borrow().now_ns;
                let root = self.vm(place).root;
                let timers = &mut self.vm(place).guest.state().timers;
                let Some((period_ms, at)) = timers.get_mut(&root) else { continue };
                if *at <= now {
                    *at = now + u64::from(*period_ms) * MS;
                    self.tick(place)?;
                }
            }
            if self.process.borrow().backlog() > 0 {
                self.hear()?;
            }
        }
        Ok(())
    }

    /// Time passes, and nobody notices.
    fn wait(&mut self, ns: u64) {
        self.process.borrow_mut().now_ns += ns;
    }

    fn tick(&mut self, place: Place) -> Result<(), String> {
        let root = self.vm(place).root;
        self.call(place, "proxy_on_tick", &[root], Moment::Root).map(drop)
    }

    /// The service hears that there is a frame.
    fn hear(&mut self) -> Result<(), String> {
        let root = self.service.root;
        self.call(Place::Service, "proxy_on_queue_ready", &[root, 1], Moment::Root).map(drop)
    }

    /// The headers of a request, or a connection, are there.
    fn enter(&mut self, id: u32, is_connection: bool) -> Result<Answer, String> {
        let flow = if is_connection {
            self.call(Place::Filter, "proxy_on_new_connection", &[id], Moment::Connection)?
        } else {
            self.call(Place::Filter, "proxy_on_request_headers", &[id, 5, 1], Moment::Request)?
        };
        let state = self.filter.guest.state();
        Ok(if state.answered.contains(&id) {
            Answer::Refused(core::mem::take(&mut state.details))
        } else if flow == 1 {
            Answer::Waits
        } else {
            Answer::Passes
        })
    }

    fn log(&mut self, id: u32) -> Result<(), String> {
        self.call(Place::Filter, "proxy_on_log", &[id], Moment::Log).map(drop)
    }

    /// A request from its beginning to its end, of which nothing is kept.
    fn exchange(&mut self, exchange: &Exchange) -> Result<Answer, String> {
        let id = self.create(Place::Filter, self.filter.root, exchange.clone())?;
        let answer = self.enter(id, false)?;
        self.log(id)?;
        self.delete(id)?;
        Ok(answer)
    }

    /// Does something in one VM, and says what that took.
    fn spent<R>(
        &mut self,
        place: Place,
        act: impl FnOnce(&mut Self) -> Result<R, String>,
    ) -> Result<(R, [u64; 5]), String> {
        self.vm(place).guest.state().profile.by_function.clear();
        let before = self.counts(place);
        let result = act(self)?;
        let after = self.counts(place);
        let mut counts = after;
        for (count, before) in counts.iter_mut().zip(before) {
            *count -= before;
        }
        let of = core::mem::take(&mut self.vm(place).guest.state().profile.by_function);
        let functions = match place {
            Place::Service => &self.counting.service.functions,
            Place::Filter => &self.counting.filter.functions,
        };
        for (function, of_one) in of {
            let name = usize::try_from(function).ok().and_then(|place| functions.get(place));
            let all = self.by_function.entry(name.cloned().unwrap_or_default()).or_default();
            for (all, one) in all.iter_mut().zip(of_one) {
                *all += one;
            }
        }
        Ok((result, counts))
    }

    fn counts(&mut self, place: Place) -> [u64; 5] {
        let Work { instructions, copies, host_calls, with_bytes } = self.vm(place).guest.work();
        let shared = self.process.borrow().shared_data_calls;
        [instructions, copies, host_calls, with_bytes, shared]
    }

    /// The time of the clock that all VMs share.
    fn shared_time(&self) -> Result<u64, String> {
        let process = self.process.borrow();
        let seeds = process.data.get(&b"sentinel/seeds"[..]);
        let seeds = seeds.and_then(|(seeds, _)| Seeds::decode(seeds).ok());
        seeds
            .map(|seeds| process.now_ns.saturating_add(seeds.t0_ns))
            .ok_or_else(|| "nobody has planted the seeds".to_owned())
    }

    fn statistic(&self, name: &str) -> u64 {
        self.process.borrow().statistic(name)
    }
}

impl fmt::Debug for Envoy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envoy").field("next_context", &self.next_context).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, instructions: u64, calls: u64) -> Figure {
        Figure { name: name.to_owned(), counts: [instructions, 10, calls, 1, 0] }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let figures = [figure("a request, refused", 12_345, 7), figure("a tick", 1, 0)];
        assert_eq!(read(&written(&figures)).unwrap(), figures);
    }

    #[test]
    fn two_per_cent_are_no_difference_and_a_call_more_is_one() {
        let known = [figure("a request", 10_000, 8), figure("gone", 1, 1)];
        let near = [figure("a request", 10_200, 8), figure("gone", 1, 1)];
        assert_eq!(differences(&known, &near), Vec::<String>::new());

        let now = [figure("a request", 9_799, 9), figure("another", 1, 1)];
        assert_eq!(
            differences(&known, &now),
            [
                "a request: 9799 instructions, and 10000 before (-2.0 %)",
                "a request: 9 host calls, and 8 before (+12.5 %)",
                "another: is new",
                "gone: is gone",
            ]
        );
    }
}
