//! `top`: what is in force in a running Envoy.

use std::io::{IsTerminal as _, stdout};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use sentinel_cli::top::{self, HOW_TO_SWITCH_IT_ON, Traffic};
use sentinel_integration::{client, clock, stats::Stats};
use serde_json::Value;

use crate::say;

/// Shows what is in force in a running Envoy: limits, what of them is used, breakers, workers.
///
/// Reads the filter's console, which is off unless a listener's configuration has it. On a terminal it is shown anew
/// every second until interrupted, the rules nearest to their limit first; elsewhere once.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Where the console listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9902")]
    pub(crate) console: SocketAddr,
    /// The console's path, as the filter's configuration has it.
    #[arg(long, default_value = "/sentinel")]
    pub(crate) path: String,
    /// Envoy's admin endpoint, to show what passes, waits and is under way as well.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<SocketAddr>,
    /// This rule only, with who holds what of it.
    #[arg(long, value_name = "ID")]
    pub(crate) rule: Option<String>,
    /// Shows it once, all rules of it.
    #[arg(long)]
    pub(crate) once: bool,
    /// Prints what the console says as one JSON document, once.
    #[arg(long)]
    pub(crate) json: bool,
    /// How often it is shown anew, such as 1s or 500ms.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
}

/// # Errors
/// If no console answers, or not as one.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.json {
        say::result(serde_json::to_string_pretty(&look(arguments)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.once || !stdout().is_terminal() {
        say::result(shown(arguments, usize::MAX)?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let text = shown(arguments, ROWS_MAX)?;
        say::result(format_args!("{CLEAR}{}", text.trim_end()));
        clock::pause(arguments.interval);
    }
}

fn shown(arguments: &Arguments, rows_max: usize) -> Result<String> {
    let traffic = arguments.admin.map(traffic).transpose()?;
    Ok(top::render(&look(arguments)?, traffic.as_ref(), rows_max))
}

fn look(arguments: &Arguments) -> Result<Value> {
    let Arguments { console, path, rule, .. } = arguments;
    top::gather(path, rule.as_deref(), &mut |path| {
        let answer = client::get(*console, path)
            .with_context(|| format!("no console answers at {console}: {HOW_TO_SWITCH_IT_ON}"))?;
        Ok((answer.status, answer.body))
    })
}

fn traffic(admin: SocketAddr) -> Result<Traffic> {
    let answer = client::get(admin, "/stats?filter=sentinel")
        .with_context(|| format!("Envoy's admin endpoint, {admin}"))?;
    let stats = Stats::parse(&answer.body);
    Ok(Traffic {
        pass_qps: stats.total("pass_qps"),
        block_qps: stats.total("block_qps"),
        waiting: stats.total("waiting"),
        in_flight: stats.total("in_flight"),
    })
}

fn interval(text: &str) -> Result<Duration, String> {
    let (number, unit_ms) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1_000),
    };
    match number.parse::<u64>() {
        Ok(number @ 1..=3_600_000) => Ok(Duration::from_millis(number * unit_ms)),
        Ok(_) | Err(_) => Err("a whole number and s or ms, such as 1s or 500ms".to_owned()),
    }
}

/// Rules that fit on most terminals.
const ROWS_MAX: usize = 40;
/// To the first line, and away with what is there.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_seconds_or_milliseconds() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("3"), Ok(Duration::from_secs(3)));
        for wrong in ["", "s", "0s", "-1s", "1.5s", "1h"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
