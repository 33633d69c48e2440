//! Who calls, and what a start of theirs may have.
//!
//! | | a script | the operator |
//! |---|---|---|
//! | whose | an object's | anybody's |
//! | image | its application's, one that its version names, or a snapshot of its own | any that is here |
//! | limits | its application's, or lower | as asked |
//! | variables | real values for the platform's placeholders | as asked |
//! | isolation class | its application's | as asked |
//! | `no_new_privs` | if its application or the start says so | if the start says so |
//!
//! Owns: that decision, and the words of a refusal. Must not: start anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use wharf_engine::{
    Application, Create, Engine, FromSnapshot, Isolation, Limits, OwnNetwork, Owner, Surroundings,
    VolumeMount,
};
use wharf_net::Network;

use crate::application::ApplicationInfo;
use crate::applications::{Applications, Observer};
use crate::environment;
use crate::object::Object;
use crate::recipe::{Recipe, StandbyTarget};
use crate::refusal::{Refusal, RefusalKind};
use crate::request::{ImageChoice, StartRequest};
use crate::size::lower;

/// Who calls.
#[derive(Clone)]
pub enum Caller {
    /// A script: its containers are those of the applications behind its Durable Objects.
    Script {
        /// Its name.
        script: String,
        /// Where its applications are found.
        applications: Arc<dyn Applications>,
    },
    /// Whoever runs the machine.
    Operator,
}

/// What a start is given.
#[derive(Debug)]
pub struct Admitted {
    /// The image; `None`: that of the snapshot which the start names.
    pub image: Option<String>,
    /// References of which the snapshot's image must be one, if there is no other.
    pub named_images: Vec<String>,
    /// If its application asks for instances to be started ahead.
    pub standby: Option<StandbyTarget>,
    env: Vec<String>,
    limits: Limits,
    application: Option<Application>,
    isolation: Option<Isolation>,
    no_new_privileges: bool,
}

/// Where an instance is put: what the caller's dialect has found for it.
#[derive(Debug, Default)]
pub struct Place {
    /// The network to join; `None`: one of its own with each start.
    pub network: Option<Network>,
    /// What its own network is like.
    pub own_network: OwnNetwork,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Directories that are mounted.
    pub volumes: Vec<VolumeMount>,
    /// What to start from instead of the bare image.
    pub snapshot: Option<FromSnapshot>,
    /// Its root, host name and files about the network.
    pub surroundings: Surroundings,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Admitted {
    /// The order for the engine.
    pub fn create(
        self,
        owner: Owner,
        name: String,
        image: String,
        start: StartRequest,
        place: Place,
    ) -> Create {
        Create {
            owner,
            name,
            image,
            cmd: start.cmd,
            entrypoint: start.entrypoint,
            env: self.env,
            user: start.user,
            working_dir: start.working_dir,
            labels: place.labels,
            limits: self.limits,
            network: place.network,
            own_network: place.own_network,
            auto_remove: place.auto_remove,
            application: self.application,
            volumes: place.volumes,
            snapshot: place.snapshot,
            start: start.options,
            isolation: self.isolation,
            no_new_privileges: self.no_new_privileges,
            surroundings: place.surroundings,
        }
    }
}

impl Caller {
    /// Whether a script calls.
    pub fn is_script(&self) -> bool {
        matches!(self, Caller::Script { .. })
    }

    /// Decides about a start. A script's needs the `object` that it is for.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn admit(
        &self,
        engine: &Engine,
        object: Option<&Object>,
        start: &StartRequest,
    ) -> Result<Admitted, Refusal> {
        let Caller::Script {
            script,
            applications,
        } = self
        else {
            return Ok(as_asked(start));
        };
        let object =
            object.ok_or_else(|| Refusal::invalid("this start is for no Durable Object"))?;
        let found = applications
            .find(script, &object.unique_key, &object.id)
            .await;
        let application = found.map_err(|reason| {
            // workerd tells the Worker no more than that its container failed to start.
            tracing::warn!(script, reason, "no container for an object");
            Refusal::new(RefusalKind::Unavailable, reason)
        })?;
        let image = image(&application, &start.image)?;
        let counted = Application {
            id: application.id.clone(),
            name: application.name.clone(),
            max_instances: application.max_instances,
        };
        let most = match &start.size {
            None => application.limits.clone(),
            Some(size) => size
                .limits(&application)
                .inspect_err(|refusal| engine.refuse(&counted, &refusal.message))?,
        };
        let standby = (application.min_instances > 0).then(|| StandbyTarget {
            id: application.id.clone(),
            name: application.name.clone(),
            script: script.clone(),
            unique_key: object.unique_key.clone(),
            min_instances: application.min_instances,
            max_instances: application.max_instances,
        });
        Ok(Admitted {
            image,
            standby,
            env: environment::complete(&start.env, &application, &object.id),
            limits: lower(&most, &start.limits),
            application: Some(counted),
            isolation: application.isolation,
            no_new_privileges: start.no_new_privileges || application.no_new_privileges,
            named_images: application.named_images,
        })
    }

    /// Of a start that can be repeated for any object of its application: who is to be told when
    /// it is done, and what.
    pub fn repeatable(
        &self,
        create: &Create,
        start: &StartRequest,
    ) -> Option<(Arc<dyn Observer>, Recipe)> {
        let (Caller::Script { applications, .. }, Some(network)) = (self, &create.network) else {
            return None;
        };
        let observer = applications.observer()?;
        let policy = network.policy();
        let alone = create.volumes.is_empty() && create.snapshot.is_none();
        (alone && network.is_plain(&policy))
            .then(|| (observer, Recipe::new(start, policy.internet)))
    }
}

/// The operator may have what it asks for.
fn as_asked(start: &StartRequest) -> Admitted {
    let image = match &start.image {
        ImageChoice::Named(reference) => Some(reference.clone()),
        ImageChoice::Application | ImageChoice::Snapshot(_) => None,
    };
    Admitted {
        image,
        named_images: Vec::new(),
        standby: None,
        env: start.env.clone(),
        limits: start.limits.clone(),
        application: None,
        isolation: start.isolation,
        no_new_privileges: start.no_new_privileges,
    }
}

/// The image that an application's start means.
fn image(application: &ApplicationInfo, asked: &ImageChoice) -> Result<Option<String>, Refusal> {
    let name = &application.name;
    match asked {
        ImageChoice::Snapshot(_) => Ok(application.image.clone()),
        ImageChoice::Application => application.image.clone().map(Some).ok_or_else(|| {
            Refusal::invalid(format!(
                "application \"{name}\" has no image of its own: name one with start({{image}})"
            ))
        }),
        ImageChoice::Named(asked) => {
            let mut own = application.image.iter().chain(&application.named_images);
            match own.any(|image| image == asked) {
                true => Ok(Some(asked.clone())),
                false => Err(Refusal::new(
                    RefusalKind::Image,
                    format!(
                        "{asked} (application \"{name}\" may not use it: it is none of the images in the wrangler configuration)"
                    ),
                )),
            }
        }
    }
}
