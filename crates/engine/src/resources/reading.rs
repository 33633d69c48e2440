//! Reads how much of everything is in use.
//!
//! What changes with each start, the descriptors, is read each time, in about a microsecond (Linux
//! 6.2; before that the directory is counted). The rest takes a tenth of a millisecond: starts use
//! a figure of a moment ago, which is renewed behind their backs ([`Reader::for_start`]).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource as Bound, getrlimit};

use super::{Figure, Resource};

/// A figure that is older is renewed.
const FRESH: Duration = Duration::from_millis(100);
/// A figure that is older is of no use to a start.
const STALE: Duration = Duration::from_secs(2);
/// When a start has asked, its own work comes first.
const AFTER_START: Duration = Duration::from_millis(20);
/// Descriptors that a start may take in the daemon while it is on its way.
const START_DESCRIPTORS: u64 = 24;
/// Descriptors that a start may take in the spawner.
const START_SPAWNER: u64 = 12;
/// Memory of the kernel and of the program's first pages, bytes.
const START_MEMORY: u64 = 8 << 20;
/// Processes and threads of a small program.
const START_PROCESSES: u64 = 16;
/// What an instance's directories and a disk's first blocks take, bytes.
const START_DISK: u64 = 2 << 20;
const START_INODES: u64 = 64;

/// Reads the figures of one node.
#[derive(Debug)]
pub(crate) struct Reader {
    dir: PathBuf,
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    /// What was read, and when.
    last: Option<(Instant, Vec<Figure>)>,
    /// Somebody is about to read.
    renewing: bool,
}

impl Reader {
    /// `dir` is where instances are.
    pub(crate) fn new(dir: &Path) -> Reader {
        Reader {
            dir: dir.to_owned(),
            cached: Mutex::default(),
        }
    }

    /// All figures that this machine can give.
    pub(crate) fn figures(&self, spawner: u32) -> Vec<Figure> {
        self.not_older_than(FRESH, spawner)
    }

    /// The same for a start, which does not wait for what was read a moment ago to be read again.
    /// Needs a runtime.
    pub(crate) fn for_start(self: &Arc<Self>, spawner: u32) -> Vec<Figure> {
        let figures = self.not_older_than(STALE, spawner);
        let mut cached = self.cached();
        let is_fresh = |(at, _): &(Instant, _)| at.elapsed() < FRESH;
        if !cached.renewing && !cached.last.as_ref().is_some_and(is_fresh) {
            cached.renewing = true;
            let reader = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AFTER_START).await;
                tokio::task::spawn_blocking(move || reader.renew());
            });
        }
        figures
    }

    fn not_older_than(&self, age: Duration, spawner: u32) -> Vec<Figure> {
        let mut figures: Vec<Figure> = descriptors("self")
            .into_iter()
            .chain(descriptors(&spawner.to_string()))
            .collect();
        let mut cached = self.cached();
        let rest = match &cached.last {
            Some((at, rest)) if at.elapsed() < age => rest,
            _ => &cached.last.insert((Instant::now(), self.read())).1,
        };
        figures.extend(rest);
        figures
    }

    fn renew(&self) {
        let last = (Instant::now(), self.read());
        *self.cached() = Cached {
            last: Some(last),
            renewing: false,
        };
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        figures.extend(memory());
        figures.extend(processes());
        match rustix::fs::statvfs(&self.dir) {
            Ok(found) => {
                let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
                let used = found.f_blocks.saturating_sub(found.f_bavail);
                figures.push(
                    Figure::new(
                        Resource::Disk,
                        bytes(used),
                        bytes(found.f_blocks),
                        20,
                        512 << 20,
                    )
                    .start_takes(START_DISK),
                );
                // btrfs has no such number.
                if found.f_files > 0 {
                    let used = found.f_files.saturating_sub(found.f_favail);
                    figures.push(
                        Figure::new(Resource::Inodes, used, found.f_files, 20, 10_000)
                            .start_takes(START_INODES),
                    );
                }
            }
            Err(error) => tracing::debug!(%error, "the file system of the instances"),
        }
        figures
    }
}

/// How many descriptors the daemon has, and may have.
///
/// # Errors
/// Without /proc.
pub fn own_descriptors() -> io::Result<(u64, u64)> {
    let used = open_files(Path::new("/proc/self/fd"))?;
    Ok((used, getrlimit(Bound::Nofile).current.unwrap_or(u64::MAX)))
}

fn descriptors(process: &str) -> Option<Figure> {
    let used = open_files(Path::new(&format!("/proc/{process}/fd"))).ok()?;
    let limits = getrlimit(Bound::Nofile);
    let figure = if process == "self" {
        let limit = limits.current.unwrap_or(u64::MAX);
        Figure::new(Resource::Descriptors, used, limit, 4, 4096).start_takes(START_DESCRIPTORS)
    } else {
        // It raises its limit to the highest that it has inherited from the daemon.
        let limit = limits.maximum.unwrap_or(u64::MAX);
        Figure::new(Resource::SpawnerDescriptors, used, limit, 8, 1024).start_takes(START_SPAWNER)
    };
    Some(figure)
}

/// The size of that directory is their number since Linux 6.2, and 0 before.
fn open_files(directory: &Path) -> io::Result<u64> {
    match fs::metadata(directory)?.size() {
        0 => Ok(fs::read_dir(directory)?.count() as u64),
        size => Ok(size),
    }
}

fn memory() -> Option<Figure> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    let total = bytes("MemTotal:")?;
    let used = total.saturating_sub(bytes("MemAvailable:")?);
    Some(Figure::new(Resource::Memory, used, total, 16, 256 << 20).start_takes(START_MEMORY))
}

