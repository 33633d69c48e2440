//! Versions for the tests.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::collections::BTreeMap;

use wharf_model::{AssetFile, Assets, Module, ModuleKind, Version};
use wharf_store::{NewDeployment, Store, Upload};

/// A version with two modules and an asset, all distinct by `content`, its blobs stored.
pub(crate) fn version(store: &Store, script: &str, id: &str, content: &str) -> Version {
    let blob = |what: &str| {
        store
            .put_blob(format!("{what} of {content}").as_bytes())
            .unwrap()
    };
    Version {
        id: id.into(),
        script: script.into(),
        number: 0,
        created_ms: 1,
        main_module: "index.js".into(),
        modules: vec![
            Module {
                name: "index.js".into(),
                kind: ModuleKind::EsModule,
                blob: blob("main"),
            },
            Module {
                name: "data.bin".into(),
                kind: ModuleKind::Data,
                blob: blob("data"),
            },
        ],
        bindings: vec![],
        compatibility_date: "2026-01-01".into(),
        compatibility_flags: vec![],
        assets: Some(Assets {
            files: vec![AssetFile {
                path: "/a.txt".into(),
                blob: blob("asset"),
                size: 3,
            }],
            config: serde_json::Value::Null,
        }),
        container_classes: vec![],
        containers: Default::default(),
        annotations: BTreeMap::new(),
        extra: serde_json::Value::Null,
    }
}

/// An upload that makes the script and deploys at once, as a first `wrangler deploy` does.
pub(crate) fn deploy(version: Version) -> Upload {
    Upload {
        version,
        create_script: true,
        deploy: Some(NewDeployment::default()),
        namespaces: None,
        secrets: vec![],
    }
}

/// Every blob that a version names, read and checked.
pub(crate) fn assert_whole(store: &Store, version: &Version) {
    for module in &version.modules {
        store.read_blob(&module.blob).unwrap();
    }
    for file in &version.assets.as_ref().unwrap().files {
        store.read_blob(&file.blob).unwrap();
    }
}
