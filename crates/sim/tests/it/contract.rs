//! The simulated host does what we claim of Envoy. The same statements are tried on a real Envoy in the
//! integration tests.

use std::{cell::RefCell, rc::Rc};

use sentinel_engine::contract::{STATEMENTS, Turn, take_step};
use sentinel_sim::{host::SimHost, process::Process};

#[test]
fn the_simulated_host_does_what_we_claim_of_envoy() {
    let mut broken = Vec::new();
    for statement in STATEMENTS {
        let process = Rc::new(RefCell::new(Process::new(1, 1_900_000_020_000_000_000)));
        let mut vms = 0;
        let mut load = || {
            vms += 1;
            SimHost::undisturbed(&process, vms)
        };
        let mut hosts = [load(), load(), load()];
        let mut carried = String::new();
        for (step, turn) in statement.turns.iter().enumerate() {
            match turn {
                Turn::Another => hosts.rotate_left(1),
                Turn::Same => {}
                // Nothing of the old VM is left but what it has done to the process.
                Turn::Reborn => hosts[0] = load(),
            }
            match take_step(&mut hosts[0], &SimHost::value, statement.name, step, &carried) {
                Ok(returned) => carried = returned,
                Err(what) => {
                    broken.push(format!("{}, step {step}: {what}", statement.name));
                    break;
                }
            }
        }
        let beyond = statement.turns.len();
        let beyond = take_step(&mut hosts[0], &SimHost::value, statement.name, beyond, &carried);
        assert!(beyond.is_err() || statement.name == "a_missing_key_has_no_value");
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