/// The tightest of the bounds that hold for this node.
fn processes() -> Option<Figure> {
    let number = |path: &str| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    // "running/all" (proc_loadavg(5)).
    let used = load.split_whitespace().nth(3)?.split_once('/')?.1;
    let bounds = ["kernel/pid_max", "kernel/threads-max"];
    let bounds = bounds
        .iter()
        .filter_map(|b| number(&format!("/proc/sys/{b}")));
    let machine = used.parse().ok().zip(bounds.min());
    let all = machine.into_iter().chain(cgroups_bounds());
    let figures = all.map(|(used, limit)| {
        Figure::new(Resource::Processes, used, limit, 8, 1024).start_takes(START_PROCESSES)
    });
    figures.min_by_key(|f| f.limit.saturating_sub(f.used).saturating_sub(f.reserve))
}

/// Number of processes, and the bound on it, of the daemon's own cgroup and of those above.
fn cgroups_bounds() -> Vec<(u64, u64)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let base = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            "pids" => Path::new("/sys/fs/cgroup/pids"),
            _ => continue,
        };
        let path = base.join(path.trim_start_matches('/'));
        for dir in path.ancestors().take_while(|dir| dir.starts_with(base)) {
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
            };
            // "max" is no number.
            found.extend(number("pids.current").zip(number("pids.max")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_figures_make_sense() {
        let dir = tempfile::tempdir().unwrap();
        let figures = Reader::new(dir.path()).figures(std::process::id());
        for resource in [
            Resource::Descriptors,
            Resource::SpawnerDescriptors,
            Resource::Memory,
            Resource::Processes,
            Resource::Disk,
        ] {
            let figure = figures.iter().find(|f| f.resource == resource);
            assert!(
                figure.is_some_and(|f| f.used > 0 && f.used < f.limit && f.reserve < f.limit),
                "{resource:?}: {figures:?}"
            );
        }
    }

    #[test]
    fn open_files_are_counted() {
        let count = || own_descriptors().unwrap().0;
        let before = count();
        let _held: Vec<_> = (0..50)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests of this process open and close some.
        assert!(count() >= before + 30, "{before} {}", count());
    }

    /// A small file system of its own, unmounted in the end.
    struct Small(tempfile::TempDir);

    impl Small {
        fn new() -> Small {
            let dir = tempfile::tempdir().unwrap();
            let options = ["-t", "tmpfs", "-o", "size=64m,nr_inodes=4000", "none"];
            let mount = std::process::Command::new("mount")
                .args(options)
                .arg(dir.path())
                .status();
            assert!(mount.unwrap().success());
            Small(dir)
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg(self.0.path())
                .status();
        }
    }

    #[test]
    fn a_full_file_system_has_no_room_until_something_is_removed() {
        let small = Small::new();
        let reader = Reader::new(small.0.path());
        let is_short = |resource: Resource| {
            std::thread::sleep(FRESH);
            let figures = reader.figures(std::process::id());
            let found = figures.iter().find(|f| f.resource == resource).copied();
            !found.unwrap().has_room()
        };
        assert!(!is_short(Resource::Disk) && !is_short(Resource::Inodes));
        let big = small.0.path().join("big");
        fs::write(&big, vec![1; 61 << 20]).unwrap();
        assert!(is_short(Resource::Disk));
        fs::remove_file(&big).unwrap();
        assert!(!is_short(Resource::Disk));
        let many = small.0.path().join("many");
        fs::create_dir(&many).unwrap();
        for n in 0..3800 {
            fs::write(many.join(n.to_string()), "").unwrap();
        }
        assert!(is_short(Resource::Inodes));
        fs::remove_dir_all(&many).unwrap();
        assert!(!is_short(Resource::Inodes));
    }

    #[tokio::test]
    async fn a_start_uses_the_last_reading_and_the_next_one_has_a_newer() {
        let small = Small::new();
        let reader = Arc::new(Reader::new(small.0.path()));
        let used = |figures: Vec<Figure>| {
            let disk = figures.iter().find(|f| f.resource == Resource::Disk);
            disk.unwrap().used
        };
        let start = || used(reader.for_start(std::process::id()));
        let before = start();
        tokio::time::sleep(FRESH).await;
        fs::write(small.0.path().join("big"), vec![1; 20 << 20]).unwrap();
        assert_eq!(start(), before);
        while start() == before {
            tokio::time::sleep(AFTER_START).await;
        }
    }

    #[test]
    fn a_bound_of_processes_is_that_of_the_cgroup_where_it_is_tighter() {
        let bases = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let Some(base) = bases.into_iter().find(|b| b.join("cgroup.procs").exists()) else {
            eprintln!("this machine has no cgroups");
            return;
        };
        let dir = base.join(format!("wharf-test-pids-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let bound = |limit: &str| fs::write(dir.join("pids.max"), limit);
        let entered = bound("40").and_then(|()| fs::write(dir.join("cgroup.procs"), "0"));
        let found = entered.as_ref().ok().map(|()| {
            let tight = processes();
            let loose = bound("max").ok().and_then(|()| processes());
            (tight, loose)
        });
        fs::write(base.join("cgroup.procs"), "0").unwrap();
        fs::remove_dir(&dir).unwrap();
        let Some((tight, loose)) = found else {
            eprintln!("no controller of process ids here: {entered:?}");
            return;
        };
        let tight = tight.unwrap();
        assert_eq!((tight.limit, tight.reserve), (40, 5));
        let full = Figure { used: 20, ..tight };
        assert!(!full.has_room());
        assert!(loose.unwrap().has_room());
    }
}
