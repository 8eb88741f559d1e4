//! Many clients at once: requests at a rate, or as fast as they are answered.
//!
//! Each connection has one request in flight. With a [`Rate`] each request has its moment, whatever the answers before it
//! did, and a connection that comes late catches up: so the rate is offered as long as the connections
//! together can carry it. What was really offered is in the [`Report`].
//!
//! All connections run on one thread: next to Envoy's workers that is all the machine can spare, and it carries
//! well over 20,000 requests a second.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::clock;
use crate::upstream::SENT_AT;
use crate::windows::Arrival;

/// One kind of request in the mix.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What the report calls it.
    pub name: String,
    /// The method, such as `GET`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers besides `host`. In a value, `{turn}` stands for the number of the request in the run.
    pub headers: Vec<(String, String)>,
    /// How many of it go out for each one of a kind with weight 1; 0: none.
    pub weight: u32,
}

impl Ask {
    /// GET of `path`, named as Sentinel names it by default: `GET:/path`.
    #[must_use]
    pub fn get(path: &str) -> Self {
        let resource_path = path.split('?').next().unwrap_or(path);
        Self {
            name: format!("GET:{resource_path}"),
            method: "GET".to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            weight: 1,
        }
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }
}

/// How fast requests go out.
#[derive(Clone, Copy, Debug)]
pub enum Rate {
    /// So many a second over all connections.
    PerSecond(u32),
    /// Each as soon as the one before it on its connection is answered.
    Max,
}

/// When it is enough.
#[derive(Clone, Debug)]
pub enum Until {
    /// After so long.
    Elapsed(Duration),
    /// After so many requests.
    Sent(u64),
    /// As soon as this says so.
    Stopped(Arc<AtomicBool>),
}

/// A whole run of load.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to send it.
    pub server: SocketAddr,
    /// The mix, at least one.
    pub asks: Vec<Ask>,
    /// Connections, at least 1.
    pub connections: u32,
    /// How fast.
    pub rate: Rate,
    /// How long.
    pub until: Until,
}

/// What clients saw of one kind of request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When each was sent, wall clock, nanoseconds, in order.
    pub sent_ns: Vec<u64>,
    /// When each that was answered was sent, and when the answer arrived: in between, Envoy decided.
    pub answered: Vec<Arrival>,
    /// Answers by HTTP status.
    pub by_status: BTreeMap<u16, u64>,
    /// Refusals by the rule that the `x-sentinel-rule` header names.
    pub by_rule: BTreeMap<String, u64>,
    /// Requests that got no answer, by what happened instead.
    pub errors: BTreeMap<String, u64>,
}

impl Seen {
    /// How many were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        u64::try_from(self.sent_ns.len()).unwrap_or(u64::MAX)
    }

    /// How many were answered with this status.
    #[must_use]
    pub fn status(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }

    /// How many Sentinel refused, whatever their status: their answers name the rule.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.by_rule.values().sum()
    }
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By name of the kind.
    pub asks: BTreeMap<String, Seen>,
    /// From the first request sent to the last, wall clock, nanoseconds.
    pub span_ns: Range<u64>,
}

impl Report {
    /// How many requests were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.asks.values().map(Seen::sent).sum()
    }

    /// How many were answered with this status.
    #[must_use]
    pub fn status(&self, status: u16) -> u64 {
        self.asks.values().map(|seen| seen.status(status)).sum()
    }

    /// How many Sentinel refused, whatever their status.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.asks.values().map(Seen::refused).sum()
    }

    /// Requests that got no answer, by what happened instead.
    #[must_use]
    pub fn errors(&self) -> BTreeMap<String, u64> {
        let mut errors = BTreeMap::new();
        for (error, count) in self.asks.values().flat_map(|seen| &seen.errors) {
            *errors.entry(error.clone()).or_default() += count;
        }
        errors
    }

    /// What was really offered, requests a second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let span_ms = (self.span_ns.end - self.span_ns.start) / 1_000_000;
        (self.sent() * 1000).checked_div(span_ms).unwrap_or(0)
    }
}

