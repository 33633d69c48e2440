//! Entrances for fuzzing; not part of the interface.

use crate::child::user;

/// What a request calls a user, an image's passwd file and its group file, with a NUL between.
///
/// # Panics
/// A user without a number that stands somewhere.
pub fn users(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    if let Ok(found) = user::resolve(part(), part(), part()) {
        // Not the number that means "leave it as it is" to setuid(2).
        assert!(found.uid != u32::MAX && found.gid != u32::MAX, "{found:?}");
        assert!(
            found.groups.iter().all(|group| *group != u32::MAX),
            "{found:?}"
        );
    }
}
