use std::{cell::Cell, sync::LazyLock};

use expect_test::{Expect, expect};
use jsonschema::{Registry, Validator};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sentinel_core::rule::{
    compile::{
        API_VERSION, OPENSERGO_VERSION, PARAM_ITEM_FIELDS, PREDICATE_FIELDS, RESPONSE_FIELDS,
        SPECIFIC_ITEM_FIELDS, Source, compile_set,
    },
    node::{Entry, Node},
};
use sentinel_engine::document;

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the code says, found out once for all tests.
fn schema(part: Part) -> &'static Value {
    static ALL: LazyLock<Vec<Value>> =
        LazyLock::new(|| Part::ALL.into_iter().map(Part::json).collect());
    &ALL[Part::ALL.iter().position(|other| *other == part).unwrap()]
}

/// The schemas, to hold documents against.
struct Schemas {
    rules: Validator,
    service: Validator,
    filter: Validator,
}

impl Schemas {
    fn new() -> Self {
        let rules = schema(Part::Rules);
        // As an editor finds a file beside the other.
        let base = "file:///rules/schema/";
        let registry = Registry::new().add(format!("{base}{DOCUMENT}"), rules).unwrap();
        let registry = registry.prepare().unwrap();
        let validator = |part: Part| {
            let options = jsonschema::options().with_registry(&registry);
            let uri = format!("{base}{}.json", part.name());
            options.with_base_uri(uri).build(schema(part)).unwrap()
        };
        Self {
            rules: validator(Part::Rules),
            service: validator(Part::Service),
            filter: validator(Part::Filter),
        }
    }
}

