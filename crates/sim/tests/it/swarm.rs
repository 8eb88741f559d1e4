//! Many seeds: the promises hold in all of them, and a seed is the same run each time.

use sentinel_sim::{Options, run, run_many};

#[test]
fn a_hundred_seeds_keep_every_promise() {
    let outcome = run_many(1, 100, 2, |_| {});
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in [3, 17] {
        assert_eq!(run(seed, Options::default()), run(seed, Options::default()));
    }
}
