//! What we claim about Envoy, to be tried on every host.
//!
//! The same statements run in the simulator and in a real Envoy, so that the simulator is as true as
//! Envoy lets us see. A statement is a row of steps that different VMs of one process take in turn; what
//! a step returns is handed to the next, whichever VM takes that, so that no VM has to remember anything.
//! The process must be fresh and have no service.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use sentinel_wire::key::Key;

use crate::host::{Cas, Host, HostError, Queue, Signal, Stored};

/// One claim about Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The claim.
    pub name: &'static str,
    /// How many steps show it.
    pub steps: usize,
}

/// All claims.
pub const STATEMENTS: &[Statement] = &[
    Statement { name: "a_missing_key_has_no_value", steps: 2 },
    Statement { name: "an_empty_value_is_not_a_missing_one", steps: 2 },
    Statement { name: "a_value_is_seen_by_others_at_once", steps: 2 },
    Statement { name: "a_key_is_created_once", steps: 3 },
    Statement { name: "any_token_creates_a_missing_key", steps: 2 },
    Statement { name: "a_token_is_good_for_one_write", steps: 4 },
    Statement { name: "a_write_leaves_the_tokens_of_other_keys", steps: 2 },
    Statement { name: "a_megabyte_is_a_value", steps: 2 },
    Statement { name: "a_signal_reaches_everybody", steps: 3 },
    Statement { name: "a_queue_is_there_once_it_is_registered", steps: 3 },
    Statement { name: "a_queue_gives_what_it_got_in_that_order", steps: 3 },
    Statement { name: "no_clock_is_behind_another", steps: 2 },
];

