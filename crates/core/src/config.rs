//! What an operator may set: the configurations of both modules.
//!
//! As in [`crate::rule`], a document is a [`Node`] in which nothing is trusted, and what comes out of
//! `from_node` cannot be wrong any more. The configuration of the service carries the [`Settings`] of
//! the whole proxy; they reach the workers with the rule set.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{
    param::Param,
    resource::{
        NAME_BYTES_LIMIT, ResourceConfig, ResourceFrom, TEMPLATE_BYTES_MAX, Template, TemplateError,
    },
    rule::{
        Rule,
        compile::{HEADER_NAME, Source, compile_set, is_header_name, is_id},
        error::{Reason, Refusals, Site},
        node::{Node, Value},
        read::{Choices, Fields, Text},
        shape::Shape,
    },
};

#[cfg(feature = "schema")]
use crate::rule::shape::Trace;

/// The fields of the service's configuration.
pub const SERVICE_FIELDS: &[&str] = &["rules", "sources", "metrics", "envoyStats", "settings"];

/// The fields of one of the service's `sources`.
pub const SOURCE_FIELDS: &[&str] = &["name", "http", "file", "intervalMs", "kind", "fallback"];

/// The fields of a source's `http`.
pub const HTTP_FIELDS: &[&str] = &["cluster", "path", "authority", "headers"];

/// The fields of a source's `file`.
pub const FILE_FIELDS: &[&str] = &["cluster", "path", "authority"];

/// The most sources; a configuration with more is refused.
pub const SOURCES_MAX: usize = 64;

/// The most `headers` of a source; one with more is refused.
pub const SOURCE_HEADERS_MAX: usize = 32;

/// The fields of the service's `metrics`.
pub const METRICS_FIELDS: &[&str] = &["resources", "seriesMax"];

/// The fields of the service's `envoyStats`.
pub const ENVOY_STATS_FIELDS: &[&str] = &["cluster"];

/// The fields of the filter's configuration.
pub const FILTER_FIELDS: &[&str] = &[
    "resource",
    "origin",
    "args",
    "rules",
    "replyCluster",
    "exposeRule",
    "beforeFirstRules",
    "settings",
    "console",
];

/// The fields of the filter's `console`.
pub const CONSOLE_FIELDS: &[&str] = &["path"];

/// The fields of the filter's `resource`.
pub const RESOURCE_FIELDS: &[&str] = &["from", "templates", "name"];

/// The most templates of a filter; a configuration with more is refused.
pub const TEMPLATES_MAX: usize = 256;

/// The most `args` of a filter; a configuration with more is refused.
pub const ARGS_MAX: usize = 32;

/// What the service is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceConfig {
    /// The rules to be in force: at first those that stand in the configuration, and its sources' fallbacks.
    pub rules: Vec<Rule>,
    /// The rule documents that stand in the configuration itself.
    pub documents: Vec<Node>,
    /// Where more rules are to be fetched.
    pub sources: Vec<SourceConfig>,
    /// Whether one of them has not been fetched yet and has no fallback.
    pub pending: bool,
    /// Resources without a rule that have series of their own.
    pub metrics_resources: Vec<String>,
    /// The most series that may be defined ([`SERIES_MAX`]).
    pub series_max: u32,
    /// The cluster of Envoy's own admin endpoint, where CPU and memory are asked.
    pub envoy_stats: Option<String>,
    /// What holds for the whole proxy.
    pub settings: Settings,
}

/// A place where rules are fetched again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// What errors call it; another one for each source.
    pub name: String,
    /// Whether `path` names an index of files, and not the rules themselves.
    pub is_index: bool,
    /// The cluster in Envoy's configuration that is asked.
    pub cluster: String,
    /// What it is asked for, from the slash on.
    pub path: String,
    /// The name it is asked by; the cluster's, where nothing is said.
    pub authority: String,
    /// Names, in lower case, and values of headers to send.
    pub headers: Vec<(String, String)>,
    /// `intervalMs`: from one look to the next.
    pub interval_ms: u32,
    /// `kind`: what a bare list of sentinel-golang's is, where its file's name does not say so.
    pub list: Option<&'static str>,
    /// The documents that count until the first successful look.
    pub fallback: Option<Vec<Node>>,
}

