//! Errors inside one step, before the line of the Dockerfile is added.

use std::io;

use crate::BuildError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The Dockerfile or the context: the caller's to mend.
    #[error("{0}")]
    Refused(String),
    /// Disk or kernel.
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
    #[error(transparent)]
    Image(#[from] wharf_image::ImageError),
}

pub(crate) type Result<T> = std::result::Result<T, Trouble>;

impl Trouble {
    pub(crate) fn at(self, line: usize) -> BuildError {
        match self {
            Self::Refused(message) => BuildError::Dockerfile { line, message },
            other => BuildError::Failed(format!("Dockerfile:{line}: {other}")),
        }
    }
}

impl From<String> for Trouble {
    fn from(message: String) -> Self {
        Self::Refused(message)
    }
}

/// Says what was being done when a system call failed.
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Trouble::Io {
            context: doing(),
            source: e.into(),
        })
    }
}
