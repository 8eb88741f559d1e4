//! Envoy's shared queues.
//!
//! A queue outlives whoever registered it, has no bound, and sends one wake-up per message to its last
//! registrant. If that one's VM is gone the wake-up is lost and the message stays.

use std::collections::VecDeque;

/// All queues of a process; a queue's token is its place.
#[derive(Debug, Default)]
pub struct SharedQueues {
    queues: Vec<Queue>,
    wake_ups: Vec<u32>,
}

#[derive(Debug)]
struct Queue {
    name: String,
    registrant: u32,
    messages: VecDeque<Vec<u8>>,
}

/// There is no queue with this token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchQueue;

impl SharedQueues {
    /// Makes the VM `registrant` the one that is woken up; creates the queue if there is none. What is on
    /// it stays, and wakes nobody up.
    pub fn register(&mut self, name: &str, registrant: u32) -> u32 {
        if let Some(token) = self.resolve(name) {
            if let Some(queue) = self.queue(token) {
                queue.registrant = registrant;
            }
            return token;
        }
        self.queues.push(Queue { name: name.to_owned(), registrant, messages: VecDeque::new() });
        u32::try_from(self.queues.len()).unwrap_or(u32::MAX)
    }

    /// The token of the queue `name`, if somebody has registered it.
    pub fn resolve(&self, name: &str) -> Option<u32> {
        (1..).zip(&self.queues).find(|(_, queue)| queue.name == name).map(|(token, _)| token)
    }

    /// Puts `message` at the end, and wakes the registrant up.
    pub fn enqueue(&mut self, token: u32, message: &[u8]) -> Result<(), NoSuchQueue> {
        let queue = self.queue(token).ok_or(NoSuchQueue)?;
        queue.messages.push_back(message.to_vec());
        let registrant = queue.registrant;
        self.wake_ups.push(registrant);
        Ok(())
    }

    /// Takes the oldest message.
    pub fn dequeue(&mut self, token: u32) -> Result<Option<Vec<u8>>, NoSuchQueue> {
        Ok(self.queue(token).ok_or(NoSuchQueue)?.messages.pop_front())
    }

    /// VMs to be woken up since the last call, once for each message.
    pub fn take_wake_ups(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.wake_ups)
    }

    /// Messages that wait, over all queues.
    pub fn backlog(&self) -> usize {
        self.queues.iter().map(|queue| queue.messages.len()).sum()
    }

    fn queue(&mut self, token: u32) -> Option<&mut Queue> {
        let place = usize::try_from(token).ok()?.checked_sub(1)?;
        self.queues.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_registrant_is_woken_up_once_for_each_message() {
        let mut queues = SharedQueues::default();
        let token = queues.register("q", 1);
        queues.enqueue(token, b"a").unwrap();
        assert_eq!(queues.register("q", 2), token);
        queues.enqueue(token, b"b").unwrap();
        queues.enqueue(token, b"c").unwrap();

        assert_eq!(queues.take_wake_ups(), [1, 2, 2]);
        assert_eq!(queues.dequeue(token), Ok(Some(b"a".to_vec())));
    }

    #[test]
    fn nobody_finds_a_queue_that_nobody_has_registered() {
        let mut queues = SharedQueues::default();

        assert_eq!(queues.resolve("q"), None);
        assert_eq!(queues.enqueue(1, b"a"), Err(NoSuchQueue));
    }
}
