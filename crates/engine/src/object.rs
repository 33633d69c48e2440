//! What a Durable Object says of its container beyond Docker's words, and what becomes of a
//! container whose object is not heard of.
//!
//! Owns: start options, labels, inactivity, the reasons of failed starts. Must not: know where
//! these come from.

use std::collections::BTreeMap;

use crate::instance::Ask;
use crate::{Application, Engine, EngineError, Owner, adopt, missing};

/// Options of `ctx.container.start()` that Docker has no word for (contract: workerd, 1.4).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Distinguishes this start from others of the same name; later calls may name it.
    pub token: Option<String>,
    /// The object's own labels; [`Engine::set_labels`] replaces them.
    pub labels: BTreeMap<String, String>,
    /// The process is stopped so long after its start, milliseconds.
    pub hard_timeout_ms: Option<u64>,
}

impl Engine {
    /// Replaces the labels that a running instance's object has given it. With a token, only of the
    /// start that has this token.
    pub async fn set_labels(
        &self,
        owner: &Owner,
        reference: &str,
        token: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        self.pinned(owner, reference, token)?;
        self.act(owner, reference, Ask::SetLabels(labels)).await
    }

    /// How long a running instance is kept while nobody asks for it once its owner's process has
    /// gone, milliseconds. Token as above.
    pub async fn set_inactivity(
        &self,
        owner: &Owner,
        reference: &str,
        token: Option<&str>,
        ms: u64,
    ) -> Result<(), EngineError> {
        self.pinned(owner, reference, token)?;
        self.act(owner, reference, Ask::SetInactivity(ms)).await
    }

    /// The process that asks for an owner's instances has gone. They run on; those that nobody asks
    /// for within the bound are removed. To be called within a tokio runtime.
    pub fn orphan(&self, owner: &Owner) {
        for handle in self.shared.table().all(Some(owner)) {
            // One that was handed over and never started has a process, too.
            let has_process = {
                let view = handle.view.borrow();
                view.state.is_live() || view.pid.is_some()
            };
            if has_process {
                adopt::reap_if_forgotten(handle, self.shared.config.adopt_idle_ms);
            }
        }
    }

    /// Remembers that an application was not given an instance, and why, for [`Engine::refusals`].
    pub fn refuse(&self, application: &Application, reason: &str) {
        if !self.shared.table().refused(application, reason) {
            tracing::warn!(application = application.name, reason, "instance refused");
        }
    }

    /// Remembers why a start (a create, or the start of what was created) failed, for
    /// [`Engine::failure`]: workerd does not tell the Worker.
    pub fn note_failure(&self, owner: &Owner, name: &str, token: Option<String>, reason: String) {
        let mut table = self.shared.table();
        let token = token.or_else(|| {
            let handle = table.find(owner, name).ok()?;
            handle.spec.start_token.clone()
        });
        table.failed(owner, name, token, reason);
    }

    /// Why the start of this name with this token failed, if it did a short while ago.
    pub fn failure(&self, owner: &Owner, name: &str, token: &str) -> Option<String> {
        self.shared.table().failure(owner, name, token)
    }

    /// That the name is still (or already) that of the start with this token.
    fn pinned(
        &self,
        owner: &Owner,
        reference: &str,
        token: Option<&str>,
    ) -> Result<(), EngineError> {
        let handle = self.find(owner, reference)?;
        match token {
            Some(token) if handle.spec.start_token.as_deref() != Some(token) => {
                Err(missing(&handle.spec.name))
            }
            _ => Ok(()),
        }
    }
}
