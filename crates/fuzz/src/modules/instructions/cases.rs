//! The cases.

use std::fmt::Write as _;

use sentinel_core::resource::metric_segment;
use sentinel_wire::frame::{CounterFrame, FRAME_ENTRIES_MAX, FrameEntry};

use super::{Answer, Counting, Envoy, Exchange, Figure, MS, Moment, Outcome, Place};

/// One thing that modules do.
pub(super) struct Case {
    name: &'static str,
    run: Box<Run>,
}

type Run = dyn Fn(&Case, &Counting) -> Result<Outcome, String>;

impl Case {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn run(&self, counting: &Counting) -> Result<Outcome, String> {
        (self.run)(self, counting).map_err(|problem| format!("{}: {problem}", self.name))
    }
}

/// How often each thing is done; what shows is the median.
const REPEATS: u64 = 9;

/// How many requests come in one tick before: a lease has twice as many tokens.
const AT_ONCE: u64 = 20;

/// In the order of the file.
pub(super) fn all() -> Vec<Case> {
    let mut all: Vec<Case> = requests().into_iter().map(RequestCase::into_case).collect();
    let mut add = |name, run: fn(&Case, &Counting) -> Result<Outcome, String>| {
        all.push(Case { name, run: Box::new(run) });
    };
    add("connection, one flow rule", connection);
    add("message, one flow rule", message);
    add("worker's tick, idle, once a second", idle_tick);
    add("worker's tick after a request", busy_tick);
    add("frame of 1 resource", |case, counting| frame(case, counting, 1));
    add("frame of 16 resources", |case, counting| frame(case, counting, 16));
    add("frame of 256 resources", |case, counting| frame(case, counting, 256));
    add("service's tick, nothing new", service_tick);
    add("service, 64 workers, 1,000 resources", service_second);
    all
}

/// A request.
struct RequestCase {
    name: &'static str,
    filter: &'static str,
    rules: String,
    exchange: Exchange,
    answer: Answer,
    /// What it is called, as far as a rule calls it so.
    resource: &'static str,
    /// How much time passes from one to the next.
    apart_ns: u64,
    /// Calls on shared data for each.
    shared: u64,
    /// Of the writes of each, how many find that somebody has been faster.
    late: u32,
    /// Whether each callback shows alone.
    is_split: bool,
}

const BY_PATH: &str = "resource: {from: method_path}\norigin: {header: x-origin}\n";
const BY_HEADER: &str = "resource: {from: {header: x-resource}}\n";
const BY_ROUTE: &str = "resource: {from: route}\n";

impl RequestCase {
    /// A request for the path `/hello`, which one flow rule lets pass.
    fn new(name: &'static str, rules: &str) -> Self {
        Self {
            name,
            filter: BY_PATH,
            rules: rules.to_owned(),
            exchange: request("/hello"),
            answer: Answer::Passes,
            resource: "GET:/hello",
            apart_ns: MS / 10,
            shared: 0,
            late: 0,
            is_split: false,
        }
    }

    fn into_case(self) -> Case {
        Case { name: self.name, run: Box::new(move |_, counting| self.run(counting)) }
    }

    fn run(&self, counting: &Counting) -> Result<Outcome, String> {
        let mut envoy = Envoy::start(counting, &service(&self.rules), self.filter, false)?;
        self.warm_up(&mut envoy)?;
        let counter = self.counter();
        let before = envoy.statistic(&counter);
        let mut parts: [Vec<[u64; 5]>; 5] = Default::default();
        for _ in 0..REPEATS {
            envoy.wait(self.apart_ns);
            let each = self.one(&mut envoy)?;
            if each[WHOLE][SHARED_DATA] != self.shared {
                return Err(format!(
                    "{} calls on shared data, but {} were expected",
                    each[WHOLE][SHARED_DATA], self.shared
                ));
            }
            for (all, one) in parts.iter_mut().zip(each) {
                all.push(one);
            }
        }
        envoy.pass(20)?;
        let moved = envoy.statistic(&counter) - before;
        expect(&counter, &moved, &(REPEATS + AT_ONCE))?;
        let shown = if self.is_split { PARTS.len() } else { 1 };
        let figures = PARTS.iter().zip(parts).take(shown).map(|(part, counts)| Figure {
            name: format!("{}{part}", self.name),
            counts: median(counts),
        });
        Ok(Outcome { figures: figures.collect(), by_function: envoy.by_function })
    }

