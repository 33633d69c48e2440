//! What is to be started ahead, learnt from what was started. Pure.
//!
//! ```text
//!            the first start            another, twice in a row
//!  default ────────────────────> known ────────────────────────────> known
//!                                  │ WASTED others in a row             ▲ twice the same, or as known before
//!                                  └───────────────────────> none ──────┘
//! ```
//! An application whose starts differ each time (a user's name in the environment) has nothing that could be started ahead; preparing would be in vain.

/// Starts in a row that could use nothing, after which nothing is prepared.
const WASTED: u32 = 3;

/// What is known of one application.
#[derive(Debug)]
pub(super) struct Learning<R> {
    current: R,
    last: Option<R>,
    /// Starts since one that could use it.
    wasted: u32,
}

impl<R: PartialEq + Clone> Learning<R> {
    /// With what is taken for usual until a start was seen.
    pub(super) fn new(default: R) -> Self {
        Learning {
            current: default,
            last: None,
            wasted: 0,
        }
    }

    /// What to prepare; `None`: no two starts are the same.
    pub(super) fn current(&self) -> Option<&R> {
        (self.wasted < WASTED).then_some(&self.current)
    }

    /// A start was seen.
    pub(super) fn started(&mut self, recipe: R) {
        if recipe == self.current {
            self.wasted = 0;
        } else if self.last.as_ref().is_none_or(|last| *last == recipe) {
            self.current = recipe.clone();
            self.wasted = 0;
        } else {
            self.wasted = self.wasted.saturating_add(1);
        }
        self.last = Some(recipe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(starts: &[u32]) -> Option<u32> {
        let mut learning = Learning::new(0);
        starts.iter().for_each(|start| learning.started(*start));
        learning.current().copied()
    }

    #[test]
    fn the_first_start_teaches_and_so_does_a_lasting_change() {
        assert_eq!(after(&[]), Some(0));
        assert_eq!(after(&[1]), Some(1));
        assert_eq!(after(&[1, 1, 2]), Some(1));
        assert_eq!(after(&[1, 2, 1, 2, 1, 2]), Some(1));
        assert_eq!(after(&[1, 2]), Some(1));
        assert_eq!(after(&[1, 2, 2]), Some(2));
    }

    #[test]
    fn starts_that_all_differ_are_not_prepared_for() {
        assert_eq!(after(&[1, 2, 3, 4]), None);
        assert_eq!(after(&[1, 2, 3, 4, 5, 6]), None);
        assert_eq!(after(&[1, 2, 3, 4, 5, 5]), Some(5));
        assert_eq!(after(&[1, 2, 3, 4, 1]), Some(1));
    }
}