/// Sends the load and returns when the last answer is in.
///
/// # Errors
///
/// When the plan cannot be carried out as it stands, or the first connections are refused. Requests that get no answer are no
/// error of the run but counted in the report.
pub fn run(plan: &Plan) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Timers and sockets are looked at after so many tasks: often enough to keep the rate, seldom enough to be cheap.
        .event_interval(31)
        .build()
        .context("cannot start a runtime for the load")?;
    let shared = Rc::new(Shared::new(plan)?);
    let connections = plan.connections;
    runtime.block_on(LocalSet::new().run_until(async {
        let mut senders = Vec::new();
        for _ in 0..connections {
            senders.push(connect(plan.server).await?);
        }
        shared.start.set(Some(clock::now()));
        let clients: Vec<_> = senders
            .into_iter()
            .map(|sender| tokio::task::spawn_local(client(Rc::clone(&shared), plan.server, sender)))
            .collect();
        for client in clients {
            client.await.map_err(|error| anyhow!("a client of the load ended early: {error}"))?;
        }
        anyhow::Ok(())
    }))?;
    Ok(shared.report())
}

/// What all clients of a run share; they take turns on one thread.
struct Shared {
    templates: Vec<Template>,
    /// Indexes into `templates`, each as often as its weight, evenly mixed.
    cycle: Vec<usize>,
    rate: Rate,
    until: Until,
    start: Cell<Option<Instant>>,
    next: Cell<u64>,
    seen: RefCell<Vec<Seen>>,
    span: Cell<Option<(u64, u64)>>,
}

struct Template {
    name: String,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// Headers whose value is another in each request: what stands before and after the number.
    numbered: Vec<(HeaderName, String, String)>,
}

impl Shared {
    fn new(plan: &Plan) -> Result<Self> {
        if plan.connections == 0 {
            bail!("load needs at least one connection");
        }
        let cycle = mixed(&plan.asks.iter().map(|ask| ask.weight).collect::<Vec<_>>());
        if cycle.is_empty() {
            bail!("load needs at least one kind of request with a weight above 0");
        }
        let templates: Vec<_> =
            plan.asks.iter().map(|ask| Template::new(ask, plan.server)).collect::<Result<_>>()?;
        Ok(Self {
            seen: RefCell::new(vec![Seen::default(); templates.len()]),
            templates,
            cycle,
            rate: plan.rate,
            until: plan.until.clone(),
            start: Cell::new(None),
            next: Cell::new(0),
            span: Cell::new(None),
        })
    }

    /// The number of the next request, and when it is due; `None` when it is enough.
    fn take_turn(&self, now: Instant) -> Option<(u64, Instant)> {
        let start = self.start.get()?;
        let turn = self.next.get();
        let due = match self.rate {
            Rate::PerSecond(rate) => {
                start
                    + Duration::from_nanos(
                        turn.saturating_mul(1_000_000_000) / u64::from(rate.max(1)),
                    )
            }
            Rate::Max => now,
        };
        let enough = match &self.until {
            Until::Elapsed(span) => now.max(due) >= start + *span,
            Until::Sent(count) => turn >= *count,
            Until::Stopped(stopped) => stopped.load(Ordering::Relaxed),
        };
        if enough {
            return None;
        }
        self.next.set(turn + 1);
        Some((turn, due))
    }

    /// Which kind of request this turn sends.
    fn kind(&self, turn: u64) -> usize {
        let length = u64::try_from(self.cycle.len()).unwrap_or(u64::MAX);
        usize::try_from(turn % length).ok().and_then(|at| self.cycle.get(at)).copied().unwrap_or(0)
    }

    fn note(&self, kind: usize, note: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.seen.borrow_mut().get_mut(kind) {
            note(seen);
        }
    }

    fn note_sent(&self, kind: usize, sent_ns: u64) {
        self.note(kind, |seen| seen.sent_ns.push(sent_ns));
        let (first, last) = self.span.get().unwrap_or((sent_ns, sent_ns));
        self.span.set(Some((first.min(sent_ns), last.max(sent_ns))));
    }

    fn report(&self) -> Report {
        let (first, last) = self.span.get().unwrap_or_default();
        let mut report = Report { asks: BTreeMap::new(), span_ns: first..last };
        for (template, seen) in self.templates.iter().zip(self.seen.take()) {
            report.asks.insert(template.name.clone(), seen);
        }
        report
    }
}

