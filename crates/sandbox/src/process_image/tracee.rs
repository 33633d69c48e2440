//! Another process that stands still, by ptrace(2): its registers, its memory, and system calls in
//! its place.
//!
//! Must not: let the process execute an instruction of its own: each step is the one `syscall`
//! instruction of the kernel's vdso.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::maps::{self, Mapping};
use super::{At, ImageError, unfit};
use crate::sys::ptrace;

/// `syscall`.
const SYSTEM_CALL: [u8; 2] = [0x0f, 0x05];
/// Words of `struct user_regs_struct` (sys/user.h).
const RAX: usize = 10;
const ORIG_RAX: usize = 15;
const RIP: usize = 16;
const RSP: usize = 19;
const ARGUMENTS: [usize; 6] = [14, 13, 12, 7, 9, 8];

/// The general registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers(pub(super) Vec<u8>);

impl Registers {
    fn get(&self, word: usize) -> u64 {
        let bytes = self.0.get(word * 8..word * 8 + 8);
        bytes.map_or(0, |b| {
            b.iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        })
    }

    fn set(&mut self, word: usize, value: u64) {
        if let Some(bytes) = self.0.get_mut(word * 8..word * 8 + 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The system call that it is in, by number, and its first argument.
    pub(super) fn call(&self) -> (i64, u64) {
        (self.get(ORIG_RAX) as i64, self.get(ARGUMENTS[0]))
    }

    /// What the system call has answered so far.
    pub(super) fn result(&self) -> i64 {
        self.get(RAX) as i64
    }

    pub(super) fn stack_pointer(&self) -> u64 {
        self.get(RSP)
    }

    /// Makes the system call that it is in return this, as if nothing had interrupted it.
    pub(super) fn answer(&mut self, value: u64) {
        self.set(RAX, value);
        self.set(ORIG_RAX, u64::MAX);
    }
}

/// Waits until a process that was told to stop does.
pub(super) fn until_event(pid: i32) -> Result<(), ImageError> {
    loop {
        match ptrace::wait_for_stop(pid).at("waiting for it")? {
            ptrace::Stop::Event => return Ok(()),
            ptrace::Stop::Gone => return unfit("it was ended meanwhile"),
            ptrace::Stop::Signal(_) | ptrace::Stop::Exec => {
                ptrace::go_on(pid).at("letting it run on")?
            }
        }
    }
}

/// A process that this thread traces. Killed when it is dropped, unless let go before.
pub(super) struct Tracee {
    pub(super) pid: i32,
    pub(super) memory: File,
    /// Where `syscall` is.
    gate: u64,
    /// Signals that arrived meanwhile, for the end.
    signals: Vec<i32>,
    ended: bool,
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // With it, its half-made memory. Its tracer must reap it too, or its parent never learns of
        // the end.
        if !self.ended && ptrace::signal(self.pid, libc::SIGKILL).is_ok() {
            while let Ok(stop) = ptrace::wait_for_stop(self.pid) {
                if stop == ptrace::Stop::Gone {
                    break;
                }
            }
        }
    }
}

impl Tracee {
    /// Takes a process that is traced and stands still.
    pub(super) fn new(pid: i32) -> Result<Tracee, ImageError> {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .at("opening its memory")?;
        let mut tracee = Tracee {
            pid,
            memory,
            gate: 0,
            signals: Vec::new(),
            ended: false,
        };
        let maps = tracee.maps(false)?;
        let vdso = maps.iter().find(|m| m.name == "[vdso]");
        let Some(vdso) = vdso else {
            return unfit("it has no vdso");
        };
        let code = tracee.read(vdso.start, vdso.end)?;
        let place = code.windows(2).position(|pair| pair == SYSTEM_CALL);
        let Some(place) = place else {
            return unfit("the kernel's vdso has no system call");
        };
        tracee.gate = vdso.start + place as u64;
        Ok(tracee)
    }

    /// Once more, after it has been let run on.
    pub(super) fn stop(&mut self) -> Result<(), ImageError> {
        ptrace::interrupt(self.pid).at("stopping it")?;
        until_event(self.pid)
    }

    pub(super) fn maps(&self, flags: bool) -> Result<Vec<Mapping>, ImageError> {
        maps::of(self.pid, flags).at("reading its mappings")
    }

    pub(super) fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = vec![0; (end - start) as usize];
        self.memory
            .read_exact_at(&mut bytes, start)
            .at("reading its memory")?;
        Ok(bytes)
    }

    pub(super) fn registers(&self) -> Result<Registers, ImageError> {
        let general = ptrace::registers(self.pid, ptrace::GENERAL).at("reading its registers")?;
        Ok(Registers(general))
    }

    pub(super) fn set_registers(&self, registers: &Registers) -> Result<(), ImageError> {
        ptrace::set_registers(self.pid, ptrace::GENERAL, &registers.0).at("setting its registers")
    }

    /// The vdso has been moved by this much.
    pub(super) fn gate_moved(&mut self, from: u64, to: u64) {
        self.gate = self.gate.wrapping_sub(from).wrapping_add(to);
    }

    /// Executes one instruction, or ends the system call that it is in.
    pub(super) fn step(&mut self) -> Result<(), ImageError> {
        loop {
            ptrace::step(self.pid).at("a step of it")?;
            match ptrace::wait_for_stop(self.pid).at("waiting for it")? {
                ptrace::Stop::Signal(libc::SIGTRAP) => return Ok(()),
                ptrace::Stop::Signal(signal) => self.signals.push(signal),
                ptrace::Stop::Exec | ptrace::Stop::Event => {}
                ptrace::Stop::Gone => {
                    self.ended = true;
                    return unfit("it was ended meanwhile");
                }
            }
        }
    }

    /// A system call in its place. The error of the call is the outer one's.
    pub(super) fn call(
        &mut self,
        number: i64,
        arguments: &[u64],
    ) -> Result<io::Result<u64>, ImageError> {
        let mut registers = self.registers()?;
        registers.set(RIP, self.gate);
        registers.set(RAX, number as u64);
        registers.set(ORIG_RAX, u64::MAX);
        for (place, word) in ARGUMENTS.into_iter().enumerate() {
            registers.set(word, arguments.get(place).copied().unwrap_or(0));
        }
        self.set_registers(&registers)?;
        self.step()?;
        let after = self.registers()?;
        if after.get(RIP) != self.gate + SYSTEM_CALL.len() as u64 {
            return unfit("a system call in its place went astray");
        }
        let result = after.get(RAX) as i64;
        Ok(match result {
            -4095..0 => Err(io::Error::from_raw_os_error(-result as i32)),
            value => Ok(value as u64),
        })
    }

    /// Lets it run.
    pub(super) fn let_go(mut self) -> Result<(), ImageError> {
        self.ended = true;
        for signal in std::mem::take(&mut self.signals) {
            ptrace::signal(self.pid, signal).at("handing on a signal")?;
        }
        ptrace::detach(self.pid).at("letting go of it")
    }
}
