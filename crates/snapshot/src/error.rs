//! What can go wrong, by what the caller does about it.

use std::io;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// More than one snapshot may hold, or more than the owner may have.
    #[error("{0}")]
    TooBig(String),
    /// The name is taken.
    #[error("there is a snapshot {0} already")]
    Exists(String),
    /// The machine failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: io::Error,
    },
}

pub(crate) type Result<T> = std::result::Result<T, SnapshotError>;

/// Says what was being done when a call failed.
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| SnapshotError::Io {
            context: doing(),
            source: error.into(),
        })
    }
}
