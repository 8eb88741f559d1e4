//! What `cargo xtask bench messages` does: the CPU time that a message of a stream costs Envoy, without a filter, with the
//! usual one and with the one that reads streams.
//!
//! A message is a frame of a WebSocket that the upstream answers with one, one at a time on one
//! stream, so that each wakes the worker once each way.

use std::cell::Cell;
use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::bootstrap::{Bootstrap, CAPABILITIES, CONNECTION_MANAGER, Sentinel, at};
use crate::cost::Pinned;
use crate::envoy::Envoy;
use crate::rounds::{Measured, Rounds};
use crate::{clock, rules};

/// Runs all rounds and prints the table. True when the module counted every message that it was to count.
///
/// # Errors
///
/// When an Envoy does not start, a message is not answered, or the system does not count CPU time.
pub fn messages(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<bool> {
    writeln!(
        out,
        "{} Envoys with 1 worker each; {ROUNDS} rounds of {MESSAGES} messages of {PAYLOAD} bytes to each, in random \
         order, one after the other in one WebSocket, all on one processor",
        VARIANTS.len()
    )?;
    out.flush()?;
    let _pinned = Pinned::to_one_processor()?;
    let upstream = upstream()?;
    let mut envoys = Vec::new();
    for variant in &VARIANTS {
        envoys.push((variant, variant.start(binary, dist, upstream)?, Cell::new(0)));
    }
    let mut measured = Vec::new();
    for (variant, envoy, sent) in &envoys {
        let mut stream = upgraded(envoy.proxy())?;
        let act = move || {
            sent.set(sent.get() + 1);
            stream.write_all(&frame())?;
            Ok(stream.read_exact(&mut [0; ANSWER.len()])?)
        };
        measured.push(Measured::new(variant.name, envoy, Box::new(act)));
    }
    let plan = Rounds { rounds: ROUNDS, acts: MESSAGES, warm_up: WARM_UP };
    writeln!(out, "{}", plan.run("variant", &mut measured)?)?;
    let mut holds = true;
    for (variant, envoy, sent) in &envoys {
        holds &= variant.has_counted_all(envoy, sent.get());
    }
    Ok(holds)
}

#[derive(Debug)]
struct Variant {
    name: &'static str,
    /// The filter's module; `None`: no Sentinel.
    module: Option<&'static str>,
    has_rule: bool,
}

static VARIANTS: [Variant; 4] = [
    Variant { name: "no filter", module: None, has_rule: false },
    Variant { name: "sentinel_filter", module: Some("sentinel_filter.wasm"), has_rule: false },
    Variant {
        name: "sentinel_filter_messages, no rule",
        module: Some(READS_STREAMS),
        has_rule: false,
    },
    Variant {
        name: "sentinel_filter_messages, one rule",
        module: Some(READS_STREAMS),
        has_rule: true,
    },
];

impl Variant {
    fn start(&self, binary: &Path, dist: &Path, upstream: SocketAddr) -> Result<Envoy> {
        let rule = json!({"id": "all", "resource": RESOURCE, "threshold": 1_000_000_000, "unit": "message"});
        let documents = if self.has_rule { vec![rules::flow_rules(&[rule])] } else { Vec::new() };
        let sentinel = self.module.map(|_| Sentinel::with_rules(dist, &documents)).transpose()?;
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream,
            sentinel,
            console_port: 0,
            access_log: None,
        };
        Envoy::start_changed(binary, 1, &bootstrap, |root| {
            let manager = at(root, CONNECTION_MANAGER)?.as_object_mut();
            let manager = manager.context("the connection manager has no configuration")?;
            let upgrades = json!([{"upgrade_type": "websocket"}]);
            manager.insert("upgrade_configs".to_owned(), upgrades);
            match self.module {
                Some(module) => set_module(root, &dist.join(module)),
                None => Ok(()),
            }
        })
    }

    /// Whether the filter that reads streams has counted all of so many, and no other has counted any.
    fn has_counted_all(&self, envoy: &Envoy, sent: u64) -> bool {
        let reads = self.module == Some(READS_STREAMS);
        let resource = if self.has_rule { RESOURCE } else { "other" };
        let wanted = if reads { sent } else { 0 };
        let counted = clock::wait_for("all messages to be counted", PATIENCE, || {
            let counted = envoy.stats()?.resource(resource, "message_pass_total");
            Ok(Some(counted).filter(|counted| *counted == wanted))
        });
        counted.is_ok()
    }
}

fn set_module(root: &mut Value, module: &Path) -> Result<()> {
    let place = "http_filters/0/typed_config/config/vm_config/code/local/filename";
    *at(root, &format!("{CONNECTION_MANAGER}/{place}"))? = json!(module);
    // The usual filter may be called it as well: it does not export it.
    let may = format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config{CAPABILITIES}");
    if let Some(may) = at(root, &may)?.as_object_mut() {
        may.insert("proxy_on_request_body".to_owned(), json!({}));
    }
    Ok(())
}

/// A server of WebSockets that answers each frame of the bench. It lives as long as the process.
fn upstream() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr().context("the upstream's socket has no address")?;
    std::thread::Builder::new()
        .name("sockets".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(|| answer(stream));
            }
        })
        .context("cannot start the upstream's thread")?;
    Ok(address)
}

/// Answers frames until the client has gone.
fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    read_head(&mut stream)?;
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    )?;
    let mut frame = frame();
    loop {
        stream.read_exact(&mut frame)?;
        stream.write_all(&ANSWER)?;
    }
}

fn upgraded(proxy: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).context("cannot connect to Envoy")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        b"GET /socket HTTP/1.1\r\nhost: bench\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    )?;
    let head = read_head(&mut stream)?;
    if !head.starts_with("HTTP/1.1 101") {
        bail!("Envoy did not upgrade to a WebSocket: {head}");
    }
    Ok(stream)
}

fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A frame of text under a mask of zeros.
fn frame() -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | PAYLOAD, 0, 0, 0, 0];
    frame.resize(6 + usize::from(PAYLOAD), b'x');
    frame
}

const READS_STREAMS: &str = "sentinel_filter_messages.wasm";
const RESOURCE: &str = "GET:/socket";
/// An empty frame of text.
const ANSWER: [u8; 2] = [0x81, 0];
const PAYLOAD: u8 = 100;
const ROUNDS: u32 = 30;
const MESSAGES: u32 = 3000;
const WARM_UP: u32 = 300;
const PATIENCE: Duration = Duration::from_secs(10);
