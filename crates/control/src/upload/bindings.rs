//! Bindings: from what an upload says to what the version has, with secrets, inherited and kept ones filled in.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde_json::Value;
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
    pub(crate) script_exists: &'a dyn Fn(&str) -> ApiResult<bool>,
    /// The script's secrets: they survive every upload that does not use their name otherwise.
    pub(crate) secrets: &'a BTreeMap<String, String>,
    /// `keep_bindings`: types to take over from `base`.
    pub(crate) keep: &'a [String],
    pub(crate) has_assets: bool,
}

/// Types of bindings that Cloudflare has and Wharf has not.
const UNSUPPORTED_TYPES: &[(&str, &str)] = &[
    ("kv_namespace", "KV namespaces"),
    ("r2_bucket", "R2 buckets"),
    ("d1", "D1 databases"),
    ("queue", "Queues"),
    ("workflow", "Workflows"),
    ("ai", "Workers AI bindings"),
    ("ratelimit", "rate limits"),
    ("analytics_engine", "Analytics Engine datasets"),
    ("vectorize", "Vectorize indexes"),
    ("hyperdrive", "Hyperdrive configurations"),
    ("secrets_store_secret", "Secrets Store secrets"),
    ("dispatch_namespace", "dispatch namespaces"),
    ("mtls_certificate", "mTLS certificates"),
    ("pipelines", "Pipelines"),
    ("worker_loader", "Worker loaders"),
    ("browser", "Browser Rendering bindings"),
    ("images", "Images bindings"),
    ("send_email", "Email bindings"),
    (
        "wasm_module",
        "WebAssembly bindings (import the module instead)",
    ),
    ("text_blob", "text blobs (import the module instead)"),
    ("data_blob", "data blobs (import the module instead)"),
    ("logfwdr", "logfwdr bindings"),
    ("ai_search", "AI Search bindings"),
    ("ai_search_namespace", "AI Search namespaces"),
    ("agent_memory", "Agent Memory bindings"),
    ("analytics", "Analytics bindings"),
    ("artifacts", "Artifacts bindings"),
    ("flagship", "Flagship bindings"),
    ("k2", "K2 streams"),
    ("media", "Media bindings"),
    ("secret_key", "secret keys"),
    ("stream", "Stream bindings"),
    ("unsafe_hello_world", "hello-world bindings"),
    ("vpc_network", "VPC networks"),
    ("vpc_service", "VPC services"),
];

fn unsupported(kind: &str, name: &str) -> ApiError {
    let what = UNSUPPORTED_TYPES
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or_else(
            || format!("bindings of type {kind:?}"),
            |(_, what)| (*what).to_owned(),
        );
    ApiError::new(
        StatusCode::BAD_REQUEST,
        UNSUPPORTED,
        format!("{what} are not supported by this Wharf yet (binding {name:?})"),
    )
}

/// The `type` of a binding.
pub(crate) fn kind(binding: &Binding) -> &'static str {
    match binding {
        Binding::PlainText { .. } => "plain_text",
        Binding::Json { .. } => "json",
        Binding::SecretText { .. } => "secret_text",
        Binding::DurableObjectNamespace { .. } => "durable_object_namespace",
        Binding::Service { .. } => "service",
        Binding::Assets { .. } => "assets",
        Binding::VersionMetadata { .. } => "version_metadata",
    }
}

