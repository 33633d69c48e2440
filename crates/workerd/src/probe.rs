//! Watching a process from outside: questions to it, and what the kernel knows of it.
//!
//! Owns: when to look. Must not: decide what it means ([`crate::watchdog`]), or end anything.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::watchdog::Watchdog;

/// A clock tick of /proc (proc(5), USER_HZ: 100 on every architecture that workerd has), milliseconds.
const TICK_MS: u64 = 10;
/// `PF_EXITING` among the flags of a process (linux/sched.h).
const EXITING: u64 = 4;
/// Between looks at an unanswered question, parts of the limit.
const LOOKS: u32 = 10;
/// Between questions, parts of the limit.
const QUESTIONS: u32 = 4;

/// What a process has to do, as those see it who give it requests.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Requests that it works on.
    pub(crate) in_flight: AtomicU64,
    /// Requests that it has answered so far.
    pub(crate) answers: AtomicU64,
}

/// Resolves when the process has computed for the limit without an answer; for how long, milliseconds. `socket` is the dispatcher's.
pub(crate) async fn hung(pid: i32, socket: &Path, load: &Load, limit: Duration) -> u64 {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let mut dog = Watchdog::new(limit_ms, main_thread_ms(pid).unwrap_or(0));
    let answers = || load.answers.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(limit / QUESTIONS).await;
        // An ended process is somebody else's to notice.
        if !main_thread_ms(pid).is_some_and(|cpu| dog.asks(cpu)) {
            continue;
        }
        let answer = ask(socket);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                result = &mut answer => {
                    if let Err(error) = result {
                        tracing::debug!(pid, %error, "a workerd process could not be asked whether it answers");
                    }
                    break;
                }
                () = tokio::time::sleep(limit / LOOKS) => {}
            }
            let Some(cpu) = main_thread_ms(pid) else {
                continue;
            };
            dog.lives(cpu, answers());
            if let Some(computed) = dog.hung(cpu, load.in_flight.load(Ordering::Relaxed)) {
                return computed;
            }
        }
        if let Some(cpu) = main_thread_ms(pid) {
            dog.answered(cpu, answers());
        }
    }
}

/// Waits for the first byte of an answer.
async fn ask(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: watchdog\r\nConnection: close\r\n\r\n")
        .await?;
    stream.read_u8().await.map(drop)
}

/// CPU time of the thread that JavaScript runs in, milliseconds.
fn main_thread_ms(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
    let fields = fields(&text)?;
    Some((number(&fields, 14)? + number(&fields, 15)?) * TICK_MS)
}

/// Whether a process is on its way out, or gone. Its sockets close after this can be seen, not before.
pub(crate) fn is_ending(pid: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let flags = fields(&text).and_then(|fields| number(&fields, 9));
    flags.is_none_or(|flags| flags & EXITING != 0)
}

/// Of proc_pid_stat(5), those behind the name, which may hold anything.
fn fields(stat: &str) -> Option<Vec<&str>> {
    let (_, behind) = stat.rsplit_once(')')?;
    Some(behind.split_ascii_whitespace().collect())
}

/// A field by its number in the manual page, where the state is 3.
fn number(fields: &[&str], number: usize) -> Option<u64> {
    fields.get(number - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_this_process() {
        let pid = std::process::id() as i32;
        assert!(!is_ending(pid));
        let before = main_thread_ms(pid).unwrap();
        assert!(before < 1_000_000);
        assert!(is_ending(i32::MAX));
    }

    #[test]
    fn names_do_not_confuse() {
        let stat = "7 (a) S 1 (b) R 1 7 7 0 -1 4194308 1 0 0 0 12 34 0 0";
        let fields = fields(stat).unwrap();
        assert_eq!(number(&fields, 9), Some(4_194_308));
        assert_eq!(number(&fields, 14), Some(12));
        assert_eq!(number(&fields, 15), Some(34));
    }
}
