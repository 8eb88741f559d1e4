//! Envoy's configuration for one run, made out of the one that users get.
//!
//! `envoy/envoy.yaml` is read as it stands, and only what differs from run to run is replaced: ports, the paths and
//! configurations of the modules, the access log. So every test of the product is also a test of that file.
//! Envoy reads JSON as well as YAML; the result is JSON.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{rules, xds};

/// What differs from run to run.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Where clients connect, on loopback; 0: a port that the system chooses.
    pub port: u16,
    /// Envoy's admin endpoint, on loopback; 0: a port that the system chooses, which
    /// [`Envoy::start`](crate::envoy::Envoy::start) puts in.
    pub admin_port: u16,
    /// Where requests go.
    pub upstream: SocketAddr,
    /// Sentinel; `None`: an Envoy without it.
    pub sentinel: Option<Sentinel>,
    /// Where the console listens, on loopback; 0: a port that the system chooses.
    pub console_port: u16,
    /// A file for the access log of all requests; `None`: no access log.
    pub access_log: Option<PathBuf>,
}

/// The two modules and their configurations.
#[derive(Clone, Debug)]
pub struct Sentinel {
    /// The directory with `sentinel_filter.wasm` and `sentinel_service.wasm`.
    pub dist: PathBuf,
    /// The filter's configuration; `None`: none is given.
    pub filter: Option<Configuration>,
    /// The service's; `None`: there is no service at all.
    pub service: Option<Configuration>,
    /// Whether the service stands a second time as a stats sink, which brings it back after a trap.
    pub revived: bool,
    /// The rule files that Envoy serves to the service, on the listener and cluster [`FILES`]; `None`: there is no such
    /// listener.
    pub files: Option<Files>,
}

/// Rule files that Envoy itself serves.
#[derive(Clone, Debug)]
pub enum Files {
    /// As in `envoy/envoy.yaml`, but all of this directory instead of `rules`, under `/rules/`. They are read again when
    /// something is renamed into it.
    Watched(PathBuf),
    /// As in `envoy/file-server.yaml`, but these: what a request's path begins with, and what stands there.
    Served(Vec<(String, PathBuf)>),
    /// What the routes of this RDS file answer: see [`xds::direct_routes`](crate::xds::direct_routes).
    Routed(PathBuf),
}

impl Sentinel {
    /// Both modules from `dist`, the filter as in `envoy/envoy.yaml`, and the service as there but with these rule
    /// documents.
    ///
    /// # Errors
    ///
    /// When `envoy/envoy.yaml` no longer has the filter's configuration.
    pub fn with_rules(dist: &Path, documents: &[Value]) -> Result<Self> {
        let service = json!({"rules": documents, "envoyStats": {"cluster": ADMIN_CLUSTER}});
        Ok(Self {
            dist: dist.to_owned(),
            filter: Some(Configuration::Struct(shipped_filter()?)),
            service: Some(Configuration::Text(service.to_string())),
            revived: true,
            files: None,
        })
    }
}

/// A module's configuration in one of the two forms that the modules take.
#[derive(Clone, Debug)]
pub enum Configuration {
    /// A `google.protobuf.Struct`.
    Struct(Value),
    /// A `google.protobuf.StringValue`: JSON or YAML as text.
    Text(String),
}

impl Configuration {
    fn into_any(self) -> Value {
        match self {
            Self::Struct(value) => {
                json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": value})
            }
            Self::Text(value) => {
                json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": value})
            }
        }
    }
}

impl Bootstrap {
    /// The whole configuration, which as JSON is one for `envoy -c`.
    ///
    /// # Errors
    ///
    /// When `envoy/envoy.yaml` no longer has a place that must be replaced, naming it.
    pub fn render(&self) -> Result<Value> {
        let mut root = shipped()?;
        *at(&mut root, "/admin/address/socket_address/port_value")? = json!(self.admin_port);
        *at(&mut root, &format!("{LISTENER}/address/socket_address/port_value"))? =
            json!(self.port);
        *at(&mut root, &format!("/static_resources/clusters/0{ENDPOINT}"))? =
            json!({"address": self.upstream.ip().to_string(), "port_value": self.upstream.port()});
        // The service asks for CPU and memory where we do.
        *at(&mut root, &format!("/static_resources/clusters/1{ENDPOINT}/port_value"))? =
            json!(self.admin_port);
        *at(named(&mut root, "listeners", CONSOLE)?, PORT)? = json!(self.console_port);
        self.replace_access_log(&mut root)?;
        match self.sentinel.as_ref().and_then(|sentinel| sentinel.files.as_ref()) {
            Some(files) => files.replace(&mut root)?,
            None => remove_files(&mut root)?,
        }
        match &self.sentinel {
            Some(sentinel) => sentinel.replace(&mut root)?,
            None => remove_sentinel(&mut root)?,
        }
        Ok(root)
    }

