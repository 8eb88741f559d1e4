//! Hot parameters: each value has its own limit, whoever else calls and however many there are.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use sentinel_integration::bootstrap::CONNECTION_MANAGER;
use sentinel_integration::client::Client;
use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate, Until};
use sentinel_integration::windows::Arrival;

use crate::world::{Setup, World};

#[test]
fn a_thousand_users_at_once_get_their_limit_each_and_nobody_more() {
    const USERS: usize = 1000;
    const LIMIT: usize = 3;
    let world = Setup::new()
        .rules(
            "HotspotRules",
            &["{id: user, resource: 'GET:/home', metricType: QPS, threshold: 3, durationInSec: 2, paramKey: 'header:x-user'}"],
        )
        .start();

    // Five a second of each: a value is filled again two seconds after it was last, so three times in these six.
    let asks: Vec<_> = (0..USERS)
        .map(|user| {
            let user = format!("user-{user}");
            let ask = Ask::get("/home").header("x-user", &user).header("x-resource", &user);
            Ask { name: user, ..ask }
        })
        .collect();
    let report =
        world.load(&asks, Rate::PerSecond(5000), Until::Elapsed(Duration::from_millis(5900)));
    let arrivals = world.upstream.take();

    let mut admitted = 0;
    for (user, arrived) in &arrivals {
        assert_never_over(user, arrived, LIMIT, Duration::from_secs(2));
        admitted += arrived.len();
    }
    assert_eq!(arrivals.len(), USERS);
    let kinds: Vec<_> = report.asks.values().map(|seen| seen.sent()).collect();
    let allowed = USERS * LIMIT * 3;
    println!("{admitted} of {allowed} admitted, {} offered a second", report.rate());
    assert!(
        kinds.iter().all(|sent| *sent >= 25),
        "the machine is too busy: {:?}",
        kinds.iter().min()
    );
    assert!(admitted * 100 >= allowed * 99, "{admitted} of {allowed}");
    assert_eq!(report.status(200) + report.status(429), report.sent());
    world.assert_nothing_trapped();
}

