//! What becomes of the fields of an object that a client sends. Pure.
//!
//! A name without a row is refused, and so is one whose lack of effect could harm. A field that
//! would be refused passes while it says nothing: null, false, zero, or empty.

use serde_json::{Map, Value};

/// What becomes of a field.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// It has its effect, or code beside this table checks its value.
    Honoured,
    /// It can have no effect on a node, and leaving it out changes nothing. With the reason, for
    /// those who read the table.
    NoMeaning(&'static str),
    /// What it asks for, as a plural, and what the user can do.
    Refused(&'static str, &'static str),
}

/// An object's fields.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// The object, as messages name it: `the upload's metadata`.
    pub of: &'static str,
    /// The fields by name.
    pub fields: &'a [(&'static str, Fate)],
}

/// A field that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// What it asks for, as a plural, and where it stands.
    pub what: String,
    /// What the user can do.
    pub remedy: &'static str,
}

impl Table<'_> {
    /// Refuses the first field that is unknown or not supported, by its name.
    ///
    /// # Errors
    /// That field.
    pub fn check(&self, object: &Map<String, Value>) -> Result<(), Unsupported> {
        for (name, value) in object {
            match self.fate(name) {
                Some(Fate::Honoured | Fate::NoMeaning(_)) => {}
                Some(Fate::Refused(what, remedy)) if !says_nothing(value) => {
                    return Err(Unsupported {
                        what: format!("{what} ({name:?} in {})", self.of),
                        remedy,
                    });
                }
                None if !value.is_null() => {
                    return Err(Unsupported {
                        what: format!("settings named {name:?} in {}", self.of),
                        remedy: "remove it",
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks a value that may be missing; anything but an object passes to the code that reads it.
    ///
    /// # Errors
    /// As [`Table::check`].
    pub fn check_value(&self, value: Option<&Value>) -> Result<(), Unsupported> {
        match value {
            Some(Value::Object(object)) => self.check(object),
            _ => Ok(()),
        }
    }

    /// What becomes of a field of this name; `None`: nobody knows it.
    pub fn fate(&self, name: &str) -> Option<Fate> {
        let row = self.fields.iter().find(|(known, _)| *known == name);
        row.map(|(_, fate)| *fate)
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(says_nothing),
    }
}
