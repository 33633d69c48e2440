//! A container's files as its processes see them, put together from the layers of its overlays. Nothing is mounted.
//!
//! The rules are overlayfs's (kernel: filesystems/overlayfs.rst), as far as this project's mount options let it use them: the topmost layer
//! that has a name decides; directories are merged downwards until one is opaque or the name is something else; a character device 0/0
//! hides the name. The layers are hostile: the kernel resolves every path without links, and links are followed here, inside the view.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir as RawDir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// The kernel's limit on symbolic links in one path.
const MAX_LINKS: usize = 40;
const OPAQUE: &str = "trusted.overlay.opaque";

/// One layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its directory.
    pub path: PathBuf,
    /// Whether its files never change, so that another name of a file is as good as a copy.
    pub still: bool,
}

#[derive(Debug)]
struct Root {
    fd: OwnedFd,
    still: bool,
}

/// The merged files of one container.
#[derive(Debug)]
pub struct View {
    roots: Vec<Root>,
    root: Dir,
    /// What is mounted elsewhere than at `/`, by its place in the view.
    mounts: HashMap<PathBuf, Dir>,
}

/// A place in one layer.
#[derive(Debug, Clone)]
struct Place {
    root: usize,
    path: PathBuf,
}

/// A merged directory.
#[derive(Debug, Clone)]
pub struct Dir {
    /// Where it is seen, without a leading slash.
    at: PathBuf,
    /// Where its entries are, topmost first. Empty only for a root without layers.
    places: Vec<Place>,
}

/// Something that is there.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it is seen, without links and without a leading slash.
    pub at: PathBuf,
    /// Of the topmost.
    pub stat: Stat,
    /// For a directory: its entries.
    pub dir: Option<Dir>,
    /// For a directory: whether it hides what layers below those of this view have at its place.
    pub hides: bool,
    place: Place,
}

impl Node {
    /// What it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it stands for a removal.
    pub fn is_whiteout(&self) -> bool {
        is_whiteout(&self.stat)
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

impl View {
    /// Of these layers, topmost first.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn new(layers: &[Layer]) -> io::Result<View> {
        let mut view = View {
            roots: Vec::new(),
            root: Dir {
                at: PathBuf::new(),
                places: Vec::new(),
            },
            mounts: HashMap::new(),
        };
        view.root = view.open_layers(layers, PathBuf::new())?;
        Ok(view)
    }

    /// Mounts other layers at `target`, which exists. What is mounted later hides what was mounted below the target before.
    ///
    /// # Errors
    /// A layer cannot be opened, or there is no such directory.
    pub fn mount(&mut self, target: &Path, layers: &[Layer]) -> io::Result<()> {
        let found = self.find(target, true)?.and_then(|node| node.dir);
        let at = found.ok_or(Errno::NOENT)?.at;
        self.mounts.retain(|place, _| !place.starts_with(&at));
        let dir = self.open_layers(layers, at.clone())?;
        self.mounts.insert(at, dir);
        Ok(())
    }

    fn open_layers(&mut self, layers: &[Layer], at: PathBuf) -> io::Result<Dir> {
        let mut places = Vec::new();
        for layer in layers {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&layer.path, flags, Mode::empty()).map_err(|e| {
                let e = io::Error::from(e);
                io::Error::new(e.kind(), format!("{}: {e}", layer.path.display()))
            })?;
            places.push(Place {
                root: self.roots.len(),
                path: PathBuf::new(),
            });
            self.roots.push(Root {
                fd,
                still: layer.still,
            });
        }
        Ok(Dir { at, places })
    }

    /// Whether there is no layer at all: an image from scratch.
    pub(crate) fn is_empty(&self) -> bool {
        self.root.places.is_empty()
    }

    /// What is there under a name.
    pub(crate) fn child(&self, dir: &Dir, name: &OsStr) -> io::Result<Option<Node>> {
        Ok(self.look_up(dir, name)?.filter(|node| !node.is_whiteout()))
    }

