//! Reading scripts and versions, and what belongs to a script beside its versions: settings, secrets, schedules, namespaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wharf_model::{DurableObjectNamespace, Script, Version};

use crate::draft::{Draft, decode};
use crate::meta::{List, wait};
use crate::{Result, Store, StoreError, keys, now_ms};

/// Settings of a script that no version carries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScriptSettings {
    /// Whether the script is served under its own host name (Cloudflare: workers.dev). A new
    /// script is not until its client asks for it, which wrangler does at the end of a deploy.
    pub enabled: bool,
    /// What `script-settings` carries: tags, observability, ...
    pub values: serde_json::Map<String, serde_json::Value>,
}

/// A script as it is stored. Each change to its versions, deployments, secrets or namespaces writes
/// it, so that two changes at a time can't both succeed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScriptRecord {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) deployed: Option<VersionNumber>,
    pub(crate) last_version: u32,
    pub(crate) last_deployment: u64,
    pub(crate) migration_tag: Option<String>,
    pub(crate) class_exports: bool,
    pub(crate) settings: ScriptSettings,
    pub(crate) schedules: Vec<ScheduleRecord>,
    pub(crate) created_ms: i64,
    pub(crate) modified_ms: i64,
}

/// A version of a script that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VersionNumber {
    pub(crate) id: String,
    pub(crate) number: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScheduleRecord {
    pub(crate) cron: String,
    pub(crate) created_ms: i64,
}

/// Where a version is, by its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VersionRef {
    pub(crate) script: String,
    pub(crate) number: u32,
}

impl From<ScriptRecord> for Script {
    fn from(record: ScriptRecord) -> Self {
        Script {
            name: record.name,
            number: record.number,
            deployed_version: record.deployed.map(|version| version.id),
            migration_tag: record.migration_tag,
            class_exports: record.class_exports,
            schedules: record.schedules.into_iter().map(|s| s.cron).collect(),
            created_ms: record.created_ms,
            modified_ms: record.modified_ms,
        }
    }
}

pub(crate) fn script_key(name: &str) -> String {
    keys::one("scripts", name)
}

pub(crate) fn version_key(script: &str, number: u32) -> String {
    keys::numbered("versions", script, number.into())
}

pub(crate) fn namespaces_key(script: &str) -> String {
    keys::one("namespaces", script)
}

pub(crate) fn secrets_key(script: &str) -> String {
    keys::one("secrets", script)
}

fn run_key(script: &str, cron: &str) -> String {
    keys::member("schedule-runs", script, cron)
}

/// The record of a script that must be there.
pub(crate) fn existing(draft: &mut Draft<'_>, name: &str) -> Result<ScriptRecord> {
    draft
        .get(&script_key(name))?
        .ok_or_else(|| StoreError::NotFound(format!("script {name}")))
}

/// A version by its id.
pub(crate) fn version_by_id(draft: &mut Draft<'_>, id: &str) -> Result<Option<Version>> {
    match draft.get::<VersionRef>(&keys::one("version-ids", id))? {
        Some(found) => immutable(draft, &version_key(&found.script, found.number)),
        None => Ok(None),
    }
}

/// A version, where one is known to have been: it never changes, but it may have gone meanwhile.
fn immutable(draft: &mut Draft<'_>, key: &str) -> Result<Option<Version>> {
    let version = draft.get(key)?;
    if version.is_some() {
        draft.accept();
    }
    Ok(version)
}

