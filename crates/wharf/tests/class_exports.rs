//! Durable Object classes declared by `exports`, by the real wrangler: they come from `migrations`,
//! are renamed and deleted, and what does not fit is refused. Objects keep their data.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use self::common::{Node, Project, WRANGLERS};

const WRANGLER: &str = WRANGLERS[1];

/// A Worker that counts in an object of `class`; its code exports `code`.
fn configure(project: &Project, class: &str, code: &[&str], lifecycle: &str) {
    let config = format!(
        r#"{{"name":"counts","main":"w.js","compatibility_date":"2026-11-01",
            "durable_objects":{{"bindings":[{{"name":"DO","class_name":"{class}"}}]}}, {lifecycle}}}"#
    );
    project.write("wrangler.json", &config);
    let classes: String = code
        .iter()
        .map(|class| format!("export class {class} extends Base {{}}\n"))
        .collect();
    let worker = format!(
        r#"import {{ DurableObject }} from "cloudflare:workers";
           class Base extends DurableObject {{
             async fetch() {{
               const n = ((await this.ctx.storage.get("n")) ?? 0) + 1;
               await this.ctx.storage.put("n", n);
               return new Response(`${{n}} ${{this.ctx.id}}`);
             }}
           }}
           {classes}
           export default {{ fetch: (request, env) => env.DO.getByName("x").fetch(request) }};"#
    );
    project.write("w.js", &worker);
}

/// The object's count and id.
fn count(node: &Node) -> (u32, String) {
    let body = node.get("counts", "/").body;
    let (n, id) = body
        .split_once(' ')
        .unwrap_or_else(|| panic!("{body}\n{}", node.log()));
    (n.parse().unwrap(), id.to_owned())
}

/// A deploy that must be refused; what wrangler printed.
fn refused(node: &Node, project: &Project, args: &[&str]) -> String {
    let out = node.wrangler(WRANGLER, &project.path(), args);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(!out.status.success(), "{text}");
    text
}

