//! What rules of several kinds say in the same way.

use alloc::{
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use crate::{
    pattern::Pattern,
    resource::NAME_BYTES_LIMIT,
    rule::{
        Common, OnHostFailure, OnServiceLoss, Response, Target, Unit,
        compile::{
            Context, Form, RESPONSE_BYTES_MAX, RESPONSE_FIELDS, RESPONSE_HEADERS_MAX, bound,
            ids::{ID_OR_NONE, is_id},
        },
        error::Reason,
        node::{Node, Value},
        read::{Choices, Fields, as_number, as_whole},
        shape::Shape,
    },
};

static ON_SERVICE_LOSS: Choices = &[("keep", None), ("pass", None), ("block", None)];

static UNIT: Choices = &[("request", None), ("message", None)];

static ON_HOST_FAILURE: Choices = &[("pass", None), ("block", None)];

/// The rule's own id. An empty one is none: sentinel-golang writes it where there is none. In Java an id is a
/// number, which is unique in one list only; so it goes behind the name of its list.
pub(super) fn id(fields: &mut Fields<'_, '_>, list: &str, form: Form) -> Option<String> {
    if form == Form::Java
        && let Some(number) = fields.node("id").and_then(as_whole)
    {
        return Some(format!("{list}.{number}"));
    }
    let id = fields.text_of("id", || Shape::text(ID_OR_NONE)).filter(|id| !id.is_empty())?;
    if !is_id(id) {
        fields.mismatch("id", "1 to 64 characters of A-Z, a-z, 0-9 and ._:/-");
    }
    Some(id.to_string())
}

/// A name of at most `nameBytesMax` bytes; `None` if there is none or it is refused.
pub(super) fn name<'a>(
    fields: &mut Fields<'a, '_>,
    field: &str,
    what: &str,
    context: &Context<'_>,
) -> Option<&'a str> {
    fields.require(field);
    let name = fields.text_of(field, || Shape::Text {
        least: 1,
        // A setting says how long; this is the most that it may say.
        most: bound(NAME_BYTES_LIMIT),
        pattern: "",
    })?;
    let most = bound(context.settings.name_bytes_max);
    if name.is_empty() {
        fields.mismatch(field, what);
        return None;
    }
    if name.len() > most {
        let found = format!("{} bytes long", name.len());
        let allowed = format!("at most {most} (nameBytesMax)");
        fields.refuse(field, Reason::Mismatch { found, allowed });
        return None;
    }
    Some(name)
}

/// What a rule governs: `resource`, a pattern if it says `regex: true`, or all others with `"*"`.
pub(super) fn target(fields: &mut Fields<'_, '_>, context: &Context<'_>) -> Option<Target> {
    let is_pattern = fields.flag("regex") == Some(true);
    let name = name(fields, "resource", A_RESOURCE, context)?.to_string();
    if is_pattern {
        pattern_problem(fields, "resource", &name)?;
        return Some(Target::Pattern(name));
    }
    Some(if name == "*" { Target::Default } else { Target::Resource(name) })
}

/// What a rule governs that counts for one resource only.
pub(super) fn one_target(fields: &mut Fields<'_, '_>, context: &Context<'_>) -> Option<Target> {
    fields.takes("regex", || Shape::False);
    if fields.flag("regex") == Some(true) {
        fields.mismatch("regex", "false: a rule of this kind governs one resource; name each");
    }
    let name = name(fields, "resource", A_RESOURCE, context)?;
    if name == "*" {
        fields
            .mismatch("resource", "a resource's name: a rule of this kind governs one; name each");
        return None;
    }
    Some(Target::Resource(name.to_string()))
}

const A_RESOURCE: &str = "a resource's name, such as \"GET:/hello\"";

/// Refuses what is no regular expression; `None` if it did.
pub(super) fn pattern_problem(fields: &mut Fields<'_, '_>, field: &str, text: &str) -> Option<()> {
    match Pattern::new(text) {
        Ok(_) => Some(()),
        Err(problem) => {
            let found = fields.node(field).map_or_else(String::new, Node::describe);
            fields.object(field, &format!("is {found}, which {problem}"));
            None
        }
    }
}

/// A threshold, which documents must name and Sentinel's JSON may leave out: 0.
pub(super) fn needed_number(
    fields: &mut Fields<'_, '_>,
    field: &str,
    context: &Context<'_>,
) -> f64 {
    needed(fields, field, context);
    fields.number(field).unwrap_or(0.0)
}

/// Refuses a document's rule without `field`.
pub(super) fn needed(fields: &mut Fields<'_, '_>, field: &str, context: &Context<'_>) {
    if context.form == Form::Document {
        fields.require(field);
    }
}

