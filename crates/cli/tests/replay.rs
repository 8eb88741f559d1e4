//! All vectors, on one worker and on several, and what a failure says.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use sentinel_cli::replay::vectors;

const REFERENCE: &str = include_str!("../vectors/sentinel.json");
const OURS: &str = include_str!("../vectors/own.json");

#[track_caller]
fn all_pass(file: &str, count: usize, workers: u16) {
    let vectors = vectors(file).unwrap();
    assert_eq!(vectors.len(), count);
    let failures: Vec<String> = vectors
        .iter()
        .filter_map(|vector| {
            let failure = vector.run(workers).err()?;
            Some(format!("{} on {workers} workers: {failure:#}", vector.id))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A vector of these fields, on two workers.
fn outcome_of(fields: &str) -> String {
    let file = format!(
        r#"{{"vectors": [{{"id": "v", "kind": "flow", "dialect": "go", "t0_ms": 1900000020000, {fields}}}]}}"#
    );
    match vectors(&file).unwrap().first().unwrap().run(2) {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn the_decisions_are_those_of_the_reference_on_one_worker() {
    all_pass(REFERENCE, 65, 1);
}

#[test]
fn the_decisions_are_those_of_the_reference_on_several_workers() {
    for workers in [2, 3, 4, 8] {
        all_pass(REFERENCE, 65, workers);
    }
}

#[test]
fn where_we_differ_we_do_so_on_one_worker() {
    all_pass(OURS, OURS_COUNT, 1);
}

#[test]
fn where_we_differ_we_do_so_on_several_workers() {
    for workers in [2, 3, 4, 8] {
        all_pass(OURS, OURS_COUNT, workers);
    }
}

const OURS_COUNT: usize = 83;

#[test]
fn what_is_not_run_fails_and_says_why() {
    for (fields, reason) in [
        (
            r#""form": "table", "rows": [{"input": 1, "expect": 1}]"#,
            "a table of `flow` is not supported",
        ),
        (r#""form": "poem""#, "a poem of `flow` is not supported"),
        (r#""events": []"#, "nothing happens in this vector"),
        (r#""events": [{"t_ms": 0, "op": "set_load", "value": 1}]"#, "unknown variant `set_load`"),
        (
            r#""events": [{"t_ms": 0, "op": "entry", "resource": "a", "prioritized": true, "expect": "pass"}]"#,
            "a prioritized entry",
        ),
        (
            r#""events": [{"t_ms": 0, "op": "entry", "resource": "a", "expect": "maybe"}]"#,
            "the expectation \"maybe\" is not supported",
        ),
        (
            r#""events": [{"t_ms": 0, "op": "entry", "resource": "a", "unheard": 1, "expect": "pass"}]"#,
            "unknown field `unheard`",
        ),
        (
            r#""events": [{"t_ms": 0, "op": "state", "rule": "cb", "expect": "Open"}]"#,
            "there is no circuit breaker `cb`",
        ),
        (
            r#""rules": {"outlier": [{"resource": "a"}]}, "events": [{"t_ms": 0, "op": "exit", "id": "a"}]"#,
            "rules of kind `outlier`",
        ),
    ] {
        let refused = outcome_of(fields);
        assert!(refused.contains(reason), "{fields}: {refused}");
    }
}

#[test]
fn a_wrong_answer_names_the_event_and_what_is_known() {
    let refused = outcome_of(
        r#""rules": {"flow": [{"resource": "a", "threshold": 1, "statIntervalInMs": 1000}],
                     "circuitbreaker": [{"id": "cb", "resource": "a", "strategy": 2, "threshold": 9,
                                         "statIntervalMs": 1000, "retryTimeoutMs": 1000}]},
           "events": [{"t_ms": 0, "op": "entry", "resource": "a", "repeat": 2, "expect": "pass"}]"#,
    );
    assert_eq!(
        refused,
        "event 1 at 0 ms: call 2 of 2 to a: expected pass, got block:flow; state: 1 passed, 1 blocked, 1 completed \
         and 0 failed in the last second, 0 open; rules: cb (Closed), flow:a"
    );
}

#[test]
fn rules_that_the_reference_need_not_tell_apart_are_called_by_their_places() {
    for rules in [
        r#"{"flow": [{"resource": "a", "threshold": 5}, {"resource": "a", "threshold": 2}]}"#,
        r#"{"flow": [{"id": "r", "resource": "a", "threshold": 5}, {"id": "r", "resource": "a", "threshold": 2}],
            "isolation": [{"id": "r", "resource": "a", "threshold": 1}]}"#,
    ] {
        let events = r#"{"t_ms": 0, "op": "entry", "resource": "a", "repeat": 3, "expect": [[2, "pass"], [1, "block:flow"]]},
                        {"t_ms": 1, "op": "load_rules", "rules": {"isolation": []}},
                        {"t_ms": 2, "op": "entry", "resource": "a", "expect": "block:flow"}"#;
        assert_eq!(
            outcome_of(&format!(r#""rules": {rules}, "events": [{events}]"#)),
            "ok",
            "{rules}"
        );
    }
}

#[test]
fn wrong_numbers_states_and_waits_are_failures() {
    for (events, reason) in [
        (
            r#"{"t_ms": 0, "op": "entry", "resource": "a", "expect": "pass"},
               {"t_ms": 0, "op": "node", "resource": "a", "expect": {"pass_qps": 2}}"#,
            "event 2 at 0 ms: pass_qps of a: expected 2, got 1",
        ),
        (
            r#"{"t_ms": 0, "op": "state", "rule": "cb", "expect": "Open"}"#,
            "event 1 at 0 ms: breaker cb: expected Open, got Closed",
        ),
        (
            r#"{"t_ms": 0, "op": "entry", "resource": "a", "repeat": 2, "expect": [[1, "pass"], [1, {"wait_ms": 333.333333}]]}"#,
            "call 2 of 2 to a: expected pass after 333.333333 ms, got pass after 333.333334 ms",
        ),
        (
            r#"{"t_ms": 0, "op": "entry", "resource": "b", "repeat": 3, "expect": {"at_most": 2}}"#,
            "call 3 of 3 to b: expected block, got pass",
        ),
    ] {
        let fields = format!(
            r#""rules": {{"flow": [{{"resource": "a", "threshold": 3, "controlBehavior": 1, "maxQueueingTimeMs": 500}}],
                          "circuitbreaker": [{{"id": "cb", "resource": "a", "strategy": 2, "threshold": 9,
                                              "statIntervalMs": 1000, "retryTimeoutMs": 1000}}]}},
               "events": [{events}]"#
        );
        let refused = outcome_of(&fields);
        assert!(refused.contains(reason), "{refused}");
    }
}
