//! What clients and upstreams send: what rules speak of, and what nobody should send.

use fastrand::Rng;

/// Names and values.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A request and what becomes of it, or a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchange {
    pub(super) request: Pairs,
    pub(super) response: Pairs,
    pub(super) trailers: Pairs,
    /// The bytes at hand.
    pub(super) body: Vec<u8>,
    pub(super) properties: Pairs,
}

/// The paths that rules of the run speak of, and some that none does.
const PATHS: [&str; 24] = [
    "/hello",
    "/shadowed",
    "/blocked",
    "/mail",
    "/catalog",
    "/export",
    "/orders/list",
    "/orders/create",
    "/pay",
    "/quote",
    "/stock",
    "/staff",
    "/public",
    "/profile?user=7",
    "/list?page=3&page=4",
    "/download",
    "/render",
    "/tenants/a/report",
    "/partners",
    "/storefront/x/y",
    "/v7/storefront",
    "/teams",
    "/chat.Chat/Talk",
    "/socket",
];

impl Exchange {
    /// A request, with its answer.
    pub(super) fn request(random: &mut Rng) -> Self {
        let mut exchange = Self { properties: properties(random), ..Self::default() };
        let mut put = |name: &str, value: Option<Vec<u8>>| {
            exchange.request.extend(value.map(|value| (name.into(), value)));
        };
        put(":method", Some(if random.u32(0..10) > 0 { "GET".into() } else { field(random) }));
        put(":path", path(random));
        put(":authority", some(random, |random| one_of(random, &["a.test", "b.test:8080", ""])));
        put("x-user", some(random, |random| random.u32(..).to_string().into()));
        put("x-team", some(random, |random| one_of(random, &["team-a", "team-b", "other"])));
        put(
            "x-origin",
            some(random, |random| one_of(random, &["shop", "crawler", "back-office", ""])),
        );
        put("x-tenant", some(random, field));
        put(
            "cookie",
            some(random, |random| [b"a=b; sid=".to_vec(), field(random), b"; c".to_vec()].concat()),
        );
        put(
            "content-type",
            some(random, |random| {
                one_of(random, &["application/grpc", "application/grpc+proto", "application/json"])
            }),
        );
        put("upgrade", some(random, |random| one_of(random, &["websocket", "WebSocket", "h2c"])));
        exchange
    }

    /// The answer arrives, if there is one.
    pub(super) fn answer(&mut self, random: &mut Rng) {
        self.body.clear();
        self.response.clear();
        self.trailers.clear();
        if random.u32(0..8) == 0 {
            return;
        }
        let status = one_of(
            random,
            &["200", "200", "404", "500", "503", "429", "", "abc", "99999999999999999999"],
        );
        self.response.push((b":status".into(), status));
        if random.u32(0..4) == 0 {
            let status = one_of(random, &["0", "14", "8", "-1", "x"]);
            let to = if random.bool() { &mut self.trailers } else { &mut self.response };
            to.push((b"grpc-status".into(), status));
        }
        if random.u32(0..4) == 0 {
            self.response.push((b"x-sentinel-block".into(), b"FlowControl".into()));
        }
    }

    /// A connection.
    pub(super) fn connection(random: &mut Rng) -> Self {
        Self { properties: properties(random), ..Self::default() }
    }

    /// The answer of a server of rules, or of Envoy's admin endpoint.
    pub(super) fn call_answer(random: &mut Rng, body: Vec<u8>) -> Self {
        let mut exchange = Self { body, ..Self::default() };
        exchange.response.push((
            b":status".into(),
            one_of(random, &["200", "200", "200", "304", "404", "503", "2"]),
        ));
        if random.bool() {
            exchange.response.push((b"etag".into(), field(random)));
        }
        exchange
    }
}

