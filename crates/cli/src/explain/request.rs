//! The request that is asked about, as the filter would read it from Envoy.

use sentinel_core::{
    block::is_grpc,
    config::{FilterConfig, Origin},
    param::{Param, ParamValue, Request, cookie, path_segment, query_param},
    resource::{RequestParts, ResourceFrom},
};

use super::Options;

/// A request of the command line.
#[derive(Clone, Debug)]
pub(super) struct Described<'a> {
    config: &'a FilterConfig,
    pub(super) method: String,
    pub(super) path: String,
    /// By names in lower case, in the order in which they were given.
    pub(super) headers: Vec<(String, String)>,
    client_ip: Option<String>,
    route: Option<String>,
    cluster: Option<String>,
}

impl<'a> Described<'a> {
    /// The request that `options` describe, or what is wrong with it and what would do.
    pub(super) fn new(options: &Options, config: &'a FilterConfig) -> Result<Self, String> {
        let (method, path) = method_and_path(&options.request)?;
        let mut headers = Vec::new();
        for header in &options.headers {
            headers.push(name_and_value(header)?);
        }
        Ok(Self {
            config,
            method,
            path,
            headers,
            client_ip: options.client_ip.clone(),
            route: options.route.clone(),
            cluster: options.cluster.clone(),
        })
    }

    /// What the filter calls it; empty if there is nothing to call it by.
    pub(super) fn resource(&self) -> Vec<u8> {
        let header = match self.config.resource.from() {
            ResourceFrom::Header(name) => self.header(name),
            ResourceFrom::MethodPath
            | ResourceFrom::Path
            | ResourceFrom::Route
            | ResourceFrom::Cluster
            | ResourceFrom::Authority => None,
        };
        let parts = RequestParts {
            method: self.method.as_bytes(),
            path: self.path.as_bytes(),
            authority: self.header(":authority").unwrap_or_default().as_bytes(),
            route: self.route.as_deref().unwrap_or_default().as_bytes(),
            cluster: self.cluster.as_deref().unwrap_or_default().as_bytes(),
            header: header.map(str::as_bytes),
        };
        let mut name = Vec::new();
        self.config.resource.write_name(&parts, &mut name);
        name
    }

    /// How the filter names requests, in the words of its configuration, and what to say if this one has no name.
    pub(super) fn named_by(&self) -> (String, &'static str) {
        match self.config.resource.from() {
            ResourceFrom::MethodPath => ("method_path".to_owned(), ""),
            ResourceFrom::Path => ("path".to_owned(), ""),
            ResourceFrom::Route => ("route".to_owned(), "say its route with `--route NAME`"),
            ResourceFrom::Cluster => {
                ("cluster".to_owned(), "say its cluster with `--cluster NAME`")
            }
            ResourceFrom::Authority => {
                ("authority".to_owned(), "say its host with `-H 'host: NAME'`")
            }
            ResourceFrom::Header(name) => {
                (format!("header {name}"), "give it that header with `-H`")
            }
        }
    }

    /// Where the filter reads who calls.
    pub(super) fn called_by(&self) -> String {
        match &self.config.origin {
            None => "the filter has no `origin`".to_owned(),
            Some(Origin::Header(name)) => format!("header {name}"),
            Some(Origin::ClientIp) => "client_ip".to_owned(),
        }
    }

    pub(super) fn is_grpc(&self) -> bool {
        is_grpc(self.header("content-type").unwrap_or_default().as_bytes())
    }