    /// Until leases are large, names known and statistics defined.
    fn warm_up(&self, envoy: &mut Envoy<'_>) -> Result<(), String> {
        for _ in 0..60 {
            for _ in 0..AT_ONCE {
                envoy.exchange(&self.exchange)?;
            }
            envoy.pass(50)?;
        }
        // The last ones have claimed for whoever comes within the tick.
        for _ in 0..AT_ONCE {
            envoy.exchange(&self.exchange)?;
        }
        Ok(())
    }

    fn one(&self, envoy: &mut Envoy<'_>) -> Result<[[u64; 5]; 5], String> {
        let (root, exchange) = (envoy.filter.root, self.exchange.clone());
        envoy.process.borrow_mut().late_writes = self.late;
        let filter = Place::Filter;
        let (id, created) = envoy.spent(filter, |envoy| envoy.create(filter, root, exchange))?;
        let (answer, entered) = envoy.spent(filter, |envoy| envoy.enter(id, false))?;
        if answer != self.answer {
            return Err(format!("{answer:?}, but {:?} was expected", self.answer));
        }
        let ((), logged) = envoy.spent(filter, |envoy| envoy.log(id))?;
        let ((), deleted) = envoy.spent(filter, |envoy| envoy.delete(id))?;
        let parts = [created, entered, logged, deleted];
        let mut whole = [0; 5];
        parts.iter().for_each(|part| add(&mut whole, *part));
        Ok([whole, created, entered, logged, deleted])
    }

    /// The statistic that moves with each.
    fn counter(&self) -> String {
        let mut name = String::from("sentinel.resource.");
        metric_segment(self.resource.as_bytes(), &mut name);
        match &self.answer {
            Answer::Passes | Answer::Waits => name.push_str(".pass_total"),
            Answer::Refused(_) => name.push_str(".rule.full.type.FlowControl.block_total"),
        }
        name
    }
}

/// Of what [`RequestCase::one`] gives.
const WHOLE: usize = 0;
const PARTS: [&str; 5] =
    ["", ": on_context_create", ": on_request_headers", ": on_log", ": on_delete"];
const SHARED_DATA: usize = 4;

const FLOW: &str = "{id: flow, resource: \"GET:/hello\", threshold: 1000000}";
const VALUE: &str = "{id: value, resource: \"GET:/hello\", metricType: QPS, threshold: 100000, durationInSec: 1, paramKey: \"header:x-user\"}";
const BREAKER: &str = "{id: breaker, resource: \"GET:/hello\", strategy: ErrorRatio, threshold: 50, minRequestAmount: 5, statIntervalMs: 1000, retryTimeoutMs: 1000}";

