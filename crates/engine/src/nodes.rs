//! What one worker has counted, per resource, and what of it others know.
//!
//! Running totals since the worker's start. They go two ways: what is new is added to Envoy's counters
//! at every flush, and the totals themselves travel in frames until the service has acknowledged them.
//! A node outlives its resource's rules for as long as a request is open or a count unreported.

use alloc::{rc::Rc, string::ToString as _, vec::Vec};

use sentinel_core::{
    order::order_of,
    rule::INBOUND,
    stat::{MetricBucket, Tally as _, class_of},
};
use sentinel_wire::frame::{BreakerCounts, FRAME_ENTRIES_MAX, FrameEntry};

use crate::{
    host::{Meter, MetricId, MetricKind},
    rulebook::{NEW_NODE, RuleBook},
    telemetry::{Metric, OTHER, Total, of_resource},
};

/// The node of everything that has no name of its own.
pub(crate) const OTHER_NODE: u32 = 0;

/// Statistics that one resource takes up: five counters, one histogram, six gauges.
pub(crate) const SERIES_PER_RESOURCE: u32 = 12;

/// Statistics that one rule takes up: its refusals, its threshold, and a breaker's state.
pub(crate) const SERIES_PER_RULE: u32 = 3;

/// All of one worker's counters.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// Nodes whose counters Envoy does not have yet.
    unreported: Vec<u32>,
    /// Nodes that the service has not acknowledged as they are now.
    unacknowledged: Vec<u32>,
    /// Nodes whose resource the rule set no longer names.
    retired: Vec<u32>,
    free: Vec<u32>,
    /// Whether the service evaluates any rule by these counts.
    is_watching: bool,
    /// The proxy's totals.
    proxy: Series,
    proxy_block: Total,
    proxy_totals: MetricBucket,
    /// What resources without series of their own have counted: shown under `other`.
    shared_totals: MetricBucket,
    /// Response times that Envoy does not have yet: told one after the other at the next report, and not one by one in the
    /// requests' way.
    times: Vec<(MetricId, u64)>,
}

/// How many response times wait for a report; with more than that it comes sooner.
const TIMES_MAX: usize = 256;

#[derive(Debug)]
struct Node {
    name: Rc<str>,
    hash: u64,
    totals: MetricBucket,
    in_flight: u64,
    /// The shortest response time since the last frame, as [`MetricBucket::rt_min`].
    rt_min: u64,
    /// Its breakers, as indexes into the rule book.
    breakers: Rc<[u32]>,
    /// Whether the service evaluates a rule by these counts: then they are sent at once.
    is_watched: bool,
    /// Whether it repeats what others count: then it has no series, and no part in the proxy's totals.
    is_sum: bool,
    /// Response times by class, in ascending order of classes: of eighty a resource has a few.
    histogram: Vec<(u8, u64)>,
    series: Series,
    has_series: bool,
    reported: bool,
    /// On the list of the unacknowledged.
    listed: bool,
    /// The first frame that carried the node as it is now; 0 if none has.
    sent_in: u64,
    /// The first frame that carried the name; 0 if none has. (`sent_in` begins anew with each change, and a busy resource
    /// changes sooner than its frame is acknowledged.)
    named_in: u64,
    /// Whether this service has acknowledged a frame with the name.
    name_known: bool,
    retired: bool,
}

/// The counters and the histogram of one view.
#[derive(Debug, Default)]
struct Series {
    pass: Total,
    complete: Total,
    error: Total,
    rt: Metric,
    /// Up and down, of TCP.
    bytes: [Metric; 2],
}

impl Nodes {
    /// Just the node of `other`, whose name hashes to `hash`.
    pub(crate) fn new(hash: u64) -> Self {
        Self {
            nodes: Vec::from([Node::new(OTHER.into(), hash, true)]),
            unreported: Vec::from([OTHER_NODE]),
            unacknowledged: Vec::new(),
            retired: Vec::new(),
            free: Vec::new(),
            is_watching: false,
            proxy: Series::default(),
            proxy_block: Total::default(),
            proxy_totals: MetricBucket::default(),
            shared_totals: MetricBucket::default(),
            times: Vec::new(),
        }
    }

