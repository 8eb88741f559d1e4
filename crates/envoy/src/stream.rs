//! What the shells ask of Envoy about one stream or one plugin, and make it do.
//!
//! Everything that a client sent is bytes, and nothing here can panic.

use core::mem;

use sentinel_core::resource::is_same;
use sentinel_engine::host::HostError;

use crate::ffi;
pub use crate::ffi::Bytes;

/// A request header.
pub fn request_header(name: &str) -> Option<Bytes> {
    ffi::header(0, name)
}

/// A response header; none before the response has arrived, nor where there was none.
pub fn response_header(name: &str) -> Option<Bytes> {
    ffi::header(2, name)
}

/// A response trailer.
pub fn response_trailer(name: &str) -> Option<Bytes> {
    ffi::header(3, name)
}

/// All headers of a request, as they were when they were read.
#[derive(Debug)]
pub struct Headers(Bytes);

impl Headers {
    /// Reads them: what takes a call for each header one by one takes one for all. `None` where Envoy refuses it.
    pub fn of_request() -> Option<Self> {
        ffi::headers(0).map(Self)
    }

    /// The first header of this name, in lower case. As where Envoy is asked for one alone, `host` is `:authority`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let name = if name == "host" { ":authority" } else { name };
        // The number of headers, the lengths of each one's name and value, then all names and values with a NUL behind each.
        let (words, _) = self.0.as_chunks::<4>();
        let (count, lengths) = words.split_first()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let mut start = count.checked_mul(8)?.checked_add(4)?;
        for lengths in lengths.as_chunks::<2>().0.iter().take(count) {
            let [of_name, of_value] = *lengths;
            let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).ok();
            let (of_name, of_value) = (length(of_name)?, length(of_value)?);
            let value = start.checked_add(of_name)?.checked_add(1)?;
            let end = value.checked_add(of_value)?;
            if of_name == name.len() && is_same(self.0.get(start..value - 1)?, name.as_bytes()) {
                return self.0.get(value..end);
            }
            start = end.checked_add(1)?;
        }
        None
    }
}

/// Whether the current stream comes in: `xds.listener_direction` is anything but OUTBOUND.
pub fn is_inbound() -> bool {
    const OUTBOUND: [u8; 8] = 2_u64.to_le_bytes();
    property("xds\0listener_direction").as_deref() != Some(OUTBOUND.as_slice())
}

/// A property, by its path as Envoy documents its attributes, but with a NUL for each dot (`xds\0route_name`).
pub fn property(path: &str) -> Option<Bytes> {
    ffi::property(path.as_bytes())
}

/// Puts `value` into the stream's filter state, as `wasm.<name>`.
///
/// # Errors
///
/// Envoy's status where it refuses, as for a name that is taken.
pub fn set_filter_state(name: &str, value: &[u8]) -> Result<(), HostError> {
    ffi::set_property(name.as_bytes(), value)
}

/// Leaves a mark on the current stream, for every filter of its chain in whatever VM, but for no filter of a stream that an
/// internal redirect makes of it.
pub fn mark(name: &[u8]) {
    // Refused where it is there already.
    let _ = ffi::set_property(&of_mark(name), b"1");
}

/// Whether the current stream carries this mark.
pub fn is_marked(name: &[u8]) -> bool {
    ffi::property(&of_mark(name)).is_some()
}

fn of_mark(name: &[u8]) -> Vec<u8> {
    [b"sentinel>", name].concat()
}

/// Whether Envoy knows the context `other`, in a callback of the context `current`.
pub fn lives(other: u32, current: u32) -> bool {
    ffi::set_effective_context(other).is_ok() && ffi::set_effective_context(current).is_ok()
}

/// The VM's configuration as Envoy gave it. Only in `on_vm_start`, which names its size.
pub fn vm_configuration(size: usize) -> Vec<u8> {
    const VM_CONFIGURATION: u32 = 6;
    buffer(VM_CONFIGURATION, size)
}

/// The plugin's configuration as Envoy gave it. Only in `on_configure`, which names its size.
pub fn plugin_configuration(size: usize) -> Vec<u8> {
    const PLUGIN_CONFIGURATION: u32 = 7;
    buffer(PLUGIN_CONFIGURATION, size)
}

fn buffer(buffer: u32, size: usize) -> Vec<u8> {
    if size == 0 {
        return Vec::new();
    }
    ffi::buffer(buffer, 0, size).unwrap_or_default().into()
}

