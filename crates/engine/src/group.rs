//! API groups: paths that are governed together, whatever their resources are called.

use alloc::{rc::Rc, vec::Vec};

use sentinel_core::{
    pattern::{Pattern, ant_matches},
    resource::path_without_query,
    rule::{ApiGroup, PathPredicate},
};

/// A group with rules.
#[derive(Debug)]
pub(crate) struct Group {
    name: Rc<str>,
    predicates: Vec<Predicate>,
    /// Its rules, as ascending indexes into the rule book.
    pub(crate) rules: Vec<u32>,
}

#[derive(Debug)]
enum Predicate {
    Exact(Rc<str>),
    Ant(Rc<str>),
    Regex(Pattern),
}

impl Group {
    /// A group and its first rule.
    pub(crate) fn new(group: &ApiGroup, rule: u32) -> Self {
        let compile = |predicate: &PathPredicate| {
            Some(match predicate {
                PathPredicate::Exact(path) => Predicate::Exact(path.as_str().into()),
                PathPredicate::Prefix(pattern) => Predicate::Ant(pattern.as_str().into()),
                // It compiled in the service; what does not here matches nothing.
                PathPredicate::Regex(pattern) => Predicate::Regex(Pattern::new(pattern).ok()?),
            })
        };
        let predicates = group.predicates.iter().filter_map(compile).collect();
        Self { name: group.name.as_str().into(), predicates, rules: Vec::from([rule]) }
    }

    /// Whether this is the group of that name.
    pub(crate) fn is(&self, name: &str) -> bool {
        *self.name == *name
    }

    /// Whether a path belongs to the group.
    pub(crate) fn holds(&self, path: &[u8]) -> bool {
        let path = path_without_query(path);
        self.predicates.iter().any(|predicate| match predicate {
            Predicate::Exact(exact) => exact.as_bytes() == path,
            Predicate::Ant(pattern) => ant_matches(pattern.as_bytes(), path),
            Predicate::Regex(pattern) => pattern.matches(path),
        })
    }
}
