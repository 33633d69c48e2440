//! Changing what a script is: uploading versions, deploying them, taking a deployment back, deleting.
//!
//! Each function is one transaction. What serves is always what `scripts.deployed_version` says, and a version is whole before it is
//! named there.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction};
use wharf_model::{Binding, DurableObjectNamespace, Version};

use crate::scripts::{namespaces, secrets, version_body};
use crate::{Result, ScriptSettings, Store, StoreError, from_json, now_ms, random, to_json};

/// Versions kept per script, beside the one that is deployed.
const VERSIONS_KEPT: u32 = 100;

/// A change to one secret: its new value, or `None` to delete it.
pub type SecretChange = (String, Option<String>);

/// A version to store, and what changes with it.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The version; its `number` is filled in. Its blobs must be stored.
    pub version: Version,
    /// Whether a script of that name shall be made if there is none.
    pub create_script: bool,
    /// If given, the version is deployed in the same instant.
    pub deploy: Option<NewDeployment>,
    /// If given, the script's Durable Object classes become these.
    pub namespaces: Option<Classes>,
    /// Secrets that the next upload takes over, too.
    pub secrets: Vec<SecretChange>,
}

/// A script's Durable Object classes, and how the last deploy that changed them declared them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classes {
    /// One for each class.
    pub namespaces: Vec<DurableObjectNamespace>,
    /// Tag of the last migration that was applied.
    pub migration_tag: Option<String>,
    /// Whether `exports` declares them, and no migrations.
    pub exports: bool,
}

/// A deployment to record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewDeployment {
    /// Who did it: `wrangler`, `api`.
    pub source: String,
    /// `workers/message`, `workers/triggered_by`.
    pub annotations: BTreeMap<String, String>,
}

/// A recorded deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Dashed UUID.
    pub id: String,
    /// Id of the version that it put in service.
    pub version: String,
    /// Who did it.
    pub source: String,
    /// `workers/message`, `workers/triggered_by`.
    pub annotations: BTreeMap<String, String>,
    /// Unix time in milliseconds.
    pub created_ms: i64,
}

/// What an upload became.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The version, numbered.
    pub version: Version,
    /// How to take the deployment back, if there was one.
    pub undo: Option<Undo>,
}

/// What a deployment replaced, to put it back if the new version turns out not to start.
#[derive(Debug, Clone)]
pub struct Undo {
    script: String,
    deployment: String,
    /// Id of the version that served before, if one did.
    pub previous_version: Option<String>,
    classes: Classes,
    secrets: BTreeMap<String, String>,
}

impl Store {
    /// Stores a version whole, and deploys it if asked, in one transaction.
    pub fn commit_upload(&self, upload: Upload) -> Result<Committed> {
        let Upload {
            mut version,
            create_script,
            deploy,
            namespaces: new_namespaces,
            secrets,
        } = upload;
        let script = version.script.clone();
        let mut blobs: Vec<&str> = version.modules.iter().map(|m| m.blob.as_str()).collect();
        if let Some(assets) = &version.assets {
            blobs.extend(assets.files.iter().map(|file| file.blob.as_str()));
        }
        blobs.sort_unstable();
        blobs.dedup();
        let blobs: Vec<String> = blobs.into_iter().map(str::to_owned).collect();
        self.change(|transaction| {
            let now = now_ms();
            if create_script {
                transaction.execute(
                    "INSERT INTO scripts (name, settings, created_ms, modified_ms) VALUES (?1, ?2, ?3, ?3)
                     ON CONFLICT (name) DO NOTHING",
                    (&script, to_json(&ScriptSettings::default())?, now),
                )?;
            }
            let number = transaction
                .query_row(
                    "UPDATE scripts SET last_version_number = last_version_number + 1, modified_ms = ?2 WHERE name = ?1
                     RETURNING last_version_number",
                    (&script, now),
                    |row| row.get(0),
                )
                .optional()?
                .ok_or_else(|| StoreError::NotFound(format!("script {script}")))?;
            version.number = number;
            transaction.execute(
                "INSERT INTO versions (id, script, number, body) VALUES (?1, ?2, ?3, ?4)",
                (&version.id, &script, number, to_json(&version)?),
            )?;
            for blob in &blobs {
                // Inside the transaction, so that collection can't remove the blob between this look and the row.
                if !self.has_blob(blob) {
                    return Err(StoreError::NotFound(format!("blob {blob}")));
                }
                transaction.execute(
                    "INSERT INTO version_blobs (version, blob) VALUES (?1, ?2)",
                    (&version.id, blob),
                )?;
            }
            let undo = match &deploy {
                Some(deployment) => Some(move_deployment(
                    transaction,
                    &script,
                    &version.id,
                    deployment,
                )?),
                None => None,
            };
            if let Some(classes) = &new_namespaces {
                replace_classes(transaction, &script, classes)?;
            }
            change_secrets(transaction, &script, &secrets)?;
            prune(transaction, &script)?;
            Ok(Committed {
                version: version.clone(),
                undo,
            })
        })
    }