    /// The directory `/`.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn root(&self) -> io::Result<Node> {
        self.node_of(&self.root)
    }

    /// The node of a directory that is known to be there: a root or a mount.
    fn node_of(&self, dir: &Dir) -> io::Result<Node> {
        let place = dir.places.first().ok_or(Errno::NOENT)?.clone();
        let stat = rustix::fs::fstat(self.open_dir(&place)?)?;
        Ok(Node {
            at: dir.at.clone(),
            stat,
            dir: Some(dir.clone()),
            hides: true,
            place,
        })
    }

    /// Opens a directory of one layer, for reading.
    fn open_dir(&self, place: &Place) -> io::Result<OwnedFd> {
        let path = match place.path.as_os_str().is_empty() {
            true => Path::new("."),
            false => &place.path,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let root = &self.roots[place.root].fd;
        Ok(rustix::fs::openat2(
            root,
            path,
            flags,
            Mode::empty(),
            resolve,
        )?)
    }

    /// What `path` means in the view, links followed; the last one only if `follow` says so. `None`: there is no such thing.
    ///
    /// # Errors
    /// The layers cannot be read, or the path has too many links.
    pub fn find(&self, path: &Path, follow: bool) -> io::Result<Option<Node>> {
        Ok(self.walk(path, follow)?.ok())
    }

    /// What `path` lacks to be there: the directory without links where it ends, and the names that are missing below it. Links that lead
    /// nowhere are followed too. `None`: nothing is missing, or something that is no directory is in the way.
    ///
    /// # Errors
    /// As for [`View::find`].
    pub fn missing(&self, path: &Path) -> io::Result<Option<(PathBuf, Vec<OsString>)>> {
        Ok(self
            .walk(path, true)?
            .err()
            .filter(|(_, missing)| !missing.is_empty()))
    }

    fn walk(
        &self,
        path: &Path,
        follow: bool,
    ) -> io::Result<Result<Node, (PathBuf, Vec<OsString>)>> {
        let pieces = |path: &Path| -> VecDeque<OsString> {
            path.components()
                .map(|c| c.as_os_str().to_owned())
                .collect()
        };
        let mut todo = pieces(path);
        if self.is_empty() {
            todo.retain(|name| !matches!(name.as_bytes(), b"/" | b"." | b".."));
            return Ok(Err((PathBuf::new(), todo.into())));
        }
        let mut above = vec![self.root()?];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            match name.as_bytes() {
                b"/" => {
                    above.truncate(1);
                    continue;
                }
                b"." => continue,
                b".." => {
                    if above.len() > 1 {
                        above.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(dir) = above.last().and_then(|node| node.dir.as_ref()) else {
                return Ok(Err((PathBuf::new(), Vec::new())));
            };
            let Some(node) = self.child(dir, &name)? else {
                let mut missing = vec![name];
                for name in todo {
                    match name.as_bytes() {
                        b".." => drop(missing.pop()),
                        b"." => {}
                        _ => missing.push(name),
                    }
                }
                return Ok(Err((dir.at.clone(), missing)));
            };
            if node.kind() == FileType::Symlink && (follow || !todo.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = self.read_link(&node)?;
                let mut rest = pieces(Path::new(OsStr::from_bytes(&target)));
                rest.append(&mut todo);
                todo = rest;
                continue;
            }
            above.push(node);
        }
        above.pop().map(Ok).ok_or_else(|| Errno::NOENT.into())
    }

    /// Where a link points.
    pub(crate) fn read_link(&self, node: &Node) -> io::Result<Vec<u8>> {
        let (parent, name) = self.parent(node)?;
        Ok(rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes())
    }

    /// The layer's directory that a node is in, and its name there.
    pub(crate) fn parent<'n>(&self, node: &'n Node) -> io::Result<(OwnedFd, &'n OsStr)> {
        let path = &node.place.path;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::ISDIR.into());
        };
        let parent = self.open_dir(&Place {
            root: node.place.root,
            path: parent.to_owned(),
        })?;
        Ok((parent, name))
    }

    /// Opens a regular file, or a directory's topmost place, for reading.
    pub(crate) fn open(&self, node: &Node) -> io::Result<std::fs::File> {
        if node.kind() == FileType::Directory {
            return Ok(self.open_dir(&node.place)?.into());
        }
        let (parent, name) = self.parent(node)?;
        // NONBLOCK: what was a file a moment ago may be a pipe by now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::STALE.into());
        }
        Ok(file.into())
    }

    /// Whether the layer that a node is in never changes.
    pub(crate) fn is_still(&self, node: &Node) -> bool {
        self.roots[node.place.root].still
    }

    fn look_up(&self, dir: &Dir, name: &OsStr) -> io::Result<Option<Node>> {
        let mut open = Vec::with_capacity(dir.places.len());
        for place in &dir.places {
            open.push(self.open_dir(place)?);
        }
        self.merge(dir, &open, name)
    }

    /// The entries of a directory by name, whiteouts included.
    ///
    /// # Errors
    /// A layer cannot be read.
    pub fn entries(&self, dir: &Dir) -> io::Result<Vec<(OsString, Node)>> {
        let mut open = Vec::with_capacity(dir.places.len());
        let mut names = BTreeSet::new();
        for place in &dir.places {
            let fd = self.open_dir(place)?;
            for entry in RawDir::read_from(&fd)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.insert(OsString::from_vec(name));
                }
            }
            open.push(fd);
        }
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            // Gone again since its directory was read.
            if let Some(node) = self.merge(dir, &open, &name)? {
                found.push((name, node));
            }
        }
        Ok(found)
    }

    /// What a name means in a directory whose places are open.
    fn merge(&self, dir: &Dir, open: &[OwnedFd], name: &OsStr) -> io::Result<Option<Node>> {
        let at = dir.at.join(name);
        if let Some(mount) = self.mounts.get(&at) {
            return Ok(Some(self.node_of(mount)?));
        }
        let mut found: Option<Node> = None;
        for (place, fd) in dir.places.iter().zip(open) {
            let stat = match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let here = Place {
                root: place.root,
                path: place.path.join(name),
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let node = match &mut found {
                None => found.insert(Node {
                    at: at.clone(),
                    stat,
                    dir: is_dir.then(|| Dir {
                        at: at.clone(),
                        places: vec![here.clone()],
                    }),
                    hides: false,
                    place: here,
                }),
                Some(node) => {
                    if !is_dir {
                        node.hides = true;
                        break;
                    }
                    if let Some(dir) = &mut node.dir {
                        dir.places.push(here);
                    }
                    node
                }
            };
            if node.dir.is_none() {
                break;
            }
            if is_opaque(fd, name)? {
                node.hides = true;
                break;
            }
        }
        Ok(found)
    }
}

fn is_opaque(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let path = Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
    let mut value = [0u8; 8];
    match rustix::fs::lgetxattr(&path, OPAQUE, &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
