//! Gives an image to a process that has just executed the same program and has not run yet.
//!
//! ```text
//! seized -> execve -> checks
//!   --all hold--> its own memory unmapped -> the image's mapped -> registers -> let go: restored
//!                     \--a step fails--> killed
//!   --one does not--> let go as it is: an ordinary start
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::capture::{special, status};
use super::maps::{self, Areas, Mapping};
use super::tracee::{Registers, Tracee};
use super::{At, DESCRIPTOR, ImageError, Layout, Region, Special, python, unfit};
use crate::sys::ptrace::{self, Stop};

/// As the kernel lets a main thread's stack grow by default.
const STACK: u64 = 8 * 1024 * 1024;

/// What became of the process.
#[derive(Debug)]
pub(crate) enum Outcome {
    Restored,
    /// The process ended before its program began.
    NeverExecuted,
    /// The process starts as without an image, because of this.
    Ordinary(ImageError),
    /// The process was killed half-way.
    Killed(ImageError),
}

/// Waits until the process, which the calling thread has seized, has executed its program, and
/// gives it the image.
pub(crate) fn restore(pid: i32, image: &File) -> Outcome {
    let mut tracee = match executed(pid) {
        Ok(Some(tracee)) => tracee,
        Ok(None) => return Outcome::NeverExecuted,
        // The tracer ends, and with it the process.
        Err(error) => return Outcome::Killed(error),
    };
    let before = match tracee.registers() {
        Ok(registers) => registers,
        Err(error) => return Outcome::Killed(error),
    };
    match check(&mut tracee, image) {
        Ok(plan) => match replace(tracee, plan) {
            Ok(()) => Outcome::Restored,
            Err(error) => Outcome::Killed(error),
        },
        Err(why) => match give_up(tracee, &before) {
            Ok(()) => Outcome::Ordinary(why),
            Err(error) => Outcome::Killed(error),
        },
    }
}

fn executed(pid: i32) -> Result<Option<Tracee>, ImageError> {
    loop {
        match ptrace::wait_for_stop(pid).at("waiting for the program")? {
            Stop::Exec => break,
            Stop::Gone => return Ok(None),
            Stop::Event | Stop::Signal(_) => ptrace::go_on(pid).at("letting it run on")?,
        }
    }
    let mut tracee = Tracee::new(pid)?;
    // The rest of execve(2).
    tracee.step()?;
    Ok(Some(tracee))
}

/// Lets the program begin as if there were no image.
fn give_up(mut tracee: Tracee, before: &Registers) -> Result<(), ImageError> {
    tracee
        .call(libc::SYS_close, &[DESCRIPTOR as u64])?
        .at("closing the image")?;
    tracee.set_registers(before)?;
    tracee.let_go()
}

/// Everything that is needed once the process's own memory is gone.
struct Plan {
    layout: Layout,
    maps: Vec<Mapping>,
    vdso: Vec<Special>,
    inside_pid: i32,
    own: Areas,
}

fn check(tracee: &mut Tracee, image: &File) -> Result<Plan, ImageError> {
    let pid = tracee.pid;
    let mut layout = Layout::read(image).at("reading the image")?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).at("reading its program")?;
    if program.to_string_lossy() != layout.program {
        return unfit(format!(
            "its command is {}, not {}",
            program.display(),
            layout.program
        ));
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).at("reading its arguments")?;
    python::check_arguments(&line).map_err(ImageError::Unfit)?;
    let inside = status(pid, "NSpid").at("reading its status")?;
    let inside_pid = inside.and_then(|text| text.split_whitespace().last()?.parse().ok());
    let Some(inside_pid) = inside_pid else {
        return unfit("it has no id inside");
    };

    let maps = tracee.maps(false)?;
    let vdso: Vec<Special> = maps.iter().filter(|m| m.is_vdso()).map(special).collect();
    let shape = |all: &[Special]| -> Vec<(String, u64)> {
        let one = |s: &Special| (s.name.clone(), s.end - s.start);
        all.iter().map(one).collect()
    };
    if vdso.is_empty() || shape(&vdso) != shape(&layout.vdso) {
        return unfit("the kernel's pages are not those of the image");
    }
    // The rest of the stack, which the kernel would have let grow.
    let (stack_start, stack_end) = layout.stack;
    layout.regions.push(Region {
        start: stack_end.saturating_sub(STACK).min(stack_start),
        end: stack_start,
        protection: libc::PROT_READ | libc::PROT_WRITE,
        content: None,
    });
    // Both layouts are random; once in a long while they meet.
    let stays = |m: &&Mapping| m.name == "[stack]" || m.is_vdso();
    let moves = |s: &Special, m: &Mapping| m.overlaps(s.start, s.end) && layout.vdso != vdso;
    for mapping in maps.iter().filter(stays) {
        let meets_region = |r: &Region| !mapping.is_vdso() && mapping.overlaps(r.start, r.end);
        if layout.regions.iter().any(meets_region) || layout.vdso.iter().any(|s| moves(s, mapping))
        {
            return unfit(
                "its address space and the image's overlap (by chance; the next start will do)",
            );
        }
    }
    Ok(Plan {
        layout,
        maps,
        vdso,
        inside_pid,
        own: maps::areas(pid).at("reading its areas")?,
    })
}

