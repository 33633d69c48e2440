//! Room for the daemon's descriptors, made before anybody waits.
//!
//! The kernel doubles a process's table of descriptors when it is full. In a process with threads
//! it then waits for every processor to have let go of the old table (expand_fdtable(), one RCU
//! grace period: 12 to 20 ms were measured on two cores, more when they are busy), and whoever
//! needs a descriptor waits with it. A node that fills up would do that seven times, each during a
//! start.

use std::os::fd::AsFd;

/// Most that is asked for; a place takes 8 bytes.
const MOST: u64 = 65_536;

/// Makes the table as large as the limit of open files allows, up to [`MOST`] places.
pub(super) fn reserve(any: impl AsFd) -> std::io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let places = limit.current.unwrap_or(MOST).min(MOST);
    let Ok(highest) = i32::try_from(places.saturating_sub(1)) else {
        return Ok(());
    };
    // Closed again at once: the table does not shrink.
    rustix::io::fcntl_dupfd_cloexec(any, highest)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    /// FDSize of proc(5): how many places the table has.
    fn places() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        line.unwrap().trim().parse().unwrap()
    }

    #[test]
    fn the_table_of_descriptors_does_not_grow_later() {
        super::reserve(std::io::stderr()).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let all = limit.current.unwrap_or(super::MOST).min(super::MOST);
        assert!(places() >= all, "{} of {all}", places());
    }
}
