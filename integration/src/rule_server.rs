//! A server of rules, as the sources of the service's configuration ask one: it knows versions (ETag, If-None-Match), it may
//! fail, be slow or hang, and it writes down what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::clock;

/// How questions for a page are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// At once, with what there is.
    #[default]
    Well,
    /// With this status and a body that is no rule document.
    Status(u16),
    /// After so long.
    After(Duration),
    /// Never.
    Never,
}

/// A question that was answered.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it came, wall clock, nanoseconds.
    pub at_ns: u64,
    /// What it came with.
    pub headers: HeaderMap,
    /// The status of the answer; 304: nothing new.
    pub status: u16,
}

impl Asked {
    /// The value of a header as text, if it came with one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A running server. Stops when dropped.
pub struct RuleServer {
    address: SocketAddr,
    pages: Pages,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Pages = Arc<Mutex<BTreeMap<String, Page>>>;
type Make = Box<dyn FnMut(u64) -> String + Send>;

#[derive(Default)]
struct Page {
    contents: String,
    /// Makes the contents anew for each question, out of its number.
    make: Option<Make>,
    version: u64,
    manner: Manner,
    asked: Vec<Asked>,
}

impl RuleServer {
    /// Starts one on a loopback port that the system chooses, with no pages.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn start() -> Result<Self> {
        let cannot = "cannot start a server of rules";
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context(cannot)?;
        listener.set_nonblocking(true).context(cannot)?;
        let address = listener.local_addr().context(cannot)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pages = Pages::default();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("rules".to_owned()).spawn({
            let pages = Arc::clone(&pages);
            move || runtime.block_on(serve(listener, pages, stopped))
        })?;
        Ok(Self { address, pages, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As a cluster of Envoy's.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Value {
        let (ip, port) = (self.address.ip().to_string(), self.address.port());
        let address = json!({"socket_address": {"address": ip, "port_value": port}});
        json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        })
    }

    /// What stands at `path` from now on, as a new version.
    pub fn put(&self, path: &str, contents: &str) {
        self.change(path, |page| {
            contents.clone_into(&mut page.contents);
            page.make = None;
            page.version += 1;
        });
    }

    /// Lets each question for `path` find a new version, made out of its number: 1, 2 …
    pub fn put_ever_new(&self, path: &str, make: impl FnMut(u64) -> String + Send + 'static) {
        self.change(path, |page| page.make = Some(Box::new(make)));
    }

    /// How questions for `path` are answered from now on.
    pub fn behave(&self, path: &str, manner: Manner) {
        self.change(path, |page| page.manner = manner);
    }

    /// The questions for `path` so far, in order.
    #[must_use]
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        lock(&self.pages).get(path).map(|page| page.asked.clone()).unwrap_or_default()
    }

    /// How many questions for `path` were answered with this status.
    #[must_use]
    pub fn answered(&self, path: &str, status: u16) -> usize {
        self.asked(path).iter().filter(|asked| asked.status == status).count()
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Page)) {
        change(lock(&self.pages).entry(path.to_owned()).or_default());
    }
}

impl Drop for RuleServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its thread has been printed already; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for RuleServer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RuleServer at {}", self.address)?;
        for (path, page) in lock(&self.pages).iter() {
            let statuses: Vec<_> = page.asked.iter().map(|asked| asked.status).collect();
            write!(out, "; {path}: {statuses:?}")?;
        }
        Ok(())
    }
}

fn lock(pages: &Pages) -> MutexGuard<'_, BTreeMap<String, Page>> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::net::TcpListener, pages: Pages, mut stopped: oneshot::Receiver<()>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(request, Arc::clone(&pages)));
            // However a connection ends, whoever asked reports it.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    pages: Pages,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let at_ns = clock::wall_nanos();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let manner = lock(&pages).get(path).map_or(Manner::Status(404), |page| page.manner);
    match manner {
        Manner::After(span) => tokio::time::sleep(span).await,
        Manner::Never => std::future::pending().await,
        Manner::Well | Manner::Status(_) => {}
    }
    let mut response = Response::new(Full::default());
    let mut locked = lock(&pages);
    let page = locked.entry(path.to_owned()).or_default();
    if let Manner::Status(status) = manner {
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        *response.body_mut() = Full::from("no rules: {[");
    } else {
        if let Some(make) = &mut page.make {
            page.version += 1;
            page.contents = make(page.version);
        }
        let etag = format!("\"version {}\"", page.version);
        let known = request.headers().get("if-none-match");
        if known.is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            *response.body_mut() = Full::from(page.contents.clone());
        }
        if let Ok(etag) = etag.parse() {
            response.headers_mut().insert("etag", etag);
        }
    }
    let status = response.status().as_u16();
    page.asked.push(Asked { at_ns, headers: request.headers().clone(), status });
    drop(locked);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    #[test]
    fn a_version_that_is_known_is_not_sent_again() {
        let server = RuleServer::start().unwrap();
        server.put("/rules.yaml", "one");
        let mut client = Client::connect(server.address()).unwrap();

        let first = client.get("/rules.yaml").unwrap();
        let etag = first.header("etag").unwrap().to_owned();
        let mut ask = || client.send("GET", "/rules.yaml", &[("if-none-match", &etag)]).unwrap();
        let unchanged = ask();
        server.put("/rules.yaml", "two");
        let changed = ask();

        assert_eq!((first.status, first.body.as_str()), (200, "one"));
        assert_eq!((unchanged.status, unchanged.body.as_str()), (304, ""));
        assert_eq!((changed.status, changed.body.as_str()), (200, "two"));
        assert_eq!(server.answered("/rules.yaml", 304), 1);
        assert_eq!(server.asked("/rules.yaml")[1].header("if-none-match"), Some(etag.as_str()));
    }

    #[test]
    fn it_fails_as_it_is_told_and_counts_that_too() {
        let server = RuleServer::start().unwrap();
        server.put_ever_new("/new", |number| format!("number {number}"));
        let mut client = Client::connect(server.address()).unwrap();

        assert_eq!(client.get("/new").unwrap().body, "number 1");
        assert_eq!(client.get("/new").unwrap().body, "number 2");
        server.behave("/new", Manner::Status(500));
        assert_eq!(client.get("/new").unwrap().status, 500);
        assert_eq!(client.get("/unknown").unwrap().status, 404);
        assert_eq!(server.answered("/new", 500), 1);
    }
}
