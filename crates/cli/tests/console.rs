//! What the console says of the engine that ships, in a simulated process: that it is what stands in the ledgers, that
//! looking changes nothing, and what `top` makes of it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{cell::RefCell, fmt::Write as _, rc::Rc};

use expect_test::expect;
use sentinel_cli::top::{Traffic, gather, render};
use sentinel_core::{
    config::{FilterConfig, ServiceConfig},
    param::{Param, ParamValue, Request},
    rule::Rule,
};
use sentinel_engine::{
    console::{RULES_MAX, answer},
    document,
    service::Service,
    worker::{Call, Entry, Outcome, Verdict, Worker},
};
use sentinel_sim::{host::SimHost, process::Process};
use sentinel_wire::{
    key::Key,
    rules::{self, RuleSetHeader},
};
use serde_json::{Value, json};

/// Half past nothing: a full second.
const START_MS: u64 = 1_900_000_020_000;

/// A service and its workers on a clock that stands still until it is told to go on.
struct Proxy {
    process: Rc<RefCell<Process>>,
    service: (SimHost<'static>, Service),
    workers: Vec<(SimHost<'static>, Worker)>,
    streams: u32,
}

struct Asked<'a> {
    user: &'a str,
}

impl Request for Asked<'_> {
    fn param(&mut self, _param: &Param) -> Option<ParamValue> {
        Some(ParamValue::Bytes(self.user.as_bytes().to_vec()))
    }

    fn arg(&mut self, _index: i32) -> Option<ParamValue> {
        None
    }