    /// Gives each resource of a new rule set its node, and retires those that it does not name.
    pub(crate) fn take_up(&mut self, book: &mut RuleBook, old: &RuleBook) {
        let mut retired = core::mem::take(&mut self.retired);
        // Those that retired before, by the hash of their names.
        let hash =
            |at: usize| retired.get(at).and_then(|index| self.node(*index)).map(|node| node.hash);
        let by_hash = order_of(retired.len(), &|a, b| hash(a).cmp(&hash(b)));
        let before: Vec<u32> = by_hash.iter().filter_map(|&at| retired.get(at).copied()).collect();
        self.is_watching = false;
        for resource in &old.resources {
            if resource.node != OTHER_NODE {
                retired.push(resource.node);
            }
        }
        for &index in &retired {
            if let Some(node) = self.node_mut(index) {
                node.retired = true;
                // What they point to is another rule in the new book.
                if !node.breakers.is_empty() {
                    node.breakers = Rc::from([]);
                }
                node.is_watched = false;
            }
        }
        for resource in &mut book.resources {
            let has_series = resource.has_series;
            resource.node = if *resource.name == *OTHER {
                OTHER_NODE
            } else if resource.node != NEW_NODE {
                resource.node
            } else {
                // A resource that comes back before its last request has ended goes on counting.
                let node = |index: &u32| self.node(*index);
                let first = before.partition_point(|index| {
                    node(index).is_some_and(|node| node.hash < resource.hash)
                });
                let same = before.get(first..).unwrap_or_default().iter().copied();
                let mut same = same.map_while(|index| {
                    Some(index).zip(node(&index).filter(|node| node.hash == resource.hash))
                });
                let waiting = same.find(|(_, node)| node.name == resource.name);
                waiting.map(|(index, _)| index).unwrap_or_else(|| {
                    self.insert(Node::new(Rc::clone(&resource.name), resource.hash, has_series))
                })
            };
            self.is_watching |= resource.is_watched;
            if let Some(node) = self.node_mut(resource.node) {
                node.retired = false;
                node.has_series = has_series || resource.node == OTHER_NODE;
                node.is_watched = resource.is_watched;
                node.is_sum = *resource.name == *INBOUND;
                node.breakers = Rc::clone(&resource.breakers);
            }
        }
        retired.retain(|index| self.node(*index).is_some_and(|node| node.retired));
        self.retired = retired;
    }

    /// Counts an admitted request, and once more for whatever is inbound where somebody asks for that.
    pub(crate) fn pass(&mut self, index: u32, batch: u64, inbound: Option<u32>) {
        for index in &[Some(index), inbound] {
            if let Some(node) = index.and_then(|index| self.changed(index)) {
                node.totals.pass = node.totals.pass.saturating_add(batch);
                node.in_flight = node.in_flight.saturating_add(1);
            }
        }
        self.proxy_totals.pass = self.proxy_totals.pass.saturating_add(batch);
    }

    /// Counts a refused request, and once more for whatever is inbound where somebody asks for that.
    pub(crate) fn block(&mut self, index: u32, batch: u64, inbound: Option<u32>) {
        for index in &[Some(index), inbound] {
            if let Some(node) = index.and_then(|index| self.changed(index)) {
                node.totals.block = node.totals.block.saturating_add(batch);
            }
        }
        self.proxy_totals.block = self.proxy_totals.block.saturating_add(batch);
    }

    /// The breakers of a node.
    #[inline(always)]
    pub(crate) fn breakers_of(&self, index: u32) -> Rc<[u32]> {
        match self.node(index) {
            Some(node) => Rc::clone(&node.breakers),
            None => Rc::from([]),
        }
    }

