//! Reading scripts and versions, and what belongs to a script beside its versions: settings, secrets, schedules, namespaces.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use wharf_model::{DurableObjectNamespace, Script, Version};

use crate::{Result, Store, StoreError, from_json, now_ms, to_json};

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

const SCRIPT_COLUMNS: &str =
    "name, number, deployed_version, migration_tag, created_ms, modified_ms, class_exports";

fn script(row: &Row<'_>) -> rusqlite::Result<Script> {
    Ok(Script {
        name: row.get(0)?,
        number: row.get(1)?,
        deployed_version: row.get(2)?,
        migration_tag: row.get(3)?,
        class_exports: row.get(6)?,
        schedules: Vec::new(),
        created_ms: row.get(4)?,
        modified_ms: row.get(5)?,
    })
}

fn namespace(row: &Row<'_>) -> rusqlite::Result<DurableObjectNamespace> {
    Ok(DurableObjectNamespace {
        id: row.get(0)?,
        script: row.get(1)?,
        class: row.get(2)?,
        use_sqlite: row.get(3)?,
        unique_key: row.get(4)?,
    })
}

fn schedules(connection: &Connection, script: &str) -> Result<Vec<String>> {
    Ok(connection
        .prepare_cached("SELECT cron FROM schedules WHERE script = ?1 ORDER BY position")?
        .query_map([script], |row| row.get(0))?
        .collect::<Result<_, _>>()?)
}

pub(crate) fn namespaces(
    connection: &Connection,
    script: &str,
) -> Result<Vec<DurableObjectNamespace>> {
    Ok(connection
        .prepare_cached(
            "SELECT id, script, class, use_sqlite, unique_key FROM namespaces WHERE script = ?1 ORDER BY class",
        )?
        .query_map([script], namespace)?
        .collect::<Result<_, _>>()?)
}

