//! Envoy does what we claim of it. The simulated host is held to the same statements, so what the simulator shows
//! of the engine is as true of Envoy as these steps let us see.

use std::collections::BTreeMap;
use std::time::Duration;

use sentinel_engine::contract::{STATEMENTS, Turn};
use sentinel_integration::client::{Answer, Client};
use sentinel_integration::clock;

use crate::world::{self, Setup, World};

#[test]
fn the_oldest_and_the_newest_envoy_do_what_we_claim() {
    for binary in [world::oldest_envoy(), world::envoy()] {
        let mut setup = Setup::with_rules(&[]).service(None).with_faults();
        setup.binary = binary;
        let world = setup.start();
        let mut vms = one_connection_to_each_vm(&world);

        let mut broken = Vec::new();
        let mut traps = 0;
        for statement in STATEMENTS {
            let mut carried = String::new();
            for (step, turn) in statement.turns.iter().enumerate() {
                match turn {
                    Turn::Another => vms.rotate_left(1),
                    Turn::Same => {}
                    Turn::Reborn => {
                        trap_the_first(&world, &mut vms);
                        traps += 1;
                    }
                }
                let (vm, client) = vms.first_mut().unwrap();
                let answer = ask(client, statement.name, step, &carried).unwrap();
                assert_eq!(answer.header(VM), Some(vm.as_str()), "{answer:?}; {world:?}");
                if answer.status != 200 {
                    broken.push(format!("{}, step {step}: {}", statement.name, answer.body));
                    break;
                }
                carried = answer.body;
            }
        }

        assert!(broken.is_empty(), "{broken:#?}; {world:?}");
        let reloads = world.stats().sum("wasm.sentinel_filter.", ".vm_reload_success");
        assert_eq!(reloads, traps, "VMs that were loaded again, and traps; {world:?}");
    }
}

/// Lets the VM that is first trap, and puts the one that Envoy loads in its place there.
fn trap_the_first(world: &World, vms: &mut [(String, Client)]) {
    let known: Vec<String> = vms.iter().map(|(vm, _)| vm.clone()).collect();
    let first = vms.first_mut().unwrap();
    let trapped = first.1.send("GET", "/", &[("x-sentinel-fault", "worker")]);
    assert!(!trapped.is_ok_and(|answer| answer.status == 200), "it has not trapped; {world:?}");
    let reborn = clock::wait_for("a VM in its place", PATIENCE, || {
        // Not before Envoy's pause after the load is over; and a new connection may reach another worker.
        let answer = ask(&mut first.1, "a_missing_key_has_no_value", 0, "");
        let vm = answer.ok().and_then(|answer| answer.header(VM).map(str::to_owned));
        if vm.is_none() {
            clock::pause(Duration::from_millis(20));
        }
        let reborn = vm.filter(|vm| !known.contains(vm));
        if reborn.is_none() {
            first.1 = world.client();
        }
        Ok(reborn)
    });
    first.0 = reborn.unwrap_or_else(|error| panic!("{error:#}; {world:?}"));
}

/// Which connection reaches which worker is the kernel's choice, so we connect until each has one.
fn one_connection_to_each_vm(world: &World) -> Vec<(String, Client)> {
    let mut vms = BTreeMap::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut client = world.client();
        // The one statement whose steps leave nothing behind.
        let answer = ask(&mut client, "a_missing_key_has_no_value", 0, "").unwrap();
        let vm = answer.header(VM).unwrap_or_else(|| panic!("{answer:?}; {world:?}"));
        vms.entry(vm.to_owned()).or_insert(client);
        if vms.len() == WORKERS {
            return vms.into_iter().collect();
        }
    }
    panic!("only {} VMs answered over {CONNECTIONS_MAX} connections; {world:?}", vms.len());
}

fn ask(client: &mut Client, statement: &str, step: usize, carried: &str) -> anyhow::Result<Answer> {
    let step = format!("{statement}/{step}/{carried}");
    client.send("GET", "/", &[("x-sentinel-contract", &step)])
}

/// How long a VM may take to come back.
const PATIENCE: Duration = Duration::from_secs(20);

/// The header in which a VM says which one it is.
const VM: &str = "x-sentinel-vm";

/// What [`Setup`] usually starts.
const WORKERS: usize = 4;

/// That one of four workers gets none of so many has a probability of 10⁻²⁴.
const CONNECTIONS_MAX: usize = 200;