    fn replace_access_log(&self, root: &mut Value) -> Result<()> {
        let log = at(root, &format!("{CONNECTION_MANAGER}/access_log"))?;
        let Some(path) = &self.access_log else {
            *log = json!([]);
            return Ok(());
        };
        let format = at(log, "/0/typed_config/log_format")?.take();
        *log = json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": path,
                "log_format": format,
            },
        }]);
        Ok(())
    }
}

impl Sentinel {
    fn replace(&self, root: &mut Value) -> Result<()> {
        let filter = at(root, &format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config"))?;
        self.replace_plugin(filter, "sentinel_filter.wasm", self.filter.as_ref())?;
        // The console's own configuration stays as it is.
        let module = format!("{FILTER}/typed_config/config/vm_config/code/local/filename");
        *at(named(root, "listeners", CONSOLE)?, &module)? =
            json!(self.dist.join("sentinel_filter.wasm"));
        if self.service.is_none() {
            remove(root, "bootstrap_extensions");
            remove(root, "stats_sinks");
            return Ok(());
        }
        for twin in
            ["/bootstrap_extensions/0/typed_config/config", "/stats_sinks/0/typed_config/config"]
        {
            self.replace_plugin(at(root, twin)?, "sentinel_service.wasm", self.service.as_ref())?;
        }
        if !self.revived {
            remove(root, "stats_sinks");
        }
        Ok(())
    }

    fn replace_plugin(
        &self,
        plugin: &mut Value,
        module: &str,
        configuration: Option<&Configuration>,
    ) -> Result<()> {
        *at(plugin, "/vm_config/code/local/filename")? = json!(self.dist.join(module));
        match configuration {
            Some(configuration) => {
                *at(plugin, "/configuration")? = configuration.clone().into_any();
            }
            None => remove(plugin, "configuration"),
        }
        Ok(())
    }
}

impl Files {
    fn replace(&self, root: &mut Value) -> Result<()> {
        if let Self::Served(_) = self {
            let mut other = parsed(FILE_SERVER)?;
            *named(root, "listeners", FILES)? = named(&mut other, "listeners", FILES)?.take();
        }
        let listener = named(root, "listeners", FILES)?;
        // The system's choice: the cluster learns of it in `Envoy::start`.
        *at(listener, PORT)? = json!(0);
        let manager = at(listener, "/filter_chains/0/filters/0/typed_config")?;
        match self {
            Self::Watched(directory) => {
                let routes = at(manager, "/route_config/virtual_hosts/0/routes")?;
                *routes = watched(directory, at(routes, "/0")?)?;
            }
            Self::Served(mappings) => {
                let mappings: Vec<_> = mappings
                    .iter()
                    .map(|(path, place)| {
                        json!({"request_path_prefix": path, "file_path_prefix": place})
                    })
                    .collect();
                *at(manager, "/http_filters/0/typed_config/path_mappings")? = json!(mappings);
            }
            Self::Routed(file) => {
                remove(manager, "route_config");
                if let Some(manager) = manager.as_object_mut() {
                    manager.insert(
                        "rds".to_owned(),
                        json!({"route_config_name": FILES, "config_source": xds::source(file)}),
                    );
                }
            }
        }
        Ok(())
    }
}

/// A route like `shipped` for each file of a directory.
fn watched(directory: &Path, shipped: &Value) -> Result<Value> {
    let cannot = || format!("cannot list {}", directory.display());
    let mut routes = Vec::new();
    for entry in fs::read_dir(directory).with_context(cannot)? {
        let file = entry.with_context(cannot)?.path();
        if !file.is_file() {
            continue;
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut route = shipped.clone();
        *at(&mut route, "/match/path")? = json!(format!("/rules/{name}"));
        *at(&mut route, "/direct_response/body/filename")? = json!(file);
        *at(&mut route, "/direct_response/body/watched_directory/path")? = json!(directory);
        routes.push(route);
    }
    Ok(Value::Array(routes))
}

fn remove_files(root: &mut Value) -> Result<()> {
    for kind in ["listeners", "clusters"] {
        let all = at(root, &format!("/static_resources/{kind}"))?;
        if let Some(all) = all.as_array_mut() {
            all.retain(|one| one.get("name").is_none_or(|name| name != FILES));
        }
    }
    Ok(())
}

/// Takes the two modules out of a configuration.
///
/// # Errors
///
/// When it has no filters.
pub fn remove_sentinel(root: &mut Value) -> Result<()> {
    remove(root, "bootstrap_extensions");
    remove(root, "stats_sinks");
    if let Some(listeners) = at(root, "/static_resources/listeners")?.as_array_mut() {
        listeners.retain(|listener| listener.get("name").is_none_or(|name| name != CONSOLE));
    }
    let filters = at(root, &format!("{CONNECTION_MANAGER}/http_filters"))?;
    if let Some(filters) = filters.as_array_mut() {
        filters.retain(|filter| filter.get("name").is_none_or(|name| name != "sentinel"));
    }
    Ok(())
}

/// The value at a place of the configuration, to be replaced.
///
/// # Errors
///
/// When there is no such place, naming it.
pub fn at<'a>(root: &'a mut Value, place: &str) -> Result<&'a mut Value> {
    root.pointer_mut(place)
        .with_context(|| format!("envoy/envoy.yaml has no {place}, which a run must replace"))
}