/// What the filter of one listener is told.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterConfig {
    /// How a request is named.
    pub resource: ResourceConfig,
    /// What a TCP connection is called; `None`: `tcp:<port of the listener>`.
    pub connection_name: Option<String>,
    /// Where a refused TCP client gets its answer; `None`: it is closed.
    pub reply_cluster: Option<String>,
    /// Who calls, for rules that ask; `None`: nobody knows.
    pub origin: Option<Origin>,
    /// What a rule's `paramIndex` counts.
    pub args: Vec<Param>,
    /// Whether clients see the rule's id and the resource.
    pub expose_rule: bool,
    /// What holds before the first rule set, if it is not what the service's settings say.
    pub before_first_rules: Option<BeforeFirstRules>,
    /// Whether it has rules of its own, which the service merges with all others.
    pub carries_rules: bool,
    /// The path under which the listener shows what is in force, without a slash at its end; `None`: nowhere.
    pub console: Option<String>,
}

/// What tells who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The value of a header, by its name in lower case.
    Header(String),
    /// The client's address.
    ClientIp,
}

/// What a worker does with requests while it has never seen a rule set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BeforeFirstRules {
    /// Passes them.
    #[default]
    Pass,
    /// Refuses them.
    Block,
}

/// What holds for the whole proxy. [`SETTINGS`] says what each is, and what happens at its bound.
#[expect(missing_docs, reason = "`SETTINGS` documents each field, for operators as well")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub before_first_rules: BeforeFirstRules,
    pub decisions_ttl_ms: u32,
    pub flush_ms: u32,
    pub refresh_ms: u32,
    pub worker_ttl_ms: u32,
    pub orphan_ttl_ms: u32,
    pub waiting_max: u32,
    pub param_table_bytes: u32,
    pub resources_max: u32,
    pub rules_max: u32,
    pub name_bytes_max: u32,
    pub cpu_interval_ms: u32,
}

/// One number that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// As it stands in a configuration.
    pub name: &'static str,
    /// What holds if it does not stand there.
    pub default: u32,
    /// The least it may be.
    pub min: u32,
    /// The most it may be.
    pub max: u32,
    /// What it is a number of.
    pub unit: &'static str,
    /// What it bounds.
    pub meaning: &'static str,
    /// What happens when the bound is reached.
    pub at_bound: &'static str,
}

/// `metrics.seriesMax`.
pub const SERIES_MAX: Setting = Setting {
    name: "seriesMax",
    default: 10_000,
    min: 100,
    max: 1_000_000,
    unit: "series",
    meaning: "statistics that the modules define in Envoy, the proxy's own totals excepted",
    at_bound: "resources and rules that come later count in `other`",
};

/// The numbers among the settings; besides them there is `beforeFirstRules`.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "decisionsTtlMs",
        default: 3_000,
        min: 1_500,
        max: 3_600_000,
        unit: "milliseconds",
        meaning: "how long the service may be silent before it counts as lost",
        at_bound: "each rule that needs the service does what its `onServiceLoss` says, and workers stop enqueuing",
    },
    Setting {
        name: "flushMs",
        default: 10,
        min: 5,
        max: 1_000,
        unit: "milliseconds",
        meaning: "the least time between two frames of a worker about resources with a rule that the service evaluates",
        at_bound: "counts wait for the next frame; none is lost",
    },
    Setting {
        name: "refreshMs",
        default: 10,
        min: 5,
        max: 1_000,
        unit: "milliseconds",
        meaning: "the least time between two looks of a worker at what the service has published",
        at_bound: "news waits for the next look",
    },
    Setting {
        name: "workerTtlMs",
        default: 30_000,
        min: 5_000,
        max: 3_600_000,
        unit: "milliseconds",
        meaning: "how long a worker may be silent before it counts as dead",
        at_bound: "what it holds is taken back, `orphanTtlMs` later",
    },
    Setting {
        name: "orphanTtlMs",
        default: 60_000,
        min: 0,
        max: 86_400_000,
        unit: "milliseconds",
        meaning: "how long requests of a dead worker may still run at the upstream: the longest route time-out",
        at_bound: "their permits are given to others",
    },
    Setting {
        name: "waitingMax",
        default: 1_000,
        min: 0,
        max: 100_000,
        unit: "requests of a worker",
        meaning: "requests that may wait for their pacing slot at a time",
        at_bound: "a request that would have to wait is refused",
    },
    Setting {
        name: "paramTableBytes",
        default: 64 * 1024 * 1024,
        min: 64 * 1024,
        max: 1024 * 1024 * 1024,
        unit: "bytes",
        meaning: "all tables of values together: hot parameters, and rules that count per matched resource, origin or group",
        at_bound: "a rule set that needs more is refused",
    },
    Setting {
        name: "resourcesMax",
        default: 10_000,
        min: 1,
        max: 100_000,
        unit: "resources",
        meaning: "resources with counts of their own: those that rules and `metrics.resources` name",
        at_bound: "those that come later count in `other`; their rules hold all the same",
    },
    Setting {
        name: "rulesMax",
        default: 10_000,
        min: 1,
        max: 100_000,
        unit: "rules",
        meaning: "rules of a set",
        at_bound: "a set with more is refused, and the one in force stays",
    },
    Setting {
        name: "nameBytesMax",
        default: 256,
        min: 16,
        max: NAME_BYTES_LIMIT,
        unit: "bytes",
        meaning: "the length of a resource's name in rules and `metrics.resources`",
        at_bound: "a rule with a longer one is refused; a request with a longer one matches no rule and counts in `other`",
    },
    Setting {
        name: "cpuIntervalMs",
        default: 1_000,
        min: 100,
        max: 60_000,
        unit: "milliseconds",
        meaning: "time between two readings of CPU and memory",
        at_bound: "the last reading stands",
    },
];

