//! What the store promises its users, short of crashes.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wharf_model::{Application, Binding, DurableObjectNamespace};
use wharf_store::meta::sqlite::{Clock, SqliteStore};
use wharf_store::meta::{MetaStore, Op, Txn, wait};
use wharf_store::{Classes, NewDeployment, Store, StoreError, StoredAsset};

use self::common::{assert_whole, deploy, version};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn namespace(script: &str, class: &str, id: &str) -> DurableObjectNamespace {
    DurableObjectNamespace {
        id: id.into(),
        script: script.into(),
        class: class.into(),
        use_sqlite: true,
        unique_key: format!("key-{id}"),
    }
}

#[test]
fn a_deploy_survives_a_restart() {
    let (dir, store) = open();
    let account = store.account_id();
    store
        .commit_upload(deploy(version(&store, "hello", "v1", "one")))
        .unwrap();
    store
        .set_schedules("hello", &["* * * * *".into(), "0 0 * * *".into()])
        .unwrap();
    store.set_cron_last_run("hello", "* * * * *", 42).unwrap();
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.account_id(), account);
    assert_eq!(account.len(), 32);
    let script = store.script("hello").unwrap().unwrap();
    assert_eq!(script.deployed_version.as_deref(), Some("v1"));
    assert_eq!(script.schedules, ["* * * * *", "0 0 * * *"]);
    assert_eq!(store.scripts().unwrap(), [script]);
    let deployed = store.deployed_version("hello").unwrap().unwrap();
    assert_eq!(deployed.number, 1);
    assert_whole(&store, &deployed);
    assert_eq!(store.cron_last_run("hello", "* * * * *").unwrap(), Some(42));
    // A schedule that stays keeps its last run; one that comes back starts anew.
    store.set_schedules("hello", &["* * * * *".into()]).unwrap();
    assert_eq!(store.cron_last_run("hello", "* * * * *").unwrap(), Some(42));
    store.set_schedules("hello", &[]).unwrap();
    store.set_schedules("hello", &["* * * * *".into()]).unwrap();
    assert_eq!(store.cron_last_run("hello", "* * * * *").unwrap(), None);
}

#[test]
fn a_version_without_its_blobs_is_refused_and_nothing_changes() {
    let (_dir, store) = open();
    store
        .commit_upload(deploy(version(&store, "hello", "v1", "one")))
        .unwrap();
    let mut broken = version(&store, "hello", "v2", "two");
    broken.modules[0].blob = "0".repeat(64);
    let error = store.commit_upload(deploy(broken)).unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    assert_eq!(store.deployed_version("hello").unwrap().unwrap().id, "v1");
    assert_eq!(store.version("v2").unwrap(), None);
    // Not even a number is used up.
    let next = store
        .commit_upload(deploy(version(&store, "hello", "v3", "three")))
        .unwrap();
    assert_eq!(next.version.number, 2);
}

#[test]
fn an_undone_deployment_leaves_everything_as_before_but_keeps_the_version() {
    let (_dir, store) = open();
    let mut first = deploy(version(&store, "hello", "v1", "one"));
    first.namespaces = Some(Classes {
        namespaces: vec![namespace("hello", "Counter", "n1")],
        migration_tag: Some("t1".into()),
        exports: false,
    });
    first.secrets = vec![("KEY".into(), Some("old".into()))];
    store.commit_upload(first).unwrap();

    let mut second = deploy(version(&store, "hello", "v2", "two"));
    second.namespaces = Some(Classes {
        namespaces: vec![
            namespace("hello", "Renamed", "n1"),
            namespace("hello", "New", "n2"),
        ],
        migration_tag: None,
        exports: true,
    });
    second.secrets = vec![
        ("KEY".into(), Some("new".into())),
        ("MORE".into(), Some("x".into())),
    ];
    let undo = store.commit_upload(second).unwrap().undo.unwrap();
    assert_eq!(undo.previous_version.as_deref(), Some("v1"));
    assert_eq!(
        store
            .namespace_by_unique_key("key-n1")
            .unwrap()
            .unwrap()
            .class,
        "Renamed"
    );

    store.undo_deployment(&undo).unwrap();
    let script = store.script("hello").unwrap().unwrap();
    assert_eq!(script.deployed_version.as_deref(), Some("v1"));
    assert_eq!(script.migration_tag.as_deref(), Some("t1"));
    assert!(!script.class_exports);
    assert_eq!(
        store.namespaces("hello").unwrap(),
        [namespace("hello", "Counter", "n1")]
    );
    assert_eq!(
        store
            .secrets("hello")
            .unwrap()
            .into_iter()
            .collect::<Vec<_>>(),
        [("KEY".to_owned(), "old".to_owned())]
    );
    let deployments = store.deployments("hello", 10).unwrap();
    assert_eq!(
        deployments
            .iter()
            .map(|d| d.version.as_str())
            .collect::<Vec<_>>(),
        ["v1"]
    );
    assert!(store.version("v2").unwrap().is_some());
}

