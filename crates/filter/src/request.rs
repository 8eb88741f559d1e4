//! One request as its headers are read: each read costs 1.4 to 2 µs, and so does one of all headers together. So nothing is
//! read that nobody asks for, and where a name is made of more than one header, all are read at once, and rules find theirs
//! among them.

use sentinel_core::{
    block::is_grpc,
    config::{FilterConfig, Origin},
    decimal::whole_number,
    param::{Param, ParamValue, Request, address_without_port, cookie, path_segment, query_param},
    resource::{RequestParts, ResourceFrom},
};
use sentinel_engine::worker::Outcome;
use sentinel_envoy::stream::{
    Bytes, Headers, property, request_header, response_header, response_trailer,
};

/// The request of the current callback.
pub(crate) struct Asked<'a> {
    config: &'a FilterConfig,
    /// All of its headers, if they have been read.
    headers: Option<Headers>,
    path: Option<Bytes>,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(config: &'a FilterConfig) -> Self {
        Self { config, headers: None, path: None }
    }

    /// Replaces what stands in `name` by what the request is called.
    pub(crate) fn write_name(&mut self, name: &mut Vec<u8>) {
        let resource = &self.config.resource;
        let mut parts = RequestParts::default();
        let read;
        match resource.from() {
            ResourceFrom::MethodPath => {
                let Self { headers, path, .. } = self;
                *headers = Headers::of_request();
                match headers {
                    Some(headers) => {
                        parts.method = headers.get(":method").unwrap_or_default();
                        parts.path = headers.get(":path").unwrap_or_default();
                    }
                    None => {
                        read = request_header(":method").unwrap_or_default();
                        parts.method = &read;
                        parts.path = path.insert(request_header(":path").unwrap_or_default());
                    }
                }
            }
            ResourceFrom::Path => parts.path = self.path_bytes(),
            ResourceFrom::Authority => {
                read = request_header(":authority").unwrap_or_default();
                parts.authority = &read;
            }
            ResourceFrom::Route => {
                read = property("xds\0route_name").unwrap_or_default();
                parts.route = &read;
            }
            ResourceFrom::Cluster => {
                read = property("xds\0cluster_name").unwrap_or_default();
                parts.cluster = &read;
            }
            ResourceFrom::Header(from) => {
                read = request_header(from).unwrap_or_default();
                parts.header = Some(&read);
            }
        }
        resource.write_name(&parts, name);
    }

    fn path_bytes(&mut self) -> &[u8] {
        match &self.headers {
            Some(headers) => headers.get(":path").unwrap_or_default(),
            None => self.path.get_or_insert_with(|| request_header(":path").unwrap_or_default()),
        }
    }

    fn header(&self, name: &str) -> Option<Vec<u8>> {
        match &self.headers {
            Some(headers) => headers.get(name).map(<[u8]>::to_vec),
            None => request_header(name).map(Vec::from),
        }
    }

    /// Whether the client speaks gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.header("content-type").unwrap_or_default())
    }
}

impl Request for Asked<'_> {
    fn param(&mut self, param: &Param) -> Option<ParamValue> {
        let bytes = match param {
            Param::Header(name) => self.header(name),
            Param::Query(name) => query_param(self.path_bytes(), name),
            Param::Cookie(name) => cookie(&self.header("cookie")?, name),
            Param::ClientIp => client_ip(),
            Param::PathSegment(number) => path_segment(self.path_bytes(), *number),
            Param::Sni => property("connection\0requested_server_name").map(Vec::from),
            Param::FilterChain => property("xds\0filter_chain_name").map(Vec::from),
            Param::Attachment(_) => None,
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
        match &self.config.origin {
            Some(Origin::Header(name)) => self.header(name).unwrap_or_default(),
            Some(Origin::ClientIp) => client_ip().unwrap_or_default(),
            None => Vec::new(),
        }
    }

    fn path(&mut self) -> Vec<u8> {
        self.path_bytes().to_vec()
    }
}

/// The client's address, which Envoy takes from `x-forwarded-for` only as far as it trusts that.
fn client_ip() -> Option<Vec<u8>> {
    property("source\0address").map(|address| address_without_port(&address).to_vec())
}

/// How the request of the current callback has ended: no status where there was no response, because of a reset. A reply
/// of Envoy's own, such as 503 or 504, is a response.
pub(crate) fn outcome() -> Outcome {
    let number = |bytes: Bytes| whole_number::<u16>(&*bytes);
    let grpc = response_trailer("grpc-status").or_else(|| response_header("grpc-status"));
    Outcome {
        http_status: response_header(":status").and_then(number),
        grpc_status: grpc.and_then(number).map(u32::from),
    }
}
