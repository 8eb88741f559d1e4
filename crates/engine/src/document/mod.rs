//! From bytes to [`Node`]s: YAML, JSON and `google.protobuf.Struct`.
//!
//! What comes in was written by somebody else, and a panic here takes a whole VM with it: sizes, depth
//! and number of values are bounded before anything is built, and all that is wrong is an error that
//! says where.

use alloc::{
    format,
    string::{String, ToString as _},
};
use core::{error::Error, fmt};

use sentinel_core::rule::{
    error::{Reason, Refusal, Site},
    node::{Map, Node, Position, Value},
};

mod protobuf;
mod scalar;
mod yaml;

pub use protobuf::structure;
pub use yaml::documents;

/// The longest source, in bytes. A longer one is refused: no rule set that fits the rules' value in
/// shared data needs as much.
pub const SOURCE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why bytes are no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// Where, if the source has lines.
    pub position: Option<Position>,
    /// What is wrong and what would do.
    pub problem: String,
}

/// The configuration of a plugin as Envoy hands it over: a `google.protobuf.Struct` in its serialized
/// form, or a `StringValue`'s text, which is YAML or JSON. Nothing at all is an empty map.
pub fn configuration(bytes: &[u8]) -> Result<Node, DocumentError> {
    if bytes.is_empty() {
        return Ok(Node::new(Value::Map(Map::default())));
    }
    // A Struct begins with the tag of its first field. A text that begins with an empty line does so
    // too, but then reads as no Struct.
    if bytes.first() == Some(&STRUCT_TAG)
        && let Some(node) = structure(bytes)?
    {
        return Ok(node);
    }
    configuration_text(bytes)
}

/// One document that is a map, as YAML or JSON. Nothing at all is an empty map.
pub fn configuration_text(bytes: &[u8]) -> Result<Node, DocumentError> {
    let mut nodes = documents(bytes)?;
    let node = nodes.pop();
    if !nodes.is_empty() {
        return Err(DocumentError::new(None, "has several documents, but a configuration is one"));
    }
    match node {
        None => Ok(Node::new(Value::Map(Map::default()))),
        Some(Node { value: Value::Null, position }) => {
            Ok(Node { value: Value::Map(Map::default()), position })
        }
        Some(node @ Node { value: Value::Map(_), .. }) => Ok(node),
        Some(node) => {
            let problem = format!("the configuration is {}, but must be a map", node.describe());
            Err(DocumentError { position: node.position, problem })
        }
    }
}

/// Field 1 (`fields`), length-delimited.
const STRUCT_TAG: u8 = 0x0a;

impl DocumentError {
    fn new(position: Option<Position>, problem: &str) -> Self {
        Self { position, problem: problem.to_string() }
    }

    /// The error as one of `source`'s refusals.
    pub fn in_source(self, source: &str) -> Refusal {
        let site = Site { position: self.position, ..Site::of_source(source) };
        Refusal { site, field: String::new(), reason: Reason::Malformed(self.problem) }
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clone().in_source("").fmt(f)
    }
}

