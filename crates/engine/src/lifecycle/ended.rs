//! Who or what ended a process. Pure.
//!
//! Known from what was asked before (a stop, a removal, a signal) and from the exit itself; what
//! neither explains, the process did by itself.

use serde::{Deserialize, Serialize};
use wharf_sandbox::Exit;

/// Who or what ended a process, or is about to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Nobody else: it returned, crashed, or was killed from within.
    Itself,
    /// The kernel, because the memory limit was reached.
    OutOfMemory,
    /// A signal that its owner sent and that asks for an end or forces it.
    Signal,
    /// A stop that was asked for.
    Stop,
    /// Its removal (`destroy()`, `docker rm -f`).
    Destroy,
    /// A rollout: its application has another image now.
    Rollout,
    /// The `hardTimeout` of its start.
    HardTimeout,
    /// Nobody asked for it for too long after its owner had died.
    Reaper,
    /// The deletion of its application, or of everything its owner had.
    Deletion,
    /// The clean end of the daemon.
    Daemon,
    /// Nobody knows: the machine or the spawner ended too.
    Unseen,
}

impl EndedBy {
    /// For a person, behind "ended by".
    pub fn describe(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::OutOfMemory => "the kernel: out of memory",
            Self::Signal => "a signal that was asked for",
            Self::Stop => "a stop that was asked for",
            Self::Destroy => "its removal",
            Self::Rollout => "a rollout of another image",
            Self::HardTimeout => "its hardTimeout",
            Self::Reaper => "the reaper: nobody asked for it any more",
            Self::Deletion => "the deletion of its script or application",
            Self::Daemon => "the end of the daemon",
            Self::Unseen => "something that nobody saw",
        }
    }

    /// Whether whoever uses the container has brought it about, or the container itself: then the
    /// exit code says it all.
    pub fn is_expected(self) -> bool {
        matches!(
            self,
            Self::Itself | Self::Signal | Self::Stop | Self::Destroy
        )
    }
}

/// SIGHUP, SIGINT, SIGQUIT, SIGTERM.
const ASK_FOR_AN_END: [i32; 4] = [1, 2, 3, 15];

/// `asked`: the first stop or removal of this process; `signal`: the last signal that its owner
/// sent.
pub(super) fn cause(exit: &Exit, asked: Option<EndedBy>, signal: Option<i32>) -> EndedBy {
    // A process that is told to end may still run out of memory on the way.
    if exit.oom_killed {
        return EndedBy::OutOfMemory;
    }
    if let Some(asked) = asked {
        return asked;
    }
    match signal {
        Some(sent) if exit.signal == Some(sent) || ASK_FOR_AN_END.contains(&sent) => {
            EndedBy::Signal
        }
        _ => EndedBy::Itself,
    }
}

/// How a process ended, for people.
pub fn describe(exit: &Exit, by: Option<EndedBy>) -> String {
    let mut text = match exit.signal {
        Some(signal) => format!("exit code {} (signal {signal})", exit.code),
        None => format!("exit code {}", exit.code),
    };
    if let Some(by) = by.filter(|by| *by != EndedBy::Itself) {
        text.push_str(", ended by ");
        text.push_str(by.describe());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, signal: Option<i32>, oom_killed: bool) -> Exit {
        Exit {
            code,
            signal,
            oom_killed,
        }
    }

    #[test]
    fn the_cause_is_known() {
        let killed = exit(137, Some(9), false);
        for (exit, asked, signal, expected) in [
            (exit(0, None, false), None, None, EndedBy::Itself),
            (exit(139, Some(11), false), None, None, EndedBy::Itself),
            (killed, None, None, EndedBy::Itself),
            (killed, None, Some(9), EndedBy::Signal),
            // It has ended because it was told to, with a code of its own.
            (exit(0, None, false), None, Some(15), EndedBy::Signal),
            // A signal that asks for nothing of the kind.
            (exit(1, None, false), None, Some(10), EndedBy::Itself),
            (killed, Some(EndedBy::Rollout), Some(15), EndedBy::Rollout),
            (exit(137, Some(9), true), None, None, EndedBy::OutOfMemory),
            (
                exit(137, Some(9), true),
                Some(EndedBy::Stop),
                None,
                EndedBy::OutOfMemory,
            ),
        ] {
            assert_eq!(cause(&exit, asked, signal), expected, "{exit:?} {asked:?}");
        }
    }

    #[test]
    fn an_end_is_described() {
        assert_eq!(
            describe(&exit(3, None, false), Some(EndedBy::Itself)),
            "exit code 3"
        );
        assert_eq!(
            describe(&exit(137, Some(9), true), Some(EndedBy::OutOfMemory)),
            "exit code 137 (signal 9), ended by the kernel: out of memory"
        );
    }
}
