//! Both modules take their configuration in every form, and in every Envoy that is supported.

use sentinel_integration::accuracy::{Allowance, Flood, Outcome, table};
use sentinel_integration::bootstrap::Configuration;

use crate::world::{self, Setup, document};

const NONE: &str = "{id: none, resource: 'GET:/none', threshold: 0}";

#[track_caller]
fn check_forms(filter: &str, service: String) {
    let mut setup = Setup::with_rules(&[]).service(Some(Configuration::Text(service)));
    setup.filter = Some(Configuration::Text(filter.to_owned()));
    let world = setup.start();

    assert_eq!(world.get("/none").status, 429, "{world:?}");
    assert_eq!(world.get("/free").status, 200);
}

#[test]
fn as_text_in_json() {
    let service = serde_json::json!({"rules": [document("FlowRules", &[NONE])]});
    check_forms(r#"{"resource": {"from": "method_path"}}"#, service.to_string());
}

#[test]
fn as_text_in_yaml() {
    let service = format!(
        "rules:\n- apiVersion: datasource.sentinel.io/v1alpha1\n  kind: FlowRules\n  spec:\n    rules:\n    - {NONE}\n"
    );
    check_forms("resource:\n  from: method_path\n", service);
}

#[test]
fn as_a_struct() {
    let world = Setup::with_rules(&[NONE]).start();

    assert_eq!(world.get("/none").status, 429);
    assert_eq!(world.get("/free").status, 200);
}

#[test]
fn the_oldest_supported_envoy_loads_both_modules_and_holds_a_limit() {
    let _turn = world::machine();
    let flood = Flood { workers: 4, connections: 32, limits: vec![Allowance::per_second(100)] };

    let outcomes = flood.run_saturated(&world::oldest_envoy(), &world::dist()).unwrap();

    assert!(outcomes.iter().all(Outcome::exact), "\n{}", table(&outcomes));
}

#[test]
fn the_shipped_configuration_is_valid_in_every_supported_envoy() {
    let _turn = world::machine();
    let dist = world::dist();
    for envoy in [world::envoy(), world::oldest_envoy()] {
        // The shipped file names the modules as dist/…, seen from the root of the repository.
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&dist, directory.path().join("dist")).unwrap();
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/envoy.yaml");
        let validated = std::process::Command::new(&envoy)
            .args(["--mode", "validate", "--config-path", shipped])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(
            validated.status.success(),
            "{}: {}",
            envoy.display(),
            String::from_utf8_lossy(&validated.stderr)
        );
    }
}
