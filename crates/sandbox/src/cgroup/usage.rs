//! What a cgroup has used, and how often it met its limits.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Figures of one process and all that it started. `None`: this machine does not count it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of memory now (0 at the end), the page cache of its files included.
    pub memory_bytes: Option<u64>,
    /// The most so far.
    pub memory_peak_bytes: Option<u64>,
    /// How often memory had to be reclaimed at the limit. Only v2 counts it: `memory.failcnt` of v1
    /// stays 0 on recent kernels (seen: 6.18).
    pub memory_limit_hits: Option<u64>,
    /// Processes that the kernel killed at the limit.
    pub oom_kills: Option<u64>,
    /// CPU time, microseconds.
    pub cpu_us: Option<u64>,
    /// Periods of 100 ms in which it had to wait, as its share was used up.
    pub throttled_periods: Option<u64>,
    /// For how long altogether, microseconds.
    pub throttled_us: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// How often a fork or a thread was refused at the limit.
    pub pids_limit_hits: Option<u64>,
}

/// Which controllers one cgroup has: it has no files of others, and looking for them is not free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    memory: bool,
    cpu: bool,
    pids: bool,
}

impl Counts {
    pub(super) fn of(has: impl Fn(&str) -> bool) -> Counts {
        Counts {
            memory: has("memory"),
            cpu: has("cpu"),
            pids: has("pids"),
        }
    }
}

/// The number after `key` in a file of lines with a key and a number.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    line?.trim().parse().ok()
}

/// `None` where the kernel has no such file.
fn read(dir: &Path, name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(super::files::at(&dir.join(name), error)),
    }
}

fn number(dir: &Path, name: &str) -> io::Result<Option<u64>> {
    Ok(read(dir, name)?.and_then(|text| text.trim().parse().ok()))
}

impl Usage {
    /// Adds what a v2 cgroup tells (kernel: admin-guide/cgroup-v2.rst). Without controllers that is
    /// CPU time.
    pub(super) fn add_v2(&mut self, dir: &Path, counts: Counts) -> io::Result<()> {
        if let Some(text) = read(dir, "cpu.stat")? {
            self.cpu_us = keyed(&text, "usage_usec");
            self.throttled_periods = keyed(&text, "nr_throttled").or(self.throttled_periods);
            self.throttled_us = keyed(&text, "throttled_usec").or(self.throttled_us);
        }
        if counts.memory
            && let Some(text) = read(dir, "memory.events")?
        {
            self.memory_bytes = number(dir, "memory.current")?;
            self.memory_peak_bytes = number(dir, "memory.peak")?;
            self.memory_limit_hits = keyed(&text, "max");
            self.oom_kills = keyed(&text, "oom_kill");
        }
        self.add_pids(dir, counts)
    }

    /// Adds what the v1 cgroup of some controllers tells (kernel: admin-guide/cgroup-v1/).
    pub(super) fn add_v1(&mut self, dir: &Path, counts: Counts) -> io::Result<()> {
        if counts.cpu
            && let Some(text) = read(dir, "cpu.stat")?
        {
            self.throttled_periods = keyed(&text, "nr_throttled");
            self.throttled_us = keyed(&text, "throttled_time").map(|ns| ns / 1000);
        }
        if counts.memory
            && let Some(text) = read(dir, "memory.oom_control")?
        {
            self.memory_bytes = number(dir, "memory.usage_in_bytes")?;
            self.memory_peak_bytes = number(dir, "memory.max_usage_in_bytes")?;
            self.oom_kills = keyed(&text, "oom_kill");
        }
        self.add_pids(dir, counts)
    }

    fn add_pids(&mut self, dir: &Path, counts: Counts) -> io::Result<()> {
        if counts.pids
            && let Some(text) = read(dir, "pids.events")?
        {
            self.pids = number(dir, "pids.current")?;
            self.pids_limit_hits = keyed(&text, "max");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_both_versions() {
        let write = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            dir
        };
        let v1 = write(&[
            (
                "cpu.stat",
                "nr_periods 9\nnr_throttled 4\nthrottled_time 5000000\n",
            ),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            ),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("pids.events", "max 3\n"),
            ("pids.current", "2\n"),
        ]);
        let v2 = write(&[
            (
                "cpu.stat",
                "usage_usec 11\nuser_usec 6\nnr_periods 9\nnr_throttled 4\nthrottled_usec 5000\n",
            ),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("pids.events", "max 3\n"),
            ("pids.current", "2\n"),
        ]);
        let (mut first, mut second) = (Usage::default(), Usage::default());
        let (all, none) = (Counts::of(|_| true), Counts::of(|_| false));
        second.add_v2(v2.path(), all).unwrap();
        first.add_v1(v1.path(), all).unwrap();
        (first.cpu_us, first.memory_limit_hits) = (Some(11), Some(7));
        assert_eq!(first, second);
        assert_eq!(second.throttled_us, Some(5000));
        assert!(!format!("{second:?}").contains("None"), "{second:?}");
        // A unified hierarchy without controllers beside v1: CPU time comes from there, and nothing
        // is lost.
        let bare = write(&[("cpu.stat", "usage_usec 12\nuser_usec 6\n")]);
        first.add_v2(bare.path(), none).unwrap();
        assert_eq!(
            (first.cpu_us, first.throttled_periods, first.pids),
            (Some(12), Some(4), Some(2))
        );
    }
}