impl Template {
    fn new(ask: &Ask, server: SocketAddr) -> Result<Self> {
        let refuse = |what| format!("{what} of the request {:.80} cannot be sent", ask.name);
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_str(&server.to_string())?);
        let mut numbered = Vec::new();
        for (name, value) in &ask.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .with_context(|| refuse("a header's name"))?;
            if let Some((before, after)) = value.split_once("{turn}") {
                numbered.push((name, before.to_owned(), after.to_owned()));
                continue;
            }
            headers.insert(
                name,
                HeaderValue::from_str(value).with_context(|| refuse("a header's value"))?,
            );
        }
        let path = PathAndQuery::try_from(ask.path.as_str()).with_context(|| refuse("the path"))?;
        let method =
            Method::from_bytes(ask.method.as_bytes()).with_context(|| refuse("the method"))?;
        Ok(Self { name: ask.name.clone(), method, uri: Uri::from(path), headers, numbered })
    }

    fn request(&self, turn: u64, sent_ns: u64) -> Result<Request<Empty<Bytes>>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().insert(SENT_AT, HeaderValue::from(sent_ns));
        for (name, before, after) in &self.numbered {
            let value = HeaderValue::from_str(&format!("{before}{turn}{after}"))?;
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }
}

/// Every index as often as its weight, as far apart from its like as can be.
fn mixed(weights: &[u32]) -> Vec<usize> {
    let total: i64 = weights.iter().copied().map(i64::from).sum();
    let mut owed = vec![0_i64; weights.len()];
    let mut cycle = Vec::new();
    for _ in 0..total {
        for (owed, weight) in owed.iter_mut().zip(weights) {
            *owed += i64::from(*weight);
        }
        let Some((index, most)) = owed.iter_mut().enumerate().rev().max_by_key(|(_, owed)| **owed)
        else {
            break;
        };
        *most -= total;
        cycle.push(index);
    }
    cycle
}

async fn connect(server: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream =
        TcpStream::connect(server).await.with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// One connection: a request at a time, until it is enough.
async fn client(shared: Rc<Shared>, server: SocketAddr, sender: SendRequest<Empty<Bytes>>) {
    let mut sender = Some(sender);
    while let Some((turn, due)) = shared.take_turn(clock::now()) {
        if due > clock::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let kind = shared.kind(turn);
        let Some(template) = shared.templates.get(kind) else { return };
        let sent_ns = clock::wall_nanos();
        shared.note_sent(kind, sent_ns);
        let asked = tokio::time::timeout(ANSWER_PATIENCE, async {
            ask(&mut sender, server, template.request(turn, sent_ns)?).await
        })
        .await;
        match asked.unwrap_or_else(|_| Err(anyhow!("no answer within {ANSWER_PATIENCE:?}"))) {
            Ok((status, rule)) => shared.note(kind, |seen| {
                seen.answered.push(Arrival { sent_ns, arrived_ns: clock::wall_nanos() });
                *seen.by_status.entry(status).or_default() += 1;
                if let Some(rule) = rule {
                    *seen.by_rule.entry(rule).or_default() += 1;
                }
            }),
            Err(error) => {
                sender = None;
                shared
                    .note(kind, |seen| *seen.errors.entry(format!("{error:#}")).or_default() += 1);
            }
        }
    }
}

/// Sends one request, over a new connection if the old one has gone, and reads the answer to its end.
async fn ask(
    sender: &mut Option<SendRequest<Empty<Bytes>>>,
    server: SocketAddr,
    request: Request<Empty<Bytes>>,
) -> Result<(u16, Option<String>)> {
    // Of what the other side has closed meanwhile, nothing was sent: it goes again, over a new connection.
    let again = request.clone();
    let mut old = None;
    if let Some(connection) = sender.as_mut().filter(|connection| !connection.is_closed())
        && connection.ready().await.is_ok()
    {
        old = match connection.send_request(request).await {
            Err(error) if error.is_canceled() => None,
            answered => Some(answered?),
        };
    }
    let mut response = match old {
        Some(response) => response,
        None => {
            let connection = sender.insert(connect(server).await?);
            connection.ready().await?;
            connection.send_request(again).await?
        }
    };
    let status = response.status().as_u16();
    let rule =
        response.headers().get(RULE_HEADER).and_then(|rule| rule.to_str().ok()).map(str::to_owned);
    while let Some(frame) = response.body_mut().frame().await {
        frame?;
    }
    Ok((status, rule))
}

const RULE_HEADER: &str = "x-sentinel-rule";
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_requests_are_mixed_by_weight_and_spread_evenly() {
        assert_eq!(mixed(&[2, 1, 1]), [0, 1, 2, 0]);
        assert_eq!(mixed(&[0, 3]), [1, 1, 1]);
        assert!(mixed(&[0]).is_empty());
    }
}
