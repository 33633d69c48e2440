//! Named images: what a Worker starts by `start({image: ctx.container.images.<name>})` must be here and unpacked before it is deployed.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use serde::Deserialize;
use serde_json::json;
use wharf_model::Version;

use crate::envelope::{ApiError, ApiResult, ok};
use crate::{App, body};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Preparation {
    image: String,
}

/// `POST image-preparations`: wrangler asks until the image is ready. Here the answer waits until it is.
pub(crate) async fn prepare(State(app): State<Arc<App>>, request: Body) -> ApiResult {
    let Preparation { image } = body::json(request).await?;
    Ok(ok(match app.effects.prepare_image(&image).await {
        Ok(()) => json!({"image": image, "status": "ready"}),
        Err(reason) => json!({"image": image, "status": "error", "reason": reason}),
    }))
}

/// Prepares every image that a version names; the reason if one can't be had.
pub(crate) async fn prepare_all(app: &Arc<App>, version: &Version) -> ApiResult<()> {
    for (class, declared) in &version.containers {
        for (name, image) in &declared.images {
            app.effects.prepare_image(image).await.map_err(|reason| {
                ApiError::bad_request(format!(
                    "image {name:?} of the container of class {class:?} can't be used: {reason}"
                ))
            })?;
        }
    }
    Ok(())
}