fn requests() -> Vec<RequestCase> {
    let flow = rules("FlowRules", FLOW);
    let mut others = String::new();
    for number in 0..9_999 {
        let _ = write!(others, "{{id: o{number}, resource: \"GET:/o/{number}\", threshold: 10}}, ");
    }
    let mixed = [
        rules(
            "FlowRules",
            &format!(
                "{FLOW}, {{id: slow, resource: \"GET:/hello\", threshold: 9000000, statIntervalInMs: 10000}}, {{id: shop, resource: \"GET:/hello\", limitApp: shop, threshold: 1000000}}"
            ),
        ),
        rules("IsolationRules", "{id: at-a-time, resource: \"GET:/hello\", threshold: 100000}"),
        rules(
            "HotspotRules",
            &format!(
                "{VALUE}, {{id: each, resource: \"GET:/hello\", metricType: Concurrency, threshold: 1000, paramKey: \"header:x-user\"}}"
            ),
        ),
        rules(
            "CircuitBreakerRules",
            &format!(
                "{BREAKER}, {{id: slow-ones, resource: \"GET:/hello\", strategy: SlowRequestRatio, threshold: 60, maxAllowedRtMs: 20, minRequestAmount: 5, statIntervalMs: 2000, retryTimeoutMs: 1000}}"
            ),
        ),
        rules(
            "AuthorityRules",
            "{id: known, resource: \"GET:/hello\", limitApp: \"shop,back-office\", strategy: White}",
        ),
        rules("SystemRules", "{id: inbound, metricType: InboundQPS, triggerCount: 1000000}"),
    ]
    .concat();
    let with = |mut case: RequestCase, change: &dyn Fn(&mut RequestCase)| {
        change(&mut case);
        case
    };
    let claim = rules(
        "FlowRules",
        "{id: flow, resource: \"GET:/hello\", threshold: 1000000, statIntervalInMs: 1000}",
    );
    vec![
        with(RequestCase::new("request, no rule on its resource", &flow), &|case| {
            case.exchange = request("/other");
            case.resource = "other";
        }),
        with(RequestCase::new("request, one flow rule, by method and path", &flow), &|case| {
            case.is_split = true;
        }),
        with(RequestCase::new("request, one flow rule, by a header", &flow), &|case| {
            case.filter = BY_HEADER;
            case.exchange = request("/any");
            case.exchange.request.push((b"x-resource".into(), b"GET:/hello".into()));
        }),
        with(RequestCase::new("request, one flow rule, by route", &flow), &|case| {
            case.filter = BY_ROUTE;
            case.exchange = request("/any");
            let route = (b"xds\0route_name".into(), b"GET:/hello".into());
            case.exchange.properties.push(route);
        }),
        with(
            RequestCase::new(
                "request, refused",
                &rules(
                    "FlowRules",
                    "{id: full, resource: \"GET:/hello\", threshold: 1, statIntervalInMs: 60000}",
                ),
            ),
            &|case| {
                case.answer = Answer::Refused("sentinel_FlowControl_full".to_owned());
                case.is_split = true;
            },
        ),
        RequestCase::new(
            "request, isolation",
            &rules(
                "IsolationRules",
                "{id: at-a-time, resource: \"GET:/hello\", threshold: 100000}",
            ),
        ),
        RequestCase::new("request, circuit breaker", &rules("CircuitBreakerRules", BREAKER)),
        with(RequestCase::new("request, hot parameter", &rules("HotspotRules", VALUE)), &|case| {
            case.shared = 2;
        }),
        with(
            RequestCase::new(
                "request, flow, hot parameter, circuit breaker",
                &[
                    flow.clone(),
                    rules("HotspotRules", VALUE),
                    rules("CircuitBreakerRules", BREAKER),
                ]
                .concat(),
            ),
            &|case| case.shared = 2,
        ),
        with(RequestCase::new("request, 10 rules of all kinds", &mixed), &|case| {
            // Two values: a bucket is taken from, a permit taken and given back.
            case.shared = 6;
        }),
        RequestCase::new(
            "request, one flow rule beside 9,999 others",
            &rules("FlowRules", &format!("{others}{FLOW}")),
        ),
        with(RequestCase::new("request, one flow rule, with a claim", &claim), &|case| {
            case.apart_ns = 1_000 * MS;
            case.shared = 2;
        }),
        with(RequestCase::new("request, one flow rule, and a claim done twice", &claim), &|case| {
            case.apart_ns = 1_000 * MS;
            case.shared = 4;
            case.late = 1;
        }),
    ]
}

/// A GET with what browsers and proxies send, and its answer.
fn request(path: &str) -> Exchange {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
    Exchange {
        request: pairs(&[
            (":method", "GET"),
            (":path", path),
            (":authority", "shop.test"),
            ("user-agent", "curl/8.5.0"),
            ("accept", "*/*"),
            ("x-origin", "shop"),
            ("x-user", "4711"),
        ]),
        response: pairs(&[(":status", "200")]),
        properties: pairs(&[
            ("source\0address", "127.0.0.1:4711"),
            ("destination\0address", "127.0.0.1:6379"),
            ("xds\0listener_direction", "\0\0\0\0\0\0\0\0"),
            ("request\0size", "\x07\0\0\0\0\0\0\0"),
            ("response\0size", "\x07\0\0\0\0\0\0\0"),
            ("response\0flags", "\0\0\0\0\0\0\0\0"),
        ]),
        ..Exchange::default()
    }
}

/// One document of rules.
fn rules(kind: &str, specs: &str) -> String {
    format!(
        "- {{apiVersion: datasource.sentinel.io/v1alpha1, kind: {kind}, spec: {{rules: [{specs}]}}}}\n"
    )
}

/// The service's configuration with these documents.
fn service(rules: &str) -> String {
    format!("rules:\n{rules}")
}

fn add(all: &mut [u64; 5], one: [u64; 5]) {
    for (all, one) in all.iter_mut().zip(one) {
        *all += one;
    }
}