    /// The first header of this name, as Envoy gives it to a filter. HTTP/1 calls `:authority` `host`.
    fn header(&self, name: &str) -> Option<&str> {
        let name = if name == "host" { ":authority" } else { name };
        match name {
            ":method" => return Some(&self.method),
            ":path" => return Some(&self.path),
            _ => {}
        }
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Request for Described<'_> {
    fn param(&mut self, param: &Param) -> Option<ParamValue> {
        let path = self.path.as_bytes();
        let bytes = match param {
            Param::Header(name) => self.header(name).map(|value| value.as_bytes().to_vec()),
            Param::Query(name) => query_param(path, name),
            Param::Cookie(name) => cookie(self.header("cookie")?.as_bytes(), name),
            Param::ClientIp => self.client_ip.as_ref().map(|address| address.clone().into_bytes()),
            Param::PathSegment(number) => path_segment(path, *number),
            Param::Attachment(_) | Param::Sni | Param::FilterChain => None,
        };
        bytes.map(ParamValue::Bytes)
    }

    fn arg(&mut self, index: i32) -> Option<ParamValue> {
        let args = &self.config.args;
        let distance = usize::try_from(index.unsigned_abs()).ok()?;
        let place = if index < 0 { args.len().checked_sub(distance)? } else { distance };
        self.param(args.get(place)?)
    }

    fn origin(&mut self) -> Vec<u8> {
        let origin = match &self.config.origin {
            Some(Origin::Header(name)) => self.header(name),
            Some(Origin::ClientIp) => self.client_ip.as_deref(),
            None => None,
        };
        origin.unwrap_or_default().as_bytes().to_vec()
    }

    fn path(&mut self) -> Vec<u8> {
        self.path.clone().into_bytes()
    }
}

fn method_and_path(text: &str) -> Result<(String, String), String> {
    const EXAMPLE: &str = "write a method and a path, such as 'GET /hello?user=7'";

    let words: Vec<&str> = text.split_whitespace().collect();
    let (method, path) = match words[..] {
        [method, path] => (method, path),
        [method, path, version] if version.starts_with("HTTP/") => (method, path),
        [one] => return Err(format!("`{one}` is no request: {EXAMPLE}")),
        [] => return Err(format!("there is no request: {EXAMPLE}")),
        _ => {
            return Err(format!(
                "`{text}` is more than a request: {EXAMPLE}, with %20 for a space"
            ));
        }
    };
    if !method
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte))
    {
        return Err(format!("`{method}` is no method: {EXAMPLE}"));
    }
    if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let capitals = method.to_ascii_uppercase();
        return Err(format!(
            "`{method}` is no method: methods are in capitals, so write {capitals}"
        ));
    }
    if path.contains("://") && !path.starts_with('/') {
        return Err(format!(
            "`{path}` is a whole address: write its path, and the host as -H 'host: …'"
        ));
    }
    if !path.starts_with('/') && path != "*" {
        return Err(format!("`{path}` is no path: it must begin with a slash"));
    }
    Ok((method.to_owned(), path.to_owned()))
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    const EXAMPLE: &str = "write a name, a colon and a value, such as 'x-user: 7'";

    // Envoy's own begin with a colon.
    let after = usize::from(text.starts_with(':'));
    let colon = text.get(after..).and_then(|rest| rest.find(':')).map(|at| at + after);
    let Some((name, value)) = colon.and_then(|at| text.split_at_checked(at)) else {
        return Err(format!("`{text}` is no header: {EXAMPLE}"));
    };
    let name = name.trim().to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte);
    if name.trim_start_matches(':').is_empty() || !name.bytes().skip(after).all(is_token) {
        return Err(format!("`{text}` is no header: {EXAMPLE}"));
    }
    if matches!(name.as_str(), ":method" | ":path") {
        return Err(format!("`{name}` stands in the request itself: leave the header out"));
    }
    let name = if name == "host" { ":authority".to_owned() } else { name };
    let value = value.strip_prefix(':').unwrap_or(value).trim().to_owned();
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_none_says_what_would_do() {
        for (text, problem) in [
            ("", "there is no request: write a method"),
            (
                "/hello",
                "`/hello` is no request: write a method and a path, such as 'GET /hello?user=7'",
            ),
            ("GET /a b", "with %20 for a space"),
            ("get /hello", "methods are in capitals, so write GET"),
            ("G(T /hello", "`G(T` is no method"),
            ("GET hello", "`hello` is no path: it must begin with a slash"),
            ("GET http://shop.example/hello", "write its path, and the host as -H"),
        ] {
            let said = method_and_path(text).unwrap_err();
            assert!(said.contains(problem), "{text}: {said}");
        }
        for text in
            ["GET /hello", "GET /hello HTTP/1.1", " OPTIONS  * ", "GET /hello?next=http://x"]
        {
            assert!(method_and_path(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_header_that_is_none_says_what_would_do() {
        for (text, problem) in [
            ("x-user", "is no header: write a name"),
            (": 7", "is no header"),
            ("x user: 7", "is no header"),
            (":path: /x", "`:path` stands in the request itself"),
            ("", "is no header"),
        ] {
            let said = name_and_value(text).unwrap_err();
            assert!(said.contains(problem), "{text}: {said}");
        }
        let of = |text| name_and_value(text).unwrap();
        assert_eq!(of("X-User:  a:b "), ("x-user".into(), "a:b".into()));
        assert_eq!(of("Host: shop"), (":authority".into(), "shop".into()));
        assert_eq!(of(":authority: shop"), (":authority".into(), "shop".into()));
        assert_eq!(of("x-empty:"), ("x-empty".into(), String::new()));
    }
}