impl Settings {
    /// What holds where nothing is set, and before the first rule set.
    pub const DEFAULT: Self = Self {
        before_first_rules: BeforeFirstRules::Pass,
        decisions_ttl_ms: 3_000,
        flush_ms: 10,
        refresh_ms: 10,
        worker_ttl_ms: 30_000,
        orphan_ttl_ms: 60_000,
        waiting_max: 1_000,
        param_table_bytes: 64 * 1024 * 1024,
        resources_max: 10_000,
        rules_max: 10_000,
        name_bytes_max: 256,
        cpu_interval_ms: 1_000,
    };

    /// The setting called `name`, if it is a number.
    fn number_mut(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "decisionsTtlMs" => &mut self.decisions_ttl_ms,
            "flushMs" => &mut self.flush_ms,
            "refreshMs" => &mut self.refresh_ms,
            "workerTtlMs" => &mut self.worker_ttl_ms,
            "orphanTtlMs" => &mut self.orphan_ttl_ms,
            "waitingMax" => &mut self.waiting_max,
            "paramTableBytes" => &mut self.param_table_bytes,
            "resourcesMax" => &mut self.resources_max,
            "rulesMax" => &mut self.rules_max,
            "nameBytesMax" => &mut self.name_bytes_max,
            "cpuIntervalMs" => &mut self.cpu_interval_ms,
            _ => return None,
        })
    }

    fn read(configuration: &mut Fields<'_, '_>) -> Self {
        let mut settings = Self::DEFAULT;
        let known: Vec<&'static str> =
            SETTINGS.iter().map(|setting| setting.name).chain(["beforeFirstRules"]).collect();
        let Some(mut fields) = configuration.inside("settings", &known) else {
            return settings;
        };
        for setting in SETTINGS {
            if let Some(number) = fields.whole_u32(setting.name, setting.min..=setting.max)
                && let Some(place) = settings.number_mut(setting.name)
            {
                *place = number;
            }
        }
        settings.before_first_rules = before_first_rules(&mut fields).unwrap_or_default();
        settings
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl ServiceConfig {
    /// Reads the configuration of the service, or says everything that is wrong with it.
    pub fn from_node(node: &Node) -> Result<Self, Refusals> {
        let mut refusals = Refusals::default();
        let config = Self::read(node, &mut refusals);
        refusals.or(config)
    }

    /// What the reader asks of a configuration.
    #[cfg(feature = "schema")]
    pub fn trace(node: &Node) -> Trace {
        Trace::of(|refusals| drop(Self::read(node, refusals)))
    }

    fn read(node: &Node, refusals: &mut Refusals) -> Self {
        let site = Site::of_source(SOURCE);
        let mut config = Self { series_max: SERIES_MAX.default, ..Self::default() };
        let Some(mut fields) = Fields::open(node, "", SERVICE_FIELDS, &site, refusals) else {
            return config;
        };
        config.settings = Settings::read(&mut fields);
        config.sources = sources(&mut fields);
        config.pending = config.sources.iter().any(|source| source.fallback.is_none());
        if let Some(mut envoy_stats) = fields.inside("envoyStats", ENVOY_STATS_FIELDS) {
            envoy_stats.require("cluster");
            config.envoy_stats =
                envoy_stats.text_of("cluster", || Shape::SOME_TEXT).map(str::to_string);
            if config.envoy_stats.as_deref() == Some("") {
                envoy_stats.mismatch(
                    "cluster",
                    "the name of a cluster that reaches Envoy's own admin endpoint",
                );
            }
        }
        if let Some(mut metrics) = fields.inside("metrics", METRICS_FIELDS) {
            let name_bytes_max =
                usize::try_from(config.settings.name_bytes_max).unwrap_or(usize::MAX);
            let resources_max =
                usize::try_from(config.settings.resources_max).unwrap_or(usize::MAX);
            for Text { field, position, text } in
                metrics.texts("resources", resources_max, Some("resourcesMax"), || Shape::Text {
                    least: 1,
                    most: usize::try_from(NAME_BYTES_LIMIT).unwrap_or(usize::MAX),
                    pattern: "",
                })
            {
                if text.is_empty() || text.len() > name_bytes_max {
                    let found = format!("{} bytes long", text.len());
                    let allowed = format!("1 to {name_bytes_max} (nameBytesMax)");
                    metrics.refuse_at(position, &field, Reason::Mismatch { found, allowed });
                }
                config.metrics_resources.push(text.to_string());
            }
            let series = metrics.whole_u32(SERIES_MAX.name, SERIES_MAX.min..=SERIES_MAX.max);
            config.series_max = series.unwrap_or(SERIES_MAX.default);
        }
        config.documents = fields.documents("rules").to_vec();
        let names: Vec<String> =
            config.sources.iter().map(|source| fallback_name(&source.name)).collect();
        let fallbacks = config.sources.iter().zip(&names).filter_map(|(source, name)| {
            Some(Source { documents: source.fallback.as_deref()?, ..Source::of(name) })
        });
        let inline = Source { documents: &config.documents, ..Source::of(SOURCE) };
        let sources: Vec<Source<'_>> = [inline].into_iter().chain(fallbacks).collect();
        match compile_set(&sources, &config.settings) {
            Ok(rules) => config.rules = rules,
            Err(more) => refusals.append(more),
        }
        config
    }
}

impl FilterConfig {
    /// Reads the configuration of the filter, or says everything that is wrong with it, its rules included.
    pub fn from_node(node: &Node) -> Result<Self, Refusals> {
        Self::from_node_with(node, true)
    }

    /// Reads a configuration whose rules are known to be in order: they are not looked at again.
    pub fn from_checked_node(node: &Node) -> Result<Self, Refusals> {
        Self::from_node_with(node, false)
    }

    fn from_node_with(node: &Node, check_rules: bool) -> Result<Self, Refusals> {
        let mut refusals = Refusals::default();
        let config = Self::read(node, check_rules, &mut refusals);
        refusals.or(config)
    }

    /// What the reader asks of a configuration.
    #[cfg(feature = "schema")]
    pub fn trace(node: &Node) -> Trace {
        Trace::of(|refusals| drop(Self::read(node, true, refusals)))
    }

    fn read(node: &Node, check_rules: bool, refusals: &mut Refusals) -> Self {
        let site = Site::of_source(SOURCE);
        let mut config = Self::default();
        let Some(mut fields) = Fields::open(node, "", FILTER_FIELDS, &site, refusals) else {
            return config;
        };
        if let Some(mut resource) = fields.inside("resource", RESOURCE_FIELDS) {
            config.resource = resource_config(&mut resource);
            config.connection_name =
                some_name(&mut resource, "name", "a resource's name, such as tcp:mysql");
        }
        config.origin = origin(&mut fields);
        config.args = args(&mut fields);
        config.reply_cluster = some_name(&mut fields, "replyCluster", "a cluster's name");
        let documents = fields.documents("rules");
        config.carries_rules = !documents.is_empty();
        config.expose_rule = fields.flag("exposeRule").unwrap_or(true);
        config.before_first_rules = before_first_rules(&mut fields);
        // As good as beside it: that is where the service's configuration has it.
        if let Some(mut settings) = fields.inside("settings", &["beforeFirstRules"]) {
            config.before_first_rules =
                before_first_rules(&mut settings).or(config.before_first_rules);
        }
        if let Some(mut console) = fields.inside("console", CONSOLE_FIELDS) {
            config.console = console_path(&mut console);
        }
        if check_rules {
            // The service's settings are not known here; it compiles the whole set again by them.
            let source = Source { documents, ..Source::of(SOURCE) };
            if let Err(more) = compile_set(&[source], &Settings::DEFAULT) {
                refusals.append(more);
            }
        }
        config
    }
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self {
            resource: ResourceConfig::default(),
            connection_name: None,
            reply_cluster: None,
            origin: None,
            args: Vec::new(),
            expose_rule: true,
            before_first_rules: None,
            carries_rules: false,
            console: None,
        }
    }
}