/// Those with the median of the instructions.
fn median(mut all: Vec<[u64; 5]>) -> [u64; 5] {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// A connection that carries one piece of data each way.
fn connection(case: &Case, counting: &Counting) -> Result<Outcome, String> {
    let rules = rules("FlowRules", "{id: flow, resource: \"tcp:6379\", threshold: 1000000}");
    let mut envoy = Envoy::start(counting, &service(&rules), "{}", false)?;
    let one = |envoy: &mut Envoy<'_>| {
        let id = envoy.create(Place::Filter, envoy.filter.root, request("/"))?;
        let answer = envoy.enter(id, true)?;
        for export in ["proxy_on_downstream_data", "proxy_on_upstream_data"] {
            envoy.call(Place::Filter, export, &[id, 7, 0], Moment::Data)?;
        }
        envoy.log(id)?;
        envoy.delete(id)?;
        Ok(answer)
    };
    for _ in 0..60 {
        one(&mut envoy)?;
        one(&mut envoy)?;
        envoy.pass(50)?;
    }
    one(&mut envoy)?;
    let mut counts = Vec::new();
    for _ in 0..REPEATS {
        let (answer, spent) = envoy.spent(Place::Filter, one)?;
        expect("connection", &answer, &Answer::Passes)?;
        counts.push(spent);
    }
    let before = envoy.statistic("sentinel.resource.tcp:6379.pass_total");
    envoy.pass(20)?;
    let moved = envoy.statistic("sentinel.resource.tcp:6379.pass_total") - before;
    expect("counted connections", &moved, &10)?;
    case.shown(envoy, counts)
}

/// One message of a stream.
fn message(case: &Case, counting: &Counting) -> Result<Outcome, String> {
    let rules = rules(
        "FlowRules",
        "{id: messages, resource: \"GET:/hello\", threshold: 1000000, unit: message}",
    );
    let mut envoy = Envoy::start(counting, &service(&rules), BY_PATH, true)?;
    let mut exchange = request("/hello");
    exchange.request.push((b"content-type".into(), b"application/grpc".into()));
    let id = envoy.create(Place::Filter, envoy.filter.root, exchange)?;
    let answer = envoy.enter(id, false)?;
    expect("request", &answer, &Answer::Passes)?;
    let one = |envoy: &mut Envoy<'_>| {
        let body = [[0, 0, 0, 0, 40].as_slice(), &[0x55; 40]].concat();
        if let Some(context) = envoy.filter.guest.state().contexts.get_mut(&id) {
            context.exchange.body = body;
        }
        envoy.call(Place::Filter, "proxy_on_request_body", &[id, 45, 0], Moment::Body)
    };
    for _ in 0..60 {
        one(&mut envoy)?;
        one(&mut envoy)?;
        envoy.pass(50)?;
    }
    one(&mut envoy)?;
    let counter = "sentinel.resource.GET:/hello.message_pass_total";
    let before = envoy.statistic(counter);
    let mut counts = Vec::new();
    for _ in 0..REPEATS {
        let (flow, spent) = envoy.spent(Place::Filter, one)?;
        expect("what becomes of a message", &flow, &0)?;
        counts.push(spent);
    }
    envoy.pass(20)?;
    expect("counted messages", &(envoy.statistic(counter) - before), &10)?;
    case.shown(envoy, counts)
}

/// The tick of a worker that has had no request for a while.
fn idle_tick(case: &Case, counting: &Counting) -> Result<Outcome, String> {
    let rules = rules("FlowRules", FLOW);
    let mut envoy = Envoy::start(counting, &service(&rules), BY_PATH, false)?;
    envoy.exchange(&request("/hello"))?;
    envoy.pass(5_000)?;
    let mut counts = Vec::new();
    for _ in 0..REPEATS {
        envoy.wait(1_000 * MS);
        envoy.tick(Place::Service)?;
        counts.push(envoy.spent(Place::Filter, |envoy| envoy.tick(Place::Filter))?.1);
    }
    let period_ms = envoy.filter.guest.state().timers.values().next().map(|timer| timer.0);
    expect("the timer's period", &period_ms, &Some(1_000))?;
    case.shown(envoy, counts)
}

