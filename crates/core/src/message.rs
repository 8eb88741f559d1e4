//! Where the messages of a stream begin: those of gRPC, and the frames of a WebSocket.
//!
//! A reader is told of each chunk of a stream's bytes in order and says how many messages begin in it. It looks at headers
//! of frames only, and passes over what they carry: a message of 16 MB costs as much as one of 5 bytes. How the bytes are
//! cut into chunks makes no difference, and what stands in them cannot make it fail: a length that lies only moves the
//! place where the next message is looked for, as it does for whoever reads the stream.

/// Bytes of a stream, as they came at once.
pub trait Chunk {
    /// How many there are.
    fn size(&self) -> u64;

    /// The byte at a place before the end. `None` if it cannot be read.
    fn byte(&mut self, at: u64) -> Option<u8>;
}

/// How a stream is cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A byte of flags, four bytes of length (gRPC over HTTP/2, "Length-Prefixed-Message").
    Grpc,
    /// RFC 6455, section 5.2, as clients and servers send them. Every frame of data counts, also one that continues
    /// another; ping, pong and close do not.
    WebSocket,
}

impl Framing {
    /// How the body of a request is cut, by its headers; `None`: into no messages. Wider than what gets a reply in gRPC's
    /// form, since servers take more than its specification says: a limit must not be passed by a `;` in a header.
    pub fn of(content_type: &[u8], upgrade: &[u8]) -> Option<Self> {
        const GRPC: &[u8] = b"application/grpc";
        // In base64, which is no framing of bytes.
        const WEB_TEXT: &[u8] = b"application/grpc-web-text";
        let is = |prefix: &[u8]| {
            content_type.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        if is(GRPC) && !is(WEB_TEXT) {
            Some(Self::Grpc)
        } else {
            upgrade.eq_ignore_ascii_case(b"websocket").then_some(Self::WebSocket)
        }
    }
}

/// Reads one direction of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageReader {
    framing: Framing,
    /// Bytes of the current message that are still to be passed over.
    skip: u64,
    /// What has been read of the next header.
    header: [u8; HEADER_BYTES_MAX],
    /// How much that is.
    have: usize,
}

/// A chunk that cannot be read: from here on nobody knows where messages begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// A WebSocket's header without its mask: two bytes, and eight of length.
const HEADER_BYTES_MAX: usize = 10;

const GRPC_HEADER_BYTES: usize = 5;

const MASK_BYTES: u64 = 4;

impl MessageReader {
    /// The reader of a stream that has not begun.
    pub fn new(framing: Framing) -> Self {
        Self { framing, skip: 0, header: [0; HEADER_BYTES_MAX], have: 0 }
    }

    /// How many messages begin in the next chunk of the stream. A message begins with its first byte, so that one whose
    /// header is cut in two counts where the first part stands.
    ///
    /// # Errors
    ///
    /// If a byte of a header cannot be read.
    pub fn feed(&mut self, chunk: &mut dyn Chunk) -> Result<u32, Unreadable> {
        let mut begun: u32 = 0;
        let mut at = 0;
        loop {
            let left = chunk.size().saturating_sub(at);
            let passed = self.skip.min(left);
            self.skip -= passed;
            at += passed;
            if at >= chunk.size() {
                return Ok(begun);
            }
            let byte = chunk.byte(at).ok_or(Unreadable)?;
            at += 1;
            if self.have == 0 && self.counts(byte) {
                begun = begun.saturating_add(1);
            }
            if let Some(place) = self.header.get_mut(self.have) {
                *place = byte;
            }
            self.have += 1;
            if let Some(length) = self.payload() {
                self.skip = length;
                self.have = 0;
            }
        }
    }

    /// Whether a frame that begins with this byte is a message.
    fn counts(&self, first: u8) -> bool {
        const CONTROL: u8 = 0b1000;
        match self.framing {
            Framing::Grpc => true,
            Framing::WebSocket => first & CONTROL == 0,
        }
    }

    /// How many bytes follow the header, once all of it is there.
    fn payload(&self) -> Option<u64> {
        let [_, second, rest @ ..] = &self.header;
        let big_endian = |bytes: &[u8]| {
            bytes.iter().fold(0_u64, |length, byte| (length << 8) | u64::from(*byte))
        };
        match self.framing {
            Framing::Grpc if self.have < GRPC_HEADER_BYTES => None,
            Framing::Grpc => self.header.get(1..GRPC_HEADER_BYTES).map(big_endian),
            Framing::WebSocket if self.have < 2 => None,
            Framing::WebSocket => {
                let mask = if second & 0x80 == 0 { 0 } else { MASK_BYTES };
                let extended: usize = match second & 0x7f {
                    126 => 2,
                    127 => 8,
                    length => return Some(u64::from(length) + mask),
                };
                let is_whole = self.have >= extended + 2;
                let length = rest.get(..extended).filter(|_| is_whole).map(big_endian);
                length.map(|length| length.saturating_add(mask))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// A chunk that knows how much of it was looked at.
    struct Bytes<'a> {
        bytes: &'a [u8],
        looked_at: usize,
    }

    impl Chunk for Bytes<'_> {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn byte(&mut self, at: u64) -> Option<u8> {
            self.looked_at += 1;
            self.bytes.get(usize::try_from(at).ok()?).copied()
        }
    }

    fn feed(reader: &mut MessageReader, bytes: &[u8]) -> u32 {
        reader.feed(&mut Bytes { bytes, looked_at: 0 }).unwrap()
    }

    fn grpc(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(5 + length as usize, 0x55);
        bytes
    }

