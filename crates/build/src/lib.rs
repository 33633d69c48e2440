//! The Dockerfile builder.
//!
//! Owns: parsing and interpreting a Dockerfile, the build context, the layer cache.
//! Must not: speak HTTP; RUN goes through the sandbox, images through the image store.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// The unpacked build context.
    pub context: PathBuf,
    /// Text of the Dockerfile.
    pub dockerfile: String,
    /// Local names for the result.
    pub tags: Vec<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--target`.
    pub target: Option<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
}

/// What a build says while it works.
#[derive(Debug, Clone)]
pub enum Progress {
    /// A step begins: `[stage 2/5] RUN pip install ...`; numbered from 1 over the whole build.
    Step {
        /// Number.
        number: usize,
        /// Of how many.
        total: usize,
        /// Text.
        text: String,
        /// Taken from the cache.
        cached: bool,
    },
    /// Output of a RUN.
    Output(Vec<u8>),
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile: `Dockerfile:7: unknown instruction "FORM" (did you mean FROM?)`.
    #[error("Dockerfile:{line}: {message}")]
    Dockerfile {
        /// 1-based.
        line: usize,
        /// What and how to mend it.
        message: String,
    },
    /// A RUN exited with a code.
    #[error("Dockerfile:{line}: the command '{command}' returned a non-zero code: {code}")]
    Run {
        /// 1-based.
        line: usize,
        /// As written.
        command: String,
        /// Exit code.
        code: i32,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Builds images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Builder {}

impl Builder {
    /// A builder on these stores.
    pub fn new(
        images: wharf_image::ImageStore,
        spawner: wharf_sandbox::Spawner,
        networks: wharf_net::Networks,
    ) -> Self {
        let _ = (images, spawner, networks);
        todo!()
    }

    /// Builds; progress goes to `progress` (dropped receivers are fine). Dropping the future ends a running RUN.
    pub async fn build(
        &self,
        request: BuildRequest,
        progress: tokio::sync::mpsc::UnboundedSender<Progress>,
    ) -> Result<wharf_image::Image, BuildError> {
        let _ = (request, progress);
        todo!()
    }
}
