//! Both modules take their configuration in every form, and in every Envoy that is supported.

use std::fs;

use sentinel_integration::accuracy::{Allowance, Flood, Outcome, table};
use sentinel_integration::bootstrap::{Configuration, Files, at};
use sentinel_integration::rule_server::RuleServer;

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
