//! The control API and the registry, and the node that carries out what they change.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use wharf_model::{InstanceView, Version};
use wharf_node::Node;

use super::{Daemon, script_url};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The control API's router, with the registry beside it.
pub(super) fn control_router(daemon: &Daemon) -> axum::Router {
    let node = &daemon.node;
    let config = wharf_control::ControlConfig {
        account_id: node.store.account_id(),
        registry_host: daemon.config.control.listen.to_string(),
        script_url: script_url(&daemon.config),
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
        Box::pin(self.0.script_changed(script))
    }

    fn missing_classes<'a>(
        &'a self,
        version: &'a Version,
        classes: BTreeSet<String>,
    ) -> Boxed<'a, Result<BTreeSet<String>, String>> {
        Box::pin(self.0.missing_classes(version, classes))
    }

    fn script_deleted<'a>(&'a self, script: &'a str) -> Boxed<'a, ()> {
        Box::pin(self.0.script_deleted(script))
    }

    fn address_changed<'a>(&'a self, script: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(self.0.address_changed(script))
    }

    fn application_changed<'a>(&'a self, id: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move {
            let changed = self.0.application_changed(id).await;
            changed.map_err(|e| format!("{e:#}"))
        })
    }

    fn check_image<'a>(&'a self, reference: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(self.0.check_image(reference))
    }

    fn prepare_image<'a>(&'a self, reference: &'a str) -> Boxed<'a, Result<(), String>> {
        Box::pin(async move {
            let unpacked = self.0.unpack(reference.to_owned()).await;
            unpacked.map(drop).map_err(|e| format!("{e:#}"))
        })
    }

    fn instances<'a>(&'a self, application: &'a str) -> Boxed<'a, Vec<InstanceView>> {
        Box::pin(self.0.instances(application))
    }
}
