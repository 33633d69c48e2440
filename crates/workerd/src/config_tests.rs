use serde_json::json;
use wharf_model::{AssetFile, Assets, DurableObjectNamespace, Module};

use super::*;

fn desired() -> Desired {
    Desired {
        version: Version {
            id: "11111111-1111-1111-1111-111111111111".into(),
            script: "hello".into(),
            number: 1,
            created_ms: 1_700_000_000_123,
            main_module: "index.js".into(),
            modules: vec![
                Module {
                    name: "data.txt".into(),
                    kind: ModuleKind::Text,
                    blob: "b".into(),
                },
                Module {
                    name: "index.js".into(),
                    kind: ModuleKind::EsModule,
                    blob: "a".into(),
                },
            ],
            bindings: vec![],
            compatibility_date: "2026-01-01".into(),
            compatibility_flags: vec!["nodejs_compat".into()],
            assets: None,
            container_classes: vec![],
            containers: Default::default(),
            annotations: BTreeMap::from([("workers/tag".into(), "v1".into())]),
            extra: json!({}),
        },
        script_number: 3,
        namespaces: BTreeMap::new(),
    }
}

fn place() -> Place {
    Place {
        dir: "/run/w/1".into(),
        storage: Some("/data/scripts/3/do".into()),
        allow_private: false,
    }
}

fn config(desired: &Desired) -> Plan {
    plan(desired, &place(), &BTreeSet::new()).unwrap()
}

fn refusal(desired: &Desired) -> String {
    plan(desired, &place(), &BTreeSet::new())
        .unwrap_err()
        .to_string()
}

#[test]
fn the_entry_module_comes_first() {
    let plan = config(&desired());
    assert!(plan.config.contains(
        "modules = [(name = \"index.js\", esModule = embed \"m/0\"), (name = \"data.txt\", text = embed \"m/1\")]"
    ));
    assert_eq!(
        plan.files[0],
        BlobFile {
            path: "m/0".into(),
            blob: "a".into()
        }
    );
}

#[test]
fn private_addresses_are_refused_unless_allowed() {
    assert!(config(&desired()).config.contains("allow = [\"public\"]"));
    let open = Place {
        allow_private: true,
        ..place()
    };
    let plan = plan(&desired(), &open, &BTreeSet::new()).unwrap();
    assert!(plan.config.contains("allow = [\"public\", \"private\"]"));
}

#[test]
fn secrets_are_in_the_environment_only() {
    let mut desired = desired();
    desired.version.bindings.push(Binding::SecretText {
        name: "KEY".into(),
        text: "hunter2".into(),
    });
    let plan = config(&desired);
    assert!(!plan.config.contains("hunter2"));
    assert_eq!(plan.env, ["WHARF_SECRET_0=hunter2"]);
    assert!(
        plan.config
            .contains("(name = \"KEY\", fromEnvironment = \"WHARF_SECRET_0\")")
    );

    desired.version.bindings[0] = Binding::SecretText {
        name: "KEY".into(),
        text: "a\0b".into(),
    };
    assert!(refusal(&desired).contains("secret \"KEY\" contains a zero byte"));
}

#[test]
fn classes_get_their_key_storage_and_container() {
    let mut desired = desired();
    desired.namespaces.insert(
        "Box".into(),
        DurableObjectNamespace {
            id: "0".repeat(32),
            script: "hello".into(),
            class: "Box".into(),
            use_sqlite: true,
            unique_key: "k".repeat(32),
        },
    );
    desired.version.container_classes.push("Box".into());
    desired
        .version
        .bindings
        .push(Binding::DurableObjectNamespace {
            name: "BOX".into(),
            class_name: "Box".into(),
            namespace_id: "0".repeat(32),
        });
    let plan = config(&desired);
    assert!(plan.containers);
    assert!(plan.config.contains(&format!(
        "(className = \"Box\", uniqueKey = \"{}\", enableSql = true, container = (imageName = \"wharf:application\"))",
        "k".repeat(32)
    )));
    let mut named = desired.clone();
    let images = [("two", "r/b:2"), ("one", "r/a@sha256:0")].map(|(n, i)| (n.into(), i.into()));
    named.version.containers.insert(
        "Box".into(),
        wharf_model::ContainerDeclaration {
            name: None,
            images: BTreeMap::from(images),
        },
    );
    assert!(config(&named).config.contains(
        "container = (imageName = \"wharf:application\", images = [(name = \"one\", image = \"r/a@sha256:0\"), (name = \"two\", image = \"r/b:2\")])"
    ));
    assert!(plan.config.contains("localDisk = \"storage\""));
    assert!(
        plan.config
            .contains("socketPath = \"unix:/run/w/1/docker.sock\"")
    );

    desired.namespaces.clear();
    assert!(refusal(&desired).contains("\"Box\""));
}

