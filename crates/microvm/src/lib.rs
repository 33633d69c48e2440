//! Isolation class microvm: a container's processes in a virtual machine of their own, on a kernel
//! of their own.
//!
//! Owns: the machine (QEMU's microvm) and its server of files, the agents outside and inside, what
//! they say to each other, and the guest's initial RAM disk. Must not: build walls. The sandbox
//! crate puts [`keep`] and its children behind a container's; inside the machine the container's
//! processes are started by the same sandbox, without user namespaces.
//!
//! ```text
//!  host   spawner --clone--> keep (the container's first process) --+-- virtiofsd   its files
//!                    \-----> exec (one for each process inside)     +-- QEMU
//!                              |                                    |     | virtio-serial
//!                              +------------ a socket --------------+     |
//!  guest                                  the container <-- spawner <-- agent (PID 1)
//! ```
//! - One byte stream connects `keep` and the agent inside; [`mux`] makes streams of it, [`wire`]
//!   says what is in them.
//! - **Processes**: standard streams, signals and the end travel in a stream for each. `exec`
//!   speaks to the guest through `keep`, which only copies.
//! - **Network**: inside, the container has a namespace like any other's. What it connects to is
//!   connected to by `keep`, in the container's namespace outside, where all rules hold; ports on
//!   which it listens are listened on there.
//! - **Files**: the container's root by virtiofs; nothing is kept back in the guest that a snapshot
//!   would not find.

mod exec;
mod guest;
pub mod initrd;
mod keep;
mod mux;
mod outside;
pub mod package;
mod wire;

use std::process::ExitCode;

use wharf_sandbox::microvm::{EXEC, KEEP};

/// Second argument: of the guest's first process.
pub(crate) const GUEST: &str = "guest";
/// Second argument: of the guest's spawner.
pub(crate) const SPAWNER: &str = "spawner";

/// The executable's main, for arguments after [`wharf_sandbox::microvm::VERB`]: called before it
/// starts threads.
pub fn run(args: &[String]) -> ExitCode {
    match args.first().map(String::as_str) {
        Some(KEEP) => keep::run(),
        Some(EXEC) => exec::run(),
        Some(GUEST) => guest::run(),
        Some(SPAWNER) => wharf_sandbox::spawner::run(args),
        other => {
            eprintln!("wharf: {other:?} is nothing that an agent of virtual machines does");
            ExitCode::from(2)
        }
    }
}
