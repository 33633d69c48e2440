//! Files, volumes and snapshots: what `docker cp`, volumes and `docker commit` are to workerd (contract: workerd, 1.3).
//!
//! workerd takes a snapshot of a directory by reading it into its memory as an archive and writing that into a volume, by way of a container
//! that is never started; it restores one by copying the volume with a container that runs `cp`. Here neither container exists
//! ([`helpers`]), and on a script's own socket no content goes through workerd:
//!
//! ```text
//! GET  /containers/C/archive?path=<dir>/.     the snapshot is taken; the answer is an archive with a token in place of the files
//! POST /volumes/create {workerd-snap-<id>}    a name, in memory
//! POST /containers/create {Binds: [..:/mnt]}  a helper that fills
//! PUT  /containers/<helper>/archive           the token comes back: the snapshot gets the name, and is on disk
//!
//! POST /volumes/create {workerd-snap-clone-<id>}, create, start and wait of a helper that clones: the clone notes its snapshot
//! POST /containers/create {Mounts: [..]}      the instance gets an overlay of its own on the snapshot
//! ```
//! The token is a secret between this daemon and one owner, good once and for minutes. Nothing that a container or a Worker says can
//! become one: what a script's socket answers to that GET is never a container's own content. The operator's socket deals in real
//! archives only, since whoever calls there may be `docker cp`.

mod archive;
mod bounded;
mod commit;
mod helpers;
mod volumes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::routing::{get, post};
use http::StatusCode;
use wharf_engine::{Engine, Files, FromSnapshot, Owner};
use wharf_snapshot::{Kind, Layer, SnapshotError, Snapshots, View};

use self::bounded::Bounded;
pub(crate) use self::commit::is_snapshot;
pub(crate) use self::helpers::{HelperBody, is_helper};
pub(crate) use self::volumes::{directory_snapshot, target};
use crate::errors::ApiError;

/// Volumes and helpers of one socket that are remembered; the oldest go first.
const MAX_REMEMBERED: usize = 4096;

/// What the handlers share.
pub(crate) struct Storage {
    owner: Owner,
    /// The owner as the snapshot store knows it.
    key: String,
    engine: Engine,
    snapshots: Snapshots,
    /// Whether directories are handed over by token.
    by_token: bool,
    /// Volumes without content of their own, by name.
    volumes: Mutex<Bounded<volumes::Volume>>,
    helpers: Mutex<Bounded<helpers::Helper>>,
}

impl Storage {
    /// For one owner's socket.
    pub(crate) fn new(owner: Owner, engine: Engine, snapshots: Snapshots) -> Storage {
        Storage {
            key: owner.to_string(),
            by_token: owner != Owner::Operator,
            owner,
            engine,
            snapshots,
            volumes: Mutex::new(Bounded::new(MAX_REMEMBERED)),
            helpers: Mutex::new(Bounded::new(MAX_REMEMBERED)),
        }
    }

    /// The snapshot that an image name means, for a create; its life begins anew. With it the id of the image that it lies on.
    pub(crate) async fn to_start(
        self: &Arc<Self>,
        image: &str,
    ) -> Result<(FromSnapshot, String), ApiError> {
        let name = commit::without_tag(image).to_owned();
        let storage = self.clone();
        let looked_up = name.clone();
        let found = blocking(move || storage.snapshots.use_now(&storage.key, &looked_up)).await?;
        match found.map(|snapshot| (snapshot.kind, snapshot.files)) {
            Some((Kind::Container { image_id, .. }, files)) => Ok((
                FromSnapshot {
                    name,
                    files,
                    image_id: image_id.clone(),
                },
                image_id,
            )),
            _ => Err(ApiError::not_found(format!(
                "No such image: {name} (a container snapshot that does not exist, has expired, or is another script's)"
            ))),
        }
    }

    fn volumes(&self) -> MutexGuard<'_, Bounded<volumes::Volume>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn helpers(&self) -> MutexGuard<'_, Bounded<helpers::Helper>> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes. Those for images are a script's alone: the operator has images of its own.
pub(crate) fn routes(storage: Arc<Storage>) -> Router {
    let images = Router::new()
        .route("/images/{name}/json", get(commit::inspect))
        .route("/images/{name}", axum::routing::delete(commit::delete));
    let all = Router::new()
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route(
            "/volumes/{name}",
            get(volumes::inspect).delete(volumes::remove),
        )
        .route(
            "/containers/{name}/archive",
            get(archive::get).put(archive::put).head(archive::head),
        )
        .route("/commit", post(commit::commit));
    match storage.by_token {
        true => all.merge(images),
        false => all,
    }
    .with_state(storage)
}

/// Runs what touches the disk off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
        .map_err(ApiError::from)
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        let status = match &error {
            SnapshotError::TooBig(_) => StatusCode::INSUFFICIENT_STORAGE,
            SnapshotError::Exists(_) => StatusCode::CONFLICT,
            SnapshotError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}

fn layer(path: PathBuf, still: bool) -> Layer {
    Layer { path, still }
}

/// Everything that an instance's processes see of files on disk.
fn whole_view(files: &Files) -> std::io::Result<View> {
    let below = files.snapshot.iter().chain(&files.image).cloned();
    let mut layers = vec![layer(files.upper.clone(), false)];
    layers.extend(below.map(|path| layer(path, true)));
    let mut view = View::new(&layers)?;
    for volume in &files.volumes {
        let mut layers = vec![layer(volume.upper.clone(), false)];
        layers.extend(volume.lower.iter().map(|path| layer(path.clone(), true)));
        match view.mount(&volume.target, &layers) {
            // Of an instance that was never started: its mount points are made with the process.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            mounted => mounted?,
        }
    }
    Ok(view)
}
