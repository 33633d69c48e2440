//! What is measured: each runtime starts one container of a class, says when its app's first byte came, and removes it again.

pub(crate) mod ahead;
pub(crate) mod api;
pub(crate) mod engine;
pub(crate) mod floor;
pub(crate) mod oci;
pub(crate) mod preload;
pub(crate) mod whole;

use std::time::Instant;

use anyhow::Result;

use crate::class::Class;

/// Has at most one container at a time.
pub(crate) trait Runtime {
    /// `wharf`, `dockerd`, ...
    fn name(&self) -> &'static str;

    /// `engine`, `docker-api` or `whole`.
    fn level(&self) -> &'static str;

    /// Before a start: until what it needs is there. It does not count.
    ///
    /// # Errors
    /// It does not come.
    fn prepare(&mut self, _class: &Class) -> Result<()> {
        Ok(())
    }

    /// From the decision to start to the first byte of the app's answer. `name` was never used before.
    ///
    /// # Errors
    /// No answer, or one that is not 200. [`Runtime::stop`] must be called all the same.
    fn start(&mut self, class: &Class, name: &str) -> Result<Instant>;

    /// The container's main process.
    fn pid(&mut self) -> Result<i32>;

    /// Ends and removes the container; nothing to do if there is none.
    fn stop(&mut self) -> Result<()>;
}
