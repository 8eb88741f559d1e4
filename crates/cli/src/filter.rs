//! How a filter names requests: its configuration, by itself or inside Envoy's.
//!
//! Envoy's files are read as Envoy reads them, with anchors and aliases, which rule documents may not have; a
//! plugin's configuration is read by the code that the filter reads it with.

use std::{fs, path::Path};

use sentinel_core::{
    config::FilterConfig,
    rule::{
        error::{Reason, Refusal, Refusals, Site},
        node::Node,
    },
};
use sentinel_engine::document;
use serde_json::Value;

/// A filter of Sentinel's.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// What its listener and the plugin are called, if Envoy's configuration says so.
    pub(crate) name: String,
    /// What it is told.
    pub(crate) config: FilterConfig,
}

/// Fields that only Envoy's own files have at their top.
const ENVOY_FIELDS: [&str; 8] = [
    "admin",
    "node",
    "static_resources",
    "dynamic_resources",
    "bootstrap_extensions",
    "resources",
    "filter_chains",
    "http_filters",
];

/// Envoy's Wasm filters, by the end of their types.
const WASM_FILTERS: [&str; 2] =
    ["envoy.extensions.filters.http.wasm.v3.Wasm", "envoy.extensions.filters.network.wasm.v3.Wasm"];

/// The filters that `file` configures: one if it is a plugin's configuration, and all of Sentinel's if it is one of
/// Envoy's files.
pub(crate) fn filters(file: &Path) -> Result<Vec<Filter>, Refusals> {
    let name = file.display().to_string();
    let bytes =
        fs::read(file).map_err(|error| refusal(&name, format!("cannot be read: {error}")))?;
    filters_of(&bytes, &name)
}

/// The filters of a text that errors call `name`.
pub(crate) fn filters_of(bytes: &[u8], name: &str) -> Result<Vec<Filter>, Refusals> {
    let value: Value = serde_norway::from_slice(bytes)
        .map_err(|error| refusal(name, format!("is neither YAML nor JSON: {error}")))?;
    let mut plugins = Vec::new();
    find(&value, "", &mut plugins);
    let is_envoy_s = value
        .as_object()
        .is_some_and(|map| ENVOY_FIELDS.iter().any(|field| map.contains_key(*field)));
    if plugins.is_empty() && !is_envoy_s {
        let node = document::configuration(bytes).map_err(|error| error.in_source(name))?;
        let config = FilterConfig::from_node(&node).map_err(|refusals| within(&refusals, name))?;
        return Ok(vec![Filter { name: String::new(), config }]);
    }
    let mut filters = Vec::new();
    for plugin in &plugins {
        match plugin.filter(name) {
            Ok(filter) => filters.push((filter, plugin.is_named)),
            Err(refusals) if plugin.is_named => return Err(refusals),
            // Somebody else's.
            Err(_) => {}
        }
    }
    let any_named = filters.iter().any(|(_, is_named)| *is_named);
    let mut filters: Vec<Filter> = filters
        .into_iter()
        .filter(|(_, is_named)| *is_named || !any_named)
        .map(|(filter, _)| filter)
        .collect();
    if filters.iter().any(|filter| !is_for_looking(&filter.config)) {
        filters.retain(|filter| !is_for_looking(&filter.config));
    }
    if filters.is_empty() {
        let sentence = "has no Wasm filter with a configuration of Sentinel's: name the bootstrap or listener that has \
                        one, or a file with the plugin's configuration alone";
        return Err(refusal(name, sentence.to_owned()).into());
    }
    Ok(filters)
}

/// Whether a filter does nothing but show the console: it stands on a listener of its own, whose requests nobody means.
fn is_for_looking(config: &FilterConfig) -> bool {
    config.console.is_some()
        && FilterConfig { console: None, ..config.clone() } == FilterConfig::default()
}

/// A plugin of a Wasm filter, whoever's it is.
struct Plugin<'a> {
    name: String,
    /// Whether it calls itself Sentinel's, so that what is wrong with it matters.
    is_named: bool,
    config: &'a Value,
}

