//! `POST /containers/create`: which of workerd's three kinds of container it is, and how it comes to its network, command and labels.

use super::admission::{Admission, Admitted};
use super::start_options::Carried;
use super::{ASKED_IMAGE_LABEL, Answer, ApplicationInfo, Context, Shared, surroundings};
use crate::errors::ApiError;
use crate::fields;
use crate::peer::Peer;
use crate::ports::{self, Bindings};
use crate::storage::{HelperBody, is_snapshot};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use wharf_engine::{Create, EngineError, Limits, OwnNetwork};
use wharf_net::Network;

const OBJECT_ID: &str = "CLOUDFLARE_DURABLE_OBJECT_ID";
/// The variables that workerd appends, with values that say nothing (contract: workerd, 1.3).
const PLACEHOLDERS: [&str; 6] = [
    "CLOUDFLARE_COUNTRY_A2",
    "CLOUDFLARE_DEPLOYMENT_ID",
    "CLOUDFLARE_LOCATION",
    "CLOUDFLARE_REGION",
    "CLOUDFLARE_APPLICATION_ID",
    OBJECT_ID,
];

#[derive(Debug, Deserialize)]
pub(crate) struct CreateQuery {
    name: Option<String>,
}

/// The body. workerd writes scalar defaults (0, "") for what is not set, and Docker clients write null: both are unset.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Body {
    pub(crate) image: Option<String>,
    pub(crate) cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) user: Option<String>,
    pub(crate) working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    pub(crate) exposed_ports: Option<BTreeMap<String, Value>>,
    pub(super) hostname: Option<String>,
    pub(crate) host_config: Option<HostConfig>,
}

/// What of `HostConfig` counts; [`fields::create`] has all of it. workerd's `PidMode` does not: the
/// host's processes are nobody's. Nor does its
/// `RestartPolicy`: an exit must be told by `wait`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    network_mode: Option<String>,
    memory: Option<i64>,
    nano_cpus: Option<i64>,
    pids_limit: Option<i64>,
    pub(super) mounts: Option<Vec<Value>>,
    binds: Option<Vec<String>>,
    pub(crate) security_opt: Option<Vec<String>>,
    port_bindings: Option<Bindings>,
    auto_remove: Option<bool>,
    pub(crate) runtime: Option<String>,
    pub(super) readonly_rootfs: Option<bool>,
    pub(super) tmpfs: Option<BTreeMap<String, String>>,
    pub(super) shm_size: Option<i64>,
    pub(super) extra_hosts: Option<Vec<String>>,
    pub(super) dns_search: Option<Vec<String>>,
    pub(super) dns_options: Option<Vec<String>>,
}

impl HostConfig {
    /// What a network of the container's own is like.
    pub(crate) fn own_network(&self) -> Result<OwnNetwork, ApiError> {
        let publish = self.port_bindings.as_ref().map(ports::parse).transpose()?;
        Ok(OwnNetwork {
            internet: self.network_mode.as_deref() != Some("none"),
            publish: publish.unwrap_or_default(),
        })
    }
}

impl Body {
    /// Nothing but an image.
    pub(crate) fn of_image(image: &str) -> Body {
        let body = Body {
            image: Some(image.to_owned()),
            ..Body::default()
        };
        body.without_what_is_an_objects_own()
    }

    /// The same start of any other object: without the network, which is named after one, and what only the engine knows of an instance.
    pub(crate) fn without_what_is_an_objects_own(&self) -> Body {
        let list = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let mut env = self.env.clone();
        // The platform's variables are those of the time when it is used.
        env.iter_mut()
            .for_each(|env| env.retain(|entry| !PLACEHOLDERS.contains(&key_of(entry))));
        let limit = |limit: fn(&HostConfig) -> Option<i64>| {
            let limit = self.host_config.as_ref().and_then(limit);
            limit.filter(|limit| *limit > 0)
        };
        Body {
            image: text(&self.image),
            cmd: list(&self.cmd),
            entrypoint: list(&self.entrypoint),
            env: list(&env),
            user: text(&self.user),
            working_dir: text(&self.working_dir),
            host_config: Some(HostConfig {
                memory: limit(|host| host.memory),
                nano_cpus: limit(|host| host.nano_cpus),
                pids_limit: limit(|host| host.pids_limit),
                security_opt: self
                    .host_config
                    .as_ref()
                    .and_then(|host| list(&host.security_opt)),
                ..HostConfig::default()
            }),
            ..Body::default()
        }
    }