/// Arms the timer of the root context that the current callback belongs to.
///
/// # Errors
///
/// Envoy's status where it refuses.
pub fn set_tick_period(period_ms: u32) -> Result<(), HostError> {
    ffi::set_tick_period(period_ms)
}

/// Arms the timer of the root context `root`, in a callback of the context `current`.
///
/// # Errors
///
/// Envoy's status where it refuses: there is no such root any more.
pub fn set_tick_period_of(root: u32, period_ms: u32, current: u32) -> Result<(), HostError> {
    ffi::set_effective_context(root)?;
    let set = ffi::set_tick_period(period_ms);
    ffi::set_effective_context(current)?;
    set
}

/// Lets the paused request `stream` go on, in a callback of the context `current`.
///
/// # Errors
///
/// Envoy's status where it refuses: there is no such stream any more.
pub fn resume_request(stream: u32, current: u32) -> Result<(), HostError> {
    ffi::set_effective_context(stream)?;
    let resumed = ffi::continue_request();
    ffi::set_effective_context(current)?;
    resumed
}

/// Lets the paused connection `stream` go on, in a callback of the context `current`.
///
/// # Errors
///
/// Envoy's status where it refuses: there is no such connection any more.
pub fn resume_connection(stream: u32, current: u32) -> Result<(), HostError> {
    ffi::set_effective_context(stream)?;
    let resumed = ffi::continue_downstream();
    ffi::set_effective_context(current)?;
    resumed
}

/// Closes the connection `stream` towards its client, in a callback of the context `current`.
///
/// # Errors
///
/// Envoy's status where it refuses: there is no such connection any more.
pub fn close_connection(stream: u32, current: u32) -> Result<(), HostError> {
    if stream == current {
        return ffi::close_downstream();
    }
    ffi::set_effective_context(stream)?;
    let closed = ffi::close_downstream();
    ffi::set_effective_context(current)?;
    closed
}

/// Replaces what the upstream has sent, in the callback that tells of it.
///
/// # Errors
///
/// Envoy's status where it refuses.
pub fn replace_upstream_data(value: &[u8]) -> Result<(), HostError> {
    const UPSTREAM_DATA: u32 = 3;
    ffi::replace_buffer(UPSTREAM_DATA, value)
}

/// Lets the TCP proxy take the current connection to `cluster` instead of the one in its own configuration. Only before
/// it has begun to.
///
/// # Errors
///
/// Envoy's status where it refuses.
pub fn route_connection(cluster: &str) -> Result<(), HostError> {
    // SetEnvoyFilterStateArguments: path, value, and the span DownstreamConnection, which is 2.
    let mut argument = Vec::new();
    for (tag, text) in [(0x0a, "envoy.tcp_proxy.cluster"), (0x12, cluster)] {
        argument.push(tag);
        let mut size = text.len();
        while size > 0x7f {
            argument.push(size.to_le_bytes()[0] | 0x80);
            size >>= 7;
        }
        argument.push(size.to_le_bytes()[0]);
        argument.extend_from_slice(text.as_bytes());
    }
    argument.extend_from_slice(&[0x18, 2]);
    ffi::call_foreign("set_envoy_filter_state", &argument)
}