    /// Counts the end of an admitted request.
    pub(crate) fn complete<M: Meter>(
        &mut self,
        meter: &mut M,
        index: u32,
        batch: u64,
        rt_ms: u64,
        error: bool,
        inbound: Option<u32>,
    ) {
        let errors = if error { batch } else { 0 };
        let count = |totals: &mut MetricBucket| {
            totals.complete = totals.complete.saturating_add(batch);
            totals.error = totals.error.saturating_add(errors);
            totals.rt_ms = totals.rt_ms.saturating_add(rt_ms);
        };
        count(&mut self.proxy_totals);
        let mut own_histogram = None;
        for of in &[Some(index), inbound] {
            let Some(node) = of.and_then(|of| self.changed(of)) else { continue };
            count(&mut node.totals);
            node.in_flight = node.in_flight.saturating_sub(1);
            node.rt_min = node.rt_min.max(MetricBucket::rt_min_of(rt_ms));
            node.count_time(rt_ms);
            if *of == Some(index) && node.has_series {
                let Node { name, series, .. } = node;
                own_histogram = series
                    .rt
                    .id(meter, MetricKind::Histogram, |text| of_resource(name, "rt_ms", text));
            }
        }
        let histogram = own_histogram.or_else(|| {
            let other = self.nodes.first_mut()?;
            other
                .series
                .rt
                .id(meter, MetricKind::Histogram, |text| of_resource(OTHER, "rt_ms", text))
        });
        if let Some(histogram) = histogram {
            self.times.push((histogram, rt_ms));
            if self.times.len() >= TIMES_MAX {
                self.report_times(meter);
            }
        }
    }

    /// Tells Envoy the response times of requests that have ended.
    fn report_times<M: Meter>(&mut self, meter: &mut M) {
        for (histogram, rt_ms) in self.times.drain(..) {
            meter.record(histogram, rt_ms);
        }
    }

    /// Counts what a connection has carried, up and down, once more for the whole proxy.
    pub(crate) fn count_bytes<M: Meter>(&mut self, meter: &mut M, index: u32, bytes: [u64; 2]) {
        const NAMES: [&str; 2] = ["bytes_up_total", "bytes_down_total"];

        let index =
            if self.node(index).is_some_and(|node| node.has_series) { index } else { OTHER_NODE };
        let Self { nodes, proxy, .. } = self;
        let Some(node) = usize::try_from(index).ok().and_then(|index| nodes.get_mut(index)) else {
            return;
        };
        let series = [(Some(&*node.name), &mut node.series), (None, proxy)];
        for (resource, series) in series {
            for ((what, new), metric) in NAMES.into_iter().zip(bytes).zip(&mut series.bytes) {
                let id = metric.id(meter, MetricKind::Counter, |text| match resource {
                    Some(resource) => of_resource(resource, what, text),
                    None => text.push_str(what),
                });
                if let Some(id) = id {
                    meter.add(id, new);
                }
            }
        }
    }

    /// Whether anything has been counted since the last [`Nodes::report`].
    pub(crate) fn has_news(&self) -> bool {
        !self.unreported.is_empty()
    }

    /// Adds what is new to Envoy's counters.
    pub(crate) fn report<M: Meter>(&mut self, meter: &mut M) {
        if self.unreported.is_empty() {
            return;
        }
        self.report_times(meter);
        let mut other_has_news = false;
        let mut unreported = core::mem::take(&mut self.unreported);
        for &index in &unreported {
            let Some(node) =
                usize::try_from(index).ok().and_then(|index| self.nodes.get_mut(index))
            else {
                continue;
            };
            node.reported = true;
            if node.is_sum {
                node.series.take_unreported(&node.totals);
            } else if index == OTHER_NODE {
                other_has_news = true;
            } else if node.has_series {
                let name = &node.name;
                node.series.report(meter, &node.totals, |what, text| of_resource(name, what, text));
            } else {
                self.shared_totals.add(&node.series.take_unreported(&node.totals));
                other_has_news = true;
            }
        }
        if let Some(other) = self.nodes.first_mut().filter(|_| other_has_news) {
            let mut totals = other.totals;
            totals.add(&self.shared_totals);
            other.series.report(meter, &totals, |what, text| of_resource(OTHER, what, text));
        }
        self.proxy.report(meter, &self.proxy_totals, |what, text| text.push_str(what));
        // By resource, refusals are the rules' to report.
        self.proxy_block
            .report(meter, self.proxy_totals.block, |text| text.push_str("block_total"));
        unreported.clear();
        self.unreported = unreported;
    }

