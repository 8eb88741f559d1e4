//! One rule's rate: what is granted and what was admitted, window by window.

use std::collections::BTreeMap;

use sentinel_core::{
    ledger::{
        Stamp,
        rate::{RateLedger, whole_tokens},
    },
    time::{Nanos, Span},
    window::{BucketId, WindowShape},
};

use super::{Broken, Row};

/// One ledger's life.
#[derive(Debug)]
pub(super) struct Account {
    rule: String,
    pub(super) shape: WindowShape,
    /// Tokens of admitted requests.
    admitted: BTreeMap<BucketId, u64>,
    /// The threshold, and the bucket from which on it was in the ledger.
    thresholds: Vec<(BucketId, u64)>,
    /// The newest bytes.
    stored: Option<RateLedger>,
    /// Tokens that were ever granted and not given back.
    pub(super) granted_ever: u64,
    /// When requests were refused though more were allowed, without a pause.
    refused: Option<Row>,
}

/// How much of each window was admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowUse {
    /// When the window begins.
    pub(crate) from: Nanos,
    /// How long its last bucket is.
    pub(crate) last_bucket: Span,
    pub(crate) admitted: u64,
    pub(crate) allowed: u64,
}

impl Account {
    pub(super) fn new(rule: &str, shape: WindowShape) -> Self {
        let rule = rule.to_owned();
        let (admitted, thresholds) = (BTreeMap::new(), Vec::new());
        Self { rule, shape, admitted, thresholds, stored: None, granted_ever: 0, refused: None }
    }

    pub(super) fn store(&mut self, stamp: &Stamp, ledger: &RateLedger) -> Result<(), Broken> {
        if self.stored.as_ref().is_some_and(|old| old.newest > ledger.newest) {
            return Err(format!("the time of rule {}'s ledger has gone back", self.rule));
        }
        let threshold = whole_tokens(stamp.threshold);
        if self.thresholds.last().is_none_or(|(_, last)| *last != threshold) {
            self.thresholds.push((ledger.newest, threshold));
        }
        let before: BTreeMap<BucketId, u64> = self.granted().collect();
        self.stored = Some(ledger.clone());
        let mut sum = 0;
        let mut granted_ever = self.granted_ever;
        for (bucket, granted) in self.granted() {
            sum += granted;
            let earlier = before.get(&bucket).copied().unwrap_or(0);
            granted_ever = (granted_ever + granted).saturating_sub(earlier);
            let admitted = self.admitted_in(bucket);
            if admitted > granted {
                let bucket = bucket.get();
                return Err(format!(
                    "rule {}: {admitted} tokens of bucket {bucket} are spent, but only {granted} are granted",
                    self.rule,
                ));
            }
        }
        self.granted_ever = granted_ever;
        let end = self.stored.as_ref().map_or(BucketId::new(0), |ledger| ledger.newest);
        self.no_more_than_allowed(end, sum, "granted")
    }

    /// A ledger that was forgotten and begins anew: whoever counts by it must not get more by that.
    pub(super) fn begin_anew(&mut self, ledger: &RateLedger) -> Result<(), Broken> {
        let still: u64 = self
            .granted()
            .filter(|(bucket, _)| self.shape.counts(*bucket, ledger.newest))
            .map(|(_, granted)| granted)
            .sum();
        if still > 0 {
            return Err(format!(
                "rule {}: a value was forgotten with {still} tokens in its window, and has a fresh budget",
                self.rule
            ));
        }
        self.stored = None;
        Ok(())
    }

    pub(super) fn admit(&mut self, now: Nanos, batch: u64) -> Result<(), Broken> {
        let bucket = self.shape.bucket_at(now);
        self.refused = None;
        *self.admitted.entry(bucket).or_default() += batch;
        let admitted = self.admitted_in(bucket);
        if let Some((_, granted)) = self.granted().find(|(known, _)| *known == bucket)
            && admitted > granted
        {
            let bucket = bucket.get();
            return Err(format!(
                "{admitted} tokens of bucket {bucket} are spent, but only {granted} are granted"
            ));
        }
        for later in 0..u64::from(self.shape.buckets()) {
            let end = bucket.later(later);
            self.no_more_than_allowed(end, self.window(end), "admitted")?;
        }
        Ok(())
    }

    pub(super) fn refuse(&mut self, now: Nanos, batch: u64) -> Result<(), Broken> {
        let bucket = self.shape.bucket_at(now);
        let left = self.allowed(bucket).saturating_sub(self.window(bucket));
        if left < batch {
            self.refused = None;
            return Ok(());
        }
        let row =
            Row::go_on(self.refused.filter(|row| self.shape.bucket_at(row.last) == bucket), now);
        self.refused = Some(row);
        if !row.is_too_long() {
            return Ok(());
        }
        let for_ms = row.length().as_millis();
        Err(format!("rule {} refuses for {for_ms} ms though {left} more are allowed", self.rule))
    }

    fn no_more_than_allowed(&self, end: BucketId, sum: u64, what: &str) -> Result<(), Broken> {
        let allowed = self.allowed(end);
        if sum <= allowed {
            return Ok(());
        }
        Err(format!(
            "rule {}: {sum} {what} in the window that ends with bucket {}, but {allowed} are allowed",
            self.rule,
            end.get(),
        ))
    }

    /// What the window that ends with this bucket has admitted.
    pub(super) fn window(&self, end: BucketId) -> u64 {
        self.admitted.range(self.first_of(end)..=end).map(|(_, tokens)| tokens).sum()
    }

    /// The largest threshold that held in any bucket of the window that ends with this one.
    pub(super) fn allowed(&self, end: BucketId) -> u64 {
        let first = self.first_of(end);
        let mut allowed = 0;
        for (place, (from, threshold)) in self.thresholds.iter().enumerate() {
            let next = self.thresholds.get(place + 1).map(|(next, _)| *next);
            // In the bucket of a change both hold.
            if *from <= end && next.is_none_or(|next| next >= first) {
                allowed = allowed.max(*threshold);
            }
        }
        allowed
    }

    /// The first bucket of the window that ends with this one.
    fn first_of(&self, end: BucketId) -> BucketId {
        BucketId::new(end.get().saturating_sub(u64::from(self.shape.buckets()) - 1))
    }

    pub(super) fn admitted_in(&self, bucket: BucketId) -> u64 {
        self.admitted.get(&bucket).copied().unwrap_or(0)
    }

    /// Buckets that are written in the ledger, and what is granted in each.
    pub(super) fn granted(&self) -> impl Iterator<Item = (BucketId, u64)> {
        let buckets = usize::from(self.shape.buckets());
        self.stored.iter().flat_map(move |ledger| {
            let id = |age: u64| Some(BucketId::new(ledger.newest.get().checked_sub(age)?));
            let ring = (0..).zip(ledger.granted.iter().take(buckets));
            ring.filter_map(move |(age, granted)| Some((id(age)?, *granted)))
        })
    }
}
