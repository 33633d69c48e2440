//! Every key of wrangler's configuration is honoured, has no meaning on a node, never leaves
//! wrangler, or is refused by its name: the table is read against the schemas that wrangler ships.
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]
#![recursion_limit = "512"]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use http::Method;
use serde_json::{Map, Value, json};

use self::common::{Node, upload};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It has its effect. The keys below have rows of their own.
    Works,
    /// The same, with all that is below.
    WorksWhole,
    /// wrangler keeps it to itself: it builds, checks or develops with it. With all below.
    Local,
    /// Accepted without effect, with all below. The reasons are in `fields.rs`.
    NoMeaning,
    /// Refused in an upload, with all below: the field of the metadata.
    Field(&'static str),
    /// Refused in an upload, with all below: the type of the binding.
    Binding(&'static str),
    /// Refused with all below, since what wrangler asks before or after the upload is: the path.
    Endpoint(&'static str),
    /// Refused in a container application, with all below: the field of its body.
    Application(&'static str),
}

use Fate::*;

const KEYS: &[(&str, Fate)] = &[
    ("$schema", Local),
    ("access", Local),
    ("account_id", WorksWhole),
    // `wrangler email` reads it; a deploy sends nothing of it.
    ("addresses", Local),
    ("agent_memory", Binding("agent_memory")),
    ("ai", Binding("ai")),
    ("ai_search", Binding("ai_search")),
    ("ai_search_namespaces", Binding("ai_search_namespace")),
    ("alias", Local),
    ("analytics", Binding("analytics")),
    ("analytics_engine_datasets", Binding("analytics_engine")),
    ("artifacts", Binding("artifacts")),
    ("assets", Works),
    ("assets.base_path", Field("assets")),
    ("assets.binding", WorksWhole),
    ("assets.directory", WorksWhole),
    ("assets.html_handling", WorksWhole),
    ("assets.not_found_handling", WorksWhole),
    ("assets.run_worker_first", WorksWhole),
    ("base_dir", Local),
    ("browser", Binding("browser")),
    ("build", Local),
    ("cache", Field("cache_options")),
    // `wrangler cloudchamber` reads it.
    ("cloudchamber", Local),
    ("compatibility_date", WorksWhole),
    ("compatibility_flags", WorksWhole),
    // Chooses which of Cloudflare's hosts wrangler talks to; `wharf env` names the node.
    ("compliance_region", Local),
    // Handlers of `wrangler dev`; a deploy sends nothing of it.
    ("connect", Local),
    ("containers", Works),
    ("containers[].authorized_keys", NoMeaning),
    ("containers[].class_name", WorksWhole),
    ("containers[].constraints", Works),
    (
        "containers[].constraints.jurisdiction",
        Application("constraints.jurisdiction"),
    ),
    (
        "containers[].constraints.regions",
        Application("constraints.regions"),
    ),
    ("containers[].image", WorksWhole),
    ("containers[].image_build_context", WorksWhole),
    ("containers[].image_vars", WorksWhole),
    ("containers[].images", WorksWhole),
    ("containers[].instance_type", WorksWhole),
    ("containers[].max_instances", WorksWhole),
    ("containers[].name", WorksWhole),
    ("containers[].observability", NoMeaning),
    (
        "containers[].rollout_active_grace_period",
        Application("rollout_active_grace_period"),
    ),
    ("containers[].rollout_step_percentage", NoMeaning),
    ("containers[].scheduling_policy", WorksWhole),
    (
        "containers[].ssh",
        Application("configuration.wrangler_ssh"),
    ),
    ("containers[].trusted_user_ca_keys", NoMeaning),
    ("d1_databases", Binding("d1")),
    // wrangler bundles only service-worker scripts with them.
    ("data_blobs", Local),
    ("define", Local),
    ("dependencies_instrumentation", NoMeaning),
    ("dev", Local),
    ("dispatch_namespaces", Binding("dispatch_namespace")),
    ("durable_objects", Works),
    ("durable_objects.bindings", Works),
    ("durable_objects.bindings[].class_name", WorksWhole),
    (
        "durable_objects.bindings[].environment",
        Binding("durable_object_namespace"),
    ),
    ("durable_objects.bindings[].name", WorksWhole),
    (
        "durable_objects.bindings[].script_name",
        Binding("durable_object_namespace"),
    ),
    ("durable_objects.code_update_strategy", NoMeaning),
    // The same keys; wrangler takes them instead of those at the top.
    ("env", WorksWhole),
    ("exports", WorksWhole),
    ("find_additional_modules", Local),
    ("first_party_worker", Local),
    ("flagship", Binding("flagship")),
    ("hyperdrive", Binding("hyperdrive")),
    ("images", Binding("images")),
    ("jsx_factory", Local),
    ("jsx_fragment", Local),
    ("k2", Binding("k2")),
    ("keep_names", Local),
    ("keep_vars", WorksWhole),
    ("kv_namespaces", Binding("kv_namespace")),
    ("legacy_env", Local),
    ("limits", Works),
    ("limits.cpu_ms", WorksWhole),
    ("limits.subrequests", Field("limits")),
    ("logfwdr", Binding("logfwdr")),
    ("logpush", Field("logpush")),
    ("main", WorksWhole),
    ("media", Binding("media")),
    ("migrations", WorksWhole),
    ("minify", Local),
    ("mtls_certificates", Binding("mtls_certificate")),
    ("name", WorksWhole),
    ("no_bundle", Local),
    ("observability", Works),
    ("observability.enabled", NoMeaning),
    ("observability.head_sampling_rate", NoMeaning),
    ("observability.issues", NoMeaning),
    ("observability.logs", Works),
    ("observability.logs.destinations", Field("observability")),
    ("observability.logs.enabled", NoMeaning),
    ("observability.logs.head_sampling_rate", NoMeaning),
    ("observability.logs.invocation_logs", NoMeaning),
    ("observability.logs.persist", NoMeaning),
    ("observability.redact_query_string", NoMeaning),
    ("observability.traces", Works),
    ("observability.traces.destinations", Field("observability")),
    ("observability.traces.enabled", NoMeaning),
    ("observability.traces.head_sampling_rate", NoMeaning),
    ("observability.traces.persist", NoMeaning),
    // wrangler itself refuses to deploy such a project.
    ("pages_build_output_dir", Local),
    ("pipelines", Binding("pipelines")),
    ("placement", NoMeaning),
    ("preserve_file_names", Local),
    ("preview_urls", WorksWhole),
    // `wrangler preview` reads it.
    ("previews", Local),
    // Python Workers are refused by their modules.
    ("python_modules", Local),
    ("queues", Endpoint("queues")),
    ("r2_buckets", Binding("r2_bucket")),
    ("ratelimits", Binding("ratelimit")),
    ("route", Endpoint("/zones")),
    ("routes", Endpoint("/zones")),
    ("rules", Local),
    // wrangler checks that they exist.
    ("secrets", WorksWhole),
    ("secrets_store_secrets", Binding("secrets_store_secret")),
    ("send_email", Binding("send_email")),
    ("send_metrics", Local),
    ("services", Works),
    ("services[].binding", WorksWhole),
    ("services[].entrypoint", WorksWhole),
    ("services[].props", WorksWhole),
    ("services[].remote", Local),
    ("services[].service", WorksWhole),
    ("site", Endpoint("storage/kv/namespaces")),
    ("stream", Binding("stream")),
    (
        "streaming_tail_consumers",
        Field("streaming_tail_consumers"),
    ),
    ("tail_consumers", Field("tail_consumers")),
    ("text_blobs", Local),
    ("triggers", Works),
    ("triggers.crons", WorksWhole),
    ("triggers.events", Endpoint("event_subscriptions")),
    ("tsconfig", Local),
    ("unsafe", Works),
    ("unsafe.bindings", Binding("made_up")),
    ("unsafe.capnp", Field("capnp_schema")),
    ("unsafe.metadata", Field("made_up")),
    ("unsafe_hello_world", Binding("unsafe_hello_world")),
    ("upload_source_maps", NoMeaning),
    ("vars", WorksWhole),
    ("vectorize", Binding("vectorize")),
    ("version_metadata", WorksWhole),
    ("vpc_networks", Binding("vpc_network")),
    ("vpc_services", Binding("vpc_service")),
    ("wasm_modules", Local),
    ("worker_loaders", Binding("worker_loader")),
    ("workers_dev", WorksWhole),
    ("workflows", Binding("workflow")),
];

fn wrangler(version: &str) -> PathBuf {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
        "../../target/tools/wrangler-{version}/node_modules"
    ));
    assert!(
        modules.exists(),
        "the pinned tools are missing: run `cargo xtask setup`"
    );
    modules
}

/// Adds the keys below a part of the schema, as `containers[].image`.
fn keys(part: &Value, definitions: &Value, path: &str, found: &mut BTreeSet<String>) {
    let part = match part["$ref"].as_str() {
        Some(name) => &definitions[name.rsplit('/').next().unwrap()],
        None => part,
    };
    for list in ["anyOf", "allOf"] {
        for part in part[list].as_array().into_iter().flatten() {
            keys(part, definitions, path, found);
        }
    }
    if part["type"] == "array" {
        keys(&part["items"], definitions, &format!("{path}[]"), found);
    }
    for (name, below) in part["properties"].as_object().into_iter().flatten() {
        let key = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        // `env` and `previews` hold the whole schema again.
        let whole = matches!(key.as_str(), "env" | "previews");
        found.insert(key.clone());
        if !whole {
            keys(below, definitions, &key, found);
        }
    }
}

fn is_below(key: &str, parent: &str) -> bool {
    key.strip_prefix(parent)
        .is_some_and(|rest| rest.starts_with('.') || rest.starts_with('['))
}

#[test]
fn every_key_of_the_configuration_has_a_row_and_every_row_a_key() {
    let mut found = BTreeSet::new();
    for version in ["4.86.0", "4.164.0"] {
        let file = wrangler(version).join("wrangler/config-schema.json");
        let schema: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let definitions = &schema["definitions"];
        keys(&definitions["RawConfig"], definitions, "", &mut found);
    }
    assert!(found.len() > 350, "{} keys", found.len());
    let covered = |key: &str| {
        KEYS.iter()
            .any(|(row, fate)| *row == key || (*fate != Works && is_below(key, row)))
    };
    let without_row: Vec<_> = found.iter().filter(|key| !covered(key)).collect();
    assert!(
        without_row.is_empty(),
        "keys without a row: {without_row:?}"
    );
    let without_key: Vec<_> = KEYS
        .iter()
        .map(|(row, _)| *row)
        .filter(|row| !found.contains(*row))
        .collect();
    assert!(
        without_key.is_empty(),
        "rows without a key: {without_key:?}"
    );
}

/// A project that uses each key that is refused in an upload.
fn project() -> Value {
    json!({
        "name": "keys", "main": "index.js", "compatibility_date": "2026-01-01",
        "durable_objects": {"bindings": [
            {"name": "OTHER", "class_name": "C", "script_name": "other"},
            {"name": "STAGING", "class_name": "C", "script_name": "keys", "environment": "staging"},
        ]},
        "limits": {"subrequests": 50}, "logpush": true, "cache": {"enabled": true},
        "placement": {"mode": "smart"},
        "observability": {"enabled": true, "logs": {"destinations": ["x"]}},
        "tail_consumers": [{"service": "t"}], "streaming_tail_consumers": [{"service": "t"}],
        "logfwdr": {"bindings": [{"name": "LOGFWDR", "destination": "x"}]},
        "kv_namespaces": [{"binding": "KV", "id": "abc"}],
        "send_email": [{"name": "EMAIL"}],
        "queues": {"producers": [{"binding": "QUEUE", "queue": "q"}]},
        "r2_buckets": [{"binding": "R2", "bucket_name": "bucket"}],
        "d1_databases": [{"binding": "D1", "database_id": "x", "database_name": "y"}],
        "vectorize": [{"binding": "VECTORIZE", "index_name": "i"}],
        "ai_search_namespaces": [{"binding": "SEARCHES", "namespace": "n"}],
        "ai_search": [{"binding": "SEARCH", "instance_name": "n"}],
        "agent_memory": [{"binding": "MEMORY", "namespace": "n"}],
        "hyperdrive": [{"binding": "HYPERDRIVE", "id": "x"}],
        "analytics_engine_datasets": [{"binding": "DATASET", "dataset": "d"}],
        "browser": {"binding": "BROWSER"}, "analytics": {"binding": "ANALYTICS"},
        "ai": {"binding": "AI"}, "images": {"binding": "IMAGES"}, "media": {"binding": "MEDIA"},
        "stream": {"binding": "STREAM"},
        "mtls_certificates": [{"binding": "MTLS", "certificate_id": "x"}],
        "dispatch_namespaces": [{"binding": "DISPATCH", "namespace": "n"}],
        "pipelines": [{"binding": "PIPELINE", "stream": "p"}],
        "k2": [{"binding": "K2", "stream": "s"}],
        "secrets_store_secrets": [{"binding": "STORE", "store_id": "s", "secret_name": "n"}],
        "artifacts": [{"binding": "ARTIFACTS", "namespace": "n"}],
        "unsafe_hello_world": [{"binding": "HELLO"}],
        "flagship": [{"binding": "FLAGSHIP", "app_id": "a"}],
        "ratelimits": [{"name": "RATE", "namespace_id": "1", "simple": {"limit": 1, "period": 10}}],
        "worker_loaders": [{"binding": "LOADER"}],
        "vpc_services": [{"binding": "SERVICE", "service_id": "s"}],
        "vpc_networks": [{"binding": "NETWORK", "network_id": "cf1:network"}],
        "workflows": [{"binding": "WORKFLOW", "name": "w", "class_name": "W"}],
        "unsafe": {
            "metadata": {"made_up": 1},
            "bindings": [{"name": "UNSAFE", "type": "made_up"}],
        },
    })
}

/// What wrangler 4.164 would send for the project as the metadata of its upload.
fn metadata() -> Map<String, Value> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("wrangler.json"), project().to_string()).unwrap();
    let code = "export default { fetch() {} }; export class W {}; export class C {}";
    std::fs::write(dir.path().join("index.js"), code).unwrap();
    let modules = wrangler("4.164.0");
    let out = Command::new(modules.join(".bin/node"))
        .arg(modules.join("wrangler/bin/wrangler.js"))
        .args(["deploy", "--dry-run", "--outfile", "form"])
        .current_dir(dir.path())
        .env("WRANGLER_SEND_METRICS", "false")
        .env("CI", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let form = std::fs::read(dir.path().join("form")).unwrap();
    let form = String::from_utf8_lossy(&form).into_owned();
    let line = form
        .lines()
        .find(|line| line.starts_with("{\"main_module\""));
    serde_json::from_str(line.unwrap()).unwrap()
}

