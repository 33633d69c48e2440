//! The SQLite index: manifests, local names, repositories. WAL, schema by version.
//!
//! Must not: decide anything. It stores rows and loads them all into a [`Catalog`].

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::Digest;
use crate::catalog::{Catalog, Stored};
use crate::error::{Context, ImageError, Result, now_ms};
use crate::manifest::Manifest;

/// One entry for each schema version; only ever appended to.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE manifests (
        digest TEXT PRIMARY KEY,
        media_type TEXT NOT NULL,
        body BLOB NOT NULL,
        stored_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE names (
        name TEXT PRIMARY KEY,
        manifest TEXT NOT NULL REFERENCES manifests
    ) STRICT;
    CREATE TABLE repository_manifests (
        repository TEXT NOT NULL,
        manifest TEXT NOT NULL REFERENCES manifests,
        PRIMARY KEY (repository, manifest)
    ) STRICT;
    CREATE TABLE repository_tags (
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        manifest TEXT NOT NULL,
        PRIMARY KEY (repository, tag),
        FOREIGN KEY (repository, manifest) REFERENCES repository_manifests ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE pushed (
        host TEXT NOT NULL,
        repository TEXT NOT NULL,
        manifest TEXT NOT NULL,
        PRIMARY KEY (host, repository, manifest),
        FOREIGN KEY (repository, manifest) REFERENCES repository_manifests ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX names_by_manifest ON names (manifest);
    CREATE INDEX repositories_by_manifest ON repository_manifests (manifest);
    CREATE INDEX tags_by_manifest ON repository_tags (repository, manifest);
    CREATE INDEX pushed_by_manifest ON pushed (repository, manifest);
"];

#[derive(Debug)]
pub(crate) struct Index {
    connection: Connection,
}

/// The writes of one transaction.
pub(crate) struct Change<'a>(Transaction<'a>);

fn doing(what: &'static str) -> impl FnOnce() -> String {
    move || format!("image index: {what}")
}

impl Index {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut connection =
            Connection::open(path).context(|| format!("opening {}", path.display()))?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;",
            )
            .context(doing("setting it up"))?;
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .context(doing("reading its version"))?;
        let version = usize::try_from(version).unwrap_or(usize::MAX);
        if version > MIGRATIONS.len() {
            return Err(ImageError::Invalid(format!(
                "{} has schema version {version}, this program knows {}: it was written by a newer wharf; use that one",
                path.display(),
                MIGRATIONS.len()
            )));
        }
        for (at, sql) in MIGRATIONS.iter().enumerate().skip(version) {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Exclusive)
                .context(doing("migrating"))?;
            transaction.execute_batch(sql).context(doing("migrating"))?;
            transaction
                .execute_batch(&format!("PRAGMA user_version = {}", at + 1))
                .context(doing("migrating"))?;
            transaction.commit().context(doing("migrating"))?;
        }
        Ok(Self { connection })
    }

    /// Everything, as one picture. Manifests never change, so those of `before` are kept as they are.
    pub(crate) fn load(&self, before: &Catalog) -> Result<Catalog> {
        let mut catalog = Catalog::default();
        let failed = || doing("reading");
        let digest = |text: String| Digest::parse(&text);

        let mut statement = self
            .connection
            .prepare_cached("SELECT digest FROM manifests")
            .context(failed())?;
        let digests = statement
            .query_map([], |row| row.get::<_, String>(0))
            .and_then(|rows| rows.collect::<rusqlite::Result<Vec<_>>>())
            .context(failed())?;
        for text in digests {
            let key = digest(text)?;
            let stored = match before.manifest(&key) {
                Some(stored) => stored.clone(),
                None => Arc::new(self.load_manifest(key)?),
            };
            catalog.add_manifest(stored);
        }

        for (name, manifest) in self.pairs("SELECT name, manifest FROM names")? {
            catalog.add_name(name, digest(manifest)?);
        }

        for (repository, manifest) in
            self.pairs("SELECT repository, manifest FROM repository_manifests")?
        {
            catalog.add_held(repository, digest(manifest)?);
        }

        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT repository, tag, manifest, 0 FROM repository_tags UNION ALL SELECT repository, host, manifest, 1 FROM pushed",
            )
            .context(failed())?;
        let rows = statement
            .query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, bool>(3)?,
                ))
            })
            .and_then(|rows| rows.collect::<rusqlite::Result<Vec<_>>>())
            .context(failed())?;
        for (repository, label, manifest, is_pushed) in rows {
            if is_pushed {
                catalog.add_pushed(label, repository, digest(manifest)?);
            } else {
                catalog.add_tag(repository, label, digest(manifest)?);
            }
        }
        Ok(catalog)
    }

    /// The two columns of a query.
    fn pairs(&self, sql: &str) -> Result<Vec<(String, String)>> {
        self.connection
            .prepare_cached(sql)
            .context(doing("reading"))?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .and_then(|rows| rows.collect::<rusqlite::Result<Vec<_>>>())
            .context(doing("reading"))
    }

    fn load_manifest(&self, digest: Digest) -> Result<Stored> {
        let (media_type, body, stored_ms): (String, Vec<u8>, i64) = self
            .connection
            .query_row(
                "SELECT media_type, body, stored_ms FROM manifests WHERE digest = ?1",
                [digest.as_str()],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .context(doing("reading a manifest"))?;
        let manifest = Manifest::parse(&media_type, &body)?;
        Ok(Stored::new(digest, media_type, body, manifest, stored_ms))
    }

    /// Runs `write` in one transaction; committed if it succeeds.
    pub(crate) fn transaction<T>(
        &mut self,
        write: impl FnOnce(&Change<'_>) -> Result<T>,
    ) -> Result<T> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context(doing("beginning a change"))?;
        let change = Change(transaction);
        let answer = write(&change)?;
        change.0.commit().context(doing("committing a change"))?;
        Ok(answer)
    }
}

