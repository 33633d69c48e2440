//! `--chown` values and the owner of a WORKDIR: names are looked up in the target's /etc/passwd and
//! /etc/group.

use std::io::Read;
use std::path::Path;

use crate::tree::Tree;
use crate::trouble::{Context, Result};

/// Name, id, and for users the primary group.
type Row = (String, u32, u32);

/// Who files are given to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) ids: (u32, u32),
    /// Names that the image does not know, for a warning.
    pub(crate) unknown: Vec<String>,
}

/// `user`, `uid`, `user:group`, `uid:gid`, `:group`. Without a group: a named user's own, or the same number. As in BuildKit, `root` is 0 in every image, and
/// a name that the image does not know means root, or leaves the group as it is.
pub(crate) fn owner(tree: &Tree, text: &str) -> Result<Owner> {
    let (user, group) = match text.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (text, None),
    };
    let mut unknown = Vec::new();
    let mut found = |name: &str, file: &str, kind: &str| -> Result<Option<(u32, u32)>> {
        if let Some(id) = number(name) {
            return Ok(Some((id, id)));
        }
        let row = find(tree, file, name)?;
        if row.is_none() && !name.is_empty() {
            unknown.push(format!("the {kind} {name:?} is not in the image's /{file}"));
        }
        Ok(row)
    };
    let (uid, own_group) = found(user, "etc/passwd", "user")?.unwrap_or((0, 0));
    let gid = match group {
        None => own_group,
        Some(group) => found(group, "etc/group", "group")?.map_or(own_group, |(id, _)| id),
    };
    Ok(Owner {
        ids: (uid, gid),
        unknown,
    })
}

fn number(text: &str) -> Option<u32> {
    match text {
        "root" => Some(0),
        _ => text.parse().ok(),
    }
}

/// Id, and for users the primary group.
fn find(tree: &Tree, file: &str, name: &str) -> Result<Option<(u32, u32)>> {
    let path = Path::new(file);
    let mut text = Vec::new();
    if tree
        .stat(path, true)
        .context(|| format!("reading /{file}"))?
        .is_some_and(|node| !node.is_dir())
    {
        tree.file(path)
            .and_then(|mut f| f.read_to_end(&mut text))
            .context(|| format!("reading /{file}"))?;
    }
    let text = String::from_utf8_lossy(&text);
    let row = rows(&text).find(|(n, ..)| n == name);
    Ok(row.map(|(_, id, group)| (id, group)))
}

fn rows(text: &str) -> impl Iterator<Item = Row> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let id = fields.nth(1)?.parse().ok()?;
        let group = fields.next().and_then(|g| g.parse().ok()).unwrap_or(id);
        Some((name, id, group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("etc")).expect("etc");
        std::fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0::/:/bin/sh\napp:x:10:20::/:\n",
        )
        .expect("passwd");
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nweb:x:30:app\n").expect("group");
        let tree = Tree::of_host(dir.path()).expect("tree");
        for (text, ids) in [
            ("app", (10, 20)),
            ("app:web", (10, 30)),
            ("5", (5, 5)),
            ("5:6", (5, 6)),
            ("5:web", (5, 30)),
            (":web", (0, 30)),
            (":6", (0, 6)),
            ("app:", (10, 20)),
            ("root", (0, 0)),
        ] {
            let unknown = Vec::new();
            assert_eq!(
                owner(&tree, text).expect(text),
                Owner { ids, unknown },
                "{text}"
            );
        }
        let nobody = owner(&tree, "nobody").expect("owner");
        assert_eq!(nobody.ids, (0, 0));
        assert_eq!(
            nobody.unknown,
            ["the user \"nobody\" is not in the image's /etc/passwd"]
        );
        let group = owner(&tree, "app:zz").expect("owner");
        assert_eq!((group.ids, group.unknown.len()), ((10, 20), 1));
        // An image without these files.
        let empty = tempfile::tempdir().expect("dir");
        let tree = Tree::of_host(empty.path()).expect("tree");
        let root = owner(&tree, "root:root").expect("owner");
        assert_eq!((root.ids, root.unknown.len()), ((0, 0), 0));
        assert_eq!(owner(&tree, "app:web").expect("owner").unknown.len(), 2);
    }
}