#[tokio::test]
async fn what_wrangler_sends_for_each_refused_key_is_refused_by_name() {
    let sent = metadata();
    let mut fields: BTreeSet<&str> = BTreeSet::new();
    let mut bindings: BTreeSet<&str> = BTreeSet::new();
    let node = Node::new();
    let put = async |metadata: Value| {
        node.form(Method::PUT, "workers/scripts/keys", upload(metadata))
            .await
    };
    let works = [
        "main_module",
        "bindings",
        "compatibility_date",
        "compatibility_flags",
    ];
    for (field, value) in &sent {
        if works.contains(&field.as_str()) || field == "keep_bindings" || field == "placement" {
            continue;
        }
        let message = put(json!({ field: value })).await.error(400, 10501);
        let name = field.strip_suffix("_options").unwrap_or(field);
        assert!(message.contains(&format!("\"{name}\"")), "{message}");
        fields.insert(field);
    }
    for binding in sent["bindings"].as_array().unwrap() {
        let message = put(json!({"bindings": [binding]})).await.error(400, 10501);
        let name = binding["name"].to_string();
        assert!(message.contains(&name), "{binding}: {message}");
        bindings.insert(binding["type"].as_str().unwrap());
    }
    for (key, fate) in KEYS {
        match fate {
            // wrangler sends these two only with more than a configuration file.
            Field("capnp_schema" | "assets") => {}
            Field(field) => assert!(fields.contains(field), "{key}: {fields:?}"),
            Binding(kind) => assert!(bindings.contains(kind), "{key}: {bindings:?}"),
            Endpoint(path) => {
                let message = node
                    .json(Method::POST, path, json!({}))
                    .await
                    .error(400, 10501);
                assert!(message.contains("not supported"), "{key}: {message}");
            }
            _ => {}
        }
    }
    let message = put(json!({"capnp_schema": "a.capnp"}))
        .await
        .error(400, 10501);
    assert!(message.contains("unsafe.capnp"), "{message}");
    // What says nothing passes, and so does what has no meaning here.
    put(json!({
        "logpush": false, "tail_consumers": [], "limits": {"cpu_ms": 50}, "observability": {"enabled": true},
        "placement": {"mode": "smart"}, "cache_options": {"enabled": false},
        "package_dependencies": [{"name": "x"}],
        "code_update_strategy": {"mode": "deferred", "max_delay": 300},
    }))
    .await
    .ok();
}

