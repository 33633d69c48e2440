//! workerd's network sidecars: a name, a [`wharf_net::Network`], and whether it was started.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::IntoResponse;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use wharf_engine::Published;
use wharf_node::Caller;

use super::body::Body;
use super::kind::Kind;
use super::{Answer, Shared};
use crate::errors::ApiError;
use crate::json;
use crate::peer::Peer;
use crate::ports;
use crate::storage::is_helper;

/// The sidecar's port whose published side workerd looks up (contract: workerd, 1.3).
pub(crate) const INGRESS_PORT: u16 = 39001;

/// How long a sidecar says why its container does not come. @cloudflare/containers asks for some 8
/// s whether there is an instance for it now, and tells its caller the last reason.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// The same where many say so: each holds descriptors, which may be what the starts were refused
/// for.
const GIVEN_UP_OF_MANY: Duration = Duration::from_secs(2);
const MANY: usize = 32;

/// The sidecars that were asked for on one socket, by name.
#[derive(Default)]
pub(crate) struct Sidecars(Mutex<HashMap<String, Entry>>);

struct Entry {
    sidecar: Sidecar,
    /// Dropped with the entry: whoever waits for the removal sees that.
    removal: watch::Sender<()>,
    /// Whether it goes with the process that uses it.
    tied: bool,
}

/// One sidecar.
#[derive(Debug, Clone)]
pub(crate) struct Sidecar {
    id: String,
    created_ms: i64,
    started: bool,
    pub(crate) network: wharf_net::Network,
}

impl Sidecar {
    fn new(network: wharf_net::Network, started: bool) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let (one, two) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        Sidecar {
            id: format!("{}{}", one.simple(), two.simple()),
            created_ms: now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(0)),
            started,
            network,
        }
    }

    /// `GET /containers/<C>-proxy/json`.
    pub(crate) fn json(&self, name: &str) -> Value {
        let status = if self.started { "running" } else { "created" };
        let published = self.started.then(|| Published {
            inside: INGRESS_PORT,
            outside: self.network.ingress(),
        });
        json!({
            "Id": self.id,
            "Name": format!("/{name}"),
            "Created": json::time(Some(self.created_ms)),
            "State": { "Status": status, "Running": self.started, "ExitCode": 0, "Error": "" },
            "Config": { "Image": "", "Labels": {} },
            "NetworkSettings": { "Ports": ports::settings(published.as_slice()) },
            "HostConfig": {},
        })
    }
}

impl Sidecars {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &str) -> Option<Sidecar> {
        self.map().get(name).map(|entry| entry.sidecar.clone())
    }

    /// Puts one in unless there is one; returns the one that is there then and whether it is the new one.
    fn insert(&self, name: &str, sidecar: Sidecar) -> (Sidecar, bool) {
        let mut map = self.map();
        let new = !map.contains_key(name);
        let entry = map.entry(name.to_owned()).or_insert_with(|| Entry {
            sidecar,
            removal: watch::Sender::new(()),
            tied: false,
        });
        (entry.sidecar.clone(), new)
    }

    pub(crate) fn start(&self, name: &str) -> Result<StatusCode, ApiError> {
        let mut map = self.map();
        let entry = map.get_mut(name).ok_or_else(|| missing(name))?;
        match std::mem::replace(&mut entry.sidecar.started, true) {
            true => Ok(StatusCode::NOT_MODIFIED),
            false => Ok(StatusCode::NO_CONTENT),
        }
    }

    /// The container that it was made for does not come. Callers hear the reason for [`GIVEN_UP`];
    /// then it goes, so that refused starts keep nothing. The next start makes a sidecar of its
    /// own.
    pub(crate) fn give_up(self: &Arc<Self>, name: &str, reason: &str) {
        let (id, others) = {
            let map = self.map();
            let Some(Entry { sidecar, .. }) = map.get(name) else {
                return;
            };
            let network = &sidecar.network;
            network.set_target(wharf_net::Target::Ended(reason.into()));
            let others = map.values().filter(|it| it.sidecar.network.has_ended());
            (sidecar.id.clone(), others.count())
        };
        let says_so_for = match others > MANY {
            true => GIVEN_UP_OF_MANY,
            false => GIVEN_UP,
        };
        let (sidecars, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(says_so_for).await;
            let mut map = sidecars.map();
            let is_given_up =
                |entry: &Entry| entry.sidecar.id == id && entry.sidecar.network.has_ended();
            if map.get(&name).is_some_and(is_given_up) {
                map.remove(&name);
            }
        });
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), ApiError> {
        let removed = self.map().remove(name);
        removed.map(drop).ok_or_else(|| missing(name))
    }

    /// Takes it away when the process that uses it ends. On the operator's socket nothing else would, when that process is killed.
    fn tie(self: &Arc<Self>, name: &str, peer: Peer) {
        let id = match self.map().get_mut(name) {
            Some(entry) if !entry.tied => {
                entry.tied = true;
                entry.sidecar.id.clone()
            }
            _ => return,
        };
        let (sidecars, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            if let Err(error) = peer.ended().await {
                tracing::warn!(name, %error, "the process of a network cannot be watched: the network stays until it is removed");
                return;
            }
            let mut map = sidecars.map();
            if map.get(&name).is_some_and(|entry| entry.sidecar.id == id) {
                map.remove(&name);
            }
        });
    }

    /// Ends with the removal.
    pub(crate) fn removed(&self, name: &str) -> Result<impl Future<Output = ()> + use<>, ApiError> {
        let map = self.map();
        let entry = map.get(name).ok_or_else(|| missing(name))?;
        let mut receiver = entry.removal.subscribe();
        Ok(async move { while receiver.changed().await.is_ok() {} })
    }
}

