//! `schema`: what may stand in rule documents and configurations, for editors and other tools.
//!
//! A JSON Schema says of a document what can be said of its fields alone, and it never refuses what the service takes. It is
//! made of what the readers themselves ask ([`explore`]) and of what `rules/README.md` says of each field ([`prose`]), so
//! that nobody has to keep it in step. It is of draft 7: the newest that every version of the YAML language server knows,
//! through which most editors read it.

mod explore;
mod prose;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use explore::{Condition, Field, Tree, join};
use prose::{Prose, Said};
use sentinel_core::{
    config::{FilterConfig, SERIES_MAX, SETTINGS, ServiceConfig, Settings},
    rule::{
        compile::{self, KINDS, OPENSERGO_KINDS},
        node,
        shape::Shape,
    },
};
use serde_json::{Map, Value, json};

/// A part of what can be said of documents and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The schema of one rule document.
    Rules,
    /// The schema of the service's configuration.
    Service,
    /// The schema of the filter's configuration.
    Filter,
    /// The settings: name, default, range and what happens at the bound.
    Settings,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 4] = [Self::Rules, Self::Service, Self::Filter, Self::Settings];

    /// What the part is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Service => "service",
            Self::Filter => "filter",
            Self::Settings => "settings",
        }
    }

    /// The part itself.
    pub fn json(self) -> Value {
        let prose = Prose::of(README);
        match self {
            Self::Rules => rules(&prose),
            Self::Service => {
                let tree = Tree::of(&ServiceConfig::trace, &BTreeMap::new());
                configuration("service", &tree, &prose)
            }
            Self::Filter => {
                let tree = Tree::of(&FilterConfig::trace, &BTreeMap::new());
                configuration("filter", &tree, &prose)
            }
            Self::Settings => settings(&prose),
        }
    }

    /// The part as the text of a file, names in alphabetical order.
    pub fn text(self) -> String {
        text(self.json())
    }

    /// Where the part stands in the project; the settings stand in the schema of the service's configuration.
    pub fn file(self) -> Option<PathBuf> {
        (self != Self::Settings).then(|| Path::new(FOLDER).join(format!("{}.json", self.name())))
    }
}

/// All parts by name, as text.
pub fn all() -> String {
    text(Part::ALL.into_iter().map(|part| (part.name().to_owned(), part.json())).collect())
}

/// Writes the schemas to where they stand in the project at `root`. The answer is the files that have changed.
///
/// # Errors
///
/// If a file cannot be written.
pub fn write(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut changed = Vec::new();
    for part in Part::ALL {
        let Some(file) = part.file() else { continue };
        let (path, text) = (root.join(&file), part.text());
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text)?;
        changed.push(file);
    }
    Ok(changed)
}

/// Where the schemas stand in the project. The schemas of the configurations name that of rule documents as a file beside
/// them.
const FOLDER: &str = "rules/schema";
const README: &str = include_str!("../../../../rules/README.md");
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
const DOCUMENT: &str = "rules.json";

/// What a schema cannot say.
const LIMITS: &str = "What this accepts may still be refused, for what no field shows by itself: ids that are not unique, names \
    that nothing has, bounds of the whole set. `cargo xtask check` says it all.";

fn text(value: Value) -> String {
    format!("{:#}\n", in_order(value))
}

