//! Whether a process computes without end.
//!
//! JavaScript has one thread, which also answers our questions: while it computes, none is answered. So a question is asked now and then, and until
//! it is answered the thread's CPU time is looked at. Not the clock's time: a process that waits for a processor, is stopped or
//! swapped out uses none of it, however long that takes.
//!
//! workerd runs the handlers of all requests that have come before it answers the first of them (seen with the pinned one), and nothing outside tells
//! one handler from the next. So with many requests in flight the limit is longer, by twice what so many have used so far, and at most
//! [`MOST`] times as long.
//!
//! Owns: the decision. Must not: ask, look or read a clock ([`crate::probe`] does).
//!
//! ```text
//! Resting --busy since the last answer: ask--> Asked --answered--> Resting
//!                                              Asked --the limit used up since it was asked, or gave any other answer--> hung
//! ```

/// Less CPU time than this since the last answer is no reason to ask: idle processes are left alone.
const BUSY_MS: u64 = 20;
/// The longest limit, in limits.
const MOST: u64 = 6;

/// See the module's text. All times are the thread's CPU time, milliseconds.
#[derive(Debug)]
pub(crate) struct Watchdog {
    limit_ms: u64,
    /// When it last gave an answer, of whatever kind.
    lived_ms: u64,
    /// How many requests it had answered then.
    answers: u64,
    asked_ms: Option<u64>,
}

impl Watchdog {
    /// Of a process that has just started, and has used so much for it.
    pub(crate) fn new(limit_ms: u64, cpu_ms: u64) -> Self {
        Self {
            limit_ms,
            lived_ms: cpu_ms,
            answers: 0,
            asked_ms: None,
        }
    }

    /// Whether to ask now.
    pub(crate) fn asks(&mut self, cpu_ms: u64) -> bool {
        let busy = cpu_ms.saturating_sub(self.lived_ms) >= BUSY_MS;
        if busy {
            self.asked_ms = Some(cpu_ms);
        }
        busy
    }

    /// The question was answered, or could not be asked, which says nothing.
    pub(crate) fn answered(&mut self, cpu_ms: u64, answers: u64) {
        self.asked_ms = None;
        self.lived_ms = cpu_ms;
        self.answers = answers;
    }

    /// While the question is open: how many requests were answered.
    pub(crate) fn lives(&mut self, cpu_ms: u64, answers: u64) {
        if let Some(asked) = &mut self.asked_ms
            && answers != self.answers
        {
            *asked = cpu_ms;
            self.lived_ms = cpu_ms;
            self.answers = answers;
        }
    }

    /// For how long it has computed, if it is hung; with so many requests in flight.
    pub(crate) fn hung(&self, cpu_ms: u64, in_flight: u64) -> Option<u64> {
        let computed = cpu_ms.saturating_sub(self.asked_ms?);
        let each = self.lived_ms / (self.answers + 1);
        let more = each.saturating_mul(in_flight).saturating_mul(2);
        let limit = self
            .limit_ms
            .saturating_add(more)
            .min(self.limit_ms.saturating_mul(MOST));
        (computed >= limit).then_some(computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_found_by_what_it_computes() {
        let mut dog = Watchdog::new(10_000, 0);
        assert!(dog.asks(100));
        assert_eq!(dog.hung(10_099, 1), None);
        assert_eq!(dog.hung(10_100, 1), Some(10_000));
    }

    #[test]
    fn who_answers_late_is_not_hung() {
        let mut dog = Watchdog::new(10_000, 50);
        for cpu in (100..100_000).step_by(9_000) {
            assert!(dog.asks(cpu));
            assert_eq!(dog.hung(cpu + 9_000, 1), None, "{cpu}");
            dog.answered(cpu + 9_000 - 100, 1);
        }
    }

    #[test]
    fn who_answers_others_first_is_not_hung() {
        let mut dog = Watchdog::new(10_000, 50);
        assert!(dog.asks(100));
        for (answers, cpu) in (1..).zip((5_000..100_000).step_by(5_000)) {
            assert_eq!(dog.hung(cpu, 0), None, "{cpu}");
            dog.lives(cpu, answers);
        }
        dog.lives(99_000, 19);
        assert_eq!(dog.hung(105_000, 0), Some(10_000));
    }

    #[test]
    fn many_requests_at_once_have_the_time_that_so_many_take() {
        // A thousand requests of 50 ms each so far.
        let mut dog = Watchdog::new(10_000, 50);
        dog.answered(50_050, 1000);
        assert!(dog.asks(51_000));
        assert_eq!(dog.hung(51_000 + 15_000, 300), None, "300 in a row");
        assert!(dog.hung(51_000 + 15_000, 1).is_some(), "one alone");
        // Whatever they take, there is an end.
        assert!(dog.hung(51_000 + 60_000, 100_000).is_some());
        // Small ones that wait behind a loop do not hide it.
        let mut dog = Watchdog::new(10_000, 50);
        dog.answered(1050, 10_000);
        assert!(dog.asks(1100));
        assert!(dog.hung(1100 + 10_100, 1000).is_some());
    }

    #[test]
    fn who_does_not_compute_is_not_hung_and_is_not_asked() {
        let mut dog = Watchdog::new(10_000, 20);
        // Stopped, starved or waiting for a disk: asked once, and never answered.
        assert!(dog.asks(50));
        assert_eq!(dog.hung(60, 5), None);
        let mut idle = Watchdog::new(10_000, 500);
        assert!(!idle.asks(519));
        assert!(idle.asks(520), "little by little");
    }
}