/// The same binding under another name.
fn named(binding: &Binding, new_name: &str) -> Binding {
    let mut binding = binding.clone();
    match &mut binding {
        Binding::PlainText { name, .. }
        | Binding::Json { name, .. }
        | Binding::SecretText { name, .. }
        | Binding::DurableObjectNamespace { name, .. }
        | Binding::Service { name, .. }
        | Binding::Assets { name }
        | Binding::VersionMetadata { name } => new_name.clone_into(name),
    }
    binding
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
        let wanted = kind(kept) != "secret_text" && around.keep.iter().any(|k| k == kind(kept));
        if wanted && names.insert(kept.name().to_owned()) {
            bindings.push(checked(kept.clone(), around)?);
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
    let need = |key: &str| {
        text(key).map(str::to_owned).ok_or_else(|| {
            ApiError::invalid(format!("binding {name:?} of type {kind:?} needs {key:?}"))
        })
    };
    let table = fields::binding(kind).ok_or_else(|| unsupported(kind, name))?;
    if let Err(mut refusal) = table.check_value(Some(uploaded)) {
        refusal.message.push_str(&format!(" (binding {name:?})"));
        return Err(refusal);
    }
    let name = name.to_owned();
    let binding = match kind {
        "plain_text" => Binding::PlainText {
            text: need("text")?,
            name,
        },
        "secret_text" => Binding::SecretText {
            text: need("text")?,
            name,
        },
        "json" => Binding::Json {
            json: uploaded.get("json").cloned().ok_or_else(|| {
                ApiError::invalid(format!("binding {name:?} of type \"json\" needs \"json\""))
            })?,
            name,
        },
        "durable_object_namespace" => durable_object(name, uploaded, around)?,
        "service" => {
            if let Some(environment) = text("environment").filter(|e| *e != "production") {
                return Err(ApiError::unsupported(format!(
                    "service environments ({environment:?} in binding {name:?})"
                )));
            }
            Binding::Service {
                service: need("service")?,
                entrypoint: text("entrypoint").map(str::to_owned),
                props: uploaded.get("props").filter(|p| !p.is_null()).cloned(),
                name,
            }
        }
        "assets" => Binding::Assets { name },
        "version_metadata" => Binding::VersionMetadata { name },
        "inherit" => inherit(&name, uploaded, around)?,
        other => return Err(unsupported(other, &name)),
    };
    checked(binding, around)
}

fn durable_object(name: String, uploaded: &Value, around: &Surroundings<'_>) -> ApiResult<Binding> {
    let text = |key: &str| uploaded.get(key).and_then(Value::as_str);
    if let Some(other) = text("script_name").filter(|other| *other != around.script) {
        return Err(ApiError::unsupported(format!(
            "Durable Objects of another Worker (\"script_name\": {other:?} in binding {name:?})"
        )));
    }
    let class = text("class_name").unwrap_or_default();
    let namespace = around.namespaces.iter().find(|namespace| {
        namespace.class == class
            || (class.is_empty() && Some(&*namespace.id) == text("namespace_id"))
    });
    let Some(namespace) = namespace else {
        return Err(no_namespace(class, &format!("binding {name:?}")));
    };
    Ok(Binding::DurableObjectNamespace {
        name,
        class_name: namespace.class.clone(),
        namespace_id: namespace.id.clone(),
    })
}

/// The answer to a class that has no namespace.
pub(crate) fn no_namespace(class: &str, user: &str) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        10061,
        format!(
            "Cannot create binding for class '{class}' ({user}) because it is not currently configured to implement Durable Objects. \
             Did you forget to declare it? Add \"{class}\": {{\"type\": \"durable-object\", \"storage\": \"sqlite\"}} to \"exports\" of your configuration, \
             or {{\"tag\": \"...\", \"new_sqlite_classes\": [\"{class}\"]}} to \"migrations\" if it has those."
        ),
    )
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
        .map(|binding| named(binding, name));
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

/// Checks a binding, new or taken over, against what exists now.
fn checked(binding: Binding, around: &Surroundings<'_>) -> ApiResult<Binding> {
    match &binding {
        Binding::Service { name, service, .. }
            if service != around.script && !(around.script_exists)(service)? =>
        {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                10143,
                format!(
                    "Could not resolve service binding '{name}'. Target script '{service}' not found: deploy it first."
                ),
            ));
        }
        Binding::DurableObjectNamespace {
            name,
            class_name,
            namespace_id,
        } => {
            let current = around.namespaces.iter().find(|n| n.id == *namespace_id);
            let Some(current) = current else {
                return Err(no_namespace(class_name, &format!("binding {name:?}")));
            };
            if current.class != *class_name {
                return Ok(Binding::DurableObjectNamespace {
                    name: name.clone(),
                    class_name: current.class.clone(),
                    namespace_id: namespace_id.clone(),
                });
            }
        }
        Binding::Assets { name } if !around.has_assets => {
            return Err(ApiError::invalid(format!(
                "binding {name:?} is for static assets, but the upload has none"
            )));
        }
        _ => {}
    }
    Ok(binding)
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
