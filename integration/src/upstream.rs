//! The server behind Envoy: it writes down when each request arrived, and answers.
//!
//! What arrives here has been admitted, so this list is what limits are judged by. HTTP/1.1 and h2c on one
//! loopback port.
//!
//! A request says what it wants in headers, all optional: [`RESOURCE`] (the name it is written down under,
//! else `METHOD:/path`), [`SENT_AT`] (when its client sent it), [`STATUS`] (the status of the answer),
//! [`LATENCY_MS`] (how long to wait with it), [`RESET`] (none at all). By hand status and latency are easier in the query: `?ms=50&status=500`. What
//! nobody asks for can be set from here, for all requests of a name and at any moment ([`Upstream::behave`]).
//!
//! A request is *open* from its arrival until the upstream is done with it or Envoy has let go of it, whichever is first. One
//! whose client has gone without Envoy letting go (an orphan of a trapped VM) is open like any other.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::clock;
use crate::windows::Arrival;

/// Header: the name the request is written down under.
pub const RESOURCE: &str = "x-resource";
/// Header: when the client sent the request, wall clock, nanoseconds.
pub const SENT_AT: &str = "x-sent-at";
/// Header: the status to answer with, default 200.
pub const STATUS: &str = "x-status";
/// Header: milliseconds to wait before answering, default 0.
pub const LATENCY_MS: &str = "x-latency-ms";
/// Header: if it is there, the connection is closed instead of an answer.
pub const RESET: &str = "x-reset";

/// How requests are answered that do not ask for anything themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// How long an answer takes.
    pub latency: Duration,
    /// Its HTTP status; `None`: none at all, the connection is closed instead.
    pub status: Option<u16>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { latency: Duration::ZERO, status: Some(200) }
    }
}

impl Behaviour {
    /// Answers with this status, at once.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// Takes so long.
    #[must_use]
    pub fn after_ms(self, latency_ms: u64) -> Self {
        Self { latency: Duration::from_millis(latency_ms), ..self }
    }

    /// Closes the connection instead of an answer.
    #[must_use]
    pub fn reset() -> Self {
        Self { status: None, ..Self::default() }
    }
}

/// Requests of one name that the upstream has not done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Now.
    pub now: u64,
    /// The most there were at a time since the last [`Upstream::take`].
    pub most: u64,
    /// Those that Envoy let go of before they were answered, since the last [`Upstream::take`].
    pub abandoned: u64,
}

/// A running upstream. Stops when dropped.
pub struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// `None` while its port is closed.
    running: Mutex<Option<Running>>,
}