/// What errors call the configuration that Envoy hands over.
pub const SOURCE: &str = "configuration";

/// What errors call the fallback of the source `name`.
pub fn fallback_name(name: &str) -> String {
    format!("{SOURCE}, fallback of {name}")
}

/// What is said of the kind of a bare list: the names of sentinel-golang's lists.
static LISTS: Choices = &[
    ("flow", None),
    ("circuitbreaker", None),
    ("hotspot", None),
    ("isolation", None),
    ("system", None),
];

fn sources(configuration: &mut Fields<'_, '_>) -> Vec<SourceConfig> {
    let mut sources: Vec<SourceConfig> = Vec::new();
    for (index, node) in configuration.list_of("sources", SOURCES_MAX).iter().enumerate() {
        let Some(mut fields) = configuration.item("sources", index, node, SOURCE_FIELDS) else {
            continue;
        };
        fields.require("name");
        let name =
            fields.text_of("name", || Shape::text("^[A-Za-z0-9._:/-]{1,64}$")).unwrap_or_default();
        if fields.node("name").is_some() && !is_id(name) {
            fields.mismatch("name", "1 to 64 characters of A-Z, a-z, 0-9 and ._:/-");
        }
        if sources.iter().any(|other| other.name == name) {
            fields.mismatch("name", "another one for each source");
        }
        let http = fields.inside("http", HTTP_FIELDS).map(|mut at| source_at(&mut at, false));
        let file = fields.inside("file", FILE_FIELDS).map(|mut at| source_at(&mut at, true));
        if fields.node("http").is_some() == fields.node("file").is_some() {
            fields.object("http", "or `file` must say where the rules are, one of the two");
        }
        let list = fields.choice("kind", LISTS);
        let interval_ms = fields.whole_u32("intervalMs", SOURCE_INTERVAL_MS);
        let documents = fields.documents("fallback");
        let fallback = fields.node("fallback").map(|_| documents.to_vec());
        if let Some(mut source) = http.or(file) {
            source.name = name.to_string();
            source.list = list;
            source.fallback = fallback;
            source.interval_ms = interval_ms.unwrap_or(source.interval_ms);
            sources.push(source);
        }
    }
    sources
}

