//! TCP: a connection is one entry, from its beginning to its end.
//!
//! Envoy asks about a connection before anybody has been told of it, so that one that is refused never touches the
//! upstream. What it is answered can only come from an upstream: that of `replyCluster`, whose words are replaced
//! by ours on the way to the client.

use sentinel_core::config::FilterConfig;
use sentinel_engine::{
    host::HostError,
    worker::{Blocked, Entry, Outcome, Verdict, Worker},
};
use sentinel_envoy::{
    EnvoyHost,
    dispatch::Flow,
    stream::{
        close_connection, number, property, replace_upstream_data, resume_connection,
        route_connection,
    },
};

use crate::{
    listener::Listener,
    reply,
    request::Asked,
    vm::{Vm, ask},
};

/// How far a connection is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It waits for its turn.
    Waits,
    /// It is with its upstream.
    Open,
    /// It is refused, and told this as soon as the reply's cluster says anything.
    Refused(Vec<u8>),
    /// It is being closed, and hears nothing more.
    Closing,
}

impl Vm {
    /// A client has connected.
    pub(crate) fn accept(&mut self, id: u32) -> Flow {
        let Self { host, worker, name, streams, .. } = self;
        let Some(stream) = streams.fresh(id) else { return Flow::Continue };
        let Listener { root, config } = &*stream.listener;
        let worker = worker.get_or_insert_with(|| Worker::start(host));
        let now = worker.time(host);
        write_name(config, name);
        let phase = match ask(host, worker, now, name, id, config, &mut Asked::new(config)) {
            Verdict::Pass(entry) => {
                stream.entry = Some(entry);
                Phase::Open
            }
            Verdict::Wait(entry, _) => {
                stream.entry = Some(entry);
                Phase::Waits
            }
            Verdict::Blocked(blocked) => refuse(&blocked, config, name, id),
        };
        let flow = match phase {
            Phase::Waits | Phase::Closing => Flow::Pause,
            Phase::Open | Phase::Refused(_) => Flow::Continue,
        };
        let waits = matches!(phase, Phase::Waits);
        stream.phase = Some(Box::new(phase));
        let root = *root;
        self.wake(root, id, waits);
        flow
    }

    /// The client has sent something. While it waits Envoy would take that for a reason to go on.
    pub(crate) fn hold_back(&mut self, id: u32) -> Flow {
        let phase = self.streams.get_mut(id).and_then(|stream| stream.phase.as_deref());
        match phase {
            Some(Phase::Waits | Phase::Closing) => Flow::Pause,
            Some(Phase::Open | Phase::Refused(_)) | None => Flow::Continue,
        }
    }

    /// The upstream has sent something, which the client may have to hear in other words.
    pub(crate) fn replace(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let Some(phase) = stream.phase.as_deref_mut() else { return };
        let text = match phase {
            Phase::Waits => return,
            Phase::Open => {
                let (Some(worker), Some(entry)) = (&mut self.worker, &stream.entry) else { return };
                let Some(blocked) = worker.cut(&mut self.host, entry) else { return };
                let listener = &stream.listener;
                write_name(&listener.config, &mut self.name);
                self.closing.push(id);
                reply::text(&blocked, &self.name, listener.config.expose_rule)
            }
            Phase::Refused(text) => core::mem::take(text),
            Phase::Closing => Vec::new(),
        };
        *phase = Phase::Closing;
        let root = stream.listener.root;
        if !self.closing.is_empty() {
            self.wake(root, id, true);
        }
        if let Err(error) = replace_upstream_data(&text) {
            reply::complain("to replace an upstream's data", error);
        }
    }
}

/// Replaces what stands in `name` by what the current connection is called.
fn write_name(config: &FilterConfig, name: &mut Vec<u8>) {
    name.clear();
    if let Some(own) = &config.connection_name {
        name.extend_from_slice(own.as_bytes());
        return;
    }
    let address = property("destination\0address").unwrap_or_default();
    let port = address.rsplit(|byte| *byte == b':').next();
    name.extend_from_slice(b"tcp:");
    name.extend_from_slice(port.unwrap_or_default());
}

/// Refuses the current connection.
fn refuse(blocked: &Blocked, config: &FilterConfig, name: &[u8], id: u32) -> Phase {
    let text = reply::text(blocked, name, config.expose_rule);
    if let Some(cluster) = &config.reply_cluster {
        match route_connection(cluster) {
            Ok(()) => return Phase::Refused(text),
            Err(error) => reply::complain("to route a refused connection", error),
        }
    }
    if let Err(error) = close_connection(id, id) {
        reply::complain("to close a connection", error);
    }
    Phase::Closing
}

/// Lets a connection that has waited go on, in a callback of `current`.
pub(crate) fn resume(phase: &mut Phase, id: u32, current: u32) -> Result<(), HostError> {
    *phase = Phase::Open;
    resume_connection(id, current)
}

/// Closes those that have heard all they were to hear.
pub(crate) fn close_all(closing: &mut Vec<u32>, current: u32) {
    for id in closing.drain(..) {
        // Refused for one that has gone before.
        let _ = close_connection(id, current);
    }
}

/// How the connection of the current callback has ended.
pub(crate) fn end(
    host: &mut EnvoyHost,
    worker: &mut Worker,
    entry: &Entry,
    phase: &Phase,
) -> Outcome {
    let bytes = |path| number(path).unwrap_or(0);
    worker.count_bytes(host, entry, bytes("request\0size"), bytes("response\0size"));
    let was_cut = matches!(phase, Phase::Closing);
    if entry.needs_status() && !was_cut && bytes("response\0flags") & UPSTREAM_FAILED != 0 {
        Outcome::FAILED
    } else {
        Outcome::OK
    }
}

/// Envoy's response flags of a connection whose upstream could not be reached or has broken off: no healthy upstream (UH), its
/// reset (UR, from Envoy 1.40 on), connect failure (UF), termination (UC), overflow (UO), no route or cluster (NR, NC), no
/// address (DF).
const UPSTREAM_FAILED: u64 = 0x2 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 1 << 24 | 1 << 26;
