//! User namespaces: a range of the host's user and group ids for each container, so that root
//! inside is nobody outside.
//!
//! Owns: the ranges, the namespaces that map them, and which of them are in use.
//! Must not: know of containers; who takes one gives it back when nothing of the container lives.
//!
//! A namespace is nothing but its map: the filter refuses what could leave something in it (keys).
//! So it is used again, by the next container but some: given back last, taken last. Making one
//! costs a clone, joining one some 20 us.
//!
//! ```text
//!   (none) --make--> ready --take--> with a container --give back--> ready
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{DumpableBehavior, Pid, Signal, Uid, WaitOptions, set_dumpable_behavior};

use crate::exhaustion::UsedUp;
use crate::sys::{self, Forked};

/// How many ids a container has: 0 to 65535, as with every other container engine.
pub(crate) const IDS: u32 = 65_536;

/// Kept ready, while ranges are left.
const READY: usize = 32;

/// Of so many ranges, no two have roots that the kernel looks for in the same place: it takes the
/// sum of an id and its 128th, modulo 128 (kernel/user.c, `__uidhashfn`), which would be the same
/// of all that lie 65536 apart.
const ALIKE: u32 = 128;

/// The host's ids that containers may have, in ranges of 65536. Of more than 128 ranges, one is
/// given up: the others lie one id apart, and a start takes no longer where many run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRanges {
    /// The first id of the first range.
    pub first: u32,
    /// How many ranges: at most so many containers at a time, or one less.
    pub count: u32,
}

impl Default for IdRanges {
    /// 1879048192 to 2147352575: what systemd's UIDS-GIDS.md lists as unused. Below lie the ranges
    /// of people and services, /etc/subuid, LXD and systemd-nspawn; above, those of systemd's
    /// foreign files, and ids that are negative for programs with signed ones.
    fn default() -> Self {
        IdRanges {
            first: 0x7000_0000,
            count: 0x0ffe,
        }
    }
}

impl IdRanges {
    /// How many containers can run at a time.
    fn usable(self) -> u32 {
        match self.count > ALIKE {
            true => self.count - self.count.div_ceil(IDS),
            false => self.count,
        }
    }

    /// The first id of a range.
    fn root(self, number: u32) -> u32 {
        let apart = if self.count > ALIKE { IDS + 1 } else { IDS };
        self.first + number * apart
    }

    /// Why these can't be used; for a person.
    pub fn check(self) -> Result<(), String> {
        let end = u64::from(self.first) + u64::from(self.count) * u64::from(IDS);
        if self.count == 0 {
            return Err("no id ranges: give at least one".to_owned());
        }
        // Ping sockets are allowed to groups up to there (net.ipv4.ping_group_range).
        if self.first < IDS || end > 1 << 31 {
            return Err(format!(
                "id ranges {} to {end}: they must lie between {IDS} and {}",
                self.first,
                1u32 << 31
            ));
        }
        Ok(())
    }

    /// `first:count`, for the spawner's command line.
    pub(crate) fn to_argument(ranges: Option<IdRanges>) -> String {
        ranges.map_or("none".to_owned(), |r| format!("{}:{}", r.first, r.count))
    }

    pub(crate) fn from_argument(text: &str) -> Result<Option<IdRanges>, String> {
        if text == "none" {
            return Ok(None);
        }
        let ranges = text
            .split_once(':')
            .and_then(|(first, count)| {
                Some(IdRanges {
                    first: first.parse().ok()?,
                    count: count.parse().ok()?,
                })
            })
            .ok_or_else(|| format!("id ranges {text:?}: expected first:count"))?;
        ranges.check().map(|()| Some(ranges))
    }
}

/// The host's id of root inside, for a running container; 0 without a user namespace.
///
/// # Errors
/// No such process.
pub fn root_of_process(pid: i32) -> io::Result<u32> {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let words = map.split_whitespace().nth(1).and_then(|w| w.parse().ok());
    words.ok_or_else(|| io::Error::other(format!("the id map of process {pid}: {map:?}")))
}

/// Runs `job` on a thread of its own whose files belong to the host's id `owner`, as on the mounts
/// of a container they must belong to one of its own.
///
/// # Errors
/// The thread could not be started, or may not do that; or the job panicked.
pub fn files_as<T: Send>(owner: u32, job: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().spawn_scoped(scope, || {
            sys::make_files_as(owner)?;
            Ok(job())
        })?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread that makes files panicked")))
    })
}

/// One namespace with its range.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    /// The host's id of root inside.
    pub(crate) root: u32,
    namespace: OwnedFd,
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// The namespaces that nobody uses, and the ranges for which there is none yet.
#[derive(Debug)]
pub(crate) struct Pool {
    ranges: IdRanges,
    /// Ranges that have a namespace, from the first on.
    made: u32,
    /// The next container takes the foremost.
    ready: VecDeque<UserNamespace>,
    /// After a failure: not tried again in the background.
    broken: bool,
}

impl Pool {
    pub(crate) fn new(ranges: IdRanges) -> Pool {
        Pool {
            ranges,
            made: 0,
            ready: VecDeque::new(),
            broken: false,
        }
    }

    /// A namespace that no other container has. The error is for a person.
    pub(crate) fn take(&mut self) -> io::Result<UserNamespace> {
        if let Some(ready) = self.ready.pop_front() {
            return Ok(ready);
        }
        self.make()
    }

    /// Nothing lives in it any more.
    pub(crate) fn give_back(&mut self, namespace: UserNamespace) {
        self.ready.push_back(namespace);
    }