#[tokio::test]
async fn what_wrangler_has_no_key_for_is_refused_too() {
    let node = Node::new();
    for (metadata, name) in [
        (json!({"tags": ["x"]}), "\"tags\""),
        (json!({"observability": {"colour": 1}}), "\"colour\""),
        (json!({"code_update_strategy": {"when": 1}}), "\"when\""),
        (
            json!({"containers": [{"class_name": "A", "size": 1}]}),
            "\"size\"",
        ),
        (
            json!({"assets": {"jwt": "x", "config": {"serve_directly": true}}}),
            "\"serve_directly\"",
        ),
        (
            json!({"bindings": [{"type": "plain_text", "name": "A", "text": "", "part": "x"}]}),
            "\"part\"",
        ),
        (
            json!({"bindings": [{"type": "service", "name": "A", "service": "s", "cross_account_grant": "x"}]}),
            "\"cross_account_grant\"",
        ),
        (
            json!({"annotations": {"workers/alias": "x"}}),
            "--preview-alias",
        ),
    ] {
        let reply = node
            .form(
                Method::PUT,
                "workers/scripts/keys",
                upload(metadata.clone()),
            )
            .await;
        let message = reply.error(400, 10501);
        assert!(message.contains(name), "{metadata}: {message}");
    }
}

