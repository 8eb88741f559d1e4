//! What goes wrong in operation, one after the other, while four workers carry load: limits hold throughout, totals are whole
//! afterwards, nothing stays held, and what failed is back in the time that README states.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use sentinel_integration::client::{self, Client};
use sentinel_integration::clock;
use sentinel_integration::load::Rate;
use sentinel_integration::mix::{self, Books, Stretch, Unserved};
use sentinel_integration::raw::Raw;
use sentinel_integration::soak;
use sentinel_integration::stats::Stats;
use sentinel_integration::upstream::{Behaviour, SENT_AT};
use sentinel_integration::xds;

use crate::isolation::assert_exactly;
use crate::world::{self, ByXds, Setup, World};

/// The mix, with the modules that can be made to trap, and as little patience with dead workers as may be set.
fn setup() -> Setup {
    let setup = mix::RULES
        .iter()
        .fold(Setup::new(), |setup, (kind, rules)| setup.rules(kind, rules))
        .settings("{workerTtlMs: 5000, orphanTtlMs: 1000}");
    setup.with_faults()
}

/// An Envoy under the mix, and what clients have been told by it.
struct Siege {
    world: World,
    books: Books,
    memory_bytes: u64,
}

impl Siege {
    /// Starts it, with load on until everything has been seen once.
    fn lay(setup: Setup) -> Self {
        let world = setup.start();
        mix::prepare(&world.upstream);
        let mut siege = Self { world, books: Books::default(), memory_bytes: 0 };
        siege.under_load(|world| {
            mix::wait_until_ill(&world.upstream).unwrap();
            clock::pause(Duration::from_secs(1));
        });
        siege.memory_bytes = siege.world.envoy.memory_bytes().unwrap();
        siege
    }

    /// Runs `body` under the load of the mix, and enters what clients were told.
    fn under_load<T>(&mut self, body: impl FnOnce(&World) -> T) -> (Stretch, T) {
        let world = &self.world;
        let rate = Rate::PerSecond(mix::per_second());
        let (report, done) = world.while_trying(&mix::asks(), rate, || body(world));
        let stretch = Stretch::of(report, &world.upstream);
        self.books.enter(&stretch);
        (stretch, done)
    }

    /// Does harm under load; no limit may be exceeded.
    #[track_caller]
    fn harm<T>(&mut self, body: impl FnOnce(&World) -> T) -> (Stretch, T) {
        let (stretch, done) = self.under_load(body);
        assert_eq!(stretch.exceeded(), NOTHING, "{:?}", self.world);
        (stretch, done)
    }

    /// After the harm everything is as before: limits hold and are used up, and whoever has room gets an answer.
    #[track_caller]
    fn assert_well(&mut self) {
        let (stretch, ()) = self.under_load(|_| clock::pause(Duration::from_millis(2500)));
        assert_eq!(stretch.exceeded(), NOTHING, "{:?}", self.world);
        assert_eq!(stretch.unused(), NOTHING, "{:?}", self.world);
        for name in ["GET:/free", "GET:/well"] {
            let seen = stretch.seen(name);
            assert_eq!(seen.status(200), seen.sent(), "{name}: {:?}", seen.by_status);
        }
    }

    /// Loads it until as many are at a time again as may be: places of requests that died with their VM come back late.
    #[track_caller]
    fn regain_capacity(&mut self) {
        let begin = clock::now();
        loop {
            let (stretch, ()) = self.harm(|_| clock::pause(Duration::from_secs(1)));
            if stretch.most_slow() == mix::SLOW {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "capacity never came back: {:?}", self.world);
        }
        println!("capacity is back {:?} after the last trap", begin.elapsed());
    }

