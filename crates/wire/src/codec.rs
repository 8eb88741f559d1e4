//! One door to the serialiser.
//!
//! Nothing outside this module knows the format: every value is one layout byte and then the fields in order,
//! integers as varints, exactly as bincode 2.0.1 writes them in its standard configuration. That is the last working
//! release and gets no more fixes; what stands here in its place is small in the modules, since it formats no error
//! texts (`serde` describes each unexpected value, floats too, which alone is 15 KB). bincode stands in the tests, which
//! say that the bytes are the same; the golden tests keep them so.

mod reader;
mod writer;

use alloc::vec::Vec;
use core::fmt;

use serde::{Serialize, de::DeserializeOwned};

pub(crate) use self::reader::{Quick, Reader};
use self::writer::Writer;

/// The largest value that is ever decoded: a rule set (8 MiB). Decoding allocates no more than a small multiple
/// of this.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The value has a newer layout than this build knows.
    Newer {
        /// The layout that was found.
        found: u8,
        /// The newest layout that this build reads.
        known: u8,
    },
    /// The bytes are not a value of this layout.
    Malformed,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { found, known } => {
                write!(f, "layout version {found}, but this build reads {known}")
            }
            Self::Malformed => f.write_str("the bytes are malformed"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Appends `value` behind its layout byte.
pub fn encode<T: Serialize>(layout: u8, value: &T, bytes: &mut Vec<u8>) {
    bytes.push(layout);
    append(value, bytes);
}

/// Reads a whole value of `layout`.
pub fn decode<T: DeserializeOwned>(layout: u8, bytes: &[u8]) -> Result<T, DecodeError> {
    let body = body(layout, bytes)?;
    let (value, read) = read(body)?;
    if read == body.len() { Ok(value) } else { Err(DecodeError::Malformed) }
}

/// Reads a whole value of `layout` with a reader of its own.
pub(crate) fn read_quick(
    layout: u8,
    bytes: &[u8],
    read: impl FnOnce(&mut Quick<'_>) -> Result<(), Malformed>,
) -> Result<(), DecodeError> {
    let mut reader = Quick::new(body(layout, bytes)?);
    match read(&mut reader).and_then(|()| reader.rest()) {
        Ok([]) if bytes.len() <= VALUE_BYTES_MAX => Ok(()),
        Ok(_) | Err(Malformed) => Err(DecodeError::Malformed),
    }
}

/// What follows the layout byte, if the layout is one that this build reads.
pub(crate) fn body(layout: u8, bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&found, body)) if found == layout => Ok(body),
        Some((&found, _)) if found > layout => Err(DecodeError::Newer { found, known: layout }),
        Some(_) | None => Err(DecodeError::Malformed),
    }
}

/// Appends `value` without a layout byte.
pub(crate) fn append<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    // Fails only for types that cannot be serialised at all, and ours can: tested.
    let written = value.serialize(&mut Writer { bytes });
    debug_assert!(written.is_ok(), "a type of the wire has no form in it");
}

/// Reads a value and says how many bytes it took.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    let mut reader = Reader { rest: bytes.get(..VALUE_BYTES_MAX).unwrap_or(bytes) };
    let before = reader.rest.len();
    let value = T::deserialize(&mut reader).map_err(|Malformed| DecodeError::Malformed)?;
    Ok((value, before - reader.rest.len()))
}

/// Why a value has no form here, or bytes are none. It says no more: nobody reads what a machine has written wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed")
    }
}

impl core::error::Error for Malformed {}

impl serde::ser::Error for Malformed {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Self
    }
}

/// All of them, since what serde would do by itself is to write a sentence first.
impl serde::de::Error for Malformed {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Self
    }

    fn invalid_type(
        _found: serde::de::Unexpected<'_>,
        _expected: &dyn serde::de::Expected,
    ) -> Self {
        Self
    }

    fn invalid_value(
        _found: serde::de::Unexpected<'_>,
        _expected: &dyn serde::de::Expected,
    ) -> Self {
        Self
    }

    fn invalid_length(_length: usize, _expected: &dyn serde::de::Expected) -> Self {
        Self
    }

    fn unknown_variant(_variant: &str, _expected: &'static [&'static str]) -> Self {
        Self
    }

    fn unknown_field(_field: &str, _expected: &'static [&'static str]) -> Self {
        Self
    }

    fn missing_field(_field: &'static str) -> Self {
        Self
    }

    fn duplicate_field(_field: &'static str) -> Self {
        Self
    }
}

/// The integers up to this one are their own byte; what follows are the markers of two, four and eight bytes.
const SINGLE_BYTE_MAX: u8 = 250;
const TWO_BYTES: u8 = 251;
const FOUR_BYTES: u8 = 252;
const EIGHT_BYTES: u8 = 253;

#[cfg(test)]
mod tests {
    use alloc::{
        collections::BTreeMap,
        string::{String, ToString as _},
        vec::Vec,
    };