/// The same with names in alphabetical order, whatever serde_json's map is in this build.
fn in_order(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> =
                map.into_iter().map(|(name, value)| (name, in_order(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(list) => list.into_iter().map(in_order).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// What stands in documents of one kind.
struct OfKind {
    kind: &'static str,
    properties: Map<String, Value>,
    required: BTreeSet<String>,
}

/// The schema of rule documents. What depends on the kind stands under `definitions`.
fn rules(prose: &Prose<'_>) -> Value {
    let sentinel = KINDS.iter().map(|kind| kind.name);
    let mut definitions = Map::new();
    let mut kinds: Vec<OfKind> = sentinel
        .map(|kind| of_kind(kind, &[kind, "Every rule", DOCUMENT_HEADING], prose, &mut definitions))
        .collect();
    for (kind, _) in OPENSERGO_KINDS {
        kinds.push(of_kind(kind, &[OPENSERGO], prose, &mut definitions));
    }
    // What is the same for all kinds is said once, without the kind.
    let first = kinds.first().map(|of| of.properties.clone()).unwrap_or_default();
    let is_common =
        |name: &String| kinds.iter().all(|of| of.properties.get(name) == first.get(name));
    let is_required = |name: &&String| kinds.iter().all(|of| of.required.contains(*name));
    let required: BTreeSet<&String> = first.keys().filter(is_required).collect();
    let mut properties = Map::new();
    for (name, one) in &first {
        let said = prose.said(&[DOCUMENT_HEADING], "", name);
        let one = if is_common(name) { one.clone() } else { json!({}) };
        properties.insert(name.clone(), described(one, said.as_ref()));
    }
    let versions = kinds.iter().filter_map(|of| of.properties.get("apiVersion")?.get("enum"));
    let versions: BTreeSet<&str> =
        versions.filter_map(Value::as_array).flatten().filter_map(Value::as_str).collect();
    if let Some(Value::Object(version)) = properties.get_mut("apiVersion") {
        version.insert("enum".to_owned(), versions.into_iter().collect());
    }
    let conditions = kinds.iter().map(|of| {
        let own = of.properties.iter().filter(|(name, _)| !is_common(name));
        let own: Map<String, Value> = own.map(|(name, one)| (name.clone(), one.clone())).collect();
        let required = of.required.iter().filter(|name| !required.contains(name));
        let required: Vec<&String> = required.collect();
        json!({
            "if": {"properties": {KIND: {"const": of.kind}}, "required": [KIND]},
            "then": {"properties": own, "required": required},
        })
    });
    let conditions: Vec<Value> = conditions.collect();
    json!({
        "$schema": DRAFT,
        "title": "Rule document of Sentinel for Envoy",
        "description": LIMITS,
        "type": ["object", "array", "null"],
        "properties": properties,
        "required": required,
        "additionalProperties": false,
        "allOf": conditions,
        // Which kind of rules a list has, its file's name says: only the compiler can look at their fields.
        "items": {"type": "object", "description": LIST},
        "definitions": definitions,
    })
}

/// What stands in documents of `kind`. Their `spec` goes to `definitions`.
fn of_kind(
    kind: &'static str,
    headings: &[&str],
    prose: &Prose<'_>,
    definitions: &mut Map<String, Value>,
) -> OfKind {
    let read = |document: &node::Node| compile::trace(document, &Settings::DEFAULT);
    let fixed = BTreeMap::from([(KIND.to_owned(), node::Value::String(kind.to_owned()))]);
    let tree = Tree::of(&read, &fixed);
    let schema = Schema { tree: &tree, prose, headings, kind };
    let mut of = OfKind { kind, properties: Map::new(), required: BTreeSet::new() };
    for field in schema.fields("") {
        let one = if field.name == SPEC {
            definitions.insert(kind.to_owned(), schema.field("", field));
            json!({"$ref": format!("#/definitions/{kind}")})
        } else {
            schema.value(&field.name, &field.shapes, field.needed)
        };
        of.properties.insert(field.name.clone(), one);
        if field.needed {
            of.required.insert(field.name.clone());
        }
    }
    of
}

const KIND: &str = "kind";
const LIST: &str = "A rule of one of sentinel-golang's JSON lists; of which, the file's name says, or the source's `kind`";
const SPEC: &str = "spec";
const OPENSERGO: &str = "OpenSergo";
const DOCUMENT_HEADING: &str = "A rule document";

fn configuration(of: &'static str, tree: &Tree, prose: &Prose<'_>) -> Value {
    let heading = format!("The {of}'s configuration");
    let schema = Schema { tree, prose, headings: &[&heading], kind: "" };
    let head = json!({
        "$schema": DRAFT,
        "title": format!("Configuration of the {of} of Sentinel for Envoy"),
        "description": LIMITS,
    });
    [head, schema.map("")].into_iter().filter_map(into_map).flatten().collect()
}

fn settings(prose: &Prose<'_>) -> Value {
    let numbers = SETTINGS.iter().map(|setting| (SETTINGS_FIELD, setting));
    let numbers = numbers.chain([("metrics", &SERIES_MAX)]).map(|(within, setting)| {
        json!({
            "name": setting.name,
            "in": within,
            "default": setting.default,
            "least": setting.min,
            "most": setting.max,
            "unit": setting.unit,
            "meaning": setting.meaning,
            "atBound": setting.at_bound,
        })
    });
    // The settings that are no numbers, as they are read.
    let tree = Tree::of(&ServiceConfig::trace, &BTreeMap::new());
    let others = tree.map(SETTINGS_FIELD).into_iter().flat_map(|map| &map.fields);
    let others = others.filter_map(|field| {
        let [Shape::Choice(choices)] = field.shapes.as_slice() else { return None };
        let said = prose.said(&[SERVICE], SETTINGS_FIELD, &field.name);
        let values: Vec<&str> = choices.iter().map(|choice| choice.0).collect();
        Some(json!({
            "name": field.name,
            "in": SETTINGS_FIELD,
            "default": said.as_ref().and_then(|said| said.default.clone()),
            "values": values,
            "meaning": said.map(|said| said.text),
        }))
    });
    numbers.chain(others).collect()
}

const SERVICE: &str = "The service's configuration";
const SETTINGS_FIELD: &str = "settings";

/// A schema that is being made.
struct Schema<'a> {
    tree: &'a Tree,
    prose: &'a Prose<'a>,
    /// Where in the document the fields are explained.
    headings: &'a [&'a str],
    /// The kind, of rule documents.
    kind: &'a str,
}

impl Schema<'_> {
    fn fields(&self, path: &str) -> &[Field] {
        self.tree.map(path).map(|map| map.fields.as_slice()).unwrap_or_default()
    }

    fn map(&self, path: &str) -> Value {
        let Some(map) = self.tree.map(path) else { return json!({"type": "object"}) };
        let properties: Map<String, Value> =
            map.fields.iter().map(|field| (field.name.clone(), self.field(path, field))).collect();
        let mut schema = Map::new();
        schema.insert("type".to_owned(), "object".into());
        schema.insert("properties".to_owned(), properties.into());
        if !map.open {
            schema.insert("additionalProperties".to_owned(), false.into());
        }
        let required = names(map.fields.iter().filter(|field| field.needed));
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        let conditions = map.conditions.iter().map(|condition| self.condition(path, condition));
        let conditions: Vec<Value> = conditions.collect();
        if !conditions.is_empty() {
            schema.insert("allOf".to_owned(), conditions.into());
        }
        schema.into()
    }

    /// A field of the map at `path`, with what is said of it.
    fn field(&self, path: &str, field: &Field) -> Value {
        let path = join(path, &field.name);
        let schema = self.value(&path, &field.shapes, field.needed);
        let Some(mut said) = self.said(&path) else { return schema };
        // Of a list or a map a row says at most a word, and of a field that must be there what was meant of others.
        let may_be = |default: &Value| {
            let is_in = |shape| could_be(shape, default);
            !field.needed && field.shapes.iter().any(is_in)
        };
        said.default = said.default.filter(may_be);
        described(schema, Some(&said))
    }

    /// What is said of the field at `path`, or else of the map that it stands in.
    fn said(&self, path: &str) -> Option<Said> {
        let mut path = path.strip_prefix("spec.rules[]").unwrap_or(path).trim_start_matches('.');
        if let [OPENSERGO] = self.headings {
            return self
                .prose
                .said(self.headings, "", self.kind)
                .filter(|_| path.starts_with(SPEC));
        }
        let whole = path;
        while !path.is_empty() {
            let (map, name) = path.rsplit_once('.').unwrap_or(("", path));
            let map = map.trim_end_matches("[]");
            let parent = map.rsplit('.').next().unwrap_or(map).trim_end_matches("[]");
            if let Some(said) = self.prose.said(self.headings, parent, name) {
                let default = said.default.filter(|_| path == whole);
                return Some(Said { default, ..said });
            }
            path = map;
        }
        // A map without a row holds what may also stand beside it.
        let name = whole.rsplit('.').next().unwrap_or(whole);
        self.prose.said(self.headings, "", name).map(|said| Said { default: None, ..said })
    }

    /// What holds where a field is one of some values.
    fn condition(&self, path: &str, condition: &Condition) -> Value {
        let is_absent = condition.values.contains(&None);
        let values = condition.values.iter().flat_map(|value| match value {
            Some(node::Value::String(name)) => {
                let of = self.fields(path).iter().find(|field| field.name == condition.choice);
                let choices = of.into_iter().flat_map(|field| &field.shapes);
                written(choices, name)
            }
            Some(node::Value::Bool(flag)) => vec![json!(flag)],
            Some(_) => Vec::new(),
            None => vec![Value::Null],
        });
        let mut is_one =
            json!({"properties": {&condition.choice: {"enum": values.collect::<Vec<_>>()}}});
        if let Value::Object(is_one) = &mut is_one
            && !is_absent
        {
            is_one.insert("required".to_owned(), json!([condition.choice]));
        }
        let properties: Map<String, Value> = condition
            .fields
            .iter()
            .map(|field| {
                let schema = if field.shapes.is_empty() {
                    json!({"not": {"type": "null"}})
                } else {
                    self.value(&join(path, &field.name), &field.shapes, field.needed)
                };
                (field.name.clone(), schema)
            })
            .collect();
        let mut then = Map::new();
        then.insert("properties".to_owned(), properties.into());
        let required = names(condition.fields.iter().filter(|field| field.needed));
        if !required.is_empty() {
            then.insert("required".to_owned(), required.into());
        }
        json!({"if": is_one, "then": then})
    }

    /// The value at `path`, which is of any of `shapes`; or nothing, unless it is needed.
    fn value(&self, path: &str, shapes: &[Shape], needed: bool) -> Value {
        if shapes.is_empty() {
            return json!({});
        }
        let mut all: Vec<Value> = shapes.iter().flat_map(|shape| self.shape(path, shape)).collect();
        if !needed {
            all = all.into_iter().map(or_null).collect();
        }
        if all.len() == 1 { all.pop().unwrap_or_default() } else { json!({"anyOf": all}) }
    }

    /// The alternatives that a shape is.
    fn shape(&self, path: &str, shape: &Shape) -> Vec<Value> {
        vec![match shape {
            Shape::Any => json!({}),
            Shape::Flag => json!({"type": "boolean"}),
            Shape::False => json!({"enum": [false]}),
            Shape::Text { least, most, pattern } => {
                let bounds = [("minLength", least, 0), ("maxLength", most, usize::MAX)];
                let bounds = bounds.into_iter().filter(|(_, bound, none)| *bound != none);
                let mut schema = json!({"type": "string"});
                if let Value::Object(schema) = &mut schema {
                    schema.extend(bounds.map(|(name, bound, _)| (name.to_owned(), json!(bound))));
                    if !pattern.is_empty() {
                        schema.insert("pattern".to_owned(), json!(pattern));
                    }
                }
                schema
            }
            Shape::Number(least, most) => {
                json!({"type": "number", "minimum": whole(*least), "maximum": whole(*most)})
            }
            Shape::Whole(least, most) => {
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            Shape::Choice(choices) => {
                let names = choices.iter().map(|choice| json!(choice.0));
                let numbers = choices.iter().filter_map(|choice| choice.1).map(Value::from);
                let mut all: Vec<Value> = Vec::new();
                for value in names.chain(numbers) {
                    if !all.contains(&value) {
                        all.push(value);
                    }
                }
                json!({"enum": all})
            }
            Shape::List(most) => {
                let each = format!("{path}[]");
                let items = match self.tree.items(path) {
                    Some(shapes) => self.value(&each, shapes, true),
                    None if self.tree.map(&each).is_some() => self.map(&each),
                    None => json!({}),
                };
                list(&items, *most)
            }
            Shape::Map => self.map(path),
            Shape::Texts(most, names) => json!({
                "type": "object",
                "maxProperties": most,
                "propertyNames": {"pattern": names},
                "additionalProperties": {"type": "string"},
            }),
            Shape::Documents => list(&json!({"$ref": DOCUMENT}), usize::MAX),
            Shape::AnyOf(shapes) => {
                return shapes.iter().flat_map(|shape| self.shape(path, shape)).collect();
            }
        }]
    }
}

fn list(items: &Value, most: usize) -> Value {
    if most == usize::MAX {
        return json!({"type": "array", "items": items});
    }
    json!({"type": "array", "items": items, "maxItems": most})
}

/// A schema with what is said of it.
fn described(schema: Value, said: Option<&Said>) -> Value {
    let (Value::Object(mut schema), Some(said)) = (schema.clone(), said) else { return schema };
    schema.insert("description".to_owned(), said.text.clone().into());
    if let Some(default) = &said.default {
        schema.insert("default".to_owned(), default.clone());
    }
    schema.into()
}

/// Whether `value` could be of the shape: a number where numbers are, and so on.
fn could_be(shape: &Shape, value: &Value) -> bool {
    match shape {
        Shape::Flag | Shape::False => value.is_boolean(),
        Shape::Text { .. } => value.is_string(),
        Shape::Number(..) | Shape::Whole(..) => value.is_number(),
        Shape::Choice(choices) => choices.iter().any(|choice| value == choice.0),
        Shape::AnyOf(shapes) => shapes.iter().any(|shape| could_be(shape, value)),
        Shape::Any | Shape::List(_) | Shape::Map | Shape::Texts(..) | Shape::Documents => false,
    }
}

/// The same, or nothing.
fn or_null(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else { return schema };
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    } else if let Some(kind) = schema.get_mut("type")
        && kind != "null"
    {
        *kind = json!([kind, "null"]);
    }
    schema.into()
}

/// All ways to write the choice called `name`.
fn written<'a>(shapes: impl Iterator<Item = &'a Shape>, name: &str) -> Vec<Value> {
    let mut all = vec![json!(name)];
    for shape in shapes {
        if let Shape::Choice(choices) = shape {
            let same = choices.iter().filter(|choice| choice.0 == name);
            all.extend(same.filter_map(|choice| choice.1).map(Value::from));
        }
    }
    all
}

fn names<'a>(fields: impl Iterator<Item = &'a Field>) -> Vec<String> {
    fields.map(|field| field.name.clone()).collect()
}

/// A bound without a point, if it is whole.
fn whole(bound: f64) -> Value {
    if let node::Value::Int(bound) = node::Value::from_double(bound) {
        return bound.into();
    }
    bound.into()
}

fn into_map(value: Value) -> Option<Map<String, Value>> {
    if let Value::Object(map) = value { Some(map) } else { None }
}
