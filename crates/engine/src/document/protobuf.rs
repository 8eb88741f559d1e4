//! `google.protobuf.Struct`, which is how Envoy hands over a configuration written as YAML.
//!
//! Three messages with nine fields between them, read here: a decoder for any message is seven times as large. Tests
//! hold it against prost's.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use sentinel_core::{
    order::sort_by,
    rule::node::{DEPTH_MAX, Entry, Map, NODES_MAX, Node, Value},
};

use crate::document::{DocumentError, SOURCE_BYTES_MAX};

/// The map that `bytes` are as a serialized Struct; `None` if they are something else.
///
/// Its numbers are doubles: whole ones become [`Value::Int`]. Its maps have no order; ours are in that
/// of their names. One that is too large or too deep is an error.
pub fn structure(bytes: &[u8]) -> Result<Option<Node>, DocumentError> {
    if bytes.len() > SOURCE_BYTES_MAX {
        return Err(too_large());
    }
    let mut room = NODES_MAX;
    match map(bytes, DEPTH_MAX, &mut room) {
        Ok(node) => Ok(Some(node)),
        Err(Fault::Other) => Ok(None),
        Err(Fault::Document(error)) => Err(error),
    }
}

/// Why bytes are no Struct that could be used.
enum Fault {
    /// They are something else.
    Other,
    /// It is too large or too deep.
    Document(DocumentError),
}

/// What a field holds.
enum Content<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
    /// Four bytes, which no field of a Struct has.
    Fixed,
}

/// A message: its fields that have not been read yet.
struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    /// The next field and its number.
    fn field(&mut self) -> Result<Option<(u64, Content<'a>)>, Fault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?.first_chunk().ok_or(Fault::Other)?;
                Content::Double(f64::from_le_bytes(*bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Fault::Other)?;
                Content::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Content::Fixed)?,
            // Groups, which are out of use, and what has no meaning.
            _ => return Err(Fault::Other),
        };
        // Numbers go from 1 to 2^29 - 1.
        match tag >> 3 {
            number @ 1..=0x1fff_ffff => Ok(Some((number, content))),
            _ => Err(Fault::Other),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::Other)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number, seven bits a byte.
    fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(Fault::Other)?;
            self.rest = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Fault::Other)
    }
}

/// A Struct. `depth` levels may stand in this one, and `room` values in the whole tree.
fn map(bytes: &[u8], depth: usize, room: &mut usize) -> Result<Node, Fault> {
    let mut message = Message { rest: bytes };
    let mut entries = Vec::new();
    while let Some((number, content)) = message.field()? {
        match (number, content) {
            (1, Content::Bytes(bytes)) => entries.push(entry(bytes, depth, room)?),
            (1, _) => return Err(Fault::Other),
            _ => {}
        }
    }
    // Of two entries with one name the later one holds.
    sort_by(&mut entries, |a: &Entry, b: &Entry| a.key.cmp(&b.key));
    let mut named: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        match named.last_mut().filter(|last| last.key == entry.key) {
            Some(last) => *last = entry,
            None => named.push(entry),
        }
    }
    let map = Map::from_entries(named).map_err(|_| Fault::Other)?;
    Ok(Node::new(Value::Map(map)))
}

/// A name and its value.
fn entry(bytes: &[u8], depth: usize, room: &mut usize) -> Result<Entry, Fault> {
    let mut message = Message { rest: bytes };
    let mut key = String::new();
    let mut value = None;
    while let Some((number, content)) = message.field()? {
        match (number, content) {
            (1, Content::Bytes(bytes)) => key = text(bytes)?,
            // Of two the later one holds, but the other must be a value as well.
            (2, Content::Bytes(bytes)) => value = Some(node(bytes, depth, room)?),
            (1 | 2, _) => return Err(Fault::Other),
            _ => {}
        }
    }
    Ok(Entry { key, position: None, value: value.unwrap_or_else(|| Node::new(Value::Null)) })
}

/// A Value.
fn node(bytes: &[u8], depth: usize, room: &mut usize) -> Result<Node, Fault> {
    *room = room.checked_sub(1).ok_or_else(|| Fault::Document(too_large()))?;
    let mut message = Message { rest: bytes };
    let mut value = Value::Null;
    while let Some((number, content)) = message.field()? {
        value = match (number, content) {
            (1, Content::Varint(_)) => Value::Null,
            (2, Content::Double(number)) => Value::from_double(number),
            (3, Content::Bytes(bytes)) => Value::String(text(bytes)?),
            (4, Content::Varint(flag)) => Value::Bool(flag != 0),
            (5, Content::Bytes(bytes)) => map(bytes, inner(depth)?, room)?.value,
            (6, Content::Bytes(bytes)) => list(bytes, inner(depth)?, room)?,
            (1..=6, _) => return Err(Fault::Other),
            _ => continue,
        };
    }
    Ok(Node::new(value))
}