    /// Totals are whole soon after the last answer, nothing is in flight any more, and nobody complains.
    #[track_caller]
    fn assert_whole(&self, unserved: Unserved, may_miss: u64) -> Stats {
        let quiet = clock::now();
        let what = "whole totals";
        let stats = clock::wait_for(what, PATIENCE, || {
            let stats = self.stats();
            Ok(self.books.miscounted(&stats, unserved, may_miss).is_empty().then_some(stats))
        });
        let stats = stats.unwrap_or_else(|error| {
            let wrong = self.books.miscounted(&self.stats(), unserved, may_miss);
            panic!("{error:#}: {wrong:?}; {:?}", self.world)
        });
        println!("totals whole {:?} after the last answer", quiet.elapsed());
        stats
    }

    /// Nothing is in flight any more, as the gauge says, and no permit is held.
    #[track_caller]
    fn assert_nothing_held(&self) {
        let quiet = clock::now();
        self.world
            .when("nothing in flight", || (self.stats().total("in_flight") == 0).then_some(()));
        println!("nothing in flight {:?} after the last answer", quiet.elapsed());
        assert_exactly(&self.world, "/slow", mix::SLOW);
    }

    /// No VM has trapped but those that were asked to, by so many requests at most.
    #[track_caller]
    fn assert_trapped(&self, workers: u64, services: u64) {
        let stats = self.world.envoy.stats_of("vm_reload").unwrap();
        let reloads = |plugin: &str| stats.sum(&format!("wasm.{plugin}."), ".vm_reload_success");
        let (filter, service) = (reloads("sentinel_filter"), reloads("sentinel_service"));
        assert!(filter <= workers, "{filter} reloads for {workers} traps; {:?}", self.world);
        assert!(service <= services, "{service} reloads for {services} traps; {:?}", self.world);
        let panicked = self.world.envoy.log_lines("panicked").unwrap();
        assert!(panicked.len() as u64 <= workers + services, "{panicked:?}");
        assert_eq!(mix::unsound(&self.stats()), NOTHING);
    }

    /// Memory is what it was, but for what allocators and another set of VMs need.
    #[track_caller]
    fn assert_memory(&self, may_grow: u64) {
        let now = self.world.envoy.memory_bytes().unwrap();
        let grown = now.saturating_sub(self.memory_bytes);
        println!("memory {} MB, grown by {} KB", now >> 20, grown >> 10);
        assert!(grown < may_grow, "Envoy grew by {grown} bytes; {:?}", self.world);
    }

    fn stats(&self) -> Stats {
        self.world.envoy.stats_of("wasmcustom").unwrap()
    }
}

/// How old the service's heartbeat is, as a worker's console says: that needs no main thread.
fn heartbeat_age_ms(console: SocketAddr) -> Option<u64> {
    let answer = client::get(console, "/sentinel/state?limit=1").ok()?;
    let state: Value = serde_json::from_str(&answer.body).ok()?;
    state["service"]["heartbeatAgeMs"].as_u64()
}

#[test]
fn worker_vms_trap_again_and_again() {
    let mut siege = Siege::lay(setup());

    let (stretch, traps) = siege.harm(|world| {
        let end = clock::now() + Duration::from_secs(8);
        let mut traps = Vec::new();
        while clock::now() < end {
            let from_ns = clock::wall_nanos();
            // On a connection of its own: which worker gets it is the kernel's choice.
            if let Ok(answer) = fault(world, "worker") {
                assert_eq!(answer.status, 503, "{answer:?}");
                traps.push((from_ns, clock::wall_nanos()));
            }
            clock::pause(Duration::from_millis(200));
        }
        traps
    });
    let back = clock::now();
    siege.world.becomes("/probe", 200);
    println!("{} traps; all serve again {:?} after the last", traps.len(), back.elapsed());
    assert!(back.elapsed() < RECOVERY, "{:?}", siege.world);
    siege.regain_capacity();
    siege.assert_well();

    // A trap may cost what its worker counted since its last flush. Of all workers:
    let may_miss = traps.iter().map(|(from, to)| stretch.open_within(from - FLUSH_NS, *to)).sum();
    let stats = siege.assert_whole(Unserved::Either, may_miss);
    println!(
        "{} of at most {may_miss} requests missing after {} traps, {} unserved",
        siege.books.missing(&stats),
        traps.len(),
        siege.books.unserved()
    );
    siege.assert_nothing_held();
    let trapped = u64::try_from(traps.len()).unwrap();
    assert!(trapped >= 10, "only {trapped} traps");
    siege.assert_trapped(trapped, 0);
    siege.assert_memory(32 << 20);
}

