//! What holds for any document, however it is made.

use super::*;

/// The names and values that rule documents of one kind are made of.
fn words_of(fields: &[&'static [&'static str]]) -> Vec<&'static str> {
    let mut words: Vec<&'static str> = fields.concat();
    words.extend([
        "*",
        "",
        "Direct",
        "WarmUp",
        "MemoryAdaptive",
        "Throttling",
        "AssociatedResource",
        "QPS",
        "Concurrency",
        "ErrorRatio",
        "ErrorCount",
        "SlowRequestRatio",
        "pass",
        "a/{b}",
        "header:x",
        "KindInt",
        "KindFloat64",
        "5xx",
        "CpuUsage",
        "InboundQPS",
        "BBR",
        "ApiGroup",
        "Regex",
        "Header",
        "other",
        "(",
        "30s",
        "60%",
        "RequestAmount",
        "ErrorRequestRatio",
        "CpuPercentage",
        "ReturnProvidedResponse",
    ]);
    words
}

/// A tree of `words` and of other names and values.
fn any_node(words: Vec<&'static str>) -> impl Strategy<Value = Node> {
    let word = proptest::sample::select(words.clone()).prop_map(|word| Value::String(word.into()));
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1..3_i64).prop_map(Value::Int),
        (0..70_000_i64).prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        word,
        ".{0,8}".prop_map(Value::String),
    ];
    let key =
        prop_oneof![9 => proptest::sample::select(words).prop_map(String::from), 1 => ".{0,8}"];
    leaf.prop_map(Node::new).prop_recursive(5, 64, 12, move |inner| {
        let entries = proptest::collection::vec((key.clone(), inner.clone()), 0..20);
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Value::List),
            entries.prop_map(map_of),
        ]
        .prop_map(Node::new)
    })
}

/// A map of the first of `entries` under each name.
fn map_of(entries: Vec<(String, Node)>) -> Value {
    let mut first: Vec<Entry> = Vec::new();
    for (key, value) in entries {
        if first.iter().all(|entry| entry.key != key) {
            first.push(Entry { key, position: None, value });
        }
    }
    Value::Map(Map::from_entries(first).unwrap())
}

fn forms() -> Vec<(Form, &'static str, Vec<&'static str>)> {
    let nested = [
        RESPONSE_FIELDS,
        SPECIFIC_ITEM_FIELDS,
        PARAM_ITEM_FIELDS,
        PREDICATE_FIELDS,
        PARAM_FLOW_ITEM_FIELDS,
        &[
            "maxAllowedRt",
            "responseStatusCode",
            "responseContentBody",
            "responseAdditionalHeaders",
            "key",
            "value",
            "name",
            "kind",
            "targetResourceName",
        ],
    ];
    let words = |fields| words_of(&[nested.concat().leak(), fields]);
    let documents = KINDS.iter().map(|kind| (Form::Document, kind.name, words(kind.fields)));
    let lists = KINDS.iter().filter(|kind| !kind.list.is_empty());
    let lists = lists.flat_map(|kind| {
        [Form::Golang, Form::Attached].map(|form| (form, kind.list, words(kind.fields)))
    });
    let java = JAVA_KINDS.iter().map(|kind| (Form::Java, kind.list, words(kind.fields)));
    let opensergo = OPENSERGO_KINDS.iter().map(|kind| (Form::Document, kind.0, words(kind.1)));
    documents.chain(lists).chain(java).chain(opensergo).collect()
}

