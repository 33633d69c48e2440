//! One network in the place of another: behind an ingress that is known already, a namespace in which something runs already.
//!
//! workerd is told an ingress before it says what shall run behind it (contract: workerd, 1.3). When that has been started ahead, in a network of its own,
//! that network takes the place of the one which the ingress was made for. What workerd has said and been told stays true: the port, who may use it,
//! the certificate authority, policy, mappings.
//!
//! ```text
//!  workerd ──> ingress ──> own namespace (empty)        before
//!  workerd ──> ingress ──> the successor's namespace    after; the own one stays, unused
//! ```
//!
//! Owns: who is behind an ingress now. Must not: know why.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use crate::{Network, Shared};

/// Of one network.
#[derive(Default)]
pub(crate) struct Succession {
    /// The network that has taken over, if one has. It lives as long as the ingress is known, or until another takes over.
    next: watch::Sender<Option<Network>>,
    /// The network whose place this one has taken, if it has: workerd knows that one's ingress, and that one knows where workerd is.
    known_by: Mutex<Weak<Shared>>,
}

impl fmt::Debug for Succession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Succession")
    }
}

impl Succession {
    fn known_by(&self) -> MutexGuard<'_, Weak<Shared>> {
        self.known_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when `shared` is not what is current any more.
    pub(crate) async fn after(&self, shared: &Arc<Shared>) {
        let mut changes = self.next.subscribe();
        let changed = changes.wait_for(|next| {
            let next = next.as_ref().map(|network| &network.handle.0);
            !Arc::ptr_eq(next.unwrap_or(shared), shared)
        });
        if changed.await.is_err() {
            // The network is gone, and whoever asks with it.
            std::future::pending::<()>().await;
        }
    }
}

/// What is behind the ingress of `own`.
pub(crate) fn current(own: &Arc<Shared>) -> Arc<Shared> {
    match &*own.succession.next.borrow() {
        Some(next) => next.handle.0.clone(),
        None => own.clone(),
    }
}

/// The network that workerd knows, of what is behind its ingress: the one whose door leads to it.
pub(crate) fn known_by(current: &Arc<Shared>) -> Arc<Shared> {
    let known_by = current.succession.known_by().upgrade();
    known_by.unwrap_or_else(|| current.clone())
}

/// Something was said of a network that cannot be made true of what runs already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network has another policy, or mappings")]
pub struct NotEmpty;

impl Network {
    /// Whether this network's traffic is under no mapping and under this policy: then what was started in a network like that has met nothing that it would
    /// not have met here.
    pub fn is_plain(&self, policy: &crate::Policy) -> bool {
        self.policy() == *policy && self.egress().hosts().is_empty()
    }

    /// Puts `ahead`, with whatever runs in it, behind this network's ingress, and with it everything that was said of this one. From then on both are one; `ahead`'s
    /// own ingress stays as it was.
    ///
    /// # Errors
    /// The two differ in policy, or one has mappings: nothing was changed.
    pub fn take_over(&self, ahead: &Network) -> Result<(), NotEmpty> {
        let (own, next) = (&self.handle.0, &ahead.handle.0);
        let before = self.shared();
        if !self.is_plain(&ahead.policy()) || !ahead.is_plain(&self.policy()) {
            return Err(NotEmpty);
        }
        *next.ca.lock().unwrap_or_else(PoisonError::into_inner) = before.ca();
        next.egress.send_replace(before.egress.borrow().clone());
        next.policy.send_replace(before.policy.borrow().clone());
        next.target.send_replace(before.target.borrow().clone());
        *next.succession.known_by() = Arc::downgrade(own);
        own.succession.next.send_replace(Some(ahead.clone()));
        Ok(())
    }
}