    /// A frame in the shortest form that RFC 6455 allows.
    fn web_socket(first: u8, masked: bool, length: usize) -> Vec<u8> {
        let mask_bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ 0..=125), _) => bytes.push(mask_bit | short),
            (_, Ok(medium)) => {
                bytes.push(mask_bit | 126);
                bytes.extend(medium.to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([1, 2, 3, 4]);
        }
        bytes.resize(bytes.len() + length, 0x81);
        bytes
    }

    #[test]
    fn what_servers_take_for_grpc_is_counted_as_such() {
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;v=1",
            "Application/gRPC-web",
        ] {
            assert_eq!(
                Framing::of(content_type.as_bytes(), b""),
                Some(Framing::Grpc),
                "{content_type}"
            );
        }
        assert_eq!(Framing::of(b"application/grpc-web-text+proto", b""), None);
        assert_eq!(Framing::of(b"application/json", b""), None);
        assert_eq!(Framing::of(b"", b"WebSocket"), Some(Framing::WebSocket));
        assert_eq!(Framing::of(b"", b"h2c"), None);
    }

    #[test]
    fn each_grpc_message_counts_where_it_begins() {
        let mut reader = MessageReader::new(Framing::Grpc);
        let two = [grpc(3), grpc(0)].concat();
        assert_eq!(feed(&mut reader, &two), 2);
        let third = grpc(1_000);
        assert_eq!(feed(&mut reader, &third[..1]), 1);
        assert_eq!(feed(&mut reader, &third[1..7]), 0);
        assert_eq!(feed(&mut reader, &[]), 0);
        assert_eq!(feed(&mut reader, &third[7..]), 0);
        assert_eq!(feed(&mut reader, &grpc(0)), 1);
    }

    #[test]
    fn of_a_message_only_the_header_is_looked_at() {
        let mut reader = MessageReader::new(Framing::Grpc);
        let mut chunk = Bytes { bytes: &grpc(16 << 20), looked_at: 0 };
        assert_eq!(reader.feed(&mut chunk), Ok(1));
        assert_eq!(chunk.looked_at, 5);
    }

    #[test]
    fn a_frame_that_continues_another_counts_and_a_ping_between_them_does_not() {
        const TEXT: u8 = 0x01;
        const LAST_CONTINUATION: u8 = 0x80;
        const PING: u8 = 0x89;
        const CLOSE: u8 = 0x88;
        let mut reader = MessageReader::new(Framing::WebSocket);
        let frames = [
            web_socket(TEXT, true, 5),
            web_socket(PING, true, 4),
            web_socket(LAST_CONTINUATION, true, 70_000),
            web_socket(CLOSE, true, 2),
        ];
        assert_eq!(feed(&mut reader, &frames.concat()), 2);
    }

    #[test]
    fn a_length_beyond_everything_does_not_overflow() {
        let mut reader = MessageReader::new(Framing::WebSocket);
        let mut bytes = vec![0x82, 0xff];
        bytes.extend([0xff; 8]);
        assert_eq!(feed(&mut reader, &bytes), 1);
        assert_eq!(feed(&mut reader, &[0x82; 100]), 0);
    }

    #[test]
    fn a_chunk_that_cannot_be_read_is_an_error() {
        struct Refused;
        impl Chunk for Refused {
            fn size(&self) -> u64 {
                5
            }
            fn byte(&mut self, _at: u64) -> Option<u8> {
                None
            }
        }
        let mut reader = MessageReader::new(Framing::Grpc);
        assert_eq!(reader.feed(&mut Refused), Err(Unreadable));
    }

    /// Frames of a framing: each with whether it counts.
    fn frames(framing: Framing) -> BoxedStrategy<Vec<(Vec<u8>, bool)>> {
        let length = prop_oneof![
            4 => 0..130_usize, 1 => 65_530..65_545_usize, 1 => 126..2_000_usize
        ];
        let frame = match framing {
            Framing::Grpc => {
                length.prop_map(|length| (grpc(u32::try_from(length).unwrap()), true)).boxed()
            }
            Framing::WebSocket => (any::<u8>(), any::<bool>(), length)
                .prop_map(|(first, masked, length)| {
                    (web_socket(first, masked, length), first & 0x08 == 0)
                })
                .boxed(),
        };
        proptest::collection::vec(frame, 0..12).boxed()
    }

    proptest! {
        /// The reference knows where each frame begins because it has put it there.
        #[test]
        fn however_a_stream_is_cut_each_message_counts_once_and_where_it_begins(
            (framing, frames) in prop_oneof![Just(Framing::Grpc), Just(Framing::WebSocket)]
                .prop_flat_map(|framing| (Just(framing), frames(framing))),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..40),
        ) {
            let mut begins = Vec::new();
            let mut stream = Vec::new();
            for (bytes, counts) in frames {
                if counts {
                    begins.push(stream.len());
                }
                stream.extend(bytes);
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut reader = MessageReader::new(framing);
            for ends in cuts.windows(2) {
                let (from, to) = (ends[0], ends[1]);
                let expected = begins.iter().filter(|begin| (from..to).contains(begin)).count();
                prop_assert_eq!(feed(&mut reader, &stream[from..to]) as usize, expected);
            }
        }

        #[test]
        fn no_bytes_make_it_fail_or_count_more_than_there_are(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            is_grpc in any::<bool>(),
        ) {
            let framing = if is_grpc { Framing::Grpc } else { Framing::WebSocket };
            let mut reader = MessageReader::new(framing);
            let begun = feed(&mut reader, &bytes);
            prop_assert!(begun as usize <= bytes.len());
        }
    }
}