/// A part of 1: whole percents in documents, a fraction in Sentinel's JSON.
pub(super) fn ratio(fields: &mut Fields<'_, '_>, field: &str, context: &Context<'_>) -> f64 {
    needed(fields, field, context);
    fields.takes(field, || Shape::Whole(0, 100));
    let Some(node) = fields.node(field) else { return 0.0 };
    if context.form == Form::Document {
        if let Some(percent) = as_whole(node).and_then(|percent| u8::try_from(percent).ok())
            && percent <= 100
        {
            return f64::from(percent) / 100.0;
        }
        fields.mismatch(field, "whole percents from 0 to 100 (50 is a half)");
        return 0.0;
    }
    match as_number(node) {
        Some(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
        Some(_) | None => {
            fields.mismatch(field, "a number from 0 to 1");
            0.0
        }
    }
}

/// What every rule can say, whatever its kind.
pub(super) fn common(fields: &mut Fields<'_, '_>) -> Common {
    Common {
        shadow: fields.flag("shadow").unwrap_or_default(),
        response: fields
            .inside("response", RESPONSE_FIELDS)
            .map(|mut fields| response(&mut fields)),
        on_service_loss: match fields.choice("onServiceLoss", ON_SERVICE_LOSS) {
            Some("pass") => OnServiceLoss::Pass,
            Some("block") => OnServiceLoss::Block,
            Some(_) | None => OnServiceLoss::Keep,
        },
        on_host_failure: match fields.choice("onHostFailure", ON_HOST_FAILURE) {
            Some("pass") => OnHostFailure::Pass,
            Some(_) | None => OnHostFailure::Block,
        },
        unit: match fields.choice("unit", UNIT) {
            Some("message") => Unit::Message,
            Some(_) | None => Unit::Request,
        },
    }
}

fn response(response: &mut Fields<'_, '_>) -> Response {
    Response {
        status: status(response, "status"),
        body: body(response, "body"),
        headers: headers(response),
    }
}

/// The status of a reply.
pub(super) fn status(fields: &mut Fields<'_, '_>, field: &str) -> Option<u16> {
    fields.whole(field, 200..=599).and_then(|status| u16::try_from(status).ok())
}

/// The body of a reply.
pub(super) fn body(fields: &mut Fields<'_, '_>, field: &str) -> Option<String> {
    let most = RESPONSE_BYTES_MAX;
    let body = fields.text_of(field, || Shape::Text { least: 0, most, pattern: "" })?;
    if body.len() > RESPONSE_BYTES_MAX {
        let found = format!("{} bytes long", body.len());
        let allowed = format!("at most {RESPONSE_BYTES_MAX}");
        fields.refuse(field, Reason::Mismatch { found, allowed });
    }
    Some(body.to_string())
}

fn headers(response: &mut Fields<'_, '_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    response.takes("headers", || Shape::Texts(RESPONSE_HEADERS_MAX, HEADER_NAME));
    let Some(node) = response.node("headers") else {
        return headers;
    };
    let Value::Map(map) = &node.value else {
        response.mismatch("headers", "a map of names and values");
        return headers;
    };
    let found = map.entries().len();
    if found > RESPONSE_HEADERS_MAX {
        let reason = Reason::TooMany { found, most: RESPONSE_HEADERS_MAX, setting: None };
        response.refuse("headers", reason);
        return headers;
    }
    for entry in map.entries() {
        if let Some(problem) = add_header(&mut headers, &entry.key, &entry.value) {
            let field = format!("headers.{}", entry.key);
            response.refuse_at(entry.position, &field, Reason::Malformed(problem.to_string()));
        }
    }
    headers
}

/// Adds a header to those of a reply, or says what is wrong with it.
pub(super) fn add_header(
    headers: &mut Vec<(String, String)>,
    name: &str,
    value: &Node,
) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    Some(match &value.value {
        Value::String(value) if !is_header_value(value) => {
            "is no header's value: no control characters, and at most 16384 bytes"
        }
        Value::String(_) if !is_header_name(&name) => {
            "is no header's name: only letters, digits and -_.!#$%&'*+^`|~"
        }
        Value::String(_) if FRAMING_HEADERS.contains(&name.as_str()) => {
            "is Envoy's to set: leave it out"
        }
        Value::String(_) if headers.iter().any(|(other, _)| *other == name) => {
            "stands twice, in different case: leave one out"
        }
        Value::String(value) => {
            headers.push((name, value.clone()));
            return None;
        }
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::List(_)
        | Value::Map(_) => "is not text: put it in quotes",
    })
}

/// Headers that say where a message ends: another value than Envoy's own would break the reply.
const FRAMING_HEADERS: &[&str] = &["content-length", "transfer-encoding", "connection"];

/// A token of RFC 9110, section 5.6.2.
pub(crate) fn is_header_name(name: &str) -> bool {
    (1..=256).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte))
}

/// The same as a regular expression.
pub(crate) const HEADER_NAME: &str = "^[A-Za-z0-9_.!#$%&'*+^`|~-]{1,256}$";

fn is_header_value(value: &str) -> bool {
    value.len() <= RESPONSE_BYTES_MAX && value.chars().all(|c| !c.is_control())
}
