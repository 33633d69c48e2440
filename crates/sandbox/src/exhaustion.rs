//! Telling what is used up from what is broken: the first passes by itself, when somebody gives
//! something back.

use std::io;

/// Something that there is only so much of is used up; what, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsedUp(pub(crate) String);

impl From<UsedUp> for io::Error {
    fn from(used_up: UsedUp) -> io::Error {
        io::Error::other(used_up)
    }
}

/// Whether an error says that something that there is only so much of is used up.
pub fn is_exhaustion(error: &io::Error) -> bool {
    resource(error).is_some()
}

/// The name of what is used up, if that is what an error says. Empty where the error names it.
pub(crate) fn resource(error: &io::Error) -> Option<&'static str> {
    if error.get_ref().is_some_and(|inner| inner.is::<UsedUp>()) {
        return Some("");
    }
    // A wrapped error keeps its kind, but not its number.
    match (error.raw_os_error(), error.kind()) {
        (Some(libc::EMFILE), _) => Some("out of file descriptors (RLIMIT_NOFILE): "),
        (Some(libc::ENFILE), _) => Some("out of file descriptors (fs.file-max): "),
        (Some(libc::EAGAIN), _) => {
            Some("out of process ids (kernel.pid_max, or pids.max of a cgroup): ")
        }
        (Some(libc::ENOMEM), _) | (_, io::ErrorKind::OutOfMemory) => Some("out of memory: "),
        (_, io::ErrorKind::QuotaExceeded) => Some("over a quota: "),
        (_, io::ErrorKind::StorageFull) => {
            Some("out of disk space, or of namespaces (user.max_*_namespaces): ")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_told_from_what_is_broken() {
        for number in [
            libc::EMFILE,
            libc::ENFILE,
            libc::EAGAIN,
            libc::ENOMEM,
            libc::ENOSPC,
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_exhaustion(&error), "{error}");
        }
        assert!(is_exhaustion(
            &UsedUp("all ids are in use".to_owned()).into()
        ));
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(is_exhaustion(&io::Error::new(
            full.kind(),
            format!("/a: {full}")
        )));
        for number in [libc::EPERM, libc::ENOENT, libc::EIO] {
            let error = io::Error::from_raw_os_error(number);
            assert!(!is_exhaustion(&error), "{error}");
        }
    }
}
