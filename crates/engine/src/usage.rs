//! What an instance has used, and which limit ended it.

use serde::{Deserialize, Serialize};
use wharf_sandbox::{DiskUsage, Exit, Limits};

/// Figures of an instance: now, or at the end of its last process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Memory, CPU, processes.
    #[serde(flatten)]
    pub process: wharf_sandbox::Usage,
    /// Bytes on its disk; `None` without one.
    pub disk_bytes: Option<u64>,
    /// Bytes that its disk holds.
    pub disk_limit_bytes: Option<u64>,
    /// Whether its disk is full.
    pub disk_is_full: bool,
}

impl Usage {
    pub(crate) fn new(process: wharf_sandbox::Usage, disk: Option<DiskUsage>) -> Usage {
        Usage {
            process,
            disk_bytes: disk.map(|d| d.used),
            disk_limit_bytes: disk.map(|d| d.limit),
            disk_is_full: disk.is_some_and(|d| d.is_full),
        }
    }

    /// Explains an end that a limit had a part in, with the figure.
    pub(crate) fn explain(&self, exit: Exit, limits: &Limits) -> Option<String> {
        if exit.oom_killed {
            let limit = limits.memory_bytes.map_or("the machine's".to_owned(), |b| {
                format!("{:.1} MiB", b as f64 / f64::from(1 << 20))
            });
            let killed = self.process.oom_kills.unwrap_or(1);
            return Some(format!(
                "out of memory: the limit is {limit}; the kernel killed {killed} of its processes"
            ));
        }
        if exit.code == 0 {
            return None;
        }
        if self.disk_is_full {
            let limit = limits.disk_bytes.unwrap_or_default() / 1_000_000;
            return Some(format!("its disk is full: the limit is {limit} MB"));
        }
        match (self.process.pids_limit_hits, limits.pids) {
            (Some(hits @ 1..), Some(limit)) => Some(format!(
                "too many processes: the limit is {limit}, threads included; it was met {hits} times"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_what_they_were() {
        let limits = Limits {
            memory_bytes: Some(256 << 20),
            pids: Some(64),
            disk_bytes: Some(2_000_000_000),
            ..Limits::default()
        };
        let exit = |code, oom_killed| Exit {
            code,
            signal: None,
            oom_killed,
        };
        let process = wharf_sandbox::Usage {
            pids_limit_hits: Some(3),
            oom_kills: Some(2),
            ..Default::default()
        };
        let mut usage = Usage::new(process, None);
        let said = |usage: &Usage, code, oom| usage.explain(exit(code, oom), &limits);
        assert!(said(&usage, 137, true).unwrap().contains("256.0 MiB"));
        assert!(
            said(&usage, 1, false)
                .unwrap()
                .contains("64, threads included; it was met 3")
        );
        assert_eq!(said(&usage, 0, false), None, "it lived with it");
        usage.disk_is_full = true;
        assert!(said(&usage, 1, false).unwrap().contains("2000 MB"));
        assert_eq!(said(&Usage::default(), 1, false), None);
    }
}
