//! Bindings: from what an upload says to what the version has, with secrets, inherited and kept ones filled in.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde_json::Value;
use wharf_bindings::{Refusal, Said, kind_of, unsupported};
use wharf_model::fields::{Fate, Table};
use wharf_model::{Binding, DurableObjectNamespace, Version};

use crate::envelope::{ApiError, ApiResult, UNSUPPORTED};
use crate::fields;

/// What bindings are resolved against.
pub(crate) struct Surroundings<'a> {
    pub(crate) script: &'a str,
    /// The script's namespaces after the upload's migrations.
    pub(crate) namespaces: &'a [DurableObjectNamespace],
    /// What `inherit` and `keep_bindings` take from.
    pub(crate) base: Option<&'a Version>,
    /// Finds another version of the script, for `inherit` with a `version_id`.
    pub(crate) version: &'a dyn Fn(&str) -> ApiResult<Option<Version>>,
    pub(crate) script_exists: &'a dyn Fn(&str) -> Result<bool, String>,
    /// The script's secrets: they survive every upload that does not use their name otherwise.
    pub(crate) secrets: &'a BTreeMap<String, String>,
    /// `keep_bindings`: types to take over from `base`.
    pub(crate) keep: &'a [String],
    pub(crate) has_assets: bool,
}

impl Surroundings<'_> {
    fn of_kinds(&self) -> wharf_bindings::Surroundings<'_> {
        wharf_bindings::Surroundings {
            script: self.script,
            namespaces: self.namespaces,
            script_exists: self.script_exists,
            has_assets: self.has_assets,
        }
    }

    fn checked(&self, binding: Binding) -> ApiResult<Binding> {
        Ok(kind_of(&binding).check(binding, &self.of_kinds())?)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(message) => ApiError::invalid(message),
            Refusal::Unsupported(what) => ApiError::unsupported(what),
            Refusal::UnsupportedType { .. } => {
                ApiError::new(StatusCode::BAD_REQUEST, UNSUPPORTED, refusal.to_string())
            }
            Refusal::Missing { code, message } => {
                ApiError::new(StatusCode::BAD_REQUEST, code, message)
            }
            Refusal::Store(message) => ApiError::internal(message),
        }
    }
}

/// The version's bindings, in the upload's order; kept ones and secrets follow.
pub(crate) fn resolve(uploaded: &[Value], around: &Surroundings<'_>) -> ApiResult<Vec<Binding>> {
    let mut bindings = Vec::with_capacity(uploaded.len());
    let mut names = BTreeSet::new();
    for binding in uploaded {
        let binding = one(binding, around)?;
        if !names.insert(binding.name().to_owned()) {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                10053,
                format!(
                    "Binding name '{}' already in use. Please use a different name and try again.",
                    binding.name()
                ),
            ));
        }
        bindings.push(binding);
    }
    for kept in around.base.map_or(&[][..], |base| &base.bindings) {
        // Secrets come from the script's own table, below.
        let kind = kind_of(kept).name();
        let wanted = kind != "secret_text" && around.keep.iter().any(|k| k == kind);
        if wanted && names.insert(kept.name().to_owned()) {
            bindings.push(around.checked(kept.clone())?);
        }
    }
    for (name, text) in around.secrets {
        if names.insert(name.clone()) {
            bindings.push(Binding::SecretText {
                name: name.clone(),
                text: text.clone(),
            });
        }
    }
    Ok(bindings)
}

fn one(uploaded: &Value, around: &Surroundings<'_>) -> ApiResult<Binding> {
    let text = |key: &str| uploaded.get(key).and_then(Value::as_str);
    let (Some(kind), Some(name)) = (text("type"), text("name").filter(|name| !name.is_empty()))
    else {
        return Err(ApiError::invalid(format!(
            "a binding without \"type\" or \"name\": {uploaded}"
        )));
    };
    let said = Said {
        name,
        kind,
        value: uploaded,
    };
    let binding = if kind == "inherit" {
        check_fields(&said, fields::INHERIT)?;
        inherit(name, uploaded, around)?
    } else {
        let kind = wharf_bindings::kind(kind).ok_or_else(|| unsupported(kind, name))?;
        check_fields(&said, kind.fields())?;
        kind.parse(&said, &around.of_kinds())?
    };
    around.checked(binding)
}

/// Refuses fields that a binding of this type does not have.
fn check_fields(said: &Said<'_>, own: &[(&'static str, Fate)]) -> ApiResult<()> {
    let table = Table {
        of: "a binding",
        fields: &[fields::BINDING, own].concat(),
    };
    table.check_value(Some(said.value)).map_err(|field| {
        let mut refusal = ApiError::from(field);
        refusal
            .message
            .push_str(&format!(" (binding {:?})", said.name));
        refusal
    })
}

