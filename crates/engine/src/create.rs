//! From a request to an instance that can be started: image, disk, directories, record. Must not: start anything.

use crate::instance::{self, Instance};
use crate::lifecycle::State;
use crate::preload::{self, Preloads};
use crate::record::{Fixed, Progress, Record};
use crate::{Create, EngineError, FromSnapshot, Shared, blocking, files, insert, merge, now_ms};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

/// Makes an instance and returns its id. Without a trace if it fails.
pub(crate) async fn create(shared: &Arc<Shared>, request: Create) -> Result<String, EngineError> {
    if request.name.is_empty() {
        return Err(EngineError::Invalid("a container needs a name".to_owned()));
    }
    {
        let mut table = shared.table();
        table.check_name(&request.owner, &request.name)?;
        if let Some(application) = &request.application {
            table.check_limit(application)?;
        }
    }
    let images = shared.images.clone();
    let reference = request.image.clone();
    let (image, lower) = blocking(move || {
        let image = images.resolve(&reference)?;
        let lower = images.lower_dirs(&image.layers)?;
        Ok::<_, wharf_image::ImageError>((image, lower))
    })
    .await?
    .map_err(|error| match error {
        wharf_image::ImageError::NotFound(message) => EngineError::NotFound(message),
        other => EngineError::Internal(other.to_string()),
    })?;
    let mut lower = lower;
    if let Some(snapshot) = &request.snapshot {
        check_snapshot(shared, &request, snapshot, image.id.as_str())?;
        lower.insert(0, snapshot.files.clone());
    }
    let id = format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    );
    let defaults = merge::ImageDefaults::of(&image.config);
    let merged = merge::merge(&defaults, &request, &id[..12])?;
    let layers = &lower[usize::from(request.snapshot.is_some())..];
    let preload = preload::plan(&defaults, image.id.as_str(), layers, &request, &merged).map(
        |(usable, wanted)| {
            if let Some(wanted) = wanted {
                Preloads::want(shared, wanted);
            }
            usable
        },
    );
    let disks = shared.disks.clone();
    let disk = match request.limits.disk_bytes {
        Some(bytes) => match disks.take_ready(bytes) {
            Some(disk) => Some(disk),
            None => blocking(move || disks.take(bytes))
                .await?
                .map_err(|error| EngineError::Internal(format!("the instance's disk: {error}")))?,
        },
        None => None,
    };
    let disk = disk.map(Arc::new);
    let generation = shared
        .table()
        .last_generation(&request.owner, &request.name);
    let record = Record {
        fixed: Arc::new(Fixed {
            id: id.clone(),
            owner: request.owner,
            name: request.name,
            image: request.image,
            image_id: image.id.as_str().to_owned(),
            diff_ids: image
                .layers
                .iter()
                .map(|layer| layer.diff_id.as_str().to_owned())
                .collect(),
            lower,
            snapshot: request.snapshot.map(|snapshot| snapshot.files),
            volumes: request.volumes,
            application: request.application,
            argv: merged.argv,
            env: merged.env,
            user: merged.user,
            working_dir: merged.working_dir,
            stop_signal: merged.stop_signal,
            labels: merged.labels,
            limits: request.limits,
            device: disk.as_ref().map(|disk| disk.device().to_owned()),
            start_token: request.start.token,
            hard_timeout_ms: request.start.hard_timeout_ms,
            preload,
            own_network: request.own_network,
            auto_remove: request.auto_remove,
            created_ms: now_ms(),
        }),
        progress: Progress {
            generation,
            object_labels: request.start.labels,
            ..Progress::default()
        },
    };
    let dir = shared.config.dir.join(&id);
    let upper = dir.join("upper");
    let prepared = std::fs::create_dir(&dir)
        .and_then(|()| std::fs::create_dir(&upper))
        // It is the container's `/`, also for its unprivileged users, whatever the daemon's umask is.
        .and_then(|()| std::fs::set_permissions(&upper, Permissions::from_mode(0o755)))
        .and_then(|()| std::fs::create_dir(dir.join("work")))
        .and_then(|()| match &disk {
            Some(_) => std::fs::create_dir(dir.join(instance::DISK)),
            None => Ok(()),
        })
        .and_then(|()| {
            let writable = disk.as_ref().map_or(dir.clone(), |disk| disk.path());
            files::make_volumes(&record.fixed.volumes, &writable)
        })
        .and_then(|()| record.write(&dir));
    if let Err(error) = prepared {
        instance::discard(&dir);
        return Err(EngineError::Internal(format!("{}: {error}", dir.display())));
    }
    let own_network = request.network.is_none();
    let instance = Instance::new(
        shared.clone(),
        record,
        dir.clone(),
        State::Created,
        request.network,
        own_network,
        disk,
    );
    if let Err(error) = insert(shared, instance) {
        instance::discard(&dir);
        return Err(error);
    }
    Ok(id)
}

/// A snapshot is a layer over one image; on another it would show a mixture of both.
fn check_snapshot(
    shared: &Shared,
    request: &Create,
    snapshot: &FromSnapshot,
    image_id: &str,
) -> Result<(), EngineError> {
    if snapshot.image_id == image_id {
        return Ok(());
    }
    let short = |id: &str| id.get(..19).unwrap_or(id).to_owned();
    let text = format!(
        "the container snapshot {} was taken of the image {}, but {} is {} now; a snapshot fits only the image that it was taken of: go back to that image (wrangler rollback), or start without the snapshot",
        snapshot.name,
        short(&snapshot.image_id),
        request.image,
        short(image_id)
    );
    tracing::warn!(reason = text, "instance refused");
    if let Some(application) = &request.application {
        shared.table().refused(application, &text);
    }
    Err(EngineError::Invalid(text))
}
