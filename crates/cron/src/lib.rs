//! Cron triggers: when a schedule is due (pure), and a task that calls back when it is.
//!
//! Owns: Cloudflare's cron syntax (five fields, UTC, weekdays 1-7 from Sunday, L, W, #). Must not: know what runs.
//!
//! `fields` reads the expression and names mistakes; croner finds the next time; `timetable` decides what is due (pure);
//! `runner` waits and calls back.

mod fields;
mod runner;
mod timetable;

use croner::Cron as Pattern;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

pub use self::runner::{Cron, Triggers, run};

/// How far ahead a due time is looked for.
const HORIZON_YEARS: i64 = 4;

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Schedule {
    pattern: Pattern,
}

/// Why an expression is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CronError(pub String);

impl Schedule {
    /// Parses Cloudflare's syntax (<https://developers.cloudflare.com/workers/configuration/cron-triggers/>): minute, hour, day of
    /// month, month, weekday. When both the day of month and the weekday are restricted, either one is enough.
    pub fn parse(expression: &str) -> Result<Self, CronError> {
        let wrong = |why: String| CronError(format!("cron expression \"{expression}\": {why}"));
        let plain = fields::plain(expression).map_err(wrong)?;
        let pattern = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build()
            .parse(&plain)
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self { pattern })
    }

    /// The first due time strictly after `after_ms` (Unix milliseconds), if there is one within four years.
    pub fn next_after(&self, after_ms: i64) -> Option<i64> {
        let utc = TimeZone::UTC;
        let after = utc.to_datetime(Timestamp::from_millisecond(after_ms).ok()?);
        let next = self.pattern.find_next_occurrence(&after, false).ok()?;
        let horizon = after.checked_add(HORIZON_YEARS.years()).ok()?;
        if next > horizon {
            return None;
        }
        Some(utc.to_timestamp(next).ok()?.as_millisecond())
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
