//! COPY and ADD: sources written into a tree, by Docker's rules for destinations.
//!
//! A directory source gives its contents; a file goes into the destination if that is a directory or is written with a final slash, else it becomes the
//! destination. Existing directories keep their place (links to directories are followed, inside the root), other entries are replaced.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType};

use crate::chmod::Chmod;
use crate::source::{Entry, Origin, Source};
use crate::tree::{self, Attributes, Stream, Tree};
use crate::trouble::{Context, Result, Trouble};
use crate::{unpack, users};

/// What to copy where; all variables substituted.
#[derive(Debug, Default)]
pub(crate) struct Job {
    /// As written: a final slash counts.
    pub(crate) dest: String,
    pub(crate) workdir: String,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
    /// ADD: tar archives are unpacked.
    pub(crate) unpack: bool,
    /// Files given as here-documents: name and content.
    pub(crate) inline: Vec<(String, String)>,
}

struct Writer<'a> {
    origin: &'a Origin,
    target: &'a Tree,
    owner: Option<(u32, u32)>,
    chmod: Option<Chmod>,
    /// First copy of each file with several names.
    linked: HashMap<(u64, u64), (PathBuf, OsString)>,
}

/// Writes the sources. Returns warnings.
pub(crate) fn write(
    job: &Job,
    origin: &Origin,
    sources: &[Source],
    target: &Tree,
) -> Result<Vec<String>> {
    let chmod = job.chmod.as_deref().map(Chmod::parse).transpose()?;
    // Patterns that match nothing: not even the destination is made.
    if sources.is_empty() && job.inline.is_empty() {
        return Ok(vec!["no file matches: nothing is copied".to_owned()]);
    }
    let owner = job.chown.as_deref().map(|text| users::owner(target, text));
    let owner = owner.transpose()?;
    let mut writer = Writer {
        origin,
        target,
        owner: owner.as_ref().map(|owner| owner.ids),
        chmod,
        linked: HashMap::new(),
    };
    let dest = PathBuf::from(crate::state::absolute(&job.workdir, &job.dest));
    let slash = job.dest.ends_with('/')
        || matches!(job.dest.rsplit('/').next(), Some("." | ".."))
        || dest == Path::new("/");
    let there = writer.walk(&dest)?;
    let into = slash || (there.missing.is_empty() && there.is_dir);
    if !into && sources.len() + job.inline.len() > 1 {
        return Err(Trouble::Refused(format!(
            "with more than one source the destination must be a directory: write {}/",
            job.dest
        )));
    }
    for source in sources {
        if source.is_dir {
            writer.directory(source, &dest)?;
            continue;
        }
        let Some(entry) = source.entries.first() else {
            continue;
        };
        if job.unpack && writer.unpacked(entry, &dest)? {
            continue;
        }
        let (parent, name) = writer.place(&dest, into, &source.name)?;
        let dir = writer.make(&parent)?;
        writer.entry(entry, &dir, &parent, &name)?;
    }
    for (name, content) in &job.inline {
        let (parent, name) = writer.place(&dest, into, OsStr::new(name))?;
        let dir = writer.make(&parent)?;
        writer.room(&dir, &parent, &name)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
        let (uid, gid) = writer.owner.unwrap_or((0, 0));
        let attributes = Attributes {
            mode: writer.mode(0o644, false),
            uid,
            gid,
            mtime: (now, 0),
            xattrs: Vec::new(),
        };
        tree::put_file(&dir, &name, &mut Stream(content.as_bytes()), &attributes)
            .context(|| writing(&parent.join(&name)))?;
    }
    Ok(owner.map_or_else(Vec::new, |owner| owner.unknown))
}

fn writing(path: &Path) -> String {
    format!("writing {}", path.display())
}

/// Says that something in the way is not a directory, which the Dockerfile's author can mend.
fn not_dir(error: std::io::Error, path: &Path) -> Trouble {
    match error.kind() {
        std::io::ErrorKind::NotADirectory => Trouble::Refused(format!(
            "cannot copy to {}: it or something above it is not a directory in the image",
            path.display()
        )),
        _ => Trouble::Io {
            context: writing(path),
            source: error,
        },
    }
}

