//! What we claim about Envoy, to be tried on every host.
//!
//! The same statements run in the simulator and in a real Envoy, so that the simulator is as true as
//! Envoy lets us see. A statement is a row of steps that different VMs of one process take in turn; what
//! a step returns is handed to the next, whichever VM takes that, so that no VM has to remember anything.
//! The process must be fresh and have no service.
//!
//! Not among them, though the simulator goes by it:
//! * The last VM to register a queue gets one wake-up for each message, and none comes for a VM that is gone. Of our
//!   modules only the service can be woken; that it is, and again after a trap, shows in `integration/tests/it/service.rs`.
//! * A queue vanishes with the last VM of its `vm_id`: then there is nobody left who could ask.
//! * Timers: how late one fires is the machine's. That a root which is deleted ticks no more, and that a trapped VM does
//!   not, would be seen by waiting for nothing.
//! * A request that waits in a VM that traps never goes on, and one at the upstream runs on: `isolation` beside it.
//! * The id of a statistic belongs to the VM that has defined it: in another VM it may be one of that VM's own.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use sentinel_wire::key::Key;

use crate::host::{Cas, Host, HostError, Meter, MetricId, MetricKind, Queue, Signal, Stored};

/// One claim about Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The claim.
    pub name: &'static str,
    /// Who takes each of its steps.
    pub turns: &'static [Turn],
}

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A VM that has not taken the step before.
    Another,
    /// The VM that has.
    Same,
    /// The VM that has taken the step before traps, and the one that Envoy loads in its place takes this one.
    Reborn,
}

use Turn::{Another, Reborn, Same};

const fn claim(name: &'static str, turns: &'static [Turn]) -> Statement {
    Statement { name, turns }
}

/// All claims.
pub const STATEMENTS: &[Statement] = &[
    claim("a_missing_key_has_no_value", &[Another, Another]),
    claim("an_empty_value_is_not_a_missing_one", &[Another, Another]),
    claim("a_value_is_seen_by_others_at_once", &[Another, Another]),
    claim("a_key_is_created_once", &[Another, Another, Another]),
    claim("any_token_creates_a_missing_key", &[Another, Another]),
    claim("a_token_is_good_for_one_write", &[Another, Another, Another, Another]),
    claim("a_write_leaves_the_tokens_of_other_keys", &[Another, Another]),
    claim("a_megabyte_is_a_value", &[Another, Another]),
    claim("a_signal_reaches_everybody", &[Another, Another, Another]),
    claim("a_queue_is_there_once_it_is_registered", &[Another, Another, Another]),
    claim("a_queue_gives_what_it_got_in_that_order", &[Another, Another, Another]),
    claim("no_clock_is_behind_another", &[Another, Another]),
    claim("token_0_writes_whatever_stands_there", &[Another, Another, Another]),
    claim("a_token_of_another_key_is_good_for_nothing", &[Another, Another]),
    claim("a_mismatch_changes_nothing", &[Another, Another]),
    claim("the_same_bytes_again_are_another_write", &[Another, Another]),
    claim("a_load_takes_no_token_from_anybody", &[Another, Another, Another]),
    claim("tokens_are_counted_over_all_keys", &[Another, Same]),
    claim("a_value_may_become_shorter", &[Another, Another]),
    claim("a_value_may_hold_any_byte", &[Another, Another]),
    claim("the_largest_rule_set_is_a_value", &[Another, Another]),
    claim("a_VM_sees_its_own_write", &[Another, Same]),
    claim("a_dead_VM_leaves_its_values_and_tokens", &[Another, Reborn, Another]),
    claim("each_raise_moves_the_level", &[Another, Another, Another]),
    claim("a_signal_moves_no_other", &[Another, Another]),
    claim("a_dead_VM_leaves_the_level", &[Another, Reborn]),
    claim("a_queue_that_is_not_there_gives_nothing", &[Another]),
    claim("who_registers_again_gets_the_queue_with_what_is_on_it", &[Another, Another, Another]),
    claim("whoever_knows_a_queue_may_fill_and_empty_it", &[Another, Same, Another]),
    claim("an_empty_message_is_a_message", &[Another, Another]),
    claim("a_megabyte_is_a_message", &[Another, Another]),
    claim("a_queue_outlives_who_has_registered_it", &[Another, Reborn, Another, Another]),
    claim("a_counter_is_what_all_have_added", &[Another, Another, Another]),
    claim("a_gauge_is_what_was_set_last", &[Another, Another, Another]),
    claim("each_definition_has_an_id_of_its_own_for_the_one_statistic", &[Another, Same]),
    claim("a_name_may_be_a_counter_and_a_gauge_at_once", &[Another, Another]),
    claim("a_histogram_takes_values_and_shows_none", &[Another]),
    claim("a_dead_VM_leaves_what_it_has_counted", &[Another, Reborn]),
    claim("time_goes_on_while_a_VM_is_loaded_again", &[Another, Reborn]),
    claim("the_clocks_of_all_VMs_are_equally_far_from_the_wall", &[Another, Another]),
    claim("no_two_VMs_draw_the_same_number", &[Another, Another]),
    claim("a_VM_that_is_loaded_again_draws_another_number", &[Another, Reborn]),
];

