//! What can go wrong in the store, and short ways to say what was being done.

use std::sync::PoisonError;

/// What went wrong, told apart where the registry or the docker dialect answers differently.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such image, manifest, blob or repository; also a manifest that names blobs that are not here.
    #[error("{0}")]
    NotFound(String),
    /// The content does not have the digest that was claimed, a bad manifest, a bad tar, a bad name.
    #[error("{0}")]
    Invalid(String),
    /// Disk or database.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

pub(crate) type Result<T> = std::result::Result<T, ImageError>;

/// Turns a failed system call or query into [`ImageError::Io`].
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| ImageError::Io {
            context: doing(),
            source,
        })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(std::io::Error::from).context(doing)
    }
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(std::io::Error::other).context(doing)
    }
}

/// The guard of a lock, whether or not a holder panicked: what the locks here guard is replaced whole, so it is never half changed.
pub(crate) fn held<G>(locked: std::result::Result<G, PoisonError<G>>) -> G {
    locked.unwrap_or_else(PoisonError::into_inner)
}

/// Now, Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
