//! Taking the image of a process that waits in read(2) on its standard input.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::maps::{self, Mapping};
use super::tracee::{self, Tracee};
use super::{At, ImageError, Layout, ProcessImage, Region, Special, unfit};
use crate::sys::ptrace;

const PAGE: u64 = 4096;
/// A gap of untouched pages that is worth a region of its own.
const GAP: u64 = 64 * PAGE;
/// Read at a time.
const CHUNK: u64 = 1024 * 1024;
/// The most address space that is copied, bytes: beyond that it takes too long to look through.
const MAX_ADDRESSES: u64 = 16 << 30;
/// The most regions that are copied: each is a system call in every restore.
const MAX_REGIONS: usize = 8192;
/// What a read that was interrupted will answer to the kernel itself.
const INTERRUPTED: i64 = -512;
const PATIENCE: Duration = Duration::from_secs(5);

impl ProcessImage {
    /// Takes the image of the process that `parent` has forked last and that waits in read(2) on
    /// descriptor 0. It does not survive this. The calling thread is blocked for as long as the
    /// memory takes to be copied. At most `limit` bytes.
    ///
    /// # Errors
    /// What of the process does not fit into an image; what the kernel refused.
    pub fn capture(parent: i32, limit: u64) -> Result<ProcessImage, ImageError> {
        if !cfg!(target_arch = "x86_64") {
            return unfit("process images are made on x86-64 only");
        }
        let Some(pid) = child_of(parent).at("looking for the process")? else {
            return unfit("the process that is to be captured has ended");
        };
        ptrace::seize(pid).at("tracing it")?;
        let mut tracee = stopped(pid)?;
        // It says that it is ready a moment before it waits.
        let start = Instant::now();
        while !waits(&tracee)? && start.elapsed() < PATIENCE {
            ptrace::go_on(pid).at("letting it run on")?;
            std::thread::sleep(Duration::from_millis(2));
            tracee.stop()?;
        }
        // Since it is traced, its number cannot have passed to another.
        if parent_of(pid).at("looking for its parent")? != Some(parent) {
            return unfit("the process that was to be captured has ended");
        }
        capture(&mut tracee, limit)
    }
}

fn stopped(pid: i32) -> Result<Tracee, ImageError> {
    ptrace::interrupt(pid).at("stopping it")?;
    tracee::until_event(pid)?;
    Tracee::new(pid)
}

fn waits(tracee: &Tracee) -> Result<bool, ImageError> {
    let registers = tracee.registers()?;
    Ok(registers.call() == (libc::SYS_read, 0) && registers.result() == INTERRUPTED)
}

fn capture(tracee: &mut Tracee, limit: u64) -> Result<ProcessImage, ImageError> {
    let pid = tracee.pid;
    let registers = tracee.registers()?;
    if !waits(tracee)? {
        return unfit("it does not wait for its standard input");
    }
    check_parts(pid)?;
    let floating = ptrace::registers(pid, ptrace::FLOATING).at("reading its registers")?;
    let tid_address = tid_address(tracee)?;
    let robust_list = ptrace::robust_list(pid).at("get_robust_list")?;
    let rseq = ptrace::restartable_sequences(pid).at("reading its rseq")?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).at("reading its program")?;

    let maps = tracee.maps(true)?;
    let Some(stack) = maps.iter().find(|m| m.name == "[stack]") else {
        return unfit("it has no stack");
    };
    let areas = maps::areas(pid).at("reading its areas")?;
    let heap = maps.iter().rev().find(|m| m.name == "[heap]");
    let mapped = maps.iter().filter(|m| !m.is_vsyscall());
    if mapped.map(|m| m.end - m.start).sum::<u64>() > MAX_ADDRESSES {
        return unfit(format!(
            "what was imported takes more than {} GiB of addresses",
            MAX_ADDRESSES >> 30
        ));
    }
    let mut out = Out::new(limit)?;
    for mapping in &maps {
        out.add(tracee, mapping)?;
    }
    if out.regions.len() > MAX_REGIONS {
        return unfit(format!("its memory is in more than {MAX_REGIONS} pieces"));
    }
    let vdso = maps.iter().filter(|m| m.is_vdso()).map(special);
    let layout = Layout {
        program: program.to_string_lossy().into_owned(),
        vdso: vdso.collect(),
        registers: registers.0,
        floating,
        robust_list,
        rseq,
        tid_address,
        stack: (stack.start, stack.end),
        break_end: heap.map_or(areas.break_start, |heap| heap.end),
        areas,
        regions: out.regions,
    };
    out.file.set_len(out.length).at("the image's file")?;
    layout.write(&out.file, out.length).at("the image's file")?;
    let pages = OwnedFd::from(out.file);
    // Whoever begins from it could open it for writing, and would be in all that come after.
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&pages, seals).at("sealing the image")?;
    Ok(ProcessImage {
        pages,
        bytes: out.written,
    })
}

