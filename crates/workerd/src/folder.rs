//! The folder of one process on disk.
//!
//! Owns: making it from a [`Plan`], its permissions, its removal. Must not: know what the files mean.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::config::Plan;

/// Longest path of a Unix socket (unix(7): `sun_path` has 108 bytes with the final zero).
const SOCKET_PATH_BYTES: usize = 107;
/// The longest socket name in a folder, with room for four digits.
const LONGEST_SOCKET: &str = "docker.sock";

/// Why a folder could not be made; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{action} {}: {error}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{0}")]
    Refused(String),
}

/// A folder that is removed with everything in it when dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the folder of an ended process");
        }
    }
}

impl Folder {
    /// Makes the folder with the plan's files, for `uid` alone. Blocks.
    pub(crate) fn make(
        path: PathBuf,
        plan: &Plan,
        uid: u32,
        blob: &dyn Fn(&str) -> PathBuf,
    ) -> Result<Self, FolderError> {
        let longest = path.join(LONGEST_SOCKET);
        if longest.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(FolderError::Refused(format!(
                "the socket path {} is longer than {SOCKET_PATH_BYTES} bytes; choose a shorter data directory",
                longest.display()
            )));
        }
        // Left by an earlier daemon.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("cannot remove", &path)(error));
            }
            _ => {}
        }
        std::fs::create_dir(&path).map_err(failed("cannot make", &path))?;
        let folder = Self { path };
        folder.fill(plan, uid, blob)?;
        // Last: from now on the folder is the Worker's user's.
        own(&folder.path, uid, 0o700)?;
        Ok(folder)
    }

    fn fill(
        &self,
        plan: &Plan,
        uid: u32,
        blob: &dyn Fn(&str) -> PathBuf,
    ) -> Result<(), FolderError> {
        for name in ["m", "assets"] {
            let dir = self.path.join(name);
            std::fs::create_dir(&dir).map_err(failed("cannot make", &dir))?;
            own(&dir, uid, 0o700)?;
        }
        for file in &plan.files {
            let target = self.path.join(&file.path);
            self.make_parents(&file.path, uid)?;
            place(&blob(&file.blob), &target, uid)?;
        }
        let config = self.path.join("config.capnp");
        std::fs::write(&config, &plan.config).map_err(failed("cannot write", &config))?;
        own(&config, uid, 0o600)
    }

    fn make_parents(&self, file: &Path, uid: u32) -> Result<(), FolderError> {
        let mut dir = self.path.clone();
        for part in file.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            private_dir(&dir, uid)?;
        }
        Ok(())
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a directory that only `uid` may use, if it is missing. Its parent exists.
pub(crate) fn private_dir(path: &Path, uid: u32) -> Result<(), FolderError> {
    make_dir(path)?;
    own(path, uid, 0o700)
}

/// Makes a directory for root alone, if it is missing. Its parent exists: a data directory that was taken away is not made anew. What is below
/// is mounted where workerd can see it.
pub(crate) fn roots_dir(path: &Path) -> Result<(), FolderError> {
    make_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(failed("cannot close", path))
}

fn make_dir(path: &Path) -> Result<(), FolderError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("cannot make", path)(error))
        }
        _ => Ok(()),
    }
}

/// Gives a path to `uid`.
pub(crate) fn own(path: &Path, uid: u32, mode: u32) -> Result<(), FolderError> {
    chown(path, Some(uid), Some(uid)).map_err(failed("cannot change the owner of", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(failed("cannot set the permissions of", path))
}

/// A blob under another name: linked if the user may read it, else copied (a clone where the file system can).
fn place(blob: &Path, target: &Path, uid: u32) -> Result<(), FolderError> {
    let meta = std::fs::metadata(blob).map_err(failed("cannot read the upload's file", blob))?;
    let readable = meta.mode() & 0o004 != 0 && meta.mode() & 0o002 == 0;
    if readable && std::fs::hard_link(blob, target).is_ok() {
        return Ok(());
    }
    std::fs::copy(blob, target).map_err(failed("cannot write", target))?;
    own(target, uid, 0o400)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |error| FolderError::Io {
        action,
        path,
        error,
    }
}
