//! The applications behind Durable Objects, as a start needs to know them.
//!
//! Owns: finding one, and what its configuration means for an instance. Must not: decide about a
//! start ([`crate::admission`] does).

use std::pin::Pin;
use std::sync::Arc;

use wharf_model::{Application, InstanceType, Spec};
use wharf_store::{Store, StoreError};

use crate::application::ApplicationInfo;
use crate::recipe::{Recipe, StandbyTarget};
use crate::size::instance_limits;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Finds applications.
pub trait Applications: Send + Sync + 'static {
    /// By the calling script, the unique key of the object's namespace, and the object's id; the
    /// reason if there is none (unknown class, no application deployed for it yet).
    fn find<'a>(
        &'a self,
        script: &'a str,
        unique_key: &'a str,
        object_id: &'a str,
    ) -> Boxed<'a, Result<ApplicationInfo, String>>;

    /// Who is told of starts that could be repeated, if anybody is.
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        None
    }
}

/// Is told of starts.
pub trait Observer: Send + Sync {
    /// An instance was created that any object of its application could have.
    fn started(&self, target: StandbyTarget, recipe: Recipe);
}

/// Where a node says that it is: the values of `CLOUDFLARE_COUNTRY_A2`, `CLOUDFLARE_LOCATION` and
/// `CLOUDFLARE_REGION` in its containers.
#[derive(Debug, Clone)]
pub struct Region {
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// Cloudflare's name of a city.
    pub location: String,
    /// Cloudflare's name of a region.
    pub region: String,
}

/// Applications from the store.
pub struct StoredApplications {
    region: Region,
    store: Store,
    observer: Option<Arc<dyn Observer>>,
}

impl StoredApplications {
    /// With an observer of every start that could be repeated.
    pub fn new(
        region: Region,
        store: Store,
        observer: Option<Arc<dyn Observer>>,
    ) -> StoredApplications {
        StoredApplications {
            region,
            store,
            observer,
        }
    }

    fn look_up(
        &self,
        script: &str,
        unique_key: &str,
        object_id: &str,
    ) -> Result<ApplicationInfo, String> {
        let fault = |e: StoreError| e.to_string();
        let namespace = self
            .store
            .namespace_by_unique_key(unique_key)
            .map_err(fault)?
            .filter(|n| n.script == script)
            .ok_or_else(|| {
                format!("the Worker \"{script}\" has no Durable Object class behind this container")
            })?;
        let application = self.store.application_by_namespace(&namespace.id).map_err(fault)?.ok_or_else(|| {
            format!(
                "no container application is deployed for the class {} of \"{script}\" yet; the deploy that creates it may still run, or it was deployed with --containers-rollout=none",
                namespace.class
            )
        })?;
        let Spec { limits, settings } = application.spec()?.clone();
        let limits = instance_limits(limits);
        let largest = if application.is_managed() {
            instance_limits(InstanceType::Standard4.limits())
        } else {
            limits.clone()
        };
        let deployments = self.store.deployments(script, 2).map_err(fault)?;
        // Also those of the version before: while a deploy is under way, its workerd still serves.
        let mut named_images = Vec::new();
        for deployment in &deployments {
            let version = self.store.version(&deployment.version).map_err(fault)?;
            let images = version
                .as_ref()
                .and_then(|v| v.named_images(&namespace.class));
            named_images.extend(images.into_iter().flat_map(|i| i.values().cloned()));
        }
        let deployment = deployments.into_iter().next().map(|d| d.id);
        let variables = [
            ("CLOUDFLARE_APPLICATION_ID", application.id.clone()),
            ("CLOUDFLARE_COUNTRY_A2", self.region.country.clone()),
            ("CLOUDFLARE_DEPLOYMENT_ID", deployment.unwrap_or_default()),
            ("CLOUDFLARE_DURABLE_OBJECT_ID", object_id.to_owned()),
            ("CLOUDFLARE_LOCATION", self.region.location.clone()),
            ("CLOUDFLARE_REGION", self.region.region.clone()),
        ];
        Ok(ApplicationInfo {
            image: application.image().map(str::to_owned),
            named_images,
            limits,
            largest,
            max_instances: application.max_instances,
            min_instances: settings.min_instances,
            isolation: settings.isolation,
            no_new_privileges: settings.no_new_privileges,
            variables: variables.map(|(k, v)| (k.to_owned(), v)).to_vec(),
            id: application.id,
            name: application.name,
        })
    }
}

impl Applications for StoredApplications {
    fn find<'a>(
        &'a self,
        script: &'a str,
        unique_key: &'a str,
        object_id: &'a str,
    ) -> Boxed<'a, Result<ApplicationInfo, String>> {
        Box::pin(async move { self.look_up(script, unique_key, object_id) })
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.clone()
    }
}

/// What an application asks to have started ahead; `None` if no script's objects are behind it.
pub(crate) fn standby_target(
    store: &Store,
    application: &Application,
) -> Result<Option<StandbyTarget>, StoreError> {
    let Some(namespace) = &application.namespace_id else {
        return Ok(None);
    };
    // A configuration that makes no sense asks for nothing; its starts say why they are refused.
    let min_instances = application.spec().map_or(0, |it| it.settings.min_instances);
    Ok(store.namespace(namespace)?.map(|namespace| StandbyTarget {
        id: application.id.clone(),
        name: application.name.clone(),
        script: namespace.script,
        unique_key: namespace.unique_key,
        min_instances,
        max_instances: application.max_instances,
    }))
}