/// Where a source is.
fn source_at(fields: &mut Fields<'_, '_>, is_index: bool) -> SourceConfig {
    fields.require("cluster");
    let cluster = fields.text_of("cluster", || Shape::SOME_TEXT).unwrap_or_default();
    if fields.node("cluster").is_some() && cluster.is_empty() {
        fields.mismatch("cluster", "the name of a cluster in Envoy's configuration");
    }
    fields.require("path");
    let path = fields.text_of("path", || Shape::text("^/[!-~]*$")).unwrap_or_default();
    if fields.node("path").is_some() && !is_path(path) {
        fields.mismatch("path", "a path such as /rules/shop.yaml");
    }
    let authority = fields.some_text("authority").unwrap_or(cluster);
    SourceConfig {
        name: String::new(),
        is_index,
        cluster: cluster.to_string(),
        path: path.to_string(),
        authority: authority.to_string(),
        headers: if is_index { Vec::new() } else { source_headers(fields) },
        interval_ms: if is_index { 1_000 } else { 2_000 },
        list: None,
        fallback: None,
    }
}

/// Whether a request line can have this path.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// One file of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedFile {
    /// The file's path from the root of its server.
    pub path: String,
    /// What a bare list in it is, where the index says so.
    pub list: Option<&'static str>,
}

/// The most files of an index; one with more is refused.
pub const INDEX_FILES_MAX: usize = 256;

