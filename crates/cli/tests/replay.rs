//! The vectors that this build runs, on one worker and on several.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use sentinel_cli::replay::{Vector, vectors};

const FILE: &str = include_str!("../vectors/sentinel.json");

const RUN: [&str; 8] = [
    "go-flow-02",
    "go-flow-04",
    "go-flow-05",
    "go-flow-08",
    "go-flow-09",
    "go-flow-12",
    "go-flow-13",
    "go-flow-14",
];

fn vector(id: &str) -> Vector {
    vectors(FILE).unwrap().into_iter().find(|vector| vector.id == id).unwrap()
}

#[test]
fn the_decisions_are_those_of_the_reference_on_any_number_of_workers() {
    for id in RUN {
        for workers in [1, 2, 3, 4, 8] {
            let outcome = vector(id).run(workers);
            assert!(outcome.is_ok(), "{id} on {workers} workers: {:#}", outcome.unwrap_err());
        }
    }
}

#[test]
fn what_is_not_run_fails_and_says_why() {
    for (id, reason) in [
        ("go-flow-10", "AssociatedResource"),
        ("go-throttle-02", "Throttling"),
        ("go-isolation-02", "rules of kind `isolation` are not supported"),
        ("go-stat-for", "a table of `stat-for` is not supported"),
        ("java-authority-02", "the dialect `java` is not supported"),
    ] {
        let refused = format!("{:#}", vector(id).run(1).unwrap_err());
        assert!(refused.contains(reason), "{id}: {refused}");
    }
}

#[test]
fn a_wrong_answer_names_the_event_and_what_was_counted() {
    let file = r#"{"vectors": [{"id": "wrong", "kind": "flow", "dialect": "go", "t0_ms": 0,
        "rules": {"flow": [{"resource": "a", "threshold": 1, "statIntervalInMs": 1000}]},
        "events": [{"t_ms": 0, "op": "entry", "resource": "a", "repeat": 2, "expect": "pass"}]}]}"#;

    let refused = format!("{:#}", vectors(file).unwrap()[0].run(2).unwrap_err());
    assert_eq!(
        refused,
        "event 1 at 0 ms: call 2 of 2 to a: expected pass, got block:flow; \
         state: 1 passed and 1 blocked in the last second, 0 open"
    );
}