/// The static listener or cluster (`kind`: `listeners` or `clusters`) of this name.
///
/// # Errors
///
/// When there is none, naming it.
pub fn named<'a>(root: &'a mut Value, kind: &str, name: &str) -> Result<&'a mut Value> {
    let all = at(root, &format!("/static_resources/{kind}"))?.as_array_mut();
    all.and_then(|all| all.iter_mut().find(|one| one.get("name").is_some_and(|its| its == name)))
        .with_context(|| format!("Envoy's configuration has none of its {kind} named {name}"))
}

fn remove(root: &mut Value, field: &str) {
    if let Some(fields) = root.as_object_mut() {
        fields.remove(field);
    }
}

/// `envoy/envoy.yaml` as it stands.
fn shipped() -> Result<Value> {
    parsed(SHIPPED)
}

fn parsed(text: &str) -> Result<Value> {
    let mut documents = rules::parse(text).context("a file of envoy/ is not YAML")?;
    let Some(root) = documents.pop() else { bail!("a file of envoy/ is empty") };
    Ok(root)
}

/// The service's configuration in `envoy/envoy.yaml`, as the text that it is.
///
/// # Errors
///
/// When it is no longer there.
pub fn shipped_service() -> Result<String> {
    let place = "/bootstrap_extensions/0/typed_config/config/configuration/value";
    let mut shipped = shipped()?;
    let text = at(&mut shipped, place)?;
    Ok(text.as_str().context("the service's configuration is not text")?.to_owned())
}

/// The filter's configuration in `envoy/envoy.yaml`.
///
/// # Errors
///
/// When it is no longer there.
pub fn shipped_filter() -> Result<Value> {
    let place =
        format!("{CONNECTION_MANAGER}/http_filters/0/typed_config/config/configuration/value");
    Ok(at(&mut shipped()?, &place)?.take())
}

const SHIPPED: &str = include_str!("../../envoy/envoy.yaml");
const FILE_SERVER: &str = include_str!("../../envoy/file-server.yaml");
/// The listener on which Envoy serves rule files, and the cluster in which the service asks for them.
pub const FILES: &str = "sentinel_files";
/// Where a listener's port stands in it.
pub const PORT: &str = "/address/socket_address/port_value";
/// Where a cluster's one address stands in it.
pub const ENDPOINT: &str =
    "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
