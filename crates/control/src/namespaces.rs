//! Durable Object namespaces, listed.

use std::sync::Arc;

use axum::extract::{Query, State};
use serde_json::json;

use crate::App;
use crate::envelope::{ApiResult, Page};

/// `GET workers/durable_objects/namespaces`
pub(crate) async fn list(State(app): State<Arc<App>>, Query(page): Query<Page>) -> ApiResult {
    let namespaces = app.db(|store| store.all_namespaces()).await?;
    Ok(page.of(namespaces
        .iter()
        .map(|namespace| {
            json!({
                "id": namespace.id,
                "name": format!("{}_{}", namespace.script, namespace.class),
                "class": namespace.class,
                "script": namespace.script,
                "use_sqlite": namespace.use_sqlite,
            })
        })
        .collect()))
}
