//! A running container, as those who ask for an application's instances see it.

/// One instance of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Unix time in milliseconds.
    pub created_ms: i64,
    /// How far it has come.
    pub state: InstanceState,
}

/// How far an instance has come, in Cloudflare's terms (contract: wrangler, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Created, and not running yet.
    Placed,
    /// Running.
    Running,
    /// Asked to end.
    Stopping,
    /// Ended, with exit code 0.
    Stopped,
    /// Ended with another exit code.
    Failed,
}

impl InstanceState {
    /// The `container_status` that wrangler prints.
    pub fn as_str(self) -> &'static str {
        match self {
            InstanceState::Placed => "placed",
            InstanceState::Running => "running",
            InstanceState::Stopping => "stopping",
            InstanceState::Stopped => "stopped",
            InstanceState::Failed => "failed",
        }
    }
}
