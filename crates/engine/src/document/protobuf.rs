//! `google.protobuf.Struct`, which is how Envoy hands over a configuration written as YAML.

use alloc::{string::ToString as _, vec::Vec};

use prost::Message as _;
use prost_types::{Struct, value::Kind};
use sentinel_core::rule::node::{DEPTH_MAX, Entry, Map, NODES_MAX, Node, Value};

use crate::document::{DocumentError, SOURCE_BYTES_MAX};

/// The map that `bytes` are as a serialized Struct; `None` if they are something else.
///
/// Its numbers are doubles: whole ones become [`Value::Int`]. Its maps have no order; ours are in that
/// of their names. One that is too large or too deep is an error.
pub fn structure(bytes: &[u8]) -> Result<Option<Node>, DocumentError> {
    if bytes.len() > SOURCE_BYTES_MAX {
        return Err(too_large());
    }
    // The decoder's own bound on depth is three times ours and more, since each level of ours is three
    // messages to it.
    let Ok(decoded) = Struct::decode(bytes) else {
        return Ok(None);
    };
    let mut room = NODES_MAX;
    map(decoded, DEPTH_MAX, &mut room).map(Some)
}

/// `depth` levels may stand in this one, and `room` values in the whole tree.
fn map(decoded: Struct, depth: usize, room: &mut usize) -> Result<Node, DocumentError> {
    let mut entries = Vec::with_capacity(decoded.fields.len().min(*room));
    for (key, value) in decoded.fields {
        entries.push(Entry { key, position: None, value: node(value, depth, room)? });
    }
    // A Struct's names differ: it decodes into a map.
    let map = Map::from_entries(entries).map_err(|entry| {
        DocumentError::new(None, &alloc::format!("`{}` stands twice", entry.key))
    })?;
    Ok(Node::new(Value::Map(map)))
}

fn node(value: prost_types::Value, depth: usize, room: &mut usize) -> Result<Node, DocumentError> {
    *room = room.checked_sub(1).ok_or_else(too_large)?;
    let inner = || {
        let problem =
            alloc::format!("lists and maps stand more than {DEPTH_MAX} deep in each other");
        depth.checked_sub(1).ok_or(DocumentError { position: None, problem })
    };
    let value = match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::NumberValue(number)) => Value::from_double(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => {
            let depth = inner()?;
            let nodes = list.values.into_iter().map(|value| node(value, depth, room));
            Value::List(nodes.collect::<Result<_, _>>()?)
        }
        Some(Kind::StructValue(decoded)) => return map(decoded, inner()?, room),
    };
    Ok(Node::new(value))
}

fn too_large() -> DocumentError {
    let problem = "the configuration is too large: put fewer rules into it".to_string();
    DocumentError { position: None, problem }
}
