//! The warden: a process beside the spawner that ends what the spawner leaves behind when it is
//! killed.
//!
//! It holds nothing but the read end of a pipe, whose write end the spawner alone holds. A spawner
//! that ends in order says so first. One that was killed does not: then the warden waits for the
//! grace period, in which a daemon may start another spawner, and ends every process in the cgroup
//! if none has come.
//!
//! ```text
//! watching --said goodbye--> exit
//!    \--pipe closed--> waiting (grace) --another spawner holds the lock--> exit
//!                              \--nobody does--> kills all processes, removes the cgroups, exit
//! ```
//! A warden that is killed is replaced by the spawner.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use super::lock::{Lock, let_go_of_streams};
use crate::cgroup::Manager;
use crate::sys;

/// After a warden could not be started.
const RETRY: Duration = Duration::from_secs(1);
/// What an orderly spawner writes before it ends.
const GOODBYE: u8 = 1;

/// What a warden needs to know of its spawner.
#[derive(Debug, Clone)]
pub(super) struct Charge {
    /// The spawner's socket; its lock lies beside it.
    pub(super) socket: PathBuf,
    /// The name of the spawner's cgroups.
    pub(super) cgroup_name: String,
    /// How long to wait for another spawner.
    pub(super) grace: Duration,
}

/// The spawner's handle to its warden.
#[derive(Debug)]
pub(super) struct Warden {
    charge: Charge,
    running: Option<Running>,
    /// When to try again to start one.
    retry: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    pid: i32,
    /// Its end tells the warden of the spawner's. No other process may hold a copy.
    life: OwnedFd,
}

impl Warden {
    /// Starts one.
    ///
    /// # Errors
    /// pipe(2) or fork(2) failed.
    pub(super) fn start(charge: Charge) -> io::Result<Warden> {
        let running = launch(&charge)?;
        Ok(Warden {
            charge,
            running: Some(running),
            retry: None,
        })
    }

    /// Whether the process that has just ended was the warden: then there is a new one, or will be.
    pub(super) fn reaped(&mut self, pid: i32) -> bool {
        if self.running.as_ref().is_none_or(|r| r.pid != pid) {
            return false;
        }
        self.running = None;
        self.replace();
        true
    }

    /// How long until [`Warden::replace_if_due`] has something to do.
    pub(super) fn due_in(&self) -> Option<Duration> {
        self.retry
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Tries again to start one, when it is time.
    pub(super) fn replace_if_due(&mut self) {
        if self.retry.is_some_and(|at| at <= Instant::now()) {
            self.replace();
        }
    }

    fn replace(&mut self) {
        match launch(&self.charge) {
            Ok(running) => {
                self.running = Some(running);
                self.retry = None;
            }
            Err(error) => {
                eprintln!("spawner: starting its warden: {error}");
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// The spawner has ended everything; the warden has nothing to do. Returns when it is gone.
    pub(super) fn dismiss(self) {
        let Some(running) = self.running else { return };
        // A warden that is gone needs no word.
        let _ = rustix::io::write(&running.life, &[GOODBYE]);
        let _ = rustix::process::waitpid(Pid::from_raw(running.pid), WaitOptions::empty());
    }
}

fn launch(charge: &Charge) -> io::Result<Running> {
    let (ours, life) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the spawner has one thread; the child ends in `run`.
    match unsafe { sys::fork() }? {
        Some(pid) => Ok(Running { pid, life }),
        None => run(&ours, charge),
    }
}

/// The warden's life. Never returns, not even by panic.
fn run(life: &OwnedFd, charge: &Charge) -> ! {
    let done = std::panic::catch_unwind(|| watch(life, charge));
    let failed = match done {
        Ok(Ok(())) => false,
        Ok(Err(error)) => {
            eprintln!("warden: {error}");
            true
        }
        Err(_) => true,
    };
    sys::exit_now(i32::from(failed))
}

fn watch(life: &OwnedFd, charge: &Charge) -> io::Result<()> {
    // SAFETY: what the spawner's memory image owns is never dropped here, as this process ends by
    // _exit.
    unsafe { sys::close_all_but(&[life.as_fd()]) }?;
    let_go_of_streams()?;
    rustix::thread::set_name(c"wharf-warden")?;
    let mut word = [0];
    let said = loop {
        match rustix::io::read(life, &mut word) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if said > 0 {
        return Ok(());
    }
    std::thread::sleep(charge.grace);
    let lock = match Lock::try_take(&charge.socket) {
        Ok(Some(lock)) => Some(lock),
        Ok(None) => return Ok(()), // Another spawner has cleaned up, and has a warden of its own.
        // The data directory is gone, but what runs is not.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // Whatever an earlier spawner has left is killed and removed by this.
    Manager::open(&charge.cgroup_name)?.remove()?;
    match std::fs::remove_file(&charge.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    lock.map_or(Ok(()), Lock::release)
}
