//! What editors say of a field: the tables of `rules/README.md`.

use std::iter;

use serde_json::Value;

/// The tables of a document, each with the heading that it stands under.
#[derive(Debug)]
pub(super) struct Prose<'a> {
    tables: Vec<Table<'a>>,
}

#[derive(Debug)]
struct Table<'a> {
    heading: &'a str,
    columns: Vec<&'a str>,
    rows: Vec<Vec<&'a str>>,
}

/// What a row says of a field.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    /// For people.
    pub(super) text: String,
    /// The value that is as good as none, if the row says one.
    pub(super) default: Option<Value>,
}

impl<'a> Prose<'a> {
    /// Reads the tables of a Markdown text.
    pub(super) fn of(markdown: &'a str) -> Self {
        let mut tables: Vec<Table<'a>> = Vec::new();
        let (mut heading, mut in_table) = ("", false);
        for line in markdown.lines() {
            if let Some(text) = line.strip_prefix('#') {
                heading = text.trim_start_matches('#').trim();
            }
            let Some(cells) = cells(line) else {
                in_table = false;
                continue;
            };
            match tables.last_mut().filter(|_| in_table) {
                Some(table) => table.rows.push(cells),
                None => tables.push(Table { heading, columns: cells, rows: Vec::new() }),
            }
            in_table = true;
        }
        Self { tables }
    }

    /// What the tables under the first of `headings` that has such a row say of the field `name` of `parent`. A field of a
    /// map in a rule or configuration has a row only in a table that names the map; `parent` is empty otherwise.
    pub(super) fn said(&self, headings: &[&str], parent: &str, name: &str) -> Option<Said> {
        headings.iter().find_map(|heading| {
            let tables = self.tables.iter().filter(|table| is_named(table.heading, heading));
            let mut rows = tables.filter(|table| table.is_of(parent)).flat_map(|table| {
                table.rows.iter().map(move |row| (table, row)).filter(|(_, row)| names(row, name))
            });
            rows.next().map(|(table, row)| table.said(row))
        })
    }
}

impl Table<'_> {
    /// Whether the rows are fields of `parent`: the first column says so, or that they are settings, which have maps of
    /// their own.
    fn is_of(&self, parent: &str) -> bool {
        let first = self.columns.first().copied().unwrap_or_default();
        if parent.is_empty() {
            return !first.contains('`') && first != SETTING;
        }
        first == SETTING || first.contains(&format!("`{parent}`"))
    }

    fn said(&self, row: &[&str]) -> Said {
        let cell = |names: &[&str]| {
            let mut columns = self.columns.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
            columns.find(|(column, _)| names.contains(column)).map(|(_, cell)| *cell)
        };
        let default = cell(&["default"]);
        // The choices of an enum are shown anyway.
        let unit = cell(&["type", "unit"]).filter(|unit| !unit.starts_with('`'));
        let facts = [
            unit.map(ToOwned::to_owned),
            default.map(|default| match default.starts_with("required") {
                true => default.to_owned(),
                false => format!("default: {default}"),
            }),
            cell(&["range"]).map(|range| format!("range: {range}")),
            cell(&["at the bound"]).map(|what| format!("at the bound: {what}")),
        ];
        let facts: Vec<String> = facts.into_iter().flatten().collect();
        let meaning = cell(&["meaning", "what it is"]).map(ToOwned::to_owned);
        let becomes = cell(&["becomes"]).map(|what| format!("becomes {what}"));
        let fields = cell(&["fields of `spec`"]).map(ToOwned::to_owned);
        let parts = meaning.into_iter().chain(becomes).chain(fields);
        let facts = iter::once(facts.join("; ")).filter(|facts| !facts.is_empty());
        Said {
            text: parts.chain(facts).collect::<Vec<_>>().join("\n\n"),
            default: default.and_then(literal),
        }
    }
}

/// The first column of the tables of settings.
const SETTING: &str = "setting";

/// The cells of a line of a table; `None` if it is none.
fn cells(line: &str) -> Option<Vec<&str>> {
    let mut rest = line.trim().strip_prefix('|')?;
    let mut cells = Vec::new();
    let mut from = 0;
    while let Some(at) = rest.get(from..).and_then(|text| text.find('|')).map(|at| from + at) {
        let (cell, after) = rest.split_at(at);
        // One that is escaped is part of the cell.
        if cell.ends_with('\\') {
            from = at + 1;
            continue;
        }
        cells.push(cell.trim());
        rest = after.strip_prefix('|').unwrap_or(after);
        from = 0;
    }
    Some(cells)
}

/// Whether a heading is about `name`: it is that, or has it in backticks.
fn is_named(heading: &str, name: &str) -> bool {
    heading == name || heading.contains(&format!("`{name}`"))
}

/// Whether a row is about the field `name`: its first cell is a list of fields in backticks.
fn names(row: &[&str], name: &str) -> bool {
    let cell = row.first().copied().unwrap_or_default();
    cell.split(", ").any(|field| field.trim_matches('`') == name)
}

/// The number, flag or name that a cell begins with.
fn literal(cell: &str) -> Option<Value> {
    if let Some(rest) = cell.strip_prefix('`') {
        return rest.split_once('`').map(|(name, _)| name.into());
    }
    let word = cell.split(' ').next().unwrap_or(cell);
    serde_json::from_str(word).ok().filter(|value: &Value| value.is_number() || value.is_boolean())
}
