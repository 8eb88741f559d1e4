//! Configuration that Envoy takes from files while it runs: listeners (LDS), a filter (ECDS), routes (RDS).
//!
//! Envoy reads such a file again when something is renamed to its name, so each change is a new file and a rename:
//! whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::bootstrap::{CONNECTION_MANAGER, FILES, LISTENER, at};

/// A file of resources that Envoy follows.
#[derive(Debug)]
pub struct Discovery {
    file: PathBuf,
    version: AtomicU64,
}

impl Discovery {
    /// `file`, which does not stand there before the first [`write`](Self::write).
    #[must_use]
    pub fn at(file: PathBuf) -> Self {
        Self { file, version: AtomicU64::new(0) }
    }

    /// Where Envoy finds it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Puts these resources, all that there are, in the place of those before.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, resources: &[Value]) -> Result<()> {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let response = json!({"version_info": version.to_string(), "resources": resources});
        replace(&self.file, &response.to_string())
    }
}

/// Gives `file` these contents, all at once, by a rename: so Envoy sees it, and nobody sees half of it.
///
/// # Errors
///
/// When it cannot be written.
pub fn replace(file: &Path, contents: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    let mut name = std::ffi::OsString::from(".new-");
    name.push(file.file_name().unwrap_or_default());
    let new = file.with_file_name(name);
    fs::write(&new, contents).with_context(cannot)?;
    fs::rename(&new, file).with_context(cannot)
}

/// As Envoy is told to follow a file.
#[must_use]
pub fn source(file: &Path) -> Value {
    json!({"path_config_source": {"path": file}, "resource_api_version": "V3"})
}

/// Lets Envoy take its first listener from `discovery` instead of from its configuration `root`. Gives the listener,
/// which has not been written yet.
///
/// # Errors
///
/// When there is no listener.
pub fn discover_listener(root: &mut Value, discovery: &Discovery) -> Result<Value> {
    let mut listener = at(root, LISTENER)?.take();
    let listeners = at(root, "/static_resources/listeners")?.as_array_mut();
    listeners.context("listeners are no list")?.remove(0);
    let root = root.as_object_mut().context("the configuration is no map")?;
    root.insert("dynamic_resources".to_owned(), json!({"lds_config": source(discovery.file())}));
    typed(&mut listener, "type.googleapis.com/envoy.config.listener.v3.Listener");
    Ok(listener)
}

/// Lets Envoy take Sentinel's filter from `discovery` instead of from its configuration `root`. Gives the filter, which
/// has not been written yet.
///
/// # Errors
///
/// When there is no filter.
pub fn discover_filter(root: &mut Value, discovery: &Discovery) -> Result<Value> {
    let filter = at(root, &format!("{CONNECTION_MANAGER}/http_filters/0"))?;
    let mut found = filter.take();
    typed(&mut found, "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
    *filter = json!({
        "name": "sentinel",
        "config_discovery": {
            "config_source": source(discovery.file()),
            "type_urls": [
                "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                PASSES,
            ],
        },
    });
    Ok(found)
}

/// What a filter of `discover_filter`'s becomes when there shall be none: one that does nothing.
#[must_use]
pub fn no_filter() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "sentinel",
        "typed_config": {"@type": PASSES},
    })
}

fn typed(resource: &mut Value, name: &str) {
    if let Some(fields) = resource.as_object_mut() {
        fields.insert("@type".to_owned(), json!(name));
    }
}

/// The routes of the listener for rule files (RDS), each a path and the contents that it is answered with.
#[must_use]
pub fn direct_routes(files: &[(String, String)]) -> Value {
    let routes: Vec<_> = files
        .iter()
        .map(|(path, contents)| {
            json!({
                "match": {"path": path},
                "direct_response": {"status": 200, "body": {"inline_string": contents}},
            })
        })
        .collect();
    json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": FILES,
        "max_direct_response_body_size_bytes": 8 << 20,
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
    })
}

/// A filter of Envoy's own that, without a configuration, lets every request pass as it is.
const PASSES: &str =
    "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