pub(crate) fn secrets(connection: &Connection, script: &str) -> Result<BTreeMap<String, String>> {
    Ok(connection
        .prepare_cached("SELECT name, text FROM secrets WHERE script = ?1")?
        .query_map([script], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?)
}

pub(crate) fn version_body(connection: &Connection, id: &str) -> Result<Option<Version>> {
    connection
        .prepare_cached("SELECT body FROM versions WHERE id = ?1")?
        .query_row([id], |row| row.get::<_, String>(0))
        .optional()?
        .map(|body| from_json("a version", &body))
        .transpose()
}

impl Store {
    /// All scripts, by name.
    pub fn scripts(&self) -> Result<Vec<Script>> {
        let connection = self.connection();
        let mut scripts = connection
            .prepare_cached(&format!(
                "SELECT {SCRIPT_COLUMNS} FROM scripts ORDER BY name"
            ))?
            .query_map([], script)?
            .collect::<Result<Vec<_>, _>>()?;
        for script in &mut scripts {
            script.schedules = schedules(&connection, &script.name)?;
        }
        Ok(scripts)
    }

    /// A script by its name.
    pub fn script(&self, name: &str) -> Result<Option<Script>> {
        let connection = self.connection();
        let found = connection
            .prepare_cached(&format!(
                "SELECT {SCRIPT_COLUMNS} FROM scripts WHERE name = ?1"
            ))?
            .query_row([name], script)
            .optional()?;
        found
            .map(|mut script| {
                script.schedules = schedules(&connection, name)?;
                Ok(script)
            })
            .transpose()
    }

    /// A version by its id (dashed UUID).
    pub fn version(&self, id: &str) -> Result<Option<Version>> {
        version_body(&self.connection(), id)
    }

    /// The version that serves a script; `None` if the script does not exist or was never deployed.
    pub fn deployed_version(&self, script: &str) -> Result<Option<Version>> {
        self.connection()
            .prepare_cached(
                "SELECT versions.body FROM scripts JOIN versions ON versions.id = scripts.deployed_version WHERE scripts.name = ?1",
            )?
            .query_row([script], |row| row.get::<_, String>(0))
            .optional()?
            .map(|body| from_json("a version", &body))
            .transpose()
    }

    /// The version of a script that was uploaded last, deployed or not.
    pub fn latest_version(&self, script: &str) -> Result<Option<Version>> {
        Ok(self.versions(script, 1, 0)?.into_iter().next())
    }

    /// Versions of a script, newest first.
    pub fn versions(&self, script: &str, limit: u32, offset: u32) -> Result<Vec<Version>> {
        self.connection()
            .prepare_cached(
                "SELECT body FROM versions WHERE script = ?1 ORDER BY number DESC LIMIT ?2 OFFSET ?3",
            )?
            .query_map((script, limit, offset), |row| row.get::<_, String>(0))?
            .map(|body| from_json("a version", &body?))
            .collect()
    }

    /// How many versions of a script are kept.
    pub fn version_count(&self, script: &str) -> Result<u32> {
        Ok(self.connection().query_row(
            "SELECT count(*) FROM versions WHERE script = ?1",
            [script],
            |row| row.get(0),
        )?)
    }

    /// The Durable Object namespaces of a script, by class.
    pub fn namespaces(&self, script: &str) -> Result<Vec<DurableObjectNamespace>> {
        namespaces(&self.connection(), script)
    }

    /// All Durable Object namespaces, by script and class.
    pub fn all_namespaces(&self) -> Result<Vec<DurableObjectNamespace>> {
        Ok(self
            .connection()
            .prepare_cached(
                "SELECT id, script, class, use_sqlite, unique_key FROM namespaces ORDER BY script, class",
            )?
            .query_map([], namespace)?
            .collect::<Result<_, _>>()?)
    }

    /// A namespace by the id that the API shows.
    pub fn namespace(&self, id: &str) -> Result<Option<DurableObjectNamespace>> {
        Ok(self
            .connection()
            .prepare_cached(
                "SELECT id, script, class, use_sqlite, unique_key FROM namespaces WHERE id = ?1",
            )?
            .query_row([id], namespace)
            .optional()?)
    }

    /// A namespace by workerd's `uniqueKey`.
    pub fn namespace_by_unique_key(&self, key: &str) -> Result<Option<DurableObjectNamespace>> {
        Ok(self
            .connection()
            .prepare_cached(
                "SELECT id, script, class, use_sqlite, unique_key FROM namespaces WHERE unique_key = ?1",
            )?
            .query_row([key], namespace)
            .optional()?)
    }

    /// The secrets that the next upload of a script takes over.
    pub fn secrets(&self, script: &str) -> Result<BTreeMap<String, String>> {
        secrets(&self.connection(), script)
    }

    /// The script's settings; the defaults if it does not exist.
    pub fn script_settings(&self, script: &str) -> Result<ScriptSettings> {
        self.connection()
            .prepare_cached("SELECT settings FROM scripts WHERE name = ?1")?
            .query_row([script], |row| row.get::<_, String>(0))
            .optional()?
            .map_or_else(
                || Ok(ScriptSettings::default()),
                |text| from_json("a script's settings", &text),
            )
    }

    /// Replaces the script's settings.
    pub fn set_script_settings(&self, script: &str, settings: &ScriptSettings) -> Result<()> {
        let text = to_json(settings)?;
        self.change(|transaction| {
            let changed = transaction.execute(
                "UPDATE scripts SET settings = ?2, modified_ms = ?3 WHERE name = ?1",
                (script, text, now_ms()),
            )?;
            match changed {
                0 => Err(StoreError::NotFound(format!("script {script}"))),
                _ => Ok(()),
            }
        })
    }

    /// Replaces the script's cron expressions. Those that stay keep the time of their last run.
    pub fn set_schedules(&self, script: &str, crons: &[String]) -> Result<()> {
        self.change(|transaction| {
            let changed = transaction.execute(
                "UPDATE scripts SET modified_ms = ?2 WHERE name = ?1",
                (script, now_ms()),
            )?;
            if changed == 0 {
                return Err(StoreError::NotFound(format!("script {script}")));
            }
            for gone in schedules(transaction, script)? {
                if !crons.contains(&gone) {
                    transaction.execute(
                        "DELETE FROM schedules WHERE script = ?1 AND cron = ?2",
                        (script, gone),
                    )?;
                }
            }
            for (position, cron) in crons.iter().enumerate() {
                transaction.execute(
                    "INSERT INTO schedules (script, cron, position, created_ms) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (script, cron) DO UPDATE SET position = excluded.position",
                    (script, cron, position as i64, now_ms()),
                )?;
            }
            Ok(())
        })
    }

    /// The due time of a schedule's last run, Unix milliseconds; `None` if it never ran or does not exist.
    pub fn cron_last_run(&self, script: &str, cron: &str) -> Result<Option<i64>> {
        Ok(self
            .connection()
            .prepare_cached("SELECT last_run_ms FROM schedules WHERE script = ?1 AND cron = ?2")?
            .query_row((script, cron), |row| row.get(0))
            .optional()?
            .flatten())
    }

    /// Notes the due time of a schedule's run, before it runs. Nothing happens if the schedule is gone.
    pub fn set_cron_last_run(&self, script: &str, cron: &str, ms: i64) -> Result<()> {
        self.change(|transaction| {
            transaction.execute(
                "UPDATE schedules SET last_run_ms = ?3 WHERE script = ?1 AND cron = ?2",
                (script, cron, ms),
            )?;
            Ok(())
        })
    }
}
