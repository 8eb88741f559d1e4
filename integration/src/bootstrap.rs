//! Envoy's configuration for one run, made out of the one that users get.
//!
//! `envoy/envoy.yaml` is read as it stands, and only what differs from run to run is replaced: ports, the paths and
//! configurations of the modules, the access log. So every test of the product is also a test of that file.
//! Envoy reads JSON as well as YAML; the result is JSON.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::rules;

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
        let console = at(&mut root, CONSOLE)?;
        *at(console, "/address/socket_address/port_value")? = json!(self.console_port);
        self.replace_access_log(&mut root)?;
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
        let module = format!("{CONSOLE}{FILTER}/typed_config/config/vm_config/code/local/filename");
        *at(root, &module)? = json!(self.dist.join("sentinel_filter.wasm"));
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

fn remove_sentinel(root: &mut Value) -> Result<()> {
    remove(root, "bootstrap_extensions");
    remove(root, "stats_sinks");
    if let Some(listeners) = at(root, "/static_resources/listeners")?.as_array_mut() {
        listeners
            .retain(|listener| listener.get("name").is_none_or(|name| name != "sentinel_console"));
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

fn remove(root: &mut Value, field: &str) {
    if let Some(fields) = root.as_object_mut() {
        fields.remove(field);
    }
}

/// `envoy/envoy.yaml` as it stands.
fn shipped() -> Result<Value> {
    let mut documents = rules::parse(SHIPPED).context("envoy/envoy.yaml is not YAML")?;
    let Some(root) = documents.pop() else { bail!("envoy/envoy.yaml is empty") };
    Ok(root)
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
const ENDPOINT: &str =
    "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
/// The cluster that is Envoy's own admin endpoint.
pub const ADMIN_CLUSTER: &str = "sentinel_admin";
/// Where the console's listener stands in the whole.
const CONSOLE: &str = "/static_resources/listeners/1";
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
    fn an_access_log_keeps_the_format_that_users_get() {
        let root = rendered(&Bootstrap { access_log: Some("log".into()), ..plain() });

        let log = root.pointer(&format!("{CONNECTION_MANAGER}/access_log/0")).unwrap();
        assert!(log.get("filter").is_none());
        assert!(log.to_string().contains("FILTER_STATE(wasm.sentinel:PLAIN)"));
    }
}
