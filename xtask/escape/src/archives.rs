//! Archives of hostile images and clients: no name and no link in one leads out of where it is unpacked.
//!
//! The weakening is an unpacker as it is written first: names are joined to the directory, and the kernel follows what it finds.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use wharf_image::ImageStore;
use wharf_image::tar::{Entry, Kind, TarReader, TarWriter};

use crate::case::{Case, Side};
use crate::world::World;

const INSIDE: &str = "nothing outside";
const OUTSIDE: &str = "changed outside";

pub(crate) fn cases() -> Vec<Case> {
    let layer = |name, about, how| {
        Case::outside(name, about, how)
            .expect(&[INSIDE])
            .without("an unpacker that trusts names", &[OUTSIDE])
    };
    vec![
        layer(
            "archive-parent",
            "a name with .. in an image's layer",
            |world, side| {
                unpack(world, side, |outside| {
                    vec![file(&format!("{}/victim", climb(outside)))]
                })
            },
        ),
        layer("archive-absolute", "an absolute name", |world, side| {
            unpack(world, side, |outside| {
                vec![file(&format!("{outside}/victim"))]
            })
        }),
        layer(
            "archive-link",
            "a file below a symbolic link that leads out",
            |world, side| {
                unpack(world, side, |outside| {
                    vec![link(Kind::Symlink, "exit", outside), file("exit/victim")]
                })
            },
        ),
        layer(
            "archive-relative-link",
            "the same by a relative link",
            |world, side| {
                unpack(world, side, |outside| {
                    vec![
                        link(Kind::Symlink, "exit", &climb(outside)),
                        file("exit/victim"),
                    ]
                })
            },
        ),
        layer(
            "archive-link-in-place",
            "a link in place of a file that comes again",
            |world, side| {
                unpack(world, side, |outside| {
                    vec![
                        link(Kind::Symlink, "victim", &format!("{outside}/victim")),
                        file("victim"),
                    ]
                })
            },
        ),
        layer(
            "archive-hard-link",
            "a hard link to the host's file, then written",
            |world, side| {
                unpack(world, side, |outside| {
                    vec![
                        link(Kind::HardLink, "victim", &format!("{outside}/victim")),
                        file("victim"),
                    ]
                })
            },
        ),
        layer(
            "archive-removal",
            "the removal of a file above the layer",
            |world, side| {
                unpack(world, side, |outside| {
                    vec![file(&format!("{}/.wh.victim", climb(outside)))]
                })
            },
        ),
        layer(
            "archive-mode",
            "the mode of what a link leads to",
            |world, side| {
                unpack(world, side, |outside| {
                    let mut directory = Entry::bare(Kind::Directory, b"exit/".to_vec());
                    directory.mode = 0o777;
                    vec![link(Kind::Symlink, "exit", outside), directory]
                })
            },
        ),
        Case::outside(
            "extract-link",
            "files put into a container below its link that leads out (docker cp)",
            |world, side| extract(world, side),
        )
        .expect(&[INSIDE])
        .without("an unpacker that trusts names", &[OUTSIDE]),
    ]
}

/// A way up to the root and down again.
fn climb(path: &str) -> String {
    format!("{}{path}", "../".repeat(12).trim_end_matches('/'))
}

fn file(path: &str) -> Entry {
    let mut entry = Entry::bare(Kind::File, path.as_bytes().to_vec());
    entry.mode = 0o644;
    entry.size = 4;
    entry
}

fn link(kind: Kind, path: &str, to: &str) -> Entry {
    let mut entry = Entry::bare(kind, path.as_bytes().to_vec());
    entry.link = to.as_bytes().to_vec();
    entry
}

fn archive(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = TarWriter::new(Vec::new());
    for entry in entries {
        tar.append(entry, &mut &b"mine"[..])?;
    }
    Ok(tar.finish()?)
}

/// A directory of the host's for this case alone, and what it must stay like.
struct Outside {
    dir: PathBuf,
    before: String,
}

impl Outside {
    fn new(world: &World) -> Result<Outside> {
        let dir = world.place.path(&world.fresh("out"));
        fs::write(dir.join("victim"), "precious")?;
        let mut outside = Outside {
            dir,
            before: String::new(),
        };
        outside.before = outside.picture();
        Ok(outside)
    }

    fn picture(&self) -> String {
        use std::os::unix::fs::MetadataExt;
        let victim = self.dir.join("victim");
        let of = |path: &Path| {
            fs::metadata(path)
                .map(|m| (m.mode(), m.nlink(), m.uid()))
                .map_err(|e| e.kind())
        };
        let names = fs::read_dir(&self.dir).map(Iterator::count);
        format!(
            "{:?} {:?} {:?} {:?}",
            fs::read_to_string(&victim).ok(),
            of(&victim),
            of(&self.dir),
            names.ok()
        )
    }

    fn seen(&self) -> String {
        match self.picture() == self.before {
            true => INSIDE.to_owned(),
            false => OUTSIDE.to_owned(),
        }
    }
}

type Entries = fn(&str) -> Vec<Entry>;

/// As a layer of an image.
fn unpack(world: &World, side: Side, entries: Entries) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let outside = Outside::new(world)?;
        let tar = archive(&entries(&outside.dir.display().to_string()))?;
        let place = world.place.path(&world.fresh("images"));
        match side {
            Side::Held => {
                let images = ImageStore::open(&place)?;
                // Whether it is refused or kept inside: what counts is outside.
                if let Ok(image) = images.import_rootfs("hostile:latest", tar.as_slice()) {
                    let _ = images.lower_dirs(&image.layers);
                }
            }
            Side::Weak => naive(&place, &tar)?,
        }
        Ok(outside.seen())
    }
    .boxed_local()
}

/// Into a tree that a container has filled.
fn extract(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let outside = Outside::new(world)?;
        let root = world.place.path(&world.fresh("root"));
        symlink(&outside.dir, root.join("exit"))?;
        let tar = archive(&[file("victim")])?;
        match side {
            Side::Held => {
                let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
                let to = wharf_image::Extraction {
                    root: rustix::fs::open(&root, flags, rustix::fs::Mode::empty())?,
                    into: b"/exit".to_vec(),
                    max_bytes: 1 << 20,
                };
                let _ = wharf_image::extract(tar.as_slice(), to);
            }
            Side::Weak => naive(&root.join("exit"), &tar)?,
        }
        Ok(outside.seen())
    }
    .boxed_local()
}

/// The unpacker that one writes first.
fn naive(root: &Path, tar: &[u8]) -> Result<()> {
    let mut tar = TarReader::new(tar);
    while let Some(entry) = tar.next_entry()? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let to = String::from_utf8_lossy(&entry.link).into_owned();
        let path = root.join(&name);
        if let Some(removed) = path
            .file_name()
            .and_then(|n| n.to_str()?.strip_prefix(".wh."))
        {
            fs::remove_file(path.with_file_name(removed))?;
            continue;
        }
        match entry.kind {
            Kind::Symlink => symlink(to, path)?,
            Kind::HardLink => fs::hard_link(root.join(to), path)?,
            Kind::Directory => {
                let _ = fs::create_dir(&path);
                fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
            }
            _ => {
                let mut content = vec![0; entry.size as usize];
                let mut read = 0;
                while read < content.len() {
                    read += tar.read_data(&mut content[read..])?;
                }
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(entry.mode)
                    .open(path)?;
                std::io::copy(&mut content.as_slice().take(u64::MAX), &mut file)?;
            }
        }
    }
    Ok(())
}