#[test]
fn objects_keep_their_data_from_migrations_to_exports_and_over_a_rename() {
    let node = Node::start();
    let project = Project::new(&[]);
    let deploy = || node.wrangler_ok(WRANGLER, &project.path(), &["deploy"]);
    let migrations =
        r#""migrations":[{"tag":"v1","new_sqlite_classes":["Old"],"new_classes":["Kv"]}]"#;
    configure(&project, "Old", &["Old", "Kv"], migrations);
    deploy();
    let (n, id) = count(&node);
    assert_eq!(n, 1);

    // From migrations to exports: nothing changes, so that wrangler prints nothing of it.
    let kv = r#""Kv":{"type":"durable-object","storage":"legacy-kv"}"#;
    let old = r#""Old":{"type":"durable-object","storage":"sqlite"}"#;
    let declared = format!(r#""exports":{{{old},{kv}}}"#);
    configure(&project, "Old", &["Old", "Kv"], &declared);
    let text = deploy();
    assert!(!text.contains("reconciliation"), "{text}");
    assert_eq!(count(&node), (2, id.clone()));

    // And not back.
    configure(&project, "Old", &["Old", "Kv"], migrations);
    let text = refused(&node, &project, &["deploy"]);
    assert!(text.contains("cannot go back to \"migrations\""), "{text}");
    assert_eq!(count(&node), (3, id.clone()));

    // A version that changes no class may be uploaded alone; one that does may not.
    configure(&project, "Old", &["Old", "Kv"], &declared);
    node.wrangler_ok(WRANGLER, &project.path(), &["versions", "upload"]);
    let new = r#""New":{"type":"durable-object","storage":"sqlite"}"#;
    let renamed = format!(
        r#""exports":{{"Old":{{"type":"durable-object","state":"renamed","renamed_to":"New"}},{new},{kv}}}"#
    );
    configure(&project, "New", &["New", "Kv"], &renamed);
    let text = refused(&node, &project, &["versions", "upload"]);
    assert!(text.contains("`wrangler deploy` must do first"), "{text}");

    let text = deploy();
    assert!(text.contains("Renamed: Old → New"), "{text}");
    assert!(!text.contains("Created"), "{text}");
    assert_eq!(count(&node), (4, id.clone()));
    let text = deploy();
    assert!(text.contains("[stale_tombstone] Old"), "{text}");
    assert!(
        text.contains("Safe to remove from `exports`: Old"),
        "{text}"
    );
    assert_eq!(count(&node), (5, id));
}

#[test]
fn a_declared_class_must_be_in_the_code_and_a_deleted_one_must_not() {
    let node = Node::start();
    let project = Project::new(&[]);
    let deploy = || node.wrangler_ok(WRANGLER, &project.path(), &["deploy"]);
    let a = r#""A":{"type":"durable-object","storage":"sqlite"}"#;
    let b = r#""B":{"type":"durable-object","storage":"sqlite"}"#;
    let gone = r#""B":{"type":"durable-object","state":"deleted"}"#;

    // The first deploy of all: one class is missing, nothing is served.
    configure(&project, "A", &["A"], &format!(r#""exports":{{{a},{b}}}"#));
    let text = refused(&node, &project, &["deploy"]);
    assert!(
        text.contains("[config_references_nonexistent_class] class 'B'"),
        "{text}"
    );
    assert!(!text.contains("class 'A'"), "{text}");
    assert_eq!(node.get("counts", "/").status, 404);

    configure(
        &project,
        "A",
        &["A", "B"],
        &format!(r#""exports":{{{a},{b}}}"#),
    );
    let text = deploy();
    assert!(text.contains("Created: A, B"), "{text}");
    let (_, id) = count(&node);

    for (code, exports, scenario, mend) in [
        (
            &["A", "B"][..],
            a.to_owned(),
            "provisioned_class_missing_from_config",
            "Keep it",
        ),
        (
            &["A"],
            a.to_owned(),
            "orphaned_provisioned_namespace",
            "delete it with its data",
        ),
        (
            &["A"],
            format!("{a},{b}"),
            "config_export_not_in_code",
            "Export the class",
        ),
        (
            &["A", "B"],
            format!("{a},{gone}"),
            "tombstone_delete_class_still_in_code",
            "Remove the class from the code",
        ),
        (
            &["A", "B"],
            format!("{a},{}", b.replace("sqlite", "legacy-kv")),
            "storage_type_mismatch",
            "sqlite",
        ),
    ] {
        configure(&project, "A", code, &format!(r#""exports":{{{exports}}}"#));
        let text = refused(&node, &project, &["deploy"]);
        assert!(text.contains(&format!("[{scenario}] class 'B'")), "{text}");
        assert!(
            text.contains("Suggestion: ") && text.contains(mend),
            "{text}"
        );
    }
    // Refused deploys change nothing.
    assert_eq!(count(&node), (2, id));

    configure(
        &project,
        "A",
        &["A"],
        &format!(r#""exports":{{{a},{gone}}}"#),
    );
    assert!(deploy().contains("Deleted: B"));
    // What comes again under the name begins without data.
    configure(
        &project,
        "B",
        &["A", "B"],
        &format!(r#""exports":{{{a},{b}}}"#),
    );
    assert!(deploy().contains("Created: B"));
    assert_eq!(count(&node).0, 1);
}

#[test]
fn a_container_is_named_by_its_class_in_exports() {
    let node = Node::start();
    let project = Project::copy_of("hello");
    project.build_server("one");
    node.wrangler_ok(WRANGLER, &project.path(), &["deploy"]);
    assert_eq!(node.get("hello", "/api/count").json()["count"], 1);
    assert_eq!(node.get("hello", "/api/hello").json()["version"], "one");

    let config = std::fs::read_to_string(project.path().join("wrangler.jsonc")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let config = config.as_object_mut().unwrap();
    config.remove("migrations");
    let container = config["containers"][0].as_object_mut().unwrap();
    container.remove("class_name");
    // The name that wrangler gave it.
    container.insert("name".into(), "hello-hello".into());
    let sqlite = serde_json::json!({"type": "durable-object", "storage": "sqlite"});
    let mut with_container = sqlite.clone();
    with_container["container"] = "hello-hello".into();
    config.insert(
        "exports".into(),
        serde_json::json!({"Hello": with_container, "Counter": sqlite}),
    );
    project.write("wrangler.jsonc", &serde_json::to_string(config).unwrap());
    project.build_server("two");
    node.wrangler_ok(WRANGLER, &project.path(), &["deploy"]);
    assert_eq!(node.get("hello", "/api/count").json()["count"], 2);
    assert_eq!(node.get("hello", "/api/hello").json()["version"], "two");
}