    /// Deploys a version that is stored already. With `take_secrets` its secrets become those that the next upload takes over
    /// (a rollback, which brings back old values).
    pub fn deploy_version(
        &self,
        script: &str,
        version_id: &str,
        deployment: &NewDeployment,
        take_secrets: bool,
    ) -> Result<Undo> {
        self.change(|transaction| {
            let version = version_body(transaction, version_id)?
                .filter(|version| version.script == script)
                .ok_or_else(|| {
                    StoreError::NotFound(format!("version {version_id} of script {script}"))
                })?;
            let undo = move_deployment(transaction, script, version_id, deployment)?;
            if take_secrets {
                let values = version.bindings.iter().filter_map(|binding| match binding {
                    Binding::SecretText { name, text } => Some((name.clone(), text.clone())),
                    _ => None,
                });
                replace_secrets(transaction, script, &values.collect())?;
            }
            prune(transaction, script)?;
            Ok(undo)
        })
    }

    /// Takes a deployment back: what it replaced serves again, with the namespaces, migration tag and secrets of then. The version stays.
    pub fn undo_deployment(&self, undo: &Undo) -> Result<()> {
        self.change(|transaction| {
            transaction.execute("DELETE FROM deployments WHERE id = ?1", [&undo.deployment])?;
            transaction.execute(
                "UPDATE scripts SET deployed_version = ?2, modified_ms = ?3 WHERE name = ?1",
                (&undo.script, &undo.previous_version, now_ms()),
            )?;
            replace_classes(transaction, &undo.script, &undo.classes)?;
            replace_secrets(transaction, &undo.script, &undo.secrets)
        })
    }

    /// Changes secrets of a script that has no deployed version to make a new one from.
    pub fn change_secrets(&self, script: &str, changes: &[SecretChange]) -> Result<()> {
        self.change(|transaction| change_secrets(transaction, script, changes))
    }

    /// Deletes a script with its versions, secrets, schedules and namespaces. False if there was none.
    pub fn delete_script(&self, script: &str) -> Result<bool> {
        self.change(|transaction| {
            Ok(transaction.execute("DELETE FROM scripts WHERE name = ?1", [script])? > 0)
        })
    }

    /// Deployments of a script, newest first.
    pub fn deployments(&self, script: &str, limit: u32) -> Result<Vec<Deployment>> {
        self.connection()
            .prepare_cached(
                "SELECT id, version, source, annotations, created_ms FROM deployments WHERE script = ?1
                 ORDER BY sequence DESC LIMIT ?2",
            )?
            .query_map((script, limit), |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get::<_, String>(3)?,
                    row.get(4)?,
                ))
            })?
            .map(|row| {
                let (id, version, source, annotations, created_ms) = row?;
                Ok(Deployment {
                    id,
                    version,
                    source,
                    annotations: from_json("a deployment", &annotations)?,
                    created_ms,
                })
            })
            .collect()
    }
}

