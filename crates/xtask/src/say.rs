//! What a command says while it works: steps with their reason and their time.
//!
//! All of it goes to standard error, so that a command's result alone is on standard output. On a terminal a
//! spinner turns where the programs that a step runs print nothing themselves; elsewhere there are plain lines.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// Writes a line to standard error.
pub(crate) fn line(text: impl Display) {
    // A reader that went away is no reason to stop the work.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes a line to standard output: a command's result.
pub(crate) fn result(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// A bar that fills while `total` things are done, if somebody can see it.
pub(crate) fn bar(total: u64) -> ProgressBar {
    ProgressBar::new(total)
}

/// A piece of work that has been announced and is timed until [`done`](Self::done).
#[derive(Debug)]
pub(crate) struct Step {
    watch: Stopwatch,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Announces work whose programs show their own progress.
    pub(crate) fn begin(what: impl Display) -> Self {
        line(format_args!("== {what}"));
        Self { watch: Stopwatch::start(), spinner: None }
    }

    /// Announces work that prints nothing: a spinner turns until it is done, if somebody can see it.
    pub(crate) fn begin_silent(what: impl Display) -> Self {
        let step = Self::begin(what);
        let spinner = ProgressBar::new_spinner()
            .with_style(ProgressStyle::default_spinner())
            .with_finish(ProgressFinish::AndClear);
        spinner.set_message("working");
        spinner.enable_steady_tick(Duration::from_millis(120));
        Self { spinner: Some(spinner), ..step }
    }

    /// Says how far it is, where a spinner turns.
    pub(crate) fn say(&self, how_far: impl Display) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(how_far.to_string());
        }
    }

    /// Says how it ended and how long it took.
    pub(crate) fn done(self, outcome: impl Display) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
        line(format_args!("   {outcome} ({:.1} s)", self.watch.elapsed().as_secs_f64()));
    }
}

/// How long a step of a tool has taken, for people to read.
#[derive(Debug)]
struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "a tool's progress is told in real time")]
    fn start() -> Self {
        Self(Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
