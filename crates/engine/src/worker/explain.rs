//! Which rules a request meets, for those who want to know why it is answered as it is.

use alloc::{rc::Rc, vec::Vec};
use core::cmp::Ordering;

use sentinel_core::{
    order::sort_by,
    param::Request,
    rule::{Rule, Unit},
};

use super::{Call, Worker};

impl Worker {
    /// The rules of the request's resource and of its API groups, in the order in which they are checked, of
    /// which the first that refuses is shown, each with whether it wants anything of this request. One that does not passes it: it is about others, or it refuses
    /// nothing as things stand. Nothing is claimed, and nothing is counted.
    pub fn rules_of(
        &mut self,
        call: &Call<'_>,
        request: &mut dyn Request,
    ) -> Vec<(Rc<Rule>, bool)> {
        let mut rules = self.book.applying(&self.clock, call.resource).rules.to_vec();
        let path = request.path();
        for group in self.book.groups.iter().filter(|group| group.holds(&path)) {
            rules.extend_from_slice(&group.rules);
        }
        sort_by(&mut rules, |a, b| match (self.book.rule(*a), self.book.rule(*b)) {
            (Some(a), Some(b)) if a.is_checked_before(b) => Ordering::Less,
            (Some(a), Some(b)) if b.is_checked_before(a) => Ordering::Greater,
            _ => Ordering::Equal,
        });
        let mut origin = None;
        let mut met = Vec::with_capacity(rules.len());
        for index in rules {
            let asks = self.question(index, Unit::Request, call, request, &mut origin).is_some();
            if let Some(state) = self.book.rule(index) {
                met.push((Rc::clone(&state.rule), asks));
            }
        }
        met
    }
}