/// `struct prctl_mm_map` (linux/prctl.h), without an auxiliary vector and a program's descriptor,
/// so that both stay.
fn memory_map(areas: &Areas, break_end: u64) -> Vec<u8> {
    let words = [
        areas.code.0,
        areas.code.1,
        areas.data.0,
        areas.data.1,
        areas.break_start,
        break_end,
        areas.stack,
        areas.arguments.0,
        areas.arguments.1,
        areas.environment.0,
        areas.environment.1,
        0,
        u64::from(u32::MAX) << 32,
    ];
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn replace(mut tracee: Tracee, plan: Plan) -> Result<(), ImageError> {
    let Plan {
        layout,
        maps,
        vdso,
        inside_pid,
        own,
    } = plan;
    for mapping in &maps {
        // The stack holds the arguments and the environment, which /proc shows.
        if mapping.name == "[stack]" || mapping.is_vdso() || mapping.is_vsyscall() {
            continue;
        }
        let call = [mapping.start, mapping.end - mapping.start];
        tracee.call(libc::SYS_munmap, &call)?.at("munmap")?;
    }
    if vdso != layout.vdso {
        for (from, to) in vdso.iter().zip(&layout.vdso) {
            let length = from.end - from.start;
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let call = [from.start, length, length, flags, to.start];
            tracee
                .call(libc::SYS_mremap, &call)?
                .at("moving the vdso")?;
            if from.name == "[vdso]" {
                tracee.gate_moved(from.start, to.start);
            }
        }
    }
    for region in &layout.regions {
        if region.start == region.end {
            continue;
        }
        let (kind, descriptor, offset) = match region.content {
            Some(offset) => (0, DESCRIPTOR as u64, offset),
            None => (libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, u64::MAX, 0),
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | kind;
        let call = [
            region.start,
            region.end - region.start,
            region.protection as u64,
            flags as u64,
            descriptor,
            offset,
        ];
        tracee
            .call(libc::SYS_mmap, &call)?
            .at("mapping the image")?;
    }
    tracee
        .call(libc::SYS_close, &[DESCRIPTOR as u64])?
        .at("closing the image")?;
    let mut registers = Registers(layout.registers);
    let areas = Areas {
        code: layout.areas.code,
        data: layout.areas.data,
        break_start: layout.areas.break_start,
        ..own
    };
    let place = (registers.stack_pointer() - 4096) & !15;
    let map = memory_map(&areas, layout.break_end);
    tracee
        .memory
        .write_all_at(&map, place)
        .at("writing its areas")?;
    let call = [
        libc::PR_SET_MM as u64,
        libc::PR_SET_MM_MAP as u64,
        place,
        map.len() as u64,
    ];
    tracee
        .call(libc::SYS_prctl, &call)?
        .at("telling the kernel its areas")?;
    let (head, length) = layout.robust_list;
    if head != 0 {
        let call = [head, length];
        tracee
            .call(libc::SYS_set_robust_list, &call)?
            .at("set_robust_list")?;
    }
    let (address, length, flags, signature) = layout.rseq;
    if length != 0 {
        let call = [address, length.into(), flags.into(), signature.into()];
        tracee.call(libc::SYS_rseq, &call)?.at("rseq")?;
    }
    tracee
        .memory
        .write_all_at(&inside_pid.to_le_bytes(), layout.tid_address)
        .at("writing its thread's id")?;
    ptrace::set_registers(tracee.pid, ptrace::FLOATING, &layout.floating)
        .at("setting its registers")?;
    // One byte was read; what it is, is not looked at.
    registers.answer(1);
    tracee.set_registers(&registers)?;
    tracee.let_go()
}
