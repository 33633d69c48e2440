//! The guest's initial RAM disk: the agent with its shared libraries, and the kernel's modules.
//!
//! Owns: which modules, and the archive (cpio's "newc"). Must not: need a tool of the system.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the agent is in it; the kernel executes it.
pub(crate) const AGENT: &str = "/init";
/// Where the list of modules is in it, in the order of loading.
pub(crate) const MODULES: &str = "/modules";

/// What the guest uses that may be built as modules. What is built in is named in modules.builtin.
const WANTED: [&str; 10] = [
    "virtio_mmio",
    "virtio_console",
    "virtiofs",
    "virtio-rng",
    "nf_tables",
    "nft_chain_nat",
    "nft_redir",
    "nft_ct",
    "nft_reject_inet",
    "tcp_diag",
];

/// A guest kernel of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    /// vmlinuz.
    pub image: PathBuf,
    /// Where its modules are, with modules.dep.
    pub modules: PathBuf,
}

impl GuestKernel {
    /// The newest of Debian's cloud kernels below a root directory, as its package has it
    /// ([`crate::package`]).
    pub fn find(root: &Path) -> Option<GuestKernel> {
        let entries = fs::read_dir(root.join("boot")).ok()?;
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let versions = names.filter_map(|name| {
            let version = name.strip_prefix("vmlinuz-")?;
            version.contains("-cloud-").then(|| version.to_owned())
        });
        let kernel = |version: String| {
            let image = root.join("boot").join(format!("vmlinuz-{version}"));
            let modules = ["lib/modules", "usr/lib/modules"]
                .map(|dir| root.join(dir).join(&version))
                .into_iter()
                .find(|dir| dir.join("modules.dep").is_file())?;
            Some((numbers(&version), GuestKernel { image, modules }))
        };
        versions
            .filter_map(kernel)
            .max_by(|a, b| a.0.cmp(&b.0))
            .map(|(_, kernel)| kernel)
    }
}

/// `6.1.0-48-cloud-amd64` is older than `6.12.1-...`.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The archive for a kernel, in a directory where it is kept: made if what it is made of has
/// changed. The agent is this executable.
///
/// # Errors
/// What cannot be read or written, in words.
pub fn prepare(kernel: &GuestKernel, agent: &Path, directory: &Path) -> io::Result<PathBuf> {
    let modules = modules(&kernel.modules)?;
    let libraries = libraries()?;
    let mut inputs = vec![agent.to_owned(), kernel.image.clone()];
    inputs.extend(modules.iter().cloned());
    inputs.extend(libraries.iter().cloned());
    let mut key = String::new();
    for input in &inputs {
        let stat = fs::metadata(input).map_err(|e| at(input, e))?;
        key += &format!(
            "{} {} {} {}\n",
            input.display(),
            stat.ino(),
            stat.size(),
            stat.mtime()
        );
    }
    let (archive, kept) = (directory.join("initrd"), directory.join("initrd.of"));
    if archive.is_file() && fs::read_to_string(&kept).is_ok_and(|of| of == key) {
        return Ok(archive);
    }
    fs::create_dir_all(directory).map_err(|e| at(directory, e))?;
    let new = directory.join(format!("initrd.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut cpio = Cpio::new(io::BufWriter::new(fs::File::create(&new)?));
        let mut list = String::new();
        cpio.directory("/dev")?;
        cpio.directory("/proc")?;
        cpio.directory("/sys")?;
        cpio.file(AGENT, &loaded_part(fs::read(agent)?))?;
        for library in &libraries {
            let content = fs::read(library).map_err(|e| at(library, e))?;
            cpio.file(&library.to_string_lossy(), &loaded_part(content))?;
        }
        for module in &modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            let inside = format!("/lib/modules/{name}");
            cpio.file(&inside, &fs::read(module).map_err(|e| at(module, e))?)?;
            list += &format!("{inside}\n");
        }
        cpio.file(MODULES, list.as_bytes())?;
        cpio.finish()
    };
    write().map_err(|e| at(&new, e))?;
    // QEMU reads it as nobody.
    let readable = fs::Permissions::from_mode(0o644);
    fs::set_permissions(&new, readable).map_err(|e| at(&new, e))?;
    // The key last: an archive without one is made anew.
    fs::rename(&new, &archive).map_err(|e| at(&archive, e))?;
    fs::write(&kept, key).map_err(|e| at(&kept, e))?;
    Ok(archive)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The modules that are wanted, and those that they need, in the order of loading (modules.dep,
/// depmod(8)).
fn modules(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).map_err(|e| at(&path, e))
    };
    let dependencies = read("modules.dep")?;
    let builtin = read("modules.builtin").unwrap_or_default();
    let name_of = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let name = file.split('.').next().unwrap_or(file);
        name.replace('-', "_")
    };
    let mut all: Vec<&str> = Vec::new();
    for wanted in WANTED {
        let wanted_name = wanted.replace('-', "_");
        let line = dependencies.lines().find_map(|line| {
            let (module, needs) = line.split_once(':')?;
            (name_of(module) == wanted_name).then_some((module, needs))
        });
        let Some((module, needs)) = line else {
            if builtin.lines().any(|line| name_of(line) == wanted_name) {
                continue;
            }
            let text = format!(
                "the kernel in {} has no module {wanted}",
                directory.display()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        };
        // The last one needed is the first to be loaded.
        for module in needs.split_whitespace().rev().chain([module]) {
            if !all.contains(&module) {
                all.push(module);
            }
        }
    }
    Ok(all.iter().map(|module| directory.join(module)).collect())
}