#[test]
fn the_service_traps_and_is_revived_again_and_again() {
    let mut siege = Siege::lay(setup());
    let console = siege.world.envoy.listener("sentinel_console").unwrap();

    let (_, slowest) = siege.harm(|world| {
        let mut slowest = Duration::ZERO;
        for trap in 1..=4 {
            fault(world, "service").unwrap();
            let trapped = clock::now();
            world.when("the service's revival", || {
                let stats = world.envoy.stats_of("vm_reload_success").unwrap();
                let revived = stats.sum("wasm.sentinel_service.", ".vm_reload_success") >= trap;
                // Its successor beats once it has the role.
                let beats = heartbeat_age_ms(console)
                    .is_some_and(|age| Duration::from_millis(age) < trapped.elapsed());
                (revived && beats).then_some(())
            });
            slowest = slowest.max(trapped.elapsed());
        }
        slowest
    });
    println!("the service was back after {slowest:?} at most");
    assert!(slowest < RECOVERY, "{:?}", siege.world);

    // The new one decides: a breaker opens, and closes.
    siege.harm(|world| {
        world.upstream.behave("GET:/well", Behaviour::status(500));
        breaker_becomes(world, "well", OPEN);
        world.upstream.behave("GET:/well", Behaviour::default());
        breaker_becomes(world, "well", CLOSED);
    });
    siege.assert_well();
    siege.assert_whole(Unserved::Passed, 0);
    siege.assert_nothing_held();
    siege.assert_trapped(0, 4);
    siege.assert_memory(16 << 20);
}

#[test]
fn the_service_is_dead_for_good() {
    let mut setup = setup();
    setup.revived = false;
    let mut siege = Siege::lay(setup);
    fault(&siege.world, "service").unwrap();
    let console = siege.world.envoy.listener("sentinel_console").unwrap();
    siege
        .world
        .when("the heartbeat to grow old", || heartbeat_age_ms(console).filter(|age| *age > 1000));

    let (stretch, ()) = siege.harm(|_| clock::pause(Duration::from_secs(7)));
    assert_eq!(stretch.unused(), NOTHING, "{:?}", siege.world);
    siege.assert_well();

    siege.assert_whole(Unserved::Passed, 0);
    assert_exactly(&siege.world, "/slow", mix::SLOW);
    assert!(heartbeat_age_ms(console) > Some(7000), "{:?}", siege.world);
    siege.assert_trapped(0, 1);
    siege.assert_memory(16 << 20);
}

#[test]
fn there_is_no_service_at_all() {
    let world = setup().service(None).start();
    mix::prepare(&world.upstream);
    let load = |seconds| {
        let rate = Rate::PerSecond(mix::per_second());
        let (report, ()) =
            world.while_loading(&mix::asks(), rate, || clock::pause(Duration::from_secs(seconds)));
        Stretch::of(report, &world.upstream)
    };
    let mut books = Books::default();
    books.enter(&load(2));
    let before = world.envoy.memory_bytes().unwrap();

    let stretch = load(5);
    books.enter(&stretch);

    let refused = mix::asks().iter().map(|ask| stretch.seen(&ask.name).refused()).sum::<u64>();
    assert_eq!((refused, books.unserved()), (0, 0), "without rules everything passes");
    world.stats_when("every request to be counted", |stats| {
        let passed = stats.total("pass_total");
        passed == books.served() && stats.total("complete_total") == passed
    });
    assert_eq!(mix::unsound(&world.stats()), NOTHING);
    let grown = world.envoy.memory_bytes().unwrap().saturating_sub(before);
    assert!(grown < 8 << 20, "Envoy grew by {grown} bytes while there was no service");
    world.assert_nothing_trapped();
}

