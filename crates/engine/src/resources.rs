//! What a machine has only so much of: how much is in use, how much a node keeps for its own work,
//! and whether one more start would touch that.
//!
//! Owns: the decision, which is pure ([`admit`]). The figures are read in [`reading`].
//! Must not: end anything that runs; what was admitted once is served on.
//!
//! A node that gives its last descriptor to a container can neither accept a request for it nor
//! start the process that serves its files. So starts are refused while there is still room for the
//! rest.

pub(crate) mod reading;

use std::fmt;

use serde::Serialize;

pub use self::reading::own_descriptors;

/// A kind of thing that runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// File descriptors of the daemon.
    Descriptors,
    /// File descriptors of the spawner.
    SpawnerDescriptors,
    /// Bytes of memory of the machine.
    Memory,
    /// Processes and threads: the kernel's bound, or that of the node's own cgroup.
    Processes,
    /// Bytes of the file system that holds the instances.
    Disk,
    /// Files of that file system.
    Inodes,
}

impl Resource {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Resource::Descriptors => "file descriptors",
            Resource::SpawnerDescriptors => "file descriptors of the spawner",
            Resource::Memory => "memory",
            Resource::Processes => "process ids",
            Resource::Disk => "disk space",
            Resource::Inodes => "inodes",
        }
    }

    /// Where an operator gets more.
    fn remedy(self) -> &'static str {
        match self {
            Resource::Descriptors | Resource::SpawnerDescriptors => {
                "raise the limit of open files (LimitNOFILE= of the service, or ulimit -n)"
            }
            Resource::Memory => "add memory",
            Resource::Processes => {
                "raise kernel.pid_max, kernel.threads-max or the cgroup's pids.max (TasksMax= of the service)"
            }
            Resource::Disk | Resource::Inodes => {
                "make room on the file system of the data directory"
            }
        }
    }

    fn is_bytes(self) -> bool {
        matches!(self, Resource::Memory | Resource::Disk)
    }
}

/// How much there is of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// The resource that the figures count.
    pub resource: Resource,
    /// How much is in use, by whatever process.
    pub used: u64,
    /// How much there is.
    pub limit: u64,
    /// How much no start may take.
    pub reserve: u64,
    /// How much one start takes at most until the next reading.
    pub start: u64,
}

impl Figure {
    /// Keeps back one part in `parts` of the limit, or `most` if that is less.
    pub(crate) fn new(resource: Resource, used: u64, limit: u64, parts: u64, most: u64) -> Figure {
        Figure {
            resource,
            used,
            limit,
            reserve: (limit / parts).min(most),
            start: 0,
        }
    }

    /// Says how much a start takes.
    pub(crate) fn start_takes(self, start: u64) -> Figure {
        Figure { start, ..self }
    }

    /// Whether one more start leaves the reserve alone.
    pub fn has_room(&self) -> bool {
        let taken = self.used.saturating_add(self.start);
        taken.saturating_add(self.reserve) <= self.limit
    }
}

/// The biggest user of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// `application "name"`, `script "name"`, or the operator.
    pub name: String,
    /// How many of its instances run.
    pub instances: usize,
}

/// Why a start is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    figure: Figure,
    most: Option<User>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure {
            resource,
            used,
            limit,
            reserve,
            ..
        } = self.figure;
        let amount = |n: u64| match resource.is_bytes() {
            true => format!("{} MiB", n >> 20),
            false => n.to_string(),
        };
        write!(
            f,
            "this node is short of {}: {} of {} are in use, and {} are kept for what runs",
            resource.name(),
            amount(used),
            amount(limit),
            amount(reserve)
        )?;
        if let Some(most) = &self.most {
            write!(
                f,
                "; {} uses most ({} instances)",
                most.name, most.instances
            )?;
        }
        write!(f, "; let instances sleep, or {}", resource.remedy())
    }
}

/// Whether a start may go on. `most` is asked for only if it may not.
///
/// # Errors
/// The first resource that it would take too much of.
pub(crate) fn admit(
    figures: &[Figure],
    most: impl FnOnce() -> Option<User>,
) -> Result<(), Shortage> {
    match figures.iter().find(|figure| !figure.has_room()) {
        None => Ok(()),
        Some(figure) => Err(Shortage {
            figure: *figure,
            most: most(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptors(used: u64) -> Figure {
        Figure::new(Resource::Descriptors, used, 1000, 4, 4096).start_takes(24)
    }

    #[test]
    fn a_start_that_would_touch_the_reserve_is_refused_with_all_that_one_wants_to_know() {
        let most = || {
            Some(User {
                name: "application \"shop\"".to_owned(),
                instances: 41,
            })
        };
        assert_eq!(admit(&[descriptors(726)], most), Ok(()));
        let refused = admit(&[descriptors(0), descriptors(727)], most).unwrap_err();
        let text = refused.to_string();
        for part in [
            "file descriptors: 727 of 1000 are in use, and 250 are kept",
            "application \"shop\" uses most (41 instances)",
            "LimitNOFILE=",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn bytes_are_told_in_mebibytes() {
        let full = Figure::new(Resource::Disk, 990 << 20, 1000 << 20, 20, u64::MAX);
        let text = admit(&[full], || None).unwrap_err().to_string();
        assert!(
            text.contains("990 MiB of 1000 MiB are in use, and 50 MiB are kept"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_admitted_leaves_the_reserve(
            used: u64, limit: u64, parts in 1u64..100, most: u64, start: u64,
        ) {
            let figure = Figure::new(Resource::Memory, used, limit, parts, most).start_takes(start);
            if admit(&[figure], || None).is_ok() {
                let after = u128::from(used) + u128::from(start) + u128::from(figure.reserve);
                prop_assert!(after <= u128::from(limit));
            } else {
                // There is room again as soon as enough is given back.
                let empty = Figure { used: 0, start: 0, ..figure };
                prop_assert!(empty.has_room());
            }
        }
    }
}
