//! What clients send.

use std::net::{Ipv4Addr, Ipv6Addr};

use sentinel_core::{
    block::push_escaped,
    decimal,
    message::{Chunk, Framing, MessageReader, Unreadable},
    network::{Address, Network},
    param::{Param, ParamValue, address_without_port, cookie, path_segment, query_param},
    pattern::{Pattern, Patterns, ant_matches},
    resource::{
        NAME_BYTES_LIMIT, RequestParts, ResourceConfig, ResourceFrom, Template, metric_segment,
    },
};

use super::holds;

/// The part of `bytes` before the first line break, and what follows it.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (first, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
    (first, rest.get(1..).unwrap_or_default())
}

/// The first line is what an operator named, the rest is what a client sent.
pub(super) fn request(bytes: &[u8]) -> Result<(), String> {
    let (operator, client) = split(bytes);
    let operator = String::from_utf8_lossy(operator);
    Param::parse(&operator);
    let found = [
        query_param(client, &operator),
        cookie(client, &operator),
        path_segment(client, 1),
        path_segment(client, u32::try_from(operator.len()).unwrap_or(0)),
        Some(address_without_port(client).to_vec()),
    ];
    for value in found.into_iter().flatten() {
        holds(value.len() <= client.len(), || {
            format!("{value:?} is longer than all that was sent")
        })?;
        let mut key = Vec::new();
        ParamValue::Bytes(value).write_key(&mut key);
    }
    let templates = operator.split(' ').filter_map(|text| Template::parse(text).ok()).collect();
    let parts = RequestParts {
        method: b"GET",
        path: client,
        authority: client,
        route: client,
        cluster: client,
        header: Some(client),
    };
    let from = [
        ResourceFrom::Path,
        ResourceFrom::Authority,
        ResourceFrom::Header("x".into()),
        ResourceFrom::MethodPath,
    ];
    let mut named = ResourceConfig::new(ResourceFrom::MethodPath, templates);
    for from in from {
        let mut name = vec![b'x'; 3];
        named.write_name(&parts, &mut name);
        let most = usize::try_from(NAME_BYTES_LIMIT).unwrap_or(usize::MAX) + 1;
        holds(name.len() <= most, || format!("a name of {} bytes", name.len()))?;
        named = ResourceConfig::new(from, Vec::new());
    }
    Ok(())
}

/// The first line is a pattern, each further one a name.
pub(super) fn pattern(bytes: &[u8]) -> Result<(), String> {
    let (text, names) = split(bytes);
    let names = names.get(..4_096).unwrap_or(names);
    // Checked to be a piece of memory's worth: it takes |pattern| × |name| steps.
    let ant = text.get(..256).unwrap_or(text);
    for name in names.split(|byte| *byte == b'\n') {
        ant_matches(ant, name);
    }
    holds(ant_matches(b"/**", b"/a/b"), || "/** matches no path".to_owned())?;
    let Ok(text) = core::str::from_utf8(text) else { return Ok(()) };
    let (Ok(alone), Ok(listed)) = (Pattern::new(text), Pattern::new(text)) else { return Ok(()) };
    let mut patterns = Patterns::default();
    patterns.add(7, listed);
    patterns.link();
    for name in names.split(|byte| *byte == b'\n').take(16) {
        let name = name.get(..1_024).unwrap_or(name);
        let mut found = Vec::new();
        patterns.matching(name, &mut found);
        let is_found = found == [7];
        let matches = alone.matches(name);
        holds(is_found == matches, || {
            format!("{text:?} matches {name:?}: {matches} alone, {is_found} among patterns")
        })?;
        holds(!matches || patterns.may_match(name), || {
            format!("{text:?} matches {name:?}, but may not")
        })?;
    }
    Ok(())
}