/// All Wasm filters under `value`, which stands in a listener called `listener`.
fn find<'a>(value: &'a Value, listener: &str, plugins: &mut Vec<Plugin<'a>>) {
    match value {
        Value::Object(map) => {
            let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
            let listener = if map.contains_key("filter_chains") { text("name") } else { listener };
            // `type_url` is that of a `TypedStruct`, whose message is its `value`.
            let of = [("@type", Some(value)), ("type_url", map.get("value"))].into_iter().find_map(
                |(field, message)| {
                    let is_wasm = WASM_FILTERS.iter().any(|end| text(field).ends_with(end));
                    message.filter(|_| is_wasm)?.get("config")
                },
            );
            if let Some(config) = of {
                let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
                let name = [listener, name].into_iter().filter(|part| !part.is_empty());
                let code = config.pointer("/vm_config/code").map(Value::to_string);
                plugins.push(Plugin {
                    name: name.collect::<Vec<_>>().join("/"),
                    is_named: [config.get("name"), config.pointer("/vm_config/vm_id")]
                        .into_iter()
                        .flatten()
                        .map(Value::to_string)
                        .chain(code)
                        .any(|text| text.to_ascii_lowercase().contains("sentinel")),
                    config,
                });
                return;
            }
            map.values().for_each(|value| find(value, listener, plugins));
        }
        Value::Array(list) => list.iter().for_each(|value| find(value, listener, plugins)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Plugin<'_> {
    fn filter(&self, file: &str) -> Result<Filter, Refusals> {
        let source = format!("{file} ({})", self.name);
        let text = match self.config.get("configuration") {
            None | Some(Value::Null) => String::new(),
            // A Struct, whose YAML stands under `value`, or a StringValue, whose text does.
            Some(any) => match any.get("value") {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
            },
        };
        let node: Node =
            document::configuration(text.as_bytes()).map_err(|error| error.in_source(&source))?;
        let config =
            FilterConfig::from_node(&node).map_err(|refusals| within(&refusals, &source))?;
        Ok(Filter { name: self.name.clone(), config })
    }
}

/// The same refusals, of a configuration that stands in `source`.
fn within(refusals: &Refusals, source: &str) -> Refusals {
    let mut renamed = Refusals::default();
    for refusal in refusals.shown() {
        let site = Site { source: source.to_owned(), ..refusal.site.clone() };
        renamed.push(Refusal { site, ..refusal.clone() });
    }
    renamed
}

fn refusal(source: &str, sentence: String) -> Refusal {
    Refusal {
        site: Site::of_source(source),
        field: String::new(),
        reason: Reason::Malformed(sentence),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use sentinel_core::resource::ResourceFrom;

    use super::*;

    #[track_caller]
    fn refused(text: &str, expected: &Expect) {
        expected.assert_eq(&filters_of(text.as_bytes(), "f.yaml").unwrap_err().to_string());
    }

    #[test]
    fn the_shipped_bootstrap_has_one_filter() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../envoy/envoy.yaml");
        let filters = filters(&file).unwrap();
        assert_eq!(filters.len(), 1);
        assert_eq!(filters[0].name, "ingress/sentinel_filter");
        assert_eq!(*filters[0].config.resource.from(), ResourceFrom::MethodPath);
        assert_eq!(filters[0].config.args.len(), 2);
    }

    #[test]
    fn a_plugin_s_configuration_is_a_filter_by_itself() {
        let filters = filters_of(b"resource: {from: path}\nargs: [client_ip]\n", "f.yaml").unwrap();
        assert_eq!(filters.len(), 1);
        assert_eq!(*filters[0].config.resource.from(), ResourceFrom::Path);
        assert_eq!(filters_of(b"", "f.yaml").unwrap()[0].config, FilterConfig::default());
        refused(
            "resource: {from: paths}\n",
            &expect![
                "f.yaml:1:18: `resource.from` is \"paths\", but must be method_path, path, route, cluster, authority or {header: a-name}"
            ],
        );
        refused(
            "a: [",
            &expect![
                "f.yaml: is neither YAML nor JSON: did not find expected node content at line 2 column 1, while parsing a flow node"
            ],
        );
    }

    fn listener(filters: &[&str]) -> String {
        let filters = filters.join(",");
        format!(
            r#"{{"resources": [{{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "in",
                "filter_chains": [{{"filters": [{{"typed_config": {{"http_filters": [{filters}]}}}}]}}]}}]}}"#
        )
    }

    fn wasm(name: &str, configuration: &str) -> String {
        format!(
            r#"{{"name": "x", "typed_config": {{"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {{"name": "{name}", "configuration": {configuration}}}}}}}"#
        )
    }

    const STRUCT: &str = r#"{"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"resource": {"from": "route"}}}"#;
    const TEXT: &str = r#"{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "resource: {from: path}"}"#;
    const OTHER: &str = r#"{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "{\"upstream\": 1}"}"#;

    #[test]
    fn every_filter_of_sentinel_s_is_found_and_nobody_else_s() {
        let text = listener(&[&wasm("a", STRUCT), &wasm("b", TEXT), &wasm("c", OTHER)]);
        let filters = filters_of(text.as_bytes(), "lds.yaml").unwrap();
        let found: Vec<_> = filters
            .iter()
            .map(|filter| (filter.name.as_str(), filter.config.resource.from()))
            .collect();
        assert_eq!(found, [("in/a", &ResourceFrom::Route), ("in/b", &ResourceFrom::Path)]);
        // What calls itself Sentinel's is meant, and not what merely could be.
        let text = listener(&[&wasm("a", "null"), &wasm("sentinel", TEXT)]);
        let filters = filters_of(text.as_bytes(), "lds.yaml").unwrap();
        assert_eq!(filters.len(), 1);
        assert_eq!(filters[0].name, "in/sentinel");
    }

    #[test]
    fn a_filter_that_only_shows_the_console_is_not_meant_beside_others() {
        let console = r#"{"value": {"console": {"path": "/sentinel"}}}"#;
        let text = listener(&[&wasm("a", console), &wasm("b", TEXT)]);
        let names = |text: &str| -> Vec<String> {
            let filters = filters_of(text.as_bytes(), "lds.yaml").unwrap();
            filters.into_iter().map(|filter| filter.name).collect()
        };
        assert_eq!(names(&text), ["in/b"]);
        assert_eq!(names(&listener(&[&wasm("a", console)])), ["in/a"]);
        let both =
            r#"{"value": {"console": {"path": "/sentinel"}, "resource": {"from": "route"}}}"#;
        assert_eq!(names(&listener(&[&wasm("a", both), &wasm("b", TEXT)])), ["in/a", "in/b"]);
    }

    #[test]
    fn a_filter_of_sentinel_s_that_is_wrong_is_no_stranger_s() {
        refused(
            &listener(&[&wasm("Sentinel", OTHER)]),
            &expect!["f.yaml (in/Sentinel):1:2: `upstream` is an unknown field"],
        );
        refused(
            &listener(&[&wasm("c", OTHER)]),
            &expect![
                "f.yaml: has no Wasm filter with a configuration of Sentinel's: name the bootstrap or listener that has one, or a file with the plugin's configuration alone"
            ],
        );
        refused(
            "static_resources: {}\n",
            &expect![
                "f.yaml: has no Wasm filter with a configuration of Sentinel's: name the bootstrap or listener that has one, or a file with the plugin's configuration alone"
            ],
        );
    }
}
