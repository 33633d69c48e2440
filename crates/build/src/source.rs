//! What a COPY or ADD takes: sources found by name or wildcard, listed entry by entry, and their content hash for the cache.
//!
//! Owns: reading sources. Must not: write anything.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use crate::dockerignore::Dockerignore;
use crate::pattern::{self, Pattern};
use crate::tree::{self, Node, Tree};
use crate::trouble::{Context, Result, Trouble};

/// Where sources are read from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) tree: Tree,
    /// The build context; else another stage or image, whose owners and extended attributes are kept.
    pub(crate) context: bool,
    /// Empty for stages and images.
    pub(crate) ignore: Dockerignore,
}

/// One source of a COPY.
#[derive(Debug)]
pub(crate) struct Source {
    /// Last component, for a file copied into a directory.
    pub(crate) name: OsString,
    pub(crate) is_dir: bool,
    /// For a file: itself. For a directory: everything below it, parents before children.
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// Below the source; empty for a file that is the source.
    pub(crate) below: PathBuf,
    /// In the origin.
    pub(crate) path: PathBuf,
    pub(crate) node: Node,
    pub(crate) link: Option<OsString>,
}

/// Removes `.` and `..`; `None` if the path leaves the root.
fn clean(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}

impl Origin {
    fn excludes(&self, path: &str) -> bool {
        self.context && self.ignore.excludes(path)
    }

    /// Finds the sources of one argument.
    pub(crate) fn find(&self, argument: &str) -> Result<Vec<Source>> {
        let path = match clean(argument) {
            Some(p) => p,
            None if self.context => {
                return Err(Trouble::Refused(format!(
                    "{argument}: the path leads out of the build context; move the file into the context, or build from a directory above"
                )));
            }
            None => crate::state::absolute("/", argument)[1..].to_owned(),
        };
        if !pattern::is_wild(&path) {
            let path = pattern::unescape(&path);
            return match self.source(&path)? {
                Some(source) => Ok(vec![source]),
                None => Err(self.missing(argument, &path)),
            };
        }
        // A pattern may match nothing; a directory that it names must be there.
        let named: Vec<&str> = path
            .split('/')
            .take_while(|part| !pattern::is_wild(part))
            .collect();
        let named = pattern::unescape(&named.join("/"));
        let there = self.tree.stat(Path::new(&named), true);
        if there.context(|| format!("reading {named}"))?.is_none() {
            return Err(self.missing(argument, &named));
        }
        let mut found = Vec::new();
        for path in self.wild(&path)? {
            found.extend(self.source(&path)?);
        }
        Ok(found)
    }

    fn missing(&self, argument: &str, path: &str) -> Trouble {
        let place = match self.context {
            true => "the build context",
            false => "the --from source",
        };
        let there = matches!(self.tree.stat(Path::new(path), true), Ok(Some(_)));
        Trouble::Refused(match there {
            true => format!("{argument}: the file is there, but .dockerignore excludes it"),
            false => format!("{argument}: not found in {place}"),
        })
    }

    /// Paths that match, component by component.
    fn wild(&self, path: &str) -> Result<Vec<String>> {
        let mut matches = vec![String::new()];
        for part in path.split('/') {
            let mut next = Vec::new();
            let compiled = Pattern::new(part, false)?;
            for base in &matches {
                if !pattern::is_wild(part) {
                    next.push(join(base, &pattern::unescape(part)));
                    continue;
                }
                let stat = self
                    .tree
                    .stat(Path::new(base), true)
                    .context(|| format!("reading {base}"))?;
                if !stat.is_some_and(|n| n.is_dir()) {
                    continue;
                }
                for name in self
                    .tree
                    .list(Path::new(base))
                    .context(|| format!("reading {base}"))?
                {
                    // Names that are not UTF-8 cannot be written in a Dockerfile, and no wildcard is meant for them.
                    if let Some(name) = name.to_str().filter(|n| compiled.matches(n)) {
                        next.push(join(base, name));
                    }
                }
            }
            matches = next;
        }
        Ok(matches)
    }

