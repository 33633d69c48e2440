//! What `wharf status` and `wharf env` are told.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use wharf_engine::Owner;
use wharf_engine::lifecycle::{self, EndedBy};

use super::Daemon;

pub(super) async fn status(State(daemon): State<Daemon>) -> Json<Value> {
    let Daemon { node, .. } = &daemon;
    let scripts = node.supervisor.status().into_iter().map(|s| {
        let url = node
            .addresses
            .is_public(&s.script)
            .then(|| daemon.url(&s.script));
        let mut value = json!(s);
        value["url"] = url.into();
        value
    });
    let instances = node.engine.list(None).await;
    let usage = node.engine.usage().await;
    // Those that are started ahead are nobody's yet.
    let of_somebody = instances
        .iter()
        .filter(|it| !matches!(it.owner, Owner::Standby(_)));
    let instances = of_somebody.map(|it| {
        let mut value = instance(it);
        value["usage"] = json!(usage.get(&it.id));
        value["listening"] = node.engine.listening(&it.id).into();
        value
    });
    let disk = match node.engine.disks_unsupported() {
        None => "a file system of its own for each instance",
        Some(_) => "not enforced",
    };
    let (figures, most) = node.engine.resources();
    let resources = figures.iter().map(|figure| {
        let mut value = json!(figure);
        value["short"] = (!figure.has_room()).into();
        value["most"] = json!(most);
        value
    });
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "gateway": daemon.config.gateway.listen.to_string(),
        "control": daemon.config.control.listen.to_string(),
        "data_dir": daemon.config.data_dir,
        "limits": format!("{}, disk: {disk}", wharf_sandbox::cgroup::describe()),
        "resources": resources.collect::<Vec<_>>(),
        "scripts": scripts.collect::<Vec<_>>(),
        "instances": instances.collect::<Vec<_>>(),
        "snapshots": node.snapshots.usage(),
        "standbys": node.standbys.status(),
        "refusals": node.engine.refusals(),
        "preloads": node.engine.preloads(),
    }))
}

/// An instance for people and for the API.
fn instance(i: &wharf_engine::Inspect) -> Value {
    let state = match (&i.state, i.ended_by) {
        (lifecycle::State::Exited(exit), Some(EndedBy::OutOfMemory)) => {
            format!("exited ({}, out of memory)", exit.code)
        }
        (lifecycle::State::Exited(exit), Some(by)) if by != EndedBy::Itself => {
            format!("exited ({}, ended by {})", exit.code, by.describe())
        }
        (lifecycle::State::Exited(exit), _) => format!("exited ({})", exit.code),
        (other, _) => format!("{other:?}").to_lowercase(),
    };
    json!({
        "id": i.id,
        "name": i.name,
        "application": i.application,
        "application_name": i.application_name,
        "image": i.image,
        "image_id": i.image_id,
        "isolation": i.isolation,
        "no_new_privileges": i.no_new_privileges,
        "state": state,
        "exit": match &i.state {
            lifecycle::State::Exited(exit) => json!({"code": exit.code, "signal": exit.signal, "out_of_memory": exit.oom_killed}),
            _ => Value::Null,
        },
        "ended_by": i.ended_by,
        "generation": i.generation,
        "pid": i.pid,
        "labels": i.object_labels,
        "created_ms": i.created_ms,
        "started_ms": i.started_ms,
        "started_ahead": i.handed,
        "finished_ms": i.finished_ms,
        "error": i.error,
    })
}

/// The variables that wrangler reads (contract: wrangler, section 1).
pub(super) async fn environment(
    State(daemon): State<Daemon>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let fault = |message: String| {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            Json(json!({"message": message})),
        )
    };
    let token_file = daemon.config.data_dir.join("token");
    let token = std::fs::read_to_string(&token_file)
        .map_err(|e| fault(format!("the API token in {}: {e}", token_file.display())))?;
    let account = daemon.node.store.account_id();
    let control = daemon.config.control.listen;
    Ok(Json(json!({
        "CLOUDFLARE_API_BASE_URL": format!("http://{control}/client/v4"),
        "CLOUDFLARE_API_TOKEN": token.trim(),
        "CLOUDFLARE_ACCOUNT_ID": account,
        "CLOUDFLARE_CONTAINER_REGISTRY": control.to_string(),
        "WRANGLER_DOCKER_BIN": daemon.config.data_dir.join("bin/docker"),
        "DOCKER_HOST": format!("unix://{}", daemon.config.socket().display()),
        "WRANGLER_SEND_METRICS": "false",
        // `wrangler dev` would ask Cloudflare for the contents of request.cf.
        "CLOUDFLARE_CF_FETCH_ENABLED": "false",
    })))
}