pub(super) fn special(mapping: &Mapping) -> Special {
    Special {
        name: mapping.name.clone(),
        start: mapping.start,
        end: mapping.end,
    }
}

/// A word of /proc/<pid>/status.
pub(super) fn status(pid: i32, key: &str) -> io::Result<Option<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = text.lines();
    Ok(lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned())))
}

fn parent_of(pid: i32) -> io::Result<Option<i32>> {
    Ok(status(pid, "PPid")?.and_then(|text| text.parse().ok()))
}

/// The child with the highest number.
fn child_of(parent: i32) -> io::Result<Option<i32>> {
    let mut found = None;
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Others come and go meanwhile.
        if parent_of(pid).is_ok_and(|it| it == Some(parent)) {
            found = found.max(Some(pid));
        }
    }
    Ok(found)
}

/// What an image does not hold must not be there.
fn check_parts(pid: i32) -> Result<(), ImageError> {
    let threads = status(pid, "Threads").at("reading its status")?;
    if threads.as_deref() != Some("1") {
        return unfit("it has more than one thread");
    }
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).at("reading its descriptors")? {
        let name = entry.at("reading its descriptors")?.file_name();
        let number: u32 = name.to_string_lossy().parse().unwrap_or(u32::MAX);
        if number > 2 {
            let path = format!("/proc/{pid}/fd/{number}");
            let what = std::fs::read_link(path).at("reading its descriptors")?;
            return unfit(format!(
                "what was imported keeps a file open: {}",
                what.display()
            ));
        }
    }
    Ok(())
}

/// Where the C library keeps the thread's id.
fn tid_address(tracee: &mut Tracee) -> Result<u64, ImageError> {
    // Free memory: below the stack pointer and what a function may use there without moving it.
    let place = (tracee.registers()?.stack_pointer() - 4096) & !15;
    let call = [libc::PR_GET_TID_ADDRESS as u64, place];
    tracee
        .call(libc::SYS_prctl, &call)?
        .at("asking for its thread's id (a kernel with CONFIG_CHECKPOINT_RESTORE tells)")?;
    let bytes = tracee.read(place, place + 8)?;
    let address = bytes
        .iter()
        .rev()
        .fold(0, |all, byte| all << 8 | u64::from(*byte));
    if address == 0 {
        return unfit("its C library keeps no thread's id");
    }
    Ok(address)
}

/// The file of an image on its way.
struct Out {
    file: File,
    length: u64,
    /// Bytes written, holes left out.
    written: u64,
    limit: u64,
    regions: Vec<Region>,
}