impl Error for DocumentError {}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeMap, vec::Vec};

    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::{ListValue, Struct, value::Kind};
    use sentinel_core::{
        config::{BeforeFirstRules, FilterConfig, Origin, ServiceConfig},
        param::Param,
        resource::ResourceFrom,
    };

    use super::*;

    fn structure_of(node: &Node) -> Kind {
        match &node.value {
            Value::Null => Kind::NullValue(0),
            Value::Bool(flag) => Kind::BoolValue(*flag),
            #[expect(clippy::cast_precision_loss, reason = "the numbers of these tests are small")]
            Value::Int(number) => Kind::NumberValue(*number as f64),
            Value::Float(number) => Kind::NumberValue(*number),
            Value::String(text) => Kind::StringValue(text.clone()),
            Value::List(list) => {
                let values =
                    list.iter().map(|node| prost_types::Value { kind: Some(structure_of(node)) });
                Kind::ListValue(ListValue { values: values.collect() })
            }
            Value::Map(map) => Kind::StructValue(Struct {
                fields: map
                    .entries()
                    .iter()
                    .map(|entry| {
                        let kind = Some(structure_of(&entry.value));
                        (entry.key.clone(), prost_types::Value { kind })
                    })
                    .collect::<BTreeMap<_, _>>(),
            }),
        }
    }

    /// `yaml` as Envoy would hand it over if it stood in a bootstrap as a Struct.
    fn as_struct(yaml: &str) -> Vec<u8> {
        let Kind::StructValue(structure) = structure_of(&configuration(yaml.as_bytes()).unwrap())
        else {
            panic!("a configuration is a map");
        };
        structure.encode_to_vec()
    }

    const SERVICE: &str = r#"
        rules:
        - apiVersion: datasource.sentinel.io/v1alpha1
          kind: FlowRules
          spec: {rules: [{id: hello, resource: "GET:/hello", threshold: 100, statIntervalInMs: 500}, {resource: half, threshold: 0.5}]}
        metrics: {resources: ["GET:/cart"], seriesMax: 500}
        envoyStats: {cluster: sentinel_admin}
        settings: {flushMs: 20, beforeFirstRules: block}
    "#;

    #[test]
    fn a_configuration_says_the_same_as_a_struct_as_yaml_and_as_json() {
        let json = r#"{"rules": [{"apiVersion": "datasource.sentinel.io/v1alpha1", "kind": "FlowRules", "spec": {"rules": [
            {"id": "hello", "resource": "GET:/hello", "threshold": 100, "statIntervalInMs": 500}, {"resource": "half", "threshold": 0.5}]}}],
            "metrics": {"resources": ["GET:/cart"], "seriesMax": 500}, "envoyStats": {"cluster": "sentinel_admin"}, "settings": {"flushMs": 20, "beforeFirstRules": "block"}}"#;
        let [yaml, json, structure] = [SERVICE.as_bytes(), json.as_bytes(), &as_struct(SERVICE)]
            .map(|bytes| ServiceConfig::from_node(&configuration(bytes).unwrap()).unwrap())
            // Where they stand differs.
            .map(|config| ServiceConfig { documents: Vec::new(), ..config });
        assert_eq!(yaml, json);
        assert_eq!(yaml, structure);
        assert_eq!(yaml.rules.len(), 2);
        assert_eq!(yaml.metrics_resources, ["GET:/cart"]);
        assert_eq!((yaml.series_max, yaml.settings.flush_ms), (500, 20));
        assert_eq!(yaml.envoy_stats.as_deref(), Some("sentinel_admin"));
        assert_eq!(yaml.settings.before_first_rules, BeforeFirstRules::Block);
    }

    #[test]
    fn no_configuration_is_an_empty_one() {
        for text in ["", "# nothing yet\n", "---\n", "{}"] {
            let node = configuration(text.as_bytes()).unwrap();
            assert_eq!(node.value, Value::Map(Map::default()), "{text:?}");
            assert_eq!(FilterConfig::from_node(&node).unwrap(), FilterConfig::default());
        }
    }

    #[test]
    fn a_text_that_begins_with_an_empty_line_is_no_struct() {
        let node = configuration(b"\n\nexposeRule: false\n").unwrap();
        assert!(!FilterConfig::from_node(&node).unwrap().expose_rule);
    }

    #[test]
    fn a_filter_is_told_how_requests_are_named() {
        let config = filter(
            "{resource: {from: path, templates: ['/users/{id}']}, origin: client_ip, beforeFirstRules: block,
             args: ['header:X-User', 'query:page', 'cookie:sid', client_ip, 'path_segment:2']}",
        );
        assert_eq!(*config.resource.from(), ResourceFrom::Path);
        assert_eq!(config.origin, Some(Origin::ClientIp));
        assert_eq!(config.before_first_rules, Some(BeforeFirstRules::Block));
        let [user, page, sid] = ["x-user", "page", "sid"].map(String::from);
        let args = [
            Param::Header(user),
            Param::Query(page),
            Param::Cookie(sid),
            Param::ClientIp,
            Param::PathSegment(2),
        ];
        assert_eq!(config.args, args);
        let config = filter("{resource: {from: {header: X-Resource}}, origin: {header: X-Origin}}");
        assert_eq!(*config.resource.from(), ResourceFrom::Header("x-resource".into()));
        assert_eq!(config.origin, Some(Origin::Header("x-origin".into())));
        assert_eq!(
            filter("settings: {beforeFirstRules: block}").before_first_rules,
            Some(BeforeFirstRules::Block)
        );
    }

    fn filter(yaml: &str) -> FilterConfig {
        FilterConfig::from_node(&configuration(yaml.as_bytes()).unwrap()).unwrap()
    }

    #[track_caller]
    fn check_filter(yaml: &str, expected: &Expect) {
        let refusals =
            FilterConfig::from_node(&configuration(yaml.as_bytes()).unwrap()).unwrap_err();
        expected.assert_eq(&refusals.to_string());
    }

    #[track_caller]
    fn check_service(bytes: &[u8], expected: &Expect) {
        let refusals = ServiceConfig::from_node(&configuration(bytes).unwrap()).unwrap_err();
        expected.assert_eq(&refusals.to_string());
    }

    #[test]
    fn all_that_is_wrong_with_a_filter_s_configuration_is_said_at_once() {
        check_filter(
            "resource:
  from: methodpath
  templates: [users, '/a/{b}.c', 7]
  name: ''
orgin: client_ip
origin: {headers: x}
args: ['header:', 'path_segment:0', 'body:x', 1]
rules: []
replyCluster: 7
exposeRule: 1
beforeFirstRules: wait
",
            &expect![[r#"
                configuration:2:9: `resource.from` is "methodpath", but must be method_path, path, route, cluster, authority or {header: a-name}
                configuration:3:15: `resource.templates[0]` is "users", which does not begin with a slash, but must be a path such as /users/{id}
                configuration:3:22: `resource.templates[1]` is "/a/{b}.c", in which a brace is only part of a segment, but must be a path such as /users/{id}
                configuration:3:34: `resource.templates[2]` is 7, but must be text
                configuration:4:9: `resource.name` is "", but must be a resource's name, such as tcp:mysql
                configuration:5:1: `orgin` is an unknown field; did you mean `origin`?
                configuration:6:9: `origin.header` is missing
                configuration:6:10: `origin.headers` is an unknown field; did you mean `header`?
                configuration:7:8: `args[0]` is "header:", but must be header:<name>, query:<name>, cookie:<name>, path_segment:<number from 1>, client_ip, sni or filter_chain
                configuration:7:19: `args[1]` is "path_segment:0", but must be header:<name>, query:<name>, cookie:<name>, path_segment:<number from 1>, client_ip, sni or filter_chain
                configuration:7:37: `args[2]` is "body:x", but must be header:<name>, query:<name>, cookie:<name>, path_segment:<number from 1>, client_ip, sni or filter_chain
                configuration:7:47: `args[3]` is 1, but must be text
                configuration:9:15: `replyCluster` is 7, but must be text: put it in quotes
                configuration:10:13: `exposeRule` is 1, but must be true or false
                configuration:11:19: `beforeFirstRules` is "wait", but must be pass or block"#]],
        );
        check_filter(
            "resource: {from: route, templates: ['/a']}",
            &expect![
                "configuration:1:36: `resource.templates` is a list, but must be left out, unless `from` is method_path or path"
            ],
        );
    }

    #[test]
    fn all_that_is_wrong_with_the_service_s_configuration_is_said_at_once() {
        let yaml = "rules:
- {apiVersion: v1, kind: FlowRules, spec: {rules: [{resource: a, threshold: -1}]}}
sources: [{name: shop}]
metrics: {resources: ['', GET:/a], series: 1, seriesMax: 1}
envoyStats: {cluster: '', path: /stats}
settings: {flushMs: 0, refreshms: 10, rulesMax: many, decisionsTtlMs: 2000.5}
";
        check_service(
            yaml.as_bytes(),
            &expect![[r#"
                configuration:2:16: document 1 (FlowRules): `apiVersion` is "v1", but must be datasource.sentinel.io/v1alpha1
                configuration:2:77: document 1 (FlowRules): rules[0] (a): `threshold` is -1, but must be 0 or more
                configuration:3:11: `sources[0].http` or `file` must say where the rules are, one of the two
                configuration:4:23: `metrics.resources[0]` is 0 bytes long, but must be 1 to 256 (nameBytesMax)
                configuration:4:36: `metrics.series` is an unknown field
                configuration:4:58: `metrics.seriesMax` is 1, but must be a whole number from 100 to 1000000
                configuration:5:23: `envoyStats.cluster` is "", but must be the name of a cluster that reaches Envoy's own admin endpoint
                configuration:5:27: `envoyStats.path` is an unknown field
                configuration:6:21: `settings.flushMs` is 0, but must be a whole number from 5 to 1000
                configuration:6:24: `settings.refreshms` is an unknown field; did you mean `refreshMs`?
                configuration:6:49: `settings.rulesMax` is "many", but must be a whole number from 1 to 100000
                configuration:6:71: `settings.decisionsTtlMs` is 2000.5, but must be a whole number from 1500 to 3600000"#]],
        );
        // A Struct has no lines, but the fields are named all the same.
        check_service(
            &as_struct(yaml),
            &expect![[r#"
                configuration: `settings.refreshms` is an unknown field; did you mean `refreshMs`?
                configuration: `settings.decisionsTtlMs` is 2000.5, but must be a whole number from 1500 to 3600000
                configuration: `settings.flushMs` is 0, but must be a whole number from 5 to 1000
                configuration: `settings.rulesMax` is "many", but must be a whole number from 1 to 100000
                configuration: `sources[0].http` or `file` must say where the rules are, one of the two
                configuration: `envoyStats.path` is an unknown field
                configuration: `envoyStats.cluster` is "", but must be the name of a cluster that reaches Envoy's own admin endpoint
                configuration: `metrics.series` is an unknown field
                configuration: `metrics.resources[0]` is 0 bytes long, but must be 1 to 256 (nameBytesMax)
                configuration: `metrics.seriesMax` is 1, but must be a whole number from 100 to 1000000
                configuration: document 1 (FlowRules): `apiVersion` is "v1", but must be datasource.sentinel.io/v1alpha1
                configuration: document 1 (FlowRules): rules[0] (a): `threshold` is -1, but must be 0 or more"#]],
        );
    }

    #[test]
    fn a_configuration_is_one_map() {
        for (text, problem) in [
            ("a: 1\n---\nb: 1", expect!["has several documents, but a configuration is one"]),
            ("[1]", expect!["line 1, column 1: the configuration is a list, but must be a map"]),
            (
                "\n\u{8}hello",
                expect!["line 2, column 1: the control character U+0008 may not stand here"],
            ),
        ] {
            problem.assert_eq(&configuration(text.as_bytes()).unwrap_err().to_string());
        }
    }

    #[test]
    fn a_struct_that_is_too_deep_is_refused() {
        let deep = |depth| {
            let list = (0..depth).fold(Kind::NullValue(0), |inner, _| {
                Kind::ListValue(ListValue {
                    values: [prost_types::Value { kind: Some(inner) }].into(),
                })
            });
            let fields = BTreeMap::from([("a".into(), prost_types::Value { kind: Some(list) })]);
            configuration(&Struct { fields }.encode_to_vec())
        };
        assert!(deep(10).is_ok());
        assert!(deep(33).is_err());
        assert!(deep(1_000).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_configuration_or_an_error(mut bytes: Vec<u8>, as_struct: bool) {
            if as_struct && !bytes.is_empty() {
                bytes[0] = STRUCT_TAG;
            }
            if let Ok(node) = configuration(&bytes) {
                let _ = ServiceConfig::from_node(&node);
                let _ = FilterConfig::from_node(&node);
            }
        }

        #[test]
        fn a_damaged_struct_is_a_configuration_or_an_error(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = as_struct(SERVICE);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for bytes in [&bytes, &bytes[..cut.index(bytes.len())]] {
                if let Ok(node) = configuration(bytes) {
                    let _ = ServiceConfig::from_node(&node);
                }
            }
        }
    }
}
