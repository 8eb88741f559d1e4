//! TCP before and behind Envoy: the listener that users get, an upstream that counts connections, and clients that say who
//! they are.
//!
//! Listener, reply and clusters are those of `envoy/redis.yaml`, so every test of TCP is also a test of that file. What a
//! client was told decides how a connection went, and the upstream's own counts say whether it was touched.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::bootstrap::{ENDPOINT, PORT, at, named};
use crate::{clock, rules};

/// How the upstream treats connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// What comes goes back.
    #[default]
    Echo,
    /// The first bytes go back, and then the connection is reset.
    Reset,
    /// The first bytes go back, and then the connection is closed in order.
    Close,
    /// It says `tick` again and again.
    Talk,
}

/// A server that counts its connections. Closed when dropped.
#[derive(Debug)]
pub struct TcpUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    accepted: AtomicU64,
    open: AtomicU64,
    most_open: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    manner: Mutex<Manner>,
    arrivals: Mutex<Vec<u64>>,
    stopped: AtomicBool,
}

impl TcpUpstream {
    /// Listens on a loopback port of the system's choice, or this one.
    ///
    /// # Errors
    ///
    /// When it cannot.
    pub fn start(port: u16, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .context("the TCP upstream cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { manner: Mutex::new(manner), ..Shared::default() });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                accepting.accepted.fetch_add(1, Ordering::Relaxed);
                locked(&accepting.arrivals).push(clock::wall_nanos());
                let open = accepting.open.fetch_add(1, Ordering::Relaxed) + 1;
                accepting.most_open.fetch_max(open, Ordering::Relaxed);
                let serving = Arc::clone(&accepting);
                std::thread::spawn(move || {
                    // A connection that breaks off has ended like any other.
                    let _ = serving.serve(stream);
                    serving.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it treats new connections so.
    pub fn behave(&self, manner: Manner) {
        *locked(&self.shared.manner) = manner;
    }

    /// Connections that have come so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are there now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The most that were there at a time.
    #[must_use]
    pub fn most_open(&self) -> u64 {
        self.shared.most_open.load(Ordering::Relaxed)
    }

    /// Bytes that have come and gone.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.received.load(Ordering::Relaxed), self.shared.sent.load(Ordering::Relaxed))
    }

    /// When each connection came, wall clock, nanoseconds.
    #[must_use]
    pub fn arrivals(&self) -> Vec<u64> {
        locked(&self.shared.arrivals).clone()
    }
}

impl Drop for TcpUpstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // The thread looks when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let manner = *locked(&self.manner);
        let mut buffer = [0; 16 * 1024];
        loop {
            if manner == Manner::Talk {
                stream.write_all(b"tick")?;
                self.sent.fetch_add(4, Ordering::Relaxed);
                clock::pause(Duration::from_millis(20));
                continue;
            }
            let size = stream.read(&mut buffer)?;
            let Some(data) = buffer.get(..size).filter(|data| !data.is_empty()) else {
                return Ok(());
            };
            self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
            stream.write_all(data)?;
            self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
            match manner {
                Manner::Close => return Ok(()),
                Manner::Reset => return reset(&stream),
                Manner::Echo | Manner::Talk => {}
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the end of a connection be a reset.
///
/// # Errors
///
/// When the system refuses.
fn reset(stream: &TcpStream) -> std::io::Result<()> {
    // What was written must have arrived: a reset overtakes it.
    clock::pause(Duration::from_millis(50));
    rustix::net::sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO))?;
    Ok(())
}

/// A client's connection. Closed when dropped.
#[derive(Debug)]
pub struct TcpClient {
    stream: TcpStream,
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// These bytes came.
    Bytes(Vec<u8>),
    /// It was closed, in order or not.
    End,
    /// Nothing, for so long as one waits.
    Nothing,
}

impl Heard {
    /// The bytes as text; empty where there were none.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::End | Self::Nothing => String::new(),
        }
    }
}

impl TcpClient {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody listens.
    pub fn connect(server: SocketAddr) -> Result<Self> {
        Self::connect_from(Ipv4Addr::LOCALHOST, server)
    }