fn inherit(name: &str, uploaded: &Value, around: &Surroundings<'_>) -> ApiResult<Binding> {
    let text = |key: &str| uploaded.get(key).and_then(Value::as_str);
    let old_name = text("old_name").unwrap_or(name);
    let other;
    let base = match text("version_id") {
        None | Some("latest") => around.base,
        Some(id) => {
            other = (around.version)(id)?;
            other.as_ref()
        }
    };
    let found = base
        .and_then(|base| base.bindings.iter().find(|b| b.name() == old_name))
        .map(|binding| binding.named(name));
    // A secret that was put since, or while no version was there to carry it, counts as inherited too.
    let secret = || {
        around
            .secrets
            .get(old_name)
            .map(|text| Binding::SecretText {
                name: name.to_owned(),
                text: text.clone(),
            })
    };
    found.or_else(secret).ok_or_else(|| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            10057,
            format!(
                "inherit binding '{name}' is invalid: the previous version has no binding named '{old_name}'"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(class: &str) -> DurableObjectNamespace {
        DurableObjectNamespace {
            id: format!("id-{class}"),
            script: "hello".into(),
            class: class.into(),
            use_sqlite: true,
            unique_key: "k".into(),
        }
    }

    fn run(uploaded: Value, base: &[Binding], keep: &[&str]) -> ApiResult<Vec<Binding>> {
        let base = Version {
            id: "v".into(),
            script: "hello".into(),
            number: 1,
            created_ms: 0,
            main_module: "m".into(),
            modules: vec![],
            bindings: base.to_vec(),
            compatibility_date: "2026-01-01".into(),
            compatibility_flags: vec![],
            assets: None,
            container_classes: vec![],
            containers: Default::default(),
            annotations: BTreeMap::new(),
            extra: Value::Null,
        };
        let keep: Vec<String> = keep.iter().map(|k| (*k).to_owned()).collect();
        resolve(
            uploaded.as_array().unwrap(),
            &Surroundings {
                script: "hello",
                namespaces: &[namespace("Counter")],
                base: Some(&base),
                version: &|_| Ok(None),
                script_exists: &|name| Ok(name == "auth"),
                secrets: &BTreeMap::from([("TOKEN".to_owned(), "s3cret".to_owned())]),
                keep: &keep,
                has_assets: false,
            },
        )
    }

    fn plain(name: &str, text: &str) -> Binding {
        Binding::PlainText {
            name: name.into(),
            text: text.into(),
        }
    }

    fn token() -> Binding {
        Binding::SecretText {
            name: "TOKEN".into(),
            text: "s3cret".into(),
        }
    }

    #[test]
    fn secrets_survive_unless_their_name_is_used() {
        let kept = run(
            json!([{"type": "plain_text", "name": "A", "text": "1"}]),
            &[],
            &[],
        );
        assert_eq!(kept.unwrap(), [plain("A", "1"), token()]);
        let replaced = run(
            json!([{"type": "plain_text", "name": "TOKEN", "text": "1"}]),
            &[],
            &[],
        );
        assert_eq!(replaced.unwrap(), [plain("TOKEN", "1")]);
    }

    #[test]
    fn kept_and_inherited_ones_come_from_the_version_before() {
        let base = [plain("A", "old"), plain("B", "old")];
        let kept = run(
            json!([{"type": "plain_text", "name": "A", "text": "new"}]),
            &base,
            &["plain_text", "json"],
        );
        assert_eq!(
            kept.unwrap(),
            [plain("A", "new"), plain("B", "old"), token()]
        );
        let inherited = run(
            json!([{"type": "inherit", "name": "C", "old_name": "B"}, {"type": "inherit", "name": "TOKEN"}]),
            &base,
            &[],
        );
        assert_eq!(inherited.unwrap(), [plain("C", "old"), token()]);
        let strict = run(json!([{"type": "inherit", "name": "Z"}]), &base, &[]).unwrap_err();
        assert_eq!(strict.code, 10057);
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for (binding, code, part) in [
            (
                json!({"type": "durable_object_namespace", "name": "DO", "class_name": "Other"}),
                10061,
                "new_sqlite_classes",
            ),
            (
                json!({"type": "durable_object_namespace", "name": "DO", "class_name": "Counter", "script_name": "x"}),
                10501,
                "another Worker",
            ),
            (
                json!({"type": "service", "name": "S", "service": "nobody"}),
                10143,
                "nobody",
            ),
            (
                json!({"type": "kv_namespace", "name": "MY_KV", "namespace_id": "x"}),
                10501,
                "KV namespaces are not supported by this Wharf yet (binding \"MY_KV\")",
            ),
            (
                json!({"type": "warp_drive", "name": "W"}),
                10501,
                "warp_drive",
            ),
            (
                json!({"type": "assets", "name": "ASSETS"}),
                10021,
                "static assets",
            ),
            (
                json!({"type": "plain_text", "name": "A"}),
                10021,
                "\"text\"",
            ),
            (json!({"type": "plain_text"}), 10021, "name"),
        ] {
            let error = run(json!([binding]), &[], &[]).unwrap_err();
            assert_eq!(error.code, code, "{}", error.message);
            assert!(error.message.contains(part), "{}", error.message);
        }
        let twice = json!([
            {"type": "plain_text", "name": "A", "text": "1"},
            {"type": "json", "name": "A", "json": 1},
        ]);
        assert_eq!(run(twice, &[], &[]).unwrap_err().code, 10053);
    }

    #[test]
    fn the_script_itself_and_other_scripts_may_be_bound() {
        let bound = run(
            json!([
                {"type": "service", "name": "ME", "service": "hello", "entrypoint": "Api"},
                {"type": "service", "name": "AUTH", "service": "auth", "environment": "production"},
                {"type": "durable_object_namespace", "name": "DO", "class_name": "Counter"},
            ]),
            &[],
            &[],
        )
        .unwrap();
        assert_eq!(bound.len(), 4);
        assert!(
            matches!(&bound[2], Binding::DurableObjectNamespace { namespace_id, .. } if namespace_id == "id-Counter")
        );
    }
}
