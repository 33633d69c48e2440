//! The Dockerfile builder.
//!
//! Owns: parsing and interpreting a Dockerfile, the build context, the layer cache.
//! Must not: speak HTTP; RUN goes through the sandbox, images through the image store.
//!
//! ```text
//! text ─parse─> lines ─instruction─> steps ─plan─> stages ─build─> for each step:
//!     key = hash(parent layers, step, content)  ── in the cache ──> its layer
//!     else a fresh upper directory: COPY writes into a detached overlay, RUN runs in the sandbox ──> commit ──> cache
//! ```
//!
//! Only stages that the target needs are built. Time enters an image only when a layer is first made, so a build that comes whole from
//! the cache gives the same image id again.

mod build;
mod cache;
mod chmod;
mod copy;
mod dockerignore;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod instruction;
mod leftovers;
mod parse;
mod pattern;
mod plan;
mod run;
mod shell_pattern;
mod source;
mod state;
mod tree;
mod trouble;
mod unpack;
mod users;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// [`wharf_sandbox::ProcessSpec::label`] of a RUN's process. A daemon that finds one among its survivors ends it: the build that it belonged to is gone.
pub const PROCESS_LABEL: &str = "build";

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
pub struct Builder {
    shared: Arc<build::Shared>,
}

impl Builder {
    /// A builder on these stores. `cache_dir` (`<data>/build`) holds the index of the layer cache and the directories of `--mount=type=cache`;
    /// it is made when first needed, and may be deleted while no build runs.
    pub fn new(
        images: wharf_image::ImageStore,
        spawner: wharf_sandbox::Spawner,
        networks: wharf_net::Networks,
        cache_dir: PathBuf,
    ) -> Self {
        Self {
            shared: Arc::new(build::Shared {
                images,
                spawner,
                networks,
                cache: cache::Cache::new(cache_dir),
                turns: Mutex::default(),
            }),
        }
    }

    /// Builds; progress goes to `progress` (dropped receivers are fine). Dropping the future ends a running RUN.
    pub async fn build(
        &self,
        request: BuildRequest,
        progress: tokio::sync::mpsc::UnboundedSender<Progress>,
    ) -> Result<wharf_image::Image, BuildError> {
        build::build(self.shared.clone(), request, progress).await
    }
}