/// A Worker with a class, and the class's namespace.
async fn namespace(node: &Node) -> String {
    let metadata =
        json!({"migrations": {"new_tag": "v1", "steps": [{"new_sqlite_classes": ["C"]}]}});
    node.form(Method::PUT, "workers/scripts/keys", upload(metadata))
        .await
        .ok();
    let found = node.get("workers/durable_objects/namespaces").await.ok();
    found[0]["id"].as_str().unwrap().to_owned()
}

/// Puts a value where `a.b` says.
fn with(mut body: Value, path: &str, value: Value) -> Value {
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap();
    parent[name] = value;
    body
}

/// The fields of Cloudflare's `CreateApplicationRequest`, `ModifyApplicationRequestBody` and
/// `UserDeploymentConfiguration` that a node does not honour.
fn refused_in_applications() -> Vec<(&'static str, Value)> {
    vec![
        ("constraints.jurisdiction", json!("eu")),
        ("constraints.regions", json!(["WEUR"])),
        ("constraints.region", json!("WEUR")),
        ("constraints.cities", json!(["ams"])),
        ("constraints.city", json!("ams")),
        ("constraints.pops", json!(["ams01"])),
        ("constraints.colour", json!("red")),
        ("affinities.colour", json!("red")),
        ("rollout_active_grace_period", json!(60)),
        ("instances", json!(3)),
        ("jobs", json!(true)),
        ("priorities", json!({"default": 1})),
        ("scheduling_policy", json!("gpu")),
        ("observability.logs", json!({"destinations": ["x"]})),
        ("colour", json!("red")),
        ("configuration.wrangler_ssh", json!({"enabled": true})),
        ("configuration.ssh_public_key_ids", json!(["x"])),
        ("configuration.memory", json!("1GiB")),
        ("configuration.disk", json!({"size": "1GB"})),
        (
            "configuration.environment_variables",
            json!([{"name": "A", "value": "b"}]),
        ),
        (
            "configuration.secrets",
            json!([{"name": "A", "type": "env", "secret": "b"}]),
        ),
        ("configuration.labels", json!([{"name": "a", "value": "b"}])),
        ("configuration.command", json!(["x"])),
        ("configuration.entrypoint", json!(["x"])),
        (
            "configuration.network",
            json!({"assign_ipv4": "predefined"}),
        ),
        ("configuration.dns", json!({"servers": ["1.1.1.1"]})),
        ("configuration.ports", json!([{"name": "web"}])),
        (
            "configuration.checks",
            json!([{"name": "web", "port": "web"}]),
        ),
        ("configuration.provisioner", json!("none")),
        ("configuration.runtime", json!("firecracker")),
        ("configuration.experimental_flags", json!(["x"])),
        ("configuration.colour", json!("red")),
    ]
}

