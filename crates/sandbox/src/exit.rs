//! How a process ended, as daemon, spawner and the agent of a virtual machine tell it.

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit code; 128 + n after signal n (Docker's convention).
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the cgroup's memory limit killed a process in it.
    pub oom_killed: bool,
}
