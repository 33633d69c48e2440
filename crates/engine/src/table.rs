//! The table of all instances: by id, by owner and name; who is idle; how many of an application
//! run. Behind one short lock, never held over an await.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::instance::Handle;
use crate::resources::User;
use crate::{Application, EngineError, Owner, Refusal};

/// The most instances without a process that are kept per script; the oldest go first.
const MAX_IDLE: usize = 100;
/// An instance that was made but not started is left alone for this long, milliseconds: its start
/// is on the way.
const YOUNG_MS: i64 = 60_000;
/// Names whose last generation is remembered after their removal.
const MAX_REMEMBERED: usize = 65_536;
/// Applications whose last refusal is kept.
const MAX_REFUSALS: usize = 100;
/// Failed starts whose reason is kept.
const MAX_FAILURES: usize = 256;
/// A refusal so soon after an equal one of the application is not logged again.
const QUIET_MS: i64 = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Table {
    by_id: HashMap<String, Arc<Handle>>,
    names: HashMap<Owner, HashMap<String, String>>,
    /// Instances without a process, oldest first, by a counter.
    idle: HashMap<Owner, BTreeMap<u64, String>>,
    idle_at: HashMap<String, u64>,
    counter: u64,
    /// Instances with a process, by application id.
    running: HashMap<String, HashSet<String>>,
    /// Last generation of names that are not in the table.
    generations: HashMap<Owner, HashMap<String, u64>>,
    remembered: usize,
    /// No name that is not remembered has had a generation above this.
    generation_floor: u64,
    refusals: VecDeque<Refusal>,
    failures: VecDeque<Failure>,
}

/// Why a start did not come about.
#[derive(Debug)]
struct Failure {
    owner: Owner,
    name: String,
    token: Option<String>,
    reason: String,
}

impl Table {
    pub(crate) fn insert(&mut self, handle: Arc<Handle>) -> Result<(), EngineError> {
        let spec = &handle.spec;
        self.check_name(&spec.owner, &spec.name)?;
        self.names
            .entry(spec.owner.clone())
            .or_default()
            .insert(spec.name.clone(), spec.id.clone());
        self.by_id.insert(spec.id.clone(), handle);
        Ok(())
    }

