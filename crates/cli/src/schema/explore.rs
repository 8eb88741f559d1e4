//! What a reader can ask, found out by showing it documents.
//!
//! A reader is shown an empty document; where it asks for a map it is shown one with an empty map there, where it asks
//! for a list, one with a list of an empty map; and of the enums and flags of each map it is shown every combination. What it
//! asks each time ([`Trace`]) adds up to what may stand in each map, what must, and what depends on a choice.

use std::collections::{BTreeMap, BTreeSet};

use sentinel_core::rule::{
    node::{Entry, Map, Node, Value},
    shape::{Note, Shape, Trace},
};

/// What may stand in the documents that a reader takes, map by map.
#[derive(Debug, Default)]
pub(super) struct Tree {
    maps: BTreeMap<String, Fields>,
    /// What the values of a list are, if they are no maps.
    items: BTreeMap<String, Vec<Shape>>,
}

/// What may stand in a map.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields {
    /// In the order in which the reader lists them.
    pub(super) fields: Vec<Field>,
    /// Whether others may stand there too.
    pub(super) open: bool,
    /// What holds besides, by the value of a field.
    pub(super) conditions: Vec<Condition>,
}

/// What is asked of a field.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub(super) name: String,
    /// Any of these; none: anything.
    pub(super) shapes: Vec<Shape>,
    /// Whether it must say something.
    pub(super) needed: bool,
}

/// What is asked of fields where another one is one of some values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    /// The other field.
    pub(super) choice: String,
    /// Its values: names, `true` or `false`; `None`: it says nothing.
    pub(super) values: Vec<Option<Value>>,
    pub(super) fields: Vec<Field>,
}

/// A way to read documents.
pub(super) type Read<'a> = &'a dyn Fn(&Node) -> Trace;

/// What stands at which path.
type Sample = BTreeMap<String, Value>;

/// What was asked of one sample.
struct Run {
    /// The enums and flags that it says.
    set: Sample,
    takes: BTreeMap<String, Shape>,
    needs: BTreeSet<String>,
    opens: BTreeMap<String, Option<Vec<&'static str>>>,
    refused: BTreeSet<String>,
}

impl Tree {
    /// What `read` asks of documents in which `fixed` stands.
    pub(super) fn of(read: Read<'_>, fixed: &Sample) -> Self {
        let mut frame = Sample::new();
        let mut choices = BTreeMap::new();
        loop {
            let mut runs = vec![Run::new(read, fixed, &frame, &Sample::new())];
            let run = |set: &Sample| Run::new(read, fixed, &frame, set);
            for fields in choices.values() {
                runs.extend(products(&relevant(fields, &run)).iter().map(run));
            }
            let (more, found) = (frame_of(&runs), choices_of(&runs, fixed));
            if more == frame && found == choices {
                return Self::summary(&runs, &choices);
            }
            (frame, choices) = (more, found);
        }
    }

    /// What may stand in the map at `path`.
    pub(super) fn map(&self, path: &str) -> Option<&Fields> {
        self.maps.get(path)
    }

    /// What the values of the list at `path` are, if they are no maps.
    pub(super) fn items(&self, path: &str) -> Option<&[Shape]> {
        self.items.get(&format!("{path}[]")).map(Vec::as_slice)
    }

    fn summary(runs: &[Run], choices: &BTreeMap<String, Choices>) -> Self {
        let mut tree = Self::default();
        let opens = runs.iter().flat_map(|run| &run.opens);
        for (path, known) in opens {
            let map = tree.maps.entry(path.clone()).or_default();
            map.open |= known.is_none();
            // Of a map that may have any fields those are known that are looked at.
            let looked_at: Vec<&str> = match known {
                Some(known) => known.clone(),
                None => runs
                    .iter()
                    .flat_map(|run| run.takes.keys())
                    .filter_map(|field| field.strip_prefix(path.as_str())?.strip_prefix('.'))
                    .filter(|name| !name.contains(['.', '[']))
                    .collect(),
            };
            for name in looked_at {
                if map.fields.iter().all(|field| field.name != name) {
                    map.fields.push(Field { name: name.to_owned(), shapes: vec![], needed: false });
                }
            }
        }
        let all: Vec<&Run> = runs.iter().collect();
        for (path, map) in &mut tree.maps {
            for field in &mut map.fields {
                *field = Field::summary(&join(path, &field.name), &field.name, &all);
            }
            for (choice, values) in choices.get(path).into_iter().flatten() {
                map.add_conditions(path, choice, values, &all);
            }
        }
        for run in runs {
            for (path, shape) in &run.takes {
                if path.ends_with("[]") {
                    let items = tree.items.entry(path.clone()).or_default();
                    add_shape(items, shape);
                }
            }
        }
        tree
    }
}

