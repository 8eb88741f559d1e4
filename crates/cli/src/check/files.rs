//! The files of a rule set: those that were named, those of the folders that were named, and those that an index
//! lists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sentinel_core::rule::{
    compile::Source,
    error::{Reason, Refusal, Refusals, Site},
    node::{Map, Node, Position, Value},
};
use sentinel_engine::document;

/// A file, as far as it could be read.
#[derive(Debug)]
pub(crate) struct File {
    /// The path, as it was given.
    pub(crate) name: String,
    /// What its bare lists are, if an index says so.
    list: Option<String>,
    /// What stands in it; nothing if it could not be read.
    pub(crate) documents: Vec<Node>,
    /// How many files it lists, if it is an index.
    pub(crate) lists: Option<usize>,
}

/// All files of a set, each of them once.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) files: Vec<File>,
    /// What could not be read.
    pub(crate) refusals: Refusals,
    /// What lies in a folder with an index that does not list it.
    pub(crate) unlisted: Vec<Refusal>,
    seen: BTreeSet<PathBuf>,
}

/// What rule files end with.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The only field of an index.
const INDEX_FIELD: &str = "files";

impl Files {
    /// The files of `paths`, which are files and folders.
    pub(crate) fn read(paths: &[PathBuf]) -> Self {
        let mut files = Self::default();
        for path in paths {
            if path.is_dir() {
                files.add_folder(path);
            } else {
                files.add(path, None);
            }
        }
        files
    }

    /// The sources of the set.
    pub(crate) fn sources(&self) -> Vec<Source<'_>> {
        let rules = self.files.iter().filter(|file| file.lists.is_none());
        rules
            .map(|file| Source {
                name: &file.name,
                list: file.list.as_deref(),
                documents: &file.documents,
            })
            .collect()
    }

    /// Where `field` of a rule or document stands.
    pub(crate) fn position(&self, site: &Site, field: &str) -> Option<Position> {
        let file = self.files.iter().find(|file| file.name == site.source)?;
        let document = file.documents.get(site.document?.checked_sub(1)?)?;
        let rule = match (&document.value, site.rule) {
            (_, None) => document,
            (Value::List(rules), Some(index)) => rules.get(index)?,
            (Value::Map(map), Some(index)) => {
                let Value::Map(spec) = &map.get("spec")?.value else { return None };
                let Value::List(rules) = &spec.get("rules")?.value else { return None };
                rules.get(index)?
            }
            (
                Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::String(_),
                Some(_),
            ) => return None,
        };
        let Value::Map(map) = &rule.value else { return None };
        map.get(field)?.position
    }

    fn add_folder(&mut self, folder: &Path) {
        let paths = match in_folder(folder) {
            Ok(paths) => paths,
            Err(error) => {
                self.refuse(
                    &folder.display().to_string(),
                    None,
                    format!("cannot be read: {error}"),
                );
                return;
            }
        };
        if paths.is_empty() {
            let sentence =
                "has no rule files (*.yaml, *.yml, *.json): add one, or name another folder";
            self.refuse(&folder.display().to_string(), None, sentence.to_owned());
        }
        let before = self.files.len();
        let mut listed = BTreeSet::new();
        // Indexes first: they say what lists are.
        let (indexes, others): (Vec<_>, Vec<_>) = paths
            .into_iter()
            .partition(|path| parse(path).is_ok_and(|nodes| index_of(&nodes).is_some()));
        for index in &indexes {
            self.add(index, None);
        }
        listed.extend(self.seen.iter().cloned());
        for path in &others {
            if !indexes.is_empty() && !listed.contains(&identity(path)) {
                let site = Site::of_source(&path.display().to_string());
                let sentence = "is not listed in the folder's index, so that nobody loads it";
                let reason = Reason::Malformed(sentence.to_owned());
                self.unlisted.push(Refusal { site, field: String::new(), reason });
            }
            self.add(path, None);
        }
        if let Some(added) = self.files.get_mut(before..) {
            added.sort_by(|a, b| a.name.cmp(&b.name));
        }
    }

    fn add(&mut self, path: &Path, list: Option<String>) {
        if !self.seen.insert(identity(path)) {
            return;
        }
        let name = path.display().to_string();
        let mut documents = Vec::new();
        match parse(path) {
            Ok(nodes) => documents = nodes,
            Err(problem) => self.refusals.push(problem.in_file(&name)),
        }
        let index = index_of(&documents).cloned();
        let lists = index
            .as_ref()
            .map(|list| if let Value::List(list) = &list.value { list.len() } else { 0 });
        self.files.push(File { name: name.clone(), list, documents, lists });
        if let Some(index) = index {
            self.add_listed(path, &name, &index);
        }
    }

    /// Adds what an index lists: names of files beside it, or maps with a `path` and a `kind`.
    fn add_listed(&mut self, index: &Path, name: &str, list: &Node) {
        const ALLOWED: &str = "a file's name, or a map with a `path` and a `kind`";

        let Value::List(entries) = &list.value else {
            let sentence = format!("is {}, but must be a list of files", list.describe());
            self.refuse(name, list.position, format!("`{INDEX_FIELD}` {sentence}"));
            return;
        };
        for (number, entry) in entries.iter().enumerate() {
            let text = |node: Option<&Node>| match node.map(|node| &node.value) {
                Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
                _ => None,
            };
            let (file, kind) = match &entry.value {
                Value::Map(map) => (text(map.get("path")), text(map.get("kind"))),
                Value::Null
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::String(_)
                | Value::List(_) => (text(Some(entry)), None),
            };
            let field = format!("`{INDEX_FIELD}[{number}]`");
            let Some(file) = file else {
                let found = entry.describe();
                self.refuse(
                    name,
                    entry.position,
                    format!("{field} is {found}, but must be {ALLOWED}"),
                );
                continue;
            };
            let path = index.with_file_name("").join(file.trim_start_matches('/'));
            if path.is_file() {
                self.add(&path, kind);
            } else {
                let sentence = format!("{field} is \"{file}\", but there is no {}", path.display());
                self.refuse(name, entry.position, sentence);
            }
        }
    }

    fn refuse(&mut self, name: &str, position: Option<Position>, sentence: String) {
        let site = Site { position, ..Site::of_source(name) };
        let reason = Reason::Malformed(sentence);
        self.refusals.push(Refusal { site, field: String::new(), reason });
    }
}

/// Why a file is no documents.
enum Problem {
    Unread(std::io::Error),
    NoDocument(document::DocumentError),
}

impl Problem {
    fn in_file(self, name: &str) -> Refusal {
        match self {
            Self::NoDocument(error) => error.in_source(name),
            Self::Unread(error) => Refusal {
                site: Site::of_source(name),
                field: String::new(),
                reason: Reason::Malformed(format!("cannot be read: {error}")),
            },
        }
    }
}

fn parse(path: &Path) -> Result<Vec<Node>, Problem> {
    let bytes = fs::read(path).map_err(Problem::Unread)?;
    document::documents(&bytes).map_err(Problem::NoDocument)
}

/// What an index lists: it is one map with the field `files` and no other.
fn index_of(documents: &[Node]) -> Option<&Node> {
    let [Node { value: Value::Map(map), .. }] = documents else { return None };
    let is_index = |map: &Map| matches!(map.entries(), [entry] if entry.key == INDEX_FIELD);
    if is_index(map) { map.entries().first().map(|entry| &entry.value) } else { None }
}

/// The rule files of a folder, by name. Editors and ConfigMap mounts leave hidden ones beside them.
fn in_folder(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_named_so =
            path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        let is_hidden =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_named_so && !is_hidden && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The same for two names of one file.
fn identity(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
