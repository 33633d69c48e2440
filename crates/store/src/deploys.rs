//! Changing what a script is: uploading versions, deploying them, taking a deployment back, deleting.
//!
//! Each function is one transaction. What serves is always what the script's record says, and a
//! version is whole before it is named there. Each change to what belongs to a script also writes
//! its record, so that of two at a time one is done again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wharf_model::{Binding, DurableObjectNamespace, Version};

use crate::blobs::blobs_of;
use crate::draft::Draft;
use crate::meta::List;
use crate::scripts::{
    ScriptRecord, VersionNumber, VersionRef, existing, namespaces_key, script_key, secrets_key,
    version_by_id, version_key,
};
use crate::{Result, ScriptSettings, Store, StoreError, keys, now_ms, random};

/// Versions kept per script, beside the one that is deployed; and deployments.
const VERSIONS_KEPT: usize = 100;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Its number among the script's deployments.
    deployment: u64,
    previous: Option<VersionNumber>,
    /// Id of the version that served before, if one did.
    pub previous_version: Option<String>,
    classes: Classes,
    secrets: BTreeMap<String, String>,
}

impl Store {
    /// Stores a version whole, and deploys it if asked, in one transaction.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if a blob that the version names is not stored, or there is no such
    /// script and none shall be made. Nothing has changed then.
    pub fn commit_upload(&self, upload: Upload) -> Result<Committed> {
        let Upload {
            version,
            create_script,
            deploy,
            namespaces: new_namespaces,
            secrets,
        } = upload;
        self.transact(|draft| {
            let now = now_ms();
            let mut version = version.clone();
            let mut script = match draft.get(&script_key(&version.script))? {
                None if create_script => new_script(draft, &version.script, now)?,
                None => {
                    return Err(StoreError::NotFound(format!("script {}", version.script)));
                }
                Some(found) => found,
            };
            let id_key = keys::one("version-ids", &version.id);
            if draft.get::<VersionRef>(&id_key)?.is_some() {
                return Err(StoreError::Exists(format!("version {}", version.id)));
            }
            self.check_blobs(draft, blobs_of(&version))?;
            script.last_version += 1;
            script.modified_ms = now;
            version.number = script.last_version;
            let place = VersionRef {
                script: version.script.clone(),
                number: version.number,
            };
            draft.put(id_key, &place)?;
            draft.put(version_key(&version.script, version.number), &version)?;
            let undo = match &deploy {
                Some(deployment) => Some(move_deployment(
                    draft,
                    &mut script,
                    VersionNumber {
                        id: version.id.clone(),
                        number: version.number,
                    },
                    deployment,
                )?),
                None => None,
            };
            if let Some(classes) = &new_namespaces {
                replace_classes(draft, &mut script, classes)?;
            }
            change_secrets(draft, &script.name, &secrets)?;
            prune(draft, &script, undo.as_ref())?;
            draft.put(script_key(&script.name), &script)?;
            Ok(Committed { version, undo })
        })
    }

    /// Deploys a version that is stored already. With `take_secrets` its secrets become those that the next upload takes over
    /// (a rollback, which brings back old values).
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such a version of this script.
    pub fn deploy_version(
        &self,
        script: &str,
        version_id: &str,
        deployment: &NewDeployment,
        take_secrets: bool,
    ) -> Result<Undo> {
        self.transact(|draft| {
            let version = version_by_id(draft, version_id)?
                .filter(|version| version.script == script)
                .ok_or_else(|| {
                    StoreError::NotFound(format!("version {version_id} of script {script}"))
                })?;
            let mut script = existing(draft, script)?;
            let number = VersionNumber {
                id: version.id,
                number: version.number,
            };
            let undo = move_deployment(draft, &mut script, number, deployment)?;
            if take_secrets {
                let values = version.bindings.iter().filter_map(|binding| match binding {
                    Binding::SecretText { name, text } => Some((name.clone(), text.clone())),
                    _ => None,
                });
                replace_secrets(draft, &script.name, values.collect())?;
            }
            prune(draft, &script, Some(&undo))?;
            draft.put(script_key(&script.name), &script)?;
            Ok(undo)
        })
    }