impl Fields {
    /// Adds what depends on the value of the field at `choice`.
    fn add_conditions(&mut self, path: &str, choice: &str, values: &[Value], runs: &[&Run]) {
        let name = self.fields.iter().find(|field| join(path, &field.name) == choice);
        let Some(needed) = name.map(|field| field.needed) else { return };
        let absent = (!needed).then_some(None);
        for value in absent.into_iter().chain(values.iter().map(Some)) {
            let runs: Vec<&Run> =
                runs.iter().filter(|run| run.set.get(choice) == value).copied().collect();
            let fields: Vec<Field> = self
                .fields
                .iter()
                .filter_map(|field| {
                    let path = join(path, &field.name);
                    let mut here = Field::summary(&path, &field.name, &runs);
                    if path == choice || here.shapes == field.shapes {
                        here.shapes.clear();
                    }
                    here.needed &= !field.needed;
                    (path != choice && (here.needed || !here.shapes.is_empty())).then_some(here)
                })
                .collect();
            if fields.is_empty() {
                continue;
            }
            let choice = choice.rsplit('.').next().unwrap_or(choice);
            let alike = self
                .conditions
                .iter_mut()
                .find(|known| known.choice == choice && known.fields == fields);
            match alike {
                Some(known) => known.values.push(value.cloned()),
                None => self.conditions.push(Condition {
                    choice: choice.to_owned(),
                    values: vec![value.cloned()],
                    fields,
                }),
            }
        }
    }
}

impl Field {
    /// What all of `runs` ask of the field at `path`. Those that do not ask for it are refused for another reason, as
    /// [`sentinel_core::rule::shape`] says.
    fn summary(path: &str, name: &str, runs: &[&Run]) -> Self {
        let mut shapes = Vec::new();
        let (mut asked, mut needed) = (false, true);
        for run in runs {
            let Some(shape) = run.takes.get(path) else { continue };
            add_shape(&mut shapes, shape);
            if !run.set.contains_key(path) {
                asked = true;
                needed &= run.needs.contains(path);
            }
        }
        Self { name: name.to_owned(), shapes, needed: asked && needed }
    }
}

impl Run {
    fn new(read: Read<'_>, fixed: &Sample, frame: &Sample, set: &Sample) -> Self {
        let shown = |more: &Sample| {
            let mut document = Value::Map(Map::default());
            for (path, value) in fixed.iter().chain(frame).chain(set).chain(more) {
                place(&mut document, path, value);
            }
            read(&Node::new(document))
        };
        let trace = shown(&Sample::new());
        let mut run = Self {
            set: set.clone(),
            takes: BTreeMap::new(),
            needs: BTreeSet::new(),
            opens: BTreeMap::new(),
            refused: trace.refused.into_iter().collect(),
        };
        for asked in trace.asked {
            match asked.note {
                // The first one, where a reader looks twice.
                Note::Takes(shape) => {
                    run.takes.entry(asked.field).or_insert(shape);
                }
                Note::Needs => {
                    run.needs.insert(asked.field);
                }
                Note::Opens(known) => {
                    run.opens.insert(asked.field, known);
                }
            }
        }
        run.raise(&shown);
        run
    }

    /// What was asked of all fields but the one at `path`.
    fn rest(&self, path: &str) -> (Vec<(&String, &Shape)>, Vec<&String>, Vec<&String>) {
        let takes = self.takes.iter().filter(|(other, _)| *other != path);
        let needs = self.needs.iter().filter(|other| *other != path);
        let refused = self.refused.iter().filter(|other| *other != path);
        (takes.collect(), needs.collect(), refused.collect())
    }

    /// Raises the least of each number that is refused at its least, and not at one more.
    fn raise(&mut self, shown: &dyn Fn(&Sample) -> Trace) {
        let at = |above: i64| {
            let numbers = self.takes.iter().filter_map(|(path, shape)| {
                Some((path.clone(), Value::Int(least(shape)?.saturating_add(above))))
            });
            shown(&numbers.collect()).refused
        };
        let (low, next) = (at(0), at(1));
        for (path, shape) in &mut self.takes {
            if low.contains(path) && !next.contains(path) {
                if let Shape::Whole(least, _) = shape {
                    *least += 1;
                } else if let Shape::Number(least, _) = shape {
                    *least += 1.0;
                }
            }
        }
    }
}

/// The fields of a map that are enums or flags, by path, and their values.
type Choices = BTreeMap<String, Vec<Value>>;

fn choices_of(runs: &[Run], fixed: &Sample) -> BTreeMap<String, Choices> {
    let mut all: BTreeMap<String, Choices> = BTreeMap::new();
    for (path, shape) in runs.iter().flat_map(|run| &run.takes) {
        let values: Vec<Value> = if let Shape::Choice(choices) = shape {
            choices.iter().map(|choice| Value::String(choice.0.into())).collect()
        } else if *shape == Shape::Flag {
            vec![Value::Bool(true), Value::Bool(false)]
        } else {
            continue;
        };
        let (map, name) = path.rsplit_once('.').unwrap_or(("", path));
        let is_known = runs.iter().filter_map(|run| run.opens.get(map)?.as_ref());
        let is_known = is_known.flatten().any(|known| *known == name);
        if is_known && !fixed.contains_key(path) && !path.ends_with("[]") {
            let known = all.entry(map.to_owned()).or_default().entry(path.clone()).or_default();
            for value in values {
                if !known.contains(&value) {
                    known.push(value);
                }
            }
        }
    }
    all
}

