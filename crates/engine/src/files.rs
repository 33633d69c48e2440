//! An instance's files from outside: held still to be copied, and written into.
//!
//! Reading goes to the layers on disk, which the caller puts together; nothing is mounted for it.
//! Writing goes through the overlay: the process's own while one runs, else one that is mounted for
//! the purpose, because an upper directory that is mounted changes only by its mount.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::sync::OwnedMutexGuard;
use wharf_image::{Extraction, ImageError};
use wharf_sandbox::{Mount, stopped};

use crate::instance::Handle;
use crate::lifecycle::State;
use crate::record::InstanceSpec;
use crate::{Engine, EngineError, Owner, Shared, blocking, isolation, missing};

/// Where the sandbox mounts something in every container; made in the upper directory where the
/// image has nothing there.
const MOUNT_POINTS: [&str; 6] = [
    "/proc",
    "/sys",
    "/dev",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
];

/// A writable directory to mount into an instance. What is written there is kept with the instance,
/// and goes with it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VolumeMount {
    /// Absolute path in the instance; made if missing.
    pub target: PathBuf,
    /// What the directory holds at first: topmost first, never changed; empty: nothing.
    pub lower: Vec<PathBuf>,
}

/// A snapshot of a whole instance, to start another one from.
#[derive(Debug, Clone)]
pub struct FromSnapshot {
    /// For error texts.
    pub name: String,
    /// Its layer, to lie on the image's.
    pub files: PathBuf,
    /// Id of the image that it was taken of: the only one that it fits.
    pub image_id: String,
}

/// Where the files of an instance are.
#[derive(Debug, Clone)]
pub struct Files {
    /// What it wrote outside its volumes: changes while it runs.
    pub upper: PathBuf,
    /// The snapshot that it was started from. Like the image's layers and what volumes began with,
    /// it never changes.
    pub snapshot: Option<PathBuf>,
    /// The image's layers, topmost first.
    pub image: Vec<PathBuf>,
    /// Its volumes, in the order of their mounting.
    pub volumes: Vec<Volume>,
    /// Where something is mounted: places in `upper` that may hold an empty file or directory for
    /// that reason alone.
    pub mount_points: Vec<PathBuf>,
}

/// A volume of an instance.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where it is mounted.
    pub target: PathBuf,
    /// What was written into it.
    pub upper: PathBuf,
    /// What it began with.
    pub lower: Vec<PathBuf>,
}

/// An instance whose files stand still: its processes are frozen, and it cannot be started.
/// [`Held::release`] it.
#[derive(Debug)]
pub struct Held {
    files: Files,
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    frozen: Option<String>,
    _turn: OwnedMutexGuard<()>,
}

impl Held {
    /// Where the files are.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Lets it run again.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] if it was removed meanwhile: what was read of it may lack files.
    pub async fn release(mut self) -> Result<(), EngineError> {
        if let Some(id) = self.frozen.take() {
            let thawed = self.shared.spawner.thaw(&id).await;
            thawed.map_err(|error| EngineError::Internal(error.to_string()))?;
        }
        // Its files stay while they are held, on a disk; its directory does not.
        match self.handle.dir.exists() {
            true => Ok(()),
            false => Err(missing(&self.handle.spec.name)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.frozen.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let spawner = self.shared.spawner.clone();
        runtime.spawn(async move {
            if let Err(error) = spawner.thaw(&id).await {
                tracing::error!(process = id, %error, "a container stays frozen");
            }
        });
    }
}

impl Engine {
    /// Holds an instance's files still. Also of one that does not run.
    pub async fn hold(&self, owner: &Owner, reference: &str) -> Result<Held, EngineError> {
        let handle = self.find_to_touch(owner, reference)?;
        loop {
            let turn = settled(&handle).await?;
            let mut held = Held {
                files: files(&handle.spec, &handle.writable()),
                handle: handle.clone(),
                shared: self.shared.clone(),
                frozen: None,
                _turn: turn,
            };
            let view = handle.view.borrow().clone();
            // One that was started ahead and waits for its start stands still already, and its
            // start waits for this turn.
            if view.pid.is_none() || view.state == State::Created {
                return Ok(held);
            }
            let id = handle.spec.process(view.status.generation);
            held.frozen = Some(id.clone());
            match self.shared.spawner.freeze(&id).await {
                Ok(()) => return Ok(held),
                // It has just ended: then it need not be frozen.
                Err(_) if handle.view.borrow().pid.is_none() => {}
                Err(error) => return Err(EngineError::Internal(error.to_string())),
            }
        }
    }

    /// Where an instance's files are, without holding them still.
    pub fn files(&self, owner: &Owner, reference: &str) -> Result<Files, EngineError> {
        let handle = self.find(owner, reference)?;
        Ok(files(&handle.spec, &handle.writable()))
    }

    /// Extracts a tar archive into the directory `into` of an instance, which is made if it is
    /// missing. No name in it and no link in the instance leads out. At most `max_bytes`,
    /// uncompressed.
    pub async fn extract(
        &self,
        owner: &Owner,
        reference: &str,
        into: &Path,
        max_bytes: u64,
        archive: Box<dyn Read + Send>,
    ) -> Result<(), EngineError> {
        let handle = self.find_to_touch(owner, reference)?;
        let turn = settled(&handle).await?;
        let pid = handle.view.borrow().pid;
        let root = match pid {
            Some(pid) => {
                let class = isolation::sandbox_class(handle.spec.isolation);
                let root = process_root(&class.root_of(pid))
                    .and_then(|root| Ok((root, wharf_sandbox::root_of_process(pid)?)));
                // The number was its own all the while if it still is.
                match handle.view.borrow().pid == Some(pid) {
                    true => Some(root.map_err(|e| EngineError::Internal(e.to_string()))?),
                    false => return Err(missing(&handle.spec.name)),
                }
            }
            None => None,
        };
        let to = move |root: OwnedFd, into: Vec<u8>| Extraction {
            root,
            into,
            max_bytes,
        };
        let into = into.as_os_str().as_encoded_bytes().to_vec();
        let extracted = blocking(move || -> io::Result<Result<(), ImageError>> {
            let _turn = turn;
            if let Some((root, owner)) = root {
                // Through the mounts of a container its root is this host id.
                return wharf_sandbox::files_as(owner, || {
                    wharf_image::extract_as(archive, to(root, into), owner)
                });
            }
            let disk = handle.disk_mount();
            let at = disk.as_ref().map_or(handle.dir.as_path(), |disk| &disk.at);
            let files = files(&handle.spec, at);
            let lower: Vec<PathBuf> = files.snapshot.into_iter().chain(files.image).collect();
            let work = at.join("work");
            let mounts = volume_mounts(&handle.spec, at);
            let parts = stopped::Parts {
                lower: &lower,
                upper: &files.upper,
                work: &work,
                disk: disk.as_ref(),
                mounts: &mounts,
            };
            let extracted =
                stopped::inside(&parts, |root| wharf_image::extract(archive, to(root, into)));
            renew_work(&handle.spec, &handle.writable())?;
            extracted
        });
        match extracted.await? {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ImageError::Invalid(text))) => Err(EngineError::Invalid(text)),
            Ok(Err(error)) => Err(EngineError::Internal(error.to_string())),
            Err(error) => Err(EngineError::Internal(format!(
                "opening the container's files: {error}"
            ))),
        }
    }

