//! `POST /containers/create`: which of the three kinds of container it is, and where an instance is
//! put: its network, volumes and labels.

use axum::extract::rejection::BytesRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use wharf_engine::{Create, EngineError, FromSnapshot};
use wharf_net::Network;
use wharf_node::{Admitted, Caller, ImageChoice, Object, Place, StartRequest};

use super::body::Body;
use super::kind::Kind;
use super::start_options::StartOptionsText;
use super::{ASKED_IMAGE_LABEL, Answer, Context, Shared, surroundings};
use crate::errors::ApiError;
use crate::fields;
use crate::peer::Peer;

#[derive(Debug, Deserialize)]
pub(crate) struct CreateQuery {
    name: Option<String>,
}

pub(crate) async fn create(
    State(shared): Context,
    Query(query): Query<CreateQuery>,
    peer: Option<Extension<Peer>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let mut fields: Value = crate::request::parse(body)?;
    fields::normalise(&mut fields, fields::create::BODY);
    let body: Body = crate::request::typed(&fields)?;
    let name = query.name.filter(|name| !name.is_empty());
    match shared.kind_of_new(name.as_deref(), &body) {
        Kind::Sidecar => {
            let name = name.unwrap_or_default();
            let created = shared.create_sidecar(&name).await?;
            shared.tie_sidecar(&name, peer.map(|Extension(peer)| peer));
            Ok(created)
        }
        Kind::Helper => shared.storage.create_helper(body.as_helper()),
        Kind::Instance => create_instance(&shared, name, body, &fields).await,
    }
}

