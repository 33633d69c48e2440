//! The tables of versions 1 and 2 of the database, brought over to records under keys.
//!
//! Owns: that one step, which runs inside the transaction of the migration: a crash leaves the
//! tables as they were. Must not: change with the records' later forms without a test against the
//! old schema (`tests/fixtures/schema2.sql`).

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wharf_model::{Application, DurableObjectNamespace};

use crate::applications::{Rollout, application_key, lookups};
use crate::assets::{AssetRecord, ManifestEntry, UploadSession, session_key};
use crate::deploys::{Deployment, deployment_key};
use crate::draft::{decode, encode};
use crate::meta::{Op, sqlite};
use crate::scripts::{
    ScheduleRecord, ScriptRecord, VersionNumber, VersionRef, namespaces_key, script_key,
    secrets_key, version_key,
};
use crate::tokens::{RegistryTokenRecord, TokenRecord, registry_token_key, token_key};
use crate::{Result, keys};

/// Writes every row as a record, and drops the tables.
pub(crate) fn tables_to_records(transaction: &Transaction<'_>) -> Result<()> {
    let mut records = Records {
        transaction,
        ops: Vec::new(),
    };
    records.node()?;
    records.scripts()?;
    records.applications()?;
    records.tokens()?;
    records.assets()?;
    let ops = records.ops;
    // Nothing has written records before this step.
    sqlite::apply(transaction, 1, &ops)?;
    transaction.execute_batch(
        "UPDATE scripts SET deployed_version = NULL;
         DROP TABLE version_blobs; DROP TABLE deployments; DROP TABLE schedules;
         DROP TABLE secrets; DROP TABLE namespaces; DROP TABLE versions; DROP TABLE scripts;
         DROP TABLE rollouts; DROP TABLE applications; DROP TABLE tokens;
         DROP TABLE registry_tokens; DROP TABLE assets; DROP TABLE upload_sessions;
         DROP TABLE meta;",
    )?;
    Ok(())
}

struct Records<'a> {
    transaction: &'a Transaction<'a>,
    ops: Vec<Op>,
}

