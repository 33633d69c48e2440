//! Mount points that the sandbox had to make in a RUN's upper directory: found before, taken out after, so that they do not become part of the layer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use crate::tree::{self, Tree};
use crate::trouble::{Context, Result};

/// A mount point that the parent does not have.
#[derive(Debug)]
pub(crate) struct Placeholder {
    /// The deepest directory that the parent has.
    real: PathBuf,
    /// What will be made below it.
    missing: Vec<OsString>,
}

/// Which of the targets are missing in the parent.
pub(crate) fn find<'a>(
    parent: &Tree,
    targets: impl IntoIterator<Item = &'a Path>,
) -> Result<Vec<Placeholder>> {
    let mut found = Vec::new();
    for target in targets {
        let walk = parent
            .walk(target, None)
            .context(|| format!("looking for {} in the image", target.display()))?;
        if !walk.missing.is_empty() {
            found.push(Placeholder {
                real: walk.real,
                missing: walk.missing,
            });
        }
    }
    Ok(found)
}

/// Takes them out of the upper directory again where nothing was put into them, and with them the directories that only appear in it because of them.
pub(crate) fn remove(placeholders: &[Placeholder], upper: &Path, parent: &Tree) -> Result<()> {
    let upper = Tree::of_host(upper).context(|| format!("opening {}", upper.display()))?;
    for placeholder in placeholders {
        let mut path = placeholder
            .missing
            .iter()
            .fold(placeholder.real.clone(), |p, m| p.join(m));
        let mut gone = true;
        for _ in &placeholder.missing {
            gone = gone && remove_empty(&upper, &path, true)?;
            path.pop();
        }
        while gone && !path.as_os_str().is_empty() && same(&upper, parent, &path)? {
            gone = remove_empty(&upper, &path, false)?;
            path.pop();
        }
    }
    Ok(())
}

/// Removes an empty directory, or an empty file. `Ok(false)`: it stays.
fn remove_empty(upper: &Tree, path: &Path, file_too: bool) -> Result<bool> {
    let doing = || format!("removing the mount point {}", path.display());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    // What the command replaced by a link is its own.
    let walk = upper.walk(parent, None).context(doing)?;
    if walk.real != parent || !walk.missing.is_empty() {
        return Ok(false);
    }
    let Some(node) = upper.stat(path, false).context(doing)? else {
        return Ok(true);
    };
    let flags = match node.kind {
        FileType::Directory if upper.list(path).context(doing)?.is_empty() => AtFlags::REMOVEDIR,
        FileType::RegularFile if file_too && node.size == 0 => AtFlags::empty(),
        _ => return Ok(false),
    };
    let dir = upper.dir(parent).context(doing)?;
    rustix::fs::unlinkat(dir, name, flags).context(doing)?;
    Ok(true)
}

/// Whether a directory in the upper says nothing that the parent does not say.
fn same(upper: &Tree, parent: &Tree, path: &Path) -> Result<bool> {
    let doing = || format!("comparing {}", path.display());
    let (Some(above), Some(below)) = (
        upper.stat(path, false).context(doing)?,
        parent.stat(path, false).context(doing)?,
    ) else {
        return Ok(false);
    };
    if !(above.is_dir() && below.is_dir())
        || (above.mode, above.uid, above.gid) != (below.mode, below.uid, below.gid)
    {
        return Ok(false);
    }
    let (above, below) = (
        upper.dir(path).context(doing)?,
        parent.dir(path).context(doing)?,
    );
    Ok(!tree::is_opaque(&above).context(doing)?
        && tree::xattrs(above).context(doing)? == tree::xattrs(below).context(doing)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_the_mounts_made_goes() {
        let parent = tempfile::tempdir().expect("dir");
        let upper = tempfile::tempdir().expect("dir");
        let (p, u) = (parent.path(), upper.path());
        fs::create_dir_all(p.join("etc")).expect("dir");
        fs::create_dir_all(p.join("run")).expect("dir");
        fs::write(p.join("etc/hosts"), "").expect("file");
        symlink("../run/dns/resolv.conf", p.join("etc/resolv.conf")).expect("link");
        let tree = Tree::of_host(p).expect("tree");
        let targets = [
            "/etc/hosts",
            "/etc/resolv.conf",
            "/proc",
            "/root/.cache/pip",
            "/kept/x",
            "/etc/late",
        ];
        let found = find(&tree, targets.map(Path::new)).expect("find");
        assert_eq!(found.len(), 5, "the parent has /etc/hosts");

        fs::create_dir_all(u.join("run/dns")).expect("dir");
        fs::write(u.join("run/dns/resolv.conf"), "").expect("file");
        fs::create_dir(u.join("proc")).expect("dir");
        fs::create_dir_all(u.join("root/.cache/pip")).expect("dir");
        fs::write(u.join("root/.bashrc"), "").expect("file");
        fs::create_dir_all(u.join("kept/x/y")).expect("dir");
        fs::create_dir_all(u.join("etc")).expect("dir");
        fs::write(u.join("etc/hosts"), "").expect("file");
        fs::write(u.join("etc/late"), "content").expect("file");
        remove(&found, u, &tree).expect("remove");

        let mut left: Vec<_> = [
            "run",
            "proc",
            "root/.cache",
            "root/.bashrc",
            "kept/x/y",
            "etc/hosts",
            "etc/late",
        ]
        .into_iter()
        .filter(|f| u.join(f).exists())
        .collect();
        left.sort_unstable();
        assert_eq!(left, ["etc/hosts", "etc/late", "kept/x/y", "root/.bashrc"]);
    }

    #[test]
    fn a_directory_whose_mode_changed_stays() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().expect("dir");
        let upper = tempfile::tempdir().expect("dir");
        fs::create_dir(parent.path().join("etc")).expect("dir");
        let tree = Tree::of_host(parent.path()).expect("tree");
        let found = find(&tree, [Path::new("/etc/hosts")]).expect("find");
        fs::create_dir(upper.path().join("etc")).expect("dir");
        fs::set_permissions(upper.path().join("etc"), fs::Permissions::from_mode(0o700))
            .expect("mode");
        fs::write(upper.path().join("etc/hosts"), "").expect("file");
        remove(&found, upper.path(), &tree).expect("remove");
        assert!(upper.path().join("etc").exists() && !upper.path().join("etc/hosts").exists());
    }
}