    /// Takes a deployment back: what it replaced serves again, with the namespaces, migration tag and secrets of then. The version stays.
    /// Nothing happens if the script was deleted meanwhile.
    pub fn undo_deployment(&self, undo: &Undo) -> Result<()> {
        self.transact(|draft| {
            let Some(mut script) = draft.get::<ScriptRecord>(&script_key(&undo.script))? else {
                return Ok(());
            };
            draft.delete(deployment_key(&undo.script, undo.deployment));
            script.deployed = undo.previous.clone();
            script.modified_ms = now_ms();
            replace_classes(draft, &mut script, &undo.classes)?;
            replace_secrets(draft, &undo.script, undo.secrets.clone())?;
            draft.put(script_key(&undo.script), &script)
        })
    }

    /// Changes secrets of a script that has no deployed version to make a new one from.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such a script.
    pub fn change_secrets(&self, script: &str, changes: &[SecretChange]) -> Result<()> {
        self.transact(|draft| {
            existing(draft, script)?;
            change_secrets(draft, script, changes)
        })
    }

    /// Deletes a script with its versions, secrets, schedules and namespaces. False if there was none.
    pub fn delete_script(&self, script: &str) -> Result<bool> {
        self.transact(|draft| {
            let Some(mut record) = draft.get::<ScriptRecord>(&script_key(script))? else {
                return Ok(false);
            };
            for (key, version) in draft.peek_under::<Version>(&keys::under("versions", script))? {
                draft.delete(keys::one("version-ids", &version.id));
                draft.delete(key);
            }
            replace_classes(draft, &mut record, &Classes::default())?;
            draft.delete(namespaces_key(script));
            draft.delete(secrets_key(script));
            for kind in ["deployments", "schedule-runs"] {
                draft.delete_under(&keys::under(kind, script))?;
            }
            draft.delete(script_key(script));
            Ok(true)
        })
    }

    /// Deployments of a script, newest first.
    pub fn deployments(&self, script: &str, limit: u32) -> Result<Vec<Deployment>> {
        let newest = List::under(keys::under("deployments", script))
            .descending()
            .limit(limit);
        let records = self.listed::<Deployment>(&newest)?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }
}

/// A script's record, with a number that none had before it.
fn new_script(draft: &mut Draft<'_>, name: &str, now: i64) -> Result<ScriptRecord> {
    let last: u32 = draft.get(keys::LAST_SCRIPT_NUMBER)?.unwrap_or(0);
    let number = last + 1;
    draft.put(keys::LAST_SCRIPT_NUMBER.to_owned(), &number)?;
    Ok(ScriptRecord {
        name: name.to_owned(),
        number,
        deployed: None,
        last_version: 0,
        last_deployment: 0,
        migration_tag: None,
        class_exports: false,
        settings: ScriptSettings::default(),
        schedules: Vec::new(),
        created_ms: now,
        modified_ms: now,
    })
}

pub(crate) fn deployment_key(script: &str, sequence: u64) -> String {
    keys::numbered("deployments", script, sequence)
}

fn move_deployment(
    draft: &mut Draft<'_>,
    script: &mut ScriptRecord,
    version: VersionNumber,
    deployment: &NewDeployment,
) -> Result<Undo> {
    let now = now_ms();
    script.last_deployment += 1;
    let previous = script.deployed.replace(version.clone());
    let undo = Undo {
        script: script.name.clone(),
        deployment: script.last_deployment,
        previous_version: previous.as_ref().map(|version| version.id.clone()),
        previous,
        classes: Classes {
            namespaces: draft
                .get(&namespaces_key(&script.name))?
                .unwrap_or_default(),
            migration_tag: script.migration_tag.clone(),
            exports: script.class_exports,
        },
        secrets: draft.get(&secrets_key(&script.name))?.unwrap_or_default(),
    };
    script.modified_ms = now;
    let record = Deployment {
        id: uuid()?,
        version: version.id,
        source: deployment.source.clone(),
        annotations: deployment.annotations.clone(),
        created_ms: now,
    };
    draft.put(deployment_key(&script.name, undo.deployment), &record)?;
    Ok(undo)
}

