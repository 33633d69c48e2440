//! workerd's network sidecars: a name, a [`wharf_net::Network`], and whether it was started.

use super::{Answer, Shared};
use crate::errors::ApiError;
use crate::json;
use axum::Json;
use axum::response::IntoResponse;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// The sidecar's port whose published side workerd looks up (contract: workerd, 1.3).
const INGRESS_PORT: &str = "39001/tcp";

/// The sidecars of one workerd process, by name.
#[derive(Default)]
pub(crate) struct Sidecars(Mutex<HashMap<String, Entry>>);

struct Entry {
    sidecar: Sidecar,
    /// Dropped with the entry: whoever waits for the removal sees that.
    removal: watch::Sender<()>,
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
        let ports: &[_] = match self.started {
            true => &[(INGRESS_PORT, self.network.ingress().port())],
            false => &[],
        };
        json!({
            "Id": self.id,
            "Name": format!("/{name}"),
            "Created": json::time(Some(self.created_ms)),
            "State": { "Status": status, "Running": self.started, "ExitCode": 0, "Error": "" },
            "Config": { "Image": "", "Labels": {} },
            "NetworkSettings": { "Ports": json::published(ports) },
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

    /// The container that it was made for does not come. The next start makes a sidecar of its own.
    pub(crate) fn give_up(&self, name: &str) {
        if let Some(entry) = self.map().get(name) {
            entry.sidecar.network.set_target(wharf_net::Target::Ended);
        }
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), ApiError> {
        let removed = self.map().remove(name);
        removed.map(drop).ok_or_else(|| missing(name))
    }

    /// Ends with the removal.
    pub(crate) fn removed(&self, name: &str) -> Result<impl Future<Output = ()> + use<>, ApiError> {
        let map = self.map();
        let entry = map.get(name).ok_or_else(|| missing(name))?;
        let mut receiver = entry.removal.subscribe();
        Ok(async move { while receiver.changed().await.is_ok() {} })
    }
}

impl Shared {
    /// The sidecar `name` of `container`. One that an earlier process made, and whose container this one adopts, is known by the container's network.
    pub(crate) async fn sidecar(&self, name: &str, container: &str) -> Result<Sidecar, ApiError> {
        if let Some(sidecar) = self.sidecars.get(name) {
            return Ok(sidecar);
        }
        let network = self.engine.network(&self.owner, container).await;
        let network = network.map_err(|_| missing(name))?;
        self.networks.claim(&network);
        // Kept: workerd uses it again for the next start, after the container has gone.
        Ok(self.sidecars.insert(name, Sidecar::new(network, true)).0)
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