    fn as_helper(&self) -> HelperBody<'_> {
        let host = self.host_config.as_ref();
        HelperBody {
            entrypoint: self.entrypoint.as_deref().unwrap_or_default(),
            cmd: self.cmd.as_deref().unwrap_or_default(),
            binds: host.and_then(|h| h.binds.as_deref()).unwrap_or_default(),
        }
    }
}

pub(crate) async fn create(
    State(shared): Context,
    Query(query): Query<CreateQuery>,
    peer: Option<Extension<Peer>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let mut fields: Value = super::parse(body)?;
    fields::normalise(&mut fields, fields::create::BODY);
    let mut body: Body = super::typed(&fields)?;
    let name = match query.name.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => {
            if let Some(helper) = shared.storage.create_helper(body.as_helper()) {
                return Ok(helper);
            }
            if matches!(shared.admission, Admission::Script { .. }) {
                return Err(ApiError::unsupported("a container without a name"));
            }
            format!("c-{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
        }
    };
    if shared.admission.is_sidecar(&name, &body) {
        let created = shared.create_sidecar(&name).await?;
        shared.tie_sidecar(&name, peer.map(|Extension(peer)| peer));
        return Ok(created);
    }
    shared.check(&fields).await?;
    let carried = Carried::take(body.env.get_or_insert_default())?;
    let token = carried.token();
    let id = create_container(&shared, name.clone(), body, carried)
        .await
        .inspect_err(|error| shared.note_failure(&name, token, error))?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "Id": id, "Warnings": [] })),
    )
        .into_response())
}

impl Shared {
    /// Refuses what a container cannot have.
    async fn check(&self, fields: &Value) -> Result<(), ApiError> {
        let mode = fields["HostConfig"]["NetworkMode"].as_str();
        let by_workerd = match (
            &self.admission,
            mode.and_then(|it| it.strip_prefix("container:")),
        ) {
            (Admission::Script { .. }, _) => true,
            (Admission::Operator, Some(other)) => self.is_sidecar(other).await,
            (Admission::Operator, None) => false,
        };
        fields::check(fields, fields::create::BODY, by_workerd)?;
        fields::create::check_networks(fields)
    }
}

async fn create_container(
    shared: &Shared,
    name: String,
    body: Body,
    carried: Carried,
) -> Result<String, ApiError> {
    let Admitted {
        image,
        named_images,
        env,
        limits,
        application,
        kept,
        start,
        isolation,
        no_new_privileges,
    } = shared
        .admission
        .admit(&shared.engine, &name, &body, carried.clone())
        .await?;
    let mut image = image;
    let mut snapshot = None;
    if let Some(asked) = body.image.as_deref().filter(|asked| is_snapshot(asked)) {
        let (found, base) = shared.storage.to_start(asked).await?;
        if let Admission::Operator = shared.admission {
            image = Some(base);
        } else if image.is_none() {
            image = shared.engine.image_among(named_images, base).await?;
        }
        snapshot = Some(found);
    }
    let Some(image) = image else {
        return Err(ApiError::bad_request(
            "the container snapshot was taken of an image that the Worker does not name any more; a snapshot fits only the image that it was taken of: go back to that image (wrangler rollback), or start without the snapshot",
        ));
    };
    let seen = kept.map(|kept| (kept, body.clone()));
    let mut body = body;
    let host = body.host_config.take().unwrap_or_default();
    let mounts = host.mounts.as_deref().unwrap_or_default();
    let of_volumes = |mount: &&Value| mount["Type"] != "tmpfs";
    let mounts: Vec<Value> = mounts.iter().filter(of_volumes).cloned().collect();
    let volumes = shared.storage.mounts(&mounts).await?;
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let (network, of_workerd) = network(shared, &name, mode).await?;
    let surroundings = surroundings::of(&body, &host)?;
    surroundings::fits(&surroundings, network.is_some(), &volumes)?;
    let own_network = host.own_network()?;
    if network.is_some() && !own_network.publish.is_empty() {
        return Err(ApiError::bad_request(
            "conflicting options: a container in another's network publishes no ports of its own",
        ));
    }
    let asked = body.image.take().unwrap_or_default();
    let (entrypoint, cmd) = command(&mut body, of_workerd);
    let mut labels = body.labels.unwrap_or_default();
    if asked != image {
        labels.insert(ASKED_IMAGE_LABEL.to_owned(), asked);
    }
    let request = Create {
        owner: shared.owner.clone(),
        name,
        image,
        cmd,
        entrypoint,
        env,
        user: body.user,
        working_dir: body.working_dir,
        labels,
        limits,
        network,
        own_network,
        auto_remove: host.auto_remove == Some(true),
        application,
        volumes,
        snapshot,
        start,
        isolation,
        no_new_privileges,
        surroundings,
    };
    let repeatable = shared.admission.repeatable(&request, seen, &carried);
    let created = create_or_replace(shared, request, of_workerd).await?;
    if let Some((standbys, kept, recipe)) = repeatable {
        standbys.started(kept, recipe);
    }
    Ok(created)
}