/// A rule, or the `spec` of one of OpenSergo's documents, with some of the fields of its kind.
fn any_body() -> impl Strategy<Value = (Form, &'static str, Vec<Node>)> {
    proptest::sample::select(forms()).prop_flat_map(|(form, kind, words)| {
        let entries = proptest::collection::vec(
            (proptest::sample::select(words.clone()).prop_map(String::from), any_node(words)),
            0..20,
        );
        let body = entries.prop_map(|entries| Node::new(map_of(entries)));
        (Just(form), Just(kind), proptest::collection::vec(body, 0..3))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_rules_or_refusals((form, kind, bodies) in any_body()) {
        let text = |text: &str| Node::new(Value::String(text.into()));
        let whole = |version: &str, spec: Node| {
            let metadata = map_of(vec![("name".into(), text("a"))]);
            Node::new(map_of(vec![
                ("apiVersion".into(), text(version)),
                ("kind".into(), text(kind)),
                ("metadata".into(), Node::new(metadata)),
                ("spec".into(), spec),
            ]))
        };
        let settings = Settings::DEFAULT;
        let list = Node::new(Value::List(bodies.clone()));
        let result = match form {
            Form::Attached => rules_from_golang(kind, &list, &settings),
            Form::Golang => {
                let source = Source { list: Some(kind), documents: &[list], ..Source::of("any") };
                compile_set(&[source], &settings)
            }
            Form::Java => rules_from_java(kind, &list, &settings),
            Form::Document => {
                let documents: Vec<Node> = if KINDS.iter().any(|known| known.name == kind) {
                    vec![whole(API_VERSION, Node::new(map_of(vec![("rules".into(), list)])))]
                } else {
                    bodies.into_iter().map(|body| whole(OPENSERGO_VERSION, body)).collect()
                };
                compile_set(&[Source { documents: &documents, ..Source::of("any") }], &settings)
            }
        };
        match result {
            Ok(rules) => prop_assert!(rules.iter().all(|rule| is_id(rule.id()) && !rule.resource().is_empty())),
            Err(refusals) => prop_assert!(refusals.lines().all(|line| !line.contains('\n'))),
        }
    }

    #[test]
    fn any_document_at_all_is_rules_or_refusals(documents in proptest::collection::vec(any_node(words_of(&[DOCUMENT_FIELDS])), 0..4)) {
        match compile_set(&[Source { documents: &documents, ..Source::of("any") }], &Settings::DEFAULT) {
            Ok(rules) => prop_assert!(rules.iter().all(|rule| is_id(rule.id()))),
            Err(refusals) => prop_assert!(refusals.lines().all(|line| !line.contains('\n'))),
        }
    }

    #[test]
    fn every_default_id_is_an_id(name in ".{1,100}", stat_interval_ms in 1..u32::MAX, origin in ".{1,100}") {
        let rule = FlowRule { stat_interval_ms, limit_app: LimitApp::Origin(origin), ..plain_flow(&name) };
        prop_assert!(is_id(&default_id(&Rule::Flow(rule))));
    }

}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

    /// Names and callers are made of the very words that ids are made of, so that what is one rule's name is often
    /// how another one's id would read.
    #[test]
    fn what_counts_differently_has_another_id(pairs in proptest::collection::vec(proptest::array::uniform2(any_flow_rule()), 100)) {
        for [a, b] in pairs {
            let id = |rule: &FlowRule| default_id(&Rule::Flow(rule.clone()));
            prop_assert_eq!(id(&a) == id(&b), a == b, "{} {}", id(&a), id(&b));
            let read_as_a_name = plain_flow(id(&a).strip_prefix("flow:").unwrap());
            prop_assert_eq!(id(&read_as_a_name) == id(&a), read_as_a_name.target == a.target, "{}", id(&a));
        }
    }
}

fn any_flow_rule() -> impl Strategy<Value = FlowRule> {
    let name = || "[ab]((:500ms)|(:origin\\.b)|(:ref\\.b)|(:throttling)|(:regex)|(:\\{)){0,2}";
    let maybe = || proptest::option::of(name());
    (name(), proptest::bool::ANY, proptest::bool::ANY, proptest::bool::ANY, maybe(), maybe())
        .prop_map(|(name, is_pattern, is_half, throttles, origin, ref_resource)| FlowRule {
            id: String::new(),
            target: if is_pattern { Target::Pattern(name) } else { Target::Resource(name) },
            stat_interval_ms: if is_half { 500 } else { 1_000 },
            control: if throttles {
                Control::Throttling { max_queueing_ms: 1 }
            } else {
                Control::Reject
            },
            limit_app: origin.map_or(LimitApp::Default, LimitApp::Origin),
            ref_resource,
            ..plain_flow("")
        })
}
