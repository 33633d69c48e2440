//! Container applications and the record of their rollouts.

use rusqlite::{OptionalExtension, Row};
use wharf_model::Application;

use crate::{Result, Store, StoreError, from_json, now_ms, to_json};

/// A rollout that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Dashed UUID.
    pub id: String,
    /// The application's id.
    pub application: String,
    /// The rollout as the API shows it.
    pub body: serde_json::Value,
    /// Unix time in milliseconds.
    pub created_ms: i64,
}

fn application(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}

/// A rollout's history longer than this is forgotten, oldest first.
const ROLLOUTS_KEPT: u32 = 100;

impl Store {
    /// All applications, by name.
    pub fn applications(&self) -> Result<Vec<Application>> {
        self.connection()
            .prepare_cached("SELECT body FROM applications ORDER BY name")?
            .query_map([], application)?
            .map(|body| from_json("an application", &body?))
            .collect()
    }

    /// An application by its id.
    pub fn application(&self, id: &str) -> Result<Option<Application>> {
        self.one_application("SELECT body FROM applications WHERE id = ?1", id)
    }

    /// An application by its name.
    pub fn application_by_name(&self, name: &str) -> Result<Option<Application>> {
        self.one_application("SELECT body FROM applications WHERE name = ?1", name)
    }

    /// The application whose instances the objects of a namespace own.
    pub fn application_by_namespace(&self, namespace_id: &str) -> Result<Option<Application>> {
        self.one_application(
            "SELECT body FROM applications WHERE namespace_id = ?1",
            namespace_id,
        )
    }

    fn one_application(&self, sql: &str, key: &str) -> Result<Option<Application>> {
        self.connection()
            .prepare_cached(sql)?
            .query_row([key], application)
            .optional()?
            .map(|body| from_json("an application", &body))
            .transpose()
    }

    /// Stores a new application. Its name, and its namespace, must not have one yet.
    pub fn create_application(&self, application: &Application) -> Result<()> {
        let body = to_json(application)?;
        self.change(|transaction| {
            transaction
                .execute(
                    "INSERT INTO applications (id, name, namespace_id, body) VALUES (?1, ?2, ?3, ?4)",
                    (
                        &application.id,
                        &application.name,
                        &application.namespace_id,
                        body,
                    ),
                )
                .map_err(|error| taken(error, &application.name))?;
            Ok(())
        })
    }

    /// Replaces an application by its new state, and records the rollout that brought it, if one did.
    pub fn update_application(
        &self,
        application: &Application,
        rollout: Option<&Rollout>,
    ) -> Result<()> {
        let body = to_json(application)?;
        self.change(|transaction| {
            let changed = transaction
                .execute(
                    "UPDATE applications SET name = ?2, namespace_id = ?3, body = ?4 WHERE id = ?1",
                    (
                        &application.id,
                        &application.name,
                        &application.namespace_id,
                        body,
                    ),
                )
                .map_err(|error| taken(error, &application.name))?;
            if changed == 0 {
                return Err(StoreError::NotFound(format!(
                    "application {}",
                    application.id
                )));
            }
            if let Some(rollout) = rollout {
                transaction.execute(
                    "INSERT INTO rollouts (id, application, body, created_ms) VALUES (?1, ?2, ?3, ?4)",
                    (
                        &rollout.id,
                        &rollout.application,
                        to_json(&rollout.body)?,
                        now_ms(),
                    ),
                )?;
                transaction.execute(
                    "DELETE FROM rollouts WHERE application = ?1 AND sequence NOT IN
                     (SELECT sequence FROM rollouts WHERE application = ?1 ORDER BY sequence DESC LIMIT ?2)",
                    (&rollout.application, ROLLOUTS_KEPT),
                )?;
            }
            Ok(())
        })
    }

    /// Forgets an application and its rollouts. False if there was none.
    pub fn delete_application(&self, id: &str) -> Result<bool> {
        self.change(|transaction| {
            Ok(transaction.execute("DELETE FROM applications WHERE id = ?1", [id])? > 0)
        })
    }

    /// Forgets a rollout that could not be carried out.
    pub fn delete_rollout(&self, id: &str) -> Result<()> {
        self.change(|transaction| {
            transaction.execute("DELETE FROM rollouts WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    /// The rollouts of an application, newest first.
    pub fn rollouts(&self, application: &str) -> Result<Vec<Rollout>> {
        self.connection()
            .prepare_cached(
                "SELECT id, application, body, created_ms FROM rollouts WHERE application = ?1 ORDER BY sequence DESC",
            )?
            .query_map([application], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?, row.get(3)?))
            })?
            .map(|row| {
                let (id, application, body, created_ms) = row?;
                Ok(Rollout {
                    id,
                    application,
                    body: from_json("a rollout", &body)?,
                    created_ms,
                })
            })
            .collect()
    }
}

fn taken(error: rusqlite::Error, name: &str) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => StoreError::Exists(format!(
            "an application named {name}, or one for the same Durable Object namespace,"
        )),
        _ => error.into(),
    }
}