async fn create_or_replace(
    shared: &Shared,
    request: Create,
    of_workerd: bool,
) -> Result<String, ApiError> {
    match shared.engine.create(request.clone()).await {
        Err(EngineError::Conflict(text)) if of_workerd => {
            // One that ended by itself (an object that went to sleep) still has the name. workerd would delete it and try again, but only after 100 ms:
            // too long for a wake-up.
            let Ok(()) = shared
                .engine
                .remove(&shared.owner, &request.name, false)
                .await
            else {
                return Err(EngineError::Conflict(text).into());
            };
            shared.engine.create(request).await.map_err(ApiError::from)
        }
        Err(EngineError::NotFound(reason)) => {
            tracing::warn!(
                image = request.image,
                reason,
                "the image of a container is not here"
            );
            Err(no_image(&request.image))
        }
        created => created.map_err(ApiError::from),
    }
}

/// What runs. `start({entrypoint})` arrives as Cmd. On Cloudflare it is what runs, instead of the image's ENTRYPOINT and CMD, and so it is here.
pub(crate) fn command(body: &mut Body, of_workerd: bool) -> (Option<Vec<String>>, Vec<String>) {
    match (body.entrypoint.take(), body.cmd.take().unwrap_or_default()) {
        (Some(entrypoint), cmd) if !entrypoint.is_empty() => (Some(entrypoint), cmd),
        (_, cmd) if cmd.is_empty() || !of_workerd => (None, cmd),
        (_, cmd) => (Some(cmd), Vec::new()),
    }
}

/// The network that a mode means (`None`: one of its own), and whether it is workerd's: that of a sidecar.
async fn network(
    shared: &Shared,
    name: &str,
    mode: &str,
) -> Result<(Option<Network>, bool), ApiError> {
    if let Some(other) = mode.strip_prefix("container:") {
        if shared.is_sidecar(other).await {
            return Ok((Some(shared.sidecar(other).await?.network), true));
        }
        if let Admission::Operator = shared.admission {
            let network = shared.engine.network(&shared.owner, other).await?;
            return Ok((Some(network), false));
        }
    }
    match shared.admission {
        Admission::Script { .. } => Err(ApiError::bad_request(format!(
            "network mode \"{mode}\" is not possible here: a container joins its sidecar's network (container:{name}-proxy)"
        ))),
        Admission::Operator if matches!(mode, "" | "default" | "bridge" | "none") => {
            Ok((None, false))
        }
        Admission::Operator => Err(ApiError::bad_request(format!(
            "network mode \"{mode}\" is not supported: use bridge, none or container:<name>"
        ))),
    }
}

pub(crate) fn no_image(image: &str) -> ApiError {
    ApiError::not_found(format!("No such image: {image}"))
}

/// `workerd-<uniqueKey>-<64 hex>` taken apart.
pub(crate) fn object_of(name: &str) -> Option<(&str, &str)> {
    let (unique_key, object_id) = name.strip_prefix("workerd-")?.rsplit_once('-')?;
    let is_id = object_id.len() == 64 && object_id.bytes().all(|b| b.is_ascii_hexdigit());
    (is_id && !unique_key.is_empty()).then_some((unique_key, object_id))
}

fn key_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

