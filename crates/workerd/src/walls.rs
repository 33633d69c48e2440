//! What a workerd process sees of the machine: a root with its program, what that loads, its own folder and storage, and nothing else.
//!
//! Owns: the list of mounts, and finding the program's libraries. Must not: mount anything; the sandbox does (`Root::Bare`).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wharf_sandbox::Mount;

/// What the C library opens by itself, besides what a program is linked with: for names, and to end a thread.
const OPENED_LATER: [&str; 4] = [
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libresolv.so.2",
    "libgcc_s.so.1",
];

/// Where systems keep the certificates of authorities in one file: Debian and Alpine, Fedora, openSUSE, the BSDs' way.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The parts of the host's file system that all processes have in common.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The program, its loader and its libraries.
    files: Vec<PathBuf>,
    certificates: Option<PathBuf>,
}

impl Program {
    /// Finds what `binary` needs. Blocks for some milliseconds.
    ///
    /// # Errors
    /// It cannot be executed.
    pub(crate) fn find(binary: &Path) -> io::Result<Self> {
        let mut files = libraries(binary)?;
        let beside_libc: Vec<PathBuf> = files
            .iter()
            .filter(|path| path.file_name().is_some_and(|name| name == "libc.so.6"))
            .filter_map(|path| path.parent())
            .flat_map(|directory| OPENED_LATER.map(|name| directory.join(name)))
            .filter(|path| path.is_file())
            .collect();
        files.extend(beside_libc);
        files.push(binary.to_owned());
        files.sort();
        files.dedup();
        let certificates = CERTIFICATES.iter().map(PathBuf::from);
        Ok(Self {
            files,
            certificates: certificates.into_iter().find(|path| path.is_file()),
        })
    }

    /// Of one process: `own` are directories that it may write to.
    pub(crate) fn mounts(&self, own: &[&Path], resolv_conf: String) -> Vec<Mount> {
        let file = |target: &str, content: String| Mount::File {
            target: target.into(),
            content,
        };
        let mut mounts = vec![
            file("/etc/resolv.conf", resolv_conf),
            file(
                "/etc/hosts",
                "127.0.0.1 localhost\n::1 localhost\n".to_owned(),
            ),
            file("/etc/nsswitch.conf", "hosts: files dns\n".to_owned()),
        ];
        let bind = |source: &Path, target: &Path, read_only| Mount::Bind {
            source: source.to_owned(),
            target: target.to_owned(),
            read_only,
        };
        mounts.extend(self.files.iter().map(|path| bind(path, path, true)));
        if let Some(certificates) = &self.certificates {
            mounts.push(bind(certificates, Path::new(CERTIFICATES[0]), true));
        }
        mounts.extend(own.iter().map(|path| bind(path, path, false)));
        mounts
    }

    /// `LD_LIBRARY_PATH`: the loader's cache, a list of all that the host has, is not there.
    pub(crate) fn library_path(&self) -> String {
        let mut directories: Vec<String> = self
            .files
            .iter()
            .filter(|path| is_library(path))
            .filter_map(|path| path.parent())
            .map(|directory| directory.to_string_lossy().into_owned())
            .collect();
        directories.dedup();
        format!("LD_LIBRARY_PATH={}", directories.join(":"))
    }
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains(".so")
}

/// The loader and what it would load (ld.so(8)). A static program does not know the variable, and ends for want of arguments.
fn libraries(binary: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new(binary)
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .output()?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Lines such as `libc.so.6 => /lib/libc.so.6 (0x7f...)` and `/lib64/ld-linux-x86-64.so.2 (0x7f...)`.
fn parse(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let (object, _) = line.strip_prefix('\t')?.rsplit_once(" (0x")?;
            let path = object.split_once(" => ").map_or(object, |(_, path)| path);
            path.starts_with('/').then(|| path.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_says() {
        let text = "\tlinux-vdso.so.1 (0x00007fb15ab7f000)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007fb15aa8e000)\n\
            \tlibnone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007fb15ab81000)\n";
        let paths: Vec<PathBuf> = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ]
        .map(PathBuf::from)
        .to_vec();
        assert_eq!(parse(text), paths);
        // A static program's usage text.
        assert!(parse("Usage: workerd <command>\n  /path (see 0x0)\n").is_empty());
    }

    #[test]
    fn a_program_of_this_machine() {
        let program = Program::find(&std::env::current_exe().unwrap()).unwrap();
        let has = |name: &str| program.files.iter().any(|p| p.ends_with(name));
        assert!(has("libc.so.6"), "{program:?}");
        assert!(program.files.iter().all(|path| path.is_absolute()));
        assert!(program.library_path().contains('/'));
    }
}