fn move_deployment(
    transaction: &Transaction<'_>,
    script: &str,
    version: &str,
    deployment: &NewDeployment,
) -> Result<Undo> {
    let (previous_version, migration_tag, exports) = transaction
        .query_row(
            "SELECT deployed_version, migration_tag, class_exports FROM scripts WHERE name = ?1",
            [script],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?
        .ok_or_else(|| StoreError::NotFound(format!("script {script}")))?;
    let undo = Undo {
        script: script.to_owned(),
        deployment: uuid()?,
        previous_version,
        classes: Classes {
            namespaces: namespaces(transaction, script)?,
            migration_tag,
            exports,
        },
        secrets: secrets(transaction, script)?,
    };
    transaction.execute(
        "UPDATE scripts SET deployed_version = ?2, modified_ms = ?3 WHERE name = ?1",
        (script, version, now_ms()),
    )?;
    transaction.execute(
        "INSERT INTO deployments (id, script, version, source, annotations, created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (
            &undo.deployment,
            script,
            version,
            &deployment.source,
            to_json(&deployment.annotations)?,
            now_ms(),
        ),
    )?;
    Ok(undo)
}

fn replace_classes(transaction: &Transaction<'_>, script: &str, classes: &Classes) -> Result<()> {
    transaction.execute("DELETE FROM namespaces WHERE script = ?1", [script])?;
    for namespace in &classes.namespaces {
        transaction.execute(
            "INSERT INTO namespaces (id, script, class, use_sqlite, unique_key) VALUES (?1, ?2, ?3, ?4, ?5)",
            (
                &namespace.id,
                script,
                &namespace.class,
                namespace.use_sqlite,
                &namespace.unique_key,
            ),
        )?;
    }
    transaction.execute(
        "UPDATE scripts SET migration_tag = ?2, class_exports = ?3 WHERE name = ?1",
        (script, &classes.migration_tag, classes.exports),
    )?;
    Ok(())
}

fn replace_secrets(
    transaction: &Transaction<'_>,
    script: &str,
    values: &BTreeMap<String, String>,
) -> Result<()> {
    transaction.execute("DELETE FROM secrets WHERE script = ?1", [script])?;
    for (name, text) in values {
        transaction.execute(
            "INSERT INTO secrets (script, name, text) VALUES (?1, ?2, ?3)",
            (script, name, text),
        )?;
    }
    Ok(())
}

fn change_secrets(
    transaction: &Transaction<'_>,
    script: &str,
    changes: &[SecretChange],
) -> Result<()> {
    for (name, change) in changes {
        match change {
            Some(text) => transaction.execute(
                "INSERT INTO secrets (script, name, text) VALUES (?1, ?2, ?3)
                 ON CONFLICT (script, name) DO UPDATE SET text = excluded.text",
                (script, name, text),
            )?,
            None => transaction.execute(
                "DELETE FROM secrets WHERE script = ?1 AND name = ?2",
                (script, name),
            )?,
        };
    }
    Ok(())
}

fn prune(transaction: &Transaction<'_>, script: &str) -> Result<()> {
    transaction.execute(
        "DELETE FROM versions WHERE script = ?1
         AND id IS NOT (SELECT deployed_version FROM scripts WHERE name = ?1)
         AND number NOT IN (SELECT number FROM versions WHERE script = ?1 ORDER BY number DESC LIMIT ?2)",
        (script, VERSIONS_KEPT),
    )?;
    transaction.execute(
        "DELETE FROM deployments WHERE script = ?1
         AND sequence NOT IN (SELECT sequence FROM deployments WHERE script = ?1 ORDER BY sequence DESC LIMIT ?2)",
        (script, VERSIONS_KEPT),
    )?;
    Ok(())
}

/// A random (version 4) UUID, dashed.
fn uuid() -> Result<String> {
    let mut bytes = random(16)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    Ok([
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-"))
}
