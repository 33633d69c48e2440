//! examples/hello, ready to be deployed: its npm packages installed, its server compiled.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::progress::{run, step};
use crate::{debian, setup};

/// Returns the example's folder.
pub(crate) fn prepare() -> Result<PathBuf> {
    debian::install(&[debian::GCC, debian::LIBC_DEV])?;
    setup::tools()?;
    let project = setup::example("hello")?;
    step("the example's server", || {
        run(Command::new("npm")
            .args(["run", "--silent", "build:server"])
            .current_dir(&project))
    })?;
    Ok(project)
}
