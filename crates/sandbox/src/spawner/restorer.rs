//! A process beside a new container that gives its program a process image, since ptrace(2) wants
//! waiting that the spawner's loop must not do.
//!
//! ```text
//! spawner --fork--> restorer: seizes the new process -> opens its gate -> waits for its execve
//!                              |                         -> restores -> ends
//!                              \--cannot--> leaves the gate shut: an ordinary start
//! ```
//! It holds the report pipe until then, so that a start is not told before. Nothing of it is inside
//! the container.

use std::fs::File;
use std::os::fd::BorrowedFd;

use crate::child::MAX_REPORT;
use crate::process_image::{Outcome, restore};
use crate::sys::{self, ptrace};

/// What a report has in place of an exit code where the process runs, but not from the image, for
/// the reason that follows.
pub(super) const ORDINARY_START: u8 = 0;
/// The process was killed half-way.
const BROKEN: u8 = 125;

/// Starts the restorer of this process. If that fails the gate's write end is dropped with the
/// caller's, and the start is an ordinary one.
pub(super) fn start(
    pid: i32,
    image: BorrowedFd<'_>,
    opener: BorrowedFd<'_>,
    report: BorrowedFd<'_>,
) {
    // SAFETY: the spawner has one thread; the child ends in `run`.
    match unsafe { sys::fork() } {
        Ok(Some(_)) => {}
        Ok(None) => run(pid, image, opener, report),
        Err(error) => tell(report, ORDINARY_START, &format!("fork: {error}")),
    }
}

fn run(pid: i32, image: BorrowedFd<'_>, opener: BorrowedFd<'_>, report: BorrowedFd<'_>) -> ! {
    let done = std::panic::catch_unwind(|| {
        let image = image.try_clone_to_owned().map(File::from);
        let seized = image.and_then(|image| ptrace::seize(pid).map(|()| image));
        let image = match seized {
            Ok(image) => image,
            Err(error) => {
                tell(
                    report,
                    ORDINARY_START,
                    &format!("tracing the process: {error}"),
                );
                return;
            }
        };
        if rustix::io::write(opener, &[1]).is_err() {
            return; // It has ended already, and says why itself.
        }
        match restore(pid, &image) {
            Outcome::Restored | Outcome::NeverExecuted => {}
            Outcome::Ordinary(why) => tell(report, ORDINARY_START, &why.to_string()),
            Outcome::Killed(why) => tell(report, BROKEN, &format!("restoring its memory: {why}")),
        }
    });
    sys::exit_now(i32::from(done.is_err()))
}

fn tell(report: BorrowedFd<'_>, code: u8, text: &str) {
    let mut bytes = vec![code];
    bytes.extend_from_slice(text.as_bytes());
    bytes.truncate(MAX_REPORT);
    let _ = rustix::io::write(report, &bytes); // Without a reader there is nobody to tell.
}