/// The cluster that is Envoy's own admin endpoint.
pub const ADMIN_CLUSTER: &str = "sentinel_admin";
/// Where the names that a plugin's module may call and be called stand in the plugin.
pub const CAPABILITIES: &str = "/capability_restriction_config/allowed_capabilities";
/// The console's listener.
const CONSOLE: &str = "sentinel_console";
/// Where the first HTTP filter of a listener stands in it.
const FILTER: &str = "/filter_chains/0/filters/0/typed_config/http_filters/0";
/// Where the listener stands in the whole.
pub const LISTENER: &str = "/static_resources/listeners/0";
/// Where the connection manager's configuration stands in the whole.
pub const CONNECTION_MANAGER: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Bootstrap {
        Bootstrap {
            port: 0,
            admin_port: 0,
            upstream: ([127, 0, 0, 1], 8080).into(),
            sentinel: None,
            console_port: 0,
            access_log: None,
        }
    }

    fn rendered(bootstrap: &Bootstrap) -> Value {
        bootstrap.render().unwrap()
    }

    #[test]
    fn without_sentinel_no_trace_of_it_but_the_labels_is_left() {
        let root = rendered(&plain());

        assert!(root.get("bootstrap_extensions").is_none() && root.get("stats_sinks").is_none());
        assert!(!root.to_string().contains("wasm.v3"));
    }

    #[test]
    fn the_service_and_its_twin_are_the_same_to_the_byte() {
        let sentinel =
            Sentinel::with_rules(Path::new("dist"), &[json!({"kind": "FlowRules"})]).unwrap();
        let root = rendered(&Bootstrap { sentinel: Some(sentinel), ..plain() });

        let service = root.pointer("/bootstrap_extensions/0/typed_config/config").unwrap();
        let twin = root.pointer("/stats_sinks/0/typed_config/config").unwrap();
        assert_eq!(service.to_string(), twin.to_string());
        assert!(service.to_string().contains("dist/sentinel_service.wasm"));
        let text = service.pointer("/configuration/value").and_then(Value::as_str).unwrap();
        let service: Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            service,
            json!({"rules": [{"kind": "FlowRules"}], "envoyStats": {"cluster": "sentinel_admin"}})
        );
    }

    #[test]
    fn the_index_the_folder_and_the_routes_name_the_same_rule_files() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../rules"));
        let index = fs::read_to_string(folder.join(rules::INDEX)).unwrap();
        let index = rules::parse(&index).unwrap().pop().unwrap();
        let listed: Vec<_> =
            index["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();

        let mut files: Vec<_> = rules::files(folder)
            .unwrap()
            .into_iter()
            .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(listed, files, "rules/index.yaml");

        let mut shipped = shipped().unwrap();
        let listener = named(&mut shipped, "listeners", FILES).unwrap();
        let routes = at(listener, "/filter_chains/0/filters/0/typed_config/route_config").unwrap();
        let routes = routes.pointer("/virtual_hosts/0/routes").unwrap().as_array().unwrap();
        let body = |route: &Value, place| {
            let place = format!("/direct_response/body/{place}");
            route.pointer(&place).unwrap().as_str().unwrap().to_owned()
        };
        files.insert(0, rules::INDEX.to_owned());
        for (route, file) in routes.iter().zip(&files) {
            let file = format!("rules/{file}");
            assert_eq!(route.pointer("/match/path").unwrap(), &json!(format!("/{file}")));
            assert_eq!(
                (body(route, "filename"), body(route, "watched_directory/path")),
                (file, "rules".to_owned())
            );
        }
        assert_eq!(routes.len(), files.len(), "envoy/envoy.yaml");
    }

    #[test]
    fn both_files_of_envoy_give_the_service_the_same_configuration() {
        let place = "/bootstrap_extensions/0/typed_config/config/configuration/value";
        let text =
            |text| parsed(text).unwrap().pointer(place).unwrap().as_str().unwrap().to_owned();

        let [one, other] = [SHIPPED, FILE_SERVER].map(|file| rules::parse(&text(file)).unwrap());
        assert_eq!(one, other);
    }

    #[test]
    fn an_access_log_keeps_the_format_that_users_get() {
        let root = rendered(&Bootstrap { access_log: Some("log".into()), ..plain() });

        let log = root.pointer(&format!("{CONNECTION_MANAGER}/access_log/0")).unwrap();
        assert!(log.get("filter").is_none());
        assert!(log.to_string().contains("FILTER_STATE(wasm.sentinel:PLAIN)"));
    }
}
