//! `--chown` and `--chmod` values: names are looked up in the target's /etc/passwd and /etc/group.

use crate::tree::Tree;
use crate::trouble::{Context, Result, Trouble};
use std::io::Read;
use std::path::Path;

/// Name, id, and for users the primary group.
type Row = (String, u32, u32);

/// `user`, `uid`, `user:group`, `uid:gid`. Without a group: a named user's own, or the same number.
pub(crate) fn owner(tree: &Tree, text: &str) -> Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (text, None),
    };
    let (uid, own_group) = match user.parse() {
        Ok(id) => (id, id),
        Err(_) => find(tree, "etc/passwd", user, "user")?,
    };
    let gid = match group {
        None => own_group,
        Some(g) => match g.parse() {
            Ok(id) => id,
            Err(_) => find(tree, "etc/group", g, "group")?.0,
        },
    };
    Ok((uid, gid))
}

fn find(tree: &Tree, file: &str, name: &str, kind: &str) -> Result<(u32, u32)> {
    let path = Path::new(file);
    let mut text = String::new();
    if tree
        .stat(path, true)
        .context(|| format!("reading /{file}"))?
        .is_some()
    {
        tree.file(path)
            .and_then(|mut f| f.read_to_string(&mut text))
            .context(|| format!("reading /{file}"))?;
    }
    rows(&text)
        .find(|(n, ..)| n == name)
        .map(|(_, id, group)| (id, group))
        .ok_or_else(|| {
            Trouble::Refused(format!(
                "the {kind} {name:?} is not in the image's /{file}; add it with RUN before, or give a number"
            ))
        })
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

/// Octal, as in `--chmod=755`.
pub(crate) fn mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|m| *m <= 0o7777)
        .ok_or_else(|| {
            Trouble::Refused(format!(
                "--chmod={text}: only octal modes such as 755 are supported"
            ))
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
        for (text, want) in [
            ("app", (10, 20)),
            ("app:web", (10, 30)),
            ("5", (5, 5)),
            ("5:6", (5, 6)),
            ("5:web", (5, 30)),
        ] {
            assert_eq!(owner(&tree, text).expect(text), want, "{text}");
        }
        let message = owner(&tree, "nobody").expect_err("unknown").to_string();
        assert!(message.starts_with("the user \"nobody\" is not in the image's /etc/passwd"));
        assert!(owner(&tree, "app:zz").is_err());
    }

    #[test]
    fn modes() {
        assert_eq!(mode("755").expect("mode"), 0o755);
        assert_eq!(mode("4755").expect("mode"), 0o4755);
        assert!(mode("u+x").is_err() && mode("99").is_err() && mode("77777").is_err());
    }
}
