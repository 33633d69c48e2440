//! The life of an instance as a pure state machine: event in, effects out.

/// State of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// The spawner was asked.
    Starting,
    /// Its process runs.
    Running,
    /// Was asked to stop; SIGKILL follows after the grace.
    Stopping,
    /// Has ended.
    Exited(wharf_sandbox::Exit),
    /// Gone.
    Removed,
}
