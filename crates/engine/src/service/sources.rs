//! Rules from elsewhere: sources that are fetched again and again, and configurations that filters carry.
//!
//! Each of them is a *unit* with contents of its own, and all units and what stands in the service's own configuration
//! are compiled into one set. What a unit newly says is taken up if the whole set compiles with it; else the unit's
//! last good contents stay, and the new ones are tried again whenever another unit changes: two that clash may be
//! mended in either of them.
//!
//! A source is asked through the shell: [`Sources::next_fetch`] says what to ask, and
//! [`Sources::take_answer`] takes what came. One question of a source is under way at a time. An index and its files are
//! read one after the other, and what they say counts when two looks in a row saw the same: an editor writes a file in
//! several steps, and files are changed one by one.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use sentinel_core::{
    config::{IndexedFile, SOURCE, ServiceConfig, SourceConfig, fallback_name, index_files},
    order::sort_by,
    rule::{
        Rule,
        compile::{Source, compile_set},
        error::Refusals,
        node::{Node, Value},
    },
    time::{Nanos, Span},
};
use sentinel_wire::{
    carried::{CarriedSet, Configuration, Directory},
    key::Key,
    sources::{Fetched, FetchedText},
};

use crate::{
    carried::change_directory,
    clock::Clock,
    document::{self, SOURCE_BYTES_MAX},
    host::Host,
    shared::{Shared, Then},
};

/// How soon an index is looked at again that has changed.
const SETTLE: Span = Span::from_millis(100);

/// How soon a source is asked again that has never answered.
const FIRST_PAUSE: Span = Span::from_millis(100);

/// How long a source may fail before the log says so; from then on ever more seldom.
const PATIENCE: Span = Span::from_millis(2_000);

/// The longest pause between two complaints about a source.
const COMPLAINT_PAUSE: Span = Span::from_millis(600_000);

/// After how many looks without a sign of life from any VM that carries it a configuration leaves: half a minute of
/// the service's own time. (A process that was stopped for longer finds all signs old, and everybody alive.)
const SILENT_LOOKS_MAX: u32 = 30;

/// A question to a server of rules.
#[derive(Debug)]
pub struct Fetch<'a> {
    /// What to call the answer by.
    pub id: u32,
    /// The cluster to ask.
    pub cluster: &'a str,
    /// By what name.
    pub authority: &'a str,
    /// For what.
    pub path: &'a str,
    /// What it was called when it was fetched last (`if-none-match`); empty: unknown.
    pub etag: &'a [u8],
    /// More headers.
    pub headers: &'a [(String, String)],
}

/// What a server of rules has answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status; 0: there was no answer in time, or no such cluster.
    pub status: u16,
    /// What the server calls this version (`etag`); empty if it does not say.
    pub etag: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
}

/// All units.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Those of the configuration's sources in their order, then those that filters carry.
    units: Vec<Unit>,
    /// One for each of the configuration's sources.
    polls: Vec<Poll>,
    last_id: u32,
}

/// What gives rules.
#[derive(Debug, Default)]
struct Unit {
    carried: Option<Carried>,
    /// What is in force; `None`: its fallback, if it has one.
    good: Option<Contents>,
    /// What it says now, if that could not be taken up.
    newest: Option<Contents>,
}

/// A configuration that filters carry.
#[derive(Debug)]
struct Carried {
    plugin: String,
    digest: u64,
    order: u64,
    /// The newest sign of life, and for how many looks there was none.
    seen_ns: u64,
    silent_looks: u32,
}

/// What a unit says.
#[derive(Debug, Default)]
struct Contents {
    texts: Vec<Text>,
    /// As they were fetched, until they are kept for the next service.
    fetched: Option<Fetched>,
    /// Nobody carries it any more.
    leaves: bool,
}

/// The documents of one text.
#[derive(Debug)]
struct Text {
    name: String,
    kind: Option<String>,
    documents: Vec<Node>,
}

/// Where a source stands.
#[derive(Debug)]
struct Poll {
    identity: u64,
    due: Nanos,
    /// The question under way.
    asked: Option<u32>,
    etag: Vec<u8>,
    /// The files of an index, while they are read.
    look: Option<Look>,
    /// The hash of what was seen last, taken up or refused; 0 for nothing.
    digest: u64,
    /// The hash of what was seen once.
    unsettled: u64,
    /// Since when it fails, and when the log will say so.
    failing: Option<(Nanos, Nanos)>,
    has_complained: bool,
}