    /// Connects from this address.
    ///
    /// # Errors
    ///
    /// When nobody listens, or the address is not of this machine.
    pub fn connect_from(from: Ipv4Addr, server: SocketAddr) -> Result<Self> {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
        rustix::net::connect(&socket, &server)
            .with_context(|| format!("cannot connect to {server}"))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Sends bytes. A connection that has ended is no error: what is heard tells.
    pub fn send(&mut self, bytes: &[u8]) {
        // A refused client may already have been closed.
        let _ = self.stream.write_all(bytes);
    }

    /// What comes next, within so long.
    pub fn hear_within(&mut self, patience: Duration) -> Heard {
        let mut buffer = [0; 4096];
        if self.stream.set_read_timeout(Some(patience)).is_err() {
            return Heard::End;
        }
        match self.stream.read(&mut buffer) {
            Ok(0) => Heard::End,
            Ok(size) => Heard::Bytes(buffer.get(..size).unwrap_or_default().to_vec()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Heard::Nothing
            }
            Err(_) => Heard::End,
        }
    }

    /// What comes next, within five seconds.
    pub fn hear(&mut self) -> Heard {
        self.hear_within(Duration::from_secs(5))
    }

    /// All that comes until the end, within five seconds each.
    pub fn hear_all(&mut self) -> String {
        let mut all = String::new();
        while let Heard::Bytes(bytes) = self.hear() {
            all += &String::from_utf8_lossy(&bytes);
        }
        all
    }

    /// Whether an echo comes back: then the connection is with its upstream.
    pub fn is_admitted(&mut self) -> bool {
        self.send(b"x");
        self.hear() == Heard::Bytes(b"x".to_vec())
    }

    /// Goes away without a word: a reset.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn vanish(self) -> Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(self.stream.as_fd(), Some(Duration::ZERO))?)
    }
}

/// A listener and what belongs to it.
#[derive(Clone, Debug)]
pub struct TcpListenerPart {
    /// The listener's name, and that of its upstream's cluster.
    pub name: String,
    /// The filter's configuration.
    pub filter: Value,
    /// The upstream.
    pub upstream: SocketAddr,
    /// Whether it looks for the server's name that TLS clients ask for.
    pub finds_sni: bool,
    /// Whether its filter has a VM of its own; else it is in that of HTTP.
    pub own_vm: bool,
}

/// Adds listeners of TCP to a configuration that is otherwise that of `envoy/envoy.yaml`, and the place of the reply where
/// `reply_port` says so.
///
/// # Errors
///
/// When `envoy/redis.yaml` no longer has what must be replaced.
pub fn add(root: &mut Value, parts: &[TcpListenerPart], reply_port: Option<u16>) -> Result<()> {
    let module = at(
        root,
        &format!(
            "{}/http_filters/0/typed_config/config/vm_config",
            crate::bootstrap::CONNECTION_MANAGER
        ),
    )?
    .clone();
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for part in parts {
        let mut shipped = shipped()?;
        let mut listener = named(&mut shipped, "listeners", "redis")?.take();
        *at(&mut listener, "/name")? = json!(part.name);
        *at(&mut listener, PORT)? = json!(0);
        let filters = "/filter_chains/0/filters";
        let plugin = format!("{filters}/0/typed_config/config");
        let mut module = module.clone();
        if let Some(vm) = module.as_object_mut().filter(|_| part.own_vm) {
            let kind = "type.googleapis.com/google.protobuf.StringValue";
            vm.insert("configuration".to_owned(), json!({"@type": kind, "value": part.name}));
        }
        *at(&mut listener, &format!("{plugin}/vm_config"))? = module;
        *at(&mut listener, &format!("{plugin}/configuration/value"))? = part.filter.clone();
        *at(&mut listener, &format!("{filters}/1/typed_config/cluster"))? = json!(part.name);
        *at(&mut listener, &format!("{filters}/1/typed_config/access_log"))? = json!([]);
        if part.finds_sni
            && let Some(fields) = listener.as_object_mut()
        {
            let inspector = json!({
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
            });
            fields.insert("listener_filters".to_owned(), json!([inspector]));
        }
        listeners.push(listener);
        let mut cluster = named(&mut shipped, "clusters", "redis")?.take();
        *at(&mut cluster, "/name")? = json!(part.name);
        *at(&mut cluster, "/load_assignment/cluster_name")? = json!(part.name);
        *at(&mut cluster, ENDPOINT)? =
            json!({"address": part.upstream.ip().to_string(), "port_value": part.upstream.port()});
        clusters.push(cluster);
    }
    if let Some(port) = reply_port {
        let mut shipped = shipped()?;
        let mut listener = named(&mut shipped, "listeners", REPLY)?.take();
        *at(&mut listener, PORT)? = json!(port);
        listeners.push(listener);
        let mut cluster = named(&mut shipped, "clusters", REPLY)?.take();
        *at(&mut cluster, &format!("{ENDPOINT}/port_value"))? = json!(port);
        clusters.push(cluster);
    }
    for (kind, new) in [("listeners", listeners), ("clusters", clusters)] {
        if let Some(all) = at(root, &format!("/static_resources/{kind}"))?.as_array_mut() {
            all.extend(new);
        }
    }
    Ok(())
}

/// `envoy/redis.yaml` as it stands.
///
/// # Errors
///
/// When it is not YAML.
pub fn shipped() -> Result<Value> {
    let mut documents = rules::parse(include_str!("../../envoy/redis.yaml"))?;
    documents.pop().context("envoy/redis.yaml is empty")
}

/// The listener and the cluster of the reply.
pub const REPLY: &str = "sentinel_reply";
