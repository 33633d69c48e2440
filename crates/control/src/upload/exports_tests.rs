use super::*;

fn namespace(class: &str, use_sqlite: bool) -> DurableObjectNamespace {
    DurableObjectNamespace {
        id: format!("id-{class}"),
        script: "hello".into(),
        class: class.into(),
        use_sqlite,
        unique_key: format!("key-{class}"),
    }
}

/// The outcome for a Worker whose code exports `code`.
fn run(exports: Value, before: &[DurableObjectNamespace], code: &[&str]) -> Outcome {
    let mut next = 0;
    Exports::parse(Some(&exports))
        .unwrap()
        .unwrap()
        .reconcile(
            "hello",
            before,
            |class| Some(code.contains(&class)),
            || {
                next += 1;
                Ok(format!("fresh-{next}"))
            },
        )
        .unwrap()
}

fn ids(outcome: &Outcome) -> Vec<(&str, &str)> {
    let namespaces = outcome.namespaces.iter();
    namespaces
        .map(|n| (n.class.as_str(), n.id.as_str()))
        .collect()
}

fn live() -> Value {
    json!({"type": "durable-object", "storage": "sqlite"})
}

fn deleted() -> Value {
    json!({"type": "durable-object", "state": "deleted"})
}

fn renamed(to: &str) -> Value {
    json!({"type": "durable-object", "state": "renamed", "renamed_to": to})
}

#[test]
fn a_class_is_created_once() {
    let first = run(json!({"A": live()}), &[], &["A"]);
    assert_eq!(ids(&first), [("A", "fresh-1")]);
    assert_eq!(first.report()["created"], json!(["A"]));
    assert!(first.changes());

    let again = run(json!({"A": live()}), &first.namespaces, &["A"]);
    assert_eq!(again.namespaces, first.namespaces);
    assert!(!again.changes() && again.refusal().is_none());
}

#[test]
fn a_renamed_class_keeps_its_objects() {
    let before = [namespace("A", true)];
    let map = json!({"A": renamed("B"), "B": live()});
    let outcome = run(map.clone(), &before, &["B"]);
    assert_eq!(ids(&outcome), [("B", "id-A")]);
    assert_eq!(outcome.namespaces[0].unique_key, "key-A");
    assert_eq!(
        outcome.report()["renamed"],
        json!([{"from": "A", "to": "B"}])
    );
    assert_eq!(outcome.report()["created"], json!([]));

    // The old class may stay in the code for a while.
    let both = run(map.clone(), &before, &["A", "B"]);
    assert!(both.refusal().is_none());
    assert_eq!(
        both.report()["info"][0]["scenario"],
        "tombstone_class_still_in_code"
    );

    let stale = run(map, &outcome.namespaces, &["B"]);
    assert_eq!(stale.namespaces, outcome.namespaces);
    assert_eq!(stale.report()["info"][0]["scenario"], "stale_tombstone");
    assert_eq!(stale.report()["removable_entries"], json!(["A"]));
}

#[test]
fn a_deleted_class_loses_its_namespace() {
    let before = [namespace("A", true), namespace("B", false)];
    let map = json!({"A": deleted(), "B": {"type": "durable-object", "storage": "legacy-kv"}});
    let outcome = run(map.clone(), &before, &["B"]);
    assert_eq!(ids(&outcome), [("B", "id-B")]);
    assert_eq!(outcome.report()["deleted"], json!(["A"]));
    let stale = run(map, &outcome.namespaces, &["B"]);
    assert_eq!(stale.report()["removable_entries"], json!(["A"]));
}