/// A ListValue.
fn list(bytes: &[u8], depth: usize, room: &mut usize) -> Result<Value, Fault> {
    let mut message = Message { rest: bytes };
    let mut nodes = Vec::new();
    while let Some((number, content)) = message.field()? {
        match (number, content) {
            (1, Content::Bytes(bytes)) => nodes.push(node(bytes, depth, room)?),
            (1, _) => return Err(Fault::Other),
            _ => {}
        }
    }
    Ok(Value::List(nodes))
}

fn text(bytes: &[u8]) -> Result<String, Fault> {
    core::str::from_utf8(bytes).map(String::from).map_err(|_| Fault::Other)
}

/// The levels that may stand in one of `depth`.
fn inner(depth: usize) -> Result<usize, Fault> {
    depth.checked_sub(1).ok_or_else(|| {
        let problem = format!("lists and maps stand more than {DEPTH_MAX} deep in each other");
        Fault::Document(DocumentError { position: None, problem })
    })
}

fn too_large() -> DocumentError {
    let problem = "the configuration is too large: put fewer rules into it".to_string();
    DocumentError { position: None, problem }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::{ListValue, Struct, value::Kind};

    use super::*;

    /// What prost makes of `bytes`, as our nodes.
    fn theirs(bytes: &[u8]) -> Option<Node> {
        fn map(decoded: Struct) -> Node {
            let entries = decoded.fields.into_iter().map(|(key, value)| Entry {
                key,
                position: None,
                value: node(value),
            });
            Node::new(Value::Map(Map::from_entries(entries.collect()).unwrap()))
        }
        fn node(value: prost_types::Value) -> Node {
            Node::new(match value.kind {
                None | Some(Kind::NullValue(_)) => Value::Null,
                Some(Kind::BoolValue(flag)) => Value::Bool(flag),
                Some(Kind::NumberValue(number)) => Value::from_double(number),
                Some(Kind::StringValue(text)) => Value::String(text),
                Some(Kind::ListValue(list)) => {
                    Value::List(list.values.into_iter().map(node).collect())
                }
                Some(Kind::StructValue(decoded)) => return map(decoded),
            })
        }
        Struct::decode(bytes).ok().map(map)
    }

    fn any_value() -> impl Strategy<Value = prost_types::Value> {
        let number = prop_oneof![any::<f64>(), (-3i32..300).prop_map(f64::from)];
        let leaf = prop_oneof![
            Just(Kind::NullValue(0)),
            any::<bool>().prop_map(Kind::BoolValue),
            number.prop_map(Kind::NumberValue),
            any::<String>().prop_map(Kind::StringValue),
        ];
        let value = |kind| prost_types::Value { kind: Some(kind) };
        leaf.prop_map(value).prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| Kind::ListValue(ListValue { values })),
                prop::collection::btree_map("[a-c]{0,2}", inner, 0..4)
                    .prop_map(|fields| Kind::StructValue(Struct { fields })),
            ]
            .prop_map(value)
        })
    }

    fn any_structure() -> impl Strategy<Value = BTreeMap<String, prost_types::Value>> {
        prop::collection::btree_map("[a-d]{0,3}", any_value(), 0..4)
    }

    #[test]
    fn of_two_entries_with_one_name_the_later_one_holds() {
        let one = |number| {
            let value = prost_types::Value { kind: Some(Kind::NumberValue(number)) };
            Struct { fields: BTreeMap::from([("a".into(), value)]) }.encode_to_vec()
        };
        let twice = [one(1.0), one(2.0)].concat();
        assert_eq!(structure(&twice).unwrap(), theirs(&twice));
        assert_eq!(structure(&twice).unwrap(), structure(&one(2.0)).unwrap());
    }

    #[test]
    fn a_field_that_a_struct_does_not_have_is_passed_over() {
        // Field 7 as a varint, 8 as eight bytes, 9 as bytes, 10 as four bytes.
        let unknown = b"\x38\x01\x41........\x4a\x02ab\x55....";
        assert_eq!(structure(unknown).unwrap(), Some(Node::new(Value::Map(Map::default()))));
        assert_eq!(structure(unknown).unwrap(), theirs(unknown));
    }

    proptest! {
        #[test]
        fn prost_reads_the_same(fields in any_structure()) {
            let bytes = Struct { fields }.encode_to_vec();
            let ours = structure(&bytes).unwrap();
            prop_assert!(ours.is_some());
            // By their texts, since a number may be none, which equals nothing.
            prop_assert_eq!(format!("{ours:?}"), format!("{:?}", theirs(&bytes)));
        }

        /// Where both read something, the same; and only groups and a kind that is given twice tell them apart.
        #[test]
        fn prost_reads_the_same_from_damaged_bytes(fields in any_structure(), at: prop::sample::Index, byte: u8) {
            let mut bytes = Struct { fields }.encode_to_vec();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(Some(ours)) = structure(&bytes) {
                prop_assert!(theirs(&bytes).is_some(), "we alone read {ours:?}");
            }
        }
    }
}
