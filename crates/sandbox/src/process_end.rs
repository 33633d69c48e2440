//! The end of a process that is not the spawner's: a client at the other side of a socket, say.

use std::io;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

/// Waits for the end of a process; returns at once if it has ended. The caller vouches that the
/// number is not another process's by now.
///
/// # Errors
/// No such number is possible, or no descriptors are left.
pub async fn process_end(pid: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let process = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // SAFETY: the AsyncFd owns the descriptor, which nothing else closes, so it stays open and the
    // same while registered.
    let process = unsafe { AsyncFd::register(process)? };
    process.readable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_end_is_seen_while_waiting_and_afterwards() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let waiting = tokio::spawn(process_end(pid));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        child.kill().unwrap();
        waiting.await.unwrap().unwrap();
        child.wait().unwrap();
        process_end(pid).await.unwrap();
    }
}