/// Reads an index of rule files, a map with the one field `files`; `path` is its own.
pub fn index_files(node: &Node, path: &str) -> Result<Vec<IndexedFile>, Refusals> {
    let site = Site::of_source(path.trim_start_matches('/'));
    let slash = path.bytes().rposition(|byte| byte == b'/').unwrap_or(0);
    let folder = path.get(..slash).unwrap_or_default();
    let mut refusals = Refusals::default();
    let mut files = Vec::new();
    if let Some(mut fields) = Fields::open(node, "", &["files"], &site, &mut refusals) {
        fields.require("files");
        for (index, node) in fields.list_of("files", INDEX_FILES_MAX).iter().enumerate() {
            let mut list = None;
            let name = if let Value::String(name) = &node.value {
                name.as_str()
            } else {
                let Some(mut file) = fields.item("files", index, node, &["path", "kind"]) else {
                    continue;
                };
                file.require("path");
                list = file.choice("kind", LISTS);
                file.text("path").unwrap_or_default()
            };
            let path = match name.strip_prefix('/') {
                Some(_) => name.to_string(),
                None => format!("{folder}/{name}"),
            };
            if name.is_empty() || !is_path(&path) {
                let found = Node::new(Value::String(name.to_string())).describe();
                let allowed = "a file's path without spaces, such as flow.yaml".to_string();
                let reason = Reason::Mismatch { found, allowed };
                fields.refuse_at(node.position, &format!("files[{index}]"), reason);
            }
            files.push(IndexedFile { path, list });
        }
    }
    refusals.or(files)
}

/// The range of a source's `intervalMs`.
pub const SOURCE_INTERVAL_MS: RangeInclusive<u32> = 20..=3_600_000;

fn source_headers(fields: &mut Fields<'_, '_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    fields.takes("headers", || Shape::Texts(SOURCE_HEADERS_MAX, HEADER_NAME));
    let Some(Value::Map(map)) = fields.node("headers").map(|node| &node.value) else {
        if fields.node("headers").is_some() {
            fields.mismatch("headers", "a map of names and texts");
        }
        return headers;
    };
    if map.entries().len() > SOURCE_HEADERS_MAX {
        let found = map.entries().len();
        let reason = Reason::TooMany { found, most: SOURCE_HEADERS_MAX, setting: None };
        fields.refuse("headers", reason);
        return headers;
    }
    for entry in map.entries() {
        let field = format!("headers.{}", entry.key);
        let mut refuse = |sentence: &str| {
            fields.refuse_at(entry.position, &field, Reason::Malformed(sentence.to_string()));
        };
        let Value::String(value) = &entry.value.value else {
            refuse("is not text: put it in quotes");
            continue;
        };
        if !is_header_name(&entry.key) || value.bytes().any(|byte| byte.is_ascii_control()) {
            refuse("is no header: a name, and text without control characters");
            continue;
        }
        headers.push((entry.key.to_ascii_lowercase(), value.clone()));
    }
    headers
}

static BEFORE_FIRST_RULES: Choices = &[("pass", None), ("block", None)];

fn before_first_rules(fields: &mut Fields<'_, '_>) -> Option<BeforeFirstRules> {
    fields.choice("beforeFirstRules", BEFORE_FIRST_RULES).map(|choice| match choice {
        "block" => BeforeFirstRules::Block,
        _ => BeforeFirstRules::Pass,
    })
}

fn console_path(fields: &mut Fields<'_, '_>) -> Option<String> {
    fields.require("path");
    let path = fields.text_of("path", || Shape::text("^/[!-~]*$"))?;
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#%\"\\".contains(&byte);
    // Nothing else than the console could be asked for under a lone slash.
    if !path.starts_with('/') || path.ends_with('/') || !path.bytes().all(is_plain) {
        fields.mismatch("path", "a path such as /sentinel, without a slash at its end");
        return None;
    }
    Some(path.to_string())
}

/// A name that may be left out, but not empty.
fn some_name(fields: &mut Fields<'_, '_>, field: &str, what: &str) -> Option<String> {
    let name = fields.text_of(field, || Shape::Text {
        least: 1,
        most: usize::try_from(NAME_BYTES_LIMIT).unwrap_or(usize::MAX),
        pattern: "",
    })?;
    if name.is_empty() || name.len() > usize::try_from(NAME_BYTES_LIMIT).unwrap_or(usize::MAX) {
        fields.mismatch(field, what);
    }
    Some(name.to_string())
}

