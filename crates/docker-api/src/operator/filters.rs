//! The `filters` parameter of `GET /containers/json`, as Docker has it. What is not known is refused: a caller that deletes what it was
//! shown must never be shown more than it asked for.

use std::collections::BTreeMap;

use serde_json::Value;
use wharf_engine::{Inspect, lifecycle};

use crate::errors::ApiError;
use crate::json;

/// What a container must be to be listed. Values of a name are alternatives, except those of `label`, which must all hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

const KNOWN: [&str; 6] = ["ancestor", "exited", "id", "label", "name", "status"];

impl Filters {
    /// From `{"label":["a=b"]}`, or `{"label":{"a=b":true}}` as Docker's own clients write it. Empty is no filter.
    pub(super) fn parse(text: Option<&str>) -> Result<Filters, ApiError> {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Ok(Filters::default());
        };
        let invalid = || ApiError::bad_request(format!("invalid filters: {text}"));
        let asked: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| invalid())?;
        let mut filters = BTreeMap::new();
        for (name, values) in asked {
            if !KNOWN.contains(&name.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "invalid filter '{name}': this Wharf knows {}",
                    KNOWN.join(", ")
                )));
            }
            let values: Vec<String> = match values {
                Value::Array(values) => values
                    .into_iter()
                    .map(|value| value.as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .ok_or_else(invalid)?,
                Value::Object(values) => values.into_iter().map(|(value, _)| value).collect(),
                _ => return Err(invalid()),
            };
            if !values.is_empty() {
                filters.insert(name, values);
            }
        }
        Ok(Filters(filters))
    }

    /// Whether containers that do not run are meant too, as with `all=1`.
    pub(super) fn wants_ended(&self) -> bool {
        self.0.contains_key("status") || self.0.contains_key("exited")
    }

    /// The images that are asked for as ancestors, to be resolved.
    pub(super) fn ancestors(&self) -> &[String] {
        self.0.get("ancestor").map_or(&[], Vec::as_slice)
    }

    /// Whether a container is to be shown. `image_ids` are those of [`Filters::ancestors`].
    pub(super) fn allow(&self, container: &Inspect, image_ids: &[String]) -> bool {
        self.0.iter().all(|(name, values)| match name.as_str() {
            "label" => values.iter().all(|value| has_label(container, value)),
            "ancestor" => {
                image_ids.contains(&container.image_id) || values.contains(&container.image)
            }
            "id" => values.iter().any(|value| container.id.starts_with(value)),
            "name" => values
                .iter()
                .any(|value| container.name.contains(value.trim_start_matches('/'))),
            "status" => values
                .iter()
                .any(|value| value == json::status(&container.state)),
            "exited" => match &container.state {
                lifecycle::State::Exited(exit) => values
                    .iter()
                    .any(|value| value.parse::<i32>() == Ok(exit.code)),
                _ => false,
            },
            _ => false,
        })
    }
}

fn has_label(container: &Inspect, asked: &str) -> bool {
    match asked.split_once('=') {
        Some((key, value)) => container.labels.get(key).is_some_and(|v| v == value),
        None => container.labels.contains_key(asked),
    }
}

#[cfg(test)]
mod tests {
    use wharf_engine::Owner;

    use super::*;

    fn container(labels: &[(&str, &str)]) -> Inspect {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        Inspect {
            id: "ab".repeat(32),
            generation: 1,
            name: "web".into(),
            owner: Owner::Operator,
            image: "hello:1".into(),
            image_id: "sha256:1".into(),
            application: None,
            application_name: None,
            isolation: wharf_engine::Isolation::Namespace,
            no_new_privileges: false,
            surroundings: wharf_engine::Surroundings::default(),
            state: lifecycle::State::Running,
            pid: None,
            handed: false,
            created_ms: 0,
            started_ms: None,
            finished_ms: None,
            argv: Vec::new(),
            env: Vec::new(),
            labels: labels.iter().map(owned).collect(),
            object_labels: BTreeMap::new(),
            ended_by: None,
            published: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn labels_must_all_hold_and_other_values_are_alternatives() {
        let web = container(&[("session", "1"), ("b", "")]);
        let shows = |text: &str| Filters::parse(Some(text)).unwrap().allow(&web, &[]);
        for yes in [
            "",
            "{}",
            r#"{"label":["session=1"]}"#,
            r#"{"label":{"session=1":true,"b":true}}"#,
            r#"{"name":["x","we"],"status":["running"]}"#,
            r#"{"id":["abab"]}"#,
            r#"{"ancestor":["hello:1"]}"#,
            r#"{"label":[]}"#,
        ] {
            assert!(shows(yes), "{yes}");
        }
        for no in [
            r#"{"label":["session=2"]}"#,
            r#"{"label":["session=1","c"]}"#,
            r#"{"name":["x"]}"#,
            r#"{"status":["exited"]}"#,
            r#"{"exited":["0"]}"#,
            r#"{"ancestor":["other"]}"#,
        ] {
            assert!(!shows(no), "{no}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in [
            r#"{"lable":["a"]}"#,
            r#"{"label":"a"}"#,
            r#"{"label":[1]}"#,
            "[]",
            "x",
        ] {
            assert!(Filters::parse(Some(bad)).is_err(), "{bad}");
        }
    }
}
