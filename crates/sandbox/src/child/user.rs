//! Docker's `User` syntax, resolved with the passwd and group files of the root.

use std::io::Read;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Longer files are cut: they belong to somebody else's image.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The user that the process becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl User {
    /// Whether all ids are below `end`. The error is for a person.
    pub(super) fn within(&self, end: u32) -> Result<(), String> {
        let ids = [self.uid, self.gid].into_iter();
        match ids.chain(self.groups.iter().copied()).find(|id| *id >= end) {
            None => Ok(()),
            Some(id) => Err(format!(
                "user or group id {id}: a container has the ids 0 to {}",
                end - 1
            )),
        }
    }
}

/// Looks `text` up in /etc/passwd and /etc/group. The error is for a person.
pub(super) fn look_up(text: &str) -> Result<User, String> {
    resolve(text, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// A missing file is an empty one; anything but a regular file counts as missing.
fn read(path: &str) -> Result<String, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Not through /proc/self/fd: the spawner's descriptors are still open.
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let Ok(file) = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve) else {
        return Ok(String::new());
    };
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("reading {path}: {e}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The highest number means "as it is" to setuid(2), so nobody has it.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entry(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let (name, _, uid, gid, _, home) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    Some(Passwd {
        name,
        uid: id(uid)?,
        gid: id(gid)?,
        home,
    })
}

/// Name, number, members.
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _, gid, members) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    Some((name, id(gid)?, members))
}

pub(crate) fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user);
    let entries: Vec<Passwd<'_>> = passwd.lines().filter_map(passwd_entry).collect();
    // A name wins over the number that it looks like.
    let entry = entries
        .iter()
        .find(|e| e.name == user)
        .or_else(|| entries.iter().find(|e| Some(e.uid) == number));
    let uid = match (entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(number)) => number,
        _ => {
            return Err(format!(
                "unable to find user {user}: no matching entries in the image's /etc/passwd"
            ));
        }
    };
    let groups: Vec<_> = group.lines().filter_map(group_entry).collect();
    let gid = match wanted_group {
        Some(wanted) => match groups.iter().find(|(name, _, _)| *name == wanted) {
            Some((_, gid, _)) => *gid,
            None => id(wanted).ok_or_else(|| {
                format!(
                    "unable to find group {wanted}: no matching entries in the image's /etc/group"
                )
            })?,
        },
        None => entry.map_or(0, |e| e.gid),
    };
    // A group that is asked for stands alone, as with Docker.
    let supplementary = match (wanted_group, entry) {
        (None, Some(entry)) => groups
            .iter()
            .filter(|(_, _, members)| members.split(',').any(|m| m == entry.name))
            .map(|(_, gid, _)| *gid)
            .collect(),
        _ => Vec::new(),
    };
    let home = entry
        .map(|e| e.home)
        .filter(|h| !h.is_empty())
        .unwrap_or("/")
        .to_owned();
    Ok(User {
        uid,
        gid,
        groups: supplementary,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\napp:x:1000:1001:App:/home/app:/bin/sh\nbroken\n7:x:70:71::/seven:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nstaff:x:50:app\nweb:x:80:\n";

    fn ok(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn dockers_syntax() {
        assert_eq!(ok(""), (0, 0, vec![10], "/root".into()));
        assert_eq!(ok("app"), (1000, 1001, vec![10, 50], "/home/app".into()));
        assert_eq!(ok("1000"), (1000, 1001, vec![10, 50], "/home/app".into()));
        assert_eq!(ok("app:web"), (1000, 80, vec![], "/home/app".into()));
        assert_eq!(ok("app:4242"), (1000, 4242, vec![], "/home/app".into()));
        assert_eq!(ok("5000"), (5000, 0, vec![], "/".into()));
        assert_eq!(ok("5000:6000"), (5000, 6000, vec![], "/".into()));
        assert_eq!(ok("7"), (70, 71, vec![], "/seven".into()));
    }

    /// setuid(2) would leave them root.
    #[test]
    fn the_number_that_means_no_change_is_nobodys() {
        let passwd = "evil:x:4294967295:0::/:\nother:x:5:4294967295::/:\nuser:x:5:6::/:\n";
        let group = "evil:x:4294967295:user\nmore:x:7:user\n";
        for text in [
            "evil",
            "other",
            "4294967295",
            "user:evil",
            "user:4294967295",
        ] {
            assert!(resolve(text, passwd, group).is_err(), "{text}");
        }
        assert_eq!(resolve("user", passwd, group).unwrap().groups, [7]);
    }

    #[test]
    fn without_files_numbers_work() {
        assert_eq!(
            resolve("33:44", "", "").unwrap(),
            User {
                uid: 33,
                gid: 44,
                groups: vec![],
                home: "/".into()
            }
        );
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(
            resolve("nobody", PASSWD, GROUP)
                .unwrap_err()
                .contains("nobody")
        );
        assert!(
            resolve("app:none", PASSWD, GROUP)
                .unwrap_err()
                .contains("none")
        );
        assert!(resolve("4294967295", "", "").is_err());
        assert!(resolve("-1", "", "").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_file_content_panics(text in ".{0,12}", passwd in ".{0,80}", group in ".{0,80}") {
            let _ = resolve(&text, &passwd, &group);
        }
    }
}