fn resource_config(fields: &mut Fields<'_, '_>) -> ResourceConfig {
    let from = resource_from(fields).unwrap_or_default();
    let mut templates = Vec::new();
    for Text { field, position, text } in fields.texts("templates", TEMPLATES_MAX, None, || {
        Shape::Text { least: 1, most: TEMPLATE_BYTES_MAX, pattern: Template::PATTERN }
    }) {
        match Template::parse(text) {
            Ok(template) => templates.push(template),
            Err(error) => {
                let found = format!(
                    "{}, {}",
                    Node::new(Value::String(text.to_string())).describe(),
                    error.problem()
                );
                let allowed = TemplateError::ALLOWED.to_string();
                fields.refuse_at(position, &field, Reason::Mismatch { found, allowed });
            }
        }
    }
    if !templates.is_empty() && !matches!(from, ResourceFrom::MethodPath | ResourceFrom::Path) {
        let found = "a list".to_string();
        let allowed = "left out, unless `from` is method_path or path".to_string();
        fields.refuse("templates", Reason::Mismatch { found, allowed });
    }
    ResourceConfig::new(from, templates)
}

static FROM: &[(&str, ResourceFrom)] = &[
    ("method_path", ResourceFrom::MethodPath),
    ("path", ResourceFrom::Path),
    ("route", ResourceFrom::Route),
    ("cluster", ResourceFrom::Cluster),
    ("authority", ResourceFrom::Authority),
];

fn resource_from(fields: &mut Fields<'_, '_>) -> Option<ResourceFrom> {
    const ALLOWED: &str = "method_path, path, route, cluster, authority or {header: a-name}";

    fields.takes("from", || {
        let names = FROM.iter().map(|from| (from.0, None));
        Shape::AnyOf(Vec::from([Shape::Choice(names.collect()), Shape::Map]))
    });
    let node = fields.node("from")?;
    let Value::String(text) = &node.value else {
        return header(fields, "from", ALLOWED).map(ResourceFrom::Header);
    };
    let from = FROM.iter().find(|from| from.0 == text);
    if from.is_none() {
        fields.mismatch("from", ALLOWED);
    }
    from.map(|from| from.1.clone())
}

fn origin(fields: &mut Fields<'_, '_>) -> Option<Origin> {
    const ALLOWED: &str = "client_ip or {header: a-name}";

    fields.takes("origin", || {
        Shape::AnyOf(Vec::from([Shape::Choice(Vec::from([("client_ip", None)])), Shape::Map]))
    });
    let node = fields.node("origin")?;
    match &node.value {
        Value::String(text) if text == "client_ip" => Some(Origin::ClientIp),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::String(_)
        | Value::List(_)
        | Value::Map(_) => header(fields, "origin", ALLOWED).map(Origin::Header),
    }
}

/// The header in `{header: a-name}`, in lower case, which is how Envoy hands headers over.
fn header(fields: &mut Fields<'_, '_>, name: &str, allowed: &str) -> Option<String> {
    let node = fields.node(name)?;
    if !matches!(node.value, Value::Map(_)) {
        fields.mismatch(name, allowed);
        return None;
    }
    let mut map = fields.inside(name, &["header"])?;
    map.require("header");
    let header = map.text_of("header", || Shape::text(HEADER_NAME))?;
    if !is_header_name(header) {
        map.mismatch("header", "a header's name");
        return None;
    }
    Some(header.to_ascii_lowercase())
}

fn args(fields: &mut Fields<'_, '_>) -> Vec<Param> {
    let mut args = Vec::new();
    for Text { field, position, text } in
        fields.texts("args", ARGS_MAX, None, || Shape::text(Param::PATTERN))
    {
        match Param::parse(text) {
            Some(param) => args.push(param),
            None => {
                let found = Node::new(Value::String(text.to_string())).describe();
                let allowed = Param::FORMS.to_string();
                fields.refuse_at(position, &field, Reason::Mismatch { found, allowed });
            }
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_the_default_that_its_table_says() {
        let mut settings = Settings::DEFAULT;
        for setting in SETTINGS {
            assert!((setting.min..=setting.max).contains(&setting.default), "{}", setting.name);
            assert_eq!(
                settings.number_mut(setting.name).copied(),
                Some(setting.default),
                "{}",
                setting.name
            );
        }
        assert!((SERIES_MAX.min..=SERIES_MAX.max).contains(&SERIES_MAX.default));
    }
}
