//! What a change in the store sets in motion: processes, instances and addresses become what the
//! store says.
//!
//! Level-triggered: each function reads what is wanted now, and may be called again at any time.
//! Owns: the order of the steps. Must not: change what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use wharf_engine::lifecycle::State;
use wharf_engine::{Inspect, Limits, Owner};
use wharf_image::{Image, ImageError};
use wharf_model::{DurableObjectNamespace, InstanceState, InstanceView, Version};
use wharf_store::{Store, StoreError};
use wharf_workerd::Desired;

use crate::Node;
use crate::applications::standby_target;
use crate::housekeeping::sweep_snapshots;
use crate::size::{disk_bytes, instance_limits};

/// What a script runs, from the store; `None` when nothing is deployed under the name.
fn desired(store: &Store, script: &str) -> Result<Option<Desired>, StoreError> {
    let (Some(known), Some(version)) = (store.script(script)?, store.deployed_version(script)?)
    else {
        return Ok(None);
    };
    let namespaces: BTreeMap<_, _> = store
        .namespaces(script)?
        .into_iter()
        .map(|n| (n.class.clone(), n))
        .collect();
    Ok(Some(Desired {
        version,
        script_number: known.number,
        namespaces,
    }))
}

/// Runs what blocks, with its error as text for the deployer.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