#[test]
fn the_main_thread_is_held_by_scrapes_of_thousands_of_clusters() {
    let mut setup = setup();
    for number in 0..CLUSTERS {
        let name = format!("idle_{number}");
        setup = setup.change(
            "/static_resources/clusters/0",
            json!({
                "name": name,
                "type": "STATIC",
                "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                        "socket_address": {"address": "127.0.0.1", "port_value": 9},
                    }}}]}],
                },
            }),
        );
    }
    let mut siege = Siege::lay(setup);
    let console = siege.world.envoy.listener("sentinel_console").unwrap();

    let over = AtomicBool::new(false);
    let (_, oldest) = siege.harm(|world| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        // What breaks off is asked for again.
                        let _ = scrape(world.envoy.admin(), &over);
                    }
                });
            }
            let end = clock::now() + Duration::from_secs(6);
            let mut oldest = 0;
            while clock::now() < end {
                oldest = oldest.max(heartbeat_age_ms(console).unwrap_or(0));
                clock::pause(Duration::from_millis(50));
            }
            over.store(true, Ordering::Relaxed);
            oldest
        })
    });
    println!("the oldest heartbeat was {oldest} ms old");
    // One is due each second.
    assert!(oldest > 1200, "nothing held the main thread: {:?}", siege.world);
    // What has been asked for Envoy makes to its end, though nobody reads it.
    siege.world.when("the main thread to be free", || {
        client::get(siege.world.envoy.admin(), "/ready").ok()
    });
    let freed = clock::now();
    siege.world.when("a heartbeat", || heartbeat_age_ms(console).filter(|age| *age < 1500));
    println!("the service beats again after {:?}", freed.elapsed());
    assert!(freed.elapsed() < RECOVERY, "{:?}", siege.world);

    siege.assert_well();
    siege.assert_whole(Unserved::Passed, 0);
    siege.assert_nothing_held();
    siege.assert_trapped(0, 0);
}

#[test]
fn the_process_is_stopped_for_two_seconds_and_goes_on() {
    let mut siege = Siege::lay(setup());

    let (stretch, slowest) = siege.harm(|world| {
        let mut slowest = Duration::ZERO;
        for _ in 0..2 {
            clock::pause(Duration::from_millis(700));
            world.envoy.freeze().unwrap();
            clock::pause(Duration::from_secs(2));
            world.envoy.thaw().unwrap();
            let thawed = clock::now();
            world.becomes("/probe", 200);
            slowest = slowest.max(thawed.elapsed());
        }
        clock::pause(Duration::from_millis(1500));
        slowest
    });
    println!("all workers answered {slowest:?} after SIGCONT at most");
    assert!(slowest < RECOVERY, "{:?}", siege.world);
    assert_eq!(stretch.unused(), NOTHING, "{:?}", siege.world);

    siege.assert_well();
    siege.assert_whole(Unserved::Passed, 0);
    assert_eq!(siege.books.unserved(), 0);
    siege.assert_nothing_held();
    siege.assert_trapped(0, 0);
    siege.assert_memory(16 << 20);
}

