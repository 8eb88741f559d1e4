//! The files of a rule set: those that were named, those of the folders that were named, and those that an index
//! lists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sentinel_core::{
    config::index_files,
    rule::{
        compile::Source,
        error::{Reason, Refusal, Refusals, Site},
        node::{Node, Position, Value},
    },
};
use sentinel_engine::document;

/// A file, as far as it could be read.
#[derive(Debug)]
pub(crate) struct File {
    /// The path, as it was given.
    pub(crate) name: String,
    /// What its bare lists are, if an index says so.
    list: Option<&'static str>,
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
                list: file.list,
                documents: &file.documents,
                ..Source::of(&file.name)
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

    fn add(&mut self, path: &Path, list: Option<&'static str>) {
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
        let place = self.files.len();
        self.files.push(File { name: name.clone(), list, documents, lists: None });
        if let Some(index) = index {
            let lists = self.add_listed(path, &name, &index);
            if let Some(file) = self.files.get_mut(place) {
                file.lists = Some(lists);
            }
        }
    }

    /// Adds the files that an index lists, as the service reads it, and says how many they are. What it calls by a path
    /// from the root of its server is looked for from its folder on, and else beside it.
    fn add_listed(&mut self, index: &Path, name: &str, node: &Node) -> usize {
        let own = index.file_name().map_or_else(String::new, |own| format!("/{}", own.display()));
        let listed = match index_files(node, &own) {
            Ok(listed) => listed,
            Err(refusals) => {
                for refusal in refusals.shown() {
                    let site = Site { source: name.to_owned(), ..refusal.site.clone() };
                    self.refusals.push(Refusal { site, ..refusal.clone() });
                }
                return 0;
            }
        };
        for (number, file) in listed.iter().enumerate() {
            let from_here = index.with_file_name(file.path.trim_start_matches('/'));
            let last = file.path.rsplit('/').next().unwrap_or_default();
            let beside = index.with_file_name(last);
            match [&from_here, &beside].into_iter().find(|path| path.is_file()) {
                Some(path) => self.add(path, file.list),
                None => {
                    let file = file.path.trim_start_matches('/');
                    let sentence = format!(
                        "`{INDEX_FIELD}[{number}]` is \"{file}\", but there is no {}",
                        from_here.display()
                    );
                    self.refuse(name, entry_position(node, number), sentence);
                }
            }
        }
        listed.len()
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

/// The document of an index: one map with the field `files` and no other.
fn index_of(documents: &[Node]) -> Option<&Node> {
    let [node @ Node { value: Value::Map(map), .. }] = documents else { return None };
    matches!(map.entries(), [entry] if entry.key == INDEX_FIELD).then_some(node)
}

/// Where an entry of an index stands.
fn entry_position(index: &Node, number: usize) -> Option<Position> {
    let Value::Map(map) = &index.value else { return None };
    let Value::List(entries) = &map.get(INDEX_FIELD)?.value else { return None };
    entries.get(number)?.position
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
