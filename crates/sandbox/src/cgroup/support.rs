//! Which limits this machine can enforce, for the operator. Must not: change anything.

use std::fmt;

use super::discover::Hierarchies;

/// A kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Bytes of memory.
    Memory,
    /// CPU time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    pub(super) const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }
}

/// Which version of cgroups enforces something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy of its own per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Which limits this machine can enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// Memory limits.
    pub memory: Option<Version>,
    /// CPU limits.
    pub cpu: Option<Version>,
    /// Limits on the number of processes.
    pub pids: Option<Version>,
    /// Whether processes can be tracked and killed as a group at all; nothing runs without.
    pub tracking: bool,
}

impl Support {
    /// A line for the operator when some limit cannot be enforced.
    pub fn warning(&self) -> Option<String> {
        let missing: Vec<&str> = [
            (self.memory, "memory"),
            (self.cpu, "cpu"),
            (self.pids, "pids"),
        ]
        .into_iter()
        .filter(|(version, _)| version.is_none())
        .map(|(_, name)| name)
        .collect();
        if !self.tracking {
            return Some("no writable cgroup hierarchy: mount cgroup2 at /sys/fs/cgroup, or run where it is writable".to_owned());
        }
        (!missing.is_empty()).then(|| {
            format!(
                "this machine does not enforce {} limits: enable the cgroup controller{} (v2: cgroup.subtree_control of the parent; v1: mount it below /sys/fs/cgroup)",
                missing.join(", "),
                if missing.len() == 1 { "" } else { "s" },
            )
        })
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |version: Option<Version>| match version {
            Some(Version::V1) => "cgroup v1",
            Some(Version::V2) => "cgroup v2",
            None => "not enforced",
        };
        write!(
            f,
            "memory: {}, cpu: {}, pids: {}",
            word(self.memory),
            word(self.cpu),
            word(self.pids)
        )
    }
}

/// Tells which limits this machine can enforce, without changing anything.
pub fn describe() -> Support {
    match Hierarchies::find() {
        Ok(found) => {
            let version = |controller: Controller| {
                if found.v1.iter().any(|h| h.holds(controller.name())) {
                    Some(Version::V1)
                } else if found
                    .v2
                    .as_ref()
                    .is_some_and(|h| h.holds(controller.name()))
                {
                    Some(Version::V2)
                } else {
                    None
                }
            };
            Support {
                memory: version(Controller::Memory),
                cpu: version(Controller::Cpu),
                pids: version(Controller::Pids),
                tracking: found.v2.is_some() || !found.v1.is_empty(),
            }
        }
        Err(_) => Support {
            memory: None,
            cpu: None,
            pids: None,
            tracking: false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_nothing_enforces_is_told() {
        let all = Support {
            memory: Some(Version::V2),
            cpu: Some(Version::V1),
            pids: Some(Version::V2),
            tracking: true,
        };
        assert_eq!(all.warning(), None);
        assert_eq!(
            all.to_string(),
            "memory: cgroup v2, cpu: cgroup v1, pids: cgroup v2"
        );
        let warning = Support {
            memory: None,
            pids: None,
            ..all
        }
        .warning()
        .unwrap();
        assert!(warning.contains("memory, pids"), "{warning}");
    }
}
