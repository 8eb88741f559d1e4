//! What a vector says of a call, and what the product said.

use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use sentinel_core::{block::BlockType, time::Span};
use serde_json::Value;

/// What a vector says of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Expected {
    /// It passes at once.
    Pass,
    /// It is refused, whatever the reason.
    Block,
    /// It is refused by a rule of this kind.
    BlockBy(BlockType),
    /// It passes after so many milliseconds.
    Wait(f64),
    /// Whatever it is, what follows must be right.
    Any,
}

/// What the product said of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It passes at once.
    Pass,
    /// It passes after this time.
    Wait(Span),
    /// It is refused.
    Block(BlockType),
}

/// What a vector says of all calls of an entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expectations {
    /// Of each, in order: so many calls have this answer, then so many that.
    Runs(Vec<(u64, Expected)>),
    /// No more than so many pass.
    AtMost(u64),
}

/// How exactly a wait is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// To the nanosecond, in which sentinel-golang paces flow rules.
    Exact,
    /// In whole milliseconds, in which sentinel-golang paces the values of a hot parameter. We pace those by
    /// the nanosecond too, since 1,500 a second would otherwise be 1,000.
    WholeMillis,
}

impl Expectations {
    /// Reads what `expect` says of `repeat` calls.
    pub(super) fn read(expect: &Value, repeat: u64) -> Result<Self> {
        if let Some(most) = expect.get("at_most") {
            let most = most.as_u64().context("`at_most` must be a whole number")?;
            return Ok(Self::AtMost(most));
        }
        let Value::Array(runs) = expect else {
            return Ok(Self::Runs(vec![(repeat, Expected::read(expect)?)]));
        };
        let mut list = Vec::new();
        for run in runs {
            let Some([count, expect]) = run.as_array().map(Vec::as_slice) else {
                bail!("{run} is no pair of a count and an expectation");
            };
            let count = count.as_u64().context("a count of calls must be a whole number")?;
            list.push((count, Expected::read(expect)?));
        }
        let counted: u64 = list.iter().map(|(count, _)| count).sum();
        ensure!(counted == repeat, "{counted} calls have an expectation, but there are {repeat}");
        Ok(Self::Runs(list))
    }

    /// What is expected of the call `number`, 1 or more, and how it stands with those that passed before.
    pub(super) fn of(&self, number: u64, passed: u64) -> Expected {
        match self {
            Self::AtMost(most) if passed >= *most => Expected::Block,
            Self::AtMost(_) => Expected::Any,
            Self::Runs(runs) => {
                let mut before = 0;
                for (count, expected) in runs {
                    before += count;
                    if number <= before {
                        return *expected;
                    }
                }
                Expected::Any
            }
        }
    }
}

impl Expected {
    fn read(expect: &Value) -> Result<Self> {
        if let Some(wait) = expect.get("wait_ms").and_then(Value::as_f64) {
            return Ok(Self::Wait(wait));
        }
        Ok(match expect.as_str() {
            Some("pass") => Self::Pass,
            Some("any") => Self::Any,
            Some("block") => Self::Block,
            Some("block:flow") => Self::BlockBy(BlockType::FlowControl),
            Some("block:isolation") => Self::BlockBy(BlockType::Isolation),
            Some("block:circuitbreaking") => Self::BlockBy(BlockType::CircuitBreaking),
            Some("block:system") => Self::BlockBy(BlockType::System),
            Some("block:hotspot") => Self::BlockBy(BlockType::HotSpotParamFlow),
            Some("block:authority") => Self::BlockBy(BlockType::Authority),
            Some(_) | None => bail!("the expectation {expect} is not supported"),
        })
    }

    /// Whether `answer` is what was expected.
    pub(super) fn is_met_by(self, answer: Answer, waits: Waits) -> bool {
        match (self, answer) {
            (Self::Any, _) | (Self::Pass, Answer::Pass) | (Self::Block, Answer::Block(_)) => true,
            (Self::BlockBy(expected), Answer::Block(found)) => expected == found,
            (Self::Wait(expected), Answer::Wait(found)) => match waits {
                Waits::Exact => nanos(expected) == found.get(),
                Waits::WholeMillis => {
                    nanos(expected) / NANOS_PER_MILLI == found.get() / NANOS_PER_MILLI
                }
            },
            (Self::Pass | Self::Block | Self::BlockBy(_) | Self::Wait(_), _) => false,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Block => f.write_str("block"),
            Self::BlockBy(block_type) => Answer::Block(*block_type).fmt(f),
            Self::Wait(wait_ms) => write!(f, "pass after {wait_ms} ms"),
            Self::Any => f.write_str("any answer"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block_type = match self {
            Self::Pass => return f.write_str("pass"),
            Self::Wait(wait) => {
                let (millis, nanos) = (wait.get() / NANOS_PER_MILLI, wait.get() % NANOS_PER_MILLI);
                let decimals = format!("{nanos:06}");
                return match decimals.trim_end_matches('0') {
                    "" => write!(f, "pass after {millis} ms"),
                    decimals => write!(f, "pass after {millis}.{decimals} ms"),
                };
            }
            Self::Block(block_type) => block_type,
        };
        let kind = match block_type {
            BlockType::FlowControl => "flow",
            BlockType::Isolation => "isolation",
            BlockType::CircuitBreaking => "circuitbreaking",
            BlockType::System => "system",
            BlockType::HotSpotParamFlow => "hotspot",
            BlockType::Authority => "authority",
        };
        write!(f, "block:{kind}")
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a wait of a vector is a few seconds, and a cast saturates"
)]
fn nanos(wait_ms: f64) -> u64 {
    (wait_ms * 1e6).round() as u64
}

const NANOS_PER_MILLI: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_exact_for_a_flow_rule_and_in_whole_milliseconds_for_a_value() {
        let third = Answer::Wait(Span::new(333_333_334));

        assert!(Expected::Wait(333.333_334).is_met_by(third, Waits::Exact));
        assert!(!Expected::Wait(333.333_333).is_met_by(third, Waits::Exact));
        assert!(!Expected::Wait(333.0).is_met_by(third, Waits::Exact));
        assert!(Expected::Wait(333.0).is_met_by(third, Waits::WholeMillis));
        assert!(!Expected::Wait(334.0).is_met_by(third, Waits::WholeMillis));
        assert_eq!(third.to_string(), "pass after 333.333334 ms");
    }

    #[test]
    fn each_call_of_a_run_has_its_own_expectation() {
        let runs =
            Expectations::read(&serde_json::json!([[2, "pass"], [1, "block:flow"]]), 3).unwrap();

        assert_eq!(runs.of(2, 1), Expected::Pass);
        assert_eq!(runs.of(3, 2), Expected::BlockBy(BlockType::FlowControl));
        assert!(Expectations::read(&serde_json::json!([[2, "pass"]]), 3).is_err());
        assert!(Expectations::read(&serde_json::json!("maybe"), 1).is_err());
    }

    #[test]
    fn no_more_pass_than_at_most_so_many() {
        let at_most = Expectations::read(&serde_json::json!({"at_most": 2}), 5).unwrap();

        assert!(at_most.of(2, 1).is_met_by(Answer::Pass, Waits::Exact));
        assert!(!at_most.of(3, 2).is_met_by(Answer::Pass, Waits::Exact));
    }
}