    use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize, de::DeserializeOwned};

    use super::*;

    /// One of each form that serde knows and the wire may use.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Everything {
        flag: bool,
        bytes: (u8, i8),
        short: (u16, i16),
        middle: (u32, i32),
        long: (u64, i64),
        size: usize,
        floats: (f32, f64),
        char: char,
        text: String,
        maybe: Option<String>,
        list: Vec<Shape>,
        fixed: [u16; 3],
        map: BTreeMap<String, u64>,
        unit: (),
        wrapped: Wrapped,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(u64);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        New(i64),
        Tuple(u8, String),
        Struct { left: Option<u32>, right: f64 },
    }

    const BINCODE: Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>> =
        config::standard().with_limit::<VALUE_BYTES_MAX>();

    fn any_shape() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Unit),
            any::<i64>().prop_map(Shape::New),
            any::<(u8, String)>().prop_map(|(number, text)| Shape::Tuple(number, text)),
            any::<(Option<u32>, f64)>().prop_map(|(left, right)| Shape::Struct { left, right }),
        ]
    }

    fn any_everything() -> impl Strategy<Value = Everything> {
        let scalars = (any::<bool>(), any::<(u8, i8)>(), any::<(u16, i16)>(), any::<(u32, i32)>());
        let more = (any::<(u64, i64)>(), any::<usize>(), any::<(f32, f64)>(), any::<char>());
        let lists = (
            any::<(String, Option<String>)>(),
            prop::collection::vec(any_shape(), 0..4),
            any::<[u16; 3]>(),
            prop::collection::btree_map(any::<String>(), any::<u64>(), 0..4),
        );
        (scalars, more, lists).prop_map(|(scalars, more, lists)| {
            let (flag, bytes, short, middle) = scalars;
            let (long, size, floats, char) = more;
            let ((text, maybe), list, fixed, map) = lists;
            let wrapped = Wrapped(long.0.rotate_left(7));
            Everything {
                flag,
                bytes,
                short,
                middle,
                long,
                size,
                floats,
                char,
                text,
                maybe,
                list,
                fixed,
                map,
                unit: (),
                wrapped,
            }
        })
    }

    fn theirs<T: Serialize>(value: &T) -> Vec<u8> {
        bincode::serde::encode_to_vec(value, BINCODE).unwrap()
    }

    fn ours<T: Serialize>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(value, &mut bytes);
        bytes
    }

    #[track_caller]
    fn check_same<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: &T) {
        let bytes = theirs(value);
        assert_eq!(ours(value), bytes, "{value:?}");
        assert_eq!(read::<T>(&bytes).unwrap(), (read_theirs(&bytes).unwrap(), bytes.len()));
    }

    fn read_theirs<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        bincode::serde::decode_from_slice(bytes, BINCODE).ok().map(|(value, _)| value)
    }

    #[test]
    fn an_integer_is_as_long_as_it_must_be() {
        for number in
            [0, 1, 250, 251, 255, 256, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX]
        {
            check_same(&number);
        }
        for number in [0, -1, 1, -125, 125, -126, 126, i64::MIN, i64::MAX] {
            check_same(&number);
        }
    }

    #[test]
    fn what_claims_to_be_longer_than_the_bytes_allocates_nothing() {
        let claims_much = ours(&u64::MAX);
        assert!(read::<Vec<u64>>(&claims_much).is_err());
        assert!(read::<String>(&claims_much).is_err());
        assert!(read::<Vec<[u64; 4]>>(&ours(&(1_u64 << 40))).is_err());
    }

    #[test]
    fn a_value_of_a_newer_layout_is_told_from_rubbish() {
        let mut bytes = Vec::new();
        encode(2, &7_u32, &mut bytes);
        assert_eq!(decode::<u32>(2, &bytes), Ok(7));
        let newer = decode::<u32>(1, &bytes).unwrap_err();
        assert_eq!(newer.to_string(), "layout version 2, but this build reads 1");
        assert_eq!(decode::<u32>(3, &bytes), Err(DecodeError::Malformed));
        assert_eq!(decode::<u32>(2, &[]), Err(DecodeError::Malformed));
        bytes.push(0);
        assert_eq!(decode::<u32>(2, &bytes), Err(DecodeError::Malformed));
    }

    proptest! {
        #[test]
        fn bincode_writes_the_same_bytes(value in any_everything()) {
            let bytes = theirs(&value);
            prop_assert_eq!(&ours(&value), &bytes);
            let (back, length) = read::<Everything>(&bytes).unwrap();
            prop_assert_eq!((back, length), (value, bytes.len()));
        }

        #[test]
        fn bincode_reads_the_same_from_damaged_bytes(value in any_everything(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = theirs(&value);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            let cut = cut.index(bytes.len());
            for bytes in [&bytes[..], &bytes[..cut]] {
                let ours = read::<Everything>(bytes).ok().map(|(value, _)| theirs(&value));
                let theirs = read_theirs::<Everything>(bytes).map(|value| theirs(&value));
                prop_assert_eq!(ours, theirs);
            }
        }

        #[test]
        fn bincode_reads_the_same_from_any_bytes(bytes: Vec<u8>) {
            let ours = read::<(u64, Option<Shape>, Vec<u16>)>(&bytes).ok().map(|(value, _)| theirs(&value));
            let theirs = read_theirs::<(u64, Option<Shape>, Vec<u16>)>(&bytes).map(|value| theirs(&value));
            prop_assert_eq!(ours, theirs);
        }
    }
}