/// An index that is being read.
#[derive(Debug)]
struct Look {
    /// The last one first.
    todo: Vec<IndexedFile>,
    texts: Vec<FetchedText>,
}

/// What an answer has brought.
#[derive(Debug)]
pub(super) enum News {
    /// Nothing new.
    Nothing,
    /// Unit so-and-so has new contents.
    Unit(usize),
    /// What cannot be used.
    Refused(Refusals),
}

impl Sources {
    /// Those of a configuration; none has been asked yet.
    pub(super) fn new(clock: &Clock, config: &ServiceConfig) -> Self {
        let poll = |source: &SourceConfig| Poll {
            identity: clock.hash(identity(source).as_bytes()),
            due: Nanos::default(),
            asked: None,
            etag: Vec::new(),
            look: None,
            digest: 0,
            unsettled: 0,
            failing: None,
            has_complained: false,
        };
        Self {
            units: config.sources.iter().map(|_| Unit::default()).collect(),
            polls: config.sources.iter().map(poll).collect(),
            last_id: 0,
        }
    }

    /// What is to be asked now.
    pub(super) fn next_fetch<'a>(
        &'a mut self,
        now: Nanos,
        config: &'a ServiceConfig,
    ) -> Option<Fetch<'a>> {
        let (poll, source) =
            self.polls.iter_mut().zip(&config.sources).find(|(poll, _)| {
                poll.asked.is_none() && (poll.look.is_some() || now >= poll.due)
            })?;
        self.last_id = self.last_id.wrapping_add(1);
        poll.asked = Some(self.last_id);
        let file = poll.look.as_ref().and_then(|look| look.todo.last());
        Some(Fetch {
            id: self.last_id,
            cluster: &source.cluster,
            authority: &source.authority,
            path: file.map_or(source.path.as_str(), |file| &file.path),
            etag: if source.is_index { &[] } else { &poll.etag },
            headers: &source.headers,
        })
    }

    /// When a source is to be asked again, if it has any.
    pub(super) fn next_due(&self) -> Option<Nanos> {
        self.polls.iter().filter(|poll| poll.asked.is_none()).map(|poll| poll.due).min()
    }

    /// Takes what came of the question `id`.
    pub(super) fn take_answer(
        &mut self,
        now: Nanos,
        clock: &Clock,
        config: &ServiceConfig,
        id: u32,
        answer: Answer,
    ) -> News {
        let mut polls = self.polls.iter_mut().zip(&config.sources).zip(&mut self.units).enumerate();
        let asked = polls.find(|(_, ((poll, _), _))| poll.asked == Some(id));
        let Some((index, ((poll, source), unit))) = asked else { return News::Nothing };
        poll.asked = None;
        let Answer { status, etag, body } = answer;
        if status == 304 && poll.look.is_none() && !poll.etag.is_empty() {
            poll.succeed(now, source);
            return News::Nothing;
        }
        if status != 200 {
            poll.fail(now, source, unit, &status_text(status));
            return News::Nothing;
        }
        let mut texts = match &mut poll.look {
            None if source.is_index => {
                let files = match index_of(&body, &source.path) {
                    Ok(files) => files,
                    Err(refusals) => {
                        poll.succeed(now, source);
                        let digest = clock.hash(&body);
                        let is_new = core::mem::replace(&mut poll.digest, digest) != digest;
                        return if is_new { News::Refused(refusals) } else { News::Nothing };
                    }
                };
                let todo: Vec<IndexedFile> = files.into_iter().rev().collect();
                if !todo.is_empty() {
                    poll.look = Some(Look { todo, texts: Vec::new() });
                    return News::Nothing;
                }
                Vec::new()
            }
            None => {
                let name = format!("{}{}", source.name, source.path);
                let kind = source.list.map(str::to_string);
                Vec::from([FetchedText { name, kind, bytes: body }])
            }
            Some(look) => {
                if let Some(file) = look.todo.pop() {
                    let name = file.path.trim_start_matches('/').to_string();
                    let kind = file.list.or(source.list).map(str::to_string);
                    look.texts.push(FetchedText { name, kind, bytes: body });
                }
                if !look.todo.is_empty() {
                    return News::Nothing;
                }
                core::mem::take(&mut look.texts)
            }
        };
        poll.look = None;
        let size = texts.iter().fold(0_usize, |sum, text| sum.saturating_add(text.bytes.len()));
        if size > SOURCE_BYTES_MAX {
            poll.fail(now, source, unit, "has more than 8 MiB");
            return News::Nothing;
        }
        poll.succeed(now, source);
        poll.etag = etag;
        let digest = digest_of(clock, &texts);
        if digest == poll.digest {
            poll.unsettled = 0;
            return News::Nothing;
        }
        if source.is_index && unit.good.is_some() && poll.unsettled != digest {
            poll.unsettled = digest;
            poll.due = now + SETTLE;
            return News::Nothing;
        }
        poll.digest = digest;
        poll.unsettled = 0;
        unit.newest = None;
        let etag = poll.etag.clone();
        let identity = poll.identity;
        match parsed(&texts) {
            Ok(parsed) => {
                let texts = core::mem::take(&mut texts);
                let fetched = Some(Fetched { identity, etag, texts });
                unit.newest = Some(Contents { texts: parsed, fetched, leaves: false });
                News::Unit(index)
            }
            Err(refusals) => News::Refused(refusals),
        }
    }

    /// Whether any unit says what has not been taken up.
    pub(super) fn has_news(&self) -> bool {
        self.units.iter().any(|unit| unit.newest.is_some())
    }

    /// Makes `config.rules` of what all units say now; of what only `changed` newly says, if the others stand in the
    /// way. Nothing changes if that cannot be done either.
    pub(super) fn merge(
        &mut self,
        config: &mut ServiceConfig,
        changed: Option<usize>,
    ) -> Result<(), Refusals> {
        let mut only = None;
        let mut compiled = self.compile(config, None);
        if compiled.is_err() && changed.is_some() {
            let others = self.units.iter().enumerate();
            if others.filter(|(at, unit)| Some(*at) != changed && unit.newest.is_some()).count() > 0
            {
                only = changed;
                compiled = self.compile(config, changed);
            }
        }
        config.rules = compiled?;
        for (at, unit) in self.units.iter_mut().enumerate() {
            if only.is_none_or(|only| only == at)
                && let Some(newest) = unit.newest.take()
            {
                unit.good = Some(newest);
            }
        }
        config.pending = self
            .units
            .iter()
            .zip(&config.sources)
            .any(|(unit, source)| unit.good.is_none() && source.fallback.is_none());
        Ok(())
    }

    /// All rules, with what is new of all units, or of `only` this one.
    fn compile(&self, config: &ServiceConfig, only: Option<usize>) -> Result<Vec<Rule>, Refusals> {
        let names: Vec<String> =
            config.sources.iter().map(|source| fallback_name(&source.name)).collect();
        let mut sources =
            Vec::from([Source { documents: &config.documents, ..Source::of(SOURCE) }]);
        // Of what one plugin carries the newest comes first, and wins.
        let mut carried: Vec<(usize, &Unit)> =
            self.units.iter().enumerate().skip(self.polls.len()).collect();
        sort_by(&mut carried, |a, b| b.1.order().cmp(&a.1.order()));
        let polled = self.units.iter().enumerate().take(self.polls.len());
        for (at, unit) in carried.into_iter().chain(polled) {
            match unit.says(only.is_none_or(|only| only == at)) {
                Some(contents) => sources.extend(contents.texts.iter().map(|text| Source {
                    list: text.kind.as_deref(),
                    carrier: unit.carried.as_ref().map(|carried| carried.plugin.as_str()),
                    documents: &text.documents,
                    ..Source::of(&text.name)
                })),
                None => {
                    let fallback = config.sources.get(at).and_then(|of| of.fallback.as_deref());
                    if let (Some(documents), Some(name)) = (fallback, names.get(at)) {
                        sources.push(Source { documents, ..Source::of(name) });
                    }
                }
            }
        }
        compile_set(&sources, &config.settings)
    }

    /// Keeps what has newly come in force where the next service finds it, and forgets what has left.
    pub(super) fn keep<H: Host>(&mut self, host: &mut H, shared: &mut Shared) {
        for (place, unit) in (0..).zip(&mut self.units) {
            let fetched = unit.good.as_mut().and_then(|good| good.fetched.take());
            if let Some(fetched) = fetched {
                // If it cannot be kept, the next service has to wait for the source.
                let _ = shared.update(host, Key::Source(place), |_, written| {
                    fetched.encode(written);
                    (Then::Write, ())
                });
            }
        }
        let has_left = |unit: &Unit| unit.good.as_ref().is_some_and(|good| good.leaves);
        self.units.retain(|unit| unit.carried.is_none() || !has_left(unit));
    }

    /// Goes on with what the last service had fetched.
    pub(super) fn restore<H: Host>(&mut self, host: &mut H, shared: &mut Shared, clock: &Clock) {
        for ((place, poll), unit) in (0..).zip(&mut self.polls).zip(&mut self.units) {
            poll.asked = None;
            poll.look = None;
            poll.due = Nanos::default();
            let found = shared.read(host, Key::Source(place)).ok().flatten().map(Fetched::decode);
            let Some(Ok(fetched)) = found else { continue };
            if fetched.identity != poll.identity {
                continue;
            }
            if let Ok(texts) = parsed(&fetched.texts) {
                poll.digest = digest_of(clock, &fetched.texts);
                poll.etag = fetched.etag;
                unit.newest = Some(Contents { texts, ..Contents::default() });
            }
        }
    }

    /// Looks who carries what. Gives the units that have changed, and what cannot be used. `beats` says that a second has
    /// passed since the last such look.
    pub(super) fn look_at_carried<H: Host>(
        &mut self,
        host: &mut H,
        shared: &mut Shared,
        beats: bool,
    ) -> (Vec<usize>, Vec<Refusals>) {
        let found = shared.read(host, Key::Carried).ok().flatten().map(Directory::decode);
        let (mut changed, mut refused) = (Vec::new(), Vec::new());
        let directory = match found {
            Some(Ok(directory)) => directory,
            Some(Err(_)) => return (changed, refused),
            None => Directory::default(),
        };
        let mut silent = Vec::new();
        for (at, unit) in self.units.iter_mut().enumerate() {
            let Some(carried) = &mut unit.carried else { continue };
            let is_it =
                |set: &&CarriedSet| set.digest == carried.digest && set.plugin == carried.plugin;
            let set = directory.sets.iter().find(is_it);
            if let Some(set) = set {
                let seen_ns = set.holders.iter().map(|holder| holder.seen_ns).max().unwrap_or(0);
                let is_alive = seen_ns != carried.seen_ns;
                carried.seen_ns = seen_ns;
                carried.silent_looks = if is_alive {
                    0
                } else {
                    carried.silent_looks.saturating_add(u32::from(beats))
                };
                if carried.silent_looks > SILENT_LOOKS_MAX {
                    silent.push((carried.digest, carried.plugin.clone()));
                }
                if carried.order != set.order {
                    carried.order = set.order;
                    changed.push(at);
                }
            }
            let leaves = set.is_none() || carried.silent_looks > SILENT_LOOKS_MAX;
            let is_leaving = unit.newest.as_ref().is_some_and(|newest| newest.leaves);
            if leaves && !is_leaving {
                unit.newest = Some(Contents { leaves: true, ..Contents::default() });
                changed.push(at);
            } else if !leaves && is_leaving {
                unit.newest = None;
            }
        }
        if !silent.is_empty() {
            change_directory(host, shared, &mut |directory| {
                directory.sets.retain(|set| {
                    !silent
                        .iter()
                        .any(|(digest, plugin)| *digest == set.digest && *plugin == set.plugin)
                });
            });
        }
        for set in directory.sets.iter().filter(|set| set.stored) {
            let is_known = self
                .units
                .iter()
                .filter_map(|unit| unit.carried.as_ref())
                .any(|known| known.digest == set.digest && known.plugin == set.plugin);
            if is_known {
                continue;
            }
            let bytes = shared.read(host, Key::CarriedSet(set.slot)).ok().flatten();
            let configuration = bytes.map(Configuration::decode);
            let Some(Ok(configuration)) = configuration
                .filter(|found| found.as_ref().is_ok_and(|found| found.digest == set.digest))
            else {
                // Somebody was late and wrote over it: whoever carries it writes it again.
                change_directory(host, shared, &mut |directory| {
                    for stale in &mut directory.sets {
                        stale.stored &= stale.digest != set.digest;
                    }
                });
                continue;
            };
            let name = format!("filter {}", set.plugin);
            let mut contents = Contents::default();
            match document::configuration(&configuration.bytes) {
                Ok(node) => {
                    contents.texts.push(Text { name, kind: None, documents: rules_of(node) });
                }
                // The filter has read the same bytes.
                Err(error) => refused.push(error.in_source(&name).into()),
            }
            changed.push(self.units.len());
            self.units.push(Unit {
                carried: Some(Carried {
                    plugin: set.plugin.clone(),
                    digest: set.digest,
                    order: set.order,
                    seen_ns: 0,
                    silent_looks: 0,
                }),
                good: None,
                newest: Some(contents),
            });
        }
        (changed, refused)
    }
}

