//! Which triggers are due: the decisions, without a clock.
//!
//! Owns: what "missed" means. Must not: wait, run, persist.
//!
//! Per trigger: `waiting(next) ──now >= next──> due ──> waiting(next after now)`, and meanwhile `running` until `finished`.
//! A due time that comes while the one before still runs is skipped, as is one that was noticed more than a minute late (the node
//! was down or asleep): nothing is caught up, nothing piles up, nothing runs twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Cron, Schedule};

/// A due time that is older than this when it is noticed was missed, milliseconds.
const LATE_MS: i64 = 60_000;

/// Script and expression.
pub(crate) type Key = (String, String);

/// What came of a due time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// Run it.
    Run(Key, i64),
    /// The one before still runs.
    Busy(Key, i64),
    /// Noticed too late.
    Missed(Key, i64),
}

#[derive(Debug)]
struct Row {
    schedule: Schedule,
    /// `None`: never again.
    next_ms: Option<i64>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Timetable {
    rows: BTreeMap<Key, Row>,
    running: BTreeSet<Key>,
}

impl Timetable {
    /// Takes a new list; triggers that stay keep their next time. Returns expressions that cannot be read.
    pub(crate) fn update(&mut self, list: &[Cron], now_ms: i64) -> Vec<(Key, crate::CronError)> {
        let mut refused = Vec::new();
        let mut rows = BTreeMap::new();
        for cron in list {
            let key = (cron.script.clone(), cron.cron.clone());
            if let Some(row) = self.rows.remove(&key) {
                rows.insert(key, row);
                continue;
            }
            match Schedule::parse(&cron.cron) {
                Ok(schedule) => {
                    // The clock may have been set back since the last run.
                    let after = cron.last_run_ms.map_or(now_ms, |last| last.max(now_ms));
                    let next_ms = schedule.next_after(after);
                    rows.insert(key, Row { schedule, next_ms });
                }
                Err(error) => refused.push((key, error)),
            }
        }
        self.rows = rows;
        refused
    }

    /// What has become due. Each due time is returned once.
    pub(crate) fn due(&mut self, now_ms: i64) -> Vec<Due> {
        let mut out = Vec::new();
        for (key, row) in &mut self.rows {
            let Some(due) = row.next_ms.filter(|next| *next <= now_ms) else {
                continue;
            };
            row.next_ms = row.schedule.next_after(now_ms);
            out.push(if now_ms - due > LATE_MS {
                Due::Missed(key.clone(), due)
            } else if self.running.insert(key.clone()) {
                Due::Run(key.clone(), due)
            } else {
                Due::Busy(key.clone(), due)
            });
        }
        out
    }

    /// The run of a trigger is over.
    pub(crate) fn finished(&mut self, key: &Key) {
        self.running.remove(key);
    }

    /// When something becomes due next.
    pub(crate) fn next_ms(&self) -> Option<i64> {
        self.rows.values().filter_map(|row| row.next_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn every_minute(last_run_ms: Option<i64>) -> Vec<Cron> {
        vec![Cron {
            script: "s".into(),
            cron: "* * * * *".into(),
            last_run_ms,
        }]
    }

    fn key() -> Key {
        ("s".into(), "* * * * *".into())
    }

    #[test]
    fn each_due_time_runs_once() {
        let mut table = Timetable::default();
        table.update(&every_minute(None), 10);
        assert_eq!(table.next_ms(), Some(MINUTE));
        assert_eq!(table.due(MINUTE - 1), []);
        assert_eq!(table.due(MINUTE), [Due::Run(key(), MINUTE)]);
        table.finished(&key());
        assert_eq!(table.due(MINUTE + 5), []);
        assert_eq!(table.due(2 * MINUTE), [Due::Run(key(), 2 * MINUTE)]);
    }

    #[test]
    fn runs_do_not_pile_up() {
        let mut table = Timetable::default();
        table.update(&every_minute(None), 0);
        assert_eq!(table.due(MINUTE), [Due::Run(key(), MINUTE)]);
        assert_eq!(table.due(2 * MINUTE), [Due::Busy(key(), 2 * MINUTE)]);
        // Also when the trigger is taken away and put back meanwhile.
        table.update(&[], 2 * MINUTE);
        table.update(&every_minute(None), 2 * MINUTE);
        assert_eq!(table.due(3 * MINUTE), [Due::Busy(key(), 3 * MINUTE)]);
        table.finished(&key());
        assert_eq!(table.due(4 * MINUTE), [Due::Run(key(), 4 * MINUTE)]);
    }

    #[test]
    fn what_was_missed_is_not_caught_up() {
        let mut table = Timetable::default();
        table.update(&every_minute(Some(MINUTE)), 10 * MINUTE + 1);
        assert_eq!(table.due(10 * MINUTE + 2), []);
        assert_eq!(table.due(30 * MINUTE), [Due::Missed(key(), 11 * MINUTE)]);
        assert_eq!(table.due(31 * MINUTE), [Due::Run(key(), 31 * MINUTE)]);
    }

    #[test]
    fn a_clock_that_was_set_back_runs_nothing_twice() {
        let mut table = Timetable::default();
        table.update(&every_minute(Some(10 * MINUTE)), 5 * MINUTE);
        assert_eq!(table.due(10 * MINUTE), []);
        assert_eq!(table.due(11 * MINUTE), [Due::Run(key(), 11 * MINUTE)]);
    }

    #[test]
    fn a_new_list_keeps_what_stays_and_names_what_is_wrong() {
        let mut table = Timetable::default();
        table.update(&every_minute(None), 0);
        let mut list = every_minute(Some(5 * MINUTE));
        list.push(Cron {
            script: "t".into(),
            cron: "nonsense".into(),
            last_run_ms: None,
        });
        let refused = table.update(&list, 1);
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].0.0, "t");
        assert_eq!(table.next_ms(), Some(MINUTE));
        table.update(&[], 2);
        assert_eq!(table.next_ms(), None);
    }
}
