//! What limits cost under a steady load, at numbers of workers that no test on the real Envoy has.

use sentinel_sim::steady::{Outcome, Steady};

fn steady(workers: usize, threshold: u32) -> Steady {
    Steady { workers, threshold, offered: threshold * 2, halves: 6, seed: 7 }
}

fn claims(outcome: &Outcome) -> f64 {
    outcome.per_request(outcome.claims)
}

#[test]
fn a_limit_is_exact_and_its_claims_fall_with_the_threshold_for_few_workers_and_for_many() {
    for workers in [1, 8, 64] {
        let mut before = f64::INFINITY;
        for threshold in [10, 100, 1_000, 10_000] {
            let plan = steady(workers, threshold);
            let outcome = plan.run();

            assert!(plan.is_exact(&outcome), "{plan:?}: {outcome:?}");
            let claims = claims(&outcome);
            assert!(claims <= plan.claims_most(), "{plan:?}: {claims} claims for each request");
            assert!(
                claims < before,
                "{plan:?}: {claims} claims for each request, not below {before}"
            );
            before = claims;
        }
    }
}

#[test]
fn requests_that_need_no_claim_make_no_call() {
    let outcome = steady(8, 10_000).run();

    // A claim is a load and at most one store, and again if the store came second.
    assert!(outcome.request_calls <= 2 * (outcome.claims + outcome.mismatches), "{outcome:?}");
}

#[test]
fn a_seed_says_all() {
    assert_eq!(steady(8, 1_000).run(), steady(8, 1_000).run());
    let other = Steady { seed: 8, ..steady(8, 1_000) };
    assert_ne!(other.run(), steady(8, 1_000).run());
}
