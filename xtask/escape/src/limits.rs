//! Floods: what a container takes without end must end at its limit, not at the machine's. Where the limit is taken away, the probe itself stops, at an
//! amount that does no harm and that the limit would not have allowed.

use anyhow::Result;
use wharf_sandbox::weak::Wall;

use crate::case::{Case, Side, Walls};
use crate::world::{Setup, World};

const MEMORY: u64 = 24 << 20;
const ALL: &str = "all of it";

pub(crate) fn cases() -> Vec<Case> {
    let many: fn(&World, Side) -> Vec<String> = |_, _| vec!["200".into()];
    // MiB.
    let much: fn(&World, Side) -> Vec<String> = |_, _| vec!["60".into()];
    let memory = |name, about| {
        Case::inside(name, about)
            .arguments(much)
            .change(memory)
            .expect(&["killed by the limit"])
            .without("no limit on memory", &[ALL])
    };
    let processes = |name, about| {
        Case::inside(name, about)
            .arguments(many)
            .change(processes)
            .expect(&["stopped: EAGAIN"])
            .without("no limit on processes", &[ALL])
    };
    let disk = |name, about| {
        Case::inside(name, about)
            .change(disk)
            .expect(&["stopped: ENOSPC"])
            .without("no disk of its own", &[ALL])
    };
    vec![
        Case::inside("control-disk", "a file that fits on the disk")
            .probe("disk-fill")
            .arguments(|_, _| vec!["2".into()])
            .change(|world, _, setup| world.on_disk(setup))
            .control(&[ALL]),
        processes("fork-bomb", "processes without end"),
        processes("thread-bomb", "threads without end").emulated(),
        memory("memory-bomb", "memory without end"),
        memory("shm-bomb", "memory by /dev/shm")
            .expect(&["killed by the limit", "stopped: ENOSPC"]),
        memory("memfd-bomb", "memory by files without names"),
        memory("segment-bomb", "memory by System V segments"),
        memory("socket-buffers", "memory by what nobody reads from sockets"),
        memory("pipe-buffers", "memory by what nobody reads from pipes"),
        memory("page-cache", "the machine's memory by writing files")
            .arguments(|_, _| vec!["60".into(), (MEMORY >> 20).to_string()])
            .expect(&["within the limit"])
            .without("no limit on memory", &["beyond"]),
        Case::inside("fd-flood", "open files without end")
            .arguments(|_, _| vec!["1000".into()])
            .change(|_, side, setup| {
                setup.spec.limits.nofile = Some(if side == Side::Held { 256 } else { 4096 });
                Ok(())
            })
            .expect(&["stopped: EMFILE"])
            .without("a greater limit on open files", &[ALL]),
        Case::inside("more-open-files", "raise the limit on open files")
            .change(|_, _, setup| {
                setup.spec.limits.nofile = Some(256);
                Ok(())
            })
            .weak(
                "all capabilities, no user namespace",
                Walls::privileged(&[]),
                &["worked"],
            )
            .needs_capability("CAP_SYS_RESOURCE", 24),
        disk("inode-flood", "files without end").arguments(|_, _| vec!["1500".into()]),
        disk("disk-fill", "a file without end").arguments(|_, _| vec!["60".into()]),
        Case::inside(
            "pty-flood",
            "terminals without end, of which the machine has some 3000",
        )
        .emulated()
        .arguments(|_, _| vec!["400".into()])
        .expect(&["stopped: ENOSPC"])
        .weak(
            "no limit on terminals",
            Walls::without(&[Wall::Terminals]),
            &[ALL],
        ),
    ]
}

fn memory(_: &World, side: Side, setup: &mut Setup) -> Result<()> {
    setup.spec.limits.memory_bytes = (side == Side::Held).then_some(MEMORY);
    setup.spec.limits.nofile = Some(4096);
    Ok(())
}

fn processes(_: &World, side: Side, setup: &mut Setup) -> Result<()> {
    setup.spec.limits.pids = (side == Side::Held).then_some(64);
    Ok(())
}

fn disk(world: &World, side: Side, setup: &mut Setup) -> Result<()> {
    match side {
        Side::Held => world.on_disk(setup),
        Side::Weak => Ok(()),
    }
}
