//! One client that asks one thing after the other and looks closely at each answer.
//!
//! For load, see [`load`](crate::load).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::clock;
use crate::upstream::SENT_AT;

/// What came back for one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the request was sent, wall clock, nanoseconds.
    pub sent_ns: u64,
    /// The HTTP status.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body; what is not UTF-8 in it is replaced.
    pub body: String,
    /// Trailers, where there were any.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The value of a header as text, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// One connection over which requests go one at a time.
#[derive(Debug)]
pub struct Client {
    authority: String,
    runtime: Runtime,
    connection: Connection,
}

#[derive(Debug)]
enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// Connects and speaks HTTP/1.1.
    ///
    /// # Errors
    ///
    /// When nobody listens at `server`.
    pub fn connect(server: SocketAddr) -> Result<Self> {
        Self::open(server, async |stream| {
            let (sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            Ok(Connection::Http1(sender))
        })
    }

    /// Connects and speaks HTTP/2 without TLS and without asking first, as gRPC clients do.
    ///
    /// # Errors
    ///
    /// When nobody listens at `server`, or what listens does not speak it.
    pub fn connect_http2(server: SocketAddr) -> Result<Self> {
        Self::open(server, async |stream| {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Ok(Connection::Http2(sender))
        })
    }

    fn open(
        server: SocketAddr,
        handshake: impl AsyncFnOnce(TokioIo<TcpStream>) -> Result<Connection, hyper::Error>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connection = runtime.block_on(async {
            let stream = TcpStream::connect(server)
                .await
                .with_context(|| format!("cannot connect to {server}"))?;
            stream.set_nodelay(true)?;
            handshake(TokioIo::new(stream))
                .await
                .with_context(|| format!("{server} does not speak HTTP with us"))
        })?;
        Ok(Self { authority: server.to_string(), runtime, connection })
    }

    /// Asks for `path` with GET.
    ///
    /// # Errors
    ///
    /// When no answer came, within ten seconds or at all.
    pub fn get(&mut self, path: &str) -> Result<Answer> {
        self.send("GET", path, &[])
    }

    /// Sends a request without a body.
    ///
    /// # Errors
    ///
    /// When method, path or headers cannot stand in a request; when no answer came, within ten seconds or at all.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let uri = match self.connection {
            Connection::Http1(_) => path.to_owned(),
            Connection::Http2(_) => format!("http://{}{path}", self.authority),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self.connection, Connection::Http1(_))
            && !headers.iter().any(|(name, _)| *name == "host")
        {
            request = request.header("host", &self.authority);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent_ns = clock::wall_nanos();
        let request =
            request.header(SENT_AT, sent_ns).body(Full::default()).context("not a request")?;
        let Self { runtime, connection, .. } = self;
        runtime.block_on(async {
            let answer = async {
                match connection {
                    Connection::Http1(sender) => {
                        sender.ready().await?;
                        read(sent_ns, sender.send_request(request).await?).await
                    }
                    Connection::Http2(sender) => {
                        sender.ready().await?;
                        read(sent_ns, sender.send_request(request).await?).await
                    }
                }
            };
            tokio::time::timeout(ANSWER_PATIENCE, answer).await.map_err(|_| {
                anyhow!("no answer to {method} {path:.80} within {ANSWER_PATIENCE:?}")
            })?
        })
    }
}

/// Asks `server` for `path` on a connection of its own.
///
/// # Errors
///
/// As [`Client::connect`] and [`Client::get`].
pub fn get(server: SocketAddr, path: &str) -> Result<Answer> {
    Client::connect(server)?.get(path)
}

async fn read(sent_ns: u64, response: Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("the answer's body broke off")?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(Answer { sent_ns, status: head.status.as_u16(), headers: head.headers, body, trailers })
}

const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
