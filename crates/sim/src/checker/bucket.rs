//! One value's bucket: each change of it is a taking, a filling or an undoing.

use sentinel_core::{
    ledger::bucket::{BucketLedger, BucketTerms},
    time::Nanos,
};

use super::Broken;

/// A bucket's life, through being forgotten and made anew.
#[derive(Debug, Default)]
pub(super) struct BucketBook {
    now: BucketLedger,
    most: u64,
    /// What it was before, and what was taken by the change.
    before: Vec<(BucketLedger, i64)>,
}

impl BucketBook {
    /// Takes in what the ledger says now. The answer is how many tokens were taken.
    pub(super) fn store(
        &mut self,
        new: BucketLedger,
        threshold: u64,
        terms: &BucketTerms,
    ) -> Result<i64, Broken> {
        let old = self.now;
        if new == old {
            return Ok(0);
        }
        // What was there before a threshold became smaller is there until it is filled again.
        self.most = self.most.max(threshold.saturating_add(terms.burst));
        if new.tokens > self.most {
            let most = self.most;
            return Err(format!("a bucket holds {} tokens, and {most} are the most", new.tokens));
        }
        if new.filled < old.filled {
            return self.undo(new);
        }
        let there = if new.filled == old.filled && old.filled.get() > 0 {
            old.tokens
        } else {
            available(&old, &new, threshold, terms)?
        };
        let taken = signed(there) - signed(new.tokens);
        if taken < 0 && new.filled > old.filled {
            return Err(format!("a bucket with {there} tokens is said to hold {}", new.tokens));
        }
        self.before.push((old, taken));
        self.now = new;
        Ok(taken)
    }

    /// A bucket that was forgotten is made anew: nobody may have more by that.
    pub(super) fn begin_anew(
        &mut self,
        now: Nanos,
        threshold: u64,
        terms: &BucketTerms,
    ) -> Result<(), Broken> {
        if !self.now.is_idle(now, threshold, terms) {
            let tokens = self.now.tokens;
            return Err(format!(
                "a value was forgotten with {tokens} tokens, and has a fresh budget"
            ));
        }
        *self = Self::default();
        Ok(())
    }

    /// It is again as it was before some changes.
    fn undo(&mut self, new: BucketLedger) -> Result<i64, Broken> {
        let Some(place) = self.before.iter().rposition(|(state, _)| *state == new) else {
            return Err("a bucket's time has gone back, and not to what it was before".to_owned());
        };
        let undone: i64 = self.before.drain(place..).map(|(_, taken)| taken).sum();
        self.now = new;
        Ok(-undone)
    }
}

/// What is there when a bucket is filled: semantics 2.6, by hand.
fn available(
    old: &BucketLedger,
    new: &BucketLedger,
    threshold: u64,
    terms: &BucketTerms,
) -> Result<u64, Broken> {
    let most = threshold.saturating_add(terms.burst);
    if old.filled.get() == 0 {
        return Ok(most);
    }
    let passed = new.filled.since(old.filled);
    if passed <= terms.duration {
        let after = passed.as_millis();
        return Err(format!(
            "a bucket was filled again after {after} ms, or a fresh one given out"
        ));
    }
    let added = u128::from(passed.get()) * u128::from(threshold) / u128::from(terms.duration.get());
    Ok(most.min(old.tokens.saturating_add(u64::try_from(added).unwrap_or(u64::MAX))))
}

fn signed(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}