fn replace_classes(
    draft: &mut Draft<'_>,
    script: &mut ScriptRecord,
    classes: &Classes,
) -> Result<()> {
    let key = namespaces_key(&script.name);
    let before: Vec<DurableObjectNamespace> = draft.get(&key)?.unwrap_or_default();
    let lookups = |namespace: &DurableObjectNamespace| {
        [
            keys::one("namespace-ids", &namespace.id),
            keys::one("namespace-keys", &namespace.unique_key),
        ]
    };
    let mut gone: BTreeSet<String> = before.iter().flat_map(lookups).collect();
    let mut namespaces = classes.namespaces.clone();
    namespaces.sort_by(|a, b| a.class.cmp(&b.class));
    for namespace in &mut namespaces {
        namespace.script = script.name.clone();
        for lookup in lookups(namespace) {
            let taken = draft
                .get::<DurableObjectNamespace>(&lookup)?
                .is_some_and(|other| other.script != script.name);
            if taken {
                return Err(StoreError::Exists(format!(
                    "a Durable Object namespace with the id {}, or with its key,",
                    namespace.id
                )));
            }
            gone.remove(&lookup);
            draft.put(lookup, namespace)?;
        }
    }
    gone.into_iter().for_each(|key| draft.delete(key));
    let twice = |pair: &[DurableObjectNamespace]| pair[0].class == pair[1].class;
    if let Some(pair) = namespaces.windows(2).find(|pair| twice(pair)) {
        return Err(StoreError::Exists(format!(
            "a namespace of the class {}",
            pair[0].class
        )));
    }
    script.migration_tag = classes.migration_tag.clone();
    script.class_exports = classes.exports;
    draft.put(key, &namespaces)
}

fn replace_secrets(
    draft: &mut Draft<'_>,
    script: &str,
    values: BTreeMap<String, String>,
) -> Result<()> {
    let key = secrets_key(script);
    let before: BTreeMap<String, String> = draft.get(&key)?.unwrap_or_default();
    if before == values {
        return Ok(());
    }
    draft.put(key, &values)
}

fn change_secrets(draft: &mut Draft<'_>, script: &str, changes: &[SecretChange]) -> Result<()> {
    let mut values: BTreeMap<String, String> = draft.get(&secrets_key(script))?.unwrap_or_default();
    for (name, change) in changes {
        match change {
            Some(text) => values.insert(name.clone(), text.clone()),
            None => values.remove(name),
        };
    }
    replace_secrets(draft, script, values)
}

/// Removes versions and deployments beyond those that are kept. What serves stays, and what the
/// deployment that is being made replaced, since it may be taken back.
fn prune(draft: &mut Draft<'_>, script: &ScriptRecord, undo: Option<&Undo>) -> Result<()> {
    let kept = |key: &str| {
        let number = keys::number(key);
        let is = |version: &VersionNumber| Some(u64::from(version.number)) == number;
        script.deployed.as_ref().is_some_and(is)
            || undo.is_some_and(|undo| undo.previous.as_ref().is_some_and(is))
    };
    let versions = draft.keys(&keys::under("versions", &script.name))?;
    let surplus = versions.len().saturating_sub(VERSIONS_KEPT);
    let gone: Vec<_> = versions[..surplus]
        .iter()
        .filter(|key| !kept(key))
        .cloned()
        .collect();
    let mut gone_ids = BTreeSet::new();
    for version in draft.peek_all::<Version>(&gone)?.into_iter().flatten() {
        draft.delete(keys::one("version-ids", &version.id));
        gone_ids.insert(version.id);
    }
    gone.into_iter().for_each(|key| draft.delete(key));

    let under = keys::under("deployments", &script.name);
    let mut deployments = draft.keys(&under)?;
    let surplus = deployments.len().saturating_sub(VERSIONS_KEPT);
    deployments
        .drain(..surplus)
        .for_each(|key| draft.delete(key));
    if !gone_ids.is_empty() {
        for (key, deployment) in draft.peek_under::<Deployment>(&under)? {
            if gone_ids.contains(&deployment.version) {
                draft.delete(key);
            }
        }
    }
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
