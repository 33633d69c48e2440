//! The database file: its tables, and how an older file becomes a current one.
//!
//! `PRAGMA user_version` counts the steps of [`STEPS`] that were applied. A released step is never edited; a change is a new step.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::{Result, StoreError, io, migrate};

const STEPS: &[Step] = &[
    // 1
    Step::Sql("CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;

    -- AUTOINCREMENT: a deleted script's number (user id, storage folder) never comes back.
    CREATE TABLE scripts (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        deployed_version TEXT REFERENCES versions (id) DEFERRABLE INITIALLY DEFERRED,
        last_version_number INTEGER NOT NULL DEFAULT 0,
        migration_tag TEXT,
        settings TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        modified_ms INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE versions (
        id TEXT PRIMARY KEY,
        script TEXT NOT NULL REFERENCES scripts (name) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        body TEXT NOT NULL,
        UNIQUE (script, number)
    ) STRICT;

    CREATE TABLE version_blobs (
        version TEXT NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
        blob TEXT NOT NULL,
        PRIMARY KEY (version, blob)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX version_blobs_by_blob ON version_blobs (blob);

    CREATE TABLE deployments (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        script TEXT NOT NULL REFERENCES scripts (name) ON DELETE CASCADE,
        version TEXT NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
        source TEXT NOT NULL,
        annotations TEXT NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX deployments_by_script ON deployments (script, sequence);
    CREATE INDEX deployments_by_version ON deployments (version);

    CREATE TABLE secrets (
        script TEXT NOT NULL REFERENCES scripts (name) ON DELETE CASCADE,
        name TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (script, name)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE schedules (
        script TEXT NOT NULL REFERENCES scripts (name) ON DELETE CASCADE,
        cron TEXT NOT NULL,
        position INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        last_run_ms INTEGER,
        PRIMARY KEY (script, cron)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE namespaces (
        id TEXT PRIMARY KEY,
        script TEXT NOT NULL REFERENCES scripts (name) ON DELETE CASCADE,
        class TEXT NOT NULL,
        use_sqlite INTEGER NOT NULL,
        unique_key TEXT NOT NULL UNIQUE,
        UNIQUE (script, class)
    ) STRICT;

    -- No reference to namespaces: as at Cloudflare, an application outlives its Worker until it is deleted itself.
    CREATE TABLE applications (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        namespace_id TEXT UNIQUE,
        body TEXT NOT NULL
    ) STRICT;

    CREATE TABLE rollouts (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        application TEXT NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
        body TEXT NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX rollouts_by_application ON rollouts (application, sequence);

    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE registry_tokens (
        hash BLOB PRIMARY KEY,
        push INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL
    ) STRICT;

    -- Static assets by the client's hash (content and extension), so that a known file is not uploaded again.
    CREATE TABLE assets (
        hash TEXT PRIMARY KEY,
        blob TEXT NOT NULL,
        size INTEGER NOT NULL,
        content_type TEXT,
        used_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX assets_by_blob ON assets (blob);

    CREATE TABLE upload_sessions (
        id TEXT PRIMARY KEY,
        script TEXT NOT NULL,
        manifest TEXT NOT NULL,
        expires_ms INTEGER NOT NULL
    ) STRICT;"),
    // 2: whether the last deploy declared the Durable Object classes by `exports`.
    Step::Sql("ALTER TABLE scripts ADD COLUMN class_exports INTEGER NOT NULL DEFAULT 0;"),
    // 3: records under keys (`meta/sqlite.rs`). `entries` has every change since the compaction and
    // `current` the last one of each key that exists, so a value is on disk once.
    Step::Sql("CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        revision INTEGER NOT NULL,
        key BLOB NOT NULL,
        value BLOB, -- NULL: the key was deleted
        created INTEGER NOT NULL,
        version INTEGER NOT NULL,
        lease INTEGER
    ) STRICT;
    CREATE INDEX entries_by_revision ON entries (revision);

    CREATE TABLE current (
        key BLOB PRIMARY KEY,
        entry INTEGER NOT NULL,
        lease INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX current_by_lease ON current (lease) WHERE lease IS NOT NULL;

    -- AUTOINCREMENT: the number of a lease that is over never comes back.
    CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL) STRICT;

    CREATE TABLE compaction (
        only INTEGER PRIMARY KEY CHECK (only = 0),
        revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO compaction VALUES (0, 0);"),
    // 4: all other tables become records.
    Step::Code(migrate::tables_to_records),
];

enum Step {
    Sql(&'static str),
    Code(fn(&Transaction<'_>) -> Result<()>),
}

/// Opens the file with every setting that durability rests on, and applies the steps that it lacks.
pub(crate) fn open(path: &Path) -> Result<Connection> {
    // SQLite gives -wal and -shm the mode of the main file.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(io("cannot open", path))?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    // Otherwise SQLite plans a prepared statement again for each new value of a parameter.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // More statements are in use than rusqlite keeps by default.
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    migrate(&mut connection)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = STEPS.len() as u32;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for step in &STEPS[found as usize..] {
        match step {
            Step::Sql(sql) => transaction.execute_batch(sql)?,
            Step::Code(code) => code(&transaction)?,
        }
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_a_newer_wharf_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wharf.sqlite");
        open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let error = open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::Newer { found: 99, .. }),
            "{error}"
        );
    }

    #[test]
    fn durability_settings_are_on() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open(&dir.path().join("wharf.sqlite")).unwrap();
        let pragma = |name: &str| -> String {
            connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
                .map(|value| format!("{value:?}"))
                .unwrap()
        };
        assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
        assert_eq!(pragma("synchronous"), "Integer(2)");
        assert_eq!(pragma("foreign_keys"), "Integer(1)");
    }
}
