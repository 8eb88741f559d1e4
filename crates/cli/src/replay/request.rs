//! The request that an entry of a vector stands for.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use sentinel_core::param::{Param, ParamValue, Request, cookie, path_segment, query_param};
use serde_json::Value;

/// What a vector says of a request, in the reference's words and in Envoy's.
#[derive(Clone, Debug, Default)]
pub(super) struct VectorRequest {
    /// The arguments of the call, in order; `None` for one that is null.
    pub(super) args: Vec<Option<ParamValue>>,
    /// What sentinel-golang calls attachments.
    pub(super) attachments: BTreeMap<String, ParamValue>,
    /// Who calls.
    pub(super) origin: String,
    /// With the query string.
    pub(super) path: String,
    /// By names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    /// The client's address.
    pub(super) client_ip: Option<String>,
}

impl Request for VectorRequest {
    fn param(&mut self, param: &Param) -> Option<ParamValue> {
        let cookies = || self.headers.get("cookie").map_or(b"".as_slice(), |text| text.as_bytes());
        let bytes = match param {
            Param::Header(name) => self.headers.get(name)?.clone().into_bytes(),
            Param::Query(name) => query_param(self.path.as_bytes(), name)?,
            Param::Cookie(name) => cookie(cookies(), name)?,
            Param::ClientIp => self.client_ip.clone()?.into_bytes(),
            Param::PathSegment(number) => path_segment(self.path.as_bytes(), *number)?,
            Param::Sni | Param::FilterChain => return None,
            Param::Attachment(key) => return self.attachments.get(key).cloned(),
        };
        Some(ParamValue::Bytes(bytes))
    }

    fn arg(&mut self, index: i32) -> Option<ParamValue> {
        let index = match usize::try_from(index) {
            Ok(index) => index,
            Err(_) => {
                let from_the_end = usize::try_from(index.unsigned_abs()).ok()?;
                self.args.len().checked_sub(from_the_end)?
            }
        };
        self.args.get(index).cloned().flatten()
    }

    fn origin(&mut self) -> Vec<u8> {
        self.origin.clone().into_bytes()
    }

    fn path(&mut self) -> Vec<u8> {
        self.path.clone().into_bytes()
    }
}

impl VectorRequest {
    /// Adds what a vector says of a request as Envoy has it: `path`, `headers`, `host`, `client_ip`.
    ///
    /// # Errors
    /// If it says anything else.
    pub(super) fn describe(&mut self, request: &Value) -> Result<()> {
        let Some(fields) = request.as_object() else {
            bail!("{request} describes no request");
        };
        for (field, value) in fields {
            match field.as_str() {
                "path" => self.path = text(value)?,
                "host" => self.set_host(&text(value)?),
                "client_ip" => self.client_ip = Some(text(value)?),
                "headers" => {
                    let headers = value.as_object().context("`headers` must be a map")?;
                    for (name, value) in headers {
                        self.headers.insert(name.to_ascii_lowercase(), text(value)?);
                    }
                }
                _ => bail!("the field `{field}` of a request is not supported"),
            }
        }
        Ok(())
    }

    /// The host, under the names that HTTP/1 and HTTP/2 have for it.
    pub(super) fn set_host(&mut self, host: &str) {
        for name in [":authority", "host"] {
            self.headers.insert(name.to_owned(), host.to_owned());
        }
    }
}

/// A value whose type the caller knows, as sentinel-golang's caller does.
///
/// # Errors
/// If it is a list or a map: no rule of ours counts by one.
pub(super) fn typed(value: &Value) -> Result<Option<ParamValue>> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::Bool(flag) => ParamValue::Bool(*flag),
        Value::String(text) => ParamValue::String(text.clone()),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => ParamValue::Int(whole),
            None => ParamValue::Float(number.as_f64().context("this number has no double")?),
        },
        Value::Array(_) | Value::Object(_) => bail!("the argument {value} is not supported"),
    }))
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} must be text"))
}