/// The thread that listens and answers. Gone when dropped, and all connections with it.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts one on a loopback port: `port`, or with 0 one that the system chooses.
    ///
    /// # Errors
    ///
    /// When the port is taken, naming it.
    pub fn start(port: u16) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (address, running) = Running::start(port, &seen)?;
        Ok(Self { address, seen, running: Mutex::new(Some(running)) })
    }

    /// Closes its port and breaks off all connections. What it has seen stays known.
    pub fn close(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(running);
    }

    /// Listens again where it did.
    ///
    /// # Errors
    ///
    /// When somebody else has taken the port meanwhile.
    pub fn reopen(&self) -> Result<()> {
        self.close();
        let (_, running) = Running::start(self.address.port(), &self.seen)?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have arrived since the last [`take`](Self::take).
    #[must_use]
    pub fn seen(&self) -> usize {
        self.locked().arrived
    }

    /// How requests of this name are answered from now on.
    pub fn behave(&self, name: &str, behaviour: Behaviour) {
        self.locked().name(name).behaviour = behaviour;
    }

    /// What is open of this name.
    #[must_use]
    pub fn open(&self, name: &str) -> Open {
        self.locked().name(name).open
    }

    /// How many requests of this name have arrived since the last [`take`](Self::take).
    #[must_use]
    pub fn arrived(&self, name: &str) -> usize {
        self.locked().name(name).arrivals.len()
    }

    /// When answers of this name with a status of 500 or more went out since the last [`take`](Self::take), wall clock,
    /// nanoseconds, in order.
    #[must_use]
    pub fn failed_ns(&self, name: &str) -> Vec<u64> {
        self.locked().name(name).failed_ns.clone()
    }

    /// What has arrived since the last call, by name, each in order of arrival. What is open stays so.
    #[must_use]
    pub fn take(&self) -> BTreeMap<String, Vec<Arrival>> {
        let mut seen = self.locked();
        seen.arrived = 0;
        let mut all = BTreeMap::new();
        for (name, index) in seen.names.clone() {
            let Some(named) = seen.by_index.get_mut(index) else { continue };
            named.failed_ns.clear();
            named.open = Open { now: named.open.now, most: named.open.now, abandoned: 0 };
            let arrivals = std::mem::take(&mut named.arrivals);
            if !arrivals.is_empty() {
                all.insert(name, arrivals);
            }
        }
        all
    }

    fn locked(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

impl Running {
    fn start(port: u16, seen: &Arc<Mutex<Seen>>) -> Result<(SocketAddr, Self)> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| {
            format!("cannot listen on 127.0.0.1:{port} for the upstream: stop what holds the port, or choose another")
        })?;
        listener.set_nonblocking(true).context("cannot make the upstream's socket non-blocking")?;
        let address = listener.local_addr().context("the upstream's socket has no address")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime for the upstream")?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn({
                let seen = Arc::clone(seen);
                move || runtime.block_on(serve(listener, seen, stopped))
            })
            .context("cannot start a thread for the upstream")?;
        Ok((address, Self { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the upstream's thread has been printed already; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Upstream at {}, {} arrivals", self.address, self.seen())
    }
}

/// All that is known of each name; a name is a number here, since thousands of requests a second share a handful of them.
#[derive(Default)]
struct Seen {
    names: BTreeMap<String, usize>,
    by_index: Vec<Named>,
    arrived: usize,
}

#[derive(Default)]
struct Named {
    behaviour: Behaviour,
    arrivals: Vec<Arrival>,
    failed_ns: Vec<u64>,
    open: Open,
}

impl Seen {
    fn index(&mut self, name: &str) -> usize {
        if let Some(index) = self.names.get(name) {
            return *index;
        }
        let next = self.by_index.len();
        self.by_index.push(Named::default());
        self.names.insert(name.to_owned(), next);
        next
    }

    #[expect(clippy::indexing_slicing, reason = "an index is only ever made by `index`")]
    fn name(&mut self, name: &str) -> &mut Named {
        let index = self.index(name);
        &mut self.by_index[index]
    }
}

/// One open request; however it ends, it is dropped.
struct Visit {
    seen: Arc<Mutex<Seen>>,
    index: usize,
    answered: bool,
}

impl Visit {
    fn begin(seen: Arc<Mutex<Seen>>, name: &str, arrival: Arrival) -> (Self, Behaviour) {
        let mut locked = lock(&seen);
        locked.arrived += 1;
        let index = locked.index(name);
        let named = locked.name(name);
        named.arrivals.push(arrival);
        named.open.now += 1;
        named.open.most = named.open.most.max(named.open.now);
        let behaviour = named.behaviour;
        drop(locked);
        (Self { seen, index, answered: false }, behaviour)
    }

    fn answered(mut self, status: StatusCode) {
        self.answered = true;
        if status.is_server_error()
            && let Some(named) = lock(&self.seen).by_index.get_mut(self.index)
        {
            named.failed_ns.push(clock::wall_nanos());
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(named) = lock(&self.seen).by_index.get_mut(self.index) {
            named.open.now -= 1;
            named.open.abandoned += u64::from(!self.answered);
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    listener: std::net::TcpListener,
    seen: Arc<Mutex<Seen>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
        };
        // A connection that could not be accepted is its client's failure, who will report it.
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(request, Arc::clone(&seen)));
            // Connections end in every way a test makes them end; the answers are judged at the client.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// The error closes the connection.
async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Seen>>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let arrived_ns = clock::wall_nanos();
    let headers = request.headers();
    let sent_ns = number(headers, SENT_AT).unwrap_or(arrived_ns);
    let arrival = Arrival { sent_ns, arrived_ns };
    let (visit, behaviour) = match headers.get(RESOURCE).and_then(|name| name.to_str().ok()) {
        Some(name) => Visit::begin(seen, name, arrival),
        None => {
            let name = format!("{}:{}", request.method(), request.uri().path());
            Visit::begin(seen, &name, arrival)
        }
    };
    let query = request.uri().query().unwrap_or("");
    let asked = |header, field| number(headers, header).or_else(|| query_number(query, field));
    let resets = headers.contains_key(RESET);
    let latency = asked(LATENCY_MS, "ms").map_or(behaviour.latency, Duration::from_millis);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let status = asked(STATUS, "status").and_then(|status| u16::try_from(status).ok());
    let status = status.or(behaviour.status).filter(|_| !resets);
    let Some(status) = status else {
        return Err(io::Error::from(io::ErrorKind::ConnectionReset));
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    visit.answered(status);
    let mut response = Response::new(Full::new(Bytes::from_static(b"hello from the upstream\n")));
    *response.status_mut() = status;
    Ok(response)
}

fn query_number(query: &str, field: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.strip_prefix(field)?.strip_prefix('=')?.parse().ok())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The one name that arrived, with its arrivals: for tests that use one resource.
///
/// # Errors
///
/// When several names arrived, listing them.
pub fn only(mut seen: BTreeMap<String, Vec<Arrival>>) -> Result<Vec<Arrival>> {
    if seen.len() > 1 {
        bail!(
            "expected one resource at the upstream, but saw {:?}",
            seen.keys().collect::<Vec<_>>()
        );
    }
    Ok(seen.pop_first().map(|(_, arrivals)| arrivals).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;

    #[test]
    fn a_request_gets_what_it_asks_for_else_what_was_set() {
        let upstream = Upstream::start(0).unwrap();
        upstream.behave("GET:/ill", Behaviour::status(503));

        let status = |path| client::get(upstream.address(), path).unwrap().status;
        assert_eq!(status("/well"), 200);
        assert_eq!(status("/well?ms=1&status=404"), 404);
        assert_eq!(status("/ill"), 503);
        assert_eq!(status("/ill?status=200"), 200);

        assert_eq!(upstream.failed_ns("GET:/ill").len(), 1);
        let open = upstream.open("GET:/ill");
        assert_eq!(open, Open { now: 0, most: 1, abandoned: 0 });
        assert_eq!(upstream.take()["GET:/ill"].len(), 2);
        assert_eq!(upstream.arrived("GET:/ill"), 0);
    }

    #[test]
    fn a_request_without_an_answer_was_open_and_is_no_more() {
        let upstream = Upstream::start(0).unwrap();
        upstream.behave("GET:/gone", Behaviour::reset());

        assert!(client::get(upstream.address(), "/gone").is_err());

        assert_eq!(upstream.open("GET:/gone"), Open { now: 0, most: 1, abandoned: 1 });
    }
}
