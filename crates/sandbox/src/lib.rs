//! Processes behind walls: namespaces, cgroups, seccomp, overlay roots, and the sockets opened
//! inside.
//!
//! Owns: every system call that needs `unsafe`, the spawner process and its protocol. Must not:
//! know of images, scripts, HTTP or policy. Callers say exactly what to run and within which
//! limits.
//!
//! Who runs what: the daemon starts one small single-threaded *spawner* (this executable again,
//! with a hidden first argument) and asks it for processes over a Unix socket. The spawner is the
//! parent of every container and of every workerd; it holds their exit codes and the read ends of
//! their output while the daemon is away, and ends them all when no daemon has come back within its
//! grace period. So `kill -9` of the daemon loses nothing and leaks nothing.

pub mod cgroup;
pub mod disk;
pub mod microvm;
pub mod netns;
pub mod overlay;
pub mod spawner;
pub mod spec;
pub mod stopped;

mod child;
mod exhaustion;
mod exit;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod mount;
mod process_end;
mod process_image;
mod received;
mod seccomp;
mod sys;
mod userns;
#[cfg(feature = "weak")]
pub mod weak;
#[cfg(not(feature = "weak"))]
mod weak;

pub use self::cgroup::Usage;
pub use self::child::class::IsolationClass;
pub use self::disk::{Disk, DiskUsage};
pub use self::exhaustion::is_exhaustion;
pub use self::exit::Exit;
pub use self::process_end::process_end;
pub use self::process_image::{ImageError, PYTHON_RESUME, ProcessImage};
pub use self::received::received;
pub use self::spawner::{
    ExecProcess, Process, SpawnError, Spawner, SpawnerConfig, Streams, Survivor, Terminal,
};
pub use self::spec::{
    Capabilities, DiskMount, ExecSpec, ExecStreams, IsolationSpec, Limits, Machine, Mount,
    ProcessSpec, Root, SpawnFds, TerminalSize, Tmpfs,
};
pub use self::userns::{IdRanges, files_as, root_of_process};
