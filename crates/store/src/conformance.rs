//! What every implementation of the store's seams must do, as tests.
//!
//! Owns: the cases for [`MetaStore`] and, in [`objects`], those for
//! [`ObjectStore`](crate::objects::ObjectStore). An implementation says how it is opened
//! ([`Subject`]) and names itself in one line: `wharf_store::meta_store_conformance!(MySubject);`.
//! Must not: rely on what only one implementation does.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod crash;
mod history;
mod leases;
mod model;
pub mod objects;
mod records;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use self::crash::{a_kill_at_any_instant_loses_nothing_acknowledged, run_until_killed};
pub use self::history::*;
pub use self::leases::*;
pub use self::model::random_histories_match_the_model;
pub use self::records::*;
use crate::meta::{Compare, MetaStore, Op, Outcome, Record, Revision, Txn, wait};

/// How a store under test is opened.
pub trait Subject: Sized {
    /// Opens the store that is kept at `place`, a directory: an empty one at first, later the same
    /// again, when the one before is dropped or its process was killed.
    fn open(place: &Path) -> Self;

    /// The store.
    fn store(&self) -> Arc<dyn MetaStore>;

    /// Lets time pass for leases, and waits until those that have run out are over.
    fn advance(&self, by: Duration);
}

/// A fresh store and the directory in which it is kept.
fn fresh<S: Subject>() -> (tempfile::TempDir, S) {
    let dir = tempfile::tempdir().unwrap();
    let subject = S::open(dir.path());
    (dir, subject)
}

fn get(store: &Arc<dyn MetaStore>, key: impl AsRef<[u8]>) -> Option<Record> {
    wait(store.get(key.as_ref())).unwrap().record
}

fn value(store: &Arc<dyn MetaStore>, key: &str) -> Option<String> {
    get(store, key).map(|record| String::from_utf8(record.value).unwrap())
}

/// Applies steps without a compare.
fn apply(store: &Arc<dyn MetaStore>, ops: Vec<Op>) -> Revision {
    match txn(store, vec![], ops) {
        Outcome::Applied { revision, .. } => revision,
        refused => panic!("{refused:?}"),
    }
}

fn put(store: &Arc<dyn MetaStore>, key: &str, value: &str) -> Revision {
    apply(store, vec![Op::put(key, value)])
}

fn txn(store: &Arc<dyn MetaStore>, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
    wait(store.txn(Txn { compares, ops })).unwrap()
}

fn revision(store: &Arc<dyn MetaStore>) -> Revision {
    wait(store.get(b"nothing has this key")).unwrap().revision
}

/// One `#[test]` for each case, for an implementation of [`Subject`].
#[macro_export]
macro_rules! meta_store_conformance {
    ($subject:ty) => {
        $crate::meta_store_conformance!(@ $subject:
            records_are_read_as_they_were_written
            lists_are_in_the_order_of_bytes
            keys_may_have_any_bytes
            large_values_are_kept_whole
            a_transaction_is_applied_whole_or_not_at_all
            a_refusal_names_each_compare_that_failed
            steps_are_taken_in_order
            a_transaction_that_makes_no_sense_changes_nothing
            revisions_count_changes_and_nothing_else
            of_two_writers_one_wins
            everything_is_there_after_reopening
            the_keys_of_a_lease_go_when_it_runs_out
            a_lease_that_is_kept_alive_stays
            a_revoked_lease_takes_its_keys_along_at_once
            a_key_belongs_to_the_lease_of_its_last_put
            a_lease_that_is_over_takes_no_keys
            reopening_gives_leases_their_whole_time_again
            a_watch_sees_every_change_under_its_prefix
            a_watch_may_begin_in_the_past_or_the_future
            a_watch_goes_on_after_reopening
            a_watch_hears_of_leases_that_run_out
            a_wait_that_was_given_up_loses_nothing
            a_watch_beside_many_writers_has_no_gap
            compacted_history_is_refused_and_the_rest_is_whole
            a_watch_that_is_too_slow_is_told_so
            random_histories_match_the_model
        );

        #[test]
        fn a_kill_at_any_instant_loses_nothing_acknowledged() {
            $crate::conformance::a_kill_at_any_instant_loses_nothing_acknowledged::<$subject>(
                concat!(module_path!(), "::run_until_killed"),
            );
        }

        #[test]
        #[ignore = "run in a child process by the test above"]
        fn run_until_killed() {
            $crate::conformance::run_until_killed::<$subject>();
        }
    };
    (@ $subject:ty: $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::$case::<$subject>();
            }
        )*
    };
}