impl Change<'_> {
    fn run(&self, sql: &str, values: impl rusqlite::Params) -> Result<usize> {
        self.0
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .context(doing("writing"))
    }

    pub(crate) fn put_manifest(
        &self,
        digest: &Digest,
        media_type: &str,
        body: &[u8],
    ) -> Result<()> {
        self.run(
            "INSERT INTO manifests (digest, media_type, body, stored_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            params![digest.as_str(), media_type, body, now_ms()],
        )?;
        Ok(())
    }
    pub(crate) fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        self.run("DELETE FROM manifests WHERE digest = ?1", [digest.as_str()])?;
        Ok(())
    }
    /// `name` in full, with its tag.
    pub(crate) fn put_name(&self, name: &str, manifest: &Digest) -> Result<()> {
        self.run(
            "INSERT INTO names (name, manifest) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET manifest = excluded.manifest",
            [name, manifest.as_str()],
        )?;
        Ok(())
    }
    pub(crate) fn delete_name(&self, name: &str) -> Result<()> {
        self.run("DELETE FROM names WHERE name = ?1", [name])?;
        Ok(())
    }
    pub(crate) fn hold(&self, repository: &str, manifest: &Digest) -> Result<()> {
        self.run(
            "INSERT INTO repository_manifests (repository, manifest) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            [repository, manifest.as_str()],
        )?;
        Ok(())
    }
    /// Takes a manifest out of a repository, with its tags there.
    pub(crate) fn release(&self, repository: &str, manifest: &Digest) -> Result<()> {
        self.run(
            "DELETE FROM repository_manifests WHERE repository = ?1 AND manifest = ?2",
            [repository, manifest.as_str()],
        )?;
        Ok(())
    }
    pub(crate) fn put_tag(&self, repository: &str, tag: &str, manifest: &Digest) -> Result<()> {
        self.run(
            "INSERT INTO repository_tags (repository, tag, manifest) VALUES (?1, ?2, ?3) ON CONFLICT (repository, tag) DO UPDATE SET manifest = excluded.manifest",
            [repository, tag, manifest.as_str()],
        )?;
        Ok(())
    }
    pub(crate) fn delete_tag(&self, repository: &str, tag: &str) -> Result<()> {
        self.run(
            "DELETE FROM repository_tags WHERE repository = ?1 AND tag = ?2",
            [repository, tag],
        )?;
        Ok(())
    }
    pub(crate) fn put_pushed(&self, host: &str, repository: &str, manifest: &Digest) -> Result<()> {
        self.run(
            "INSERT INTO pushed (host, repository, manifest) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            [host, repository, manifest.as_str()],
        )?;
        Ok(())
    }
}
