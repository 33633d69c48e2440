//! What a change in the store sets in motion: the control API's effects.

use super::{Node, script_url};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use wharf_engine::Owner;
use wharf_model::DurableObjectNamespace;
use wharf_store::{Store, StoreError};
use wharf_workerd::Desired;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a script shall run, from the store; `None` when nothing is deployed under the name.
pub(super) fn desired(store: &Store, script: &str) -> Result<Option<Desired>, StoreError> {
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

/// The control API's router, with the registry beside it.
pub(super) fn control_router(node: &Node) -> axum::Router {
    let config = wharf_control::ControlConfig {
        account_id: node.store.account_id(),
        registry_host: node.config.control.listen.to_string(),
        script_url: script_url(&node.config),
    };
    let store = node.store.clone();
    let check = Arc::new(move |token: &str| {
        store.registry_token(token).map(|found| match found.push {
            true => wharf_registry::Access::Push,
            false => wharf_registry::Access::Pull,
        })
    });
    wharf_control::router(config, node.store.clone(), Arc::new(Effects(node.clone())))
        .merge(wharf_registry::router(node.images.clone(), check))
}

struct Effects(Node);

impl wharf_control::Effects for Effects {
    fn script_changed<'a>(&'a self, script: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move {
            let node = &self.0;
            let found = {
                let (store, script) = (node.store.clone(), script.to_owned());
                let read = tokio::task::spawn_blocking(move || desired(&store, &script)).await;
                read.map_err(|e| e.to_string())?
                    .map_err(|e| e.to_string())?
            };
            let Some(desired) = found else {
                node.supervisor.remove(script, false).await;
                node.schedules.notify_one();
                return Ok(());
            };
            let serves = node
                .supervisor
                .status()
                .iter()
                .any(|s| s.script == script && s.version == desired.version.id);
            if !serves {
                // Tried beside the version that serves, so that a broken one costs no request.
                node.supervisor
                    .check(script, desired.clone())
                    .await
                    .map_err(|e| e.to_string())?;
            }
            node.supervisor.set(script, desired);
            node.schedules.notify_one();
            let settled = node.supervisor.settled(script).await;
            node.standbys.script_changed(script);
            settled.map_err(|e| e.to_string())
        })
    }

    fn missing_classes<'a>(
        &'a self,
        version: &'a wharf_model::Version,
        classes: BTreeSet<String>,
    ) -> Boxed<'a, Result<BTreeSet<String>, String>> {
        Box::pin(async move {
            let (store, script) = (self.0.store.clone(), version.script.clone());
            let known = tokio::task::spawn_blocking(move || store.script(&script))
                .await
                .map_err(|e| e.to_string())?
                .map_err(|e| e.to_string())?;
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
            let tried = self.0.supervisor.missing_classes(&version.script, desired);
            tried.await.map_err(|e| e.to_string())
        })
    }

    fn script_deleted<'a>(&'a self, script: &'a str) -> Boxed<'a, ()> {
        Box::pin(async move {
            self.0.schedules.notify_one();
            self.0.supervisor.remove(script, true).await;
            if let Err(e) = self.address_changed(script).await {
                tracing::error!("the address of {script} could not be taken away: {e}");
            }
            let owner = Owner::Script(script.to_owned());
            self.0.standbys.script_gone(script);
            self.0.engine.remove_all(Some(&owner)).await;
            let node = self.0.clone();
            let swept = tokio::task::spawn_blocking(move || {
                // Of this owner whatever it has, of all others what is due anyway.
                super::housekeeping::sweep_snapshots(&node, |known| known != owner.to_string())
            });
            match swept.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::error!("snapshots of {script} could not be removed: {e:#}"),
                Err(e) => tracing::error!("snapshots of {script} could not be removed: {e}"),
            }
        })
    }

    fn address_changed<'a>(&'a self, script: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move {
            let (node, script) = (self.0.clone(), script.to_owned());
            tokio::task::spawn_blocking(move || node.addresses.reload(&node.store, &script))
                .await
                .map_err(|e| e.to_string())?
                .map_err(|e| e.to_string())
        })
    }

    fn application_changed<'a>(&'a self, id: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move { roll(&self.0, id).await.map_err(|e| format!("{e:#}")) })
    }

    fn check_image<'a>(&'a self, reference: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move {
            let (images, reference) = (self.0.images.clone(), reference.to_owned());
            let checked =
                tokio::task::spawn_blocking(move || images.resolve(&reference).map(|_| ())).await;
            checked
                .map_err(|e| e.to_string())?
                .map_err(|e| e.to_string())
        })
    }

    fn prepare_image<'a>(&'a self, reference: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move {
            unpacked(&self.0, reference.to_owned())
                .await
                .map(|_| ())
                .map_err(|e| format!("{e:#}"))
        })
    }

    fn instances<'a>(&'a self, application: &'a str) -> Boxed<'a, Vec<serde_json::Value>> {
        Box::pin(async move {
            let all = self.0.engine.list(None).await;
            let of_it = all
                .iter()
                .filter(|i| i.application.as_deref() == Some(application));
            of_it.map(super::status::placement).collect()
        })
    }
}

/// Prepares an application's image, then ends the instances that run another one; their objects start the new one with their next request. Of a deleted
/// application, ends all.
async fn roll(node: &Node, id: &str) -> anyhow::Result<()> {
    let Some(application) = node.store.application(id)? else {
        node.standbys.application_gone(id);
        let ended = node.engine.end_application(id).await;
        tracing::info!(
            application = id,
            ended,
            "application deleted, its instances ended"
        );
        return Ok(());
    };
    node.engine
        .expect_disks(wharf_docker_api::script::disk_bytes(
            application.limits().disk_mb,
        ));
    let kept = super::sockets::kept(&node.store, &application)?;
    // One that its Durable Objects manage: what runs keeps its image, the next start names its own.
    let Some(reference) = application.image().map(str::to_owned) else {
        kept.into_iter()
            .for_each(|kept| node.standbys.application(kept));
        return Ok(());
    };
    let image = unpacked(node, reference.clone())
        .await
        .with_context(|| format!("the image of application \"{}\"", application.name))?;
    kept.into_iter()
        .for_each(|kept| node.standbys.application(kept));
    let settings = application.settings().map_err(anyhow::Error::msg)?;
    let class = node.engine.isolation_class(&image, settings.isolation)?;
    let rolled = node
        .engine
        .roll(id, image.id.as_str(), class, settings.no_new_privileges)
        .await;
    tracing::info!(application = application.name, rolled, "image set");
    let size = application.limits();
    let limits = wharf_engine::Limits {
        memory_bytes: Some(size.memory_mib.saturating_mul(1 << 20)),
        disk_bytes: Some(wharf_docker_api::script::disk_bytes(size.disk_mb)),
        ..wharf_engine::Limits::default()
    };
    node.engine
        .expect_image(id, &reference, image, limits)
        .await?;
    Ok(())
}

/// An image, ready to start.
async fn unpacked(node: &Node, reference: String) -> anyhow::Result<wharf_image::Image> {
    let images = node.images.clone();
    let image = tokio::task::spawn_blocking(move || {
        let image = images.resolve(&reference)?;
        images.lower_dirs(&image.layers)?;
        Ok::<_, wharf_image::ImageError>(image)
    })
    .await??;
    Ok(image)
}
