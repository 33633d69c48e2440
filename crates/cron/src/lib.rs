//! Cron triggers: when a schedule is due (pure), and a task that calls back when it is.
//!
//! Owns: Cloudflare's cron syntax (five fields, UTC, weekdays 1-7 from Sunday, L, W, #). Must not: know what runs.

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Schedule {}

/// Why an expression is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CronError(pub String);

impl Schedule {
    /// Parses Cloudflare's syntax.
    pub fn parse(expression: &str) -> Result<Self, CronError> {
        let _ = expression;
        todo!()
    }
    /// The first due time strictly after `after_ms` (Unix milliseconds), if there is one within four years.
    pub fn next_after(&self, after_ms: i64) -> Option<i64> {
        let _ = after_ms;
        todo!()
    }
}