    /// One source; `None` if it does not exist or is excluded. A link that is itself the source is followed.
    fn source(&self, path: &str) -> Result<Option<Source>> {
        let reading = || format!("reading {path}");
        let Some(node) = self.tree.stat(Path::new(path), true).context(reading)? else {
            return Ok(None);
        };
        let name = Path::new(path).file_name().unwrap_or_default().to_owned();
        let mut entries = Vec::new();
        if node.is_dir() {
            self.below(Path::new(path), Path::new(""), &mut entries)?;
            if entries.is_empty() && !path.is_empty() && self.excludes(path) {
                return Ok(None);
            }
        } else {
            if self.excludes(path) {
                return Ok(None);
            }
            if node.kind != FileType::RegularFile {
                return Err(Trouble::Refused(format!(
                    "{path} is neither a file nor a directory"
                )));
            }
            entries.push(Entry {
                below: PathBuf::new(),
                path: path.into(),
                node,
                link: None,
            });
        }
        Ok(Some(Source {
            name,
            is_dir: node.is_dir(),
            entries,
        }))
    }

    fn below(&self, top: &Path, below: &Path, entries: &mut Vec<Entry>) -> Result<()> {
        let dir = top.join(below);
        let names = self
            .tree
            .list(&dir)
            .context(|| format!("reading {}", dir.display()))?;
        for name in names {
            let path = dir.join(&name);
            let reading = || format!("reading {}", path.display());
            let Some(node) = self.tree.stat(&path, false).context(reading)? else {
                continue;
            };
            // Nothing can be copied of a socket.
            if node.kind == FileType::Socket || node.kind == FileType::Unknown {
                continue;
            }
            let excluded = self.excludes(&path.to_string_lossy());
            let link = match node.kind {
                FileType::Symlink => Some(self.tree.read_link(&path).context(reading)?),
                _ => None,
            };
            let place = entries.len();
            let below = below.join(&name);
            if !excluded {
                entries.push(Entry {
                    below: below.clone(),
                    path: path.clone(),
                    node,
                    link,
                });
            }
            if node.is_dir() && !(excluded && self.ignore.prunes()) {
                self.below(top, &below, entries)?;
                // An excluded directory comes along only for what is included below it.
                if excluded && entries.len() > place {
                    entries.insert(
                        place,
                        Entry {
                            below,
                            path,
                            node,
                            link: None,
                        },
                    );
                }
            }
        }
        Ok(())
    }

    /// Adds all that a copy of these sources would show, except times, to a hash.
    pub(crate) fn hash(&self, sources: &[Source], hash: &mut Sha256) -> Result<()> {
        for source in sources {
            field(hash, source.name.as_bytes());
            hash.update([u8::from(source.is_dir)]);
            for entry in &source.entries {
                let reading = || format!("reading {}", entry.path.display());
                field(hash, entry.below.as_os_str().as_bytes());
                hash.update(entry.node.mode.to_le_bytes());
                hash.update([file_type(entry.node.kind)]);
                hash.update(entry.node.device.to_le_bytes());
                if !self.context {
                    hash.update(entry.node.uid.to_le_bytes());
                    hash.update(entry.node.gid.to_le_bytes());
                    for (name, value) in self.xattrs(entry)? {
                        field(hash, name.as_bytes());
                        field(hash, &value);
                    }
                }
                if let Some(link) = &entry.link {
                    field(hash, link.as_bytes());
                }
                if entry.node.kind == FileType::RegularFile {
                    let mut file = self.tree.file(&entry.path).context(reading)?;
                    let mut content = Sha256::new();
                    let mut buffer = vec![0; 128 * 1024];
                    loop {
                        let n = file.read(&mut buffer).context(reading)?;
                        if n == 0 {
                            break;
                        }
                        content.update(&buffer[..n]);
                    }
                    hash.update(content.finalize());
                }
            }
            field(hash, b"end");
        }
        Ok(())
    }

    /// Extended attributes that are copied: those of stages and images only.
    pub(crate) fn xattrs(&self, entry: &Entry) -> Result<Vec<(OsString, Vec<u8>)>> {
        let reading = || format!("reading {}", entry.path.display());
        let fd = match entry.node.kind {
            _ if self.context => return Ok(Vec::new()),
            FileType::RegularFile => self.tree.file(&entry.path).context(reading)?.into(),
            FileType::Directory => self.tree.dir(&entry.path).context(reading)?,
            _ => return Ok(Vec::new()),
        };
        tree::xattrs(fd).context(reading)
    }
}

fn join(base: &str, name: &str) -> String {
    match base.is_empty() {
        true => name.to_owned(),
        false => format!("{base}/{name}"),
    }
}

