//! Rules from elsewhere: servers of rules, files that Envoy serves itself, and what they do when they fail.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sentinel_core::config::Settings;
use sentinel_core::rule::compile::{Source, compile_set};
use sentinel_integration::bootstrap::{Configuration, Files, shipped_service};
use sentinel_integration::clock;
use sentinel_integration::load::{Ask, Rate};
use sentinel_integration::rule_server::{Manner, RuleServer};
use sentinel_integration::rules;
use sentinel_integration::xds;
use serde_json::json;
use tempfile::TempDir;

use crate::service::trap_the_service;
use crate::world::{self, Setup, World, document};

/// A document of flow rules, each with `id`, path and threshold.
pub(crate) fn flow(rules: &[(&str, &str, u32)]) -> String {
    let rules: Vec<_> = rules
        .iter()
        .map(|(id, path, threshold)| {
            json!({"id": id, "resource": format!("GET:{path}"), "threshold": threshold})
        })
        .collect();
    rules::flow_rules(&rules).to_string()
}

/// One source `shop`, asked for `/shop.yaml` each 100 ms, with what else is said of it.
pub(crate) fn shop(more: &str) -> String {
    format!("[{{name: shop, http: {{cluster: config, path: /shop.yaml}}, intervalMs: 100{more}}}]")
}

pub(crate) fn with_shop(server: &RuleServer) -> World {
    Setup::new().rule_server(server).sources(&shop("")).start()
}

#[test]
fn a_server_is_asked_with_the_version_that_is_known_and_a_304_changes_nothing() {
    let server = RuleServer::start().unwrap();
    server.put("/rules/shop.yaml?env=test", &flow(&[("none", "/none", 0)]));
    let world = Setup::new()
        .rule_server(&server)
        .sources(
            "[{name: shop, http: {cluster: config, authority: config.local, path: '/rules/shop.yaml?env=test', headers: {x-token: secret}}, intervalMs: 100}]",
        )
        .start();
    let path = "/rules/shop.yaml?env=test";
    world.becomes("/none", 429);
    let sets = || world.envoy.log_lines("is in force").unwrap().len();
    let (sent_whole, sets_before) = (server.answered(path, 200), sets());

    let (report, ()) = world.while_loading(&[Ask::get("/none")], Rate::PerSecond(2000), || {
        let so_far = server.answered(path, 304);
        world.when("ten more looks", || (server.answered(path, 304) >= so_far + 10).then_some(()));
    });

    assert_eq!(report.status(429), report.sent(), "{:?}", report.asks);
    assert_eq!(sets(), sets_before);
    assert_eq!(server.answered(path, 200), sent_whole, "{server:?}");
    let asked = server.asked(path);
    let last = asked.last().unwrap();
    assert_eq!(last.header("if-none-match"), Some("\"version 1\""));
    assert_eq!(last.header("x-token"), Some("secret"));
    assert_eq!(last.header("host"), Some("config.local"));
    let apart: Vec<_> = asked.windows(2).map(|two| two[1].at_ns - two[0].at_ns).collect();
    assert!(apart.iter().all(|apart| *apart > 90_000_000), "asked too often: {apart:?}");

    server.put(path, &flow(&[("other", "/other", 0)]));
    world.becomes("/other", 429);
    world.becomes("/none", 200);
    world.assert_nothing_trapped();
}

