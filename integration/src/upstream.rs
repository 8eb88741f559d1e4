//! The server behind Envoy: it writes down when each request arrived, and answers.
//!
//! What arrives here has been admitted, so this list is what limits are judged by. HTTP/1.1 and h2c on one
//! loopback port.
//!
//! A request says what it wants in headers, all optional: [`RESOURCE`] (the name it is written down under,
//! else `METHOD:/path`), [`SENT_AT`] (when its client sent it), [`STATUS`] (the status of the answer) and
//! [`LATENCY_MS`] (how long to wait with it).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
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

/// A running upstream. Stops when dropped.
pub struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
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
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| {
            format!("cannot listen on 127.0.0.1:{port} for the upstream: stop what holds the port, or choose another")
        })?;
        listener.set_nonblocking(true).context("cannot make the upstream's socket non-blocking")?;
        let address = listener.local_addr().context("the upstream's socket has no address")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime for the upstream")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn({
                let seen = Arc::clone(&seen);
                move || runtime.block_on(serve(listener, seen, stopped))
            })
            .context("cannot start a thread for the upstream")?;
        Ok(Self { address, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have arrived since the last [`take`](Self::take).
    #[must_use]
    pub fn seen(&self) -> usize {
        self.locked().arrivals.len()
    }

    /// What has arrived since the last call, by name, each in order of arrival.
    #[must_use]
    pub fn take(&self) -> BTreeMap<String, Vec<Arrival>> {
        let seen = std::mem::take(&mut *self.locked());
        let mut by_index: BTreeMap<usize, Vec<Arrival>> = BTreeMap::new();
        for (name, arrival) in seen.arrivals {
            by_index.entry(name).or_default().push(arrival);
        }
        seen.names
            .into_iter()
            .map(|(name, index)| (name, by_index.remove(&index).unwrap_or_default()))
            .collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Upstream {
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

/// Arrivals with their names as numbers: thousands of requests a second share a handful of names.
#[derive(Default)]
struct Seen {
    names: BTreeMap<String, usize>,
    arrivals: Vec<(usize, Arrival)>,
}

impl Seen {
    fn note(&mut self, name: &str, arrival: Arrival) {
        let index = if let Some(index) = self.names.get(name) {
            *index
        } else {
            let next = self.names.len();
            self.names.insert(name.to_owned(), next);
            next
        };
        self.arrivals.push((index, arrival));
    }
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

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Seen>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let arrived_ns = clock::wall_nanos();
    let headers = request.headers();
    let sent_ns = number(headers, SENT_AT).unwrap_or(arrived_ns);
    let arrival = Arrival { sent_ns, arrived_ns };
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match headers.get(RESOURCE).and_then(|name| name.to_str().ok()) {
            Some(name) => seen.note(name, arrival),
            None => seen.note(&format!("{}:{}", request.method(), request.uri().path()), arrival),
        }
    }
    if let Some(latency_ms) = number(headers, LATENCY_MS) {
        tokio::time::sleep(Duration::from_millis(latency_ms)).await;
    }
    let status = number(headers, STATUS).and_then(|status| u16::try_from(status).ok());
    let mut response = Response::new(Full::new(Bytes::from_static(b"hello from the upstream\n")));
    *response.status_mut() =
        status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    Ok(response)
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