#[test]
fn a_binding_to_another_script_goes_through_a_socket_and_to_itself_does_not() {
    let mut desired = desired();
    for (name, service, entrypoint, props) in [
        ("SELF", "hello", Some("Admin"), Some(json!({"a": 1}))),
        ("OTHER", "other", Some("Api"), Some(json!({"b": 2}))),
        ("PLAIN", "other", Some("default"), None),
    ] {
        desired.version.bindings.push(Binding::Service {
            name: name.into(),
            service: service.into(),
            entrypoint: entrypoint.map(str::to_owned),
            props,
        });
    }
    let plan = config(&desired);
    assert!(plan.config.contains(
        "(name = \"SELF\", service = (name = \"main\", entrypoint = \"Admin\", props = (json = \"{\\\"a\\\":1}\")))"
    ));
    assert!(
        plan.config
            .contains("address = \"unix:/run/w/1/svc-0.sock\"")
    );
    let api = Entry {
        entrypoint: Some("Api".into()),
        props: Some("{\"b\":2}".into()),
    };
    assert_eq!(plan.outgoing.len(), 2);
    assert_eq!(plan.outgoing[0].entry, api);
    assert_eq!(plan.outgoing[1].entry, Entry::default());
    let bound: Vec<_> = wharf_bindings::bound_entries(&desired.version).collect();
    assert_eq!(bound, [("other", api), ("other", Entry::default())]);
}

#[test]
fn entries_that_others_bind_have_sockets() {
    let api = Entry {
        entrypoint: Some("Api".into()),
        props: None,
    };
    let plan = plan(&desired(), &place(), &BTreeSet::from([api.clone()])).unwrap();
    assert_eq!(plan.entries[&Entry::default()], "rpc-0.sock");
    assert_eq!(plan.entries[&api], "rpc-1.sock");
    let names: Vec<_> = plan.listens.iter().map(String::as_str).collect();
    assert_eq!(names, ["disp", "http", "rpc-0", "rpc-1"]);
}

#[test]
fn assets_are_in_front_of_the_worker() {
    let mut desired = desired();
    desired.version.assets = Some(Assets {
        files: vec![AssetFile {
            path: "/css/a.css".into(),
            blob: "c".into(),
            size: 1,
        }],
        config: json!({"html_handling": "none", "_headers": "/*\n  X-A: b", "jwt": "x", "_redirects": null}),
    });
    desired
        .version
        .bindings
        .push(Binding::Assets { name: "A".into() });
    let plan = config(&desired);
    assert!(plan.config.contains("userWorker = \"main\""));
    assert!(plan.config.contains(
        "config = \"{\\\"headers\\\":\\\"/*\\\\n  X-A: b\\\",\\\"html_handling\\\":\\\"none\\\"}\""
    ));
    assert!(plan.config.contains("service = \"assets\")"));
    assert_eq!(plan.files[2].path, Path::new("assets/css/a.css"));

    for bad in ["css/a.css", "/../x", "/a//b", "/a/./b", "/"] {
        desired.version.assets.as_mut().unwrap().files[0].path = bad.into();
        assert!(refusal(&desired).contains("asset path"), "{bad}");
    }
    desired.version.assets = None;
    assert!(refusal(&desired).contains("binding \"A\" is to static assets"));
}

#[test]
fn assets_without_code_need_no_worker() {
    let mut desired = desired();
    desired.version.modules.clear();
    assert!(refusal(&desired).contains("neither code nor static assets"));
    desired.version.assets = Some(Assets {
        files: vec![],
        config: json!({}),
    });
    let plan = config(&desired);
    assert!(!plan.config.contains("\"main\""));
    assert!(
        plan.config.contains(
            "compatibilityDate = \"2026-01-01\", compatibilityFlags = [\"nodejs_compat\"]"
        )
    );
}

#[test]
fn mistakes_are_named() {
    let mut wrong = desired();
    wrong.version.main_module = "nope.js".into();
    assert!(refusal(&wrong).contains("\"nope.js\""));
    let mut wrong = desired();
    wrong
        .version
        .bindings
        .push(Binding::DurableObjectNamespace {
            name: "B".into(),
            class_name: "C".into(),
            namespace_id: String::new(),
        });
    assert!(refusal(&wrong).contains("`migrations`"));
}

#[test]
fn the_version_metadata_is_as_cloudflare_has_it() {
    let mut desired = desired();
    desired
        .version
        .bindings
        .push(Binding::VersionMetadata { name: "V".into() });
    assert!(
        config(&desired)
            .config
            .contains("\\\"tag\\\":\\\"v1\\\",\\\"timestamp\\\":\\\"2023-11-14T22:13:20.123Z\\\"")
    );
}