/// Bytes of a body: whole frames, pieces of some, and anything.
pub(super) fn body(random: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.u32(0..20) {
        let length = random.u8(0..60);
        match random.u32(0..4) {
            0 => bytes.extend([0, 0, 0, 0, length]),
            1 => bytes.extend([0x82, length]),
            2 => bytes.extend([0x81, 0x80 | length, 1, 2, 3, 4]),
            _ => bytes.extend(odd(random)),
        }
        bytes.extend(core::iter::repeat_n(0x55, usize::from(length)));
    }
    bytes
}

fn path(random: &mut Rng) -> Option<Vec<u8>> {
    match random.u32(0..20) {
        0 => None,
        1 => Some(field(random)),
        2 => Some([b"/".to_vec(), field(random), b"?".to_vec(), field(random)].concat()),
        // Each of them another resource.
        3 => Some(format!("/never/seen/{}", random.u32(..)).into_bytes()),
        4 => Some(format!("/users/{}/orders", random.u32(0..1_000)).into_bytes()),
        5 => Some(format!("/tenants/{}/report", char::from(random.u8(b'a'..=b'z'))).into_bytes()),
        6 => Some(format!("/profile?user={}", random.u32(..)).into_bytes()),
        _ => Some(one_of(random, &PATHS)),
    }
}

/// What no client should send, but may: Envoy's codecs let no line break and no NUL into a header.
fn field(random: &mut Rng) -> Vec<u8> {
    let mut value = odd(random);
    value.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
    value
}

/// What nobody should send: no text, nothing, too much, parts of what others mean something by.
pub(super) fn odd(random: &mut Rng) -> Vec<u8> {
    match random.u32(0..8) {
        0 => Vec::new(),
        1 => vec![0xff; random.usize(1..9)],
        2 if random.u32(0..20) == 0 => vec![b'x'; 60_000],
        2 => vec![b'/'; random.usize(1..300)],
        3 => b"\r\nx-sentinel-forged: 1\n".to_vec(),
        4 => "wasmcustom.sentinel.type.x.é\u{202e}\"\\".into(),
        5 => b"%00%zz%2f..//;a=b&c=&&=?#".to_vec(),
        _ => (0..random.usize(0..24)).map(|_| random.u8(..)).collect(),
    }
}

fn properties(random: &mut Rng) -> Pairs {
    let mut all = Pairs::new();
    let mut put =
        |path: &str, value: Vec<u8>| all.push((path.replace('.', "\0").into_bytes(), value));
    let address = match random.u32(0..6) {
        0 => odd(random),
        1 => "[2001:db8::7]:4711".into(),
        _ => format!("10.{}.{}.7:4711", random.u8(0..3), random.u8(..)).into(),
    };
    put("source.address", address);
    put(
        "destination.address",
        if random.u32(0..8) == 0 { odd(random) } else { "10.0.0.1:6379".into() },
    );
    let direction = random.u64(0..3).to_le_bytes();
    put(
        "xds.listener_direction",
        if random.u32(0..8) == 0 { odd(random) } else { direction.into() },
    );
    put("xds.route_name", odd(random));
    put("xds.cluster_name", odd(random));
    put("xds.filter_chain_name", odd(random));
    put("connection.requested_server_name", odd(random));
    put("plugin_name", one_of(random, &["a", "b", ""]));
    put("request.size", random.u64(..).to_le_bytes().into());
    put("response.size", random.u64(0..1_000).to_le_bytes().into());
    put("response.flags", (1_u64 << random.u32(0..30)).to_le_bytes().into());
    all
}

fn some(random: &mut Rng, value: impl FnOnce(&mut Rng) -> Vec<u8>) -> Option<Vec<u8>> {
    match random.u32(0..12) {
        0..6 => None,
        6 => Some(field(random)),
        _ => Some(value(random)),
    }
}

fn one_of(random: &mut Rng, all: &[&str]) -> Vec<u8> {
    random.choice(all).map_or_else(Vec::new, |text| text.as_bytes().to_vec())
}
