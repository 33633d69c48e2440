//! Durable Object migrations: which namespaces a script has after an upload. Pure.
//!
//! A migration names the tag it starts from (`old_tag`) and the one it ends at (`new_tag`); its steps run in order. A class keeps its
//! namespace, and so its objects, over renames. Codes and rules are Cloudflare's.

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use wharf_model::DurableObjectNamespace;

use crate::envelope::{ApiError, ApiResult};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Migrations {
    old_tag: Option<String>,
    new_tag: Option<String>,
    steps: Option<Vec<Step>>,
    // An upload with a single step may have it here.
    #[serde(flatten)]
    only: Step,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    new_classes: Vec<String>,
    new_sqlite_classes: Vec<String>,
    renamed_classes: Vec<Rename>,
    deleted_classes: Vec<String>,
    transferred_classes: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Rename {
    from: String,
    to: String,
}

/// A script's namespaces and its migration tag.
pub(crate) type State = (Vec<DurableObjectNamespace>, Option<String>);

fn refuse(code: u32, message: String) -> ApiError {
    let status = match code {
        10079 => StatusCode::PRECONDITION_FAILED,
        _ => StatusCode::BAD_REQUEST,
    };
    ApiError::new(status, code, message)
}

/// What `migrations` makes of a script's namespaces. `fresh` makes ids: 32 random hex digits.
pub(crate) fn apply(
    script: &str,
    (namespaces, tag): State,
    migrations: &Value,
    mut fresh: impl FnMut() -> ApiResult<String>,
) -> ApiResult<State> {
    let migrations = Migrations::deserialize(migrations).map_err(|error| {
        ApiError::bad_request(format!("the upload's migrations can't be read: {error}"))
    })?;
    if migrations.old_tag != tag {
        let shown = |tag: &Option<String>| tag.as_ref().map_or("none".into(), |t| format!("{t:?}"));
        return Err(refuse(
            10079,
            format!(
                "Migration tag precondition failed: the upload starts from tag {}, the deployed Worker is at {}. \
                 Keep the migrations that are applied in your configuration, and deploy again.",
                shown(&migrations.old_tag),
                shown(&tag)
            ),
        ));
    }
    let mut namespaces = namespaces;
    let steps = migrations.steps.unwrap_or_else(|| vec![migrations.only]);
    for step in steps {
        apply_step(script, &mut namespaces, step, &mut fresh)?;
    }
    Ok((namespaces, migrations.new_tag.or(tag)))
}

fn apply_step(
    script: &str,
    namespaces: &mut Vec<DurableObjectNamespace>,
    step: Step,
    fresh: &mut impl FnMut() -> ApiResult<String>,
) -> ApiResult<()> {
    if !step.transferred_classes.is_empty() {
        return Err(ApiError::unsupported(
            "transfers of Durable Object classes between Workers (\"transferred_classes\")",
        ));
    }
    let find = |namespaces: &[DurableObjectNamespace], class: &str| {
        namespaces.iter().position(|n| n.class == class)
    };
    let new = (step.new_classes.into_iter().map(|class| (class, false))).chain(
        step.new_sqlite_classes
            .into_iter()
            .map(|class| (class, true)),
    );
    for (class, use_sqlite) in new {
        if find(namespaces, &class).is_some() {
            return Err(refuse(
                10074,
                format!(
                    "Cannot apply new-class migration to class '{class}' that is already depended on by existing Durable Objects"
                ),
            ));
        }
        if class.is_empty() {
            return Err(ApiError::bad_request("a migration names an empty class"));
        }
        namespaces.push(DurableObjectNamespace {
            id: fresh()?,
            script: script.to_owned(),
            class,
            use_sqlite,
            unique_key: fresh()?,
        });
    }
    for Rename { from, to } in step.renamed_classes {
        let Some(index) = find(namespaces, &from) else {
            return Err(refuse(
                10072,
                format!(
                    "Cannot apply rename-class migration from class '{from}': it has no Durable Object namespace"
                ),
            ));
        };
        if find(namespaces, &to).is_some() {
            return Err(refuse(
                10073,
                format!(
                    "Cannot apply rename-class migration to class '{to}' that is already depended on by existing Durable Objects"
                ),
            ));
        }
        namespaces[index].class = to;
    }
    for class in step.deleted_classes {
        let Some(index) = find(namespaces, &class) else {
            return Err(refuse(
                10070,
                format!(
                    "Cannot apply delete-class migration to class '{class}': it has no Durable Object namespace"
                ),
            ));
        };
        namespaces.remove(index);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(state: State, migrations: Value) -> ApiResult<State> {
        let mut next = 0;
        apply("hello", state, &migrations, || {
            next += 1;
            Ok(format!("{next:032}"))
        })
    }

    fn classes(state: &State) -> Vec<(&str, bool)> {
        state
            .0
            .iter()
            .map(|n| (n.class.as_str(), n.use_sqlite))
            .collect()
    }

    #[test]
    fn a_first_deploy_makes_namespaces_and_later_ones_keep_them() {
        let first = run(
            (vec![], None),
            json!({"new_tag": "v1", "steps": [{"new_sqlite_classes": ["A"], "new_classes": ["B"]}]}),
        )
        .unwrap();
        assert_eq!(classes(&first), [("B", false), ("A", true)]);
        assert_eq!(first.1.as_deref(), Some("v1"));
        let id = first.0[1].id.clone();

        let second = run(
            first,
            json!({"old_tag": "v1", "new_tag": "v3", "steps": [
                {"renamed_classes": [{"from": "A", "to": "C"}]},
                {"deleted_classes": ["B"], "new_sqlite_classes": ["A"]},
            ]}),
        )
        .unwrap();
        assert_eq!(classes(&second), [("C", true), ("A", true)]);
        assert_eq!(second.0[0].id, id, "a renamed class keeps its objects");
        assert_ne!(second.0[1].id, id);
    }

    #[test]
    fn a_single_step_may_stand_without_steps() {
        let state = run(
            (vec![], None),
            json!({"new_tag": "v1", "new_classes": ["A"]}),
        )
        .unwrap();
        assert_eq!(classes(&state), [("A", false)]);
    }

    #[test]
    fn wrong_migrations_are_refused_with_cloudflares_codes() {
        let state = || {
            run(
                (vec![], None),
                json!({"new_tag": "v1", "new_classes": ["A", "B"]}),
            )
            .unwrap()
        };
        for (migrations, code) in [
            (json!({"new_tag": "v1", "new_classes": ["X"]}), 10079),
            (
                json!({"old_tag": "v0", "new_tag": "v1", "new_classes": ["X"]}),
                10079,
            ),
            (
                json!({"old_tag": "v1", "new_tag": "v2", "new_sqlite_classes": ["A"]}),
                10074,
            ),
            (
                json!({"old_tag": "v1", "new_tag": "v2", "steps": [{"renamed_classes": [{"from": "X", "to": "Y"}]}]}),
                10072,
            ),
            (
                json!({"old_tag": "v1", "new_tag": "v2", "steps": [{"renamed_classes": [{"from": "A", "to": "B"}]}]}),
                10073,
            ),
            (
                json!({"old_tag": "v1", "new_tag": "v2", "steps": [{"deleted_classes": ["X"]}]}),
                10070,
            ),
            (
                json!({"old_tag": "v1", "new_tag": "v2", "steps": [{"transferred_classes": [{"from": "A"}]}]}),
                10501,
            ),
        ] {
            assert_eq!(
                run(state(), migrations.clone()).unwrap_err().code,
                code,
                "{migrations}"
            );
        }
    }
}