/// What this process, which is the same executable as the agent, has loaded.
fn libraries() -> io::Result<BTreeSet<PathBuf>> {
    let own = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| {
        let path = Path::new(line.splitn(6, ' ').nth(5)?.trim_start());
        let name = path.file_name()?.to_str()?;
        let is_library = path.is_absolute() && name.contains(".so") && path != own;
        is_library.then(|| path.to_owned())
    });
    let mut libraries: BTreeSet<PathBuf> = paths.collect();
    // By the name that the executable asks for, which is a link to the file that is loaded.
    for path in libraries.clone() {
        if path.to_string_lossy().contains("/ld-linux") {
            libraries.insert(PathBuf::from("/lib64/ld-linux-x86-64.so.2"));
        }
    }
    Ok(libraries)
}

/// An ELF file without what nobody loads (debugging information is most of it): up to the end of
/// its last segment, without section headers.
fn loaded_part(mut file: Vec<u8>) -> Vec<u8> {
    let word = |at: usize, length: usize| {
        let bytes = file.get(at..at + length)?;
        let mut number = [0; 8];
        number[..length].copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    // ELF64, little-endian (elf(5)).
    if file.get(..6) != Some(b"\x7fELF\x02\x01") {
        return file;
    }
    let end = || {
        let (headers, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
        let mut end = headers + size * count;
        for index in 0..count {
            let header = headers + size * index;
            end = end.max(word(header + 8, 8)? + word(header + 32, 8)?);
        }
        Some(end)
    };
    if let Some(end) = end().filter(|end| *end <= file.len()) {
        file.truncate(end);
        // e_shoff, e_shnum, e_shstrndx.
        file[40..48].fill(0);
        file[60..64].fill(0);
    }
    file
}

/// The kernel's format of initial RAM disks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Cpio<W> {
    to: W,
    inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Cpio<W> {
    fn new(to: W) -> Self {
        Cpio {
            to,
            inode: 1,
            directories: BTreeSet::new(),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.inode += 1;
        let mut head = "070701".to_owned();
        for field in fields {
            head += &format!("{field:08X}");
        }
        self.padded(format!("{head}{name}\0").as_bytes())?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        let rest = bytes.len().next_multiple_of(4) - bytes.len();
        self.to.write_all(&[0; 4][..rest])
    }

    fn directory(&mut self, path: &str) -> io::Result<()> {
        match self.directories.insert(path.to_owned()) {
            true => self.entry(path, 0o040_755, &[]),
            false => Ok(()),
        }
    }

    /// Adds a file, with the directories that it is in.
    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            self.directory(&path[..at])?;
        }
        self.entry(path, 0o100_755, content)
    }

    fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_number() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(GuestKernel::find(root.path()), None);
        for version in [
            "6.1.0-9-cloud-amd64",
            "6.1.0-48-cloud-amd64",
            "6.12.1-amd64",
        ] {
            let modules = root.path().join("lib/modules").join(version);
            fs::create_dir_all(&modules).unwrap();
            fs::write(modules.join("modules.dep"), "").unwrap();
            fs::create_dir_all(root.path().join("boot")).unwrap();
            fs::write(root.path().join(format!("boot/vmlinuz-{version}")), "").unwrap();
        }
        // Without its modules it is of no use.
        fs::write(root.path().join("boot/vmlinuz-6.1.0-99-cloud-amd64"), "").unwrap();
        let found = GuestKernel::find(root.path()).unwrap();
        assert!(found.image.ends_with("boot/vmlinuz-6.1.0-48-cloud-amd64"));
    }

    #[test]
    fn modules_come_after_what_they_need_and_built_in_ones_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let mut dependencies = String::new();
        for wanted in WANTED.iter().filter(|name| **name != "tcp_diag") {
            dependencies += &format!("kernel/{wanted}.ko: kernel/middle.ko kernel/base.ko\n");
        }
        dependencies += "kernel/middle.ko: kernel/base.ko\nkernel/base.ko:\n";
        fs::write(directory.path().join("modules.dep"), &dependencies).unwrap();
        fs::write(
            directory.path().join("modules.builtin"),
            "kernel/net/tcp_diag.ko\n",
        )
        .unwrap();
        let found = modules(directory.path()).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names[..3], ["base", "middle", WANTED[0]]);
        assert_eq!(names.len(), WANTED.len() - 1 + 2);
        fs::write(directory.path().join("modules.builtin"), "").unwrap();
        let error = modules(directory.path()).unwrap_err().to_string();
        assert!(error.contains("tcp_diag"), "{error}");
    }

    #[test]
    fn what_is_loaded_of_a_program_runs() {
        let directory = tempfile::tempdir().unwrap();
        let own = fs::read("/proc/self/exe").unwrap();
        let loaded = loaded_part(own.clone());
        assert!(loaded.len() < own.len(), "there is debugging information");
        let path = directory.path().join("program");
        fs::write(&path, loaded).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let out = Command::new(&path).arg("--list").output().unwrap();
        assert!(out.status.success());
        assert!(String::from_utf8_lossy(&out.stdout).contains("what_is_loaded_of_a_program_runs"));
        assert_eq!(loaded_part(b"#!/bin/sh\n".to_vec()), b"#!/bin/sh\n");
        // Its headers say that there is more than there is.
        let cut = own[..1000].to_vec();
        assert_eq!(loaded_part(cut.clone()), cut);
    }

    #[test]
    fn cpio_reads_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Vec::new();
        let mut cpio = Cpio::new(&mut archive);
        cpio.directory("/proc").unwrap();
        cpio.file("/a/b/file", b"content").unwrap();
        cpio.file("/a/b/other", b"").unwrap();
        cpio.finish().unwrap();
        let path = directory.path().join("archive");
        fs::write(&path, archive).unwrap();
        let out = Command::new("busybox")
            .args(["cpio", "-idu"])
            .current_dir(directory.path())
            .stdin(fs::File::open(&path).unwrap())
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let content = fs::read(directory.path().join("a/b/file")).unwrap();
        assert_eq!(content, b"content");
        assert!(directory.path().join("a/b/other").is_file());
        assert!(directory.path().join("proc").is_dir());
    }
}