/// `Some(C)` for `C-proxy`.
pub(crate) fn sidecar_of(name: &str) -> Option<&str> {
    name.strip_suffix("-proxy")
}

/// Whether a create on the operator's socket is one of a sidecar: containers there have any name.
pub(super) fn is_operators_sidecar(body: &Body) -> bool {
    body.is_sidecars(INGRESS_PORT)
}

impl Shared {
    /// What a create is for. Helpers have no name; on a script's socket a sidecar is known by its
    /// name, on the operator's by what it runs.
    pub(super) fn kind_of_new(&self, name: Option<&str>, body: &Body) -> Kind {
        let Some(name) = name else {
            return match is_helper(&body.as_helper()) {
                true => Kind::Helper,
                false => Kind::Instance,
            };
        };
        let is_sidecar = match self.caller {
            Caller::Script { .. } => sidecar_of(name).is_some(),
            Caller::Operator => is_operators_sidecar(body),
        };
        match is_sidecar {
            true => Kind::Sidecar,
            false => Kind::Instance,
        }
    }

    /// Whether a name is that of a sidecar, be it one that was removed. A Durable Object's container has a name that ends with an object id, so
    /// that on a script's socket the name alone tells. The operator's containers have any name.
    pub(crate) async fn is_sidecar(&self, name: &str) -> bool {
        let Some(container) = sidecar_of(name) else {
            return self.sidecars.get(name).is_some();
        };
        if self.caller.is_script() || self.sidecars.get(name).is_some() {
            return true;
        }
        // A workerd that runs on the operator's socket, and adopts what it had before this daemon's start.
        let exists = async |name| self.engine.inspect(&self.owner, name).await.is_ok();
        container.starts_with("workerd-") && !exists(name).await && exists(container).await
    }

    /// The sidecar `name`. One that an earlier process made, and whose container this one adopts, is known by the container's network.
    pub(crate) async fn sidecar(&self, name: &str) -> Result<Sidecar, ApiError> {
        if let Some(sidecar) = self.sidecars.get(name) {
            return Ok(sidecar);
        }
        let container = sidecar_of(name).unwrap_or(name);
        let network = self.engine.network(&self.owner, container).await;
        let network = network.map_err(|_| missing(name))?;
        self.networks.claim(&network).await.map_err(|error| {
            let text = format!("taking over the container's network: {error}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
        // Kept: workerd uses it again for the next start, after the container has gone.
        Ok(self.sidecars.insert(name, Sidecar::new(network, true)).0)
    }

    /// Ties a sidecar to the process that asked for it, unless the socket itself goes with the process.
    pub(crate) fn tie_sidecar(&self, name: &str, peer: Option<Peer>) {
        if let (Caller::Operator, Some(peer)) = (&self.caller, peer) {
            self.sidecars.tie(name, peer);
        }
    }

    /// `POST /containers/create?name=<C>-proxy`: a network from the pool. Its arguments (ports, gateway) are workerd's wishes to a program that does not exist here.
    pub(crate) async fn create_sidecar(&self, name: &str) -> Answer {
        let conflict = || {
            let text = format!("Conflict. The container name \"/{name}\" is already in use.");
            Err(ApiError::new(StatusCode::CONFLICT, text))
        };
        if self.sidecars.get(name).is_some() {
            return conflict();
        }
        let network = self.networks.create().await.map_err(|error| {
            let text = format!("no network for the container: {error}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
        let (sidecar, new) = self.sidecars.insert(name, Sidecar::new(network, false));
        if !new {
            return conflict();
        }
        let body = json!({ "Id": sidecar.id, "Warnings": [] });
        Ok((StatusCode::CREATED, Json(body)).into_response())
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::not_found(format!("No such container: {name}"))
}