/// The first line is a network, the second an address.
pub(super) fn network(bytes: &[u8]) -> Result<(), String> {
    let (network, address) = split(bytes);
    for text in [network, address] {
        let ours = Address::parse(text).is_some();
        let theirs = is_address(text);
        holds(ours == theirs, || {
            let text = String::from_utf8_lossy(text);
            format!("{text:?} is an address: {ours}, but for the standard library {theirs}")
        })?;
    }
    let Ok(text) = core::str::from_utf8(network) else { return Ok(()) };
    let Some(Ok(network)) = Network::parse(text) else { return Ok(()) };
    if let Some(address) = Address::parse(address) {
        network.contains(address);
    }
    let first = text.split('/').next().unwrap_or_default();
    let Some(first) = Address::parse(first.as_bytes()) else {
        return Err(format!("{text:?} is a network, but has no address"));
    };
    holds(network.contains(first), || format!("{text:?} does not contain its own address"))
}

/// As the standard library has it, but for a zone (`fe80::1%eth0`), which it does not know and which may be any bytes.
fn is_address(text: &[u8]) -> bool {
    let is_v6 = text.contains(&b':');
    let address = if is_v6 { text.split(|byte| *byte == b'%').next() } else { Some(text) };
    let address = address.and_then(|address| core::str::from_utf8(address).ok()).unwrap_or("");
    if is_v6 { address.parse::<Ipv6Addr>().is_ok() } else { address.parse::<Ipv4Addr>().is_ok() }
}

/// A piece of a stream.
struct Piece<'a> {
    bytes: &'a [u8],
    looked_at: usize,
}

impl Chunk for Piece<'_> {
    fn size(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    fn byte(&mut self, at: u64) -> Option<u8> {
        self.looked_at += 1;
        self.bytes.get(usize::try_from(at).ok()?).copied()
    }
}

/// The first byte says how the rest is cut.
pub(super) fn messages(bytes: &[u8]) -> Result<(), String> {
    let Some((how, stream)) = bytes.split_first() else { return Ok(()) };
    Framing::of(stream, stream);
    let framing = if how & 1 == 0 { Framing::Grpc } else { Framing::WebSocket };
    let unreadable = |Unreadable| "a byte that is there could not be read".to_owned();
    let mut whole = MessageReader::new(framing);
    let mut piece = Piece { bytes: stream, looked_at: 0 };
    let at_once = whole.feed(&mut piece).map_err(unreadable)?;
    holds(piece.looked_at <= stream.len(), || {
        format!("{} looks at {} bytes", piece.looked_at, stream.len())
    })?;
    let mut reader = MessageReader::new(framing);
    let mut in_pieces = 0;
    for bytes in stream.chunks(usize::from(how >> 1).max(1)) {
        in_pieces += reader.feed(&mut Piece { bytes, looked_at: 0 }).map_err(unreadable)?;
    }
    holds(at_once == in_pieces && whole == reader, || {
        format!("{at_once} messages at once, {in_pieces} in pieces")
    })
}

pub(super) fn number(bytes: &[u8]) -> Result<(), String> {
    if let Some(chunk) = bytes.first_chunk() {
        let number = f64::from_le_bytes(*chunk);
        let text = decimal::text(number);
        let read = decimal::parse(&text);
        let is_same = read == Some(number) || !number.is_finite();
        holds(is_same, || format!("{number:e} is written as {text} and read as {read:?}"))?;
    }
    let Ok(text) = core::str::from_utf8(bytes) else { return Ok(()) };
    decimal::whole_number::<u32>(text);
    let ours = decimal::parse(text);
    let theirs = text
        .parse::<f64>()
        .ok()
        .filter(|_| !text.bytes().any(|byte| matches!(byte, b'n' | b'N' | b'i' | b'I')));
    holds(ours == theirs, || format!("{text:?} is read as {ours:?} instead of {theirs:?}"))
}

pub(super) fn reply(bytes: &[u8]) -> Result<(), String> {
    let mut segment = String::new();
    metric_segment(bytes, &mut segment);
    let is_plain =
        segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:/-%".contains(&byte));
    holds(is_plain, || format!("the segment {segment:?} forges a label"))?;
    let mut json = Vec::new();
    push_escaped(&mut json, bytes);
    let is_whole = core::str::from_utf8(&json).is_ok_and(|json| {
        let mut escaped = false;
        json.chars().all(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            !ends && c >= ' '
        }) && !escaped
    });
    holds(is_whole, || format!("{} is no text of JSON", json.escape_ascii()))
}