#[test]
fn the_listener_is_drained_and_comes_back() {
    let mut siege = Siege::lay(setup().by_xds(ByXds::Listener));
    let listener = siege.world.resource();
    // These are cut off by the end of the drain.
    let long: &[_] = &[("x-latency-ms", "20000"), ("x-resource", "long")];
    let held: Vec<_> = (0..3).map(|_| siege.world.hang("/free", long)).collect();

    siege.harm(|world| {
        world.when("three to arrive", || (world.upstream.open("long").now == 3).then_some(()));
        // Once one is there all clients are connected.
        let before = world.upstream.arrived("GET:/free");
        world.when("the load", || (world.upstream.arrived("GET:/free") > before).then_some(()));
        world.publish(&[]);
        world.when("the listener to be gone", || {
            client::get(world.proxy(), "/probe").is_err().then_some(())
        });
        world.when("the requests of old to be cut off", || {
            (world.upstream.open("long").now == 0).then_some(())
        });
    });
    drop(held);
    siege.books.enter_aborted("GET:/free", 3);
    assert!(siege.books.unserved() > 0, "nobody noticed that the listener was gone");

    siege.world.publish(&[listener]);
    let address = siege.world.when("the listener", || siege.world.envoy.listener("ingress").ok());
    siege.world.envoy.serve_at(address);
    siege.assert_well();
    siege.assert_whole(Unserved::NeverAsked, 0);
    siege.assert_nothing_held();
    siege.assert_trapped(0, 0);
    siege.assert_memory(16 << 20);
}

#[test]
fn the_overload_manager_sheds_half_of_the_load_and_all_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let pressure: PathBuf = directory.path().join("pressure");
    xds::replace(&pressure, "0").unwrap();
    let setup = setup()
        .change(
            "/overload_manager/resource_monitors/0",
            json!({
                "name": "envoy.resource_monitors.injected_resource",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig",
                    "filename": pressure,
                },
            }),
        )
        .change(
            "/overload_manager/actions",
            json!([{
                "name": "envoy.overload_actions.stop_accepting_requests",
                "triggers": [{
                    "name": "envoy.resource_monitors.injected_resource",
                    "scaled": {"scaling_threshold": 0.2, "saturation_threshold": 0.8},
                }],
            }]),
        );
    let mut siege = Siege::lay(setup);

    let (stretch, ()) = siege.harm(|world| {
        for share in ["0.5", "0.8", "0.5"] {
            xds::replace(&pressure, share).unwrap();
            clock::pause(Duration::from_secs(2));
        }
        xds::replace(&pressure, "0").unwrap();
        let relieved = clock::now();
        world.becomes("/probe", 200);
        println!("all is served again {:?} after the pressure has gone", relieved.elapsed());
        assert!(relieved.elapsed() < RECOVERY, "{world:?}");
    });
    let free = stretch.seen("GET:/free");
    println!("shed {} of {} requests without a limit", free.status(503), free.sent());
    assert!(free.status(503) * 4 > free.sent(), "hardly any was shed: {:?}", free.by_status);
    assert!(free.status(200) > 0, "all were shed: {:?}", free.by_status);

    siege.assert_well();
    siege.assert_whole(Unserved::NeverAsked, 0);
    siege.assert_nothing_held();
    siege.assert_trapped(0, 0);
    siege.assert_memory(16 << 20);
}

#[test]
fn the_upstream_is_gone_for_a_while() {
    let mut siege = Siege::lay(setup());

    let (stretch, ()) = siege.harm(|world| {
        for _ in 0..2 {
            world.upstream.close();
            breaker_becomes(world, "well", OPEN);
            clock::pause(Duration::from_millis(1500));
            world.upstream.reopen().unwrap();
            let reopened = clock::now();
            breaker_becomes(world, "well", CLOSED);
            println!("the breaker closed {:?} after the upstream came back", reopened.elapsed());
        }
    });
    assert!(stretch.seen("GET:/well").by_rule["well"] > 0);
    assert!(siege.books.unserved() > 0, "nobody noticed that the upstream was gone");

    siege.assert_well();
    siege.assert_whole(Unserved::Passed, 0);
    siege.assert_nothing_held();
    siege.assert_trapped(0, 0);
    siege.assert_memory(16 << 20);
}

