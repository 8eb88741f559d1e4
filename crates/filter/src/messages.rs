//! What clients send in streams, for rules that say `unit: message`.
//!
//! Only in the module that is built with the feature `messages`. The bytes stay in Envoy: from here they are looked at where
//! headers of frames stand, and held or let go as they came.

use sentinel_core::{
    block::is_grpc,
    message::{Chunk, Framing, MessageReader},
    param::{Param, ParamValue, Request},
};
use sentinel_engine::worker::{Call, MessageVerdict, Messages, Worker};
use sentinel_envoy::{
    dispatch::DataFlow,
    stream::{Bytes, request_body, request_header, response_header},
};

use crate::{reply, request::Asked, streams::Stream, vm::Vm};

/// What a client sends in one stream.
#[derive(Debug)]
pub(crate) struct Sent {
    reader: MessageReader,
    /// Whether the client understands replies in gRPC's form.
    is_grpc: bool,
    resource: Vec<u8>,
    answers: Answers,
    /// How many times the worker will name the stream before it may go on, and since when it is held.
    held: u32,
    held_since: Option<sentinel_core::time::Nanos>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Refused,
}

/// What rules have asked of the request while it could be read: with its body Envoy shows its headers no more.
#[derive(Debug, Default)]
struct Answers {
    params: Vec<(Param, Option<ParamValue>)>,
    args: Vec<(i32, Option<ParamValue>)>,
    origin: Vec<u8>,
}

/// Asks the request, and notes what it says.
struct Noting<'a, 'b> {
    request: &'a mut Asked<'b>,
    answers: Answers,
}

/// Bytes of a body, read in windows: to look at a header costs a host call, but not for each byte, nor for each of many
/// small messages.
struct Body {
    size: usize,
    window: Bytes,
    start: usize,
}

/// Of a chunk of 16 KiB of small messages that is 16 reads.
const WINDOW_BYTES: usize = 1_024;

impl Sent {
    /// The messages of an admitted request, if it can have any.
    pub(crate) fn begin(
        worker: &mut Worker,
        resource: &[u8],
        request: &mut Asked<'_>,
        stream: u32,
    ) -> Option<Box<Self>> {
        let content_type = request_header("content-type").unwrap_or_default();
        let framing = Framing::of(&content_type, &request_header("upgrade").unwrap_or_default())?;
        let origin = request.origin();
        let mut noting = Noting { request, answers: Answers { origin, ..Answers::default() } };
        worker.foresee_messages(&call(resource, stream), &mut noting);
        Some(Box::new(Self {
            reader: MessageReader::new(framing),
            is_grpc: is_grpc(&content_type),
            resource: resource.to_vec(),
            answers: noting.answers,
            held: 0,
            held_since: None,
            state: State::Open,
        }))
    }

    /// Whether a message was refused, and the stream with it.
    pub(crate) fn is_refused(&self) -> bool {
        self.state == State::Refused
    }

    /// The stream has ended.
    pub(crate) fn end(&self, worker: &mut Worker, stream: u32) {
        if self.held > 0 {
            worker.forget_held(stream);
        }
        // A stream whose response has begun gets no reply of ours: Envoy resets it then.
        if self.is_refused() && response_header("x-sentinel-block").is_none() {
            worker.count_reset(&self.resource);
        }
    }
}

impl Stream {
    /// The worker says that the stream need not wait any longer. `false`: there is more that it waits for.
    pub(crate) fn may_go_on(&mut self) -> bool {
        let Some(sent) = self.messages.as_mut().filter(|sent| sent.held > 0) else { return true };
        sent.held -= 1;
        if sent.held == 0 {
            sent.held_since = None;
        }
        sent.held == 0
    }
}

impl Vm {
    /// Bytes of a request's body are there.
    pub(crate) fn enter_messages(&mut self, id: u32, size: usize) -> DataFlow {
        let Some(stream) = self.streams.get_mut(id) else { return DataFlow::Continue };
        let Some(sent) = &mut stream.messages else { return DataFlow::Continue };
        if sent.is_refused() {
            return DataFlow::Drop;
        }
        let Some(worker) = &mut self.worker else { return DataFlow::Continue };
        let mut body = Body { size, window: Bytes::default(), start: 0 };
        let Ok(count) = sent.reader.feed(&mut body) else {
            // Never over: what cannot be counted does not go on.
            log::error!("Envoy does not show the body of a stream whose messages are counted");
            sent.state = State::Refused;
            reply::send_unreadable();
            return DataFlow::Drop;
        };
        if count == 0 {
            return if sent.held > 0 { DataFlow::Hold } else { DataFlow::Continue };
        }
        let host = &mut self.host;
        let held = sent.held_since.map(|since| worker.time(host).since(since));
        let messages = Messages { count, held };
        let call = call(&sent.resource, id);
        let verdict = worker.enter_messages(host, &call, messages, &mut sent.answers);
        let root = stream.listener.root;
        let flow = match verdict {
            MessageVerdict::Pass if sent.held == 0 => DataFlow::Continue,
            MessageVerdict::Pass => DataFlow::Hold,
            MessageVerdict::Wait => {
                sent.held += 1;
                sent.held_since.get_or_insert_with(|| worker.time(host));
                DataFlow::Hold
            }
            MessageVerdict::Blocked(blocked) => {
                sent.state = State::Refused;
                let expose_rule = stream.listener.config.expose_rule;
                reply::send(&blocked, &sent.resource, expose_rule, sent.is_grpc, &mut self.reply);
                DataFlow::Drop
            }
        };
        let waits = flow == DataFlow::Hold;
        self.wake(root, id, waits);
        flow
    }
}

/// A stream's messages are asked about as its request was.
fn call(resource: &[u8], stream: u32) -> Call<'_> {
    Call { resource, batch: 1, inbound: true, stream, before_first_rules: None }
}

impl Request for Noting<'_, '_> {
    fn param(&mut self, param: &Param) -> Option<ParamValue> {
        let value = self.request.param(param);
        self.answers.params.push((param.clone(), value.clone()));
        value
    }

    fn arg(&mut self, index: i32) -> Option<ParamValue> {
        let value = self.request.arg(index);
        self.answers.args.push((index, value.clone()));
        value
    }

    fn origin(&mut self) -> Vec<u8> {
        self.answers.origin.clone()
    }

    fn path(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

/// What nobody had asked before cannot be answered: a rule that comes later and counts by it looks at streams that begin
/// later.
impl Request for Answers {
    fn param(&mut self, param: &Param) -> Option<ParamValue> {
        self.params.iter().find(|(known, _)| known == param)?.1.clone()
    }

    fn arg(&mut self, index: i32) -> Option<ParamValue> {
        self.args.iter().find(|(known, _)| *known == index)?.1.clone()
    }

    fn origin(&mut self) -> Vec<u8> {
        self.origin.clone()
    }

    fn path(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

impl Chunk for Body {
    fn size(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(u64::MAX)
    }

    fn byte(&mut self, at: u64) -> Option<u8> {
        let at = usize::try_from(at).ok()?;
        let in_window = at.checked_sub(self.start).and_then(|place| self.window.get(place));
        if let Some(byte) = in_window {
            return Some(*byte);
        }
        // One at a time.
        self.window = Bytes::default();
        self.window = request_body(at, WINDOW_BYTES)?;
        self.start = at;
        self.window.first().copied()
    }
}
