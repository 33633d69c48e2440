//! The kernel that Debian ships for virtual machines, in `target/tools/guest`: of `cargo xtask guest`, and of the tests of isolation class microvm.

#[path = "../../crates/microvm/src/package.rs"]
#[expect(unreachable_pub, reason = "it is a public module of its own crate")]
mod package;

use anyhow::Result;

pub(crate) use self::package::Package;
use crate::progress::step;
use crate::{debian, setup};

/// Gets it, if it is not there.
pub(crate) fn get() -> Result<Package> {
    debian::install(&[debian::KMOD])?;
    let directory = setup::tools_dir().join("guest");
    step("the guest's kernel", || package::fetch(&directory))
}