impl Unit {
    fn order(&self) -> u64 {
        self.carried.as_ref().map_or(0, |carried| carried.order)
    }

    fn says(&self, newest: bool) -> Option<&Contents> {
        self.newest.as_ref().filter(|_| newest).or(self.good.as_ref())
    }
}

impl Poll {
    fn succeed(&mut self, now: Nanos, source: &SourceConfig) {
        self.due = now + interval(source);
        self.failing = None;
        if core::mem::take(&mut self.has_complained) {
            log::info!("source {}: {} answers again", source.name, source.cluster);
        }
    }

    fn fail(&mut self, now: Nanos, source: &SourceConfig, unit: &Unit, problem: &str) {
        let path = self.look.as_ref().and_then(|look| look.todo.last());
        let path = path.map_or(source.path.as_str(), |file| &file.path);
        let (since, complain_at) = self.failing.unwrap_or((now, now + PATIENCE));
        let mut next = complain_at;
        if now >= complain_at {
            let stands = match (&unit.good, &source.fallback) {
                (Some(_), _) => "what it said last stays in force",
                (None, Some(_)) => "its fallback is in force",
                (None, None) => "it has no fallback, so beforeFirstRules holds",
            };
            log::warn!(
                "source {}: {path} of cluster {} {problem}; {stands}",
                source.name,
                source.cluster
            );
            self.has_complained = true;
            // Twice as late each time.
            next = now + now.since(since).min(COMPLAINT_PAUSE);
        }
        self.failing = Some((since, next));
        self.look = None;
        self.unsettled = 0;
        let pause = interval(source);
        self.due = now + if unit.good.is_none() { pause.min(FIRST_PAUSE) } else { pause };
    }
}