#[tokio::test]
async fn what_an_application_cannot_have_here_is_refused_by_name() {
    let node = Node::new();
    // As wrangler sends it, with what has no meaning here.
    let sent = json!({
        "name": "web", "scheduling_policy": "default", "instances": 0, "max_instances": 2,
        "configuration": {
            "image": "web:1", "instance_type": "lite", "wrangler_ssh": {"enabled": false},
            "authorized_keys": [{"name": "me", "public_key": "ssh-ed25519 x"}],
        },
        "observability": {"logs": {"enabled": true}, "target_instance_percentage": 10},
        "constraints": {"tiers": [1, 2]},
        "affinities": {"colocation": "datacenter"},
        "durable_objects": {"namespace_id": namespace(&node).await},
        "rollout_active_grace_period": 0,
    });
    let made = node
        .json(Method::POST, "containers/applications", sent.clone())
        .await
        .ok();
    let path = format!("containers/applications/{}", made["id"].as_str().unwrap());
    let refused = refused_in_applications();
    for (field, value) in &refused {
        let name = field.rsplit('.').next().unwrap();
        let name = match name {
            "disk" => "size",
            "logs" => "destinations",
            "wrangler_ssh" => "ssh",
            name => name,
        };
        let body = with(sent.clone(), field, value.clone());
        let top = field.split('.').next().unwrap();
        let patch = json!({ top: body[top] });
        let mut replies = vec![
            node.json(Method::POST, "containers/applications", body.clone())
                .await,
            node.json(Method::PATCH, &path, patch).await,
        ];
        if top == "configuration" {
            let rollout = json!({"target_configuration": body[top], "kind": "full_auto"});
            replies.push(
                node.json(Method::POST, &format!("{path}/rollouts"), rollout)
                    .await,
            );
        }
        for reply in replies {
            let message = reply.error(400, 10501);
            assert!(
                message.contains(&format!("\"{name}\"")),
                "{field}: {message}"
            );
        }
    }
    for (key, fate) in KEYS {
        if let Application(field) = fate {
            assert!(refused.iter().any(|(name, _)| name == field), "{key}");
        }
    }
    let rollout = json!({"target_configuration": {}, "kind": "full_auto", "pause": true});
    let message = node
        .json(Method::POST, &format!("{path}/rollouts"), rollout)
        .await
        .error(400, 10501);
    assert!(message.contains("\"pause\""), "{message}");
    assert_eq!(
        node.get("containers/applications").await.ok()[0]["version"],
        1
    );
}

