//! Turns a request into an instance that can be started: image, disk, directories, record. Must
//! not: start anything.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::instance::Instance;
use crate::lifecycle::State;
use crate::preload::{self, Preloads};
use crate::record::{InstanceSpec, InstanceStatus, Record};
use crate::{
    Create, EngineError, FromSnapshot, Isolation, Shared, blocking, files, insert, isolation,
    merge, standby,
};

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
    let (image, mut lower) = image_of(shared, &request.image).await?;
    lower.push(shared.images.mount_points());
    if let Some(snapshot) = &request.snapshot {
        check_snapshot(shared, &request, snapshot, image.id.as_str())?;
        lower.insert(0, snapshot.files.clone());
    }
    let defaults = merge::ImageDefaults::of(&image.config);
    let isolation = isolation_of(shared, &request, &defaults)?;
    request.surroundings.check(isolation)?;
    if let Some(id) = standby::hand_over(shared, &request, &image, &lower, isolation).await? {
        return Ok(id);
    }
    shared.admit(request.application.as_ref())?;
    let id = format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    );
    let hostname = request.surroundings.hostname.as_deref();
    let merged = merge::merge(&defaults, &request, hostname.unwrap_or(&id[..12]))?;
    let layers = &lower[usize::from(request.snapshot.is_some())..];
    // Processes on another kernel are not the machine's: none could be given a memory.
    let on_host_kernel = isolation::sandbox_class(isolation).is_on_host_kernel();
    let preload = (on_host_kernel && request.surroundings.is_plain())
        .then(|| preload::plan(&defaults, image.id.as_str(), layers, &request, &merged))
        .flatten()
        .map(|(usable, wanted)| {
            if let Some(wanted) = wanted {
                Preloads::want(shared, wanted);
            }
            usable
        });
    let disks = shared.disks.clone();
    let disk = match request.limits.disk_bytes {
        Some(bytes) => match disks.take_ready(bytes) {
            Some(disk) => Some(disk),
            None => blocking(move || disks.take(bytes))
                .await?
                .map_err(|error| no_disk(shared, &request, &error))?,
        },
        None => None,
    };
    let opened = disk.as_ref().and_then(|disk| disk.disk());
    let generation = shared
        .table()
        .last_generation(&request.owner, &request.name);
    let mut spec = InstanceSpec::new(
        request.clone(),
        &image,
        lower,
        merged,
        id.clone(),
        isolation,
        opened.map(|disk| disk.device().to_owned()),
    );
    spec.preload = preload;
    let record = Record {
        spec: Arc::new(spec),
        status: InstanceStatus {
            generation,
            object_labels: request.start.labels,
            ..InstanceStatus::default()
        },
    };
    let made = shared
        .directories
        .make(&record, disk.is_some(), |dir| match opened {
            // `upper` and `work` are there.
            Some(disk) => files::make_volumes(&record.spec.volumes, &disk.path()),
            None => {
                make_writable(dir).and_then(|()| files::make_volumes(&record.spec.volumes, dir))
            }
        });
    let dir = made.map_err(|error| {
        let place = shared.config.dir.display();
        EngineError::Internal(format!("a directory for the instance in {place}: {error}"))
    })?;
    let has_disk = disk.is_some();
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
        shared.directories.discard(&dir, has_disk);
        return Err(error);
    }
    Ok(id)
}

/// What a missing disk is to the caller: what it is made of runs out, and comes back.
fn no_disk(shared: &Shared, request: &Create, error: &io::Error) -> EngineError {
    let reason = format!("no disk for the instance: {error}");
    match wharf_sandbox::is_exhaustion(error) {
        true => shared.short(request.application.as_ref(), reason),
        false => EngineError::Internal(reason),
    }
}

/// The image, and its layers' directories.
async fn image_of(
    shared: &Shared,
    reference: &str,
) -> Result<(wharf_image::Image, Vec<PathBuf>), EngineError> {
    if let Some(found) = shared.images.resolve_ready(reference) {
        return Ok(found);
    }
    let (images, reference) = (shared.images.clone(), reference.to_owned());
    let found = blocking(move || {
        let image = images.resolve(&reference)?;
        let lower = images.lower_dirs(&image.layers)?;
        Ok::<_, wharf_image::ImageError>((image, lower))
    });
    found.await?.map_err(|error| match error {
        wharf_image::ImageError::NotFound(message) => EngineError::NotFound(message),
        other => EngineError::Internal(other.to_string()),
    })
}

/// What the container writes, where it has no disk.
fn make_writable(dir: &Path) -> io::Result<()> {
    let upper = dir.join("upper");
    std::fs::create_dir(&upper)?;
    // It is the container's `/`, also for its unprivileged users, whatever the daemon's umask is.
    std::fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
    std::fs::create_dir(dir.join("work"))
}

/// The class, if this machine can give it.
fn isolation_of(
    shared: &Shared,
    request: &Create,
    image: &merge::ImageDefaults,
) -> Result<Isolation, EngineError> {
    let label = isolation::label_of(image);
    let class = isolation::class(request.isolation, label, shared.config.isolation);
    let microvm = &shared.config.microvm;
    let class = class.and_then(|class| isolation::check(class, microvm).map(|()| class));
    class.inspect_err(|error| {
        let text = error.to_string();
        tracing::warn!(reason = text, "instance refused");
        if let Some(application) = &request.application {
            shared.table().refused(application, &text);
        }
    })
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