impl Out {
    fn new(limit: u64) -> Result<Out, ImageError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match memfd_create(c"wharf-process-image", flags | MemfdFlags::EXEC) {
            // A kernel before 6.3, where all are executable.
            Err(rustix::io::Errno::INVAL) => memfd_create(c"wharf-process-image", flags),
            other => other,
        };
        Ok(Out {
            file: file.at("making the image's file")?.into(),
            length: 0,
            written: 0,
            limit,
            regions: Vec::new(),
        })
    }

    fn add(&mut self, tracee: &Tracee, mapping: &Mapping) -> Result<(), ImageError> {
        if mapping.is_vdso() || mapping.is_vsyscall() || mapping.not_forked {
            return Ok(());
        }
        let writable = mapping.protection & libc::PROT_WRITE != 0;
        if mapping.shared && writable {
            return unfit(format!(
                "what was imported shares memory with others: {}",
                if mapping.name.is_empty() {
                    "anonymous"
                } else {
                    &mapping.name
                }
            ));
        }
        let of_a_file = mapping.name.starts_with('/');
        if mapping.wiped_on_fork {
            self.zeros(mapping.start, mapping.end, mapping.protection);
            return Ok(());
        }
        if of_a_file && mapping.protection != libc::PROT_NONE {
            return self.copy(tracee, mapping.start, mapping.end, mapping.protection);
        }
        // Only what was touched.
        let touched = touched(tracee.pid, mapping).at("reading its page map")?;
        let mut at = mapping.start;
        for (start, end) in touched {
            self.zeros(at, start, mapping.protection);
            self.copy(tracee, start, end, mapping.protection)?;
            at = end;
        }
        self.zeros(at, mapping.end, mapping.protection);
        Ok(())
    }

    fn zeros(&mut self, start: u64, end: u64, protection: i32) {
        if start < end {
            self.push(Region {
                start,
                end,
                protection,
                content: None,
            });
        }
    }

    fn copy(
        &mut self,
        tracee: &Tracee,
        start: u64,
        end: u64,
        protection: i32,
    ) -> Result<(), ImageError> {
        let content = Some(self.length);
        let mut at = start;
        while at < end {
            let next = end.min(at + CHUNK);
            let mut bytes = vec![0; (next - at) as usize];
            if tracee.memory.read_exact_at(&mut bytes, at).is_err() {
                // Beyond the end of a mapped file there is nothing, and nothing that could be read.
                for (page, bytes) in (0..).zip(bytes.chunks_mut(PAGE as usize)) {
                    if tracee
                        .memory
                        .read_exact_at(bytes, at + page * PAGE)
                        .is_err()
                    {
                        bytes.fill(0);
                    }
                }
            }
            for (page, bytes) in (0..).zip(bytes.chunks(PAGE as usize)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    self.written += PAGE;
                    let place = self.length + page * PAGE;
                    self.file
                        .write_all_at(bytes, place)
                        .at("writing the image")?;
                }
            }
            if self.written > self.limit {
                return unfit(format!(
                    "what was imported is larger than {} MiB",
                    self.limit >> 20
                ));
            }
            self.length += next - at;
            at = next;
        }
        self.push(Region {
            start,
            end,
            protection,
            content,
        });
        Ok(())
    }

    /// Adds a region, joined to its neighbour where the two are one piece.
    fn push(&mut self, region: Region) {
        if let Some(last) = self.regions.last_mut()
            && last.end == region.start
            && last.protection == region.protection
            && match (last.content, region.content) {
                (None, None) => true,
                (Some(a), Some(b)) => a + (last.end - last.start) == b,
                _ => false,
            }
        {
            last.end = region.end;
            return;
        }
        self.regions.push(region);
    }
}

/// Ranges of pages that are there, in memory or in swap; small gaps count as there.
fn touched(pid: i32, mapping: &Mapping) -> io::Result<Vec<(u64, u64)>> {
    const THERE: u64 = 3 << 62;
    let file = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut all: Vec<(u64, u64)> = Vec::new();
    let mut entries = [0; 8 * 512];
    let mut at = mapping.start;
    while at < mapping.end {
        let pages = ((mapping.end - at) / PAGE).min(512);
        let bytes = &mut entries[..pages as usize * 8];
        file.read_exact_at(bytes, at / PAGE * 8)?;
        for (page, entry) in (0..).zip(bytes.chunks_exact(8)) {
            let entry = entry
                .iter()
                .rev()
                .fold(0, |all, b| all << 8 | u64::from(*b));
            if entry & THERE == 0 {
                continue;
            }
            let start = at + page * PAGE;
            match all.last_mut() {
                Some((_, end)) if start - *end < GAP => *end = start + PAGE,
                _ => all.push((start, start + PAGE)),
            }
        }
        at += pages * PAGE;
    }
    Ok(all)
}
