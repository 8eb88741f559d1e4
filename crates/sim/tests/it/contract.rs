//! The simulated host does what we claim of Envoy. The same statements are tried on a real Envoy in the
//! integration tests.

use std::{cell::RefCell, rc::Rc};

use sentinel_engine::contract::{STATEMENTS, take_step};
use sentinel_sim::{host::SimHost, process::Process};

#[test]
fn the_simulated_host_does_what_we_claim_of_envoy() {
    for statement in STATEMENTS {
        let process = Rc::new(RefCell::new(Process::new(1, 1_900_000_020_000_000_000)));
        let mut hosts = [SimHost::undisturbed(&process, 1), SimHost::undisturbed(&process, 2)];
        let mut carried = String::new();
        for step in 0..statement.steps {
            let taken = take_step(&mut hosts[step % 2], statement.name, step, &carried);
            carried =
                taken.unwrap_or_else(|broken| panic!("{}, step {step}: {broken}", statement.name));
        }
        let beyond = take_step(&mut hosts[0], statement.name, statement.steps, &carried);
        assert!(beyond.is_err() || statement.name == "a_missing_key_has_no_value");
    }
}
