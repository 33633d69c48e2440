//! Where the hierarchies are: /proc/self/mountinfo and /proc/self/cgroup.

use std::io;
use std::path::{Path, PathBuf};

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
    /// v1: the controllers bound to it. v2: those available at its root.
    pub(super) controllers: Vec<String>,
    /// The directory of this process's own cgroup, if it lies below the mount.
    own: Option<PathBuf>,
}

impl Hierarchy {
    pub(super) fn holds(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// Directories to put a cgroup into, best first.
    pub(super) fn parents(&self) -> impl Iterator<Item = &Path> {
        let own = self.own.as_deref().filter(|own| *own != self.mount_point);
        std::iter::once(self.mount_point.as_path()).chain(own)
    }
}

/// The hierarchies that are mounted on this machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    pub(super) v2: Option<Hierarchy>,
    pub(super) v1: Vec<Hierarchy>,
}

impl Hierarchies {
    pub(super) fn find() -> io::Result<Hierarchies> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
        let membership = std::fs::read_to_string("/proc/self/cgroup")?;
        let mut found = parse(&mountinfo, &membership);
        if let Some(v2) = &mut found.v2 {
            // In a cgroup other than the real root the file lists what was handed down.
            let available = std::fs::read_to_string(v2.mount_point.join("cgroup.controllers"))
                .unwrap_or_default();
            v2.controllers = available.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }
}

/// The file systems' own words; no controllers for v2 yet.
fn parse(mountinfo: &str, membership: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): id parent device root mount-point options [tags...] - type source
        // super-options
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mount_point), Some(options)) =
            (left.get(3), left.get(4), left.get(5))
        else {
            continue;
        };
        let (Some(kind), Some(super_options)) = (right.first(), right.get(2)) else {
            continue;
        };
        if !options.split(',').any(|o| o == "rw") {
            continue;
        }
        let mount_point = PathBuf::from(unescape(mount_point));
        let root = unescape(root);
        match *kind {
            "cgroup2" if found.v2.is_none() => {
                let own = own_dir(membership, "", &root, &mount_point);
                found.v2 = Some(Hierarchy {
                    mount_point,
                    controllers: Vec::new(),
                    own,
                });
            }
            "cgroup" => {
                let known = ["memory", "cpu", "pids", "freezer"];
                let controllers: Vec<String> = super_options
                    .split(',')
                    .filter(|o| known.contains(o))
                    .map(str::to_owned)
                    .collect();
                let Some(first) = controllers.first() else {
                    continue;
                };
                if found.v1.iter().any(|h| h.holds(first)) {
                    continue;
                }
                let own = own_dir(membership, first, &root, &mount_point);
                found.v1.push(Hierarchy {
                    mount_point,
                    controllers,
                    own,
                });
            }
            _ => {}
        }
    }
    found
}

/// proc_pid_cgroup: `number:controllers:path`; v2 has no controllers. The path counts from the
/// hierarchy's root, the mount may show only a part of it.
fn own_dir(
    membership: &str,
    controller: &str,
    mount_root: &str,
    mount_point: &Path,
) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        (controllers.split(',').any(|c| c == controller)).then_some(path)
    })?;
    let below = Path::new(path).strip_prefix(mount_root).ok()?;
    if below.components().any(|c| c.as_os_str() == "..") {
        return None; // Outside this cgroup namespace.
    }
    Some(if below.as_os_str().is_empty() {
        mount_point.to_owned()
    } else {
        mount_point.join(below)
    })
}

/// Space, tab, newline and backslash are written in octal (proc_pid_mountinfo(5)).
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_machine() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let membership = "4:memory:/api/x\n1:cpu,cpuacct:/\n0::/\n";
        let found = parse(mountinfo, membership);
        assert_eq!(found.v1.len(), 2);
        assert_eq!(found.v1[0].controllers, ["cpu"]);
        let parents: Vec<_> = found.v1[1].parents().collect();
        assert_eq!(
            parents,
            [
                Path::new("/sys/fs/cgroup/memory"),
                Path::new("/sys/fs/cgroup/memory/api/x")
            ]
        );
        let v2 = found.v2.expect("a unified hierarchy");
        assert_eq!(v2.mount_point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(v2.parents().count(), 1);
    }

    #[test]
    fn delegated_cgroup_of_a_systemd_unit() {
        let mountinfo = "26 21 0:23 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse(mountinfo, "0::/system.slice/wharf.service\n");
        let v2 = found.v2.expect("a unified hierarchy");
        assert_eq!(
            v2.parents().last(),
            Some(Path::new("/sys/fs/cgroup/system.slice/wharf.service"))
        );
    }

    #[test]
    fn mount_that_shows_a_part_of_the_hierarchy() {
        let mountinfo = "26 21 0:23 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let found = parse(mountinfo, "8:pids:/docker/abc\n");
        assert_eq!(
            found.v1[0].parents().collect::<Vec<_>>(),
            [Path::new("/sys/fs/cgroup/pids")]
        );
    }

    #[test]
    fn read_only_mounts_are_of_no_use() {
        let found = parse(
            "26 21 0:23 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            "0::/\n",
        );
        assert_eq!(found, Hierarchies::default());
    }
}