#[test]
fn a_class_that_a_deploy_drops_is_found_by_neither_of_its_names() {
    let (_dir, store) = open();
    let mut first = deploy(version(&store, "hello", "v1", "one"));
    first.namespaces = Some(Classes {
        namespaces: vec![
            namespace("hello", "Stays", "n1"),
            namespace("hello", "Goes", "n2"),
        ],
        ..Classes::default()
    });
    store.commit_upload(first).unwrap();
    assert!(store.namespace("n2").unwrap().is_some());
    let mut second = deploy(version(&store, "hello", "v2", "two"));
    second.namespaces = Some(Classes {
        namespaces: vec![namespace("hello", "Stays", "n1")],
        ..Classes::default()
    });
    store.commit_upload(second).unwrap();
    assert_eq!(store.namespace("n2").unwrap(), None);
    assert_eq!(store.namespace_by_unique_key("key-n2").unwrap(), None);
    assert!(store.namespace("n1").unwrap().is_some());
    // So another script may have it.
    let mut other = deploy(version(&store, "other", "o1", "one"));
    other.namespaces = Some(Classes {
        namespaces: vec![namespace("other", "Goes", "n2")],
        ..Classes::default()
    });
    store.commit_upload(other).unwrap();
    assert!(store.delete_script("hello").unwrap());
    assert_eq!(store.namespace("n1").unwrap(), None);
    assert_eq!(store.namespace("n2").unwrap().unwrap().script, "other");
}

#[test]
fn a_hundred_versions_are_kept_and_the_deployed_one_always() {
    let (_dir, store) = open();
    store
        .commit_upload(deploy(version(&store, "hello", "v1", "one")))
        .unwrap();
    for n in 2..=150 {
        let mut upload = deploy(version(&store, "hello", &format!("v{n}"), "same"));
        upload.deploy = None;
        store.commit_upload(upload).unwrap();
    }
    let kept = store.versions("hello", 1000, 0).unwrap();
    assert_eq!(kept.len(), 101);
    assert_eq!(kept[0].number, 150);
    assert_eq!(store.latest_version("hello").unwrap().unwrap().id, "v150");
    assert_eq!(kept.last().unwrap().id, "v1");
    assert_eq!(store.deployed_version("hello").unwrap().unwrap().id, "v1");
    assert_eq!(store.version("v20").unwrap(), None);
}

#[test]
fn rolling_back_brings_back_the_secrets_of_that_version_for_the_next_upload() {
    let (_dir, store) = open();
    let secret = |text: &str| Binding::SecretText {
        name: "KEY".into(),
        text: text.into(),
    };
    for (id, text) in [("v1", "old"), ("v2", "new")] {
        let mut new = version(&store, "hello", id, id);
        new.bindings = vec![secret(text)];
        let mut upload = deploy(new);
        upload.secrets = vec![("KEY".into(), Some(text.into()))];
        store.commit_upload(upload).unwrap();
    }
    let deployment = NewDeployment::default();
    store
        .deploy_version("hello", "v1", &deployment, true)
        .unwrap();
    assert_eq!(store.deployed_version("hello").unwrap().unwrap().id, "v1");
    assert_eq!(store.secrets("hello").unwrap()["KEY"], "old");
    // A version of another script is no version of this one.
    store
        .commit_upload(deploy(version(&store, "other", "o1", "o")))
        .unwrap();
    assert!(
        store
            .deploy_version("hello", "o1", &deployment, false)
            .is_err()
    );
}

#[test]
fn a_deleted_scripts_number_never_comes_back_and_its_rows_go() {
    let (_dir, store) = open();
    let mut upload = deploy(version(&store, "hello", "v1", "one"));
    upload.namespaces = Some(Classes {
        namespaces: vec![namespace("hello", "Counter", "n1")],
        migration_tag: Some("t1".into()),
        exports: false,
    });
    store.commit_upload(upload).unwrap();
    let number = store.script("hello").unwrap().unwrap().number;
    assert!(store.delete_script("hello").unwrap());
    assert!(!store.delete_script("hello").unwrap());
    assert_eq!(store.version("v1").unwrap(), None);
    assert_eq!(store.all_namespaces().unwrap(), []);
    store
        .commit_upload(deploy(version(&store, "hello", "v2", "two")))
        .unwrap();
    assert!(store.script("hello").unwrap().unwrap().number > number);
}

#[test]
fn collection_takes_what_nothing_names_and_leaves_the_rest() {
    let (_dir, store) = open();
    store
        .commit_upload(deploy(version(&store, "hello", "v1", "one")))
        .unwrap();
    let lost = store.put_blob(b"nobody wants me").unwrap();
    let asset = StoredAsset {
        blob: store.put_blob(b"asset").unwrap(),
        size: 5,
        content_type: None,
    };
    store
        .put_asset("0123456789abcdef0123456789abcdef", &asset)
        .unwrap();

    // Young ones stay: a deploy may be about to name them.
    assert_eq!(store.blob_gc(Duration::from_secs(3600)).unwrap().blobs, 0);
    std::thread::sleep(Duration::from_millis(5));
    let report = store.blob_gc(Duration::ZERO).unwrap();
    assert_eq!(report.blobs, 2);
    assert!(!store.has_blob(&lost).unwrap());
    assert!(!store.has_blob(&asset.blob).unwrap());
    assert_eq!(
        store
            .assets(["0123456789abcdef0123456789abcdef"])
            .unwrap()
            .len(),
        0
    );
    assert_whole(&store, &store.deployed_version("hello").unwrap().unwrap());
}

