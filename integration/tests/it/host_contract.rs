//! Envoy does what we claim of it. The simulated host is held to the same statements, so what the simulator shows
//! of the engine is as true of Envoy as these steps let us see.

use std::collections::BTreeMap;

use sentinel_engine::contract::STATEMENTS;
use sentinel_integration::client::{Answer, Client};

use crate::world::{self, Setup, World};

#[test]
fn the_oldest_and_the_newest_envoy_do_what_we_claim() {
    for binary in [world::oldest_envoy(), world::envoy()] {
        let mut setup = Setup::with_rules(&[]).service(None).with_faults();
        setup.binary = binary;
        let world = setup.start();
        let mut vms = one_connection_to_each_vm(&world);

        let mut broken = Vec::new();
        for statement in STATEMENTS {
            let mut carried = String::new();
            for step in 0..statement.steps {
                // No VM takes two steps in a row.
                vms.rotate_left(1);
                let (vm, client) = vms.first_mut().unwrap();
                let answer = ask(client, statement.name, step, &carried);
                assert_eq!(answer.header(VM), Some(vm.as_str()), "{answer:?}; {world:?}");
                if answer.status != 200 {
                    broken.push(format!("{}, step {step}: {}", statement.name, answer.body));
                    break;
                }
                carried = answer.body;
            }
        }

        assert!(broken.is_empty(), "{broken:#?}; {world:?}");
        world.assert_nothing_trapped();
    }
}

/// Which connection reaches which worker is the kernel's choice, so we connect until each has one.
fn one_connection_to_each_vm(world: &World) -> Vec<(String, Client)> {
    let mut vms = BTreeMap::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut client = world.client();
        // The one statement whose steps leave nothing behind.
        let answer = ask(&mut client, "a_missing_key_has_no_value", 0, "");
        let vm = answer.header(VM).unwrap_or_else(|| panic!("{answer:?}; {world:?}"));
        vms.entry(vm.to_owned()).or_insert(client);
        if vms.len() == WORKERS {
            return vms.into_iter().collect();
        }
    }
    panic!("only {} VMs answered over {CONNECTIONS_MAX} connections; {world:?}", vms.len());
}

fn ask(client: &mut Client, statement: &str, step: usize, carried: &str) -> Answer {
    let step = format!("{statement}/{step}/{carried}");
    client.send("GET", "/", &[("x-sentinel-contract", &step)]).unwrap()
}

/// The header in which a VM says which one it is.
const VM: &str = "x-sentinel-vm";

/// What [`Setup`] usually starts.
const WORKERS: usize = 4;

/// That one of four workers gets none of so many has a probability of 10⁻²⁴.
const CONNECTIONS_MAX: usize = 200;
