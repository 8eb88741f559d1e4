//! The harness's clocks, and waiting for something to become true.
//!
//! Modules of the product take time as an argument; a harness measures a process that it does not control, so
//! it has to look at real clocks. It does so here and nowhere else.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// The monotonic clock: for deadlines and durations.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the harness measures a real process; this is its one monotonic clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock in nanoseconds since the Unix epoch: what Sentinel's windows are aligned to.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the harness measures a real process; this is its one wall clock"
)]
pub fn wall_nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Looks at a condition again and again until it yields a value, for at most `patience`.
///
/// # Errors
///
/// When the time is up, naming `what` was waited for; or at once when `look` fails.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if now() > deadline {
            bail!("waited {patience:?} in vain for {what}");
        }
        pause(Duration::from_millis(20));
    }
}

/// Lets time pass: between two looks at a condition, or while load that must run for a while is running.
#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks; conditions and deadlines decide, not it"
)]
pub fn pause(span: Duration) {
    std::thread::sleep(span);
}