    fn origin(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn path(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

fn process() -> Rc<RefCell<Process>> {
    let process = Rc::new(RefCell::new(Process::new(7, START_MS * 1_000_000)));
    process.borrow_mut().keep_writes();
    process
}

impl Proxy {
    fn start(workers: u32, kind: &str, rules: &[Value]) -> Self {
        Self::start_with(workers, &[(kind, rules)])
    }

    fn start_with(workers: u32, documents: &[(&str, &[Value])]) -> Self {
        let documents: Vec<_> = documents
            .iter()
            .map(|(kind, rules)| {
                json!({"apiVersion": "datasource.sentinel.io/v1alpha1", "kind": kind, "spec": {"rules": rules}})
            })
            .collect();
        let text = json!({"rules": documents}).to_string();
        let config = ServiceConfig::from_node(&document::configuration(text.as_bytes()).unwrap());
        let process = process();
        let mut host = SimHost::undisturbed(&process, 0);
        let service = Service::configure(&mut host, config.unwrap());
        let mut proxy = Self { process, service: (host, service), workers: Vec::new(), streams: 0 };
        for vm in 1..=workers {
            let mut host = SimHost::undisturbed(&proxy.process, vm);
            let worker = Worker::start(&mut host);
            proxy.workers.push((host, worker));
        }
        proxy.tick();
        proxy
    }

    fn tick(&mut self) {
        for _ in 0..3 {
            let (host, service) = &mut self.service;
            service.settle(host);
            self.tick_workers();
        }
    }

    fn tick_workers(&mut self) {
        for (host, worker) in &mut self.workers {
            worker.settle(host);
        }
    }

    fn go_on(&mut self, millis: u64) {
        self.process.borrow_mut().monotonic_ns += millis * 1_000_000;
    }

    fn enter(&mut self, worker: usize, resource: &str, user: &str) -> Verdict {
        self.streams += 1;
        let call = Call {
            resource: resource.as_bytes(),
            batch: 1,
            inbound: true,
            stream: self.streams,
            before_first_rules: None,
        };
        let (host, worker) = &mut self.workers[worker];
        worker.enter(host, &call, &mut Asked { user })
    }

    /// The entry, if the request may go.
    fn admitted(&mut self, worker: usize, resource: &str, user: &str) -> Option<Entry> {
        match self.enter(worker, resource, user) {
            Verdict::Pass(entry) | Verdict::Wait(entry, _) => Some(entry),
            Verdict::Blocked(_) => None,
        }
    }

    fn exit(&mut self, worker: usize, entry: Entry, status: u16) {
        let (host, worker) = &mut self.workers[worker];
        let outcome = Outcome { http_status: Some(status), grpc_status: None };
        worker.exit(host, entry, outcome);
    }

    fn worker(&self, worker: usize) -> String {
        format!("{:016x}", self.workers[worker].1.incarnation())
    }

    /// What the console says to `query`, asked where this worker is, or where there is none.
    #[track_caller]
    fn asked(&mut self, worker: Option<usize>, query: &str) -> (u16, Value) {
        let worker = worker.map(|worker| &self.workers[worker].1);
        ask(&self.process, worker, &format!("/sentinel/state{query}"))
    }

    #[track_caller]
    fn state(&mut self) -> Value {
        let (status, state) = self.asked(None, "");
        assert_eq!(status, 200, "{state}");
        state
    }

    /// The only rule.
    #[track_caller]
    fn rule(&mut self) -> Value {
        self.state()["rules"][0].clone()
    }

    /// Puts `bytes` where the only rule's ledger stands.
    fn spoil(&self, key: Key, spoil: impl FnOnce(&mut Vec<u8>)) {
        let mut name = String::new();
        key.write_name(&mut name);
        let data = &mut self.process.borrow_mut().shared_data;
        let mut bytes = data.value(&name).unwrap().0.to_vec();
        spoil(&mut bytes);
        data.set(&name, &bytes, 0).unwrap();
    }
}

/// Asks the console, and sees that nothing has been written.
#[track_caller]
fn ask(process: &Rc<RefCell<Process>>, worker: Option<&Worker>, path: &str) -> (u16, Value) {
    process.borrow_mut().take_writes();
    let keys = process.borrow().shared_data.keys();
    let mut host = SimHost::undisturbed(process, 99);
    let answer = answer(&mut host, worker, "/sentinel", path.as_bytes()).unwrap();
    assert_eq!(process.borrow_mut().take_writes().len(), 0, "looking must write nothing");
    assert_eq!(process.borrow().shared_data.keys(), keys);
    let said = serde_json::from_str(&answer.body);
    (answer.status, said.unwrap_or_else(|error| panic!("{error}: {}", answer.body)))
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {of}"))
}

#[test]
fn a_rate_shows_what_all_workers_have_been_granted_and_each_what_it_has_not_spent() {
    let rules = [json!({"id": "hello", "resource": "GET:/hello", "threshold": 100})];
    let mut proxy = Proxy::start(3, "FlowRules", &rules);
    let untouched = proxy.rule();
    assert_eq!((&untouched["ledger"], number(&untouched, "left")), (&json!("untouched"), 100));

    let mut admitted = 0;
    for round in 0..60 {
        admitted += u64::from(proxy.admitted(round % 3, "GET:/hello", "").is_some());
        if round % 20 == 19 {
            for (host, worker) in &mut proxy.workers {
                worker.tick(host);
            }
        }
    }

    let unspent = |proxy: &mut Proxy, worker| {
        number(&proxy.asked(Some(worker), "").1["rules"][0], "unspentHere")
    };
    let rule = proxy.rule();
    let in_hand: u64 = (0..3).map(|worker| unspent(&mut proxy, worker)).sum();
    assert_eq!(admitted, 60);
    assert_eq!(number(&rule, "granted"), admitted + in_hand);
    assert_eq!(number(&rule, "left"), 100 - admitted - in_hand);
    assert_eq!((&rule["threshold"], &rule["inForce"]), (&json!(100), &json!(100)));
    assert_eq!((&rule["windowMs"], &rule["ledger"]), (&json!(1000), &json!("read")));
    assert!(rule.get("unspentHere").is_none(), "nobody answered who could have any in hand");

    // Nobody has opened the next window: it is empty all the same.
    proxy.go_on(1_000);
    let rule = proxy.rule();
    assert_eq!((number(&rule, "granted"), number(&rule, "left")), (0, 100));
}

#[test]
fn a_threshold_that_warms_up_is_shown_as_it_is_now() {
    let rule = json!({"id": "warm", "resource": "GET:/warm", "threshold": 30, "tokenCalculateStrategy": "WarmUp", "warmUpPeriodSec": 10, "warmUpColdFactor": 3});
    let mut proxy = Proxy::start(1, "FlowRules", &[rule]);
    let admitted = (0..60).filter(|_| proxy.admitted(0, "GET:/warm", "").is_some()).count();

    let rule = proxy.rule();
    assert_eq!(rule["threshold"], json!(30));
    let in_force = rule["inForce"].as_f64().unwrap();
    assert!((9.0..12.0).contains(&in_force), "{rule}");
    assert_eq!(number(&rule, "granted"), u64::try_from(admitted).unwrap());
    assert_eq!(number(&rule, "left"), 0);
}

#[test]
fn permits_are_shown_with_those_who_hold_them() {
    let rules = [json!({"id": "few", "resource": "GET:/few", "threshold": 5})];
    let mut proxy = Proxy::start(2, "IsolationRules", &rules);
    let held: Vec<_> = [0, 0, 1, 0].map(|worker| proxy.admitted(worker, "GET:/few", "")).into();
    assert!(held.iter().all(Option::is_some));

    let (_, state) = proxy.asked(Some(0), "?rule=few");
    let rule = &state["rules"][0];
    assert_eq!((number(rule, "held"), number(rule, "left")), (4, 1));
    let mut by: Vec<_> = rule["heldBy"]
        .as_array()
        .unwrap()
        .iter()
        .map(|holder| (holder["worker"].as_str().unwrap().to_owned(), number(holder, "permits")))
        .collect();
    by.sort();
    let mut expected = vec![(proxy.worker(0), 3), (proxy.worker(1), 1)];
    expected.sort();
    assert_eq!(by, expected);
    assert_eq!((number(rule, "inUseHere"), number(rule, "idleHere")), (3, 0));
    assert_eq!(state["answeredBy"]["worker"], json!(proxy.worker(0)));
    let text = render(&state, None, 10);
    assert!(text.contains(&format!("worker {} holds 3", proxy.worker(0))), "{text}");

    // A record that nobody has refreshed for so long holds nothing any more.
    proxy.go_on(91_000);
    assert_eq!(number(&proxy.rule(), "held"), 0);
}

#[test]
fn a_table_of_values_is_read_only_where_it_is_asked_for() {
    let rule = json!({"id": "user", "resource": "GET:/home", "metricType": "QPS", "threshold": 5, "durationInSec": 1, "paramKey": "header:x-user"});
    let mut proxy = Proxy::start(2, "HotspotRules", &[rule]);
    for (user, times) in [("ann", 4), ("bob", 9), ("eve", 1)] {
        for round in 0..times {
            let _ = proxy.admitted(round % 2, "GET:/home", user);
        }
    }

    let table = proxy.rule()["table"].clone();
    assert!(number(&table, "sets") > 1 && table.get("mostUsed").is_none(), "{table}");

    let (_, state) = proxy.asked(None, "?rule=user");
    let table = &state["rules"][0]["table"];
    assert_eq!((number(table, "values"), number(table, "setsRead")), (3, number(table, "sets")));
    let most = table["mostUsed"].as_array().unwrap();
    let used: Vec<_> = most.iter().map(|value| number(value, "used")).collect();
    assert_eq!(used, [5, 4, 1]);
    assert!(most.iter().all(|value| value["value"].as_str().unwrap().len() == 16), "{table}");
    assert!(!state.to_string().contains("ann"), "values have no names here");
}

#[test]
fn a_table_larger_than_one_answer_may_read_says_how_much_of_it_was() {
    let rule = json!({"id": "user", "resource": "GET:/home", "metricType": "QPS", "threshold": 5, "durationInSec": 1, "paramKey": "header:x-user", "paramsMaxCapacity": 20000});
    let mut proxy = Proxy::start(1, "HotspotRules", &[rule]);
    for user in 0..300 {
        let _ = proxy.admitted(0, "GET:/home", &user.to_string());
    }

    let table = proxy.asked(None, "?rule=user").1["rules"][0]["table"].clone();
    assert_eq!((number(&table, "sets"), number(&table, "setsRead")), (2_500, 512));
    assert_eq!(table["mostUsed"].as_array().unwrap().len(), 10);
    assert!((20..140).contains(&number(&table, "values")), "a fifth of 300: {table}");
}

#[test]
fn a_pace_shows_its_queue_and_when_the_next_slot_is() {
    let rule = json!({"id": "mail", "resource": "POST:/mail", "threshold": 20, "controlBehavior": "Throttling", "maxQueueingTimeMs": 500});
    let mut proxy = Proxy::start(2, "FlowRules", &[rule]);
    let first = proxy.rule();
    assert_eq!((number(&first, "queuedMs"), number(&first, "nextSlotInMs")), (0, 0));

    let admitted = (0..5).filter(|at| proxy.admitted(at % 2, "POST:/mail", "").is_some()).count();
    assert_eq!(admitted, 5);
    let rule = proxy.rule();
    assert_eq!((number(&rule, "queuedMs"), number(&rule, "nextSlotInMs")), (200, 250));
    let waiting = |proxy: &mut Proxy| {
        [0, 1].map(|worker| number(&proxy.asked(Some(worker), "").1["answeredBy"], "waiting"))
    };
    assert_eq!(waiting(&mut proxy), [2, 2]);

    while proxy.admitted(0, "POST:/mail", "").is_some() {}
    let rule = proxy.rule();
    assert_eq!((&rule["nextSlotInMs"], number(&rule, "retryInMs")), (&Value::Null, 50));
}

#[test]
fn a_breaker_shows_its_state_when_it_may_be_probed_and_who_has_a_probe_out() {
    let rule = json!({"id": "pay", "resource": "POST:/pay", "strategy": "ErrorRatio", "threshold": 50, "minRequestAmount": 5, "statIntervalMs": 1000, "retryTimeoutMs": 3000});
    let mut proxy = Proxy::start(2, "CircuitBreakerRules", &[rule]);
    assert_eq!(proxy.rule()["state"], json!("Closed"));
    for _ in 0..10 {
        let entry = proxy.admitted(0, "POST:/pay", "").unwrap();
        proxy.exit(0, entry, 500);
    }
    proxy.tick();

    let rule = proxy.rule();
    assert_eq!((&rule["state"], number(&rule, "retryInMs")), (&json!("Open"), 3_000));
    assert_eq!((&rule["strategy"], &rule["threshold"]), (&json!("ErrorRatio"), &json!(0.5)));
    proxy.go_on(1_000);
    assert_eq!(number(&proxy.rule(), "retryInMs"), 2_000);

    proxy.go_on(2_000);
    let _probe = proxy.admitted(1, "POST:/pay", "").unwrap();
    proxy.go_on(40);
    let rule = proxy.rule();
    assert_eq!((&rule["state"], &rule["retryInMs"]), (&json!("HalfOpen"), &Value::Null));
    let out = json!([{"worker": proxy.worker(1), "sinceMs": 40}]);
    assert_eq!(rule["probesOut"], out);
}

#[test]
fn what_the_service_decides_is_shown_for_rules_without_a_ledger() {
    let system = [
        json!({"id": "slow", "metricType": "AvgRT", "triggerCount": 20, "strategy": "NoAdaptive"}),
    ];
    let authority =
        [json!({"id": "who", "resource": "GET:/who", "limitApp": "a,b", "strategy": 0})];
    let mut proxy =
        Proxy::start_with(1, &[("SystemRules", &system), ("AuthorityRules", &authority)]);
    let rule = |proxy: &mut Proxy, id: &str| {
        proxy.asked(None, &format!("?rule={id}")).1["rules"][0].clone()
    };
    let slow = rule(&mut proxy, "slow");
    assert_eq!((&slow["refuses"], &slow["threshold"]), (&json!(false), &json!(20)));
    assert_eq!(rule(&mut proxy, "who")["kind"], json!("AuthorityRules"));

    let entry = proxy.admitted(0, "GET:/x", "").unwrap();
    proxy.go_on(100);
    proxy.exit(0, entry, 200);
    proxy.tick();
    assert_eq!(rule(&mut proxy, "slow")["refuses"], json!(true));
}

#[test]
fn a_ledger_that_cannot_be_read_is_shown_as_that() {
    let rules = [json!({"id": "hello", "resource": "GET:/hello", "threshold": 100})];
    let mut proxy = Proxy::start(1, "FlowRules", &rules);
    assert!(proxy.admitted(0, "GET:/hello", "").is_some());

    proxy.spoil(Key::Ledger(0), |bytes| bytes[0] = 77);
    let rule = proxy.rule();
    assert_eq!((&rule["ledger"], rule.get("granted")), (&json!("unreadable"), None));
    assert!(rule["error"].as_str().unwrap().contains("layout version 77"), "{rule}");
    let text = render(&proxy.state(), None, 10);
    assert!(text.contains("unreadable: layout version 77"), "{text}");

    proxy.spoil(Key::Ledger(0), |bytes| bytes.truncate(3));
    assert!(proxy.rule()["error"].as_str().is_some());

    for (key, field) in
        [(Key::Service, "service"), (Key::Workers, "workers"), (Key::Rules, "ruleSet")]
    {
        proxy.spoil(key, |bytes| bytes[0] = 77);
        let state = proxy.state();
        let error = state[field]["error"].as_str().unwrap_or_else(|| panic!("{field}: {state}"));
        assert!(error.contains("layout version 77"), "{field}: {error}");
    }
}

#[test]
fn a_ledger_of_a_rule_before_is_untouched_and_one_of_a_rule_to_come_superseded() {
    let rules = [json!({"id": "hello", "resource": "GET:/hello", "threshold": 100})];
    let mut proxy = Proxy::start(1, "FlowRules", &rules);
    assert!(proxy.admitted(0, "GET:/hello", "").is_some());
    let generation = number(&proxy.rule(), "generation");
    let stamp = |proxy: &Proxy, generation: u64| {
        proxy.spoil(Key::Ledger(0), |bytes| {
            bytes[2..10].copy_from_slice(&generation.to_le_bytes());
        });
    };

    stamp(&proxy, generation - 1);
    let rule = proxy.rule();
    assert_eq!((&rule["ledger"], number(&rule, "granted")), (&json!("untouched"), 0));

    stamp(&proxy, generation + 1);
    assert_eq!(proxy.rule()["ledger"], json!("superseded"));
}

#[test]
fn before_anything_has_been_written_there_is_an_answer_and_it_plants_nothing() {
    let (status, state) = ask(&process(), None, "/sentinel/state");
    let empty = json!({
        "format": 1,
        "nowMs": START_MS,
        "answeredBy": null,
        "service": null,
        "workers": [],
        "ruleSet": null,
    });
    assert_eq!((status, state), (200, empty));
}

#[test]
fn a_set_that_waits_for_a_source_is_shown_as_pending() {
    let process = process();
    let rule_set = |pending: bool| {
        let header = RuleSetHeader { version: 1, pending, ..RuleSetHeader::default() };
        let bytes = rules::encode::<Rule>(&header, &[]).unwrap();
        process.borrow_mut().shared_data.set("sentinel/rules", &bytes, 0).unwrap();
        ask(&process, None, "/sentinel/state").1
    };
    let (waits, complete) = (rule_set(true), rule_set(false));
    assert_eq!(waits["ruleSet"], json!({"version": 1, "rules": 0, "pending": true}));
    assert_eq!(complete["ruleSet"]["pending"], json!(false));
    assert!(render(&waits, None, 1).starts_with("rule set 1, 0 rules, a source is still to come;"));
    assert!(render(&complete, None, 1).starts_with("rule set 1, 0 rules;"));
}

#[test]
fn a_service_that_has_died_is_shown_as_silent_and_the_rules_as_they_stand() {
    let rules = [json!({"id": "hello", "resource": "GET:/hello", "threshold": 100})];
    let mut proxy = Proxy::start(2, "FlowRules", &rules);
    assert_eq!(proxy.state()["service"]["alive"], json!(true));

    // The workers go on, the service does not.
    proxy.go_on(5_000);
    proxy.tick_workers();
    assert!(proxy.admitted(1, "GET:/hello", "").is_some());

    let state = proxy.state();
    assert_eq!(state["service"]["alive"], json!(false));
    assert_eq!(number(&state["service"], "heartbeatAgeMs"), 5_000);
    assert_eq!(number(&state["rules"][0], "granted"), 1);
    let workers = state["workers"].as_array().unwrap();
    assert!(workers.iter().all(|worker| worker["alive"] == json!(true)), "{state}");
    assert_eq!(workers.len(), 2);

    proxy.go_on(5_000);
    let workers = &proxy.state()["workers"];
    assert!(workers.as_array().unwrap().iter().all(|worker| worker["alive"] == json!(false)));
}

#[test]
fn whatever_a_resource_is_called_the_answer_is_json() {
    let names = ["GET:/\"},{\"id\":\"x", "\\", "a\nb\tc\u{1}", "</script>", "ä€😀", "{}[]:,"];
    let rules: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| json!({"id": format!("r{at}"), "resource": name, "threshold": 1}))
        .collect();
    let mut proxy = Proxy::start(1, "FlowRules", &rules);

    let state = proxy.state();
    let mut shown: Vec<_> = state["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["resource"].as_str().unwrap())
        .collect();
    shown.sort_unstable();
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(shown, expected);
    let text = render(&state, None, 10);
    assert!(!text.contains('\u{1}') && text.contains("a\\nb\\tc"), "{text}");
}

#[test]
fn ten_thousand_rules_come_in_pages_that_are_one_document_again() {
    let rules: Vec<_> = (0..10_000)
        .map(
            |at| json!({"id": format!("r{at}"), "resource": format!("GET:/{at}"), "threshold": at}),
        )
        .collect();
    let mut proxy = Proxy::start(1, "FlowRules", &rules);
    let (_, first) = proxy.asked(None, "");
    assert_eq!(first["rules"].as_array().unwrap().len(), usize::try_from(RULES_MAX).unwrap());
    assert_eq!(number(&first, "next"), u64::from(RULES_MAX));
    assert!(first.to_string().len() < 300_000);
    let (_, few) = proxy.asked(None, "?offset=9998&limit=7");
    assert_eq!((few["rules"].as_array().unwrap().len(), &few["next"]), (2, &Value::Null));
    let (_, huge) = proxy.asked(None, "?limit=4000000000");
    assert_eq!(huge["rules"], first["rules"]);

    let mut pages = 0;
    let whole = gather("/sentinel", None, &mut |path| {
        pages += 1;
        let (status, page) = ask(&proxy.process, None, path);
        Ok((status, page.to_string()))
    })
    .unwrap();
    assert_eq!(pages, 20);
    let mut thresholds: Vec<_> =
        whole["rules"].as_array().unwrap().iter().map(|rule| number(rule, "threshold")).collect();
    thresholds.sort_unstable();
    assert_eq!(thresholds, (0..10_000).collect::<Vec<u64>>());
    let text = render(&whole, None, 3);
    assert!(text.contains("and 9997 more"), "{text}");
}

#[test]
fn pages_of_two_rule_sets_are_never_put_together() {
    let page = |version: u64, next: Value| {
        json!({"format": 1, "ruleSet": {"version": version, "rules": 2}, "rules": [{"id": version.to_string()}], "next": next}).to_string()
    };
    let mut answers =
        [page(1, json!(1)), page(2, Value::Null), page(2, json!(1)), page(2, Value::Null)]
            .into_iter();
    let whole = gather("/s", None, &mut |_| Ok((200, answers.next().unwrap()))).unwrap();
    assert_eq!(whole["rules"], json!([{"id": "2"}, {"id": "2"}]));

    let mut version = 0;
    let error = gather("/s", None, &mut |_| {
        version += 1;
        Ok((200, page(version, json!(1))))
    });
    assert!(error.unwrap_err().to_string().contains("rules change while they are read"));
}

#[test]
fn what_is_asked_wrongly_is_answered_with_what_would_do() {
    let rules = [json!({"id": "hello", "resource": "GET:/hello", "threshold": 100})];
    let mut proxy = Proxy::start(1, "FlowRules", &rules);
    let mut said = String::new();
    for query in ["?offset=x", "?limit=-1", "?rule=none"] {
        let (status, answer) = proxy.asked(None, query);
        writeln!(said, "{query} {status} {answer}").unwrap();
    }
    for path in ["/sentinel", "/sentinel/", "/sentinel/other?rule=hello", "/sentinel/state/"] {
        let (status, answer) = ask(&proxy.process, None, path);
        writeln!(said, "{path} {status} {answer}").unwrap();
    }
    expect![[r#"
        ?offset=x 400 {"error":"`offset` and `limit` must be whole numbers"}
        ?limit=-1 400 {"error":"`offset` and `limit` must be whole numbers"}
        ?rule=none 404 {"error":"no rule in force has this id"}
        /sentinel 404 {"error":"there is only `state` under this path"}
        /sentinel/ 404 {"error":"there is only `state` under this path"}
        /sentinel/other?rule=hello 404 {"error":"there is only `state` under this path"}
        /sentinel/state/ 404 {"error":"there is only `state` under this path"}
    "#]]
    .assert_eq(&said);

    let mut host = SimHost::undisturbed(&proxy.process, 99);
    for path in ["/", "", "/sentine", "/sentinels", "/x/sentinel/state", "/sentinelstate?/state"] {
        assert_eq!(answer(&mut host, None, "/sentinel", path.as_bytes()), None, "{path}");
    }
}

#[test]
fn what_is_no_console_is_told_apart_from_one() {
    let fails = |status, body: &str| {
        gather("/sentinel", None, &mut |_| Ok((status, body.to_owned()))).unwrap_err().to_string()
    };
    assert!(fails(404, "").contains("(with 404) is no console: give the filter of a listener"));
    assert!(fails(200, "{}").contains("is no console"));
    assert!(fails(200, "<html>").contains("is no console"));
    assert!(fails(404, r#"{"error":"no rule"}"#).contains("answers 404: no rule"));
    assert!(fails(200, r#"{"format":2}"#).contains("format Some(2), this command 1"));
}

#[test]
fn the_console_is_off_unless_a_path_switches_it_on() {
    let config = |text: &str| {
        let node = document::configuration(text.as_bytes()).unwrap();
        match FilterConfig::from_node(&node) {
            Ok(config) => format!("{:?}", config.console),
            Err(refusals) => refusals.lines().collect::<Vec<_>>().join("\n"),
        }
    };
    let mut said = String::new();
    for text in [
        "{}",
        "console: {path: /sentinel}",
        "console: {path: /a/b}",
        "console: {}",
        "console: true",
        "console: {path: sentinel}",
        "console: {path: /}",
        "console: {path: /sentinel/}",
        "console: {path: '/sentinel?x'}",
        "console: {path: '/a b'}",
        "console: {path: /sentinel, port: 1}",
    ] {
        writeln!(said, "{text}\n  {}", config(text)).unwrap();
    }
    expect![[r#"
        {}
          None
        console: {path: /sentinel}
          Some("/sentinel")
        console: {path: /a/b}
          Some("/a/b")
        console: {}
          configuration:1:10: `console.path` is missing
        console: true
          configuration:1:10: `console` is true, but must be a map
        console: {path: sentinel}
          configuration:1:17: `console.path` is "sentinel", but must be a path such as /sentinel, without a slash at its end
        console: {path: /}
          configuration:1:17: `console.path` is "/", but must be a path such as /sentinel, without a slash at its end
        console: {path: /sentinel/}
          configuration:1:17: `console.path` is "/sentinel/", but must be a path such as /sentinel, without a slash at its end
        console: {path: '/sentinel?x'}
          configuration:1:17: `console.path` is "/sentinel?x", but must be a path such as /sentinel, without a slash at its end
        console: {path: '/a b'}
          configuration:1:17: `console.path` is "/a b", but must be a path such as /sentinel, without a slash at its end
        console: {path: /sentinel, port: 1}
          configuration:1:28: `console.port` is an unknown field
    "#]].assert_eq(&said);
}

#[test]
fn top_shows_the_rules_nearest_to_their_limits_first() {
    let flow = [
        json!({"id": "far", "resource": "GET:/far", "threshold": 100}),
        json!({"id": "near", "resource": "GET:/near", "threshold": 4}),
        json!({"id": "trial", "resource": "GET:/trial", "threshold": 10, "shadow": true}),
        json!({"id": "mail", "resource": "POST:/mail", "threshold": 20, "controlBehavior": "Throttling", "maxQueueingTimeMs": 500}),
    ];
    let isolation = [json!({"id": "few", "resource": "GET:/few", "threshold": 5})];
    let hotspot = [
        json!({"id": "user", "resource": "GET:/home", "metricType": "QPS", "threshold": 5, "durationInSec": 1, "paramKey": "header:x-user"}),
    ];
    let breaker = [
        json!({"id": "pay", "resource": "POST:/pay", "strategy": "ErrorCount", "threshold": 5, "minRequestAmount": 5, "statIntervalMs": 1000, "retryTimeoutMs": 3000}),
    ];
    let mut proxy = Proxy::start_with(
        2,
        &[
            ("FlowRules", &flow),
            ("IsolationRules", &isolation),
            ("HotspotRules", &hotspot),
            ("CircuitBreakerRules", &breaker),
        ],
    );
    for _ in 0..10 {
        let entry = proxy.admitted(0, "POST:/pay", "").unwrap();
        proxy.exit(0, entry, 500);
    }
    proxy.tick();
    for (resource, times) in
        [("GET:/far", 1), ("GET:/near", 9), ("GET:/trial", 5), ("POST:/mail", 3), ("GET:/few", 4)]
    {
        for _ in 0..times {
            let _ = proxy.enter(1, resource, "");
        }
    }

    let traffic = Traffic { pass_qps: 22, block_qps: 5, waiting: 2, in_flight: 4 };
    let state = proxy.state();
    let instance = state["service"]["instance"].as_str().unwrap().to_owned();
    let text = render(&state, Some(&traffic), 40).replace(&instance, "<instance>");
    expect![[r#"
        rule set 1, 7 rules; service <instance> alive (0 ms ago)
        2 workers; answered by a thread that has had no request yet
        22 passed and 5 refused a second, 4 under way, 2 waiting
        ┌───────┬────────────────┬────────────┬─────────────────────┬─────────────────────┬────────────────────────┬─────────┐
        │ rule  ┆ kind           ┆ resource   ┆ in force            ┆ used                ┆ state                  ┆ version │
        ╞═══════╪════════════════╪════════════╪═════════════════════╪═════════════════════╪════════════════════════╪═════════╡
        │ near  ┆ Flow           ┆ GET:/near  ┆ 4 in 1 s            ┆ 4 of 4              ┆ used up                ┆ 1       │
        │ pay   ┆ CircuitBreaker ┆ POST:/pay  ┆ ErrorCount 5 in 1 s ┆                     ┆ Open, probe in 3000 ms ┆ 1       │
        │ few   ┆ Isolation      ┆ GET:/few   ┆ 5 at a time         ┆ 4 of 5              ┆                        ┆ 1       │
        │ trial ┆ Flow           ┆ GET:/trial ┆ 10 in 1 s           ┆ 5 of 10             ┆ shadow                 ┆ 1       │
        │ mail  ┆ Flow           ┆ POST:/mail ┆ 20 in 1 s           ┆ queue 100 of 500 ms ┆                        ┆ 1       │
        │ far   ┆ Flow           ┆ GET:/far   ┆ 100 in 1 s          ┆ 1 of 100            ┆                        ┆ 1       │
        │ user  ┆ Hotspot        ┆ GET:/home  ┆ 5 in 1 s            ┆ by value            ┆                        ┆         │
        └───────┴────────────────┴────────────┴─────────────────────┴─────────────────────┴────────────────────────┴─────────┘
    "#]].assert_eq(&text);
}
