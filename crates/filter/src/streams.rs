//! The streams that this VM knows.
//!
//! Envoy numbers contexts one after the other, so that the low bits of a number spread those that live at a time evenly:
//! a list for each of their values finds a stream in a few steps, in a tenth of a hash map's code.

use std::rc::Rc;

use sentinel_engine::worker::Entry;

use crate::{connection::Phase, listener::Listener};

/// A stream context.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The context's number.
    pub(crate) id: u32,
    pub(crate) listener: Rc<Listener>,
    /// Whether a filter of its chain may follow in this VM.
    pub(crate) is_followed: bool,
    /// What must be given back at its end; `None` also where it was refused.
    pub(crate) entry: Option<Entry>,
    /// How far a TCP connection is; `None`: it is an HTTP request.
    pub(crate) phase: Option<Box<Phase>>,
    /// Its messages; `None`: it has none.
    #[cfg(feature = "messages")]
    pub(crate) messages: Option<Box<crate::messages::Sent>>,
}

impl Stream {
    /// A stream that has just begun.
    pub(crate) fn new(id: u32, listener: Rc<Listener>) -> Self {
        Self {
            id,
            listener,
            is_followed: false,
            entry: None,
            phase: None,
            #[cfg(feature = "messages")]
            messages: None,
        }
    }
}

/// Streams by number.
#[derive(Debug)]
pub(crate) struct Streams {
    lists: [Vec<Stream>; LISTS],
}

/// At 10,000 streams at a time, a list has 40.
const LISTS: usize = 256;

impl Streams {
    pub(crate) fn new() -> Self {
        Self { lists: [const { Vec::new() }; LISTS] }
    }

    pub(crate) fn insert(&mut self, stream: Stream) {
        let [list, ..] = stream.id.to_le_bytes();
        if let Some(list) = self.lists.get_mut(usize::from(list)) {
            list.push(stream);
        }
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<Stream> {
        let (list, place) = self.find(id)?;
        Some(list.swap_remove(place))
    }

    #[inline(always)]
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let (list, place) = self.find(id)?;
        list.get_mut(place)
    }

    /// A stream that nobody has asked about. Envoy asks once for each; of a second entry the first one would never be given
    /// back.
    #[inline(always)]
    pub(crate) fn fresh(&mut self, id: u32) -> Option<&mut Stream> {
        let stream = self.get_mut(id)?;
        if stream.entry.is_some() || stream.phase.is_some() {
            return None;
        }
        Some(stream)
    }

    #[inline(always)]
    fn find(&mut self, id: u32) -> Option<(&mut Vec<Stream>, usize)> {
        let [list, ..] = id.to_le_bytes();
        let list = self.lists.get_mut(usize::from(list))?;
        for (place, stream) in list.iter().enumerate() {
            if stream.id == id {
                return Some((list, place));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use sentinel_core::config::FilterConfig;

    use super::*;

    #[test]
    fn a_stream_is_found_among_all_others_until_it_is_taken_out() {
        let listener = Listener::new(1, FilterConfig::default());
        let mut streams = Streams::new();
        for id in 2..2_000 {
            streams.insert(Stream::new(id, Rc::clone(&listener)));
        }
        for id in (2..2_000).filter(|id| id % 3 == 0) {
            assert_eq!(streams.remove(id).map(|stream| stream.id), Some(id));
        }
        for id in 0..2_100 {
            let is_there = (2..2_000).contains(&id) && id % 3 != 0;
            assert_eq!(streams.get_mut(id).map(|stream| stream.id), is_there.then_some(id));
        }
    }
}
