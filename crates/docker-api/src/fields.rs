//! Every field that Docker publishes for the bodies which this dialect takes, and what becomes of
//! it: nothing is accepted and then ignored.
//!
//! Owns: the tables ([`create`] has the largest), and the check of a body or a query against them.
//! Must not: know what a handler does with a field that it honours.
//!
//! A field that no published schema has is ignored, as Docker does. Names are compared without
//! case, as Docker (Go's encoding/json) does.

pub(crate) mod create;
pub(crate) mod others;
pub(crate) mod queries;

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::errors::ApiError;

/// Whether a value asks for something; the second is the object that it is a field of.
type Asks = fn(&Value, &Map<String, Value>) -> bool;

/// What becomes of a field's value.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    /// A handler reads it: it does what it says, or is refused there.
    Honoured,
    /// It changes nothing here, for this reason.
    Meaningless(#[cfg_attr(not(test), allow(dead_code))] &'static str),
    /// An object with these fields, or a list of such objects.
    Object(&'static [Field]),
    /// An object whose values are such objects, by names that the client chooses.
    Named(&'static [Field]),
    /// What asks for something is refused with this advice.
    Refused(&'static str),
}

/// A field.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    /// As Docker writes it.
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    /// Docker's option for it, if there is one.
    option: &'static str,
    asks: Asks,
    /// workerd sends it to every engine and does not mean it.
    workerd: bool,
}

impl Field {
    const fn new(name: &'static str, rule: Rule) -> Field {
        Field {
            name,
            rule,
            option: "",
            asks: is_set,
            workerd: false,
        }
    }

    /// The values that ask for nothing are others than the empty ones.
    const fn asking(mut self, asks: Asks) -> Field {
        self.asks = asks;
        self
    }

    const fn sent_by_workerd(mut self) -> Field {
        self.workerd = true;
        self
    }
}

const fn honoured(name: &'static str) -> Field {
    Field::new(name, Rule::Honoured)
}

const fn meaningless(name: &'static str, reason: &'static str) -> Field {
    Field::new(name, Rule::Meaningless(reason))
}

const fn object(name: &'static str, fields: &'static [Field]) -> Field {
    Field::new(name, Rule::Object(fields))
}

const fn refused(name: &'static str, option: &'static str, mend: &'static str) -> Field {
    let mut field = Field::new(name, Rule::Refused(mend));
    field.option = option;
    field
}

/// Whether it is anything but null, false, 0 and what is empty.
fn is_set(value: &Value, _: &Map<String, Value>) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Whether it is anything but null: an empty list asks for something.
fn is_given(value: &Value, _: &Map<String, Value>) -> bool {
    !value.is_null()
}

/// Whether a query parameter is a flag that is set.
fn is_flag(value: &Value, _: &Map<String, Value>) -> bool {
    crate::request::is_true(value.as_str())
}

/// Whether a query parameter is a flag that is given and not set.
fn is_off(value: &Value, _: &Map<String, Value>) -> bool {
    value
        .as_str()
        .is_some_and(|text| !text.is_empty() && !crate::request::is_true(Some(text)))
}

/// Writes known fields' names as they are published.
pub(crate) fn normalise(value: &mut Value, fields: &[Field]) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|each| normalise(each, fields)),
        Value::Object(map) => {
            for field in fields {
                if !map.contains_key(field.name) {
                    let other = map.keys().find(|key| key.eq_ignore_ascii_case(field.name));
                    if let Some(found) = other.cloned().and_then(|key| map.remove(&key)) {
                        map.insert(field.name.to_owned(), found);
                    }
                }
                match (map.get_mut(field.name), field.rule) {
                    (Some(inner), Rule::Object(fields)) => normalise(inner, fields),
                    (Some(Value::Object(named)), Rule::Named(fields)) => {
                        named.values_mut().for_each(|each| normalise(each, fields));
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Refuses the first field that asks for what there is not, by its name. `by_workerd`: the body is
/// workerd's.
///
/// # Errors
/// 501, with the mend.
pub(crate) fn check(value: &Value, fields: &[Field], by_workerd: bool) -> Result<(), ApiError> {
    walk(value, fields, by_workerd, "")
}

fn walk(value: &Value, fields: &[Field], by_workerd: bool, above: &str) -> Result<(), ApiError> {
    if let Value::Array(list) = value {
        return list
            .iter()
            .try_for_each(|each| walk(each, fields, by_workerd, above));
    }
    let Some(map) = value.as_object() else {
        return Ok(()); // Not an object: the handler says so.
    };
    for field in fields {
        let Some(value) = map.get(field.name) else {
            continue;
        };
        let path = format!("{above}{}", field.name);
        match field.rule {
            Rule::Honoured | Rule::Meaningless(_) => {}
            Rule::Object(fields) if !(by_workerd && field.workerd) => {
                walk(value, fields, by_workerd, &format!("{path}."))?;
            }
            Rule::Named(fields) => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    walk(value, fields, by_workerd, &format!("{path}.{name}."))?;
                }
            }
            Rule::Refused(mend) if (field.asks)(value, map) && !(by_workerd && field.workerd) => {
                return Err(refusal(&path, field.option, value, mend));
            }
            Rule::Object(_) | Rule::Refused(_) => {}
        }
    }
    Ok(())
}

/// The longest value that an error repeats, bytes.
const MAX_SHOWN: usize = 100;

fn refusal(path: &str, option: &str, value: &Value, mend: &str) -> ApiError {
    let shown = value.to_string();
    let shown = match shown.len() > MAX_SHOWN {
        true => String::new(),
        false => format!(" = {shown}"),
    };
    let option = match option {
        "" => String::new(),
        option => format!(" ({option})"),
    };
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        format!("{path}{shown}{option} is not supported by this Wharf: {mend}"),
    )
}

/// Reads a JSON body after its check; an empty one is an empty object.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], fields: &[Field]) -> Result<T, ApiError> {
    let invalid = |error: serde_json::Error| {
        ApiError::bad_request(format!("the request body is not valid: {error}"))
    };
    let mut value = match bytes {
        [] => Value::Object(Map::new()),
        bytes => serde_json::from_slice(bytes).map_err(invalid)?,
    };
    normalise(&mut value, fields);
    check(&value, fields, false)?;
    serde_json::from_value(value).map_err(invalid)
}

#[cfg(test)]
mod tests;