impl Records<'_> {
    fn rows<T>(
        &self,
        sql: &str,
        of: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        Ok(self
            .transaction
            .prepare(sql)?
            .query_map(of, read)?
            .collect::<Result<_, _>>()?)
    }

    fn put<T: Serialize + ?Sized>(&mut self, key: String, value: &T) -> Result<()> {
        self.ops.push(Op::put(key, encode(value)?));
        Ok(())
    }

    fn expires(&mut self, key: &str, expires_ms: i64) {
        self.ops
            .push(Op::put(keys::expiry(expires_ms, key), Vec::new()));
    }

    fn node(&mut self) -> Result<()> {
        let meta = self.rows("SELECT key, value FROM meta", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
        })?;
        for (key, value) in meta {
            let key = match key.as_str() {
                "account_id" => keys::ACCOUNT_ID,
                "signing_key" => keys::SIGNING_KEY,
                _ => continue,
            };
            self.put(key.to_owned(), &hex::encode(value))?;
        }
        // Also the numbers of scripts that were deleted.
        let last: Option<u32> = self
            .transaction
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = 'scripts'",
                [],
                |row| row.get(0),
            )
            .optional()?;
        match last {
            Some(last) => self.put(keys::LAST_SCRIPT_NUMBER.to_owned(), &last),
            None => Ok(()),
        }
    }

    fn scripts(&mut self) -> Result<()> {
        let scripts = self.rows(
            "SELECT scripts.name, scripts.number, deployed_version, versions.number,
                 last_version_number, migration_tag, class_exports, settings, created_ms,
                 modified_ms, (SELECT max(sequence) FROM deployments WHERE script = scripts.name)
             FROM scripts LEFT JOIN versions ON versions.id = deployed_version",
            [],
            |row| {
                let deployed: (Option<String>, Option<u32>) = (row.get(2)?, row.get(3)?);
                let record = ScriptRecord {
                    name: row.get(0)?,
                    number: row.get(1)?,
                    deployed: match deployed {
                        (Some(id), Some(number)) => Some(VersionNumber { id, number }),
                        _ => None,
                    },
                    last_version: row.get(4)?,
                    last_deployment: row.get::<_, Option<i64>>(10)?.unwrap_or(0).unsigned_abs(),
                    migration_tag: row.get(5)?,
                    class_exports: row.get(6)?,
                    settings: Default::default(),
                    schedules: Vec::new(),
                    created_ms: row.get(8)?,
                    modified_ms: row.get(9)?,
                };
                Ok((record, row.get::<_, String>(7)?))
            },
        )?;
        for (mut script, settings) in scripts {
            script.settings = parsed("a script's settings", &settings)?;
            self.schedules(&mut script)?;
            self.versions(&script.name)?;
            self.deployments(&script.name)?;
            self.secrets(&script.name)?;
            self.namespaces(&script.name)?;
            self.put(script_key(&script.name), &script)?;
        }
        Ok(())
    }

    fn schedules(&mut self, script: &mut ScriptRecord) -> Result<()> {
        let schedules = self.rows(
            "SELECT cron, created_ms, last_run_ms FROM schedules WHERE script = ?1
             ORDER BY position",
            [&script.name],
            |row| {
                let schedule = ScheduleRecord {
                    cron: row.get(0)?,
                    created_ms: row.get(1)?,
                };
                Ok((schedule, row.get::<_, Option<i64>>(2)?))
            },
        )?;
        for (schedule, last_run) in schedules {
            if let Some(ms) = last_run {
                let key = keys::member("schedule-runs", &script.name, &schedule.cron);
                self.put(key, &ms)?;
            }
            script.schedules.push(schedule);
        }
        Ok(())
    }

    fn versions(&mut self, script: &str) -> Result<()> {
        let versions = self.rows(
            "SELECT id, number, body FROM versions WHERE script = ?1",
            [script],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        for (id, number, body) in versions {
            let (id, body): (String, String) = (id, body);
            let place = VersionRef {
                script: script.to_owned(),
                number,
            };
            self.put(keys::one("version-ids", &id), &place)?;
            self.ops.push(Op::put(version_key(script, number), body));
        }
        Ok(())
    }

    fn deployments(&mut self, script: &str) -> Result<()> {
        let deployments = self.rows(
            "SELECT sequence, id, version, source, annotations, created_ms FROM deployments
             WHERE script = ?1",
            [script],
            |row| {
                let deployment = Deployment {
                    id: row.get(1)?,
                    version: row.get(2)?,
                    source: row.get(3)?,
                    annotations: BTreeMap::new(),
                    created_ms: row.get(5)?,
                };
                Ok((row.get::<_, i64>(0)?, deployment, row.get::<_, String>(4)?))
            },
        )?;
        for (sequence, mut deployment, annotations) in deployments {
            deployment.annotations = parsed("a deployment", &annotations)?;
            let key = deployment_key(script, sequence.unsigned_abs());
            self.put(key, &deployment)?;
        }
        Ok(())
    }

    fn secrets(&mut self, script: &str) -> Result<()> {
        let secrets = self.rows(
            "SELECT name, text FROM secrets WHERE script = ?1",
            [script],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let secrets: BTreeMap<String, String> = secrets.into_iter().collect();
        if secrets.is_empty() {
            return Ok(());
        }
        self.put(secrets_key(script), &secrets)
    }

    fn namespaces(&mut self, script: &str) -> Result<()> {
        let namespaces = self.rows(
            "SELECT id, script, class, use_sqlite, unique_key FROM namespaces WHERE script = ?1
             ORDER BY class",
            [script],
            |row| {
                Ok(DurableObjectNamespace {
                    id: row.get(0)?,
                    script: row.get(1)?,
                    class: row.get(2)?,
                    use_sqlite: row.get(3)?,
                    unique_key: row.get(4)?,
                })
            },
        )?;
        for namespace in &namespaces {
            self.put(keys::one("namespace-ids", &namespace.id), namespace)?;
            self.put(
                keys::one("namespace-keys", &namespace.unique_key),
                namespace,
            )?;
        }
        if namespaces.is_empty() {
            return Ok(());
        }
        self.put(namespaces_key(script), &namespaces)
    }

    fn applications(&mut self) -> Result<()> {
        let bodies = self.rows("SELECT body FROM applications", [], |row| {
            row.get::<_, String>(0)
        })?;
        for body in bodies {
            let application: Application = parsed("an application", &body)?;
            for lookup in lookups(&application) {
                self.put(lookup, &application.id)?;
            }
            self.put(application_key(&application.id), &application)?;
        }
        let rollouts = self.rows(
            "SELECT sequence, id, application, body, created_ms FROM rollouts",
            [],
            |row| {
                let rollout = Rollout {
                    id: row.get(1)?,
                    application: row.get(2)?,
                    body: serde_json::Value::Null,
                    created_ms: row.get(4)?,
                };
                Ok((row.get::<_, i64>(0)?, rollout, row.get::<_, String>(3)?))
            },
        )?;
        for (sequence, mut rollout, body) in rollouts {
            rollout.body = parsed("a rollout", &body)?;
            let application = &rollout.application;
            let key = keys::numbered("rollouts", application, sequence.unsigned_abs());
            self.put(key, &rollout)?;
        }
        Ok(())
    }

    fn tokens(&mut self) -> Result<()> {
        let tokens = self.rows("SELECT hash, name, created_ms FROM tokens", [], |row| {
            let record = TokenRecord {
                name: row.get(1)?,
                created_ms: row.get(2)?,
            };
            Ok((row.get::<_, Vec<u8>>(0)?, record))
        })?;
        for (hash, record) in tokens {
            self.put(token_key(&hash), &record)?;
        }
        let tokens = self.rows(
            "SELECT hash, push, expires_ms FROM registry_tokens",
            [],
            |row| {
                let record = RegistryTokenRecord {
                    push: row.get(1)?,
                    expires_ms: row.get(2)?,
                };
                Ok((row.get::<_, Vec<u8>>(0)?, record))
            },
        )?;
        for (hash, record) in tokens {
            let key = registry_token_key(&hash);
            self.expires(&key, record.expires_ms);
            self.put(key, &record)?;
        }
        Ok(())
    }

    fn assets(&mut self) -> Result<()> {
        let assets = self.rows(
            "SELECT hash, blob, size, content_type, used_ms FROM assets",
            [],
            |row| {
                let record = AssetRecord {
                    blob: row.get(1)?,
                    size: row.get::<_, i64>(2)?.unsigned_abs(),
                    content_type: row.get(3)?,
                    used_ms: row.get(4)?,
                };
                Ok((row.get::<_, String>(0)?, record))
            },
        )?;
        for (hash, record) in assets {
            self.put(keys::one("assets", &hash), &record)?;
        }
        let sessions = self.rows(
            "SELECT id, script, manifest, expires_ms FROM upload_sessions",
            [],
            |row| {
                let session = UploadSession {
                    id: row.get(0)?,
                    script: row.get(1)?,
                    manifest: BTreeMap::new(),
                    expires_ms: row.get(3)?,
                };
                Ok((session, row.get::<_, String>(2)?))
            },
        )?;
        for (mut session, manifest) in sessions {
            session.manifest =
                parsed::<BTreeMap<String, ManifestEntry>>("a session's manifest", &manifest)?;
            let key = session_key(&session.id);
            self.expires(&key, session.expires_ms);
            self.put(key, &session)?;
        }
        Ok(())
    }
}

fn parsed<T: DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    decode(what, text.as_bytes())
}