fn file_type(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 0,
        FileType::Directory => 1,
        FileType::Symlink => 2,
        FileType::Fifo => 3,
        FileType::CharacterDevice => 4,
        FileType::BlockDevice => 5,
        _ => 6,
    }
}

/// Length before content, so that neighbours cannot be confused.
pub(crate) fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn context(files: &[&str], ignore: &str) -> (tempfile::TempDir, Origin) {
        let dir = tempfile::tempdir().expect("dir");
        for f in files {
            let path = dir.path().join(f);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("dirs");
            std::fs::write(path, f).expect("file");
        }
        let origin = Origin {
            tree: Tree::of_host(dir.path()).expect("tree"),
            context: true,
            ignore: Dockerignore::parse(ignore).expect("ignore"),
        };
        (dir, origin)
    }

    fn listed(origin: &Origin, argument: &str) -> Vec<String> {
        origin
            .find(argument)
            .expect(argument)
            .iter()
            .flat_map(|s| &s.entries)
            .map(|e| e.path.to_string_lossy().into_owned())
            .collect()
    }

    fn hash(origin: &Origin, argument: &str) -> Vec<u8> {
        let mut h = Sha256::new();
        origin
            .hash(&origin.find(argument).expect("find"), &mut h)
            .expect("hash");
        h.finalize().to_vec()
    }

    #[test]
    fn directories_wildcards_and_ignored_files() {
        let (_dir, o) = context(
            &[
                "a.txt",
                "b.txt",
                "src/x.c",
                "src/x.o",
                "src/gen/y.c",
                "log/k",
                "log/d",
            ],
            "**/*.o\nlog\n!log/k\nb.txt",
        );
        assert_eq!(listed(&o, "*.txt"), ["a.txt"]);
        assert_eq!(listed(&o, "src/"), ["src/gen", "src/gen/y.c", "src/x.c"]);
        assert_eq!(listed(&o, "s*/*.c"), ["src/x.c"]);
        assert_eq!(
            listed(&o, "."),
            [
                "a.txt",
                "log",
                "log/k",
                "src",
                "src/gen",
                "src/gen/y.c",
                "src/x.c"
            ]
        );
        assert!(listed(&o, "none*").is_empty());
        assert!(listed(&o, "src/none*").is_empty());
        assert!(listed(&o, "*/none/*").is_empty());
        assert!(listed(&o, "a.txt/*").is_empty());
    }

    #[test]
    fn missing_excluded_and_escaping_sources_are_told_apart() {
        let (dir, o) = context(&["a", "b"], "b");
        symlink("/etc/passwd", dir.path().join("out")).expect("link");
        let message = |a: &str| o.find(a).expect_err(a).to_string();
        assert_eq!(message("zz"), "zz: not found in the build context");
        assert!(message("b").contains(".dockerignore excludes it"));
        assert!(message("../a").contains("leads out of the build context"));
        assert!(message("x/../../a").contains("leads out of the build context"));
        assert_eq!(message("out"), "out: not found in the build context");
        assert_eq!(message("zz/*"), "zz/*: not found in the build context");
        assert_eq!(listed(&o, "/a"), ["a"]);
        assert_eq!(listed(&o, "x/../a"), ["a"]);
    }

    #[test]
    fn the_hash_sees_content_mode_and_links_but_not_time() {
        let (dir, o) = context(&["d/a", "d/b"], "");
        symlink("a", dir.path().join("d/l")).expect("link");
        let first = hash(&o, "d");
        let file = std::fs::File::options()
            .write(true)
            .open(dir.path().join("d/a"))
            .expect("open");
        file.set_modified(std::time::UNIX_EPOCH).expect("time");
        assert_eq!(hash(&o, "d"), first);
        let set = |m| {
            std::fs::set_permissions(dir.path().join("d/a"), std::fs::Permissions::from_mode(m))
                .expect("mode");
        };
        set(0o600);
        assert_ne!(hash(&o, "d"), first);
        set(0o644);
        assert_eq!(hash(&o, "d"), first);
        std::fs::write(dir.path().join("d/a"), "other").expect("write");
        assert_ne!(hash(&o, "d"), first);
        std::fs::write(dir.path().join("d/a"), "d/a").expect("write");
        std::fs::remove_file(dir.path().join("d/l")).expect("remove");
        symlink("b", dir.path().join("d/l")).expect("link");
        assert_ne!(hash(&o, "d"), first);
    }
}