/// Lets `host`'s VM take a step of the statement `name`, counted from 0. `carried` is what the step before
/// returned, empty for the first; `read` gives the value of a statistic by this VM's id.
///
/// # Errors
/// If Envoy does something else than we claim, or there is no such step: one sentence that says what.
pub fn take_step<H: Host + Meter>(
    host: &mut H,
    read: &dyn Fn(&H, MetricId) -> Option<u64>,
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

        ("token_0_writes_whatever_stands_there", 0) => created(host, key, b"first")?,
        ("token_0_writes_whatever_stands_there", 1) => {
            equal("a store", &host.store(key, b"second", Cas(0)), &Ok(Stored::Done))?;
        }
        ("token_0_writes_whatever_stands_there", 2) => {
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"second")?;
        }

        ("a_token_of_another_key_is_good_for_nothing", 0) => {
            created(host, key, b"mine")?;
            created(host, other, b"other")?;
            return Ok(token(host, other, &mut value)?.0.to_string());
        }
        ("a_token_of_another_key_is_good_for_nothing", 1) => {
            let stored = host.store(key, b"wrong", Cas(number(carried)?));
            equal("a store with the token of another key", &stored, &Ok(Stored::Mismatch))?;
        }

        ("a_mismatch_changes_nothing", 0) => {
            created(host, key, b"stands")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("a_mismatch_changes_nothing", 1) => {
            let now = Cas(number(carried)?);
            let stored = host.store(key, b"late", Cas(now.0.wrapping_sub(1).max(1)));
            equal("a store with an older token", &stored, &Ok(Stored::Mismatch))?;
            equal("the token", &token(host, key, &mut value)?, &now)?;
            equal("the value", value.as_slice(), b"stands")?;
        }

        ("the_same_bytes_again_are_another_write", 0) => {
            created(host, key, b"same")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("the_same_bytes_again_are_another_write", 1) => {
            let before = Cas(number(carried)?);
            equal("a store", &host.store(key, b"same", before), &Ok(Stored::Done))?;
            let late = host.store(key, b"late", before);
            equal("a store with the old token", &late, &Ok(Stored::Mismatch))?;
        }

        ("a_load_takes_no_token_from_anybody", 0) => {
            created(host, key, b"read")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("a_load_takes_no_token_from_anybody", 1) => {
            for _ in 0..3 {
                equal("the token", &token(host, key, &mut value)?, &Cas(number(carried)?))?;
            }
            return Ok(carried.to_string());
        }
        ("a_load_takes_no_token_from_anybody", 2) => {
            let stored = host.store(key, b"written", Cas(number(carried)?));
            equal("a store after others have loaded", &stored, &Ok(Stored::Done))?;
        }

        ("tokens_are_counted_over_all_keys", 0) => {
            created(host, key, b"one")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("tokens_are_counted_over_all_keys", 1) => {
            let one: u32 = number(carried)?;
            equal("a second create", &host.create(key, b"no"), &Ok(Stored::Mismatch))?;
            created(host, other, b"two")?;
            // Past 0, which is no token.
            let two = Cas(one.checked_add(1).unwrap_or(1));
            equal("the next token", &token(host, other, &mut value)?, &two)?;
        }

        ("a_value_may_become_shorter", 0) => {
            created(host, key, b"quite long")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("a_value_may_become_shorter", 1) => {
            equal("a store", &host.store(key, b"sh", Cas(number(carried)?)), &Ok(Stored::Done))?;
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"sh")?;
        }

        ("a_value_may_hold_any_byte", 0) => created(host, key, &all_bytes())?,
        ("a_value_may_hold_any_byte", 1) => {
            token(host, key, &mut value)?;
            equal("the value", &value, &all_bytes())?;
        }

        ("the_largest_rule_set_is_a_value", 0) => {
            created(host, key, &pattern(RULE_SET_BYTES_MAX))?;
        }
        ("the_largest_rule_set_is_a_value", 1) => {
            token(host, key, &mut value)?;
            let is_same = value == pattern(RULE_SET_BYTES_MAX);
            equal("whether the value is the same", &is_same, &true)?;
        }

        ("a_VM_sees_its_own_write", 0) => {
            created(host, key, b"own")?;
            token(host, key, &mut value)?;
            equal("the value", value.as_slice(), b"own")?;
        }
        ("a_VM_sees_its_own_write", 1) => {
            token(host, key, &mut value)?;
            equal("the value a call later", value.as_slice(), b"own")?;
        }

        ("a_dead_VM_leaves_its_values_and_tokens", 0) => {
            created(host, key, b"left")?;
            return Ok(token(host, key, &mut value)?.0.to_string());
        }
        ("a_dead_VM_leaves_its_values_and_tokens", 1) => {
            equal("the token", &token(host, key, &mut value)?, &Cas(number(carried)?))?;
            equal("the value", value.as_slice(), b"left")?;
            return Ok(carried.to_string());
        }
        ("a_dead_VM_leaves_its_values_and_tokens", 2) => {
            let stored = host.store(key, b"taken over", Cas(number(carried)?));
            equal("a store with the dead VM's token", &stored, &Ok(Stored::Done))?;
        }

        ("each_raise_moves_the_level", 0) => return Ok(host.level(Signal::Freed).to_string()),
        ("each_raise_moves_the_level", 1) => {
            host.raise(Signal::Freed);
            return Ok(format!("{carried} {}", host.level(Signal::Freed)));
        }
        ("each_raise_moves_the_level", 2) => {
            host.raise(Signal::Freed);
            let level = host.level(Signal::Freed).to_string();
            let mut levels: Vec<&str> = carried.split(' ').collect();
            levels.push(&level);
            let differ = matches!(levels.as_slice(), [a, b, c] if a != b && b != c && a != c);
            if !differ {
                return Err(format!("the levels before, between and after are {levels:?}"));
            }
        }

        ("a_signal_moves_no_other", 0) => return Ok(levels(host)),
        ("a_signal_moves_no_other", 1) => {
            host.raise(Signal::GivenBack);
            let (before, after) = (carried.to_string(), levels(host));
            let pairs = before.split(' ').zip(after.split(' ')).zip(Signal::ALL);
            for ((before, after), signal) in pairs {
                if (before != after) != (signal == Signal::GivenBack) {
                    return Err(format!("{signal:?} has gone from {before} to {after}"));
                }
            }
        }

        ("a_dead_VM_leaves_the_level", 0) => {
            host.raise(Signal::Wanted);
            return Ok(levels(host));
        }
        ("a_dead_VM_leaves_the_level", 1) => equal("the levels", levels(host).as_str(), carried)?,

        ("a_queue_that_is_not_there_gives_nothing", 0) => {
            let found = host.dequeue(Queue(1_000_000), &mut value);
            equal("a message", &found, &Err(HostError::NotFound))?;
        }

        ("who_registers_again_gets_the_queue_with_what_is_on_it", 0) => {
            return Ok(emptied(host, &mut value)?.0.to_string());
        }
        ("who_registers_again_gets_the_queue_with_what_is_on_it", 1) => {
            let put = host.enqueue(Queue(number(carried)?), b"kept");
            equal("a message", &put, &Ok(()))?;
            return Ok(carried.to_string());
        }
        ("who_registers_again_gets_the_queue_with_what_is_on_it", 2) => {
            let queue = Queue(number(carried)?);
            equal("the queue", &host.register_queue(), &Ok(queue))?;
            got(host, queue, &mut value, b"kept")?;
        }

        ("whoever_knows_a_queue_may_fill_and_empty_it", 0) => {
            return Ok(emptied(host, &mut value)?.0.to_string());
        }
        ("whoever_knows_a_queue_may_fill_and_empty_it", 1) => {
            let put = host.enqueue(Queue(number(carried)?), b"to all");
            equal("a message of its registrant", &put, &Ok(()))?;
            return Ok(carried.to_string());
        }
        ("whoever_knows_a_queue_may_fill_and_empty_it", 2) => {
            got(host, Queue(number(carried)?), &mut value, b"to all")?;
        }

        ("an_empty_message_is_a_message", 0) => {
            let queue = emptied(host, &mut value)?;
            equal("an empty message", &host.enqueue(queue, b""), &Ok(()))?;
            equal("one behind it", &host.enqueue(queue, b"next"), &Ok(()))?;
            return Ok(queue.0.to_string());
        }
        ("an_empty_message_is_a_message", 1) => {
            let queue = Queue(number(carried)?);
            got(host, queue, &mut value, b"")?;
            got(host, queue, &mut value, b"next")?;
        }

        ("a_megabyte_is_a_message", 0) => {
            let queue = emptied(host, &mut value)?;
            equal("a message", &host.enqueue(queue, &megabyte()), &Ok(()))?;
            return Ok(queue.0.to_string());
        }
        ("a_megabyte_is_a_message", 1) => {
            let queue = Queue(number(carried)?);
            equal("a message", &host.dequeue(queue, &mut value), &Ok(true))?;
            equal("whether the message is the same", &(value == megabyte()), &true)?;
        }

        ("a_queue_outlives_who_has_registered_it", 0) => {
            let queue = emptied(host, &mut value)?;
            equal("a message", &host.enqueue(queue, b"left"), &Ok(()))?;
            return Ok(queue.0.to_string());
        }
        ("a_queue_outlives_who_has_registered_it", 1) => {
            let queue = Queue(number(carried)?);
            equal("the queue", &host.resolve_queue(), &Ok(Some(queue)))?;
            return Ok(carried.to_string());
        }
        ("a_queue_outlives_who_has_registered_it", 2) => {
            let put = host.enqueue(Queue(number(carried)?), b"for nobody");
            equal("a message to a queue whose registrant is dead", &put, &Ok(()))?;
            return Ok(carried.to_string());
        }
        ("a_queue_outlives_who_has_registered_it", 3) => {
            let queue = Queue(number(carried)?);
            equal("the queue", &host.register_queue(), &Ok(queue))?;
            got(host, queue, &mut value, b"left")?;
            got(host, queue, &mut value, b"for nobody")?;
        }

        ("a_counter_is_what_all_have_added", 0) => {
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.sum")?;
            equal("the counter", &read(host, counter), &Some(0))?;
            host.add(counter, 3);
        }
        ("a_counter_is_what_all_have_added", 1) => {
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.sum")?;
            equal("the counter", &read(host, counter), &Some(3))?;
            host.add(counter, 4);
            host.add(counter, 0);
        }
        ("a_counter_is_what_all_have_added", 2) => {
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.sum")?;
            equal("the counter", &read(host, counter), &Some(7))?;
        }

        ("a_gauge_is_what_was_set_last", 0) => {
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.last")?;
            equal("the gauge", &read(host, gauge), &Some(0))?;
            host.set(gauge, 5);
        }
        ("a_gauge_is_what_was_set_last", 1) => {
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.last")?;
            equal("the gauge", &read(host, gauge), &Some(5))?;
            host.set(gauge, 2);
        }
        ("a_gauge_is_what_was_set_last", 2) => {
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.last")?;
            equal("the gauge", &read(host, gauge), &Some(2))?;
        }

        ("each_definition_has_an_id_of_its_own_for_the_one_statistic", 0) => {
            let first = defined(host, MetricKind::Counter, "sentinel.contract.twice")?;
            let second = defined(host, MetricKind::Counter, "sentinel.contract.twice")?;
            if first == second {
                return Err(format!("both definitions are {first:?}"));
            }
            host.add(first, 1);
            host.add(second, 1);
            equal("the counter by its second id", &read(host, second), &Some(2))?;
            return Ok(first.0.to_string());
        }
        ("each_definition_has_an_id_of_its_own_for_the_one_statistic", 1) => {
            let first = MetricId(number(carried)?);
            equal("the counter by its first id", &read(host, first), &Some(2))?;
        }

        ("a_name_may_be_a_counter_and_a_gauge_at_once", 0) => {
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.both")?;
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.both")?;
            host.add(counter, 1);
            host.set(gauge, 9);
        }
        ("a_name_may_be_a_counter_and_a_gauge_at_once", 1) => {
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.both")?;
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.both")?;
            equal("the counter", &read(host, counter), &Some(1))?;
            equal("the gauge", &read(host, gauge), &Some(9))?;
        }

        ("a_histogram_takes_values_and_shows_none", 0) => {
            let histogram = defined(host, MetricKind::Histogram, "sentinel.contract.spread")?;
            host.record(histogram, 7);
            equal("the histogram", &read(host, histogram), &None)?;
        }

        ("a_dead_VM_leaves_what_it_has_counted", 0) => {
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.left")?;
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.stays")?;
            host.add(counter, 6);
            host.set(gauge, 8);
        }
        ("a_dead_VM_leaves_what_it_has_counted", 1) => {
            let counter = defined(host, MetricKind::Counter, "sentinel.contract.left")?;
            let gauge = defined(host, MetricKind::Gauge, "sentinel.contract.stays")?;
            equal("the counter", &read(host, counter), &Some(6))?;
            equal("the gauge", &read(host, gauge), &Some(8))?;
        }

        ("time_goes_on_while_a_VM_is_loaded_again", 0) => {
            return Ok(host.monotonic_ns().to_string());
        }
        ("time_goes_on_while_a_VM_is_loaded_again", 1) => {
            let (now, before): (u64, u64) = (host.monotonic_ns(), number(carried)?);
            if now < before {
                return Err(format!("the clock says {now}, and said {before} before the trap"));
            }
        }

        ("the_clocks_of_all_VMs_are_equally_far_from_the_wall", 0) => {
            return Ok(distance(host).to_string());
        }
        ("the_clocks_of_all_VMs_are_equally_far_from_the_wall", 1) => {
            let (own, others): (u64, u64) = (distance(host), number(carried)?);
            // However a thread was interrupted while it read; a clock with a zero of its own is further off.
            if own.abs_diff(others) > 1_000_000_000 {
                return Err(format!("{own} ns here and {others} ns in the other VM"));
            }
        }

        (
            "no_two_VMs_draw_the_same_number" | "a_VM_that_is_loaded_again_draws_another_number",
            0,
        ) => {
            return Ok(format!("{} {}", host.random(), host.random()));
        }
        (
            "no_two_VMs_draw_the_same_number" | "a_VM_that_is_loaded_again_draws_another_number",
            1,
        ) => {
            let own = [host.random().to_string(), host.random().to_string()];
            let mut all: Vec<&str> = carried.split(' ').collect();
            all.extend(own.iter().map(String::as_str));
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            equal("the number of different numbers", &all.len(), &count)?;
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

/// The queue, registered by this VM and with nothing on it.
fn emptied<H: Host>(host: &mut H, value: &mut Vec<u8>) -> Result<Queue, String> {
    let queue = host.register_queue().map_err(|error| format!("registering: {error:?}"))?;
    equal("an empty queue", &host.dequeue(queue, value), &Ok(false))?;
    Ok(queue)
}

fn got<H: Host>(
    host: &mut H,
    queue: Queue,
    value: &mut Vec<u8>,
    message: &[u8],
) -> Result<(), String> {
    equal("a message", &host.dequeue(queue, value), &Ok(true))?;
    equal("the message", value.as_slice(), message)
}

fn defined<M: Meter>(host: &mut M, kind: MetricKind, name: &str) -> Result<MetricId, String> {
    host.define(kind, name).map_err(|error| format!("defining the {kind:?} {name}: {error:?}"))
}

fn levels<H: Host>(host: &mut H) -> String {
    Signal::ALL.map(|signal| host.level(signal).to_string()).join(" ")
}

/// Wall clock minus monotonic clock, by the closest of a few readings.
fn distance<H: Host>(host: &mut H) -> u64 {
    let readings = (0..16).map(|_| {
        let before = host.monotonic_ns();
        let wall = host.wall_ns();
        (host.monotonic_ns().saturating_sub(before), wall.saturating_sub(before))
    });
    readings.min().map_or(0, |(_, distance)| distance)
}

/// The most bytes of a rule set that the service publishes.
const RULE_SET_BYTES_MAX: usize = sentinel_wire::codec::VALUE_BYTES_MAX;

fn megabyte() -> Vec<u8> {
    pattern(1 << 20)
}

fn pattern(bytes: usize) -> Vec<u8> {
    // Of no period that a page or a buffer has.
    (0..=250_u8).cycle().take(bytes).collect()
}

fn all_bytes() -> Vec<u8> {
    (0..=u8::MAX).collect()
}
