//! One thread of Envoy: its VM, what waits for it, and its timer.

use std::collections::VecDeque;

use crate::vm::{Order, Said, Vm};

/// A thread.
pub(crate) struct Thread {
    vm: Option<Vm>,
    /// What the VM does when it goes on; `None` while it is idle.
    next: Option<Order>,
    inbox: VecDeque<Order>,
    /// The thread does something else until then.
    pub(crate) stalled_until: u64,
    /// The VM traps after so many more calls.
    pub(crate) doomed_in: Option<u32>,
    /// Whether Envoy loads the VM again after a trap.
    pub(crate) revives: bool,
    /// Which arming of the timer is the last; an earlier one fires no more.
    pub(crate) armed: u64,
    /// The period that the timer was armed with last.
    pub(crate) period_ms: u32,
    /// Requests passed and refused since the end of the last tick.
    pub(crate) unreported: (u64, u64),
    /// The same of messages.
    pub(crate) unreported_messages: u64,
    /// Calls since the beginning of the order in hand.
    pub(crate) calls: u32,
    entering: Option<Order>,
}

impl Default for Thread {
    fn default() -> Self {
        Self {
            vm: None,
            next: None,
            inbox: VecDeque::new(),
            stalled_until: 0,
            doomed_in: None,
            revives: true,
            armed: 0,
            period_ms: 0,
            unreported: (0, 0),
            unreported_messages: 0,
            calls: 0,
            entering: None,
        }
    }
}

impl Thread {
    pub(crate) fn begin_life(&mut self, vm: Vm) {
        self.vm = Some(vm);
    }

    pub(crate) fn vm_id(&self) -> Option<u32> {
        self.vm.as_ref().map(|vm| vm.id)
    }

    pub(crate) fn vm_mut(&mut self) -> Option<&mut Vm> {
        self.vm.as_mut()
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.next.is_some()
    }

    /// Takes an order in. `true` if the VM was idle and begins with it.
    pub(crate) fn accept(&mut self, order: Order) -> bool {
        if self.vm.is_none() {
            return false;
        }
        self.inbox.push_back(order);
        !self.is_busy() && self.begin_next()
    }

    /// Begins with the next order, if there is one.
    pub(crate) fn begin_next(&mut self) -> bool {
        self.next = self.inbox.pop_front();
        self.entering = self.next.clone();
        self.calls = 0;
        self.is_busy()
    }

    /// Lets the VM run to its next call, or to the end of its order. `None` if it has ended by itself.
    pub(crate) fn go_on(&mut self) -> Option<Said> {
        let order = self.next.replace(Order::GoOn)?;
        let said = self.vm.as_mut()?.resume(order)?;
        if matches!(said, Said::Done(_)) {
            self.next = None;
            self.entering = None;
        }
        Some(said)
    }

    /// Counts a call of a VM that is about to trap. `true` if it was the last.
    pub(crate) fn is_doomed_now(&mut self) -> bool {
        match &mut self.doomed_in {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// The VM is gone. What it had begun and what waited for it is returned: none of it gets an answer.
    pub(crate) fn die(&mut self) -> Vec<Order> {
        self.vm = None;
        self.next = None;
        self.doomed_in = None;
        self.armed += 1;
        self.entering.take().into_iter().chain(self.inbox.drain(..)).collect()
    }
}