impl Node {
    /// Begins to run everything that is deployed, at the node's start.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn run_all(&self) -> Result<(), StoreError> {
        let mut scripts = Vec::new();
        for script in self.store.scripts()? {
            if let Some(desired) = desired(&self.store, &script.name)? {
                scripts.push((script.name, desired));
            }
        }
        self.supervisor.set_all(scripts);
        for application in self.store.applications()? {
            match application.spec() {
                Ok(spec) => self.engine.expect_disks(disk_bytes(spec.limits.disk_mb)),
                Err(reason) => tracing::error!("{reason}"),
            }
            if let Some(target) = standby_target(&self.store, &application)? {
                self.standbys.application(target);
            }
        }
        Ok(())
    }

    /// Runs a script's deployed version; returns when it serves. A version that does not serve yet
    /// is tried first, beside the one that serves, so that a broken one costs no request.
    ///
    /// # Errors
    /// Why the version does not run, for the deployer.
    pub async fn script_changed(&self, script: &str) -> Result<(), String> {
        let (store, name) = (self.store.clone(), script.to_owned());
        let Some(desired) = blocking(move || desired(&store, &name)).await? else {
            self.supervisor.remove(script, false).await;
            self.schedules.notify_one();
            return Ok(());
        };
        let mut running = self.supervisor.status().into_iter();
        if !running.any(|s| s.script == script && s.version == desired.version.id) {
            self.supervisor
                .check(script, desired.clone())
                .await
                .map_err(|e| e.to_string())?;
        }
        self.supervisor.set(script, desired);
        self.schedules.notify_one();
        let settled = self.supervisor.settled(script).await;
        self.standbys.script_changed(script);
        settled.map_err(|e| e.to_string())
    }

    /// Which of these classes the code of a version does not export.
    ///
    /// # Errors
    /// Why the code does not run, for the deployer.
    pub async fn missing_classes(
        &self,
        version: &Version,
        classes: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, String> {
        let (store, script) = (self.store.clone(), version.script.clone());
        let known = blocking(move || store.script(&script)).await?;
        let namespace = |class: String| {
            let namespace = DurableObjectNamespace {
                id: class.clone(),
                script: version.script.clone(),
                class: class.clone(),
                use_sqlite: true,
                unique_key: class.clone(),
            };
            (class, namespace)
        };
        let desired = Desired {
            version: version.clone(),
            // Numbers begin at 1; the number of a new script is not known yet.
            script_number: known.map_or(0, |script| script.number),
            namespaces: classes.into_iter().map(namespace).collect(),
        };
        let tried = self.supervisor.missing_classes(&version.script, desired);
        tried.await.map_err(|e| e.to_string())
    }

    /// Ends whatever a deleted script has left: its process, its containers, its snapshots.
    pub async fn script_deleted(&self, script: &str) {
        self.schedules.notify_one();
        self.supervisor.remove(script, true).await;
        if let Err(e) = self.address_changed(script).await {
            tracing::error!("the address of {script} could not be taken away: {e}");
        }
        let owner = Owner::Script(script.to_owned());
        self.standbys.script_gone(script);
        self.engine.remove_all(Some(&owner)).await;
        let node = self.clone();
        let swept = blocking(move || {
            // Everything of this owner, and of the others what is due anyway.
            sweep_snapshots(&node, |known| known != owner.to_string()).map_err(|e| format!("{e:#}"))
        });
        if let Err(e) = swept.await {
            tracing::error!("snapshots of {script} could not be removed: {e}");
        }
    }

    /// Reads again whether a script has an address.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn address_changed(&self, script: &str) -> Result<(), String> {
        let (node, script) = (self.clone(), script.to_owned());
        blocking(move || node.addresses.reload(&node.store, &script)).await
    }

    /// Prepares an application's image, then ends the instances that run another one; their
    /// objects start the new one with their next request. Of a deleted application, ends all.
    ///
    /// # Errors
    /// The image cannot be had, or the store cannot be read.
    pub async fn application_changed(&self, id: &str) -> anyhow::Result<()> {
        let Some(application) = self.store.application(id)? else {
            self.standbys.application_gone(id);
            let ended = self.engine.end_application(id).await;
            tracing::info!(
                application = id,
                ended,
                "application deleted, its instances ended"
            );
            return Ok(());
        };
        let spec = application.spec().map_err(anyhow::Error::msg)?;
        let (size, settings) = (spec.limits, &spec.settings);
        self.engine.expect_disks(disk_bytes(size.disk_mb));
        let target = standby_target(&self.store, &application)?;
        let keep = |target| self.standbys.application(target);
        // An application that its Durable Objects manage: what runs keeps its image, the next
        // start names its own.
        let Some(reference) = application.image().map(str::to_owned) else {
            target.into_iter().for_each(keep);
            return Ok(());
        };
        let image = self
            .unpack(reference.clone())
            .await
            .with_context(|| format!("the image of application \"{}\"", application.name))?;
        target.into_iter().for_each(keep);
        let class = self.engine.isolation_class(&image, settings.isolation)?;
        let rolled = self
            .engine
            .roll(id, image.id.as_str(), class, settings.no_new_privileges)
            .await;
        tracing::info!(application = application.name, rolled, "image set");
        let limits = Limits {
            cpu_millis: None,
            pids: None,
            ..instance_limits(size)
        };
        self.engine
            .expect_image(id, &reference, image, limits)
            .await?;
        Ok(())
    }

    /// Whether an image is here.
    ///
    /// # Errors
    /// Why it cannot be started, for the deployer.
    pub async fn check_image(&self, reference: &str) -> Result<(), String> {
        let (images, reference) = (self.images.clone(), reference.to_owned());
        blocking(move || images.resolve(&reference).map(drop)).await
    }

    /// Unpacks an image, so that it can start at once.
    ///
    /// # Errors
    /// It is not here, or cannot be unpacked.
    pub async fn unpack(&self, reference: String) -> anyhow::Result<Image> {
        let images = self.images.clone();
        let image = tokio::task::spawn_blocking(move || {
            let image = images.resolve(&reference)?;
            images.lower_dirs(&image.layers)?;
            Ok::<_, ImageError>(image)
        })
        .await??;
        Ok(image)
    }

    /// The instances of an application.
    pub async fn instances(&self, application: &str) -> Vec<InstanceView> {
        let all = self.engine.list(None).await;
        let of_it = all
            .into_iter()
            .filter(|i| i.application.as_deref() == Some(application));
        of_it.map(view).collect()
    }
}

fn view(instance: Inspect) -> InstanceView {
    let state = match &instance.state {
        State::Created | State::Starting => InstanceState::Placed,
        State::Running => InstanceState::Running,
        State::Stopping => InstanceState::Stopping,
        State::Exited(exit) if exit.code == 0 => InstanceState::Stopped,
        State::Exited(_) => InstanceState::Failed,
        State::Removed => InstanceState::Stopped,
    };
    InstanceView {
        id: instance.id,
        name: instance.name,
        created_ms: instance.created_ms,
        state,
    }
}