/// Lets `host`'s VM take a step of the statement `name`, counted from 0. `carried` is what the step before
/// returned, empty for the first.
///
/// # Errors
/// If Envoy does something else than we claim, or there is no such step: one sentence that says what.
pub fn take_step<H: Host>(
    host: &mut H,
    name: &str,
    step: usize,
    carried: &str,
) -> Result<String, String> {
    let mut value = Vec::new();
    // Ledgers that no rule set reaches, two for each statement.
    let place = STATEMENTS.iter().position(|statement| statement.name == name);
    let offset =
        place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX / 2).saturating_mul(2);
    let key = Key::Ledger(u32::MAX - offset);
    let other = Key::Ledger(u32::MAX - offset - 1);
    match (name, step) {
        ("a_missing_key_has_no_value", _) => {
            value.push(1);
            equal("the token", &host.load(key, &mut value), &Ok(None))?;
            equal("the value", value.as_slice(), &[])?;
        }

        ("an_empty_value_is_not_a_missing_one", 0) => created(host, key, b"")?,
        ("an_empty_value_is_not_a_missing_one", 1) => {
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), &[])?;
        }

        ("a_value_is_seen_by_others_at_once", 0) => created(host, key, b"seen")?,
        ("a_value_is_seen_by_others_at_once", 1) => {
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"seen")?;
        }

        ("a_key_is_created_once", 0) => created(host, key, b"first")?,
        ("a_key_is_created_once", 1) => {
            equal("a second create", &host.create(key, b"second"), &Ok(Stored::Mismatch))?;
        }
        ("a_key_is_created_once", 2) => {
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"first")?;
        }

        ("any_token_creates_a_missing_key", 0) => {
            equal("a store", &host.store(key, b"made", Cas(12_345)), &Ok(Stored::Done))?;
        }
        ("any_token_creates_a_missing_key", 1) => {
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"made")?;
        }

        ("a_token_is_good_for_one_write", 0) => {
            created(host, key, b"created")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("a_token_is_good_for_one_write", 1) => {
            let stored = host.store(key, b"stored", Cas(number(carried)?));
            equal("a store with the token", &stored, &Ok(Stored::Done))?;
            return Ok(carried.to_string());
        }
        ("a_token_is_good_for_one_write", 2) => {
            let stored = host.store(key, b"late", Cas(number(carried)?));
            equal("a store with the old token", &stored, &Ok(Stored::Mismatch))?;
            return Ok(carried.to_string());
        }
        ("a_token_is_good_for_one_write", 3) => {
            let now = token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"stored")?;
            if now == Cas(number(carried)?) {
                return Err("the token is the same after a write".to_string());
            }
        }

        ("a_write_leaves_the_tokens_of_other_keys", 0) => {
            created(host, key, b"still")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("a_write_leaves_the_tokens_of_other_keys", 1) => {
            created(host, other, b"moved")?;
            equal("the token", &token(host, key, &mut value)?, &Cas(number(carried)?))?;
        }

        ("a_megabyte_is_a_value", 0) => created(host, key, &megabyte())?,
        ("a_megabyte_is_a_value", 1) => {
            token(host, key, &mut value)?;
            equal("whether the value is the same", &(value == megabyte()), &true)?;
        }

        ("a_signal_reaches_everybody", 0) => return Ok(host.level(Signal::Wanted).to_string()),
        ("a_signal_reaches_everybody", 1) => {
            equal("the level", &host.level(Signal::Wanted), &number(carried)?)?;
            host.raise(Signal::Wanted);
            return Ok(carried.to_string());
        }
        ("a_signal_reaches_everybody", 2) => {
            if host.level(Signal::Wanted) == number(carried)? {
                return Err("the level is the same though another VM has raised it".to_string());
            }
        }

        ("a_queue_is_there_once_it_is_registered", 0) => {
            equal("the queue", &host.resolve_queue(), &Ok(None))?;
        }
        ("a_queue_is_there_once_it_is_registered", 1) => {
            let queue = host.register_queue().map_err(|error| format!("registering: {error:?}"))?;
            return Ok(queue.0.to_string());
        }
        ("a_queue_is_there_once_it_is_registered", 2) => {
            let queue = Queue(number(carried)?);
            equal("the queue", &host.resolve_queue(), &Ok(Some(queue)))?;
            let missing = Queue(queue.0.wrapping_add(1_000));
            equal(
                "a queue that is not there",
                &host.enqueue(missing, b"lost"),
                &Err(HostError::NotFound),
            )?;
        }

        ("a_queue_gives_what_it_got_in_that_order", 0) => {
            let queue = host.register_queue().map_err(|error| format!("registering: {error:?}"))?;
            equal("an empty queue", &host.dequeue(queue, &mut value), &Ok(false))?;
            return Ok(queue.0.to_string());
        }
        ("a_queue_gives_what_it_got_in_that_order", 1) => {
            let queue = Queue(number(carried)?);
            equal("the first message", &host.enqueue(queue, b"first"), &Ok(()))?;
            equal("the second message", &host.enqueue(queue, b"second"), &Ok(()))?;
            return Ok(carried.to_string());
        }
        ("a_queue_gives_what_it_got_in_that_order", 2) => {
            let queue = Queue(number(carried)?);
            for message in [b"first".as_slice(), b"second"] {
                equal("a message", &host.dequeue(queue, &mut value), &Ok(true))?;
                equal("the message", value.as_slice(), message)?;
            }
            equal("the empty queue", &host.dequeue(queue, &mut value), &Ok(false))?;
        }

        ("no_clock_is_behind_another", 0) => return Ok(host.monotonic_ns().to_string()),
        ("no_clock_is_behind_another", 1) => {
            let now = host.monotonic_ns();
            let before: u64 = number(carried)?;
            if now < before {
                return Err(format!(
                    "this VM's clock says {now} after another one's said {before}"
                ));
            }
        }

        _ => return Err(format!("there is no step {step} of `{name}`")),
    }
    Ok(String::new())
}

fn created<H: Host>(host: &mut H, key: Key, value: &[u8]) -> Result<(), String> {
    equal("the token before", &host.load(key, &mut Vec::new()), &Ok(None))?;
    equal("a create", &host.create(key, value), &Ok(Stored::Done))
}

fn token<H: Host>(host: &mut H, key: Key, value: &mut Vec<u8>) -> Result<Cas, String> {
    match host.load(key, value) {
        Ok(Some(cas)) => Ok(cas),
        other => Err(format!("the key should be there, but a load says {other:?}")),
    }
}

fn equal<T: PartialEq + core::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    claimed: &T,
) -> Result<(), String> {
    if found == claimed { Ok(()) } else { Err(format!("{what} is {found:?}, not {claimed:?}")) }
}

fn number<N: core::str::FromStr>(carried: &str) -> Result<N, String> {
    carried.parse().map_err(|_| format!("`{carried}` was carried over, which is no number"))
}

fn megabyte() -> Vec<u8> {
    // Of no period that a page or a buffer has.
    (0..=250_u8).cycle().take(1 << 20).collect()
}
