//! One ledger in shared data: read, changed, and written again.
//!
//! A rule that counts by values has a table of sets there. Nearly every request with a value finds it in its set, and then
//! only that one entry is read and changed, where it stands.

use alloc::vec::Vec;

use sentinel_core::{
    ledger::{
        Ledger, Stamp,
        set::{LedgerSet, SHARED, set_of},
    },
    rule::Keeps,
    time::Nanos,
};
use sentinel_wire::{
    key::Key,
    ledger::{self, BucketPlace, Value},
};

use crate::{
    host::{Cas, Host, HostError},
    rule_state::{Place, RuleState, Terms},
    shared::{Shared, Then},
};

/// A ledger, without the rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LedgerRef {
    pub(crate) place: Place,
    pub(crate) stamp: Stamp,
    pub(crate) keeps: Keeps,
    pub(crate) terms: Terms,
    /// Whether the worker's own threshold counts, whatever the ledger's.
    pub(crate) is_adaptive: bool,
}

/// What [`change`] found.
pub(crate) struct Changed {
    pub(crate) seen: Option<Cas>,
}

/// Why a ledger was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeError {
    /// The host failed.
    Host(HostError),
    /// The ledger has a layout that this build cannot read.
    Layout,
    /// The slot belongs to a newer generation.
    Superseded,
    /// There is no room for another value.
    Full,
}

/// What a step sees of a ledger.
pub(crate) struct Step<'a> {
    pub(crate) ledger: &'a mut Ledger,
    /// The threshold that holds.
    pub(crate) threshold: f64,
    /// Whether the ledger knows no newer rule set than this worker.
    pub(crate) is_current: bool,
    /// The entry of the table: the value's own, or the one that others share.
    pub(crate) entry: u128,
}

impl LedgerRef {
    /// Where a rule counts.
    pub(crate) fn of(state: &RuleState) -> Self {
        Self {
            place: state.place,
            stamp: state.stamp,
            keeps: state.keeps(),
            terms: state.terms,
            is_adaptive: state.is_adaptive(),
        }
    }
}

/// Reads a rule's ledger, or that of one of its values, lets `step` change it, and writes it if `step` says so,
/// again until nobody was in between. `dry`: never writes.
pub(crate) fn change<H: Host>(
    host: &mut H,
    shared: &mut Shared,
    of: &LedgerRef,
    now: Nanos,
    key: u128,
    dry: bool,
    step: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<Changed, ChangeError> {
    let place = of.place;
    let (set, at) = if place.sets == 0 {
        (0, Key::Ledger(place.slot))
    } else {
        let set = set_of(key, place.sets);
        (set, Key::Set(place.slot.saturating_add(set)))
    };
    let updated = shared.update_dyn(host, at, &mut |found, written| {
        apply(of, now, key, set, found, written, step)
            .map(|then| if dry { Then::Keep } else { then })
    });
    updated.map(|seen| Changed { seen })
}

/// One step on the bytes of a ledger: whether there is anything to write.
fn apply(
    of: &LedgerRef,
    now: Nanos,
    key: u128,
    set: u32,
    mut found: Option<&mut [u8]>,
    written: &mut Vec<u8>,
    step: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<Then, ChangeError> {
    if of.keeps == Keeps::Bucket
        && of.place.sets > 0
        && let Some(found) = found.as_deref_mut()
        && let Some(mut place) = BucketPlace::find(found, key.max(1))
        && let Some(meeting) = of.stamp.meet(Some(place.stamp))
        && !meeting.anew
    {
        let threshold = if of.is_adaptive { of.stamp.threshold } else { meeting.stamp.threshold };
        let mut ledger = Ledger::Bucket(place.bucket);
        let is_current = meeting.is_current;
        let changed = step(Step { ledger: &mut ledger, threshold, is_current, entry: key.max(1) });
        if let Ledger::Bucket(bucket) = ledger
            && (changed || meeting.renewed)
        {
            (place.stamp, place.bucket) = (meeting.stamp, bucket);
            place.write();
            return Ok(Then::WriteFound);
        }
        return Ok(Then::Keep);
    }
    apply_to_value(of, now, key, set, found.as_deref(), written, step)
}

/// The same, with the whole value read and written.
#[inline(never)]
fn apply_to_value(
    of: &LedgerRef,
    now: Nanos,
    key: u128,
    set: u32,
    found: Option<&[u8]>,
    written: &mut Vec<u8>,
    step: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<Then, ChangeError> {
    let found = match found.map(ledger::decode) {
        Some(Ok(found)) => Some(found),
        Some(Err(_)) => return Err(ChangeError::Layout),
        None => None,
    };
    let stamp = found.as_ref().map(|(stamp, _)| *stamp);
    let meeting = of.stamp.meet(stamp).ok_or(ChangeError::Superseded)?;
    let is_set = of.place.sets > 0;
    let known = found.map(|(_, value)| value).filter(|value| {
        !meeting.anew
            && match value {
                Value::Single(ledger) => !is_set && ledger.keeps() == of.keeps,
                Value::Set(keeps, _) => is_set && *keeps == of.keeps,
            }
    });
    let new = || Ledger::new(of.keeps);
    let mut value = match known {
        Some(value) => value,
        None if is_set => Value::Set(of.keeps, LedgerSet::default()),
        None => Value::Single(new().ok_or(ChangeError::Layout)?),
    };
    let threshold = if of.is_adaptive { of.stamp.threshold } else { meeting.stamp.threshold };
    let (entry, ledger) = match &mut value {
        Value::Single(ledger) => (0, ledger),
        Value::Set(_, set_of_ledgers) => {
            let is_idle = |ledger: &Ledger| of.terms.is_idle(ledger, now);
            let empty = new().ok_or(ChangeError::Layout)?;
            let overflow = of.place.overflow;
            let (found, ledger) = set_of_ledgers
                .ledger_of(key, overflow, is_idle, || empty)
                .ok_or(ChangeError::Full)?;
            // Entries that are shared are told apart by their sets.
            (if found == SHARED { u128::from(set) } else { found }, ledger)
        }
    };
    let changed = step(Step { ledger, threshold, is_current: meeting.is_current, entry });
    if changed || (meeting.renewed && !meeting.anew) {
        ledger::encode(&meeting.stamp, &value, written);
        return Ok(Then::Write);
    }
    Ok(Then::Keep)
}
