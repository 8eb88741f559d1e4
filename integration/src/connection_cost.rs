//! What `cargo xtask bench connections` does: the CPU time that a TCP connection costs Envoy, and a piece of data in one,
//! without a filter and with ours.
//!
//! A connection says one word, hears it again and ends. A refused one is closed before Envoy touches the upstream, so it
//! costs less than one without a filter.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::bootstrap::{Bootstrap, Sentinel, named};
use crate::cost::Pinned;
use crate::envoy::Envoy;
use crate::rounds::{Measured, Rounds};
use crate::tcp::{self, Heard, Manner, TcpClient, TcpListenerPart, TcpUpstream};
use crate::{clock, rules};

/// Runs all rounds and prints both tables. True when every connection was counted.
///
/// # Errors
///
/// When an Envoy does not start, a connection does not go as it should, or the system does not count CPU time.
pub fn connections(binary: &Path, dist: &Path, out: &mut dyn Write) -> Result<bool> {
    writeln!(
        out,
        "{} Envoys with 1 worker each; {} rounds of {} connections and of {} pieces of data in one, in random order, one \
         after the other, all on one processor",
        VARIANTS.len(),
        CONNECTIONS.rounds,
        CONNECTIONS.acts,
        PIECES.acts
    )?;
    out.flush()?;
    let _pinned = Pinned::to_one_processor()?;
    let upstream = TcpUpstream::start(0, Manner::Echo)?;
    let mut envoys = Vec::new();
    for variant in &VARIANTS {
        let envoy = variant.start(binary, dist, upstream.address())?;
        let server = envoy.listener(LISTENER)?;
        envoys.push((variant, envoy, server, Cell::new(0_u64)));
    }
    let mut measured = Vec::new();
    for (variant, envoy, server, connected) in &envoys {
        let act = move || {
            connected.set(connected.get() + 1);
            variant.expect(&mut TcpClient::connect(*server)?)
        };
        measured.push(Measured::new(variant.name, envoy, Box::new(act)));
    }
    writeln!(out, "{}", CONNECTIONS.run("a connection", &mut measured)?)?;

    let mut measured = Vec::new();
    for (variant, envoy, server, connected) in &envoys {
        if variant.threshold == Some(0) {
            continue;
        }
        connected.set(connected.get() + 1);
        let mut client = TcpClient::connect(*server)?;
        let act = move || variant.expect(&mut client);
        measured.push(Measured::new(variant.name, envoy, Box::new(act)));
    }
    writeln!(out, "{}", PIECES.run("a piece of data, there and back", &mut measured)?)?;
    drop(measured);

    let mut holds = true;
    for (variant, envoy, _, connected) in &envoys {
        holds &= variant.threshold.is_none() || variant.has_counted_all(envoy, connected.get());
    }
    Ok(holds)
}

#[derive(Debug)]
struct Variant {
    name: &'static str,
    /// Of its one flow rule; `None`: there is no filter.
    threshold: Option<u32>,
}

static VARIANTS: [Variant; 3] = [
    Variant { name: "no filter", threshold: None },
    Variant { name: "Sentinel, one flow rule, passes", threshold: Some(1_000_000_000) },
    Variant { name: "Sentinel, refuses", threshold: Some(0) },
];

impl Variant {
    fn start(&self, binary: &Path, dist: &Path, upstream: SocketAddr) -> Result<Envoy> {
        let rule =
            self.threshold.map(|threshold| json!({"resource": RESOURCE, "threshold": threshold}));
        let documents: Vec<_> = rule.map(|rule| rules::flow_rules(&[rule])).into_iter().collect();
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            // Nobody asks by HTTP.
            upstream: ([127, 0, 0, 1], 9).into(),
            sentinel: Some(Sentinel::with_rules(dist, &documents)?),
            console_port: 0,
            access_log: None,
        };
        let part = TcpListenerPart {
            name: LISTENER.to_owned(),
            filter: json!({"resource": {"name": RESOURCE}}),
            upstream,
            finds_sni: false,
            own_vm: false,
        };
        Envoy::start_changed(binary, 1, &bootstrap, |root| {
            tcp::add(root, &[part], None)?;
            if self.threshold.is_none() {
                let listener = named(root, "listeners", LISTENER)?;
                let filters = listener.pointer_mut("/filter_chains/0/filters");
                if let Some(filters) = filters.and_then(Value::as_array_mut) {
                    filters.remove(0);
                }
            }
            Ok(())
        })
    }

    /// Says a word, and hears what this variant lets be heard.
    fn expect(&self, client: &mut TcpClient) -> Result<()> {
        client.send(b"word");
        let heard = client.hear();
        let wanted = match self.threshold {
            Some(0) => Heard::End,
            Some(_) | None => Heard::Bytes(b"word".to_vec()),
        };
        if heard != wanted {
            bail!("{}: heard {heard:?}", self.name);
        }
        Ok(())
    }

    fn has_counted_all(&self, envoy: &Envoy, connected: u64) -> bool {
        let counted = clock::wait_for("all connections to be counted", PATIENCE, || {
            let stats = envoy.stats()?;
            let counted = stats.total("pass_total") + stats.total("block_total");
            Ok(Some(counted).filter(|counted| *counted == connected))
        });
        counted.is_ok()
    }
}

const LISTENER: &str = "db";
const RESOURCE: &str = "tcp:db";
const CONNECTIONS: Rounds = Rounds { rounds: 20, acts: 500, warm_up: 100 };
const PIECES: Rounds = Rounds { rounds: 20, acts: 3000, warm_up: 300 };
const PATIENCE: Duration = Duration::from_secs(10);