impl Store {
    fn record<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.transact(|draft| draft.get(key))
    }

    /// All scripts, by name.
    pub fn scripts(&self) -> Result<Vec<Script>> {
        let mut scripts: Vec<Script> = self
            .listed::<ScriptRecord>(&List::under(keys::SCRIPTS))?
            .into_iter()
            .map(|(_, record)| record.into())
            .collect();
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scripts)
    }

    /// A script by its name.
    pub fn script(&self, name: &str) -> Result<Option<Script>> {
        let record = self.record::<ScriptRecord>(&script_key(name))?;
        Ok(record.map(Script::from))
    }

    /// A version by its id (dashed UUID).
    pub fn version(&self, id: &str) -> Result<Option<Version>> {
        self.transact(|draft| version_by_id(draft, id))
    }

    /// The version that serves a script; `None` if the script does not exist or was never deployed.
    pub fn deployed_version(&self, script: &str) -> Result<Option<Version>> {
        self.transact(|draft| {
            let record: Option<ScriptRecord> = draft.get(&script_key(script))?;
            match record.and_then(|record| record.deployed) {
                Some(deployed) => immutable(draft, &version_key(script, deployed.number)),
                None => Ok(None),
            }
        })
    }

    /// The version of a script that was uploaded last, deployed or not.
    pub fn latest_version(&self, script: &str) -> Result<Option<Version>> {
        let last = List::under(keys::under("versions", script))
            .descending()
            .limit(1);
        Ok(self.listed(&last)?.into_iter().next().map(|(_, v)| v))
    }

    /// Versions of a script, newest first.
    pub fn versions(&self, script: &str, limit: u32, offset: u32) -> Result<Vec<Version>> {
        let newest = List::under(keys::under("versions", script))
            .descending()
            .limit(limit.saturating_add(offset));
        wait(self.inner.meta.list(&newest))?
            .records
            .iter()
            .skip(offset as usize)
            .map(|record| decode("a version", &record.value))
            .collect()
    }

    /// How many versions of a script are kept.
    pub fn version_count(&self, script: &str) -> Result<u32> {
        let list = List::under(keys::under("versions", script)).keys_only();
        // A hundred are kept, and the deployed one.
        Ok(wait(self.inner.meta.list(&list))?.records.len() as u32)
    }

    /// The Durable Object namespaces of a script, by class.
    pub fn namespaces(&self, script: &str) -> Result<Vec<DurableObjectNamespace>> {
        Ok(self.record(&namespaces_key(script))?.unwrap_or_default())
    }

    /// All Durable Object namespaces, by script and class.
    pub fn all_namespaces(&self) -> Result<Vec<DurableObjectNamespace>> {
        let lists = self.listed::<Vec<DurableObjectNamespace>>(&List::under(keys::NAMESPACES))?;
        let mut all: Vec<_> = lists.into_iter().flat_map(|(_, list)| list).collect();
        all.sort_by(|a, b| (&a.script, &a.class).cmp(&(&b.script, &b.class)));
        Ok(all)
    }

    /// A namespace by the id that the API shows.
    pub fn namespace(&self, id: &str) -> Result<Option<DurableObjectNamespace>> {
        self.record(&keys::one("namespace-ids", id))
    }

    /// A namespace by workerd's `uniqueKey`.
    pub fn namespace_by_unique_key(&self, key: &str) -> Result<Option<DurableObjectNamespace>> {
        self.record(&keys::one("namespace-keys", key))
    }

    /// The secrets that the next upload of a script takes over.
    pub fn secrets(&self, script: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.record(&secrets_key(script))?.unwrap_or_default())
    }

    /// The script's settings; the defaults if it does not exist.
    pub fn script_settings(&self, script: &str) -> Result<ScriptSettings> {
        let record = self.record::<ScriptRecord>(&script_key(script))?;
        Ok(record.map(|record| record.settings).unwrap_or_default())
    }

    /// Replaces the script's settings.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such a script.
    pub fn set_script_settings(&self, script: &str, settings: &ScriptSettings) -> Result<()> {
        self.transact(|draft| {
            let mut record = existing(draft, script)?;
            record.settings = settings.clone();
            record.modified_ms = now_ms();
            draft.put(script_key(script), &record)
        })
    }

    /// Replaces the script's cron expressions. Those that stay keep the time of their last run.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such a script.
    pub fn set_schedules(&self, script: &str, crons: &[String]) -> Result<()> {
        self.transact(|draft| {
            let now = now_ms();
            let mut record = existing(draft, script)?;
            let before = std::mem::take(&mut record.schedules);
            for gone in before.iter().filter(|old| !crons.contains(&old.cron)) {
                draft.delete(run_key(script, &gone.cron));
            }
            for cron in crons {
                if record.schedules.iter().any(|known| known.cron == *cron) {
                    continue;
                }
                let kept = before.iter().find(|old| old.cron == *cron).cloned();
                record
                    .schedules
                    .push(kept.unwrap_or_else(|| ScheduleRecord {
                        cron: cron.clone(),
                        created_ms: now,
                    }));
            }
            record.modified_ms = now;
            draft.put(script_key(script), &record)
        })
    }

    /// The due time of a schedule's last run, Unix milliseconds; `None` if it never ran or does not exist.
    pub fn cron_last_run(&self, script: &str, cron: &str) -> Result<Option<i64>> {
        self.record(&run_key(script, cron))
    }

    /// Notes the due time of a schedule's run, before it runs. Nothing happens if the schedule is gone.
    pub fn set_cron_last_run(&self, script: &str, cron: &str, ms: i64) -> Result<()> {
        self.transact(|draft| {
            let record: Option<ScriptRecord> = draft.get(&script_key(script))?;
            let schedules = record.map(|record| record.schedules).unwrap_or_default();
            if schedules.iter().any(|schedule| schedule.cron == cron) {
                draft.put(run_key(script, cron), &ms)?;
            }
            Ok(())
        })
    }
}
