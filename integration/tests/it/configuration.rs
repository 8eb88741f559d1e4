//! Both modules take their configuration in every form, and in every Envoy that is supported.

use std::fs;
use std::path::Path;
use std::process::Command;

use sentinel_integration::accuracy::{Allowance, Flood, Outcome, table};
use sentinel_integration::bootstrap::{Configuration, Files, at, remove_sentinel};
use sentinel_integration::rule_server::RuleServer;
use sentinel_integration::rules;

use crate::world::{self, ByXds, Setup, document, yaml};

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
fn the_shipped_configurations_are_valid_in_every_supported_envoy() {
    let _turn = world::machine();
    for envoy in world::every_envoy() {
        // PyPI's 1.38.3 is built without V8, so that no module loads: what is left is valid there too.
        let with_modules = !version_of(&envoy).contains("/1.38.3/");
        for file in ["envoy.yaml", "messages.yaml"] {
            validate(&envoy, file, with_modules);
        }
        if with_modules {
            validate(&envoy, "redis.yaml", true);
        }
    }
}

#[test]
fn the_shipped_file_server_is_valid_in_the_newest_envoy() {
    let _turn = world::machine();
    validate(&world::envoy(), "file-server.yaml", true);
}

/// Lets Envoy validate a file of `envoy/` as it stands, seen from the root of the repository.
#[track_caller]
fn validate(envoy: &Path, name: &str, with_modules: bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (from, to) in [(world::dist(), "dist"), (root.join("rules"), "rules")] {
        std::os::unix::fs::symlink(from, directory.path().join(to)).unwrap();
    }
    let text = fs::read_to_string(root.join("envoy").join(name)).unwrap();
    let mut shipped = rules::parse(&text).unwrap().pop().unwrap();
    if !with_modules {
        remove_sentinel(&mut shipped).unwrap();
    }
    let file = directory.path().join("envoy.yaml");
    fs::write(&file, if with_modules { text } else { shipped.to_string() }).unwrap();
    let validated = Command::new(envoy)
        .args(["--mode", "validate", "--config-path"])
        .arg(&file)
        .current_dir(directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&validated.stderr);
    assert!(validated.status.success(), "{}, {name}: {said}", envoy.display());
}

fn version_of(envoy: &Path) -> String {
    let said = Command::new(envoy).arg("--version").output().unwrap();
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[test]
fn the_examples_of_where_rules_come_from_are_taken_as_they_stand() {
    let readme = include_str!("../../../rules/README.md");
    let section = readme.split_once("## Where rules come from").unwrap().1;
    let section = section.split_once("\n## ").unwrap().0;
    let examples: Vec<_> =
        section.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let [sources, config_map, plugin, filter, resources] = examples.as_slice() else {
        panic!("another number of examples: {}", examples.len())
    };

    // The service's configuration, with its fallback in force at once.
    let server = RuleServer::start().unwrap();
    let world = Setup::new()
        .service(Some(Configuration::Text((*sources).to_owned())))
        .rule_server(&server)
        .start();
    world.stats_when("the fallback", |stats| stats.rule("shop", "threshold") == 10);
    drop(world);

    // The ConfigMap's files, as the kubelet would mount them.
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in yaml(config_map)["data"].as_object().unwrap() {
        fs::write(directory.path().join(name), contents.as_str().unwrap()).unwrap();
    }
    let world = Setup::new().rule_files(Files::Watched(directory.path().to_owned())).start();
    world.stats_when("the map's rule", |stats| stats.rule("hello", "threshold") == 100);
    drop(world);

    // What Istio sends the filter as its configuration.
    let mut setup = Setup::new();
    setup.filter = Some(Configuration::Struct(yaml(plugin)["spec"]["pluginConfig"].clone()));
    let world = setup.start();
    world.stats_when("the plugin's rule", |stats| stats.rule("cart", "threshold") == 100);
    drop(world);

    // The same by ECDS.
    let resources = &yaml(resources)["resources"];
    let world = Setup::new().by_xds(ByXds::Filter).start();
    let mut resource = world.resource();
    let place = "/typed_config/config/configuration";
    *at(&mut resource, place).unwrap() = resources[0].pointer(place).unwrap().clone();
    world.publish(&[resource]);
    world.stats_when("the filter's rule", |stats| stats.rule("cart", "threshold") == 100);
    let wanted = &yaml(filter)["config_discovery"]["type_urls"][0];
    assert_eq!(resources[0].pointer("/typed_config/@type").unwrap(), wanted);
}
