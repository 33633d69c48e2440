//! Class gvisor: `runsc` of the daemon's PATH.

use std::path::PathBuf;
use std::time::Duration;

use wharf_sandbox::IsolationSpec;

use super::find;
use crate::EngineError;

/// What gVisor needs after it stood still, before its container is asked: of the connections made
/// at once, 6 in 30 were dropped inside without a byte, of those after 20 ms one, after 60 ms none
/// (BusyBox's httpd, Debian 12's runsc). Requests wait meanwhile.
pub(super) const WAKES_WITHIN: Duration = Duration::from_millis(60);

pub(super) fn check() -> Result<(), EngineError> {
    runsc().map(drop)
}

/// Blocks: it looks at files.
pub(super) fn spec() -> Result<IsolationSpec, EngineError> {
    Ok(IsolationSpec::Gvisor { runsc: runsc()? })
}

fn runsc() -> Result<PathBuf, EngineError> {
    find("runsc", std::env::var_os("PATH").as_deref()).ok_or_else(|| {
        EngineError::Invalid(
            "isolation class gvisor needs gVisor's runsc, which is not in the daemon's PATH: apt-get install runsc"
                .to_owned(),
        )
    })
}