async fn create_instance(
    shared: &Shared,
    name: Option<String>,
    mut body: Body,
    fields: &Value,
) -> Answer {
    let name = match name {
        Some(name) => name,
        None if shared.caller.is_script() => {
            return Err(ApiError::unsupported("a container without a name"));
        }
        None => format!("c-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]),
    };
    let by_workerd = shared.check(fields).await?;
    let text = StartOptionsText::take(body.env.get_or_insert_default())?;
    let token = text.token();
    let mut start = body.start(&shared.caller, by_workerd)?;
    text.apply(&mut start);
    let id = place(shared, name.clone(), body, start, by_workerd)
        .await
        .inspect_err(|error| shared.note_failure(&name, token, error))?;
    let answer = Json(json!({ "Id": id, "Warnings": [] }));
    Ok((StatusCode::CREATED, answer).into_response())
}

impl Shared {
    /// Refuses what a container cannot have. Whether workerd asks for it, for an object.
    async fn check(&self, fields: &Value) -> Result<bool, ApiError> {
        let mode = fields["HostConfig"]["NetworkMode"].as_str();
        let by_workerd = match (
            &self.caller,
            mode.and_then(|it| it.strip_prefix("container:")),
        ) {
            (Caller::Script { .. }, _) => true,
            (Caller::Operator, Some(other)) => self.is_sidecar(other).await,
            (Caller::Operator, None) => false,
        };
        fields::check(fields, fields::create::BODY, by_workerd)?;
        fields::create::check_networks(fields)?;
        Ok(by_workerd)
    }

    /// The object that a container of this name is for, where it must be one's.
    fn object(&self, name: &str) -> Result<Option<Object>, ApiError> {
        if !self.caller.is_script() {
            return Ok(None);
        }
        Object::parse(name).map(Some).ok_or_else(|| {
            ApiError::bad_request(format!(
                "the container name \"{name}\" is not workerd-<uniqueKey>-<object id>: this socket serves Durable Objects only"
            ))
        })
    }
}

/// Has the start admitted, finds what it needs, and orders it.
async fn place(
    shared: &Shared,
    name: String,
    body: Body,
    start: StartRequest,
    by_workerd: bool,
) -> Result<String, ApiError> {
    let object = shared.object(&name)?;
    let admitted = shared
        .caller
        .admit(&shared.engine, object.as_ref(), &start)
        .await?;
    let (image, snapshot) = image(shared, &start, &admitted).await?;
    let host = body.host_config.clone().unwrap_or_default();
    let mounts = host.mounts.as_deref().unwrap_or_default();
    let of_volumes = |mount: &&Value| mount["Type"] != "tmpfs";
    let mounts: Vec<Value> = mounts.iter().filter(of_volumes).cloned().collect();
    let volumes = shared.storage.mounts(&mounts).await?;
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let network = network(shared, &name, mode).await?;
    let surroundings = surroundings::of(&body, &host)?;
    surroundings::fits(&surroundings, network.is_some(), &volumes)?;
    let own_network = host.own_network()?;
    if network.is_some() && !own_network.publish.is_empty() {
        return Err(ApiError::bad_request(
            "conflicting options: a container in another's network publishes no ports of its own",
        ));
    }
    let asked = body.image.unwrap_or_default();
    let mut labels = body.labels.unwrap_or_default();
    if asked != image {
        labels.insert(ASKED_IMAGE_LABEL.to_owned(), asked);
    }
    let place = Place {
        network,
        own_network,
        auto_remove: host.auto_remove == Some(true),
        volumes,
        snapshot,
        surroundings,
        labels,
    };
    let target = admitted.standby.clone();
    let seen = target.map(|target| (target, start.clone()));
    let create = admitted.create(shared.owner.clone(), name, image, start, place);
    let repeatable = seen.and_then(|(target, start)| {
        let (observer, recipe) = shared.caller.repeatable(&create, &start)?;
        Some((observer, target, recipe))
    });
    let created = create_or_replace(shared, create, by_workerd).await?;
    if let Some((observer, target, recipe)) = repeatable {
        observer.started(target, recipe);
    }
    Ok(created)
}

/// The image that is started, and the snapshot with whose files it is, if the start names one.
async fn image(
    shared: &Shared,
    start: &StartRequest,
    admitted: &Admitted,
) -> Result<(String, Option<FromSnapshot>), ApiError> {
    let mut image = admitted.image.clone();
    let mut snapshot = None;
    if let ImageChoice::Snapshot(asked) = &start.image {
        let (found, base) = shared.storage.to_start(asked).await?;
        if let Caller::Operator = shared.caller {
            image = Some(base);
        } else if image.is_none() {
            let named = admitted.named_images.clone();
            image = shared.engine.image_among(named, base).await?;
        }
        snapshot = Some(found);
    }
    let image = image.ok_or_else(|| {
        ApiError::bad_request(
            "the container snapshot was taken of an image that the Worker does not name any more; a snapshot fits only the image that it was taken of: go back to that image (wrangler rollback), or start without the snapshot",
        )
    })?;
    Ok((image, snapshot))
}

async fn create_or_replace(
    shared: &Shared,
    create: Create,
    by_workerd: bool,
) -> Result<String, ApiError> {
    match shared.engine.create(create.clone()).await {
        Err(EngineError::Conflict(text)) if by_workerd => {
            // One that ended by itself (an object that went to sleep) still has the name. workerd would delete it and try again, but only after 100 ms:
            // too long for a wake-up.
            let Ok(()) = shared
                .engine
                .remove(&shared.owner, &create.name, false)
                .await
            else {
                return Err(EngineError::Conflict(text).into());
            };
            shared.engine.create(create).await.map_err(ApiError::from)
        }
        Err(EngineError::NotFound(reason)) => {
            tracing::warn!(
                image = create.image,
                reason,
                "the image of a container is not here"
            );
            Err(no_image(&create.image))
        }
        created => created.map_err(ApiError::from),
    }
}

/// The network that a mode means; `None`: one of its own.
async fn network(shared: &Shared, name: &str, mode: &str) -> Result<Option<Network>, ApiError> {
    if let Some(other) = mode.strip_prefix("container:") {
        if shared.is_sidecar(other).await {
            return Ok(Some(shared.sidecar(other).await?.network));
        }
        if let Caller::Operator = shared.caller {
            let network = shared.engine.network(&shared.owner, other).await?;
            return Ok(Some(network));
        }
    }
    match shared.caller {
        Caller::Script { .. } => Err(ApiError::bad_request(format!(
            "network mode \"{mode}\" is not possible here: a container joins its sidecar's network (container:{name}-proxy)"
        ))),
        Caller::Operator if matches!(mode, "" | "default" | "bridge" | "none") => Ok(None),
        Caller::Operator => Err(ApiError::bad_request(format!(
            "network mode \"{mode}\" is not supported: use bridge, none or container:<name>"
        ))),
    }
}

pub(crate) fn no_image(image: &str) -> ApiError {
    ApiError::not_found(format!("No such image: {image}"))
}