/// What a validator says against a document, a line each.
fn complaints(validator: &Validator, document: &Node) -> Vec<String> {
    let document = json(document);
    let errors = validator.iter_errors(&document);
    errors.map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn json(node: &Node) -> Value {
    match &node.value {
        node::Value::Null => Value::Null,
        node::Value::Bool(flag) => json!(flag),
        node::Value::Int(number) => json!(number),
        node::Value::Float(number) => json!(number),
        node::Value::String(text) => json!(text),
        node::Value::List(list) => list.iter().map(json).collect(),
        node::Value::Map(map) => {
            map.entries().iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect()
        }
    }
}

fn documents(text: &str) -> Vec<Node> {
    document::documents(text.as_bytes()).unwrap()
}

/// The example files, but for the index of them: name and documents.
fn examples() -> Vec<(String, Vec<Node>)> {
    let files = fs::read_dir(root().join("rules")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect();
    files.retain(|path| !path.ends_with("index.yaml"));
    files.sort();
    let read = |path: &PathBuf| (path.display().to_string(), fs::read_to_string(path).unwrap());
    files.iter().map(read).map(|(name, text)| (name, documents(&text))).collect()
}

/// What stands under `configuration` in the Envoy configuration that we ship, by the name of the plugin.
fn configurations() -> Vec<(String, Node)> {
    fn find(node: &Value, found: &mut Vec<(String, Node)>) {
        if let (Some(name), Some(value)) =
            (node["name"].as_str(), node["configuration"].get("value"))
        {
            let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            found.push((name.to_owned(), documents(&text).remove(0)));
        }
        if let Some(list) = node.as_array() {
            list.iter().for_each(|node| find(node, found));
        } else if let Some(map) = node.as_object() {
            map.values().for_each(|node| find(node, found));
        }
    }
    let text = fs::read_to_string(root().join("envoy/envoy.yaml")).unwrap();
    // Our reader takes no aliases.
    let text: String =
        text.lines().filter(|line| !line.contains("*sentinel")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    find(&json(&documents(&text.replace("&sentinel_service", ""))[0]), &mut found);
    found
}

#[test]
fn the_files_are_what_the_readers_ask_for() {
    for part in Part::ALL {
        let Some(file) = part.file() else { continue };
        let there = fs::read_to_string(root().join(&file)).unwrap_or_default();
        assert!(
            there == text(schema(part).clone()),
            "{} is not what the code says any more: run `cargo xtask schema --write`",
            file.display()
        );
    }
}

#[test]
fn the_schemas_are_schemas() {
    for part in Part::ALL.into_iter().filter(|part| part.file().is_some()) {
        assert!(jsonschema::meta::is_valid(schema(part)), "{}", part.name());
    }
}

#[test]
fn writing_twice_writes_once() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(write(folder.path()).unwrap().len(), 3);
    assert_eq!(write(folder.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn every_example_document_is_as_the_schema_says_and_names_it_to_editors() {
    let schemas = Schemas::new();
    let examples = examples();
    assert!(!examples.is_empty());
    for (name, documents) in examples {
        let text = fs::read_to_string(&name).unwrap();
        assert_eq!(
            text.lines().next(),
            Some("# yaml-language-server: $schema=schema/rules.json"),
            "{name}"
        );
        for document in documents {
            assert_eq!(complaints(&schemas.rules, &document), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn the_configurations_that_we_ship_are_as_the_schemas_say() {
    let schemas = Schemas::new();
    let found = configurations();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["sentinel_service", "sentinel_filter", "sentinel_filter"]);
    for (name, configuration) in &found {
        let schema = if name == "sentinel_filter" { &schemas.filter } else { &schemas.service };
        assert_eq!(complaints(schema, configuration), Vec::<String>::new(), "{name}");
    }
}

/// A document with one rule, or of OpenSergo's with this `spec`.
fn document_of(kind: &str, body: &str) -> String {
    if KINDS.iter().any(|known| known.name == kind) {
        return format!("{{apiVersion: {API_VERSION}, kind: {kind}, spec: {{rules: [{body}]}}}}");
    }
    format!(
        "{{apiVersion: {OPENSERGO_VERSION}, kind: {kind}, metadata: {{name: x}}, spec: {body}}}"
    )
}

fn compiles(documents: &[Node]) -> bool {
    compile_set(&[Source { documents, ..Source::of("a") }], &Settings::DEFAULT).is_ok()
}

#[test]
fn what_the_compiler_refuses_of_a_field_the_schema_refuses_too() {
    const WRONG: &[(&str, &[&str])] = &[
        (
            "FlowRules",
            &[
                "{resource: a}",
                "{threshold: 1}",
                "{resource: a, threshold: ~}",
                "{resource: '', threshold: 1}",
                "{resource: 7, threshold: 1}",
                "{resource: a, threshold: '1'}",
                "{resource: a, threshold: -1}",
                "{resource: a, threshold: 9007199254740994}",
                "{resource: a, threshold: 1, treshold: 1}",
                "{resource: a, threshold: 1, statIntervalInMs: 0.5}",
                "{resource: a, threshold: 1, statIntervalInMs: 4294967296}",
                "{resource: a, threshold: 1, controlBehavior: reject}",
                "{resource: a, threshold: 1, controlBehavior: 2}",
                "{resource: a, threshold: 1, shadow: yes}",
                "{resource: a, threshold: 1, id: 'a b'}",
                "{resource: a, threshold: 1, onServiceLoss: open}",
                "{resource: a, threshold: 1, onHostFailure: keep}",
                "{resource: a, threshold: 1, response: []}",
                "{resource: a, threshold: 1, response: {status: 99}}",
                "{resource: a, threshold: 1, response: {text: no}}",
                "{resource: a, threshold: 1, response: {headers: {x-a: 1}}}",
                "{resource: a, threshold: 1, response: {headers: {'x a': b}}}",
                "{resource: a, threshold: 1, tokenCalculateStrategy: WarmUp}",
                "{resource: a, threshold: 1, tokenCalculateStrategy: WarmUp, warmUpPeriodSec: 0}",
                "{resource: a, tokenCalculateStrategy: 2}",
                "{resource: a, tokenCalculateStrategy: MemoryAdaptive, lowMemUsageThreshold: 9, highMemUsageThreshold: 0, \
                  memLowWaterMarkBytes: 1, memHighWaterMarkBytes: 2}",
                "{resource: a, threshold: 1, relationStrategy: AssociatedResource}",
                "{resource: a, threshold: 1, relationStrategy: 1, refResource: ''}",
                "a",
                "~",
            ],
        ),
        (
            "IsolationRules",
            &["{resource: a, threshold: 0}", "{resource: a, threshold: 1, metricType: QPS}"],
        ),
        (
            "HotspotRules",
            &[
                "{resource: a, threshold: 1}",
                "{resource: a, metricType: QPS, threshold: 1}",
                "{resource: a, metricType: 1, threshold: 1, durationInSec: 0}",
                "{resource: a, metricType: Concurrency, threshold: 1.5}",
                "{resource: a, metricType: Concurrency, threshold: 1, regex: true}",
                "{resource: a, metricType: Concurrency, threshold: 1, paramKey: 'head:x'}",
                "{resource: a, metricType: Concurrency, threshold: 1, paramKey: 'path_segment:0'}",
                "{resource: a, metricType: Concurrency, threshold: 1, paramIndex: 2147483648}",
                "{resource: a, metricType: Concurrency, threshold: 1, overflow: drop}",
                "{resource: a, metricType: Concurrency, threshold: 1, specificItems: {}}",
                "{resource: a, metricType: Concurrency, threshold: 1, specificItems: [{valKind: KindInt, valStr: '1'}]}",
                "{resource: a, metricType: Concurrency, threshold: 1, specificItems: [{valKind: 4, valStr: '1', threshold: 1}]}",
                "{resource: a, metricType: Concurrency, threshold: 1, specificItems: [{valKind: 0, valStr: 1, threshold: 1}]}",
            ],
        ),
        (
            "CircuitBreakerRules",
            &[
                "{resource: a, threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1}",
                "{resource: a, strategy: ErrorRatio, threshold: 101, retryTimeoutMs: 1, statIntervalMs: 1}",
                "{resource: a, strategy: 0, threshold: 0.5, retryTimeoutMs: 1, statIntervalMs: 1}",
                "{resource: a, strategy: ErrorCount, threshold: 1, retryTimeoutMs: 0, statIntervalMs: 1}",
                "{resource: a, strategy: ErrorCount, threshold: 1, retryTimeoutMs: 1}",
                "{resource: a, strategy: ErrorCount, threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1, probeNum: 1001}",
                "{resource: a, strategy: ErrorCount, threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1, errorStatuses: ['6x']}",
                "{resource: a, strategy: ErrorCount, threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1, errorStatuses: [99]}",
                "{resource: a, strategy: ErrorCount, threshold: 1, retryTimeoutMs: 1, statIntervalMs: 1, grpcErrorStatuses: ['14']}",
            ],
        ),
        (
            "SystemRules",
            &[
                "{triggerCount: 1}",
                "{metricType: Load, triggerCount: 1}",
                "{metricType: 0, triggerCount: 1}",
                "{metricType: AvgRT}",
                "{metricType: CpuUsage, triggerCount: 0.5}",
                "{metricType: CpuUsage, triggerCount: 101}",
                "{metricType: AvgRT, triggerCount: 1, strategy: 2}",
                "{metricType: AvgRT, triggerCount: 1, resource: a}",
            ],
        ),
        (
            "AuthorityRules",
            &[
                "{resource: a}",
                "{resource: a, limitApp: ''}",
                "{resource: a, limitApp: ' , '}",
                "{resource: a, limitApp: b, strategy: Grey}",
            ],
        ),
        (
            "ApiDefinitions",
            &[
                "{apiName: a}",
                "{predicateItems: []}",
                "{apiName: a, predicateItems: [{matchStrategy: Exact}]}",
                "{apiName: a, predicateItems: [{pattern: /, matchStrategy: Contains}]}",
                "{apiName: a, predicateItems: [{pattern: /, path: /}]}",
                "{apiName: a, predicateItems: [], shadow: true}",
            ],
        ),
        (
            "GatewayFlowRules",
            &[
                "{resource: a}",
                "{resource: a, count: 1, intervalSec: 0}",
                "{resource: a, count: 1, controlBehavior: 1}",
                "{resource: a, count: 1, paramItem: {}}",
                "{resource: a, count: 1, paramItem: {parseStrategy: Header}}",
                "{resource: a, count: 1, paramItem: {parseStrategy: 0, index: x}}",
            ],
        ),
        (
            "RateLimitStrategy",
            &[
                "{threshold: 1, statDurationSeconds: 1}",
                "{metricType: RequestAmount, threshold: 1, statDurationSeconds: 0}",
                "{metricType: RequestAmount, threshold: 1, statDuration: 0s}",
                "{metricType: RequestAmount, threshold: 1, statDuration: 1 s}",
                "{metricType: RequestAmount, threshold: 1, statDurationSeconds: 1, limitMode: local}",
            ],
        ),
        (
            "ThrottlingStrategy",
            &["{queueTimeout: 0ms}", "{minIntervalOfRequests: 1s, queueTimeout: 1}"],
        ),
        ("ConcurrencyLimitStrategy", &["{}", "{maxConcurrency: 0}"]),
        (
            "CircuitBreakerStrategy",
            &[
                "{strategy: ErrorRequestRatio, triggerRatio: 60, statDuration: 1s, recoveryTimeout: 1s}",
                "{strategy: ErrorRatio, triggerRatio: 60%, statDuration: 1s, recoveryTimeout: 1s}",
                "{strategy: SlowRequestRatio, triggerRatio: 60%, statDuration: 1s, recoveryTimeout: 1s}",
                "{strategy: ErrorRequestRatio, triggerRatio: 60%, statDuration: 1s, recoveryTimeout: 0s}",
            ],
        ),
        (
            "AdaptiveOverloadProtectionStrategy",
            &["{metricType: CpuPercentage, triggerThreshold: much}"],
        ),
        (
            "HttpRequestFallbackAction",
            &[
                "{}",
                "{behavior: ReturnProvidedResponse, behaviorDesc: {responseStatusCode: 99}}",
                "{behavior: ReturnProvidedResponse, behaviorDesc: {responseAdditionalHeaders: [{key: a}]}}",
            ],
        ),
        ("FaultToleranceRule", &["{targets: []}", "{targets: [{}], strategies: []}"]),
    ];
    let schemas = Schemas::new();
    let mut texts: Vec<String> = WRONG
        .iter()
        .flat_map(|(kind, bodies)| bodies.iter().map(|body| document_of(kind, body)))
        .collect();
    texts.extend(
        [
            "[flow]",
            "{}",
            "{apiVersion: v1, kind: FlowRules, spec: {rules: []}}",
            "{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRule, spec: {rules: []}}",
            "{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules}",
            "{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules, spec: {}}",
            "{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules, spec: {rules: {}}}",
            "{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules, spec: {rules: []}, specs: 1}",
            "{apiVersion: datasource.sentinel.io/v1alpha1, kind: ThrottlingStrategy, metadata: {name: a}, \
              spec: {minIntervalOfRequests: 1s, queueTimeout: 1s}}",
            "{apiVersion: fault-tolerance.opensergo.io/v1alpha1, kind: ConcurrencyLimitStrategy, spec: {maxConcurrency: 1}}",
            "{apiVersion: fault-tolerance.opensergo.io/v1alpha1, kind: ConcurrencyLimitStrategy, metadata: {name: ''}, \
              spec: {maxConcurrency: 1}}",
        ]
        .map(ToOwned::to_owned),
    );
    for text in texts {
        let document = documents(&text).remove(0);
        assert!(!compiles(std::slice::from_ref(&document)), "the compiler takes\n{text}");
        assert_ne!(complaints(&schemas.rules, &document), Vec::<String>::new(), "\n{text}");
    }
}

#[test]
fn what_a_module_refuses_of_its_configuration_the_schema_refuses_too() {
    let schemas = Schemas::new();
    let service = [
        "{rule: []}",
        "{rules: {}}",
        "{rules: [{kind: FlowRules}]}",
        "{rules: [{apiVersion: datasource.sentinel.io/v1alpha1, kind: FlowRules, spec: {rules: [{resource: a}]}}]}",
        "{envoyStats: {}}",
        "{envoyStats: {cluster: ''}}",
        "{metrics: {seriesMax: 99}}",
        "{metrics: {resources: ['']}}",
        "{settings: {flushMs: 4}}",
        "{settings: {flushMs: 1001}}",
        "{settings: {flushMs: fast}}",
        "{settings: {flush: 5}}",
        "{settings: {beforeFirstRules: keep}}",
    ];
    for text in service {
        let node = documents(text).remove(0);
        assert!(ServiceConfig::from_node(&node).is_err(), "the service takes {text}");
        assert_ne!(complaints(&schemas.service, &node), Vec::<String>::new(), "{text}");
    }
    let filter = [
        "{resource: path}",
        "{resource: {from: host}}",
        "{resource: {from: {header: 'a b'}}}",
        "{resource: {from: {}}}",
        "{resource: {templates: ['users']}}",
        "{origin: ip}",
        "{origin: {headers: a}}",
        "{args: ['header:']}",
        "{args: [1]}",
        "{exposeRule: 1}",
        "{beforeFirstRules: 0}",
        "{settings: {flushMs: 5}}",
    ];
    for text in filter {
        let node = documents(text).remove(0);
        assert!(FilterConfig::from_node(&node).is_err(), "the filter takes {text}");
        assert_ne!(complaints(&schemas.filter, &node), Vec::<String>::new(), "{text}");
    }
}

/// A change of one place in a document: which, in what way, and the new value.
type Change = (prop::sample::Index, u8, &'static str, Node);

fn names_of_fields() -> Vec<&'static str> {
    let mut names =
        [RESPONSE_FIELDS, SPECIFIC_ITEM_FIELDS, PARAM_ITEM_FIELDS, PREDICATE_FIELDS].concat();
    names.extend(KINDS.iter().flat_map(|kind| kind.fields));
    names.extend(OPENSERGO_KINDS.iter().flat_map(|kind| kind.1));
    names.extend([
        "maxAllowedRt",
        "name",
        "kind",
        "key",
        "value",
        "metadata",
        "status",
        "errorType",
    ]);
    names
}

/// Values among which many are right somewhere, and many just not.
fn any_value() -> impl Strategy<Value = Node> {
    let texts = [
        "",
        "a",
        "*",
        "(",
        "default",
        "other",
        "shop, app",
        " ,",
        "GET:/hello",
        "header:x-user",
        "query:a",
        "path_segment:2",
        "client_ip",
        "60%",
        " 60 %",
        "+.5e1%",
        "101%",
        "500ms",
        "0s",
        "1d",
        "503",
        "500-599",
        " +500 - 0599 ",
        "5xx",
        "05xx",
        "true",
        "1.5",
        "7",
        "WarmUp",
        "MemoryAdaptive",
        "Direct",
        "Throttling",
        "Reject",
        "AssociatedResource",
        "QPS",
        "Concurrency",
        "ErrorRatio",
        "ErrorCount",
        "SlowRequestRatio",
        "ErrorRequestRatio",
        "pass",
        "block",
        "keep",
        "share",
        "KindInt",
        "KindBool",
        "KindFloat64",
        "CpuUsage",
        "AvgRT",
        "InboundQPS",
        "BBR",
        "NoAdaptive",
        "ApiGroup",
        "RouteId",
        "Regex",
        "Prefix",
        "Contains",
        "Exact",
        "Header",
        "Host",
        "ClientIp",
        "Cookie",
        "Black",
        "Local",
        "NONE",
        "x\ny",
    ];
    let text =
        prop::sample::select(texts.to_vec()).prop_map(|text| node::Value::String(text.into()));
    let number = prop::sample::select(vec![
        -2_147_483_649,
        -2,
        -1,
        0,
        1,
        2,
        3,
        4,
        5,
        50,
        99,
        100,
        101,
        200,
        503,
        599,
        600,
        999,
        1_000,
        1_001,
        10_000,
        4_294_967,
        4_294_968,
        4_294_967_295,
        4_294_967_296,
        1 << 53,
        (1 << 53) + 2,
    ]);
    let leaf = prop_oneof![
        1 => Just(node::Value::Null),
        1 => any::<bool>().prop_map(node::Value::Bool),
        4 => number.prop_map(node::Value::Int),
        1 => prop::sample::select(vec![-0.5, 0.5, 1.5, 1e300]).prop_map(node::Value::Float),
        5 => text,
    ]
    .prop_map(Node::new);
    let list = prop::collection::vec(leaf.clone(), 0..3).prop_map(node::Value::List);
    let names = prop::sample::select(names_of_fields());
    let map = prop::collection::vec((names, leaf.clone()), 0..3).prop_map(map_of);
    prop_oneof![8 => leaf, 1 => list.prop_map(Node::new), 1 => map.prop_map(Node::new)]
}

fn map_of(entries: Vec<(&'static str, Node)>) -> node::Value {
    let mut map = node::Value::Map(node::Map::default());
    for (name, value) in entries {
        explore::place(&mut map, name, &value.value);
    }
    map
}

fn any_changes() -> impl Strategy<Value = Vec<Change>> {
    let name = prop::sample::select(names_of_fields());
    prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, name, any_value()), 1..4)
}

/// How many values there are in `node`, itself included.
fn size(node: &Node) -> usize {
    if let node::Value::List(list) = &node.value {
        return 1 + list.iter().map(size).sum::<usize>();
    }
    let node::Value::Map(map) = &node.value else { return 1 };
    1 + map.entries().iter().map(|entry| size(&entry.value)).sum::<usize>()
}

/// Changes the value that is the `at`th in `node`: replaces it, adds a field to it, or takes the last one away. What is
/// left of `at` behind it; `None`: it was there.
fn change(node: &mut Node, at: usize, how: u8, name: &str, value: &Node) -> Option<usize> {
    if at == 0 {
        if how > 0
            && let node::Value::Map(map) = &mut node.value
        {
            let mut entries = map.entries().to_vec();
            entries.pop();
            if how == 1 {
                *map = node::Map::from_entries(entries).unwrap();
            } else {
                explore::place(&mut node.value, name, &value.value);
            }
        } else {
            node.value = value.value.clone();
        }
        return None;
    }
    let mut left = Some(at - 1);
    let mut inside = |inner: &mut Node| {
        if let Some(at) = left {
            left = change(inner, at, how, name, value);
        }
    };
    if let node::Value::List(list) = &mut node.value {
        list.iter_mut().for_each(inside);
    } else if let node::Value::Map(map) = &mut node.value {
        let mut entries: Vec<Entry> = map.entries().to_vec();
        entries.iter_mut().for_each(|entry| inside(&mut entry.value));
        *map = node::Map::from_entries(entries).unwrap();
    }
    left
}

/// Changes documents in many ways, and holds those that `takes` still takes against the schema. `bases` are sets of
/// documents, of which one is changed.
#[track_caller]
fn check_changed(bases: &[Vec<Node>], takes: &dyn Fn(&[Node]) -> bool, schema: &Validator) {
    let (all, taken) = (Cell::new(0), Cell::new(0));
    let pick = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any_changes());
    let config = Config { failure_persistence: None, cases: 6_000, ..Config::default() };
    TestRunner::new(config)
        .run(&pick, |(set, document, changes)| {
            let mut set = set.get(bases).clone();
            let index = document.index(set.len());
            for (at, how, name, value) in changes {
                let at = at.index(size(&set[index]));
                change(&mut set[index], at, how, name, &value);
            }
            all.set(all.get() + 1);
            if takes(&set) {
                taken.set(taken.get() + 1);
                let found = complaints(schema, &set[index]);
                prop_assert!(found.is_empty(), "{}\n{}", json(&set[index]), found.join("\n"));
            }
            Ok(())
        })
        .unwrap();
    assert!(taken.get() * 20 > all.get(), "only {} of {} were taken", taken.get(), all.get());
}

#[test]
fn what_the_compiler_takes_the_schema_takes() {
    let bases: Vec<Vec<Node>> = examples().into_iter().map(|(_, documents)| documents).collect();
    check_changed(&bases, &|set| compiles(set), &Schemas::new().rules);
}

#[test]
fn what_the_service_takes_the_schema_takes() {
    let full = r#"{rules: [{apiVersion: datasource.sentinel.io/v1alpha1, kind: SystemRules, spec: {rules: []}}], envoyStats: {cluster: a},
        metrics: {resources: [a, b], seriesMax: 1000}, settings: {flushMs: 10, waitingMax: 5, beforeFirstRules: block}}"#;
    let takes = |set: &[Node]| ServiceConfig::from_node(&set[0]).is_ok();
    check_changed(&[documents("{}"), documents(full)], &takes, &Schemas::new().service);
}

#[test]
fn what_the_filter_takes_the_schema_takes() {
    let full = r#"{resource: {from: path, templates: ["/a/{b}"]}, origin: client_ip, args: ["header:x", client_ip], exposeRule: false,
        beforeFirstRules: pass, settings: {beforeFirstRules: block}}"#;
    let by_header = "{resource: {from: {header: x}}, origin: {header: y}}";
    let takes = |set: &[Node]| FilterConfig::from_node(&set[0]).is_ok();
    let bases = [documents("{}"), documents(full), documents(by_header)];
    check_changed(&bases, &takes, &Schemas::new().filter);
}

#[test]
fn a_default_that_the_schema_shows_is_as_good_as_none() {
    let schema = schema(Part::Rules);
    let mut checked = 0;
    for (_, set) in examples() {
        let rules =
            compile_set(&[Source { documents: &set, ..Source::of("a") }], &Settings::DEFAULT);
        for index in 0..set.len() {
            let kind = json(&set[index])[KIND].clone();
            let fields = schema.pointer(&format!(
                "/definitions/{}/properties/rules/items/properties",
                kind.as_str().unwrap()
            ));
            for (name, field) in fields.and_then(Value::as_object).into_iter().flatten() {
                let Some(default) = field.get("default") else { continue };
                let mut changed = set.clone();
                let mut document = json(&set[index]);
                for rule in document["spec"]["rules"].as_array_mut().unwrap() {
                    // An index beside a key is where to look if the key has no value.
                    let is_beside = name == "paramIndex" && rule.get("paramKey").is_some();
                    if rule.get(name).is_none() && !is_beside {
                        rule[name] = default.clone();
                        checked += 1;
                    }
                }
                changed[index] = documents(&document.to_string()).remove(0);
                let with = compile_set(
                    &[Source { documents: &changed, ..Source::of("a") }],
                    &Settings::DEFAULT,
                );
                assert_eq!(with, rules, "{kind} `{name}`: {default}");
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

/// Every field of a schema: its path, and the field.
fn fields_of(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        found.push((path.clone(), field.clone()));
        fields_of(field, &path, found);
        fields_of(&field["items"], &format!("{path}[]"), found);
        for one in field["anyOf"].as_array().into_iter().flatten() {
            fields_of(one, &path, found);
        }
    }
}

fn all_fields() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for part in [Part::Rules, Part::Service, Part::Filter] {
        let schema = schema(part);
        fields_of(schema, part.name(), &mut found);
        for (kind, definition) in schema["definitions"].as_object().into_iter().flatten() {
            found.push((kind.clone(), definition.clone()));
            fields_of(definition, kind, &mut found);
        }
    }
    found
}

/// A field that nobody asks for may be anything: so this says what nobody looks at, or what a reader forgets to say.
#[test]
fn only_what_nobody_looks_at_may_be_anything() {
    let says_nothing = |field: &Value| {
        let keys = field.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        keys.filter(|key| *key != "description").count() == 0
            || field.get("items") == Some(&json!({}))
    };
    let open = all_fields().into_iter().filter(|(_, field)| says_nothing(field));
    let open: Vec<String> = open.map(|(path, _)| path).collect();
    expect![[r#"
        rules.metadata
        rules.spec
        rules.status
        FaultToleranceRule.selector"#]]
    .assert_eq(&open.join("\n"));
}

#[test]
fn every_field_is_explained() {
    let silent = all_fields().into_iter().filter(|(_, field)| {
        field["description"].as_str().is_none_or(|text| text.trim().is_empty())
    });
    let silent: Vec<String> = silent.map(|(path, _)| path).collect();
    assert_eq!(silent, Vec::<String>::new(), "rules/README.md has no row for these");
}

#[test]
fn a_number_says_its_meaning_unit_default_and_range() {
    let fields = all_fields();
    let said = |path: &str| {
        let field = &fields.iter().find(|(other, _)| other == path).unwrap().1;
        format!("{}\n", serde_json::to_string_pretty(&in_order(field.clone())).unwrap())
    };
    #[track_caller]
    fn check(said: &str, expected: &Expect) {
        expected.assert_eq(said);
    }
    check(
        &said("HotspotRules.rules[].maxQueueingTimeMs"),
        &expect![[r#"
        {
          "default": 0,
          "description": "of Throttling: who would wait as long or longer is refused\n\nmilliseconds; default: 0",
          "maximum": 4294967295,
          "minimum": 0,
          "type": [
            "integer",
            "null"
          ]
        }
    "#]],
    );
    check(
        &said("service.settings.flushMs"),
        &expect![[r#"
        {
          "default": 10,
          "description": "the least time between two frames of a worker about resources with a rule that the service evaluates\n\nmilliseconds; default: 10; range: 5 to 1000; at the bound: counts wait for the next frame; none is lost",
          "maximum": 1000,
          "minimum": 5,
          "type": [
            "integer",
            "null"
          ]
        }
    "#]],
    );
    check(
        &said("FlowRules.rules[].controlBehavior"),
        &expect![[r#"
        {
          "default": "Reject",
          "description": "what is too much is refused; or waits for its turn: one request each `statIntervalInMs / threshold`, none before its turn, each at most a tick after it\n\ndefault: `Reject`",
          "enum": [
            "Reject",
            "Throttling",
            0,
            1,
            null
          ]
        }
    "#]],
    );
}

#[test]
fn what_depends_on_a_choice_is_said_with_it() {
    let schema = schema(Part::Rules);
    let of = |kind: &str| {
        let rules = &schema["definitions"][kind]["properties"]["rules"]["items"]["allOf"];
        rules
            .as_array()
            .unwrap()
            .iter()
            .map(|one| format!("{}\n", in_order(one.clone())))
            .collect::<String>()
    };
    expect![[r#"
        {"if":{"properties":{"metricType":{"enum":["QPS",1]}},"required":["metricType"]},"then":{"properties":{"durationInSec":{"maximum":4294967295,"minimum":1,"type":"integer"}},"required":["durationInSec"]}}
    "#]].assert_eq(&of("HotspotRules"));
    expect![[r#"
        {"if":{"properties":{"strategy":{"enum":["SlowRequestRatio",0,"ErrorRatio",1]}},"required":["strategy"]},"then":{"properties":{"threshold":{"maximum":100,"minimum":0,"type":["integer","null"]}}}}
    "#]].assert_eq(&of("CircuitBreakerRules"));
    expect![[r#"
        {"if":{"properties":{"relationStrategy":{"enum":["AssociatedResource",1]}},"required":["relationStrategy"]},"then":{"properties":{"refResource":{"maxLength":1024,"minLength":1,"type":"string"}},"required":["refResource"]}}
        {"if":{"properties":{"tokenCalculateStrategy":{"enum":[null,"Direct",0]}}},"then":{"properties":{"threshold":{"not":{"type":"null"}}},"required":["threshold"]}}
        {"if":{"properties":{"tokenCalculateStrategy":{"enum":["WarmUp",1]}},"required":["tokenCalculateStrategy"]},"then":{"properties":{"threshold":{"not":{"type":"null"}},"warmUpPeriodSec":{"maximum":4294967295,"minimum":1,"type":"integer"}},"required":["threshold","warmUpPeriodSec"]}}
        {"if":{"properties":{"tokenCalculateStrategy":{"enum":["MemoryAdaptive",2]}},"required":["tokenCalculateStrategy"]},"then":{"properties":{"highMemUsageThreshold":{"maximum":9007199254740992,"minimum":1,"type":"integer"},"lowMemUsageThreshold":{"not":{"type":"null"}},"memHighWaterMarkBytes":{"maximum":9007199254740992,"minimum":1,"type":"integer"},"memLowWaterMarkBytes":{"not":{"type":"null"}}},"required":["lowMemUsageThreshold","highMemUsageThreshold","memLowWaterMarkBytes","memHighWaterMarkBytes"]}}
    "#]].assert_eq(&of("FlowRules"));
}

#[test]
fn the_settings_come_with_default_range_and_what_happens_at_the_bound() {
    let settings = schema(Part::Settings);
    let of = |name: &str| {
        let all = settings.as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap().clone()
    };
    for setting in SETTINGS.iter().chain([&SERIES_MAX]) {
        let one = of(setting.name);
        assert_eq!(one["default"], setting.default);
        assert_eq!(one["atBound"], setting.at_bound);
    }
    assert_eq!(of("beforeFirstRules")["default"], "pass");
    assert_eq!(of("beforeFirstRules")["values"], json!(["pass", "block"]));
}

/// Names of parts are what the command line calls them.
#[test]
fn all_is_each_part_under_its_name() {
    let together: Value = serde_json::from_str(&all()).unwrap();
    for part in Part::ALL {
        assert_eq!(&together[part.name()], schema(part));
    }
}

#[test]
fn every_way_to_write_a_value_is_taken() {
    const RIGHT: &[(&str, &[&str])] = &[
        (
            "CircuitBreakerRules",
            &[
                "{resource: a, strategy: 2, threshold: 0.5, retryTimeoutMs: 1, statIntervalMs: 1, \
                 errorStatuses: [503, '503', '500-599', ' 500 - 599 ', '5xx', '+5xx'], grpcErrorStatuses: [0, 14]}",
                "{resource: a, strategy: ErrorRatio, threshold: 100, retryTimeoutMs: 1, statIntervalMs: 1, shadow: ~, regex: false}",
            ],
        ),
        (
            "FlowRules",
            &[
                "{resource: a, threshold: 1, id: '', controlBehavior: 1, warmUpPeriodSec: 0, refResource: '', response: ~}",
                "{resource: a, tokenCalculateStrategy: 2, lowMemUsageThreshold: 2, highMemUsageThreshold: 1, \
                 memLowWaterMarkBytes: 1, memHighWaterMarkBytes: 2}",
            ],
        ),
        (
            "HotspotRules",
            &[
                "{resource: a, metricType: 0, threshold: 1, paramKey: client_ip}",
                "{resource: a, metricType: 0, threshold: 1, paramKey: ''}",
                "{resource: a, metricType: 0, threshold: 1, paramKey: 'cookie:a b'}",
                "{resource: a, metricType: 0, threshold: 1, paramKey: 'path_segment:1000'}",
            ],
        ),
        ("SystemRules", &["{metricType: 4, triggerCount: 80, strategy: -1}"]),
        (
            "RateLimitStrategy",
            &[
                "{metricType: RequestAmount, threshold: 1, statDuration: 1minute}",
                "{metricType: RequestAmount, threshold: 1, statDurationSeconds: 1, statDuration: ~}",
            ],
        ),
        ("ThrottlingStrategy", &["{minIntervalOfRequests: 020ms, queueTimeout: 0d}"]),
        (
            "AdaptiveOverloadProtectionStrategy",
            &["{metricType: CpuPercentage, triggerThreshold: ' +.5e1 %', adaptiveStrategy: NONE}"],
        ),
    ];
    let schemas = Schemas::new();
    for (kind, bodies) in RIGHT {
        for body in *bodies {
            let document = documents(&document_of(kind, body)).remove(0);
            assert!(compiles(std::slice::from_ref(&document)), "the compiler refuses {body}");
            assert_eq!(complaints(&schemas.rules, &document), Vec::<String>::new(), "{body}");
        }
    }
}