    /// How many more containers there is a range for.
    pub(crate) fn left(&self) -> usize {
        self.ready.len() + (self.ranges.usable() - self.made) as usize
    }

    /// Whether [`Pool::refill`] has something to do.
    pub(crate) fn is_short(&self) -> bool {
        !self.broken && self.ready.len() < READY && self.made < self.ranges.usable()
    }

    /// Makes one more, for later. To be called when nobody waits.
    pub(crate) fn refill(&mut self) {
        match self.make() {
            Ok(namespace) => self.ready.push_back(namespace),
            Err(error) => {
                self.broken = true;
                eprintln!("spawner: {error}");
            }
        }
    }

    fn make(&mut self) -> io::Result<UserNamespace> {
        if self.made == self.ranges.usable() {
            return Err(UsedUp(format!(
                "all {} id ranges for containers are in use (containers.id_ranges in wharf.toml)",
                self.ranges.usable()
            ))
            .into());
        }
        let root = self.ranges.root(self.made);
        let namespace = make(root).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!(
                    "making a user namespace: {e} (is user.max_user_namespaces high enough, and does the kernel have them?)"
                ),
            )
        })?;
        self.made += 1;
        Ok(UserNamespace { root, namespace })
    }
}

/// A user namespace in which `root` and the ids after it are 0 and the ids after it.
///
/// Its owner is `root`, not the host's root. What the kernel counts for each user (inotify
/// instances, pending signals, locked memory, namespaces) it counts for the owner as well. With one
/// owner for all, one container could use up everybody's share, and that of the host's services.
fn make(root: u32) -> io::Result<OwnedFd> {
    let forked = as_user(root, || {
        // SAFETY: the spawner has one thread; the child waits for its end without touching
        // anything.
        let forked = unsafe { sys::fork_with(libc::CLONE_NEWUSER as u64, None) }?;
        match forked {
            // Here, not outside: it must not go back to an id that its namespace does not have.
            Forked::Child => sys::wait_for_end(),
            Forked::Parent { pid, .. } => Ok(pid),
        }
    });
    let pid = forked?;
    let made = (|| {
        for file in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid}/{file}"), format!("0 {root} {IDS}"))?;
        }
        File::open(format!("/proc/{pid}/ns/user"))
    })();
    if let Some(pid) = Pid::from_raw(pid) {
        rustix::process::kill_process(pid, Signal::KILL)?;
        let ended = rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
        let killed = ended.and_then(|(_, status)| status.terminating_signal());
        if killed != Some(Signal::KILL.as_raw()) {
            return Err(io::Error::other(format!(
                "the process that held a user namespace ended by itself: {ended:?}"
            )));
        }
    }
    Ok(made?.into())
}

/// Does something as the host's user `id`, with root's capabilities.
fn as_user<T>(id: u32, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let effective = |id: u32| {
        let (kept, id) = (Uid::from_raw(0), Uid::from_raw(id));
        rustix::thread::set_thread_res_uid(kept, id, kept)
    };
    effective(id)?;
    // Leaving id 0 has made the capabilities ineffective (capabilities(7)).
    let done = sys::make_capabilities_effective().and_then(|()| job());
    // Coming back to it makes them effective again. A change of ids has made this process one whose
    // files in /proc are root's alone (proc(5)), which children would inherit.
    let back = effective(0).and_then(|()| set_dumpable_behavior(DumpableBehavior::Dumpable));
    if let Err(error) = back {
        eprintln!("spawner: could not become root again: {error}");
        std::process::abort();
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_the_documentation_says() {
        let ranges = IdRanges::default();
        ranges.check().unwrap();
        assert_eq!(ranges.first, 1_879_048_192);
        assert_eq!(ranges.first + ranges.count * IDS - 1, 2_147_352_575);
    }

    #[test]
    fn ranges_are_within_and_apart_and_of_different_places_in_the_kernels_table() {
        for count in [1, 2, 128, 129, 1000, IdRanges::default().count] {
            let ranges = IdRanges {
                count,
                ..IdRanges::default()
            };
            let roots: Vec<u32> = (0..ranges.usable()).map(|n| ranges.root(n)).collect();
            assert!(roots.windows(2).all(|two| two[1] - two[0] >= IDS));
            let end = roots.last().unwrap() + IDS;
            assert!(end <= ranges.first + count * IDS, "{count}");
            assert!(ranges.usable() >= count - 1, "{count}");
            let mut places = [0; 128];
            for root in &roots {
                places[(((root >> 7) + root) & 127) as usize] += 1;
            }
            let most = *places.iter().max().unwrap();
            if count > ALIKE {
                assert!(most <= count / 128 + 2, "{count}: {most}");
            }
        }
    }

    /// Needs root. The holder of each namespace is killed; one that did anything else first would
    /// write to the node's log, or leave a core dump.
    #[test]
    fn nothing_but_its_end_happens_to_the_process_that_holds_a_new_namespace() {
        let ranges = IdRanges::default();
        for n in 0..50 {
            make(ranges.root(n)).unwrap();
        }
    }

    #[test]
    fn arguments_there_and_back() {
        for ranges in [None, Some(IdRanges::default())] {
            let text = IdRanges::to_argument(ranges);
            assert_eq!(IdRanges::from_argument(&text), Ok(ranges));
        }
        for wrong in ["", "1", "0:1", "1000000:0", "2147480000:1", "x:1"] {
            assert!(IdRanges::from_argument(wrong).is_err(), "{wrong}");
        }
    }
}
