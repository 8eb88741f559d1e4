//! What `cargo xtask fuzz` runs: a program of its own, so that an input which ends it is found by who looks on, and with an
//! allocator that counts.
//!
//! Its arguments are that command's business: `readers FOLDER SECONDS SEED [TARGET]`, `input TARGET FILE`,
//! `modules DIST SEED RUNS SECONDS CALLBACKS STEADY TRACE`; without a number of runs as many as there is time for;
//! `instructions DIST FILE compare|write`, `profile DIST CASE`.

use std::alloc::System;
use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cap::Cap;
use sentinel_fuzz::{
    modules::{self, Failure, Figures, Modules, Options, instructions},
    search::{Search, corpus, judge},
    targets::{TARGETS, Target, find},
};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// How many inputs have been judged: if that stands still, one of them hangs.
static JUDGED: AtomicU64 = AtomicU64::new(0);

/// The longest that one input may take on the slowest machine.
const HANG: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<bool, String> {
    match arguments {
        ["readers", folder, seconds, seed, only @ ..] => {
            let chosen: Vec<Target> = match only {
                [] => TARGETS.to_vec(),
                only => only.iter().map(|name| target(name)).collect::<Result<_, _>>()?,
            };
            let budget =
                Duration::from_secs_f64(seconds.parse().map_err(|_| "no number of seconds")?);
            let each = budget.div_f64(f64::from(u32::try_from(chosen.len().max(1)).unwrap_or(1)));
            quiet_panics();
            let mut all_hold = true;
            for target in chosen {
                all_hold &= readers(target, Path::new(folder), each, number(seed)?)?;
            }
            Ok(all_hold)
        }
        ["input", name, file] => {
            let input = fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
            let judged = judge(target(name)?, &input, allocated);
            say(format_args!(
                "{name}: {} bytes: {}",
                input.len(),
                judged.as_ref().map_or_else(String::as_str, |()| "as it should")
            ));
            Ok(judged.is_ok())
        }
        ["modules", dist, seed, runs, seconds, callbacks, steady, trace] => {
            let modules = Modules::load(Path::new(dist))?;
            let print = |event: &str| say(event);
            let trace: Option<&dyn Fn(&str)> = if *trace == "1" { Some(&print) } else { None };
            let options = Options {
                seed: number(seed)?,
                callbacks: number(callbacks)?,
                steady: *steady == "1",
                trace,
            };
            Ok(in_modules(&modules, options, number(runs)?, Duration::from_secs(number(seconds)?)))
        }
        ["instructions", dist, file, what] => {
            instructions_of(Path::new(dist), Path::new(file), *what == "write")
        }
        ["profile", dist, case] => {
            let (figures, shares) = instructions::profile(Path::new(dist), case)?;
            say(instructions::written(&figures));
            let all: u64 = shares.iter().map(|share| share.counts[1]).sum();
            say("  calls |        own |   % | until its end | function (of all repetitions)");
            for instructions::Share { function, counts: [calls, own, until_end] } in shares {
                let percent = own * 100 / all.max(1);
                say(format_args!(
                    "{calls:>7} | {own:>10} | {percent:>3} | {until_end:>13} | {function}"
                ));
            }
            Ok(true)
        }
        other => Err(format!(
            "unknown arguments {other:?}: `cargo xtask fuzz --help` says what there is"
        )),
    }
}

/// Judges the corpus of a target, and then what is made of it until the time is over.
#[expect(clippy::disallowed_methods, reason = "how long to search is told in real time")]
fn readers(target: Target, folder: &Path, budget: Duration, seed: u64) -> Result<bool, String> {
    let begin = Instant::now();
    let name = target.name;
    fs::create_dir_all(folder)
        .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    let current = folder.join(format!("{name}-current"));
    watch(name, &current);
    let told = |error: io::Error| format!("{name}: {error}");
    let known = corpus(target).map_err(told)?;
    let mut search = Search::new(target, seed).map_err(told)?;
    let mut inputs = 0_u64;
    let files = known.len();
    let mut known = known.into_iter();
    let cannot_write = |error: io::Error| format!("cannot write {}: {error}", current.display());
    let mut shown = File::create(&current).map_err(cannot_write)?;
    loop {
        let input = match known.next() {
            Some((_, input)) => input,
            None if begin.elapsed() >= budget => break,
            None => search.next_input(),
        };
        // An input that ends this program is found here afterwards.
        shown.rewind().map_err(cannot_write)?;
        shown.write_all(&input).map_err(cannot_write)?;
        shown.set_len(u64::try_from(input.len()).unwrap_or(u64::MAX)).map_err(cannot_write)?;
        if let Err(problem) = judge(target, &input, allocated) {
            let file = keep(&current, folder, name, &input)?;
            say(format_args!(
                "{name}: {problem}\ninput: {}\nagain: cargo xtask fuzz {name} --input {}",
                file.display(),
                file.display()
            ));
            return Ok(false);
        }
        JUDGED.fetch_add(1, Ordering::Relaxed);
        inputs += 1;
    }
    let _ = fs::remove_file(&current);
    say(format_args!("{name:>10}: {inputs} inputs, {files} of them from the corpus"));
    Ok(true)
}

