//! System calls by number, and the words for what they answer.

use std::ffi::CString;
use std::io;

/// A system call with these arguments, as it is.
pub(crate) fn call(number: i64, args: &[usize]) -> Result<i64, i32> {
    let at = |i: usize| args.get(i).copied().unwrap_or(0);
    // SAFETY: the callers' matter; see the program's first lines.
    let result = unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    match result {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        other => Ok(other),
    }
}

/// What it answered, as a word.
pub(crate) fn word<T>(result: Result<T, i32>) -> String {
    match result {
        Ok(_) => "worked".to_owned(),
        Err(number) => errno(number),
    }
}

/// [`call`] and [`word`].
pub(crate) fn attempt(number: i64, args: &[usize]) -> String {
    word(call(number, args))
}

/// The word for an error of the standard library.
pub(crate) fn io_word<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "worked".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => errno(number),
            None => error.kind().to_string(),
        },
    }
}

/// The name of an error.
pub(crate) fn errno(number: i32) -> String {
    let names = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::E2BIG, "E2BIG"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::EMFILE, "EMFILE"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOKEY, "ENOKEY"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::ENOBUFS, "ENOBUFS"),
        (libc::EXDEV, "EXDEV"),
    ];
    let known = names.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("error {number}"), |(_, name)| (*name).to_owned())
}

/// A C string that lives on: probes are short.
pub(crate) fn text(text: &str) -> usize {
    CString::new(text).unwrap_or_default().into_raw() as usize
}

/// An argument, or nothing.
pub(crate) fn argument(args: &[String], index: usize) -> &str {
    args.get(index).map_or("", String::as_str)
}

/// A number among the arguments.
pub(crate) fn number(args: &[String], index: usize) -> usize {
    argument(args, index).parse().unwrap_or(0)
}

/// Runs in a forked child and returns its exit code, or 128 and the signal.
pub(crate) fn in_child(function: impl FnOnce() -> i32) -> i32 {
    // SAFETY: one thread, and the child only runs the function and ends.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(function());
        }
        if pid < 0 {
            return -1;
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        match libc::WIFEXITED(status) {
            true => libc::WEXITSTATUS(status),
            false => 128 + libc::WTERMSIG(status),
        }
    }
}