#[test]
fn a_damaged_blob_is_noticed() {
    let (_dir, store) = open();
    let hash = store.put_blob(b"hello").unwrap();
    assert_eq!(store.read_blob(&hash).unwrap(), b"hello");
    std::fs::write(store.blob_path(&hash), b"jello").unwrap();
    assert!(matches!(
        store.read_blob(&hash),
        Err(StoreError::Corrupt(_))
    ));
    // A truncated one is written anew by the next upload of the same content.
    std::fs::write(store.blob_path(&hash), b"hel").unwrap();
    store.put_blob(b"hello").unwrap();
    assert_eq!(store.read_blob(&hash).unwrap(), b"hello");
}

#[test]
fn files_are_for_the_owner_alone() {
    let (dir, store) = open();
    let hash = store.put_blob(b"secret module").unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store.blob_path(&hash)), 0o600);
    assert_eq!(mode(&dir.path().join("blobs")), 0o700);
    for name in ["wharf.sqlite", "wharf.sqlite-wal", "wharf.sqlite-shm"] {
        assert_eq!(mode(&dir.path().join(name)), 0o600, "{name}");
    }
}

#[test]
fn one_application_per_name_and_per_namespace() {
    let (_dir, store) = open();
    let application = |id: &str, name: &str, namespace: &str| Application {
        id: id.into(),
        name: name.into(),
        namespace_id: Some(namespace.into()),
        version: 1,
        max_instances: 3,
        configuration: serde_json::json!({"image": "x:1"}).into(),
        extra: serde_json::json!({}),
        created_ms: 1,
        modified_ms: 1,
    };
    store
        .create_application(&application("a1", "web", "n1"))
        .unwrap();
    for twice in [
        application("a2", "web", "n2"),
        application("a2", "db", "n1"),
    ] {
        assert!(matches!(
            store.create_application(&twice),
            Err(StoreError::Exists(_))
        ));
    }
    assert_eq!(
        store.application_by_namespace("n1").unwrap().unwrap().id,
        "a1"
    );
    assert_eq!(store.application_by_name("web").unwrap().unwrap().id, "a1");
    let mut changed = application("a1", "web", "n1");
    changed.max_instances = 9;
    store.update_application(&changed, None).unwrap();
    assert_eq!(store.application("a1").unwrap().unwrap(), changed);
    assert!(store.delete_application("a1").unwrap());
    assert_eq!(store.applications().unwrap(), []);
    assert!(matches!(
        store.update_application(&changed, None),
        Err(StoreError::NotFound(_))
    ));
}

#[test]
fn a_blob_that_is_being_removed_is_in_no_new_version() {
    let (dir, store) = open();
    let new = version(&store, "hello", "v1", "one");
    let going = serde_json::to_vec(&[&new.modules[0].blob]).unwrap();
    let collector = SqliteStore::open(&dir.path().join("wharf.sqlite"), Clock::System).unwrap();
    let step = |op: Op| {
        let (compares, ops) = (vec![], vec![op]);
        wait(collector.txn(Txn { compares, ops })).unwrap();
    };
    step(Op::put("collection", going));
    let error = store.commit_upload(deploy(new.clone())).unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    let asset = StoredAsset {
        blob: new.modules[0].blob.clone(),
        size: 1,
        content_type: None,
    };
    assert!(store.put_asset(&"0".repeat(32), &asset).is_err());
    step(Op::Delete(b"collection".to_vec()));
    store.commit_upload(deploy(new)).unwrap();
}

#[test]
fn collection_beside_deploys_leaves_every_version_whole() {
    let (_dir, store) = open();
    let done = AtomicBool::new(false);
    let (mut deployed, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.blob_gc(Duration::ZERO).unwrap();
                // Longer than a deploy takes, so that some get through.
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        for n in 0.. {
            // Ten contents, so that blobs come back that are just going.
            let id = format!("v{n}");
            let new = version(&store, "hello", &id, &(n % 10).to_string());
            match store.commit_upload(deploy(new)) {
                Ok(_) => deployed += 1,
                Err(StoreError::NotFound(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            if n % 20 == 19 {
                store.delete_script("hello").unwrap();
            }
            if (deployed > 50 && refused > 5) || n == 1000 {
                break;
            }
            for version in store.versions("hello", 100, 0).unwrap() {
                assert_whole(&store, &version);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(deployed > 0, "{deployed} deployed, {refused} refused");
}
