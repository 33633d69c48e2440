//! Container applications and the record of their rollouts.

use serde::{Deserialize, Serialize};
use wharf_model::Application;

use crate::draft::Draft;
use crate::meta::List;
use crate::{Result, Store, StoreError, keys, now_ms};

/// A rollout that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// A rollout's history longer than this is forgotten, oldest first.
const ROLLOUTS_KEPT: usize = 100;

pub(crate) fn application_key(id: &str) -> String {
    keys::one("applications", id)
}

fn rollouts_under(application: &str) -> String {
    keys::under("rollouts", application)
}

/// The keys under which an application's id is found. No two applications have one in common.
pub(crate) fn lookups(application: &Application) -> Vec<String> {
    let name = keys::one("application-names", &application.name);
    let namespace = application.namespace_id.as_deref();
    let namespace = namespace.map(|id| keys::one("application-namespaces", id));
    std::iter::once(name).chain(namespace).collect()
}

impl Store {
    /// All applications, by name.
    pub fn applications(&self) -> Result<Vec<Application>> {
        let mut all: Vec<Application> = self
            .listed(&List::under(keys::APPLICATIONS))?
            .into_iter()
            .map(|(_, application)| application)
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// An application by its id.
    pub fn application(&self, id: &str) -> Result<Option<Application>> {
        self.transact(|draft| draft.get(&application_key(id)))
    }

    /// An application by its name.
    pub fn application_by_name(&self, name: &str) -> Result<Option<Application>> {
        self.application_at(&keys::one("application-names", name))
    }

    /// The application whose instances the objects of a namespace own.
    pub fn application_by_namespace(&self, namespace_id: &str) -> Result<Option<Application>> {
        self.application_at(&keys::one("application-namespaces", namespace_id))
    }

    fn application_at(&self, lookup: &str) -> Result<Option<Application>> {
        self.transact(|draft| match draft.get::<String>(lookup)? {
            Some(id) => draft.get(&application_key(&id)),
            None => Ok(None),
        })
    }

    /// Stores a new application. Its name, and its namespace, must not have one yet.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if either has.
    pub fn create_application(&self, application: &Application) -> Result<()> {
        self.transact(|draft| {
            let key = application_key(&application.id);
            if draft.get::<Application>(&key)?.is_some() {
                return Err(taken(&application.name));
            }
            put_application(draft, application)
        })
    }

    /// Replaces an application by its new state, and records the rollout that brought it, if one did.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such an application; [`StoreError::Exists`] if another one
    /// has its name or namespace.
    pub fn update_application(
        &self,
        application: &Application,
        rollout: Option<&Rollout>,
    ) -> Result<()> {
        self.transact(|draft| {
            let key = application_key(&application.id);
            let Some(before) = draft.get::<Application>(&key)? else {
                return Err(StoreError::NotFound(format!(
                    "application {}",
                    application.id
                )));
            };
            for lookup in lookups(&before) {
                draft.delete(lookup);
            }
            put_application(draft, application)?;
            let Some(rollout) = rollout else {
                return Ok(());
            };
            let rollout = Rollout {
                created_ms: now_ms(),
                ..rollout.clone()
            };
            let mut known = draft.keys(&rollouts_under(&application.id))?;
            let last = known.last().and_then(|key| keys::number(key)).unwrap_or(0);
            let key = keys::numbered("rollouts", &application.id, last + 1);
            // Guards the number: the application itself may stay as it is.
            draft.get::<Rollout>(&key)?;
            draft.put(key.clone(), &rollout)?;
            known.push(key);
            let surplus = known.len().saturating_sub(ROLLOUTS_KEPT);
            known.drain(..surplus).for_each(|key| draft.delete(key));
            Ok(())
        })
    }

    /// Forgets an application and its rollouts. False if there was none.
    pub fn delete_application(&self, id: &str) -> Result<bool> {
        self.transact(|draft| {
            let key = application_key(id);
            let Some(application) = draft.get::<Application>(&key)? else {
                return Ok(false);
            };
            for lookup in lookups(&application) {
                draft.delete(lookup);
            }
            draft.delete(key);
            draft.delete_under(&rollouts_under(id))?;
            Ok(true)
        })
    }

    /// Forgets a rollout that could not be carried out.
    pub fn delete_rollout(&self, application: &str, id: &str) -> Result<()> {
        self.transact(|draft| {
            for (key, rollout) in draft.peek_under::<Rollout>(&rollouts_under(application))? {
                if rollout.id == id {
                    draft.delete(key);
                }
            }
            Ok(())
        })
    }

    /// The rollouts of an application, newest first.
    pub fn rollouts(&self, application: &str) -> Result<Vec<Rollout>> {
        let newest = List::under(rollouts_under(application)).descending();
        let rollouts = self.listed(&newest)?;
        Ok(rollouts.into_iter().map(|(_, rollout)| rollout).collect())
    }
}

fn put_application(draft: &mut Draft<'_>, application: &Application) -> Result<()> {
    for lookup in lookups(application) {
        let other: Option<String> = draft.get(&lookup)?;
        if other.is_some_and(|id| id != application.id) {
            return Err(taken(&application.name));
        }
        draft.put(lookup, &application.id)?;
    }
    draft.put(application_key(&application.id), application)
}

fn taken(name: &str) -> StoreError {
    StoreError::Exists(format!(
        "an application named {name}, or one for the same Durable Object namespace,"
    ))
}
