//! Log lines and last words, in Envoy's own log.

use std::panic;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::ffi;

/// What `log` hands its lines to.
struct EnvoyLog;

/// From here on log lines reach Envoy, and a panic says where it was before the VM traps: Envoy itself only knows
/// that it did. The first call into a module.
pub fn start() {
    // Refused only where it is set already.
    if log::set_logger(&EnvoyLog).is_ok() {
        log::set_max_level(LevelFilter::Info);
        panic::set_hook(Box::new(|panic| ffi::log(CRITICAL, &panic.to_string())));
    }
}

/// Envoy's levels go from trace, 0, to critical.
const CRITICAL: u32 = 5;

impl Log for EnvoyLog {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Trace => 0,
            Level::Debug => 1,
            Level::Info => 2,
            Level::Warn => 3,
            Level::Error => 4,
        };
        ffi::log(level, &record.args().to_string());
    }

    fn flush(&self) {}
}
