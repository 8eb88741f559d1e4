//! HTTP/1.1 by hand, on both sides of Envoy: what no library does, such as half an answer.
//!
//! The upstream does what a request's header [`DO`] says, once it has the request's head. One thread for each
//! connection.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Header: what becomes of the request at the upstream.
pub const DO: &str = "x-do";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An upstream that misbehaves on demand. Its threads end with their connections.
#[derive(Debug)]
pub struct RawUpstream {
    address: SocketAddr,
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl RawUpstream {
    /// Starts one on a loopback port that the system chooses.
    ///
    /// # Errors
    ///
    /// When there is no port for it.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let Ok(mut connection) = Raw::over(stream) else { return };
                    // Connections end in every way a test makes them end; the answers are judged at the client.
                    while matches!(serve(&mut connection, &seen), Ok(true)) {}
                });
            }
        });
        Ok(Self { address, seen })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often it was told to do this.
    #[must_use]
    pub fn seen(&self, what: &str) -> u64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(what).copied().unwrap_or(0)
    }
}

/// Serves one request. `false`: the connection goes.
fn serve(connection: &mut Raw, seen: &Mutex<BTreeMap<String, u64>>) -> Result<bool> {
    let head = connection.head()?;
    let told = head.header(DO).unwrap_or("tunnel").to_owned();
    let nth = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = seen.entry(told.clone()).or_default();
        *nth += 1;
        *nth
    };
    match told.as_str() {
        "reset at once" => return connection.reset(),
        "read some and reset" => {
            connection.some()?;
            return connection.reset();
        }
        // The client is to go first.
        "never answer" => return connection.until_closed(),
        _ => {}
    }
    if head.header("expect").is_some() {
        connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let (body, trailers) = match told.as_str() {
        "upgrade" | "tunnel" => (0, String::new()),
        _ => connection.body(&head)?,
    };
    match told.as_str() {
        "reset after the body" => return connection.reset(),
        "reset in headers" => {
            connection.write(b"HTTP/1.1 200 OK\r\ncontent-le")?;
            return connection.reset();
        }
        "reset in the body" => {
            connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")?;
            return connection.reset();
        }
        "half a body" => {
            connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")?;
            return connection.until_closed();
        }
        "huge" => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {HUGE}\r\n\r\n");
            connection.write(head.as_bytes())?;
            let chunk = [b'x'; 65_536];
            for _ in 0..HUGE / chunk.len() {
                connection.write(&chunk)?;
            }
        }
        "trailers" => connection.write(
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n4\r\ntold\r\n0\r\nx-end: {trailers}\r\n\r\n").as_bytes(),
        )?,
        "fail every other" if nth % 2 == 1 => {
            connection.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")?;
        }
        "hang every other" if nth % 2 == 1 => return connection.until_closed(),
        "redirect once" if nth % 2 == 1 => connection
            .write(b"HTTP/1.1 302 Found\r\nlocation: http://shop.example/redirected\r\ncontent-length: 0\r\n\r\n")?,
        "upgrade" => {
            connection.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
            return connection.echo();
        }
        "tunnel" => return connection.echo(),
        _ => {
            let told = body.to_string();
            let length = told.len();
            connection.write(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{told}").as_bytes(),
            )?;
        }
    }
    Ok(true)
}

/// The length of a huge body.
pub const HUGE: usize = 64 << 20;

/// One side of a connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    /// What has been read and not been used.
    rest: Vec<u8>,
}

/// The head of a request or an answer.
#[derive(Clone, Debug)]
pub struct RawHead {
    /// All of its lines.
    pub text: String,
}

impl RawHead {
    /// The status of an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.text.split(' ').nth(1)?.parse().ok()
    }

    /// A header's value; the name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (its, value) = line.split_once(':')?;
            its.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody listens at `server`.
    pub fn connect(server: SocketAddr) -> Result<Self> {
        Self::over(
            TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?,
        )
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, rest: Vec::new() })
    }

    /// Sends these bytes.
    ///
    /// # Errors
    ///
    /// When the other side has gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Reads a head.
    ///
    /// # Errors
    ///
    /// When the other side has gone, or says nothing for 20 s.
    pub fn head(&mut self) -> Result<RawHead> {
        loop {
            if let Some(end) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.rest.drain(..end + 4).collect();
                return Ok(RawHead { text: String::from_utf8_lossy(&head).into_owned() });
            }
            // What a tunnel carries has no head.
            if self.rest.starts_with(b"RAW") {
                return Ok(RawHead { text: String::new() });
            }
            self.fill()?;
        }
    }

    /// Reads the body that `head` announces: its length, and what stands in the trailer `x-end`.
    ///
    /// # Errors
    ///
    /// When it breaks off.
    pub fn body(&mut self, head: &RawHead) -> Result<(usize, String)> {
        if head.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            return self.chunks();
        }
        let length = head.header("content-length").and_then(|length| length.parse().ok());
        let length: usize = length.unwrap_or(0);
        self.skip(length)?;
        Ok((length, String::new()))
    }

    fn chunks(&mut self) -> Result<(usize, String)> {
        let mut all = 0;
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.trim(), 16).context("no chunk")?;
            if size == 0 {
                break;
            }
            self.skip(size)?;
            self.line()?;
            all += size;
        }
        let mut end = String::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((all, end));
            }
            if let Some(value) = line.strip_prefix("x-end:") {
                value.trim().clone_into(&mut end);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.rest.drain(..end + 2).collect();
                let line = line.get(..end).unwrap_or_default();
                return Ok(String::from_utf8_lossy(line).into_owned());
            }
            self.fill()?;
        }
    }

    fn skip(&mut self, mut length: usize) -> Result<()> {
        loop {
            let here = length.min(self.rest.len());
            self.rest.drain(..here);
            length -= here;
            if length == 0 {
                return Ok(());
            }
            self.fill()?;
        }
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    ///
    /// When fewer come.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.rest.len() < length {
            self.fill()?;
        }
        Ok(self.rest.drain(..length).collect())
    }

    fn some(&mut self) -> Result<()> {
        if self.rest.is_empty() { self.fill() } else { Ok(()) }
    }

    fn fill(&mut self) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the connection was closed"),
            Ok(count) => self.rest.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn echo(&mut self) -> Result<bool> {
        loop {
            let said = std::mem::take(&mut self.rest);
            self.write(&said)?;
            self.fill()?;
        }
    }

    /// Reads until the other side goes. `false`, for a server's loop.
    fn until_closed(&mut self) -> Result<bool> {
        loop {
            self.rest.clear();
            self.fill()?;
        }
    }

    /// Breaks the connection off at once: the other side gets a reset.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn break_off(mut self) -> Result<()> {
        self.reset().map(drop)
    }

    /// Makes the end of the connection a reset. `false`, for a server's loop.
    fn reset(&mut self) -> Result<bool> {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?;
        Ok(false)
    }
}