    /// Up to `most` nodes, and [`FRAME_ENTRIES_MAX`], for frame `sequence`, the least recently sent first: what is sent
    /// goes to the end of the line until it is acknowledged. `watched`: only those that the service waits for
    /// and that have changed. `counts` adds what their breakers have seen.
    pub(crate) fn frame_entries(
        &mut self,
        sequence: u64,
        watched: bool,
        most: usize,
        counts: &mut dyn FnMut(&[u32]) -> Vec<BreakerCounts>,
    ) -> Vec<FrameEntry> {
        let mut due = core::mem::take(&mut self.unacknowledged);
        let most = most.min(due.len()).min(FRAME_ENTRIES_MAX);
        let mut entries = Vec::with_capacity(most);
        let mut sent = Vec::with_capacity(most);
        due.retain(|&index| {
            let Some(node) = self.node_mut(index) else { return false };
            if entries.len() >= most || (watched && !node.is_news()) {
                return true;
            }
            if node.sent_in == 0 {
                node.sent_in = sequence;
            }
            if node.named_in == 0 {
                node.named_in = sequence;
            }
            entries.push(node.entry(counts(&node.breakers)));
            sent.push(index);
            false
        });
        due.append(&mut sent);
        self.unacknowledged = due;
        entries
    }

    /// Whether something has changed that the service evaluates a rule by.
    pub(crate) fn has_news_for_service(&self) -> bool {
        self.is_watching
            && self.unacknowledged.iter().any(|index| self.node(*index).is_some_and(Node::is_news))
    }

    /// Of how many resources the service does not know everything yet.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Takes in that the service has folded all frames up to `sequence`.
    pub(crate) fn acknowledge(&mut self, sequence: u64) {
        let nodes = &mut self.nodes;
        self.unacknowledged.retain(|index| {
            let Some(node) = usize::try_from(*index).ok().and_then(|index| nodes.get_mut(index))
            else {
                return false;
            };
            let has = |frame: u64| frame != 0 && frame <= sequence;
            node.name_known |= has(node.named_in);
            let known = has(node.sent_in);
            if known {
                node.listed = false;
            }
            !known
        });
        self.bury();
    }

    /// Takes in that there is another service, which knows nothing: everything is to be sent again.
    pub(crate) fn forget_acknowledged(&mut self) {
        self.unacknowledged.clear();
        for (index, node) in (0..).zip(&mut self.nodes) {
            node.name_known = false;
            (node.sent_in, node.named_in) = (0, 0);
            node.listed = node.totals != MetricBucket::default();
            if node.listed {
                self.unacknowledged.push(index);
            }
        }
    }

    /// Frees retired nodes that nobody waits for any more.
    fn bury(&mut self) {
        let (nodes, free) = (&mut self.nodes, &mut self.free);
        self.retired.retain(|&index| {
            let node = usize::try_from(index).ok().and_then(|index| nodes.get_mut(index));
            let Some(node) = node.filter(|node| node.retired) else { return false };
            let needed = node.in_flight > 0 || !node.reported || node.listed;
            if !needed {
                *node = Node::new("".into(), 0, false);
                free.push(index);
            }
            needed
        });
    }

    /// A node that is about to change: Envoy and the service are to be told.
    #[inline(always)]
    fn changed(&mut self, index: u32) -> Option<&mut Node> {
        let node = self.nodes.get_mut(usize::try_from(index).ok()?)?;
        node.sent_in = 0;
        if node.reported {
            node.reported = false;
            self.unreported.push(index);
        }
        if !node.listed {
            node.listed = true;
            self.unacknowledged.push(index);
        }
        Some(node)
    }

    fn insert(&mut self, node: Node) -> u32 {
        if let Some(index) = self.free.pop() {
            if let Some(place) = self.node_mut(index) {
                *place = node;
            }
            return index;
        }
        let Ok(index) = u32::try_from(self.nodes.len()) else { return OTHER_NODE };
        self.nodes.push(node);
        index
    }

