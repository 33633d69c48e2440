//! A process's memory, from which other processes begin: what an interpreter has loaded is there
//! without being loaded again.
//!
//! Owns: taking the image of a waiting process ([`ProcessImage::capture`]), and giving it to a
//! program that has just been executed ([`restore`]). Must not: know what is loaded or why; trust
//! anything in an image.
//!
//! ```text
//! a process waits in read(0) --capture--> image (sealed memory file)
//!   --restore, any number of times--> another process returns from read(0)
//! ```
//! An image is bytes and registers, nothing that a process may do. It goes into a process that is
//! behind all walls of its own already and that has executed the same program: namespaces, cgroups,
//! ids, capabilities and filters are those of any start, and nothing of the process that was
//! captured lives on. So it need not be trusted: whatever it holds, the new process could have done
//! itself.
//!
//! What a captured process may consist of: one thread, no descriptors but the standard ones, no
//! writable memory that others share. All else is a reason not to capture. Pages that a fork would
//! not hand on (MADV_WIPEONFORK) are not handed on here either, so that random number generators
//! which mark themselves that way begin anew.

mod capture;
mod maps;
mod python;
mod restore;
mod tracee;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

pub use self::python::RESUME as PYTHON_RESUME;
pub(crate) use self::restore::{Outcome, restore};

/// The descriptor at which a new process has the image until it is restored, closed in every case
/// before the program's first instruction.
pub(crate) const DESCRIPTOR: i32 = 3;
/// A layout is some 100 bytes a region; a process has at most 65530 of these (vm.max_map_count).
const MAX_LAYOUT: u64 = 16 * 1024 * 1024;

/// A captured process. Gone with the last copy of its descriptor.
#[derive(Debug)]
pub struct ProcessImage {
    pages: OwnedFd,
    bytes: u64,
}

impl ProcessImage {
    /// Memory that it holds, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl AsFd for ProcessImage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pages.as_fd()
    }
}

/// What an image's file says of itself, behind the pages.
#[derive(Debug, Serialize, Deserialize)]
struct Layout {
    /// The program, as it is called inside.
    program: String,
    regions: Vec<Region>,
    /// The kernel's own pages, lowest first: they are moved, not copied.
    vdso: Vec<Special>,
    /// NT_PRSTATUS and NT_PRFPREG, as ptrace(2) gives them.
    registers: Vec<u8>,
    floating: Vec<u8>,
    /// set_robust_list(2).
    robust_list: (u64, u64),
    /// Address, length, flags, signature; length 0: none.
    rseq: (u64, u32, u32, u32),
    /// Where the C library keeps the thread's id.
    tid_address: u64,
    stack: (u64, u64),
    areas: maps::Areas,
    /// brk(2).
    break_end: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Region {
    start: u64,
    end: u64,
    /// PROT_*.
    protection: i32,
    /// Offset in the file; `None`: zeros.
    content: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Special {
    name: String,
    start: u64,
    end: u64,
}

impl Layout {
    /// Appends the layout to the pages.
    fn write(&self, file: &File, at: u64) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        file.write_all_at(&text, at)?;
        let end = at + text.len() as u64;
        file.write_all_at(&at.to_le_bytes(), end)
    }

    fn read(file: &File) -> io::Result<Layout> {
        let damaged = || io::Error::other("the process image is damaged");
        let length = file.metadata()?.len();
        let mut at = [0; 8];
        let end = length.checked_sub(8).ok_or_else(damaged)?;
        file.read_exact_at(&mut at, end)?;
        let at = u64::from_le_bytes(at);
        let size = end.checked_sub(at).filter(|size| *size <= MAX_LAYOUT);
        let mut text = vec![0; size.ok_or_else(damaged)? as usize];
        file.read_exact_at(&mut text, at)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Why a process cannot be captured, or cannot begin from an image; for a person.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The process is at fault: its author can change it.
    #[error("{0}")]
    Unfit(String),
    /// The kernel said no.
    #[error("{step}: {error}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

/// Names the step in an error.
trait At<T> {
    fn at(self, step: &'static str) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::System {
            step,
            error: error.into(),
        })
    }
}

fn unfit<T>(text: impl Into<String>) -> Result<T, ImageError> {
    Err(ImageError::Unfit(text.into()))
}