#[tokio::test]
async fn unknown_fields_of_small_bodies_are_refused_by_name() {
    let node = Node::new();
    namespace(&node).await;
    for (method, path, body) in [
        (
            Method::PUT,
            "workers/scripts/keys/schedules",
            json!([{"cron": "* * * * *", "extra": 1}]),
        ),
        (
            Method::PUT,
            "workers/scripts/keys/secrets",
            json!({"name": "A", "text": "b", "type": "secret_text", "extra": 1}),
        ),
        (
            Method::PATCH,
            "workers/scripts/keys/secrets-bulk",
            json!({"secrets": {}, "extra": 1}),
        ),
        (
            Method::PATCH,
            "workers/scripts/keys/script-settings",
            json!({"extra": 1}),
        ),
        (
            Method::POST,
            "workers/scripts/keys/deployments",
            json!({"versions": [], "extra": 1}),
        ),
        (
            Method::POST,
            "workers/scripts/keys/assets-upload-session",
            json!({"manifest": {}, "extra": 1}),
        ),
        (
            Method::POST,
            "containers/registries/127.0.0.1:7400/credentials",
            json!({"permissions": ["pull"], "extra": 1}),
        ),
        (
            Method::POST,
            "containers/image-preparations",
            json!({"image": "a:1", "extra": 1}),
        ),
    ] {
        let reply = node.json(method, path, body).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.body);
        let message = reply.body["errors"][0]["message"].to_string();
        assert!(message.contains("extra"), "{path}: {message}");
    }
    let body = json!({"permissions": ["pull", "own"]});
    let path = "containers/registries/127.0.0.1:7400/credentials";
    let message = node.json(Method::POST, path, body).await.error(400, 10004);
    assert!(message.contains("\"own\""), "{message}");
}
