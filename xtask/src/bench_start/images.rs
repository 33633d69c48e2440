//! The image classes as root file systems: a base and the app's file on top of it.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::base_image::{Kind, base_image};

/// An image class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Class {
    /// A static program, nothing else
    Static,
    /// busybox: a shell that becomes its web server
    Busybox,
    /// Debian with Python
    Python,
    /// Debian with Node
    Node,
    /// Debian with Python, NumPy and FastAPI
    Numpy,
}

impl Class {
    pub(super) const ALL: [Class; 5] = [
        Class::Static,
        Class::Busybox,
        Class::Python,
        Class::Node,
        Class::Numpy,
    ];

    /// As in the Worker's URLs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Class::Static => "static",
            Class::Busybox => "busybox",
            Class::Python => "python",
            Class::Node => "node",
            Class::Numpy => "numpy",
        }
    }

    /// The Durable Object class in worker.js.
    pub(super) fn class_name(self) -> &'static str {
        match self {
            Class::Static => "Static",
            Class::Busybox => "Busybox",
            Class::Python => "Python",
            Class::Node => "Node",
            Class::Numpy => "Numpy",
        }
    }

    /// What runs.
    pub(super) fn argv(self) -> &'static [&'static str] {
        match self {
            Class::Static => &["/server"],
            Class::Busybox => &["/bin/sh", "-c", "exec httpd -f -p $PORT -h /www"],
            Class::Python => &["python3", "/app/app.py"],
            Class::Node => &["node", "/app/app.js"],
            Class::Numpy => &["python3", "/app/app.py"],
        }
    }

    /// Python modules that can be imported ahead.
    pub(super) fn modules(self) -> Option<&'static str> {
        match self {
            Class::Static | Class::Busybox | Class::Node => None,
            Class::Python => Some("http.server, socketserver"),
            Class::Numpy => Some("numpy, fastapi, uvicorn"),
        }
    }

    fn base(self) -> Option<Kind> {
        match self {
            Class::Static => None,
            Class::Busybox => Some(Kind::Busybox),
            Class::Python => Some(Kind::Python),
            Class::Node => Some(Kind::Node),
            Class::Numpy => Some(Kind::NumPy),
        }
    }

    /// Makes the root file system in `dir`. `server` is the static program.
    pub(super) fn rootfs(self, dir: &Path, server: &Path) -> Result<PathBuf> {
        let out = dir.join(format!("{}.tar", self.name()));
        let file = BufWriter::new(File::create(&out)?);
        let (path, mode, content): (_, _, &[u8]) = match self {
            Class::Static => ("server", 0o755, &std::fs::read(server)?),
            Class::Busybox => ("www/index.html", 0o644, b"hello from busybox\n"),
            Class::Python => ("app/app.py", 0o644, include_bytes!("apps/python.py")),
            Class::Node => ("app/app.js", 0o644, include_bytes!("apps/node.js")),
            Class::Numpy => ("app/app.py", 0o644, include_bytes!("apps/numpy.py")),
        };
        let base = self.base().map(base_image).transpose()?;
        write(base.as_deref(), path, mode, content, file)
            .with_context(|| out.display().to_string())
            .map(|()| out)
    }
}

/// Writes the base's entries and one file (in a directory of one level, or none).
fn write(
    base: Option<&Path>,
    path: &str,
    mode: u32,
    content: &[u8],
    mut out: impl Write,
) -> Result<()> {
    if let Some(base) = base {
        let mut file = File::open(base).with_context(|| base.display().to_string())?;
        let end = end_of_entries(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        std::io::copy(&mut file.take(end), &mut out)?;
    }
    let mut archive = tar::Builder::new(out);
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    if let Some((dir, _)) = path.split_once('/') {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        archive.append_data(&mut header.clone(), format!("{dir}/"), std::io::empty())?;
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// Where an archive's closing blocks begin.
fn end_of_entries(file: &mut File) -> Result<u64> {
    let mut end = 0;
    for entry in tar::Archive::new(file).entries()? {
        let entry = entry?;
        end = entry.raw_file_position() + entry.size().next_multiple_of(512);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_added_to_a_base() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.tar");
        write(
            None,
            "etc/one",
            0o644,
            &[b'1'; 700],
            File::create(&base).unwrap(),
        )
        .unwrap();
        let mut out = Vec::new();
        write(Some(&base), "app/two", 0o755, b"2", &mut out).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            seen.push((entry.path().unwrap().display().to_string(), content.len()));
        }
        let expected = [("etc/", 0), ("etc/one", 700), ("app/", 0), ("app/two", 1)];
        assert_eq!(seen, expected.map(|(path, size)| (path.to_owned(), size)));
    }
}
