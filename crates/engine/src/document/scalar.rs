//! What a plain scalar means, by the core schema of YAML 1.2 (section 10.3.2).
//!
//! Not YAML 1.1's: `no`, `on` and `1:30` are text, as they are in JSON's world.

use alloc::string::ToString as _;

use sentinel_core::{decimal, rule::node::Value};

/// The meaning of `text`, which stands without quotes.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::String(text.to_string())),
    }
}

fn number(text: &str) -> Option<Value> {
    // The schema's other bases take no sign; and no number begins with another character.
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned {
        ".inf" | ".Inf" | ".INF" => {
            let infinite = if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY };
            return Some(Value::Float(infinite));
        }
        ".nan" | ".NaN" | ".NAN" if unsigned.len() == text.len() => {
            return Some(Value::Float(f64::NAN));
        }
        _ => {}
    }
    if !is_decimal(unsigned) {
        return None;
    }
    // A whole number too large for us is read as the double it is near to.
    let whole = decimal::whole_number(text).map(Value::Int);
    whole.or_else(|| decimal::parse(text).map(Value::from_double))
}

/// `[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?` or `\.[0-9]+([eE][-+]?[0-9]+)?`: what Rust's own parser takes
/// and more ("inf", "1_0") does not pass.
fn is_decimal(unsigned: &str) -> bool {
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_right = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !digits.is_empty() && is_digits(digits)
    });
    !(whole.is_empty() && fraction.is_empty())
        && is_digits(whole)
        && is_digits(fraction)
        && exponent_is_right
}

fn radix(digits: &str, radix: u32) -> Option<Value> {
    // A sign would be taken too.
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    decimal::whole_in_radix(digits.as_bytes(), radix).map(Value::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(texts: &[&str], value: &Value) {
        for text in texts {
            assert_eq!(resolve(text), *value, "{text}");
        }
    }

    #[test]
    fn plain_scalars_mean_what_the_core_schema_says() {
        check(&["", "~", "null", "Null", "NULL"], &Value::Null);
        check(&["true", "True", "TRUE"], &Value::Bool(true));
        check(
            &["12", "+12", "0012", "0xc", "0xC", "0o14", "12.0", "1.2e1", "120E-1", "12."],
            &Value::Int(12),
        );
        check(&["-12"], &Value::Int(-12));
        check(&[".5", "0.5", "5e-1", "+.5"], &Value::Float(0.5));
        check(&[".inf", "+.Inf", ".INF", "1e999"], &Value::Float(f64::INFINITY));
        check(&["-.inf"], &Value::Float(f64::NEG_INFINITY));
        check(&["18446744073709551616"], &Value::Float(18_446_744_073_709_551_616.0));
        assert!(matches!(resolve(".nan"), Value::Float(number) if number.is_nan()));
    }

    #[test]
    fn what_only_looks_like_a_number_is_text() {
        for text in [
            "no", "on", "yes", "nULL", "tRUE", "inf", "nan", "infinity", "+.nan", "1_000", "1,000",
            "1:30", "0o8", "0xg", "0x", "-0x1", "0x+1", ".", "-", "+", "e5", "1e", "1e+", "1.2.3",
            "--1", "+-1", "１２", "1 2", ".e1",
        ] {
            check(&[text], &Value::String(text.to_string()));
        }
    }
}