/// A property that is a whole number.
pub fn number(path: &str) -> Option<u64> {
    property(path)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Asks `cluster` for `path`, with these headers besides those that make a GET. The answer is a callback of the current
/// context that names the number given here, within `timeout_ms`.
///
/// # Errors
///
/// Envoy's status where it refuses: it knows no such cluster.
pub fn http_get(
    cluster: &str,
    authority: &str,
    path: &str,
    headers: &[(&str, &[u8])],
    timeout_ms: u32,
) -> Result<u32, HostError> {
    let mut all: Vec<(&str, &[u8])> = Vec::from([
        (":method", b"GET".as_slice()),
        (":path", path.as_bytes()),
        (":authority", authority.as_bytes()),
    ]);
    all.extend_from_slice(headers);
    ffi::http_call(cluster, &map(&all), timeout_ms)
}

/// The status that a call of ours was answered with; 0 if it is none. Only in the callback that brings the answer.
pub fn http_call_status() -> u16 {
    let status = ffi::header(CALL_HEADERS, ":status").unwrap_or_default();
    core::str::from_utf8(&status).ok().and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// A header that a call of ours was answered with. Only in the callback that brings the answer.
pub fn http_call_header(name: &str) -> Option<Bytes> {
    ffi::header(CALL_HEADERS, name)
}

/// The body of `size` bytes that a call of ours was answered with. Only in the callback that names the size.
pub fn http_call_body(size: usize) -> Vec<u8> {
    const CALL_BODY: u32 = 4;
    buffer(CALL_BODY, size)
}

/// Up to `size` bytes of the request's body, from `start` on. Only in the callback that brings them.
pub fn request_body(start: usize, size: usize) -> Option<Bytes> {
    const REQUEST_BODY: u32 = 0;
    ffi::buffer(REQUEST_BODY, start, size)
}

const CALL_HEADERS: u32 = 6;

/// A reply instead of the upstream's.
#[derive(Debug)]
pub struct LocalReply<'a> {
    /// HTTP status, for clients that do not speak gRPC.
    pub status: u16,
    /// What access logs show as `%RESPONSE_CODE_DETAILS%`; without spaces.
    pub details: &'a [u8],
    /// Names and values, as [`map`] has them.
    pub headers: &'a [u8],
    /// The body; for gRPC clients the message.
    pub body: &'a [u8],
    /// What gRPC clients get: Envoy decides by the request's content type.
    pub grpc_status: u32,
}

impl LocalReply<'_> {
    /// Sends it when the callback has returned.
    ///
    /// # Errors
    ///
    /// Envoy's status where it refuses.
    pub fn send(&self) -> Result<(), HostError> {
        let grpc_status = i32::try_from(self.grpc_status).unwrap_or(-1);
        ffi::send_local_response(
            u32::from(self.status),
            self.details,
            self.body,
            self.headers,
            grpc_status,
        )
    }
}

/// Names and values in proxy-wasm's form.
pub fn map(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_map(&mut bytes, pairs, &[]);
    bytes
}

/// Appends `pairs` and then `more` in proxy-wasm's form of a map: the number of pairs, all lengths, then all bytes with a
/// NUL behind each.
pub fn push_map(bytes: &mut Vec<u8>, pairs: &[(&str, &[u8])], more: &[(String, String)]) {
    let start = bytes.len();
    let count = pairs.len() + more.len();
    // Two lengths and two NULs for each pair.
    let mut end = start + 4 + count * 10;
    for (name, value) in pairs {
        end += name.len() + value.len();
    }
    for (name, value) in more {
        end += name.len() + value.len();
    }
    // Zeros, so that each NUL stands; `resize` would write them one by one.
    while bytes.len() < end {
        bytes.extend_from_slice(&[0; 64]);
    }
    bytes.truncate(end);
    let Some((place, rest)) = bytes.get_mut(start..).and_then(<[u8]>::split_first_chunk_mut) else {
        return;
    };
    *place = length(count).to_le_bytes();
    let (lengths, texts) = rest.split_at_mut_checked(count * 8).unwrap_or_default();
    let (mut lengths, mut texts) = (lengths.as_chunks_mut().0.iter_mut(), texts);
    let mut put = |name: &str, value: &[u8]| {
        if let Some(place) = lengths.next() {
            let both = u64::from(length(name.len())) | u64::from(length(value.len())) << 32;
            *place = both.to_le_bytes();
        }
        put_text(&mut texts, name.as_bytes());
        put_text(&mut texts, value);
    };
    for (name, value) in pairs {
        put(name, value);
    }
    for (name, value) in more {
        put(name, value.as_bytes());
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(0)
}

/// Writes `text` where `rest` begins, and passes over the NUL behind it.
fn put_text(rest: &mut &mut [u8], text: &[u8]) {
    let (place, behind) = mem::take(rest).split_at_mut_checked(text.len()).unwrap_or_default();
    if place.len() == text.len() {
        place.copy_from_slice(text);
    }
    *rest = behind.get_mut(1..).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_its_size_then_all_lengths_then_all_texts() {
        let mut bytes = b"before".to_vec();
        let own = [(String::from("c"), String::new())];
        push_map(&mut bytes, &[("name", b"value"), ("", b"b")], &own);
        let lengths = [3, 4, 5, 0, 1, 1, 0].map(|length: u32| length.to_le_bytes());
        assert_eq!(bytes, [b"before", lengths.as_flattened(), b"name\0value\0\0b\0c\0\0"].concat());
        assert_eq!(map(&[]), [0; 4]);
    }
}