    fn node(&self, index: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(index).ok()?)
    }

    fn node_mut(&mut self, index: u32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(index).ok()?)
    }
}

impl Node {
    fn new(name: Rc<str>, hash: u64, has_series: bool) -> Self {
        Self {
            name,
            hash,
            totals: MetricBucket::default(),
            in_flight: 0,
            rt_min: 0,
            breakers: Rc::from([]),
            is_watched: false,
            is_sum: false,
            histogram: Vec::new(),
            series: Series::default(),
            has_series,
            reported: true,
            listed: false,
            sent_in: 0,
            named_in: 0,
            name_known: false,
            retired: false,
        }
    }

    fn count_time(&mut self, rt_ms: u64) {
        let class = u8::try_from(class_of(rt_ms)).unwrap_or(u8::MAX);
        match self.histogram.iter_mut().find(|(known, _)| *known >= class) {
            Some((known, count)) if *known == class => *count = count.saturating_add(1),
            _ => {
                let place = self.histogram.partition_point(|(known, _)| *known < class);
                self.histogram.insert(place, (class, 1));
            }
        }
    }

    /// Whether the service waits for it and does not have it yet.
    fn is_news(&self) -> bool {
        self.is_watched && self.sent_in == 0
    }

    fn entry(&mut self, breakers: Vec<BreakerCounts>) -> FrameEntry {
        let rt_min = core::mem::take(&mut self.rt_min);
        FrameEntry {
            resource: self.hash,
            name: (!self.name_known).then(|| self.name.to_string()),
            pass: self.totals.pass,
            block: self.totals.block,
            complete: self.totals.complete,
            error: self.totals.error,
            rt_ms: self.totals.rt_ms,
            in_flight: self.in_flight,
            rt_min,
            breakers,
            histogram: self.histogram.clone(),
        }
    }
}

impl Series {
    fn report<M: Meter>(
        &mut self,
        meter: &mut M,
        totals: &MetricBucket,
        name: impl Fn(&str, &mut alloc::string::String),
    ) {
        self.pass.report(meter, totals.pass, |text| name("pass_total", text));
        self.complete.report(meter, totals.complete, |text| name("complete_total", text));
        self.error.report(meter, totals.error, |text| name("error_total", text));
    }

    /// What nobody has reported yet, marked as reported.
    fn take_unreported(&mut self, totals: &MetricBucket) -> MetricBucket {
        MetricBucket {
            pass: self.pass.take_unreported(totals.pass),
            complete: self.complete.take_unreported(totals.complete),
            error: self.error.take_unreported(totals.error),
            ..MetricBucket::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_itself(nodes: &mut Nodes, sequence: u64) -> bool {
        nodes.pass(OTHER_NODE, 1, None);
        let entries = nodes.frame_entries(sequence, false, 1, &mut |_| Vec::new());
        entries.iter().any(|entry| entry.name.is_some())
    }

    #[test]
    fn a_name_is_known_once_a_frame_with_it_is_acknowledged_though_the_resource_is_never_quiet() {
        let mut nodes = Nodes::new(7);
        assert!(names_itself(&mut nodes, 1));
        assert!(names_itself(&mut nodes, 2));

        nodes.pass(OTHER_NODE, 1, None);
        nodes.acknowledge(1);
        assert!(!names_itself(&mut nodes, 3));

        nodes.forget_acknowledged();
        assert!(names_itself(&mut nodes, 4));
        nodes.acknowledge(3);
        assert!(names_itself(&mut nodes, 5), "a frame of before was acknowledged");
    }

    #[test]
    fn response_times_are_told_by_class_in_ascending_order() {
        let mut node = Node::new("r".into(), 1, false);
        for rt_ms in [100, 3, 100, 0, 1 << 40, 3] {
            node.count_time(rt_ms);
        }
        let told = node.entry(Vec::new()).histogram;
        assert_eq!(told, [(0, 1), (3, 2), (22, 2), (79, 1)]);
    }
}
