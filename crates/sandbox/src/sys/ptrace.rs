//! ptrace(2), one request a function. The caller's thread is the tracer.

use std::io;
use std::ptr::null;

use super::check;

/// NT_PRSTATUS: the general registers (elf.h).
pub(crate) const GENERAL: u32 = 1;
/// NT_PRFPREG: those of floating point.
pub(crate) const FLOATING: u32 = 2;
/// Not named by the libc crate (linux/ptrace.h).
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// More than any register set that is asked for here.
const MAX_REGISTERS: usize = 4096;

/// Why a traced process stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// This signal is about to arrive; SIGTRAP after a step.
    Signal(i32),
    /// The process has executed a program.
    Exec,
    /// Another of ptrace's events.
    Event,
    /// The process does not stand still: it has ended.
    Gone,
}

fn request(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: for the requests made here both words are numbers or point to live memory of the
    // stated size.
    check(unsafe { libc::ptrace(request, pid, address, data) })?;
    Ok(())
}

/// Traces a process without stopping it, told of execve(2); it is killed when the tracer ends.
pub(crate) fn seize(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SEIZE, pid, 0, options as usize)
}

pub(crate) fn interrupt(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)
}

pub(crate) fn go_on(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, pid, 0, 0)
}

/// Executes one instruction.
pub(crate) fn step(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, pid, 0, 0)
}

pub(crate) fn detach(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, 0)
}

/// Sends a signal to a process that is traced, so that the number names no other.
pub(crate) fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}

pub(crate) fn wait_for_stop(pid: i32) -> io::Result<Stop> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int.
        match check(libc::c_long::from(unsafe {
            libc::waitpid(pid, &raw mut status, libc::__WALL)
        })) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Stop::Gone);
    }
    Ok(match status >> 16 {
        0 => Stop::Signal(libc::WSTOPSIG(status)),
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        _ => Stop::Event,
    })
}

/// A register set, as long as the kernel has it.
pub(crate) fn registers(pid: i32, kind: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MAX_REGISTERS];
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    request(
        libc::PTRACE_GETREGSET,
        pid,
        kind as usize,
        &raw mut vector as usize,
    )?;
    bytes.truncate(vector.iov_len);
    Ok(bytes)
}

pub(crate) fn set_registers(pid: i32, kind: u32, bytes: &[u8]) -> io::Result<()> {
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    request(
        libc::PTRACE_SETREGSET,
        pid,
        kind as usize,
        &raw mut vector as usize,
    )
}

/// What a thread has registered with rseq(2): address, length, flags, signature. Length 0: nothing.
pub(crate) fn restartable_sequences(pid: i32) -> io::Result<(u64, u32, u32, u32)> {
    /// `struct ptrace_rseq_configuration`.
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        address: u64,
        length: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut found = Configuration::default();
    request(
        PTRACE_GET_RSEQ_CONFIGURATION,
        pid,
        size_of::<Configuration>(),
        &raw mut found as usize,
    )?;
    Ok((found.address, found.length, found.flags, found.signature))
}

/// get_robust_list(2): address and length.
pub(crate) fn robust_list(pid: i32) -> io::Result<(u64, u64)> {
    let mut head: *const libc::c_void = null();
    let mut length: libc::size_t = 0;
    // SAFETY: the kernel writes one pointer, which is never followed here, and one size.
    check(unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            pid,
            &raw mut head,
            &raw mut length,
        )
    })?;
    Ok((head as u64, length as u64))
}