/// Those of `choices` on which something else depends, by themselves or beside any other one.
fn relevant(choices: &Choices, run: &dyn Fn(&Sample) -> Run) -> Choices {
    let mut singles: Vec<Sample> = vec![Sample::new()];
    for (path, values) in choices {
        singles.extend(values.iter().map(|value| Sample::from([(path.clone(), value.clone())])));
    }
    let singles: Vec<Run> = singles.iter().map(run).collect();
    let is_relevant = |path: &String, values: &[Value]| {
        singles.iter().filter(|before| !before.set.contains_key(path)).any(|before| {
            values.iter().any(|value| {
                let mut set = before.set.clone();
                set.insert(path.clone(), value.clone());
                run(&set).rest(path) != before.rest(path)
            })
        })
    };
    let relevant = choices.iter().filter(|(path, values)| is_relevant(path, values));
    relevant.map(|(path, values)| (path.clone(), values.clone())).collect()
}

/// Every combination of the values of `choices`, each of which may also be absent.
fn products(choices: &Choices) -> Vec<Sample> {
    let mut all = vec![Sample::new()];
    for (path, values) in choices {
        let with = all.iter().flat_map(|set| {
            values.iter().map(move |value| {
                let mut set = set.clone();
                set.insert(path.clone(), value.clone());
                set
            })
        });
        let with: Vec<Sample> = with.collect();
        all.extend(with);
    }
    all
}

/// An empty map for each map, and a list of one for each list, that is asked for.
fn frame_of(runs: &[Run]) -> Sample {
    let empty = || Value::Map(Map::default());
    let mut frame = Sample::new();
    for run in runs {
        for (path, shape) in &run.takes {
            let is_map = *shape == Shape::Map
                || matches!(shape, Shape::AnyOf(shapes) if shapes.contains(&Shape::Map));
            let of_maps =
                matches!(shape, Shape::List(_)) && !run.takes.contains_key(&format!("{path}[]"));
            if is_map {
                frame.insert(path.clone(), empty());
            } else if of_maps {
                frame.insert(path.clone(), Value::List(vec![Node::new(empty())]));
            }
        }
    }
    frame
}

/// Puts `value` at `path`; maps on the way there exist.
pub(super) fn place(document: &mut Value, path: &str, value: &Value) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let (name, in_list) = first.strip_suffix("[]").map_or((first, false), |name| (name, true));
    let Value::Map(map) = document else { return };
    let mut entries = map.entries().to_vec();
    if let Some(rest) = rest {
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == name) {
            let inner = match (&mut entry.value.value, in_list) {
                (Value::List(list), true) => list.first_mut().map(|item| &mut item.value),
                (map, _) => Some(map),
            };
            if let Some(inner) = inner {
                place(inner, rest, value);
            }
        }
    } else {
        entries.retain(|entry| entry.key != name);
        let value = Node::new(value.clone());
        entries.push(Entry { key: name.to_owned(), position: None, value });
    }
    // No name stands twice.
    *map = Map::from_entries(entries).unwrap_or_default();
}

/// Adds `shape` to `shapes`, unless one of them says as much, and drops those that say less.
fn add_shape(shapes: &mut Vec<Shape>, shape: &Shape) {
    if !shapes.iter().any(|known| holds(known, shape)) {
        shapes.retain(|known| !holds(shape, known));
        shapes.push(shape.clone());
    }
}

/// Whether everything that is of the shape `b` is of the shape `a` too.
fn holds(a: &Shape, b: &Shape) -> bool {
    match (a, b) {
        (Shape::Whole(a, c), Shape::Whole(b, d)) => a <= b && d <= c,
        (Shape::Number(a, c), Shape::Number(b, d)) => a <= b && d <= c,
        #[expect(clippy::cast_precision_loss, reason = "bounds are at most 2^53")]
        (Shape::Number(a, c), Shape::Whole(b, d)) => *a <= *b as f64 && *d as f64 <= *c,
        (
            Shape::Text { least: a, most: c, pattern },
            Shape::Text { least: b, most: d, pattern: other },
        ) => a <= b && d <= c && (pattern.is_empty() || pattern == other),
        (a, b) => a == b,
    }
}

fn least(shape: &Shape) -> Option<i64> {
    if let Shape::Whole(least, _) = shape {
        return Some(*least);
    }
    let Shape::Number(least, _) = shape else { return None };
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^53")]
    Some(*least as i64)
}

/// The path of the field `name` of the map at `map`.
pub(super) fn join(map: &str, name: &str) -> String {
    if map.is_empty() { name.to_owned() } else { format!("{map}.{name}") }
}
