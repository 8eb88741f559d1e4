//! Requests that hang: sent, and held open until the test wants to know what became of them, or goes away.
//!
//! HTTP/1.1 by hand over a socket of its own each, so that a thread can hold many and end each in the way it likes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::clock;
use crate::upstream::SENT_AT;

/// A request under way. Dropped, its client goes away: the connection is closed.
#[derive(Debug)]
pub struct Hanging {
    stream: TcpStream,
    sent_ns: u64,
}

/// The beginning of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The HTTP status.
    pub status: u16,
    /// When its last byte was there, wall clock, nanoseconds.
    pub at_ns: u64,
    /// Status line and headers as they came.
    pub text: String,
}

impl Head {
    /// Whether a rule refused the request: the answer names it.
    #[must_use]
    pub fn refused_by(&self, rule: &str) -> bool {
        self.text.lines().any(|line| line.strip_prefix("x-sentinel-rule: ") == Some(rule))
    }
}

impl Hanging {
    /// Sends GET of `path` and returns at once.
    ///
    /// # Errors
    ///
    /// When nobody listens at `server`.
    pub fn get(server: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let mut stream =
            TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
        stream.set_nodelay(true)?;
        let sent_ns = clock::wall_nanos();
        let mut text = format!("GET {path} HTTP/1.1\r\nhost: {server}\r\n{SENT_AT}: {sent_ns}\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        stream.write_all(text.as_bytes()).context("cannot send the request")?;
        Ok(Self { stream, sent_ns })
    }

    /// When it was sent, wall clock, nanoseconds.
    #[must_use]
    pub fn sent_ns(&self) -> u64 {
        self.sent_ns
    }

    /// Waits for the head of the answer.
    ///
    /// # Errors
    ///
    /// When it does not come within `patience`, or is no HTTP.
    pub fn head(&mut self, patience: Duration) -> Result<Head> {
        let deadline = clock::now() + patience;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                bail!("no answer within {patience:?}");
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the connection was closed without an answer"),
                Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the connection broke"),
            }
        }
        let at_ns = clock::wall_nanos();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Head { status: status.with_context(|| format!("no HTTP: {text:.80}"))?, at_ns, text })
    }

    /// The status of the answer.
    ///
    /// # Errors
    ///
    /// As [`head`](Self::head).
    pub fn status(&mut self, patience: Duration) -> Result<u16> {
        Ok(self.head(patience)?.status)
    }
}