    /// Whether the name is free.
    pub(crate) fn check_name(&self, owner: &Owner, name: &str) -> Result<(), EngineError> {
        match self.names.get(owner).and_then(|names| names.get(name)) {
            None => Ok(()),
            Some(id) => Err(EngineError::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
            ))),
        }
    }

    /// Gives an instance another name and owner. What it was called before is free, and nothing is
    /// remembered of it.
    pub(crate) fn rename(&mut self, handle: Arc<Handle>) -> Result<(), EngineError> {
        let spec = &handle.spec;
        self.check_name(&spec.owner, &spec.name)?;
        let Some(before) = self.by_id.get(&spec.id).cloned() else {
            return Err(crate::missing(&spec.name));
        };
        self.set_idle(&spec.id, false);
        if let Some(names) = self.names.get_mut(&before.spec.owner) {
            names.remove(&before.spec.name);
            if names.is_empty() {
                self.names.remove(&before.spec.owner);
            }
        }
        let id = spec.id.clone();
        self.insert(handle)?;
        self.set_idle(&id, true);
        Ok(())
    }

    /// Forgets an instance; its name is free at once.
    pub(crate) fn remove(&mut self, id: &str) {
        self.set_idle(id, false);
        let Some(handle) = self.by_id.remove(id) else {
            return;
        };
        let spec = &handle.spec;
        self.stopped(spec.application.as_ref(), id);
        if let Some(names) = self.names.get_mut(&spec.owner) {
            names.remove(&spec.name);
            if names.is_empty() {
                self.names.remove(&spec.owner);
            }
        }
        if let Owner::Standby(_) = spec.owner {
            // Its name never comes again.
            return;
        }
        let generation = handle.view.borrow().status.generation;
        self.remember(&spec.owner, &spec.name, generation);
    }

    fn remember(&mut self, owner: &Owner, name: &str, generation: u64) {
        if self.remembered >= MAX_REMEMBERED {
            // Names begin above everything forgotten, so that no generation of a name ever comes
            // twice.
            let highest = self.generations.values().flat_map(HashMap::values).max();
            self.generation_floor = self.generation_floor.max(highest.copied().unwrap_or(0));
            self.generations.clear();
            self.remembered = 0;
        }
        let names = self.generations.entry(owner.clone()).or_default();
        if names.insert(name.to_owned(), generation).is_none() {
            self.remembered += 1;
        }
    }

    /// Generation of the last start of a name that is not in the table.
    pub(crate) fn last_generation(&self, owner: &Owner, name: &str) -> u64 {
        let remembered = self.generations.get(owner).and_then(|n| n.get(name));
        remembered.copied().unwrap_or(self.generation_floor)
    }

    /// Finds an instance by its name (a leading slash is Docker's), id, or unique id prefix. The
    /// operator finds everyone's; its own names come first.
    pub(crate) fn find(&self, owner: &Owner, reference: &str) -> Result<Arc<Handle>, EngineError> {
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(id) = self.names.get(owner).and_then(|names| names.get(name))
            && let Some(handle) = self.by_id.get(id)
        {
            return Ok(handle.clone());
        }
        let visible =
            |handle: &&Arc<Handle>| *owner == Owner::Operator || handle.spec.owner == *owner;
        if let Some(handle) = self.by_id.get(name).filter(visible) {
            return Ok(handle.clone());
        }
        let is_prefix =
            !name.is_empty() && name.len() < 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let mut matches = self.by_id.values().filter(visible).filter(|handle| {
            handle.spec.name == name || is_prefix && handle.spec.id.starts_with(name)
        });
        match (matches.next(), matches.next()) {
            (Some(handle), None) => Ok(handle.clone()),
            (None, _) => Err(EngineError::NotFound(format!("No such container: {name}"))),
            (Some(_), Some(_)) => Err(EngineError::Invalid(format!(
                "multiple containers found with the name or id prefix {name}"
            ))),
        }
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<Arc<Handle>> {
        self.by_id.get(id).cloned()
    }

    /// All, of one owner or of everyone, oldest first.
    pub(crate) fn all(&self, owner: Option<&Owner>) -> Vec<Arc<Handle>> {
        let mut handles: Vec<_> = self
            .by_id
            .values()
            .filter(|handle| owner.is_none_or(|owner| handle.spec.owner == *owner))
            .cloned()
            .collect();
        handles
            .sort_by(|a, b| (a.spec.created_ms, &a.spec.id).cmp(&(b.spec.created_ms, &b.spec.id)));
        handles
    }

    /// Whether one more of the application may run. A refusal is remembered: workerd does not tell
    /// the Worker why a start failed.
    pub(crate) fn check_limit(&mut self, application: &Application) -> Result<(), EngineError> {
        let running = self.running.get(&application.id).map_or(0, HashSet::len);
        if running < application.max_instances as usize {
            return Ok(());
        }
        let Application {
            name,
            max_instances,
            ..
        } = application;
        let reason = format!(
            "application \"{name}\" already runs {running} of max_instances {max_instances}; raise max_instances or let one sleep"
        );
        // A Worker that waits for its turn asks several times a second.
        if !self.refused(application, &reason) {
            tracing::warn!(reason, "instance refused");
        }
        Err(EngineError::Limit(reason))
    }

    /// Remembers why an application did not get an instance. Returns whether the same was so a
    /// moment ago.
    pub(crate) fn refused(&mut self, application: &Application, reason: &str) -> bool {
        let refusal = Refusal {
            application: application.id.clone(),
            application_name: application.name.clone(),
            reason: reason.to_owned(),
            at_ms: crate::now_ms(),
        };
        let earlier = self
            .refusals
            .iter()
            .position(|r| r.application == refusal.application)
            .and_then(|at| self.refusals.remove(at));
        let repeated = earlier
            .is_some_and(|r| r.reason == refusal.reason && refusal.at_ms - r.at_ms < QUIET_MS);
        if self.refusals.len() == MAX_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back(refusal);
        repeated
    }

    /// Remembers why the last start of a name failed.
    pub(crate) fn failed(
        &mut self,
        owner: &Owner,
        name: &str,
        token: Option<String>,
        reason: String,
    ) {
        self.failures
            .retain(|f| !(f.owner == *owner && f.name == name));
        if self.failures.len() == MAX_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(Failure {
            owner: owner.clone(),
            name: name.to_owned(),
            token,
            reason,
        });
    }

    /// Why the start with this token failed.
    pub(crate) fn failure(&self, owner: &Owner, name: &str, token: &str) -> Option<String> {
        let found = self
            .failures
            .iter()
            .find(|f| f.owner == *owner && f.name == name && f.token.as_deref() == Some(token));
        found.map(|f| f.reason.clone())
    }

    /// The last refusal of each application, oldest first.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.refusals.iter().cloned().collect()
    }

    /// The owner with the most instances that have a process. Looks at all of them.
    pub(crate) fn biggest_user(&self) -> Option<User> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for handle in self.by_id.values() {
            if !handle.view.borrow().state.is_live() {
                continue;
            }
            let spec = &handle.spec;
            let name = match (&spec.application, &spec.owner) {
                (Some(application), _) => format!("application \"{}\"", application.name),
                (None, Owner::Script(script) | Owner::Standby(script)) => {
                    format!("script \"{script}\"")
                }
                (None, Owner::Operator) => "the operator".to_owned(),
            };
            *counts.entry(name).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, instances)| *instances);
        most.map(|(name, instances)| User { name, instances })
    }

    /// Counts an instance as running.
    pub(crate) fn running(&mut self, application: Option<&Application>, id: &str) {
        if let Some(application) = application {
            let ids = self.running.entry(application.id.clone()).or_default();
            ids.insert(id.to_owned());
        }
    }

    /// Counts it no more.
    pub(crate) fn stopped(&mut self, application: Option<&Application>, id: &str) {
        if let Some(application) = application
            && let Some(ids) = self.running.get_mut(&application.id)
        {
            ids.remove(id);
            if ids.is_empty() {
                self.running.remove(&application.id);
            }
        }
    }

    /// Notes that an instance has a process, or has none.
    pub(crate) fn set_idle(&mut self, id: &str, idle: bool) {
        let Some(owner) = self.by_id.get(id).map(|handle| handle.spec.owner.clone()) else {
            return;
        };
        let of_owner = self.idle.entry(owner.clone()).or_default();
        if let Some(at) = self.idle_at.remove(id) {
            of_owner.remove(&at);
        }
        if idle {
            self.counter += 1;
            of_owner.insert(self.counter, id.to_owned());
            self.idle_at.insert(id.to_owned(), self.counter);
        } else if of_owner.is_empty() {
            self.idle.remove(&owner);
        }
    }

    /// Instances of a script that are too many without a process. The operator's own stay, as with
    /// Docker.
    pub(crate) fn excess(&self, owner: &Owner, now_ms: i64) -> Vec<Arc<Handle>> {
        let Some(idle) = self.idle.get(owner) else {
            return Vec::new();
        };
        if *owner == Owner::Operator || idle.len() <= MAX_IDLE {
            return Vec::new();
        }
        idle.values()
            .filter_map(|id| self.by_id.get(id))
            .filter(|handle| {
                let ended = handle.view.borrow().status.exit.is_some();
                ended || now_ms - handle.spec.created_ms > YOUNG_MS
            })
            .take(idle.len() - MAX_IDLE)
            .cloned()
            .collect()
    }
}
