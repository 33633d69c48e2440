//! The one user and the one account of a node: what `wrangler whoami` asks.

use std::sync::Arc;

use axum::extract::{Query, State};
use serde_json::{Value, json};

use crate::App;
use crate::envelope::{ApiResult, Page, ok};

/// Shown as the author of everything.
pub(crate) const USER: &str = "operator@wharf.localhost";

fn account(app: &App) -> Value {
    json!({
        "id": app.config.account_id,
        "name": "wharf",
        "type": "standard",
        "settings": {"enforce_twofactor": false},
    })
}

/// `GET /user`
pub(crate) async fn user(State(app): State<Arc<App>>) -> ApiResult {
    Ok(ok(
        json!({"id": app.config.account_id, "email": USER, "username": "operator", "suspended": false}),
    ))
}

/// `GET /user/tokens/verify`: whoever gets here has a valid token.
pub(crate) async fn verify(State(app): State<Arc<App>>) -> ApiResult {
    Ok(ok(json!({"id": app.config.account_id, "status": "active"})))
}

/// `GET /accounts`
pub(crate) async fn accounts(State(app): State<Arc<App>>, Query(page): Query<Page>) -> ApiResult {
    Ok(page.of(vec![account(&app)]))
}

/// `GET /accounts/<id>`
pub(crate) async fn one(State(app): State<Arc<App>>) -> ApiResult {
    Ok(ok(account(&app)))
}

/// `GET /memberships`
pub(crate) async fn memberships(
    State(app): State<Arc<App>>,
    Query(page): Query<Page>,
) -> ApiResult {
    Ok(page.of(vec![json!({
        "id": app.config.account_id,
        "status": "accepted",
        "account": account(&app),
        "roles": ["Super Administrator - All Privileges"],
    })]))
}

/// `GET /accounts/<id>/workers/subdomain`: a name that wranglers before 4.164 put before `.workers.dev` in a line that they print.
pub(crate) async fn subdomain() -> ApiResult {
    Ok(ok(json!({"subdomain": "wharf"})))
}

/// `GET /accounts/<id>/storage/kv/namespaces`: `wrangler delete` looks for one made by Workers Sites. There are none.
pub(crate) async fn kv_namespaces(Query(page): Query<Page>) -> ApiResult {
    Ok(page.of(vec![]))
}