    /// Directories of snapshots that instances use: not to be removed.
    pub fn snapshots_in_use(&self) -> HashSet<PathBuf> {
        let handles = self.shared.table().all(None);
        let spec = handles.iter().map(|handle| &handle.spec);
        spec.flat_map(|spec| {
            let volumes = spec.volumes.iter().flat_map(|volume| &volume.lower);
            volumes.chain(&spec.snapshot).cloned()
        })
        .collect()
    }
}

/// Waits for a turn on an instance's files at which no start is under way.
async fn settled(handle: &Handle) -> Result<OwnedMutexGuard<()>, EngineError> {
    let mut view = handle.view.clone();
    loop {
        let turn = handle.files.clone().lock_owned().await;
        let state = view.borrow_and_update().state.clone();
        match state {
            State::Removed => return Err(missing(&handle.spec.name)),
            // The start waits for this very turn.
            State::Starting => drop(turn),
            _ => return Ok(turn),
        }
        let changed = view.changed().await;
        changed.map_err(|_| missing(&handle.spec.name))?;
    }
}

fn process_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn files(spec: &InstanceSpec, dir: &Path) -> Files {
    let image = spec.lower.iter();
    let volumes = spec.volumes.iter().enumerate();
    let mut mount_points: Vec<PathBuf> = MOUNT_POINTS.map(PathBuf::from).to_vec();
    mount_points.extend(spec.volumes.iter().map(|volume| volume.target.clone()));
    let tmpfs = spec.surroundings.tmpfs.iter();
    mount_points.extend(tmpfs.map(|tmpfs| tmpfs.target.clone()));
    Files {
        upper: dir.join("upper"),
        snapshot: spec.snapshot.clone(),
        image: image
            .filter(|layer| spec.snapshot.as_ref() != Some(layer))
            .cloned()
            .collect(),
        volumes: volumes
            .map(|(n, volume)| Volume {
                target: volume.target.clone(),
                upper: volume_dir(dir, n).join("upper"),
                lower: volume.lower.clone(),
            })
            .collect(),
        mount_points,
    }
}

fn volume_dir(dir: &Path, number: usize) -> PathBuf {
    dir.join("volumes").join(number.to_string())
}

/// Makes the directories of an instance's volumes. Their roots belong to whom the roots of what
/// they begin with belong.
pub(crate) fn make_volumes(volumes: &[VolumeMount], dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    for (n, volume) in volumes.iter().enumerate() {
        let place = volume_dir(dir, n);
        let upper = place.join("upper");
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir(place.join("work"))?;
        let mode = match volume.lower.first() {
            Some(lower) => {
                let metadata = std::fs::metadata(lower)?;
                chown(&upper, Some(metadata.uid()), Some(metadata.gid()))?;
                metadata.mode() & 0o7777
            }
            None => 0o755,
        };
        std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// The mounts of an instance's volumes; `dir` as the process sees it.
pub(crate) fn volume_mounts(spec: &InstanceSpec, dir: &Path) -> Vec<Mount> {
    let volumes = spec.volumes.iter().enumerate();
    volumes
        .map(|(n, volume)| Mount::Overlay {
            lower: volume.lower.clone(),
            upper: volume_dir(dir, n).join("upper"),
            work: volume_dir(dir, n).join("work"),
            target: volume.target.clone(),
        })
        .collect()
}

/// overlayfs wants empty work directories; the kernel leaves its own folder in a used one.
pub(crate) fn renew_work(spec: &InstanceSpec, dir: &Path) -> io::Result<()> {
    renew(&dir.join("work"))?;
    (0..spec.volumes.len()).try_for_each(|n| renew(&volume_dir(dir, n).join("work")))
}

fn renew(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::fs::create_dir(dir)
}