/// The tick that adds to Envoy's statistics what a request has counted.
fn busy_tick(case: &Case, counting: &Counting) -> Result<Outcome, String> {
    let rules = rules("FlowRules", FLOW);
    let mut envoy = Envoy::start(counting, &service(&rules), BY_PATH, false)?;
    for _ in 0..20 {
        envoy.exchange(&request("/hello"))?;
        envoy.pass(50)?;
    }
    let mut counts = Vec::new();
    for _ in 0..REPEATS {
        let before = envoy.statistic("sentinel.resource.GET:/hello.complete_total");
        envoy.exchange(&request("/hello"))?;
        envoy.wait(5 * MS);
        counts.push(envoy.spent(Place::Filter, |envoy| envoy.tick(Place::Filter))?.1);
        let moved = envoy.statistic("sentinel.resource.GET:/hello.complete_total") - before;
        expect("counted requests", &moved, &1)?;
        envoy.pass(11)?;
    }
    case.shown(envoy, counts)
}

/// Circuit breakers for so many resources.
fn breakers(resources: usize) -> String {
    let mut all = String::new();
    for number in 0..resources {
        let _ = write!(
            all,
            "{{id: b{number}, resource: \"GET:/r/{number}\", strategy: ErrorRatio, threshold: 50, minRequestAmount: 5, statIntervalMs: 1000, retryTimeoutMs: 1000}}, "
        );
    }
    rules("CircuitBreakerRules", &all)
}

/// The tick that sends a frame of so many resources, each with a circuit breaker, and the service that reads it.
fn frame(case: &Case, counting: &Counting, resources: usize) -> Result<Outcome, String> {
    let mut envoy = Envoy::start(counting, &service(&breakers(resources)), BY_PATH, false)?;
    let requests: Vec<Exchange> =
        (0..resources).map(|number| request(&format!("/r/{number}"))).collect();
    let all = |envoy: &mut Envoy<'_>| {
        requests.iter().try_for_each(|request| envoy.exchange(request).map(drop))
    };
    // Names go until the service has acknowledged them, which a worker sees once a second.
    for _ in 0..60 {
        all(&mut envoy)?;
        envoy.pass(50)?;
    }
    let (mut sent, mut folded) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        all(&mut envoy)?;
        envoy.wait(5 * MS);
        sent.push(envoy.spent(Place::Filter, |envoy| envoy.tick(Place::Filter))?.1);
        let frames = envoy.process.borrow().frames();
        let entries: Vec<usize> = frames
            .iter()
            .map(|frame| CounterFrame::decode(frame).map_or(0, |frame| frame.entries.len()))
            .collect();
        expect("entries of frames", &entries, &vec![resources])?;
        folded.push(envoy.spent(Place::Service, Envoy::hear)?.1);
        expect("frames that wait", &envoy.process.borrow().backlog(), &0)?;
        envoy.pass(11)?;
    }
    let figure = |part: &str, counts| Figure {
        name: format!("{}: {part}", case.name),
        counts: median(counts),
    };
    Ok(Outcome {
        figures: vec![figure("worker's tick", sent), figure("service", folded)],
        by_function: envoy.by_function,
    })
}

/// The service's tick where workers have said nothing.
fn service_tick(case: &Case, counting: &Counting) -> Result<Outcome, String> {
    let mut envoy = Envoy::start(counting, &service(&breakers(50)), BY_PATH, false)?;
    envoy.exchange(&request("/r/0"))?;
    envoy.pass(3_000)?;
    let mut counts = Vec::new();
    for _ in 0..REPEATS {
        envoy.pass(1_000)?;
        let period_ms = envoy.service.guest.state().timers.values().next().map(|timer| timer.0);
        envoy.wait(u64::from(period_ms.unwrap_or(0)) * MS);
        counts.push(envoy.spent(Place::Service, |envoy| envoy.tick(Place::Service))?.1);
    }
    case.shown(envoy, counts)
}

