//! How long a connection to a port that does not listen yet is held, and when it is tried again. Pure.
//!
//! ```text
//!            refused, within the bound                         target: Ended
//!   Trying ───────────────────────────> Wait(step), Trying ──────────────────> Refuse(Ended)
//!     │  refused, bound over                     │ target changes: bound and step start anew
//!     └──────────────────> Refuse(NotListening)  └──────────────> Trying
//! ```
//! A static server listens one or two milliseconds after its start, so right after a change the steps are a fraction of that;
//! they grow for programs that take their time.

use std::time::Duration;

use crate::Target;

/// For how long after a change the steps are fine.
const FINE_FOR: Duration = Duration::from_millis(20);
const FINE_STEP: Duration = Duration::from_micros(200);
const FIRST_STEP: Duration = Duration::from_millis(1);
const LAST_STEP: Duration = Duration::from_millis(8);

/// Why a held connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The bound is over.
    NotListening,
    /// The process has ended.
    Ended,
}

/// What comes after a refused dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Dial again after this long, or as soon as the target changes.
    Wait(Duration),
    /// Give up.
    Refuse(Refusal),
}

/// One held connection. Times are since its arrival.
#[derive(Debug)]
pub(crate) struct Hold {
    bound: Duration,
    target: Target,
    since: Duration,
    step: Duration,
}

impl Hold {
    pub(crate) fn new(bound: Duration, target: Target) -> Self {
        Self {
            bound,
            target,
            since: Duration::ZERO,
            step: FIRST_STEP,
        }
    }

    /// The dial at `now` was refused.
    pub(crate) fn refused(&mut self, now: Duration, target: Target) -> Step {
        if target != self.target {
            self.target = target;
            self.since = now;
            self.step = FIRST_STEP;
        }
        let held = now.saturating_sub(self.since);
        if target == Target::Ended {
            return Step::Refuse(Refusal::Ended);
        }
        let left = self.bound.saturating_sub(held);
        if left.is_zero() {
            return Step::Refuse(Refusal::NotListening);
        }
        if held < FINE_FOR {
            return Step::Wait(FINE_STEP.min(left));
        }
        let step = self.step;
        self.step = (step * 2).min(LAST_STEP);
        Step::Wait(step.min(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: Duration = Duration::from_secs(2);

    #[test]
    fn an_ended_process_is_not_waited_for() {
        let mut hold = Hold::new(BOUND, Target::Running);
        let step = hold.refused(Duration::ZERO, Target::Ended);
        assert_eq!(step, Step::Refuse(Refusal::Ended));
    }

    #[test]
    fn the_bound_starts_anew_when_the_process_starts() {
        let mut hold = Hold::new(BOUND, Target::Pending);
        assert!(matches!(
            hold.refused(BOUND / 2, Target::Pending),
            Step::Wait(_)
        ));
        assert!(matches!(
            hold.refused(BOUND - Duration::from_millis(1), Target::Running),
            Step::Wait(_)
        ));
        assert!(matches!(
            hold.refused(BOUND * 3 / 2, Target::Running),
            Step::Wait(_)
        ));
        assert_eq!(
            hold.refused(BOUND * 2, Target::Running),
            Step::Refuse(Refusal::NotListening)
        );
    }

    #[test]
    fn nothing_is_held_without_a_bound() {
        let mut hold = Hold::new(Duration::ZERO, Target::Running);
        assert_eq!(
            hold.refused(Duration::ZERO, Target::Running),
            Step::Refuse(Refusal::NotListening)
        );
    }

    proptest! {
        /// It always ends, at the bound and not before, in a number of dials that is fit for the time.
        #[test]
        fn gives_up_at_the_bound(bound_ms in 1u64..60_000) {
            let bound = Duration::from_millis(bound_ms);
            let mut hold = Hold::new(bound, Target::Running);
            let (mut now, mut dials) = (Duration::ZERO, 0);
            while let Step::Wait(step) = hold.refused(now, Target::Running) {
                prop_assert!(!step.is_zero());
                now += step;
                dials += 1;
            }
            prop_assert_eq!(now, bound);
            prop_assert!(dials <= 110 + bound_ms / 8);
        }
    }
}
