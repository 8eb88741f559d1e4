//! What ships in `envoy/`: each file is valid and runs in every Envoy that its first line names, and gives the modules leave
//! to do what they do and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpSocket;
use wasmparser::{ExternalKind, Parser, Payload};

use sentinel_integration::bootstrap::{Bootstrap, CAPABILITIES, CONNECTION_MANAGER};
use sentinel_integration::client::Client;
use sentinel_integration::envoy::{Envoy, reserved_port};
use sentinel_integration::grpc::{Caller, Item, Shop};
use sentinel_integration::hanging::Hanging;
use sentinel_integration::upstream::Upstream;
use sentinel_integration::{clock, rules};

use crate::grpc::grpcurl;
use crate::world::{self, Setup};

/// What `envoy/envoy.yaml` runs in.
const VERSIONS: [&str; 5] = ["1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"];
/// `PyPI` has it without V8, so that no module loads there: what is left of a file is tried.
const WITHOUT_V8: &str = "1.38.3";

#[test]
fn the_first_line_of_every_file_names_versions_and_that_of_the_main_one_all() {
    for (name, file) in shipped() {
        let versions = file.versions;
        assert!(versions.iter().all(|named| VERSIONS.contains(&named.as_str())), "{name}");
        assert!(versions.contains(&"1.40.0".to_owned()), "{name}: {versions:?}");
        if name != "file-server.yaml" {
            assert_eq!(versions, VERSIONS, "{name}");
        }
    }
}

#[test]
fn every_file_is_valid_and_runs_in_each_envoy_that_it_names() {
    let _turn = world::machine();
    let upstream = Upstream::start(0).unwrap();
    let envoys: BTreeMap<_, _> =
        world::every_envoy().into_iter().map(|binary| (version_of(&binary), binary)).collect();
    for (name, file) in shipped() {
        let here: Vec<_> =
            file.versions.iter().filter(|version| envoys.contains_key(*version)).collect();
        assert!(!here.is_empty(), "{name}: none of {:?} is here", file.versions);
        for version in here {
            let (binary, what) = (&envoys[version], format!("{name} in {version}"));
            let with_modules = version != WITHOUT_V8;
            file.validate(binary, with_modules, &what);
            file.run(binary, with_modules, &upstream, &what);
        }
    }
}

#[test]
fn what_is_not_for_clients_listens_on_loopback() {
    for (name, file) in shipped() {
        let listeners = file.root.pointer("/static_resources/listeners").unwrap();
        let others = listeners.as_array().unwrap().iter().skip(1);
        for place in others.chain(file.root.pointer("/admin")) {
            let address = place.pointer("/address/socket_address/address");
            assert_eq!(address, Some(&json!("127.0.0.1")), "{name}: {place}");
        }
    }
}

#[test]
fn every_plugin_may_do_what_its_module_does_and_nothing_else() {
    for (name, file) in shipped() {
        let mut plugins = Vec::new();
        collect_plugins(&file.root, &mut plugins);
        assert!(plugins.len() >= 3, "{name}: service, twin and filter");
        for plugin in plugins {
            let module = plugin.pointer("/vm_config/code/local/filename").unwrap();
            let module = module.as_str().unwrap().strip_prefix("dist/").unwrap();
            let allowed = plugin.pointer(CAPABILITIES).and_then(Value::as_object);
            let allowed: BTreeSet<_> =
                allowed.unwrap_or_else(|| panic!("{name}: {module} may do all")).keys().collect();
            let needed = needed_by(&world::dist().join(module));
            assert_eq!(allowed, needed.iter().collect(), "{name}, {module}");
        }
    }
}

