//! Compare-and-set on shared data, in one place.
//!
//! The loop has no retry limit: a mismatch means that somebody else's write went through, so the process
//! as a whole makes progress and the loop ends. What a limit would do instead, letting the request
//! through, is how such limiters break.

use alloc::vec::Vec;

use sentinel_wire::key::Key;

use crate::{
    change::ChangeError,
    host::{Cas, Host, HostError, Stored},
};

/// Reusable buffers, and what compare-and-set has cost.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    found: Vec<u8>,
    written: Vec<u8>,
    /// Mismatches so far: how often another writer was first.
    pub(crate) retries: u64,
}

/// What [`Shared::update`] found and did.
#[derive(Debug)]
pub(crate) struct Updated<R> {
    /// What the step computed.
    pub(crate) result: R,
    /// The token of the value that the step was computed from; `None` if there was none.
    pub(crate) seen: Option<Cas>,
}

/// Whether a step wants its bytes written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Write what the step has put into the buffer.
    Write,
    /// Write what was found, as the step has changed it.
    WriteFound,
    /// Leave the value as it is.
    Keep,
}

/// A step that can fail.
pub(crate) type DynStep<'a> =
    dyn FnMut(Option<&mut [u8]>, &mut Vec<u8>) -> Result<Then, ChangeError> + 'a;

impl Shared {
    /// Reads `key`, lets `step` compute what follows, and writes it, again until nobody was in between.
    /// `step` sees what stands there (`None` before the first write) and fills the buffer.
    pub(crate) fn update<H: Host, R>(
        &mut self,
        host: &mut H,
        key: Key,
        mut step: impl FnMut(Option<&[u8]>, &mut Vec<u8>) -> (Then, R),
    ) -> Result<Updated<R>, HostError> {
        self.update_found(host, key, |found, written| step(found.as_deref(), written))
    }

    /// The same for a step that may change what it finds where that stands.
    fn update_found<H: Host, R>(
        &mut self,
        host: &mut H,
        key: Key,
        mut step: impl FnMut(Option<&mut [u8]>, &mut Vec<u8>) -> (Then, R),
    ) -> Result<Updated<R>, HostError> {
        loop {
            let seen = host.load(key, &mut self.found)?;
            let value = seen.map(|_| self.found.as_mut_slice());
            let (then, result) = step(value, &mut self.written);
            let stored = match (then, seen) {
                (Then::Keep, _) => Stored::Done,
                (Then::WriteFound, Some(cas)) => host.store(key, &self.found, cas)?,
                (Then::Write, Some(cas)) => host.store(key, &self.written, cas)?,
                (Then::Write | Then::WriteFound, None) => host.create(key, &self.written)?,
            };
            match stored {
                Stored::Done => return Ok(Updated { result, seen }),
                Stored::Mismatch => self.retries = self.retries.saturating_add(1),
            }
        }
    }

    /// [`Shared::update`] for steps that can fail, and of which there is one copy in the module. Gives the token
    /// of the value that the last step saw.
    pub(crate) fn update_dyn<H: Host>(
        &mut self,
        host: &mut H,
        key: Key,
        step: &mut DynStep<'_>,
    ) -> Result<Option<Cas>, ChangeError> {
        let updated = self.update_found(host, key, |found, written| match step(found, written) {
            Ok(then) => (then, Ok(())),
            Err(error) => (Then::Keep, Err(error)),
        });
        let updated = updated.map_err(ChangeError::Host)?;
        updated.result.map(|()| updated.seen)
    }

    /// What stands under `key`.
    pub(crate) fn read<H: Host>(
        &mut self,
        host: &mut H,
        key: Key,
    ) -> Result<Option<&[u8]>, HostError> {
        let seen = host.load(key, &mut self.found)?;
        Ok(seen.map(|_| self.found.as_slice()))
    }
}