#[test]
fn every_place_a_value_can_come_from_tells_values_apart() {
    let once = |id: &str, param: &str| {
        format!(
            "{{id: {id}, resource: 'GET:/{id}', metricType: QPS, threshold: 1, durationInSec: 3600, {param}}}"
        )
    };
    let rules = [
        once("header", "paramKey: 'header:X-User'"),
        once("query", "paramKey: 'query:user'"),
        once("cookie", "paramKey: 'cookie:sid'"),
        once("ip", "paramKey: client_ip"),
        once("first", "paramIndex: 0"),
        once("last", "paramIndex: -1"),
        "{id: segment, resource: 'GET:/users/{id}', metricType: QPS, threshold: 1, durationInSec: 3600, paramKey: 'path_segment:2'}"
            .to_owned(),
    ];
    let world = Setup::new()
        .rules("HotspotRules", &rules.each_ref().map(String::as_str))
        .filter("{resource: {from: method_path, templates: ['/users/{id}']}, args: ['header:x-a', 'query:b', 'cookie:c']}")
        .change(&format!("{CONNECTION_MANAGER}/use_remote_address"), json!(true))
        .change(&format!("{CONNECTION_MANAGER}/xff_num_trusted_hops"), json!(1))
        .start();

    // (path, header) of a value, of the same once more in other clothes, and of another.
    type Asked = (&'static str, (&'static str, &'static str));
    const NO: (&str, &str) = ("x-nothing", "1");
    let cases: [(&str, [Asked; 3]); 7] = [
        (
            "header",
            [
                ("/header", ("x-user", "a")),
                ("/header?q", ("X-USER", "a")),
                ("/header", ("x-user", "b")),
            ],
        ),
        (
            "query",
            [("/query?user=a", NO), ("/query?x=y&user=%61&user=b", NO), ("/query?user=b", NO)],
        ),
        (
            "cookie",
            [
                ("/cookie", ("cookie", "sid=a")),
                ("/cookie", ("cookie", "x=y; sid=\"a\"")),
                ("/cookie", ("cookie", "sid=b")),
            ],
        ),
        (
            "ip",
            [
                ("/ip", ("x-forwarded-for", "203.0.113.7")),
                // What stands further left is the client's own invention.
                ("/ip", ("x-forwarded-for", "198.51.100.1, 203.0.113.7")),
                ("/ip", ("x-forwarded-for", "203.0.113.8")),
            ],
        ),
        (
            "first",
            [("/first", ("x-a", "a")), ("/first?b=1", ("x-a", "a")), ("/first", ("x-a", "b"))],
        ),
        (
            "last",
            [
                ("/last", ("cookie", "c=a")),
                ("/last?b=1", ("cookie", "c=a")),
                ("/last", ("cookie", "c=b")),
            ],
        ),
        ("segment", [("/users/a", NO), ("/users/%61", NO), ("/users/b", NO)]),
    ];
    let status = |(path, header): Asked| {
        let mut client = Client::connect(world.proxy()).unwrap();
        let answer = client.send("GET", path, &[header]).unwrap();
        (answer.status, answer.header("x-sentinel-rule").unwrap_or_default().to_owned())
    };
    for (id, [value, again, other]) in cases {
        let refused = (429, id.to_owned());
        assert_eq!(status(value).0, 200, "{id}: {value:?}; {world:?}");
        assert_eq!(status(value), refused, "{id}: {value:?}");
        assert_eq!(status(again), refused, "{id}: {again:?}");
        assert_eq!(status(other).0, 200, "{id}: {other:?}");
        assert_eq!(status(other), refused, "{id}: {other:?}");
    }
    // A request without the value is not governed.
    for path in ["/header", "/query", "/cookie", "/first", "/last"] {
        assert_eq!([status((path, NO)).0, status((path, NO)).0], [200; 2], "{path}");
    }
    world.assert_nothing_trapped();
}

#[test]
fn after_a_rest_a_value_has_its_burst_and_while_it_is_asked_for_its_threshold() {
    let world = Setup::new()
        .rules(
            "HotspotRules",
            &["{id: user, resource: 'GET:/home', metricType: QPS, threshold: 5, burstCount: 3, durationInSec: 1, paramKey: 'header:x-user'}"],
        )
        .start();
    let mut clients: Vec<_> = (0..8).map(|_| world.client()).collect();
    let mut ten = |user: &str| {
        let statuses: Vec<_> = (0..12)
            .map(|number| {
                clients[number % 8].send("GET", "/home", &[("x-user", user)]).unwrap().status
            })
            .collect();
        statuses.iter().filter(|status| **status == 200).count()
    };

    // sentinel-golang's series: full, then one duration's worth each time, and full again after a rest.
    let mut admitted = vec![ten("a")];
    for rest_ms in [1020, 1020, 1900, 1020] {
        clock::pause(Duration::from_millis(rest_ms));
        admitted.push(ten("a"));
    }
    assert_eq!(admitted, [8, 5, 5, 8, 5]);
    assert_eq!(ten("b"), 8);
}

#[test]
fn values_are_paced_and_counted_at_a_time_each_on_its_own() {
    let world = Setup::new()
        .rules(
            "HotspotRules",
            &[
                "{id: paced, resource: 'GET:/paced', metricType: QPS, controlBehavior: Throttling, threshold: 5, durationInSec: 1, maxQueueingTimeMs: 450, paramKey: 'header:x-user'}",
                "{id: held, resource: 'GET:/held', metricType: Concurrency, threshold: 2, paramKey: 'header:x-user'}",
            ],
        )
        .start();

    for user in ["a", "b"] {
        // Slots after 0, 200, 400 and 600 ms; the last is too far away.
        let headers: &[_] = &[("x-user", user), ("x-resource", user)];
        let mut four: Vec<_> = (0..4).map(|_| world.hang("/paced", headers)).collect();
        let mut statuses: Vec<_> =
            four.iter_mut().map(|one| one.status(PATIENCE).unwrap()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 429], "{user}");
    }
    let arrivals = world.upstream.take();
    for user in ["a", "b"] {
        let pace =
            sentinel_integration::pacing::Pace::of(&arrivals[user], Duration::from_millis(200));
        assert_eq!((pace.count, pace.ahead), (3, 0), "{user}: {:?}", arrivals[user]);
    }

    for _ in 0..3 {
        let held: Vec<_> = ["a", "b"]
            .into_iter()
            .flat_map(|user| [user; 2])
            .map(|user| world.hang("/held", &[("x-user", user), ("x-latency-ms", "60000")]))
            .collect();
        world.when("two of each", || (world.upstream.open("GET:/held").now == 4).then_some(()));
        for user in ["a", "b"] {
            let mut client = world.client();
            assert_eq!(client.send("GET", "/held", &[("x-user", user)]).unwrap().status, 429);
        }
        drop(held);
        world.when("none", || (world.upstream.open("GET:/held").now == 0).then_some(()));
        world.when("room for one", || {
            let mut client = world.client();
            (client.send("GET", "/held", &[("x-user", "a")]).unwrap().status == 200).then_some(())
        });
    }
    world.assert_nothing_trapped();
}

