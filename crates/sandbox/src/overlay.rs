//! Overlay mounts that are attached nowhere: a descriptor to a merged tree, gone when it is closed. For the builder's COPY and for
//! reading files of a container that does not run. Nothing can leak, whatever dies.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Mounts an overlay and returns a descriptor of its root directory (usable with openat2 and RESOLVE_IN_ROOT).
/// `upper` is `(upper, work)`; without it the tree is read-only. `lower` is topmost first.
pub fn detached(lower: &[&Path], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    let _ = (lower, upper);
    todo!()
}
