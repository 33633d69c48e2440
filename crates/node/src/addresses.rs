//! Which Workers have an address of their own at the gateway.
//!
//! Owns: the set of Workers that are served under `<script>.<base domain>`, in memory, so that a
//! request asks no database. A Worker without an address is reached by service bindings and by its
//! schedules alone. Must not: decide who gets one (`POST .../subdomain` of the control API does).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use wharf_store::{Store, StoreError};

/// The Workers that have an address. Cheap to clone; clones share the set.
#[derive(Clone)]
pub struct Addresses(Arc<Shared>);

struct Shared {
    public: RwLock<BTreeSet<String>>,
    /// One reload at a time, so that the last one to write is the last one to have read.
    reloading: Mutex<()>,
}

impl Addresses {
    /// Reads the set from the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load(store: &Store) -> Result<Addresses, StoreError> {
        let mut public = BTreeSet::new();
        for script in store.scripts()? {
            if store.script_settings(&script.name)?.enabled {
                public.insert(script.name);
            }
        }
        Ok(Addresses(Arc::new(Shared {
            public: RwLock::new(public),
            reloading: Mutex::new(()),
        })))
    }

    /// Reads one script's setting again, after it changed or after the script was deleted.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn reload(&self, store: &Store, script: &str) -> Result<(), StoreError> {
        let _alone = self
            .0
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_public = store.script(script)?.is_some() && store.script_settings(script)?.enabled;
        let mut public = self
            .0
            .public
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if is_public {
            public.insert(script.to_owned());
        } else {
            public.remove(script);
        }
        Ok(())
    }

    /// Whether requests from outside reach the script.
    pub fn is_public(&self, script: &str) -> bool {
        self.0
            .public
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(script)
    }
}