/// What the service does in a second, put together of its parts, in which 64 workers send what it is to know of 50 resources every 10 ms, and of 950
/// others once, in as many frames as that takes.
///
/// One worker is real. The frames of the others are its own, with another name and in due order.
fn service_second(case: &Case, counting: &Counting) -> Result<Outcome, String> {
    const WORKERS: u64 = 64;
    const WATCHED: usize = 50;
    const FLUSHES: u64 = 100;

    let mut others = String::new();
    for number in WATCHED..1_000 {
        let _ = write!(
            others,
            "{{id: f{number}, resource: \"GET:/r/{number}\", threshold: 1000000}}, "
        );
    }
    let rules = [breakers(WATCHED), rules("FlowRules", &others)].concat();
    let mut envoy = Envoy::start(counting, &service(&rules), BY_PATH, false)?;
    let requests: Vec<Exchange> =
        (0..1_000).map(|number| request(&format!("/r/{number}"))).collect();

    // All that a worker can say, with names.
    for request in &requests {
        envoy.exchange(request)?;
    }
    let mut said: Vec<CounterFrame> = Vec::new();
    // Once a second those that the service does not evaluate.
    for _ in 0..600 {
        envoy.wait(10 * MS);
        envoy.tick(Place::Filter)?;
        for frame in envoy.process.borrow().frames() {
            said.push(CounterFrame::decode(&frame).map_err(|error| format!("{error:?}"))?);
        }
        envoy.hear()?;
        envoy.tick(Place::Service)?;
    }
    let mut entries: Vec<_> = said.iter().flat_map(|frame| frame.entries.clone()).collect();
    entries.sort_by_key(|entry| (entry.resource, entry.name.is_none()));
    entries.dedup_by_key(|entry| entry.resource);
    let (watched, rest): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| !entry.breakers.is_empty());
    expect("resources in frames", &(watched.len(), rest.len()), &(WATCHED, 1_000 - WATCHED))?;

    let mut sequence = 0;
    let mut send = |envoy: &mut Envoy<'_>, entries: &[FrameEntry], round: u64| {
        sequence += 1;
        let at_ns = envoy.shared_time()?;
        for worker in 0..WORKERS {
            let mut frame = CounterFrame {
                incarnation: 1_000 + worker,
                sequence,
                at_ns,
                entries: entries.to_vec(),
                ..CounterFrame::default()
            };
            for entry in &mut frame.entries {
                (entry.pass, entry.complete, entry.rt_ms) = (round, round, round * 3);
                for breaker in &mut entry.breakers {
                    breaker.complete = round;
                }
                entry.histogram = vec![(2, round)];
                if round > 1 {
                    entry.name = None;
                }
            }
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            envoy.process.borrow_mut().enqueue(1, bytes);
        }
        Ok::<_, String>(())
    };
    // One wake-up for each frame.
    let hear = |envoy: &mut Envoy<'_>| (0..WORKERS).try_for_each(|_| envoy.hear());
    // They have all been heard before.
    send(&mut envoy, &watched, 1)?;
    hear(&mut envoy)?;
    for chunk in rest.chunks(FRAME_ENTRIES_MAX) {
        send(&mut envoy, chunk, 1)?;
        hear(&mut envoy)?;
    }
    let mut of_watched = Vec::new();
    for round in 2..2 + FLUSHES {
        envoy.wait(10 * MS);
        send(&mut envoy, &watched, round)?;
        let ((), spent) = envoy.spent(Place::Service, |envoy| {
            hear(envoy)?;
            envoy.tick(Place::Service)
        })?;
        of_watched.push(spent);
    }
    let mut of_rest = [0; 5];
    for of_second in rest.chunks(FRAME_ENTRIES_MAX) {
        send(&mut envoy, of_second, 2)?;
        let ((), spent) = envoy.spent(Place::Service, hear)?;
        add(&mut of_rest, spent);
    }
    expect("frames that were lost", &envoy.statistic("sentinel.frames_lost"), &0)?;
    let gauge = envoy.statistic("sentinel.pass_qps");
    if gauge == 0 {
        return Err("the service shows no requests in its gauges".to_owned());
    }
    // Where gauges are set and who is alive is looked at.
    envoy.wait(1_000 * MS);
    let ((), beat) = envoy.spent(Place::Service, |envoy| envoy.tick(Place::Service))?;
    let flush = median(of_watched);
    let mut second = flush.map(|count| count * 100);
    add(&mut second, of_rest);
    add(&mut second, beat);
    let figure = |part: &str, counts| Figure { name: format!("{}: {part}", case.name), counts };
    Ok(Outcome {
        figures: vec![
            figure("frames of 10 ms, of the 50 that it evaluates", flush),
            figure("frames of a second, of others", of_rest),
            figure("tick, once a second", beat),
            figure("a second", second),
        ],
        by_function: envoy.by_function,
    })
}

impl Case {
    fn shown(&self, envoy: Envoy<'_>, counts: Vec<[u64; 5]>) -> Result<Outcome, String> {
        let figure = Figure { name: self.name.to_owned(), counts: median(counts) };
        Ok(Outcome { figures: vec![figure], by_function: envoy.by_function })
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, but {wanted:?} was expected"))
}
