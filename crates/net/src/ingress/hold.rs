//! How long a connection to a port that does not listen yet is held, and how often the port is looked at. Pure.
//!
//! ```text
//!                    arrival + bound                           Ended: refused at once
//!  Pending (not started) ──────────────> refused     (any state) ──────────────────────> refused
//!     │ starts
//!     ▼            start + bound                     start + BOOT
//!  Running ── each is held to here ──> held for AGAIN ──────────> refused at once
//! ```
//! The bound counts from the start of the process, not from the connection: what does not listen by then mostly never will.
//! Programs that take longer are asked for again and again (`@cloudflare/containers` tries 67 times, 300 ms apart), so within their
//! first minute each try is held for a moment more. That is what gives a slow program that whole minute.

use std::time::Duration;

/// How long each further connection is held once the bound is over. Below the 1.5 s after which `@cloudflare/containers` 0.0.13 gives
/// up a try for itself, without having been told that nobody listens.
const AGAIN: Duration = Duration::from_millis(700);
/// How long after its start a program may still be booting.
const BOOT: Duration = Duration::from_secs(60);
/// `@cloudflare/containers` asks for this port when the class names none, only to see whether the container is up at all, and the whole start
/// waits for the answer. So it is not held.
const NOBODYS_PORT: u16 = 33;

/// A static server listens a millisecond or two after its start: for so long the looks are a fraction of that apart,
const FINE_FOR: Duration = Duration::from_millis(20);
const FINE_STEP: Duration = Duration::from_micros(200);
/// and for so long one millisecond,
const CLOSE_FOR: Duration = Duration::from_secs(2);
const CLOSE_STEP: Duration = Duration::from_millis(1);
/// and then two.
const STEP: Duration = Duration::from_millis(2);

/// A held connection also looks at its port itself: this far apart for the first second,
const SOON_FOR: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(4);
/// and this far apart later.
const LATER: Duration = Duration::from_millis(16);

/// How long a connection that has been held for `held` relies on being told, before it looks for
/// itself.
pub(super) fn look_again(held: Duration) -> Duration {
    if held < SOON_FOR { SOON } else { LATER }
}

/// For how long a connection is held that came when the process had run for `age` (`None`: has not been started). If the process starts
/// or starts anew meanwhile, ask again.
pub(super) fn held_for(port: u16, bound: Duration, age: Option<Duration>) -> Duration {
    let Some(age) = age else {
        return bound;
    };
    if port == NOBODYS_PORT {
        return Duration::ZERO;
    }
    let again = AGAIN.min(BOOT.saturating_sub(age));
    bound.saturating_sub(age).max(again.min(bound))
}

/// The time to the next look at a port that is waited for.
pub(super) fn next_look(age: Duration) -> Duration {
    match age {
        _ if age < FINE_FOR => FINE_STEP,
        _ if age < CLOSE_FOR => CLOSE_STEP,
        _ => STEP,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: Duration = Duration::from_secs(2);

    #[test]
    fn the_bound_counts_from_the_start_of_the_process() {
        let held = |ms| held_for(8080, BOUND, Some(Duration::from_millis(ms)));
        assert_eq!(held(0), BOUND);
        assert_eq!(held(500), Duration::from_millis(1500));
        assert_eq!(held(40_000), AGAIN);
        assert_eq!(held(59_900), Duration::from_millis(100));
        assert_eq!(held(3_600_000), Duration::ZERO);
        assert_eq!(held_for(8080, BOUND, None), BOUND);
    }

    #[test]
    fn nothing_is_held_without_a_bound() {
        assert_eq!(
            held_for(8080, Duration::ZERO, Some(Duration::ZERO)),
            Duration::ZERO
        );
    }

    #[test]
    fn the_port_that_only_asks_for_life_is_not_held() {
        assert_eq!(held_for(33, BOUND, Some(Duration::ZERO)), Duration::ZERO);
        assert_eq!(held_for(33, BOUND, None), BOUND);
    }

    /// 67 tries, 300 ms apart: the package's own numbers.
    #[test]
    fn a_program_that_needs_fifty_seconds_is_waited_for() {
        let pause = Duration::from_millis(300);
        let mut now = Duration::ZERO;
        for _ in 0..67 {
            now += held_for(8080, BOUND, Some(now)) + pause;
        }
        assert!(now > Duration::from_secs(50), "{now:?}");
        assert!(now < Duration::from_secs(80), "{now:?}");
    }

    proptest! {
        /// Whenever it comes, it is held no longer than the bound, and not at all after the first minute.
        #[test]
        fn never_longer_than_the_bound(bound_ms in 0u64..100_000, age_ms in 0u64..200_000, port in 1u16..) {
            let (bound, age) = (Duration::from_millis(bound_ms), Duration::from_millis(age_ms));
            let held = held_for(port, bound, Some(age));
            prop_assert!(held <= bound);
            prop_assert!(held.is_zero() || age + held <= bound.max(BOOT));
        }

        /// Looks are never closer together than the fine step, and rarer as time goes by.
        #[test]
        fn looks_get_rarer(a_ms in 0u64..100_000, b_ms in 0u64..100_000) {
            let (a, b) = (a_ms.min(b_ms), a_ms.max(b_ms));
            prop_assert!(next_look(Duration::from_millis(a)) <= next_look(Duration::from_millis(b)));
            prop_assert!(next_look(Duration::from_millis(a)) >= FINE_STEP);
        }
    }
}