#[test]
fn clients_abort_by_thousands() {
    // What Envoy has let go of the upstream may still have: permits of this rule are counted when all is over.
    let setup = setup()
        .rules("IsolationRules", &["{id: cut, resource: 'GET:/cut', threshold: 16}"])
        .rules("FlowRules", &["{id: cut-rate, resource: 'GET:/cut-rate', threshold: 100}"]);
    let mut siege = Siege::lay(setup);
    siege.world.upstream.behave("GET:/cut", Behaviour::default().after_ms(25));

    let (_, aborted) = siege.harm(|world| {
        let workers: Vec<_> = (0..2_u64)
            .map(|thread| {
                let proxy = world.proxy();
                std::thread::spawn(move || abort_many(proxy, thread))
            })
            .collect();
        workers.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    println!("{aborted} requests aborted");
    // Each of the two resources has about half of them; nobody can tell what Envoy had seen of them.
    siege.books.enter_aborted("GET:/cut", aborted);
    siege.books.enter_aborted("GET:/cut-rate", aborted);

    siege.assert_well();
    siege.assert_whole(Unserved::Passed, 0);
    siege.assert_nothing_held();
    assert_exactly(&siege.world, "/cut", 16);
    siege.assert_trapped(0, 0);
    siege.assert_memory(16 << 20);
}

/// `SENTINEL_SOAK_SECONDS=600` makes it ten minutes, as `cargo xtask soak` does.
#[test]
fn half_a_minute_of_soak_at_maximum_load_holds_and_nothing_grows() {
    let _turn = world::machine();
    let named = std::env::var("SENTINEL_SOAK_SECONDS").ok();
    let seconds = named.and_then(|seconds| seconds.parse().ok()).unwrap_or(30);
    let options = soak::Options {
        envoy: world::envoy(),
        dist: world::faults_dist(),
        load: Duration::from_secs(seconds),
    };
    let mut said = Vec::new();
    let holds = soak::soak(&options, &mut said);
    let said = String::from_utf8_lossy(&said);
    assert!(holds.unwrap_or_else(|error| panic!("{error:#}\n{said}")), "{said}");
    println!("{said}");
}

/// Sends requests and breaks each off at another point: in its head, right after it, and while the upstream is at it.
fn abort_many(proxy: SocketAddr, seed: u64) -> u64 {
    let mut count = 0;
    while count < 1500 {
        let path = if count % 2 == 0 { "/cut" } else { "/cut-rate" };
        let sent_ns = clock::wall_nanos();
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{SENT_AT}: {sent_ns}\r\n\r\n");
        let bytes = head.as_bytes();
        let Ok(mut raw) = Raw::connect(proxy) else { continue };
        let part = if count % 3 == 0 { &bytes[..bytes.len() / 2] } else { bytes };
        // Envoy may have closed the connection first.
        let _ = raw.write(part);
        match (count + seed) % 4 {
            0 => {}
            wait => clock::pause(Duration::from_millis(wait * wait)),
        }
        let _ = raw.break_off();
        count += 1;
    }
    count
}

/// Asks for all of Envoy's statistics, and reads them until they end or it is over.
fn scrape(admin: SocketAddr, over: &AtomicBool) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(b"GET /stats/prometheus HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut buffer = vec![0; 1 << 20];
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A request that makes a worker or the service trap, on a connection of its own.
fn fault(world: &World, who: &str) -> anyhow::Result<client::Answer> {
    Client::connect(world.proxy())?.send("GET", "/fault", &[("x-sentinel-fault", who)])
}

#[track_caller]
fn breaker_becomes(world: &World, rule: &str, state: u64) {
    world.when(&format!("state {state} of the breaker {rule}"), || {
        let stats = world.envoy.stats_of("breaker_state").unwrap();
        (stats.rule(rule, "breaker_state") == state).then_some(())
    });
}

const NOTHING: [&str; 0] = [];
const CLOSED: u64 = 0;
const OPEN: u64 = 2;
/// Of clusters that nobody uses.
const CLUSTERS: u32 = 3000;
/// A flush is due every 10 ms; the rest is how late a timer may be where a processor is taken away for a while.
const FLUSH_NS: u64 = 200_000_000;
/// README says three seconds; the rest is what a busy machine may add.
const RECOVERY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