#[test]
fn sources_of_every_form_are_one_set() {
    let server = RuleServer::start().unwrap();
    let none = |kind, path| document(kind, &[&format!("{{resource: 'GET:{path}', threshold: 0}}")]);
    server.put(
        "/crd.yaml",
        &format!(
            "{}\n---\n{}",
            none("FlowRules", "/crd"),
            document(
                "AuthorityRules",
                &["{id: staff, resource: 'GET:/staff', limitApp: nobody, strategy: White}"],
            )
        ),
    );
    server.put("/flow", r#"[{"resource": "GET:/list", "threshold": 0, "controlBehavior": 0}]"#);
    server.put(
        "/hot",
        r#"[{"resource": "GET:/hot", "metricType": 1, "controlBehavior": 0, "threshold": 0, "durationInSec": 1, "paramKey": "header:x-user"}]"#,
    );
    server.put("/isolation", r#"[{"resource": "GET:/isolated", "metricType": 0, "threshold": 1}]"#);
    server.put(
        "/circuitbreaker",
        r#"[{"resource": "GET:/ill", "strategy": 2, "threshold": 1, "minRequestAmount": 1, "statIntervalMs": 1000, "retryTimeoutMs": 60000}]"#,
    );
    server.put("/system", r#"[{"metricType": 2, "triggerCount": 1000, "strategy": -1}]"#);
    server.put(
        "/opensergo.yaml",
        "apiVersion: fault-tolerance.opensergo.io/v1alpha1
kind: RateLimitStrategy
metadata: {name: one}
spec: {metricType: RequestAmount, limitMode: Local, threshold: 1, statDurationSeconds: 60}
---
apiVersion: fault-tolerance.opensergo.io/v1alpha1
kind: FaultToleranceRule
metadata: {name: greeting}
spec:
  targets: [{targetResourceName: 'GET:/greeting'}]
  strategies: [{name: one, kind: RateLimitStrategy}]
",
    );
    let list = |kind: &str| {
        let path = if kind == "hotspot" { "hot" } else { kind };
        format!(
            "{{name: list-{kind}, http: {{cluster: config, path: /{path}}}, intervalMs: 100, kind: {kind}}}"
        )
    };
    let lists = ["flow", "hotspot", "isolation", "circuitbreaker", "system"].map(list).join(", ");
    let world = Setup::with_rules(&["{id: inline, resource: 'GET:/inline', threshold: 0}"])
        .rule_server(&server)
        .sources(&format!(
            "[{{name: crd, http: {{cluster: config, path: /crd.yaml}}, intervalMs: 100}}, {lists}, {{name: sergo, http: {{cluster: config, path: /opensergo.yaml}}, intervalMs: 100}}]"
        ))
        .start();
    world.printed("is in force: 9 rules");
    world.becomes("/crd", 429);

    assert_eq!(world.get("/inline").status, 429);
    assert_eq!(world.get("/list").status, 429);
    let mut client = world.client();
    let mut send = |path: &str, name, value| client.send("GET", path, &[(name, value)]).unwrap();
    assert_eq!(send("/staff", "x-origin", "shop").status, 403);
    assert_eq!(send("/hot", "x-user", "ann").status, 429);
    assert_eq!(send("/hot", "x-other", "ann").status, 200);
    let held = world.hang("/isolated", &[("x-latency-ms", "60000")]);
    world.when("the upstream", || (world.upstream.open("GET:/isolated").now == 1).then_some(()));
    assert_eq!(world.get("/isolated").status, 429);
    drop(held);
    assert_eq!(world.get("/greeting").status, 200);
    assert_eq!(world.get("/greeting").status, 429);
    assert_eq!(world.get("/ill?status=500").status, 500);
    world.becomes("/ill", 503);
    world.assert_nothing_trapped();
}

#[test]
fn a_sources_fallback_holds_from_the_first_request_until_the_source_has_answered() {
    let server = RuleServer::start().unwrap();
    server.behave("/shop.yaml", Manner::Status(503));
    let fallback = flow(&[("fallback", "/fallback", 0)]);
    let world = Setup::new()
        .settings("{beforeFirstRules: block}")
        .rule_server(&server)
        .sources(&shop(&format!(", fallback: [{fallback}]")))
        .start();

    assert_eq!(world.get("/fallback").status, 429);
    assert_eq!(world.get("/free").status, 200);
    world.when("some looks", || (server.answered("/shop.yaml", 503) > 3).then_some(()));
    assert_eq!(world.get("/fallback").status, 429);

    server.put("/shop.yaml", &flow(&[("fetched", "/fetched", 0)]));
    server.behave("/shop.yaml", Manner::Well);
    world.becomes("/fetched", 429);
    world.becomes("/fallback", 200);

    server.behave("/shop.yaml", Manner::Status(503));
    world.when("a failure", || (server.asked("/shop.yaml").last()?.status == 503).then_some(()));
    clock::pause(Duration::from_millis(300));
    assert_eq!(world.get("/fetched").status, 429, "the last good set, and not the fallback");
    assert_eq!(world.get("/fallback").status, 200);
}

const TWO: &str = "[{name: shop, http: {cluster: config, path: /shop.yaml}, intervalMs: 100}, {name: late, http: {cluster: config, path: /late.yaml}, intervalMs: 100}]";

#[test]
fn where_rules_are_waited_for_requests_are_refused_until_every_source_has_answered() {
    let server = RuleServer::start().unwrap();
    server.put("/shop.yaml", &flow(&[("shop", "/shop", 0)]));
    server.behave("/late.yaml", Manner::Never);
    let world = Setup::new()
        .settings("{beforeFirstRules: block}")
        .rule_server(&server)
        .sources(TWO)
        .start();
    world.when("an answer", || (server.answered("/shop.yaml", 304) > 2).then_some(()));

    let asks = [Ask::get("/free"), Ask::get("/shop"), Ask::get("/late")];
    let (report, ()) = world.while_loading(&asks, Rate::PerSecond(1000), || {
        clock::pause(Duration::from_secs(1));
    });
    assert_eq!(report.status(503), report.sent(), "{:?}", report.asks);
    assert_eq!(world.upstream.seen(), 0);

    server.put("/late.yaml", &flow(&[("late", "/late", 0)]));
    server.behave("/late.yaml", Manner::Well);
    for (path, status) in [("/free", 200), ("/shop", 429), ("/late", 429)] {
        world.becomes(path, status);
    }
    world.assert_nothing_trapped();
}

#[test]
fn where_they_are_not_waited_for_what_is_there_applies_and_everything_else_passes() {
    let server = RuleServer::start().unwrap();
    server.put("/shop.yaml", &flow(&[("shop", "/shop", 0)]));
    server.behave("/late.yaml", Manner::Status(500));
    let world = Setup::with_rules(&["{id: inline, resource: 'GET:/inline', threshold: 0}"])
        .rule_server(&server)
        .sources(TWO)
        .start();

    assert_eq!(world.get("/inline").status, 429, "from the first request");
    world.becomes("/shop", 429);
    assert_eq!(world.get("/late").status, 200);
    assert_eq!(world.get("/free").status, 200);
}

#[test]
fn whatever_a_source_does_later_its_last_good_rules_stay_and_the_log_says_so() {
    let server = RuleServer::start().unwrap();
    server.put("/shop.yaml", &flow(&[("shop", "/shop", 0)]));
    let world = with_shop(&server);
    world.becomes("/shop", 429);

    let (report, ()) = world.while_loading(&[Ask::get("/shop")], Rate::PerSecond(1000), || {
        for manner in [Manner::Status(500), Manner::Status(404), Manner::Never] {
            server.behave("/shop.yaml", manner);
            clock::pause(Duration::from_secs(1));
        }
        drop(server);
        world.printed("source shop");
        clock::pause(Duration::from_secs(1));
    });

    assert_eq!(report.status(429), report.sent(), "{:?}", report.asks);
    let complaints = world.envoy.log_lines("source shop").unwrap();
    assert!(complaints.len() <= 4, "said too often: {complaints:?}");
    assert_eq!(world.stats().total("rules_rejected"), 0);
    world.assert_nothing_trapped();
}

#[test]
fn a_bad_set_is_refused_whole_and_once_with_the_words_of_the_checker() {
    let server = RuleServer::start().unwrap();
    server.put("/shop.yaml", &flow(&[("shop", "/shop", 0)]));
    let world = with_shop(&server);
    world.becomes("/shop", 429);

    let bad = "apiVersion: datasource.sentinel.io/v1alpha1
kind: FlowRules
spec:
  rules:
  - {id: new, resource: 'GET:/new', threshold: 0}
  - {id: bad, resource: 'GET:/bad', threshold: -1}
  - {id: worse, resource: 'GET:/bad', treshold: 3, threshold: 1}
";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.yaml");
    fs::write(&file, bad).unwrap();
    let (report, ()) = world.while_loading(&[Ask::get("/shop")], Rate::PerSecond(1000), || {
        server.put("/shop.yaml", bad);
        world.stats_when("a rejection", |stats| stats.total("rules_rejected") == 1);
        let looks = server.asked("/shop.yaml").len();
        world.when("five more looks", || {
            (server.asked("/shop.yaml").len() >= looks + 5).then_some(())
        });
    });

    assert_eq!(report.status(429), report.sent(), "{:?}", report.asks);
    assert_eq!(world.get("/new").status, 200, "half of a bad set is in force");
    assert_eq!(world.stats().total("rules_rejected"), 1);
    let said: Vec<String> = world
        .envoy
        .log_lines("rules refused: ")
        .unwrap()
        .iter()
        .filter_map(|line| Some(line.split_once("shop.yaml:")?.1.to_owned()))
        .collect();
    let checked: Vec<String> = refusals(&file)
        .iter()
        .map(|line| line.split_once("shop.yaml:").unwrap().1.to_owned())
        .collect();
    assert_eq!(checked.len(), 2, "{checked:?}");
    assert_eq!(said, checked);
    assert!(
        said[0].contains("6:48: document 1 (FlowRules): rules[1] (bad): `threshold` is -1"),
        "{said:?}"
    );

    server.put("/shop.yaml", &flow(&[("mended", "/mended", 0)]));
    world.becomes("/mended", 429);
    world.becomes("/shop", 200);
    world.assert_nothing_trapped();
}

/// What is wrong with a file, as `cargo xtask check` says it: the same code, in the same words.
fn refusals(file: &Path) -> Vec<String> {
    let bytes = fs::read(file).unwrap();
    let documents = sentinel_engine::document::documents(&bytes).unwrap();
    let name = file.display().to_string();
    let source = Source { documents: &documents, ..Source::of(&name) };
    compile_set(&[source], &Settings::DEFAULT).unwrap_err().lines().collect()
}

#[test]
fn two_sources_with_one_id_clash_both_places_are_named_and_the_set_before_stays() {
    let server = RuleServer::start().unwrap();
    server.put("/shop.yaml", &flow(&[("one", "/one", 0)]));
    server.put("/late.yaml", &flow(&[("two", "/two", 0)]));
    let world = Setup::with_rules(&["{id: inline, resource: 'GET:/inline', threshold: 0}"])
        .rule_server(&server)
        .sources(TWO)
        .start();
    world.becomes("/one", 429);
    world.becomes("/two", 429);

    server.put("/late.yaml", &flow(&[("one", "/elsewhere", 0), ("three", "/three", 0)]));
    world.stats_when("a rejection", |stats| stats.total("rules_rejected") == 1);
    let said = world.printed("rules refused").concat();
    assert!(said.contains("shop.yaml") && said.contains("late.yaml"), "{said}");
    for (path, status) in [("/one", 429), ("/two", 429), ("/three", 200), ("/elsewhere", 200)] {
        assert_eq!(world.get(path).status, status, "{path}");
    }
    server.put("/late.yaml", &flow(&[("inline", "/elsewhere", 0)]));
    world.stats_when("another", |stats| stats.total("rules_rejected") == 2);
    assert_eq!(world.get("/elsewhere").status, 200);

    // Mended in the other of the two.
    server.put("/late.yaml", &flow(&[("one", "/elsewhere", 0)]));
    world.stats_when("a third", |stats| stats.total("rules_rejected") == 3);
    server.put("/shop.yaml", &flow(&[("four", "/four", 0)]));
    for (path, status) in [("/four", 429), ("/elsewhere", 429), ("/one", 200), ("/two", 200)] {
        world.becomes(path, status);
    }
}

#[test]
fn a_revived_service_keeps_the_rules_of_its_sources_and_goes_on_following_them() {
    let server = RuleServer::start().unwrap();
    server.put("/shop.yaml", &flow(&[("shop", "/shop", 0)]));
    let world = Setup::new().with_faults().rule_server(&server).sources(&shop("")).start();
    world.becomes("/shop", 429);

    let (report, ()) = world.while_loading(&[Ask::get("/shop")], Rate::PerSecond(1000), || {
        // Whom it asks is gone when it comes back: what it had fetched is in force all the same.
        server.behave("/shop.yaml", Manner::Status(500));
        trap_the_service(&world);
        world.stats_when("the service's revival", |stats| {
            stats.sum("wasm.sentinel_service.", ".vm_reload_success") >= 1
        });
        let looks = server.asked("/shop.yaml").len();
        world.when("five looks", || (server.asked("/shop.yaml").len() > looks + 5).then_some(()));
    });
    assert_eq!(report.status(429), report.sent(), "{:?}", report.asks);

    server.put("/shop.yaml", &flow(&[("new", "/new", 0)]));
    server.behave("/shop.yaml", Manner::Well);
    world.becomes("/new", 429);
    world.becomes("/shop", 200);
}

#[test]
fn a_configmaps_swap_changes_all_files_at_once_in_the_oldest_and_the_newest_envoy() {
    for binary in [world::oldest_envoy(), world::envoy()] {
        let mount = Mount::new(&[
            ("index.yaml", "files: [a.yaml, b.yaml]".to_owned()),
            ("a.yaml", flow(&[("a", "/a", 0)])),
            ("b.yaml", flow(&[("b", "/b", 0)])),
        ]);
        let mut setup = Setup::new().rule_files(Files::Watched(mount.path().to_owned()));
        setup.binary = binary;
        let world = setup.start();
        world.becomes("/a", 429);
        world.becomes("/b", 429);

        // Together they are good; one of them with the other's old contents is not.
        mount.swap(&[
            ("index.yaml", "files: [a.yaml, b.yaml]".to_owned()),
            ("a.yaml", flow(&[("b", "/b2", 0)])),
            ("b.yaml", flow(&[("a", "/a2", 0)])),
        ]);
        let swapped = clock::now();
        world.becomes("/a2", 429);
        println!("followed after {:?}", clock::now() - swapped);
        assert!(clock::now() - swapped < world::FOLLOWED);
        for (path, status) in [("/b2", 429), ("/a", 200), ("/b", 200)] {
            world.becomes(path, status);
        }
        assert_eq!(world.stats().total("rules_rejected"), 0, "{world:?}");
    }
}

/// A directory as Kubernetes mounts a ConfigMap: links through `..data`, which is swapped.
struct Mount {
    directory: TempDir,
}

impl Mount {
    fn new(files: &[(&str, String)]) -> Self {
        let mount = Self { directory: tempfile::tempdir().unwrap() };
        mount.swap(files);
        for (name, _) in files {
            let link = mount.path().join(name);
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
        mount
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn swap(&self, files: &[(&str, String)]) {
        let version = format!("..{}", clock::wall_nanos());
        let new = self.path().join(&version);
        fs::create_dir(&new).unwrap();
        for (name, contents) in files {
            fs::write(new.join(name), contents).unwrap();
        }
        let link = self.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &link).unwrap();
        fs::rename(link, self.path().join("..data")).unwrap();
    }
}

#[test]
fn the_file_server_follows_edits_in_place_and_an_index_with_lists_of_sentinel_golang() {
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, contents: &str| fs::write(directory.path().join(name), contents).unwrap();
    write("index.yaml", "files: [rules.yaml, {path: limits.json, kind: flow}]");
    write("rules.yaml", &flow(&[("a", "/a", 0)]));
    write("limits.json", r#"[{"resource": "GET:/list", "threshold": 0}]"#);
    let served = Files::Served(vec![("/rules".to_owned(), directory.path().to_owned())]);
    let world = Setup::new().rule_files(served).start();
    world.becomes("/a", 429);
    assert_eq!(world.get("/list").status, 429);

    let (_, ()) = world.while_loading(&[Ask::get("/a")], Rate::PerSecond(500), || {
        write("rules.yaml", &flow(&[("b", "/b", 0)]));
        let written = clock::now();
        world.becomes("/b", 429);
        assert!(clock::now() - written < world::FOLLOWED, "{:?}", clock::now() - written);
        world.becomes("/a", 200);

        write("new.yaml", &flow(&[("new", "/new", 0)]));
        write("index.yaml", "files: [rules.yaml, new.yaml]");
        world.becomes("/new", 429);
        world.becomes("/list", 200);

        // What is listed and not there changes nothing.
        write("index.yaml", "files: [rules.yaml, gone.yaml]");
        clock::pause(Duration::from_secs(2));
        assert_eq!(world.get("/new").status, 429);
        assert_eq!(world.get("/b").status, 429);
    });
    world.assert_nothing_trapped();
}

#[test]
fn the_shipped_files_are_in_force_as_they_are_served_and_followed_when_they_are_renamed_to() {
    let directory = tempfile::tempdir().unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../rules");
    for entry in fs::read_dir(shipped).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() {
            fs::copy(&file, directory.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    for files in [
        Files::Watched(directory.path().to_owned()),
        Files::Served(vec![("/rules".to_owned(), directory.path().to_owned())]),
    ] {
        let flow_yaml = directory.path().join("flow.yaml");
        let text = fs::read_to_string(&flow_yaml).unwrap();
        let mut setup = Setup::new().service(Some(Configuration::Text(shipped_service().unwrap())));
        setup.files = Some(files);
        let world = setup.start();
        world.printed("is in force");
        let refused = |path: &str| {
            let statuses: Vec<_> = (0..40).map(|_| world.get(path).status).collect();
            statuses.iter().filter(|status| **status == 429).count()
        };
        assert!(refused("/cart") >= 20, "10 a second and 30 in five");
        assert_eq!(world.get("/staff").status, 200);

        let new = directory.path().join("new");
        fs::write(&new, text.replace("threshold: 30\n", "threshold: 0\n")).unwrap();
        fs::rename(&new, &flow_yaml).unwrap();
        world.becomes("/cart", 429);
        clock::pause(Duration::from_secs(6));
        assert_eq!(world.get("/cart").status, 429, "nothing at all is left of it");
        xds::replace(&flow_yaml, &text).unwrap();
        world.when("the old rules", || (world.get("/cart").status == 200).then_some(()));
        assert_eq!(world.stats().total("rules_rejected"), 0);
    }
}

#[test]
fn what_was_once_in_force_is_never_mixed_with_half_of_an_edit() {
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, contents: &str| fs::write(directory.path().join(name), contents).unwrap();
    write("index.yaml", "files: [a.yaml, b.yaml]");
    write("a.yaml", &flow(&[("a", "/a", 0)]));
    write("b.yaml", &flow(&[("b", "/b", 0)]));
    let served = Files::Served(vec![("/rules".to_owned(), directory.path().to_owned())]);
    let world = Setup::new().rule_files(served).start();
    world.becomes("/a", 429);

    // An editor that takes half a second, in steps of which each is a document by itself.
    for step in 1..=10 {
        let rules: Vec<_> = (0..step).map(|n| (format!("a{n}"), format!("/a{n}"))).collect();
        let rules: Vec<_> =
            rules.iter().map(|(id, path)| (id.as_str(), path.as_str(), 0)).collect();
        write("a.yaml", &flow(&rules));
        write("b.yaml", &flow(&[("b", &format!("/b{step}"), 0)]));
        clock::pause(Duration::from_millis(50));
    }
    for (path, status) in [("/a9", 429), ("/b10", 429), ("/b", 200)] {
        world.becomes(path, status);
    }
    let sets = world.envoy.log_lines("is in force").unwrap();
    assert!(sets.len() <= 3, "a set of each step: {sets:?}");
    assert_eq!(world.stats().total("rules_rejected"), 0);
}