/// The start's variables, with real values for the placeholders that workerd appends (contract: workerd, 1.3). A placeholder without a value is left out: it
/// would be taken for one.
pub(crate) fn environment(
    mut env: Vec<String>,
    application: &ApplicationInfo,
    object_id: &str,
) -> Vec<String> {
    let variables = &application.variables;
    let is_set = |key: &str| variables.iter().any(|(name, _)| name == key);
    env.retain(|entry| {
        let key = key_of(entry);
        !PLACEHOLDERS.contains(&key) && !is_set(key)
    });
    env.extend(
        variables
            .iter()
            .map(|(key, value)| format!("{key}={value}")),
    );
    if application.min_instances > 0 {
        // Its instances may be started before there is an object that asks for them. None has it, so that all are alike.
        env.retain(|entry| key_of(entry) != OBJECT_ID);
    } else if !is_set(OBJECT_ID) {
        env.push(format!("{OBJECT_ID}={object_id}"));
    }
    env
}

/// The application's limits; the request can only lower them. 0 and negative figures are unset.
pub(crate) fn limits(application: &Limits, host: Option<&HostConfig>) -> Limits {
    fn lower(limit: Option<u64>, asked: Option<i64>, unit: u64) -> Option<u64> {
        let asked = asked
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| *n > 0)
            .map(|n| (n / unit).max(1));
        match (limit, asked) {
            (Some(limit), Some(asked)) => Some(limit.min(asked)),
            (limit, asked) => limit.or(asked),
        }
    }
    let asked = |field: fn(&HostConfig) -> Option<i64>| host.and_then(field);
    Limits {
        memory_bytes: lower(application.memory_bytes, asked(|h| h.memory), 1),
        cpu_millis: lower(application.cpu_millis, asked(|h| h.nano_cpus), 1_000_000),
        pids: lower(application.pids, asked(|h| h.pids_limit), 1),
        nofile: application.nofile,
        disk_bytes: application.disk_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(variables: &[(&str, &str)]) -> ApplicationInfo {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        ApplicationInfo {
            id: "app".into(),
            name: "hello".into(),
            image: Some("hello:1".into()),
            named_images: Vec::new(),
            limits: Limits {
                memory_bytes: Some(1 << 28),
                ..Limits::default()
            },
            largest: Limits::default(),
            max_instances: 3,
            min_instances: 0,
            isolation: None,
            no_new_privileges: false,
            variables: variables.iter().map(owned).collect(),
        }
    }

    #[test]
    fn names_are_taken_apart() {
        let id = "0a".repeat(32);
        let name = format!("workerd-my-app-Class-{id}");
        assert_eq!(object_of(&name), Some(("my-app-Class", id.as_str())));
        for bad in [
            "workerd-x-00",
            "x",
            &format!("workerd--{id}"),
            &format!("other-k-{id}"),
        ] {
            assert_eq!(object_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn placeholders_never_reach_the_container() {
        let application = application(&[("CLOUDFLARE_REGION", "EEUR"), ("CLOUDFLARE_EXTRA", "1")]);
        let env = [
            "FOO=bar",
            "CLOUDFLARE_REGION=REGN",
            "CLOUDFLARE_COUNTRY_A2=XX",
            "CLOUDFLARE_DURABLE_OBJECT_ID=xxxx",
        ];
        let env = environment(env.map(str::to_owned).to_vec(), &application, "abc");
        assert_eq!(
            env,
            [
                "FOO=bar",
                "CLOUDFLARE_REGION=EEUR",
                "CLOUDFLARE_EXTRA=1",
                "CLOUDFLARE_DURABLE_OBJECT_ID=abc"
            ]
        );
    }

    #[test]
    fn a_request_can_only_lower_limits() {
        let application = application(&[]).limits;
        let of = |memory, nano_cpus, pids_limit| {
            let host = HostConfig {
                memory: Some(memory),
                nano_cpus: Some(nano_cpus),
                pids_limit: Some(pids_limit),
                ..HostConfig::default()
            };
            let limits = limits(&application, Some(&host));
            (limits.memory_bytes, limits.cpu_millis, limits.pids)
        };
        assert_eq!(of(0, 0, 0), (Some(1 << 28), None, None));
        assert_eq!(
            of(1 << 20, 500_000_000, 7),
            (Some(1 << 20), Some(500), Some(7))
        );
        assert_eq!(of(1 << 40, -1, -1), (Some(1 << 28), None, None));
    }
}
