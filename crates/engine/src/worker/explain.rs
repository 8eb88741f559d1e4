//! Which rules a request meets, for those who want to know why it is answered as it is.

use alloc::{rc::Rc, vec::Vec};

use sentinel_core::{param::Request, rule::Rule};

use super::{Call, Worker};
use crate::rulebook::ascending;

impl Worker {
    /// The rules of the request's resource and of its API groups, in the order in which they are asked, each with
    /// whether it wants anything of this request. One that does not passes it: it is about others, or it refuses
    /// nothing as things stand. Nothing is claimed, and nothing is counted.
    pub fn rules_of(
        &mut self,
        call: &Call<'_>,
        request: &mut dyn Request,
    ) -> Vec<(Rc<Rule>, bool)> {
        let hash = self.clock.hash(call.resource);
        let mut rules = self.book.applying(hash, call.resource).rules.to_vec();
        let path = request.path();
        for group in self.book.groups.iter().filter(|group| group.holds(&path)) {
            rules.extend_from_slice(&group.rules);
        }
        ascending(&mut rules);
        let mut origin = None;
        let mut met = Vec::with_capacity(rules.len());
        for index in rules {
            let asks = self.question(index, call, request, &mut origin).is_some();
            if let Some(state) = self.book.rule(index) {
                met.push((Rc::clone(&state.rule), asks));
            }
        }
        met
    }
}
