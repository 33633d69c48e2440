//! Keyrings: keys are the whole machine's, not a namespace's.

use crate::Probe;
use crate::sys::{attempt, call, errno, text};

const PROCESS_KEYRING: usize = -2isize as usize;
const SESSION_KEYRING: usize = -3isize as usize;
const GET_KEYRING_ID: usize = 0;

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("keyctl", |_| {
        attempt(libc::SYS_keyctl, &[GET_KEYRING_ID, PROCESS_KEYRING, 1])
    }),
    // Its number, to be compared with another container's.
    ("session-keyring", |_| {
        match call(libc::SYS_keyctl, &[GET_KEYRING_ID, SESSION_KEYRING, 0]) {
            Ok(number) => number.to_string(),
            Err(number) => errno(number),
        }
    }),
    ("add-key", |_| {
        let args = [text("user"), text("escape"), text("x"), 1, PROCESS_KEYRING];
        attempt(libc::SYS_add_key, &args)
    }),
    ("request-key", |_| {
        attempt(
            libc::SYS_request_key,
            &[text("user"), text("no such key"), 0, 0],
        )
    }),
];