#[test]
fn what_does_not_fit_is_refused_with_cloudflares_scenario_and_the_mend() {
    let before = [namespace("A", true), namespace("K", false)];
    let kept = json!({"type": "durable-object", "storage": "legacy-kv"});
    for (exports, code, scenario, mend) in [
        (
            json!({"K": kept}),
            &["A", "K"][..],
            "provisioned_class_missing_from_config",
            "deleted",
        ),
        (
            json!({"K": kept}),
            &["K"],
            "orphaned_provisioned_namespace",
            "deleted",
        ),
        (
            json!({"A": live(), "K": kept}),
            &["K"],
            "config_export_not_in_code",
            "Export the class",
        ),
        (
            json!({"A": live(), "K": kept, "N": live()}),
            &["A", "K"],
            "config_references_nonexistent_class",
            "Remove the entry",
        ),
        (
            json!({"A": renamed("N"), "K": kept, "N": live()}),
            &["K"],
            "config_references_nonexistent_class",
            "Remove the entry",
        ),
        (
            json!({"A": live(), "K": live()}),
            &["A", "K"],
            "storage_type_mismatch",
            "\"legacy-kv\"",
        ),
        (
            json!({"A": live(), "K": renamed("N"), "N": live()}),
            &["A", "N"],
            "storage_type_mismatch",
            "\"legacy-kv\"",
        ),
        (
            json!({"A": live(), "K": kept, "N": kept}),
            &["A", "K", "N"],
            "invalid_export",
            "\"sqlite\"",
        ),
        (
            json!({"A": deleted(), "K": kept}),
            &["A", "K"],
            "tombstone_delete_class_still_in_code",
            "Remove the class from the code",
        ),
        (
            json!({"A": renamed("K"), "K": kept}),
            &["K"],
            "tombstone_renamed_to_occupied",
            "Delete that one first",
        ),
    ] {
        let outcome = run(exports.clone(), &before, code);
        let error = outcome.refusal().unwrap_or_else(|| panic!("{exports}"));
        assert_eq!(error.code, 100_402);
        let details = &error.meta.as_ref().unwrap()["details"];
        assert_eq!(details.as_array().unwrap().len(), 1, "{exports}: {details}");
        assert_eq!(details[0]["scenario"], scenario, "{exports}");
        let suggestion = details[0]["suggestion"].as_str().unwrap();
        assert!(suggestion.contains(mend), "{exports}: {suggestion}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let outcome = run(
        json!({"N": live()}),
        &[namespace("A", true), namespace("B", true)],
        &[],
    );
    assert_eq!(outcome.problems.len(), 3);
}

#[test]
fn entries_of_a_wrong_form_are_refused_by_name() {
    let part = |more: Value| {
        let mut entry = json!({"type": "durable-object"});
        entry
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"A": entry, "B": live()})
    };
    for (exports, code, name) in [
        (part(json!({})), 10021, "storage"),
        (part(json!({"storage": "memory"})), 10021, "exports.A"),
        (
            part(json!({"storage": "sqlite", "renamed_to": "B"})),
            10021,
            "renamed_to",
        ),
        (
            part(json!({"storage": "sqlite", "colour": "red"})),
            10021,
            "colour",
        ),
        (
            part(json!({"storage": "legacy-kv", "container": "c"})),
            10021,
            "container",
        ),
        (
            part(json!({"state": "deleted", "storage": "sqlite"})),
            10021,
            "storage",
        ),
        (part(json!({"state": "renamed"})), 10021, "renamed_to"),
        (
            part(json!({"state": "renamed", "renamed_to": "A"})),
            10021,
            "itself",
        ),
        (
            part(json!({"state": "renamed", "renamed_to": "C"})),
            10021,
            "live entry",
        ),
        (part(json!({"state": "gone"})), 10021, "gone"),
        (
            part(json!({"state": "transferred", "transferred_to": "other"})),
            10501,
            "transferred",
        ),
        (
            part(json!({"state": "expecting-transfer", "storage": "sqlite", "transfer_from": "o"})),
            10501,
            "expecting-transfer",
        ),
        (json!({"A": {"type": "workflow"}}), 10501, "Workflows"),
        (
            json!({"A": {"type": "worker", "cache": {"enabled": true}}}),
            10501,
            "exports.A.cache",
        ),
        (
            json!({"A": {"type": "worker", "colour": "red"}}),
            10021,
            "colour",
        ),
        (json!({"A": {}}), 10004, "exports.A"),
        (
            json!({"A": renamed("C"), "B": renamed("C"), "C": live()}),
            10021,
            "another class",
        ),
    ] {
        let error = Exports::parse(Some(&exports)).unwrap_err();
        assert_eq!(error.code, code, "{exports}: {}", error.message);
        assert!(error.message.contains(name), "{exports}: {}", error.message);
    }
}

#[test]
fn entrypoints_alone_declare_no_classes() {
    for exports in [
        json!({}),
        json!({"Api": {"type": "worker", "cache": {"enabled": false}}}),
    ] {
        assert_eq!(Exports::parse(Some(&exports)).unwrap(), None);
    }
}