fn interval(source: &SourceConfig) -> Span {
    Span::from_millis(u64::from(source.interval_ms))
}

/// Where a source is, as one text.
pub(super) fn identity(source: &SourceConfig) -> String {
    let SourceConfig { name, cluster, path, authority, .. } = source;
    format!("{name} {cluster} {authority} {path} {}", source.list.unwrap_or_default())
}

fn status_text(status: u16) -> String {
    match status {
        0 => "does not answer in time, or there is no such cluster".to_string(),
        status => format!("answers {status}"),
    }
}

/// The files that an index names.
fn index_of(bytes: &[u8], path: &str) -> Result<Vec<IndexedFile>, Refusals> {
    let name = path.trim_start_matches('/');
    let node = document::configuration_text(bytes).map_err(|error| error.in_source(name))?;
    index_files(&node, path)
}

/// The documents of all texts, or what is wrong with them.
fn parsed(texts: &[FetchedText]) -> Result<Vec<Text>, Refusals> {
    let mut refusals = Refusals::default();
    let mut parsed = Vec::with_capacity(texts.len());
    for FetchedText { name, kind, bytes } in texts {
        match document::documents(bytes) {
            Ok(documents) => {
                parsed.push(Text { name: name.clone(), kind: kind.clone(), documents });
            }
            Err(error) => refusals.push(error.in_source(name)),
        }
    }
    if refusals.is_empty() { Ok(parsed) } else { Err(refusals) }
}

fn digest_of(clock: &Clock, texts: &[FetchedText]) -> u64 {
    let mut digests = Vec::new();
    for text in texts {
        for part in
            [text.name.as_bytes(), text.kind.as_deref().unwrap_or("").as_bytes(), &text.bytes]
        {
            digests.extend_from_slice(&clock.hash(part).to_le_bytes());
        }
    }
    // 0 stands for nothing.
    clock.hash(&digests).max(1)
}

/// The rule documents of a filter's configuration.
fn rules_of(configuration: Node) -> Vec<Node> {
    let Value::Map(map) = configuration.value else { return Vec::new() };
    match map.get("rules").map(|node| &node.value) {
        Some(Value::List(documents)) => documents.clone(),
        _ => Vec::new(),
    }
}
