//! What the prelude of a Worker sends along with a start (`wharf_workerd::prelude`; contract: workerd, 1.4), in a variable of the create's environment.
//!
//! Owns: reading and checking it. Must not: trust it more than the Worker itself: the variable can come
//! from nowhere else than the Worker's own code.

use std::collections::BTreeMap;

use serde::Deserialize;
use wharf_engine::StartOptions;
use wharf_model::names::START_VARIABLE;
use wharf_node::{Size, StartRequest};

use crate::errors::ApiError;

/// workerd's own bounds on labels (its `container.c++`), which hold for whoever writes to the socket himself too.
const MAX_LABELS: usize = 10;
const MAX_LABEL_NAME: usize = 16;
const MAX_LABEL_VALUE: usize = 64;
/// A UUID, with room.
const MAX_TOKEN: usize = 64;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StartOptionsText {
    token: Option<String>,
    instance: Option<Instance>,
    hard_timeout_ms: Option<u64>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// `start({instance})`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Instance {
    Named(String),
    #[serde(rename_all = "camelCase")]
    Custom {
        vcpu: f64,
        memory_mib: u64,
        disk_mb: u64,
    },
}

impl From<Instance> for Size {
    fn from(instance: Instance) -> Size {
        match instance {
            Instance::Named(name) => Size::Named(name),
            Instance::Custom {
                vcpu,
                memory_mib,
                disk_mb,
            } => Size::Custom {
                vcpu,
                memory_mib,
                disk_mb,
            },
        }
    }
}

impl StartOptionsText {
    /// Takes the variable out of the environment.
    pub(crate) fn take(env: &mut Vec<String>) -> Result<StartOptionsText, ApiError> {
        let prefix = format!("{START_VARIABLE}=");
        let found: Vec<String> = env.extract_if(.., |e| e.starts_with(&prefix)).collect();
        let [text] = found.as_slice() else {
            return match found.len() {
                0 => Ok(StartOptionsText::default()),
                n => Err(refused(&format!("is there {n} times"))),
            };
        };
        let carried: StartOptionsText = serde_json::from_str(&text[prefix.len()..])
            .map_err(|error| refused(&format!("is not what the platform writes: {error}")))?;
        check_labels(&carried.labels)?;
        if carried.token.as_ref().is_some_and(|t| t.len() > MAX_TOKEN) {
            return Err(refused("has too long a token"));
        }
        if carried.hard_timeout_ms == Some(0) {
            return Err(ApiError::bad_request("Hard timeout must be greater than 0"));
        }
        Ok(carried)
    }

    /// Names this start.
    pub(crate) fn token(&self) -> Option<String> {
        self.token.clone()
    }

    /// Puts into the start what it says.
    pub(crate) fn apply(self, start: &mut StartRequest) {
        start.size = self.instance.map(Size::from);
        start.options = StartOptions {
            token: self.token,
            labels: self.labels,
            hard_timeout_ms: self.hard_timeout_ms,
        };
    }
}

/// As workerd checks labels.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let wrong = |what: &str| Err(ApiError::bad_request(what));
    if labels.len() > MAX_LABELS {
        return wrong("Cannot specify more than 10 container labels");
    }
    for (name, value) in labels {
        let control = |text: &str| text.bytes().any(|b| b < 0x20);
        if name.is_empty() {
            return wrong("Label names cannot be empty");
        }
        if name.len() > MAX_LABEL_NAME {
            return wrong("Label names cannot exceed 16 bytes");
        }
        if value.len() > MAX_LABEL_VALUE {
            return wrong("Label values cannot exceed 64 bytes");
        }
        if control(name) {
            return wrong("Label names cannot contain control characters");
        }
        if control(value) {
            return wrong("Label values cannot contain control characters");
        }
    }
    Ok(())
}

fn refused(why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "the environment variable {START_VARIABLE} is reserved for the platform, and {why}; give yours another name"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(text: &str) -> Result<StartOptionsText, String> {
        let mut env = vec![
            "A=1".to_owned(),
            format!("{START_VARIABLE}={text}"),
            "B=2".to_owned(),
        ];
        let carried = StartOptionsText::take(&mut env).map_err(|e| e.message);
        assert_eq!(env, ["A=1", "B=2"]);
        carried
    }

    fn start(text: StartOptionsText) -> StartRequest {
        let mut start = StartRequest::default();
        text.apply(&mut start);
        start
    }

    #[test]
    fn without_the_variable_a_start_asks_for_nothing() {
        let none = StartOptionsText::take(&mut vec!["A=1".into()]).unwrap();
        assert_eq!(start(none), StartRequest::default());
    }

    #[test]
    fn everything_arrives() {
        let text = r#"{"token":"t","hardTimeoutMs":1500,"labels":{"team":"a=b"}}"#;
        let options = start(carried(text).unwrap()).options;
        assert_eq!(options.token.as_deref(), Some("t"));
        assert_eq!(options.hard_timeout_ms, Some(1500));
        assert_eq!(options.labels["team"], "a=b");
    }

    #[test]
    fn sizes_are_named_or_figures() {
        let size = |text: &str| start(carried(text).unwrap()).size;
        assert_eq!(
            size(r#"{"instance":"lite"}"#),
            Some(Size::Named("lite".to_owned()))
        );
        assert_eq!(
            size(r#"{"instance":{"vcpu":0.5,"memoryMib":100,"diskMb":1000}}"#),
            Some(Size::Custom {
                vcpu: 0.5,
                memory_mib: 100,
                disk_mb: 1000
            })
        );
    }

    #[test]
    fn a_forged_variable_is_refused_by_name() {
        for text in ["", "{", "7", r#"{"memory":1}"#, r#"{"hardTimeoutMs":0}"#] {
            assert!(carried(text).is_err(), "{text}");
        }
        assert!(carried("x").unwrap_err().contains(START_VARIABLE));
        let mut twice = vec![format!("{START_VARIABLE}={{}}"); 2];
        assert!(StartOptionsText::take(&mut twice).is_err());
    }

    #[test]
    fn labels_have_workerds_bounds() {
        let check = |name: &str, value: &str| {
            check_labels(&BTreeMap::from([(name.to_owned(), value.to_owned())])).is_ok()
        };
        assert!(check(&"n".repeat(16), &"v".repeat(64)));
        assert!(check("emoji", "🧪"));
        assert!(!check(&"n".repeat(17), "v"));
        assert!(!check("n", &"v".repeat(65)));
        assert!(!check("", "v"));
        assert!(!check("a\u{1}", "v"));
        assert!(!check("a", "\n"));
        let eleven = (0..11).map(|n| (n.to_string(), String::new())).collect();
        assert!(check_labels(&eleven).is_err());
    }
}