#[test]
fn the_one_for_grpc_governs_calls_by_their_methods() {
    let _turn = world::machine();
    let shop = Shop::start().unwrap();
    let file = one("grpc.yaml");
    let envoy = file.start(&world::envoy(), true, shop.address(), "grpc.yaml");
    clock::wait_for("the rules", Duration::from_secs(30), || {
        Ok((envoy.stats()?.rule("cart-add", "threshold") == 100).then_some(()))
    })
    .unwrap();
    let caller = Caller::connect(envoy.proxy()).unwrap();

    let (ended_well, said) = grpcurl(envoy.proxy(), "Add", r#"{"name": "tea"}"#);
    assert!(ended_well && said.contains(r#""name": "tea""#), "{said}");

    // Workers take up the rules within a second, and the fifty are over all of them.
    let mut held = Vec::new();
    let refused = clock::wait_for("a chat too many", Duration::from_secs(30), || {
        Ok(match caller.chat() {
            Ok(chat) => {
                held.push(chat);
                None
            }
            Err(status) => Some(status),
        })
    });
    let refused = refused.unwrap_or_else(|error| panic!("{error:#}: {envoy:?}"));
    assert_eq!((refused.message(), held.len()), ("Blocked by Sentinel: Isolation", 50));
    let (ended_well, said) = grpcurl(envoy.proxy(), "Chat", r#"{"name": "tea"}"#);
    assert!(!ended_well && said.contains("Code: ResourceExhausted"), "{said}");

    let opened = clock::wait_for("the breaker to open", Duration::from_secs(30), || {
        let status = caller.watch(Item::status(13)).status;
        Ok(status.message().starts_with("Blocked").then_some(status))
    });
    let opened = opened.unwrap_or_else(|error| panic!("{error:#}: {envoy:?}"));
    assert_eq!(
        (i32::from(opened.code()), opened.message()),
        (14, "Blocked by Sentinel: CircuitBreaking")
    );
}

#[test]
fn a_filter_that_may_not_do_what_it_needs_says_so() {
    let refused = without("clock_time_get").refused();
    assert!(
        refused.contains("Envoy refuses clock_time_get: allow it in capability_restriction_config"),
        "{refused}"
    );

    let world = without("proxy_send_local_response").start();
    let _hangs = Hanging::get(world.proxy(), "/none", &[]).unwrap();
    world.printed("envoy refused to send a reply");
}

/// With a filter that may do all that it needs but this.
fn without(capability: &str) -> Setup {
    let place = format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config{CAPABILITIES}");
    let mut allowed = one("envoy.yaml").root.pointer(&place).unwrap().clone();
    assert!(allowed.as_object_mut().unwrap().remove(capability).is_some(), "{capability}");
    Setup::with_rules(&["{id: none, resource: 'GET:/none', threshold: 0}"]).change(&place, allowed)
}

/// A file of `envoy/`.
struct Shipped {
    text: String,
    root: Value,
    /// Those that its first line names.
    versions: Vec<String>,
}

/// All of them, by name.
fn shipped() -> Vec<(String, Shipped)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join("envoy")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let versions = text.strip_prefix("# Envoy ").and_then(|rest| rest.split_once(": "));
        let versions =
            versions.unwrap_or_else(|| panic!("{name} must begin with `# Envoy 1.36.4, …: `")).0;
        all.push((
            name,
            Shipped {
                root: rules::parse(&text).unwrap().pop().unwrap(),
                versions: versions.split(", ").map(str::to_owned).collect(),
                text,
            },
        ));
    }
    assert!(all.len() >= 5, "{}", all.len());
    all
}

fn one(name: &str) -> Shipped {
    shipped().into_iter().find(|(its, _)| its == name).unwrap().1
}

impl Shipped {
    /// Lets Envoy validate the file as it stands, seen from the root of the repository.
    #[track_caller]
    fn validate(&self, binary: &Path, with_modules: bool, what: &str) {
        let directory = tempfile::tempdir().unwrap();
        for (from, to) in [(world::dist(), "dist"), (root().join("rules"), "rules")] {
            std::os::unix::fs::symlink(from, directory.path().join(to)).unwrap();
        }
        let mut bare = self.root.clone();
        remove_modules(&mut bare);
        let file = directory.path().join("envoy.yaml");
        fs::write(&file, if with_modules { self.text.clone() } else { bare.to_string() }).unwrap();
        let validated = Command::new(binary)
            .args(["--mode", "validate", "--config-path"])
            .arg(&file)
            .current_dir(directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&validated.stderr);
        assert!(validated.status.success(), "{what}: {said}");
    }

    /// Starts the file, with whole paths and ports that are free, before this upstream.
    #[track_caller]
    fn start(&self, binary: &Path, with_modules: bool, upstream: SocketAddr, what: &str) -> Envoy {
        let mut reserved = Vec::new();
        let bootstrap = Bootstrap {
            port: 0,
            admin_port: 0,
            upstream,
            sentinel: None,
            console_port: 0,
            access_log: None,
        };
        let started = Envoy::start_changed(binary, 2, &bootstrap, |root| {
            let admin = root.pointer("/admin/address/socket_address/port_value").cloned();
            *root = self.elsewhere(admin.unwrap(), upstream, &mut reserved);
            if !with_modules {
                remove_modules(root);
            }
            Ok(())
        });
        started.unwrap_or_else(|error| panic!("{what}: {error:#}"))
    }

    /// Starts the file, and sees rules in force and traffic pass.
    #[track_caller]
    fn run(&self, binary: &Path, with_modules: bool, upstream: &Upstream, what: &str) {
        let envoy = self.start(binary, with_modules, upstream.address(), what);
        let is_tcp = self.text.contains("tcp_proxy");
        let is_http2 = self.text.contains("resource: {from: path}");
        if is_tcp {
            TcpStream::connect(envoy.proxy()).unwrap();
        } else {
            let mut client = if is_http2 {
                Client::connect_http2(envoy.proxy()).unwrap()
            } else {
                Client::connect(envoy.proxy()).unwrap()
            };
            assert_eq!(client.get("/free").unwrap().status, 200, "{what}: {envoy:?}");
        }
        if !with_modules {
            return;
        }
        // The first that a rule of this file names.
        let [rule, threshold] = if is_tcp {
            ["redis-connections", "64"]
        } else if is_http2 {
            ["cart-add", "100"]
        } else if self.text.contains("unit: message") {
            ["talks", "10"]
        } else {
            ["hello", "100"]
        };
        clock::wait_for(what, Duration::from_secs(30), || {
            let stats = envoy.stats()?;
            let is_in_force = stats.rule(rule, "threshold").to_string() == threshold;
            Ok((is_in_force && stats.total("pass_total") > 0).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {envoy:?}"));
        assert_eq!(envoy.stats().unwrap().sum("wasm.", ".vm_reload"), 0, "{what}: {envoy:?}");
    }

    /// The same with whole paths and ports that are free. Where it has an upstream it has ours.
    fn elsewhere(
        &self,
        admin: Value,
        upstream: SocketAddr,
        reserved: &mut Vec<TcpSocket>,
    ) -> Value {
        let text = self.root.to_string();
        let text = text.replace("\"dist/", &format!("\"{}/", world::dist().display()));
        let rules = root().join("rules");
        let text = text.replace("\"rules/", &format!("\"{}/", rules.display()));
        let text = text.replace("\"path\":\"rules\"", &format!("\"path\":{}", json!(rules)));
        let text = text.replace(
            "\"file_path_prefix\":\"rules\"",
            &format!("\"file_path_prefix\":{}", json!(rules)),
        );
        let mut root: Value = serde_json::from_str(&text).unwrap();

        let mut ours = BTreeMap::new();
        ours.insert(port_in(root.pointer("/admin/address").unwrap()), admin);
        for listener in root.pointer("/static_resources/listeners").unwrap().as_array().unwrap() {
            let (socket, port) = reserved_port().unwrap();
            reserved.push(socket);
            ours.insert(port_in(&listener["address"]), json!(port));
        }
        replace_ports(&mut root, &|port| {
            ours.get(&port).cloned().unwrap_or_else(|| json!(upstream.port()))
        });
        // Where `Envoy` looks for the one that clients connect to.
        root["static_resources"]["listeners"][0]["name"] = json!("ingress");
        root
    }
}

fn port_in(address: &Value) -> u64 {
    address.pointer("/socket_address/port_value").and_then(Value::as_u64).unwrap()
}

fn replace_ports(value: &mut Value, ours: &impl Fn(u64) -> Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_u64() {
                    Some(port) if name == "port_value" => *field = ours(port),
                    _ => replace_ports(field, ours),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|one| replace_ports(one, ours)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Takes out of a configuration whatever needs V8.
fn remove_modules(value: &mut Value) {
    let is_module = |one: &Value| {
        let kind = one.pointer("/typed_config/@type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind.contains("wasm"))
    };
    match value {
        Value::Object(fields) => fields.values_mut().for_each(remove_modules),
        Value::Array(list) => {
            list.retain(|one| !is_module(one));
            list.iter_mut().for_each(remove_modules);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn collect_plugins<'a>(value: &'a Value, plugins: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("vm_config") {
                plugins.push(value);
            }
            fields.values().for_each(|field| collect_plugins(field, plugins));
        }
        Value::Array(list) => list.iter().for_each(|one| collect_plugins(one, plugins)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What Envoy asks leave for: all that the module imports, and the callbacks that it exports.
fn needed_by(module: &Path) -> BTreeSet<String> {
    let bytes = fs::read(module).unwrap();
    let mut needed = BTreeSet::new();
    for payload in Parser::new(0).parse_all(&bytes) {
        let payload = payload.unwrap();
        if let Payload::ImportSection(section) = payload {
            needed.extend(section.into_imports().map(|import| import.unwrap().name.to_owned()));
        } else if let Payload::ExportSection(section) = payload {
            let exports = section.into_iter().map(Result::unwrap);
            let functions = exports.filter(|export| export.kind == ExternalKind::Func);
            let callbacks = functions.filter(|export| export.name.starts_with("proxy_on_"));
            needed.extend(callbacks.map(|export| export.name.to_owned()));
        }
    }
    needed
}

/// `1.40.0` in `envoy  version: 92a2…/1.40.0/Clean/RELEASE/BoringSSL`.
fn version_of(binary: &PathBuf) -> String {
    let said = Command::new(binary).arg("--version").output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_once("version: ").and_then(|(_, rest)| rest.split('/').nth(1));
    version.unwrap_or_else(|| panic!("{}: {said}", binary.display())).to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