/// Moves what broke a promise to where it stays.
fn keep(current: &Path, folder: &Path, name: &str, input: &[u8]) -> Result<PathBuf, String> {
    let file = folder.join(format!("{name}-{:016x}", hash(input)));
    fs::rename(current, &file)
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(file)
}

fn hash(input: &[u8]) -> u64 {
    input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Ends the program if one input takes for ever.
#[expect(clippy::disallowed_methods, reason = "a watch waits for nothing but time")]
fn watch(name: &str, current: &Path) {
    let told = format!(
        "{name}: an input takes more than {} s\nagain: cargo xtask fuzz {name} --input {}",
        HANG.as_secs(),
        current.display()
    );
    let mut seen = JUDGED.load(Ordering::Relaxed);
    thread::spawn(move || {
        loop {
            thread::sleep(HANG);
            let now = JUDGED.load(Ordering::Relaxed);
            if now == seen {
                say(&told);
                std::process::exit(1);
            }
            seen = now;
        }
    });
}

/// Runs from one seed after the other, on all processors; a traced run alone.
#[expect(clippy::disallowed_methods, reason = "how long to search is told in real time")]
fn in_modules(modules: &Modules, first: Options<'_>, runs: u64, budget: Duration) -> bool {
    if let Some(trace) = first.trace {
        let mut all = Ran::default();
        for run in 0..runs.max(1) {
            all.add(modules::run(
                modules,
                Options { seed: first.seed.wrapping_add(run), trace: Some(trace), ..first },
            ));
        }
        return all.told();
    }
    let Options { seed, callbacks, steady, .. } = first;
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let all = Mutex::new(Ran::default());
    let is_over = |run| if runs > 0 { run >= runs } else { begin.elapsed() >= budget };
    let work = || {
        loop {
            let run = next.fetch_add(1, Ordering::Relaxed);
            let ran = all.lock().unwrap_or_else(PoisonError::into_inner);
            if is_over(run) || ran.failure.is_some() {
                return;
            }
            ran.progress();
            drop(ran);
            let options = Options { seed: seed.wrapping_add(run), callbacks, steady, trace: None };
            let outcome = modules::run(modules, options);
            all.lock().unwrap_or_else(PoisonError::into_inner).add(outcome);
        }
    };
    let jobs = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner).told()
}

/// Shows what the modules take, and writes it into `file`, or compares it with what stands there.
fn instructions_of(dist: &Path, file: &Path, is_written: bool) -> Result<bool, String> {
    let now = instructions::measure(dist)?;
    let text = instructions::written(&now);
    say(&text);
    if is_written {
        fs::write(file, text)
            .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        say(format_args!("{} figures written", now.len()));
        return Ok(true);
    }
    let known = fs::read_to_string(file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let differences = instructions::differences(&instructions::read(&known)?, &now);
    if differences.is_empty() {
        say(format_args!("instructions: {} figures as they were", now.len()));
        return Ok(true);
    }
    for difference in differences {
        say(difference);
    }
    say("if that is as it should be: cargo xtask bench instructions --write");
    Ok(false)
}

/// What runs have shown.
#[derive(Default)]
struct Ran {
    runs: u64,
    figures: Figures,
    failure: Option<Box<Failure>>,
}

impl Ran {
    fn add(&mut self, outcome: Result<Figures, Box<Failure>>) {
        match outcome {
            Err(failure) => {
                self.failure.get_or_insert(failure);
            }
            Ok(figures) => {
                self.runs += 1;
                self.figures.add(figures);
            }
        }
    }

    /// Now and then a word to who waits.
    fn progress(&self) {
        if self.runs > 0 && self.runs.is_multiple_of(50) {
            let _ = writeln!(io::stderr(), "   {} runs", self.runs);
        }
    }

    fn told(self) -> bool {
        if let Some(failure) = self.failure {
            say(failure);
            return false;
        }
        let Figures {
            callbacks,
            streams,
            refused,
            paused,
            keys,
            statistics,
            memory_bytes,
            most_fuel,
        } = self.figures;
        say(format_args!(
            "{} runs: every promise held in {callbacks} callbacks and {streams} streams ({refused} refused, {paused} paused); at most {keys} keys, {statistics} statistics, {memory_bytes} bytes of memory",
            self.runs
        ));
        for (export, fuel) in most_fuel {
            say(format_args!("   {export:<28} {fuel:>12} instructions at most"));
        }
        true
    }
}

fn target(name: &str) -> Result<Target, String> {
    find(name).ok_or_else(|| {
        let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("there is no target `{name}`, but {}, and modules", all.join(", "))
    })
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn allocated() -> u64 {
    u64::try_from(ALLOCATOR.total_allocated()).unwrap_or(u64::MAX)
}

/// A panic is a finding, which is told once, by its words.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn say(text: impl std::fmt::Display) {
    // A reader that went away is no reason to stop the work.
    let _ = writeln!(io::stdout(), "{text}");
}
