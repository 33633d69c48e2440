//! A database of the last version that had tables is brought over to records, once.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use rusqlite::Connection;
use wharf_store::meta::sqlite::{Clock, SqliteStore};
use wharf_store::meta::{List, MetaStore, wait};
use wharf_store::{RegistryToken, Store};

use self::common::{deploy, version};

const OLD: &str = include_str!("fixtures/schema2.sql");

fn old_database() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Connection::open(dir.path().join("wharf.sqlite"))
        .unwrap()
        .execute_batch(OLD)
        .unwrap();
    dir
}

#[test]
fn an_old_database_keeps_everything() {
    let dir = old_database();
    for _ in 0..2 {
        // The second time it is a new database already.
        check(&Store::open(dir.path()).unwrap());
    }
}

fn check(store: &Store) {
    assert_eq!(store.account_id(), "1482a6b7ffbd833c682ae1033290fcd2");
    assert_eq!(store.signing_key()[31], 7);

    let scripts = store.scripts().unwrap();
    let names: Vec<_> = scripts
        .iter()
        .map(|s| (s.name.as_str(), s.number))
        .collect();
    assert_eq!(names, [("draft", 6), ("shop", 2), ("shop-2", 5)]);
    let shop = store.script("shop").unwrap().unwrap();
    assert_eq!(shop.deployed_version.as_deref(), Some("shop-2"));
    assert_eq!(shop.migration_tag.as_deref(), Some("t1"));
    assert_eq!(shop.schedules, ["*/5 * * * *", "0 0 * * *"]);
    assert_eq!(shop.created_ms, 1_796_137_810_356);
    assert_eq!(shop.modified_ms, 1_796_137_810_428);
    assert!(!shop.class_exports);
    assert!(store.script("shop-2").unwrap().unwrap().class_exports);
    assert_eq!(
        store.cron_last_run("shop", "*/5 * * * *").unwrap(),
        Some(1_700_000_000_000)
    );
    assert_eq!(store.cron_last_run("shop", "0 0 * * *").unwrap(), None);
    let settings = store.script_settings("shop").unwrap();
    assert!(settings.enabled);
    assert_eq!(settings.values["tags"], serde_json::json!(["a"]));

    let versions = store.versions("shop", 10, 0).unwrap();
    let ids: Vec<_> = versions.iter().map(|v| (v.id.as_str(), v.number)).collect();
    assert_eq!(ids, [("shop-3", 3), ("shop-2", 2), ("shop-1", 1)]);
    assert_eq!(store.versions("shop", 1, 1).unwrap()[0].id, "shop-2");
    assert_eq!(store.version_count("shop").unwrap(), 3);
    assert_eq!(store.latest_version("shop").unwrap().unwrap().id, "shop-3");
    assert_eq!(store.version("other-1").unwrap().unwrap().script, "shop-2");
    let deployed = store.deployed_version("shop").unwrap().unwrap();
    assert_eq!(deployed.id, "shop-2");
    assert_eq!(deployed.modules.len(), 2);
    assert_eq!(deployed.bindings.len(), 1);
    assert_eq!(store.deployed_version("draft").unwrap(), None);
    let deployments = store.deployments("shop", 10).unwrap();
    let versions: Vec<_> = deployments.iter().map(|d| d.version.as_str()).collect();
    assert_eq!(versions, ["shop-2", "shop-1"]);
    assert_eq!(deployments[1].source, "wrangler");
    assert_eq!(deployments[1].annotations["workers/message"], "first");
    let secrets = store.secrets("shop").unwrap();
    assert_eq!((secrets["KEY"].as_str(), secrets.len()), ("new", 2));

    let all = store.all_namespaces().unwrap();
    let classes: Vec<_> = all.iter().map(|n| n.class.as_str()).collect();
    assert_eq!(classes, ["Cart", "Old", "Exported"]);
    for namespace in all {
        let found = store
            .namespace_by_unique_key(&namespace.unique_key)
            .unwrap();
        assert_eq!(found.as_ref(), Some(&namespace));
        assert_eq!(store.namespace(&namespace.id).unwrap(), Some(namespace));
    }

    let applications = store.applications().unwrap();
    let names: Vec<_> = applications.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["alone", "web / 100%"]);
    assert_eq!(applications[1].version, 3);
    assert_eq!(
        store.application_by_name("web / 100%").unwrap().unwrap().id,
        "a1"
    );
    assert_eq!(
        store.application_by_namespace("n1").unwrap().unwrap().id,
        "a1"
    );
    let rollouts = store.rollouts("a1").unwrap();
    let ids: Vec<_> = rollouts.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["r2", "r1"]);
    assert_eq!(rollouts[0].body, serde_json::json!({"step": 2}));

    assert!(store.check_token("wharf_fixture"));
    assert!(!store.check_token("wharf_other"));
    assert_eq!(store.first_token(|_| Ok(())).unwrap(), None);
    assert_eq!(
        store.registry_token("registry"),
        Some(RegistryToken { push: true })
    );
    let session = store.upload_session("session").unwrap().unwrap();
    assert_eq!(session.script, "shop");
    assert_eq!(session.manifest["/a.txt"].size, 5);
}

#[test]
fn work_goes_on_where_the_old_database_stopped() {
    let dir = old_database();
    let store = Store::open(dir.path()).unwrap();
    let asset = store.put_blob(b"asset").unwrap();
    let known = "0123456789abcdef0123456789abcdef";
    assert_eq!(store.assets([known]).unwrap()[known].blob, asset);

    let committed = store
        .commit_upload(deploy(version(&store, "shop", "shop-4", "four")))
        .unwrap();
    assert_eq!(committed.version.number, 4);
    let deployments = store.deployments("shop", 10).unwrap();
    assert_eq!(deployments.len(), 3);
    assert_eq!(deployments[0].version, "shop-4");
    store.undo_deployment(&committed.undo.unwrap()).unwrap();
    assert_eq!(
        store.deployed_version("shop").unwrap().unwrap().id,
        "shop-2"
    );
    // The numbers of deleted scripts stay theirs: 6 was the last one.
    store
        .commit_upload(deploy(version(&store, "new", "new-1", "new")))
        .unwrap();
    assert_eq!(store.script("new").unwrap().unwrap().number, 7);
}

#[test]
fn the_tables_are_gone_and_what_lives_a_while_still_ends() {
    let dir = old_database();
    let store = Store::open(dir.path()).unwrap();
    drop(store);
    let connection = Connection::open(dir.path().join("wharf.sqlite")).unwrap();
    let tables: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(
        tables,
        [
            "compaction",
            "current",
            "entries",
            "leases",
            "sqlite_sequence"
        ]
    );
    drop(connection);
    let meta = SqliteStore::open(&dir.path().join("wharf.sqlite"), Clock::System).unwrap();
    let expiries = wait(meta.list(&List::under("expiries/"))).unwrap();
    assert_eq!(expiries.records.len(), 2);
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let dir = old_database();
    let path = dir.path().join("wharf.sqlite");
    let broken = |text: &str| {
        Connection::open(&path)
            .unwrap()
            .execute("UPDATE rollouts SET body = ?1 WHERE id = 'r2'", [text])
            .unwrap();
    };
    broken("not JSON");
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("a rollout"), "{error}");
    broken(r#"{"step":2}"#);
    check(&Store::open(dir.path()).unwrap());
}
