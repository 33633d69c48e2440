//! Who calls, and what a create of theirs may have.
//!
//! | | a script's workerd | the operator |
//! |---|---|---|
//! | names | `workerd-<uniqueKey>-<object id>`, and `-proxy` after it for the sidecar | any |
//! | image | its application's, one that its version names, or its own snapshots of these | any that is here |
//! | limits | its application's, or lower | as asked |
//! | variables | real values for workerd's placeholders | as asked |
//! | network | its sidecar's | as asked |
//! | isolation class | its application's | as asked (`Runtime`) |
//! | `no_new_privs` | if its application or `SecurityOpt` says so | if `SecurityOpt` says so |
//! | a sidecar is known by | its name | its command and port |

use super::create::{Body, environment, limits, no_image, object_of};
use super::security::no_new_privileges;
use super::sidecar::{INGRESS_PORT, sidecar_of};
use super::standby::{Kept, Recipe, Standbys};
use super::start_options::Carried;
use super::{APPLICATION_IMAGE, Applications};
use crate::errors::ApiError;
use crate::storage::is_snapshot;
use http::StatusCode;
use std::sync::Arc;
use wharf_engine::{Application, Create, Engine, Isolation, Limits, StartOptions};

/// Who calls.
pub(crate) enum Admission {
    /// One script's workerd: its containers are those of the applications behind its Durable Objects.
    Script {
        /// Its name.
        script: String,
        /// Where its applications are found.
        applications: Arc<dyn Applications>,
    },
    /// Whoever may open the operator's socket.
    Operator,
}

/// What a create is given.
pub(crate) struct Admitted {
    /// `None`: that of the snapshot which the start names.
    pub(crate) image: Option<String>,
    /// References of which the snapshot's image must be one, if there is no other.
    pub(crate) named_images: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) limits: Limits,
    pub(crate) application: Option<Application>,
    /// If its application asks for instances to be started ahead.
    pub(crate) kept: Option<Kept>,
    pub(crate) start: StartOptions,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) no_new_privileges: bool,
}

impl Admission {
    /// Decides about a create of a container that is no sidecar.
    pub(crate) async fn admit(
        &self,
        engine: &Engine,
        name: &str,
        body: &Body,
        carried: Carried,
    ) -> Result<Admitted, ApiError> {
        let env = body.env.clone().unwrap_or_default();
        let host = body.host_config.as_ref();
        let asked = body.image.as_deref().unwrap_or_default();
        let options = host.and_then(|host| host.security_opt.as_deref());
        let no_new_privileges = no_new_privileges(options.unwrap_or_default())?;
        let Admission::Script {
            script,
            applications,
        } = self
        else {
            return Ok(Admitted {
                image: Some(asked.to_owned()),
                named_images: Vec::new(),
                env,
                limits: limits(&Limits::default(), host),
                application: None,
                kept: None,
                start: StartOptions::default(),
                isolation: runtime(host.and_then(|host| host.runtime.as_deref()))?,
                no_new_privileges,
            });
        };
        let (unique_key, object_id) = object_of(name).ok_or_else(|| {
            ApiError::bad_request(format!(
                "the container name \"{name}\" is not workerd-<uniqueKey>-<object id>: this socket serves Durable Objects only"
            ))
        })?;
        let found = applications.find(script, unique_key, object_id).await;
        let application = found.map_err(|reason| {
            // workerd tells the Worker no more than that its container failed to start.
            tracing::warn!(script, reason, "no container for an object");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason)
        })?;
        let image = if asked == APPLICATION_IMAGE || is_snapshot(asked) {
            application.image.clone()
        } else {
            let may = |image: &&String| *image == asked;
            let own = application.image.iter().chain(&application.named_images);
            let Some(image) = own.into_iter().find(may) else {
                return Err(no_image(&format!(
                    "{asked} (application \"{}\" may not use it: it is none of the images in the wrangler configuration)",
                    application.name
                )));
            };
            Some(image.clone())
        };
        if image.is_none() && !is_snapshot(asked) {
            return Err(ApiError::bad_request(format!(
                "application \"{}\" has no image of its own: name one with start({{image}})",
                application.name
            )));
        }
        let counted = Application {
            id: application.id.clone(),
            name: application.name.clone(),
            max_instances: application.max_instances,
        };
        let kept = (application.min_instances > 0).then(|| Kept {
            id: application.id.clone(),
            name: application.name.clone(),
            script: script.clone(),
            unique_key: unique_key.to_owned(),
            min_instances: application.min_instances,
            max_instances: application.max_instances,
        });
        let most = carried
            .limits(&application)
            .inspect_err(|error| engine.refuse(&counted, &error.message))?;
        Ok(Admitted {
            env: environment(env, &application, object_id),
            limits: limits(&most, host),
            image,
            named_images: application.named_images,
            application: Some(counted),
            kept,
            start: carried.into_start(),
            isolation: application.isolation,
            no_new_privileges: no_new_privileges || application.no_new_privileges,
        })
    }

    /// Of a create that can be repeated without its object: who is to be told when it is done, and what.
    pub(crate) fn repeatable(
        &self,
        request: &Create,
        seen: Option<(Kept, Body)>,
        carried: &Carried,
    ) -> Option<(Standbys, Kept, Recipe)> {
        let (Admission::Script { applications, .. }, Some((kept, body)), Some(network)) =
            (self, seen, &request.network)
        else {
            return None;
        };
        let standbys = applications.standbys()?;
        let policy = network.policy();
        let alone = request.volumes.is_empty() && request.snapshot.is_none();
        let recipe = Recipe::of(&body, carried, policy.internet);
        (alone && network.is_plain(&policy)).then_some((standbys, kept, recipe))
    }

    /// Whether a create is one of workerd's network sidecar.
    pub(crate) fn is_sidecar(&self, name: &str, body: &Body) -> bool {
        match self {
            Admission::Script { .. } => sidecar_of(name).is_some(),
            Admission::Operator => {
                let cmd = body.cmd.as_deref().unwrap_or_default();
                let ports = body.exposed_ports.as_ref();
                cmd.first()
                    .is_some_and(|first| first == "--http-egress-port")
                    && ports.is_some_and(|ports| ports.contains_key(&format!("{INGRESS_PORT}/tcp")))
            }
        }
    }
}

/// Docker's `--runtime`: an isolation class.
fn runtime(name: Option<&str>) -> Result<Option<Isolation>, ApiError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    Isolation::parse(name).map(Some).ok_or_else(|| {
        ApiError::bad_request(format!(
            "unknown or invalid runtime name: {name}; there are namespace, gvisor and microvm"
        ))
    })
}
