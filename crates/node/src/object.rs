//! The Durable Object that a container belongs to.

use std::fmt;

/// A Durable Object, as workerd's name for its container tells it: `workerd-<unique key>-<id>`
/// (contract: workerd, 1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The unique key of its namespace.
    pub unique_key: String,
    /// 64 hexadecimal digits.
    pub id: String,
}

impl Object {
    /// Takes a container's name apart; `None` if it is not an object's.
    pub fn parse(name: &str) -> Option<Object> {
        let (unique_key, id) = name.strip_prefix("workerd-")?.rsplit_once('-')?;
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        (is_id && !unique_key.is_empty()).then(|| Object {
            unique_key: unique_key.to_owned(),
            id: id.to_owned(),
        })
    }

    /// An object of the namespace that does not exist: no object has this id.
    pub fn nobody(unique_key: &str) -> Object {
        Object {
            unique_key: unique_key.to_owned(),
            id: "0".repeat(64),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "workerd-{}-{}", self.unique_key, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let id = "0a".repeat(32);
        let name = format!("workerd-my-app-Class-{id}");
        let object = Object::parse(&name).unwrap();
        assert_eq!(object.unique_key, "my-app-Class");
        assert_eq!((object.id.as_str(), object.to_string()), (&*id, name));
        for bad in [
            "workerd-x-00",
            "x",
            &format!("workerd--{id}"),
            &format!("other-k-{id}"),
        ] {
            assert_eq!(Object::parse(bad), None, "{bad}");
        }
    }
}