impl Writer<'_> {
    fn walk(&self, path: &Path) -> Result<tree::Walk> {
        self.target.walk(path, None).map_err(|e| not_dir(e, path))
    }

    /// Makes a directory and those above it; returns it opened.
    fn make(&self, path: &Path) -> Result<OwnedFd> {
        let walk = self
            .target
            .walk(path, Some(self.owner.unwrap_or((0, 0))))
            .map_err(|e| not_dir(e, path))?;
        self.target.dir(&walk.real).map_err(|e| not_dir(e, path))
    }

    /// Parent and name of a file source. A link at the destination is followed.
    fn place(&self, dest: &Path, into: bool, name: &OsStr) -> Result<(PathBuf, OsString)> {
        if into {
            return Ok((dest.to_owned(), name.to_owned()));
        }
        let walk = self.walk(dest)?;
        let path = walk.missing.iter().fold(walk.real, |p, m| p.join(m));
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
            _ => Ok((dest.to_owned(), name.to_owned())),
        }
    }

    fn directory(&mut self, source: &Source, dest: &Path) -> Result<()> {
        self.make(dest)?;
        let mut open: Option<(PathBuf, OwnedFd)> = None;
        let mut directories = Vec::new();
        for entry in &source.entries {
            let path = dest.join(&entry.below);
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let dir = match open.take() {
                Some((p, dir)) if p == parent => dir,
                _ => self.target.dir(parent).map_err(|e| not_dir(e, parent))?,
            };
            if entry.node.is_dir() {
                self.make(&path)?;
                directories.push((path.clone(), entry));
            } else {
                self.entry(entry, &dir, parent, name)?;
            }
            open = Some((parent.to_owned(), dir));
        }
        // Attributes of directories come last and deepest first: writing into them changes their times.
        for (path, entry) in directories.into_iter().rev() {
            let attributes = self.attributes(entry)?;
            self.target
                .dir(&path)
                .and_then(|dir| tree::finish_dir(dir, &attributes))
                .context(|| writing(&path))?;
        }
        Ok(())
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes> {
        let kept = match self.origin.context {
            true => (0, 0),
            false => (entry.node.uid, entry.node.gid),
        };
        let (uid, gid) = self.owner.unwrap_or(kept);
        Ok(Attributes {
            mode: self.mode(entry.node.mode, entry.node.is_dir()),
            uid,
            gid,
            mtime: entry.node.mtime,
            xattrs: self.origin.xattrs(entry)?,
        })
    }

    fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        match &self.chmod {
            Some(chmod) => chmod.apply(mode, is_dir),
            None => mode,
        }
    }

    fn room(&self, dir: &OwnedFd, parent: &Path, name: &OsStr) -> Result<()> {
        match tree::make_room(dir, name).context(|| writing(&parent.join(name)))? {
            true => Ok(()),
            false => Err(Trouble::Refused(format!(
                "cannot replace the directory {} with a file",
                parent.join(name).display()
            ))),
        }
    }

    /// Anything but a directory.
    fn entry(&mut self, entry: &Entry, dir: &OwnedFd, parent: &Path, name: &OsStr) -> Result<()> {
        let path = parent.join(name);
        self.room(dir, parent, name)?;
        let attributes = self.attributes(entry)?;
        let doing = || writing(&path);
        match (entry.node.kind, &entry.link) {
            (FileType::Symlink, Some(to)) => {
                tree::put_link(dir, name, to, &attributes).context(doing)
            }
            (FileType::RegularFile, _) => {
                if entry.node.links > 1 {
                    if let Some((first, first_name)) = self.linked.get(&entry.node.identity) {
                        let first = self.target.dir(first).context(doing)?;
                        return rustix::fs::linkat(
                            first,
                            first_name.as_os_str(),
                            dir,
                            name,
                            AtFlags::empty(),
                        )
                        .context(doing);
                    }
                    self.linked
                        .insert(entry.node.identity, (parent.to_owned(), name.to_owned()));
                }
                let mut file = self
                    .origin
                    .tree
                    .file(&entry.path)
                    .context(|| format!("reading {}", entry.path.display()))?;
                tree::put_file(dir, name, &mut file, &attributes).context(doing)
            }
            (kind, _) => {
                tree::put_special(dir, name, kind, entry.node.device, &attributes).context(doing)
            }
        }
    }

    /// Unpacks the file into `dest` if it is an archive.
    fn unpacked(&self, entry: &Entry, dest: &Path) -> Result<bool> {
        let open = || {
            self.origin
                .tree
                .file(&entry.path)
                .context(|| format!("reading {}", entry.path.display()))
        };
        let Some(format) = unpack::sniff(open()?)? else {
            return Ok(false);
        };
        self.make(dest)?;
        unpack::unpack(open()?, format, self.target, dest, self.owner)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::dockerignore::Dockerignore;

    struct Place {
        from: tempfile::TempDir,
        to: tempfile::TempDir,
    }

    impl Place {
        fn new(files: &[&str]) -> Self {
            let place = Self {
                from: tempfile::tempdir().expect("dir"),
                to: tempfile::tempdir().expect("dir"),
            };
            for f in files {
                let path = place.from.path().join(f);
                std::fs::create_dir_all(path.parent().expect("parent")).expect("dirs");
                std::fs::write(path, f).expect("file");
            }
            place
        }

        fn copy_as(&self, sources: &[&str], context: bool, job: Job) -> Result<()> {
            let origin = Origin {
                tree: Tree::of_host(self.from.path()).expect("tree"),
                context,
                ignore: Dockerignore::default(),
            };
            let mut found = Vec::new();
            for s in sources {
                found.extend(origin.find(s)?);
            }
            let target = Tree::of_host(self.to.path()).expect("tree");
            write(&job, &origin, &found, &target).map(drop)
        }

        fn copy(&self, sources: &[&str], dest: &str) -> Result<()> {
            let job = Job {
                dest: dest.into(),
                workdir: "/w".into(),
                ..Job::default()
            };
            self.copy_as(sources, true, job)
        }

        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.to.path().join(path)).expect(path)
        }
    }

    #[test]
    fn where_files_and_directories_land() {
        let p = Place::new(&["f", "g", "d/x", "d/sub/y"]);
        p.copy(&["f"], "/new").expect("file to a new name");
        assert_eq!(p.read("new"), "f");
        p.copy(&["f"], "/dir/")
            .expect("final slash makes a directory");
        assert_eq!(p.read("dir/f"), "f");
        p.copy(&["g"], "/dir").expect("existing directory");
        assert_eq!(p.read("dir/g"), "g");
        p.copy(&["f"], "rel/name")
            .expect("relative to the work directory");
        assert_eq!(p.read("w/rel/name"), "f");
        p.copy(&["f"], ".").expect("the work directory");
        assert_eq!(p.read("w/f"), "f");
        p.copy(&["d"], "/all").expect("contents of a directory");
        assert_eq!(p.read("all/x"), "d/x");
        assert_eq!(p.read("all/sub/y"), "d/sub/y");
        p.copy(&["d", "f"], "/many/").expect("several sources");
        assert_eq!(
            (p.read("many/x"), p.read("many/f")),
            ("d/x".into(), "f".into())
        );
        p.copy(&["g"], "/new").expect("replaces a file");
        assert_eq!(p.read("new"), "g");

        let message = p
            .copy(&["f", "g"], "/several")
            .expect_err("no directory")
            .to_string();
        assert!(message.contains("write /several/"), "{message}");
        let message = p
            .copy(&["d"], "/new")
            .expect_err("a file is there")
            .to_string();
        assert!(message.contains("cannot copy to /new"), "{message}");
        let message = p
            .copy(&["f"], "/new/x")
            .expect_err("a file is there")
            .to_string();
        assert!(message.contains("cannot copy to /new/x"), "{message}");
    }

    #[test]
    fn links_in_the_image_are_followed_inside_it() {
        let p = Place::new(&["bin/tool", "f"]);
        std::fs::create_dir_all(p.to.path().join("usr/bin")).expect("dirs");
        symlink("usr/bin", p.to.path().join("bin")).expect("link");
        symlink("/../../../etc", p.to.path().join("out")).expect("link");
        symlink("/data/real", p.to.path().join("name")).expect("link");
        p.copy(&["."], "/").expect("copy");
        assert_eq!(p.read("usr/bin/tool"), "bin/tool");
        assert!(p.to.path().join("bin").is_symlink());
        p.copy(&["f"], "/out/").expect("copy");
        assert_eq!(p.read("etc/f"), "f");
        p.copy(&["f"], "/name").expect("copy");
        assert_eq!(p.read("data/real"), "f");
    }

    #[test]
    fn a_link_in_a_copied_directory_replaces_and_stays_a_link() {
        let p = Place::new(&["d/x"]);
        symlink("x", p.from.path().join("d/l")).expect("link");
        std::fs::create_dir(p.to.path().join("d")).expect("dir");
        symlink("/victim", p.to.path().join("d/x")).expect("link");
        p.copy(&["d"], "/d").expect("copy");
        assert!(!p.to.path().join("victim").exists());
        assert!(!p.to.path().join("d/x").is_symlink());
        assert_eq!(p.read("d/x"), "d/x");
        assert_eq!(
            std::fs::read_link(p.to.path().join("d/l")).expect("link"),
            Path::new("x")
        );
    }

    #[test]
    fn attributes_are_kept_or_set() {
        let p = Place::new(&["d/f", "d/sub/g"]);
        let f = p.from.path().join("d/f");
        std::fs::set_permissions(&f, std::fs::Permissions::from_mode(0o640)).expect("mode");
        std::os::unix::fs::chown(&f, Some(7), Some(8)).expect("chown");
        let sub = std::fs::File::open(p.from.path().join("d/sub")).expect("open");
        sub.set_modified(UNIX_EPOCH).expect("time");
        std::fs::hard_link(&f, p.from.path().join("d/h")).expect("link");
        let meta = |path: &str| std::fs::metadata(p.to.path().join(path)).expect("meta");
        let owner = |path: &str| (meta(path).uid(), meta(path).gid());

        p.copy(&["d"], "/ctx").expect("copy");
        assert_eq!(
            owner("ctx/f"),
            (0, 0),
            "files of the context belong to root"
        );
        assert_eq!(meta("ctx/f").mode() & 0o7777, 0o640);
        assert_eq!(meta("ctx/sub").mtime(), 0);
        assert_eq!(meta("ctx/f").ino(), meta("ctx/h").ino(), "hard links stay");

        let job = |dest: &str| Job {
            dest: dest.into(),
            ..Job::default()
        };
        p.copy_as(&["d"], false, job("/stage")).expect("copy");
        assert_eq!(owner("stage/f"), (7, 8), "owners of a stage are kept");

        let own = Job {
            chown: Some("3:4".into()),
            chmod: Some("711".into()),
            ..job("/own/deep")
        };
        p.copy_as(&["d"], true, own).expect("copy");
        for path in ["own", "own/deep", "own/deep/f", "own/deep/sub"] {
            assert_eq!(owner(path), (3, 4), "{path}");
        }
        assert_eq!(meta("own/deep/f").mode() & 0o7777, 0o711);

        let symbolic = Job {
            chmod: Some("u+x,g-r,o=rX".into()),
            inline: vec![("EOF".into(), "hello\n".into())],
            ..job("/symbolic/")
        };
        p.copy_as(&["d"], true, symbolic).expect("copy");
        let mode = |path: &str| meta(path).mode() & 0o7777;
        assert_eq!(mode("symbolic/f"), 0o704, "of 640");
        assert_eq!(mode("symbolic/sub"), 0o715, "of 755");
        assert_eq!(mode("symbolic/EOF"), 0o704, "of 644");
    }

    #[test]
    fn where_nothing_is_to_be_copied_nothing_is_made() {
        let p = Place::new(&["f"]);
        p.copy(&["none*"], "/dir/").expect("nothing");
        assert!(!p.to.path().join("dir").exists());
        p.copy(&["none*", "f"], "/dir/").expect("one of two");
        assert_eq!(p.read("dir/f"), "f");
    }

    #[test]
    fn capabilities_of_a_stage_are_kept_and_those_of_the_context_are_not() {
        // vfs_cap_data, revision 2: CAP_NET_BIND_SERVICE permitted and effective (linux/capability.h).
        let capability: Vec<u8> = [0x0200_0001u32, 1 << 10, 0, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let p = Place::new(&["f"]);
        let file = std::fs::File::open(p.from.path().join("f")).expect("open");
        rustix::fs::fsetxattr(
            &file,
            "security.capability",
            &capability,
            rustix::fs::XattrFlags::empty(),
        )
        .expect("set");
        let job = |dest: &str| Job {
            dest: dest.into(),
            chown: Some("5:6".into()),
            ..Job::default()
        };
        p.copy_as(&["f"], false, job("/stage")).expect("copy");
        p.copy_as(&["f"], true, job("/context")).expect("copy");
        let found = |name: &str| {
            tree::xattrs(std::fs::File::open(p.to.path().join(name)).expect("open"))
                .expect("attributes")
        };
        assert_eq!(found("stage"), [("security.capability".into(), capability)]);
        assert!(found("context").is_empty());
    }

    #[test]
    fn here_documents_become_files() {
        let p = Place::new(&[]);
        let job = |dest: &str| Job {
            dest: dest.into(),
            inline: vec![("EOF".into(), "hello\n".into())],
            ..Job::default()
        };
        p.copy_as(&[], true, job("/a/b")).expect("copy");
        p.copy_as(&[], true, job("/c/")).expect("copy");
        assert_eq!(
            (p.read("a/b"), p.read("c/EOF")),
            ("hello\n".into(), "hello\n".into())
        );
    }

    #[test]
    fn a_directory_is_not_replaced_by_a_file() {
        let p = Place::new(&["d/x"]);
        std::fs::create_dir_all(p.to.path().join("t/x")).expect("dirs");
        let message = p.copy(&["d"], "/t").expect_err("refused").to_string();
        assert_eq!(message, "cannot replace the directory /t/x with a file");
    }
}