#[test]
fn specific_values_of_every_type_have_thresholds_of_their_own() {
    let world = Setup::new()
        .rules(
            "HotspotRules",
            &["{id: user, resource: 'GET:/home', metricType: QPS, threshold: 1, durationInSec: 3600, paramKey: 'header:x-user', specificItems: [{valKind: KindString, valStr: vip, threshold: 4}, {valKind: KindInt, valStr: '7', threshold: 3}, {valKind: KindBool, valStr: 'true', threshold: 2}, {valKind: KindFloat64, valStr: '1.5', threshold: 5}, {valKind: KindString, valStr: banned, threshold: 0}]}"],
        )
        .start();

    let admitted = |user: &str| {
        let ask = |_| world.client().send("GET", "/home", &[("x-user", user)]).unwrap().status;
        (0..8).map(ask).filter(|status| *status == 200).count()
    };
    let users = ["vip", "7", "true", "1.5", "banned", "anybody"];
    assert_eq!(users.map(admitted), [4, 3, 2, 5, 0, 1]);
}

#[test]
fn a_million_values_neither_grow_memory_nor_give_one_that_is_over_its_limit_a_fresh_budget() {
    let world = Setup::new()
        .rules(
            "HotspotRules",
            &["{id: user, resource: 'GET:/home', metricType: QPS, threshold: 3, durationInSec: 3600, paramsMaxCapacity: 10000, paramKey: 'header:x-user'}"],
        )
        .start();
    let values = std::env::var("SENTINEL_VALUES").ok().and_then(|count| count.parse().ok());
    let values: u64 = values.unwrap_or(1_000_000);
    let victim = Ask { name: "victim".to_owned(), ..Ask::get("/home").header("x-user", "victim") };
    let crowd =
        Ask { name: "crowd".to_owned(), ..Ask::get("/home").header("x-user", "value-{turn}") };
    let first = world.load(std::slice::from_ref(&victim), Rate::Max, Until::Sent(100));
    assert_eq!(first.status(200), 3);

    // The table is full, and everything that grows once has grown.
    let asks = [victim.weight(1), crowd.weight(99)];
    world.load(&asks, Rate::Max, Until::Sent(values / 20));
    let memory_before = world.envoy.memory_bytes().unwrap();
    let report = world.load(&asks, Rate::Max, Until::Sent(values));

    let grown = world.envoy.memory_bytes().unwrap().saturating_sub(memory_before);
    println!(
        "{} values at {} a second; Envoy grew by {} KiB",
        report.sent(),
        report.rate(),
        grown >> 10
    );
    assert!(grown < 16 << 20, "Envoy grew by {grown} bytes over {} values", report.sent());
    assert_eq!(report.asks["victim"].status(200), 0, "{:?}", report.asks["victim"].by_status);
    assert!(report.asks["victim"].sent() > 100);
    assert_eq!(report.status(200) + report.status(429), report.sent());
    world.assert_nothing_trapped();
}

/// At most `limit` at once, and as many once more each time that a whole `duration` has passed since the last filling.
#[track_caller]
fn assert_never_over(user: &str, arrived: &[Arrival], limit: usize, duration: Duration) {
    let first_sent = arrived.iter().map(|arrival| arrival.sent_ns).min().unwrap();
    let duration_ns = u64::try_from(duration.as_nanos()).unwrap();
    let mut by_filling: BTreeMap<u64, usize> = BTreeMap::new();
    for arrival in arrived {
        *by_filling.entry((arrival.arrived_ns - first_sent) / duration_ns).or_default() += 1;
    }
    let mut sum = 0;
    for (filling, count) in by_filling {
        sum += count;
        let allowed = limit * usize::try_from(filling + 1).unwrap();
        assert!(sum <= allowed, "{user} got {sum} in {} durations: {arrived:?}", filling + 1);
    }
}

#[track_caller]
pub(crate) fn statuses(
    world: &World,
    path: &str,
    headers: &[(&str, &str)],
    count: usize,
) -> Vec<u16> {
    (0..count).map(|_| world.client().send("GET", path, headers).unwrap().status).collect()
}

const PATIENCE: Duration = Duration::from_secs(30);
