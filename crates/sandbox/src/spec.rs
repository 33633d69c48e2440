//! What to run and behind which walls: the request to the spawner.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A process to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Unique among live processes; also the name of its cgroup. `[a-z0-9-]`, at most 64 bytes.
    pub id: String,
    /// Opaque to this crate; given back with [`crate::Survivor`] so that a new daemon knows what it
    /// adopts.
    pub label: String,
    /// Program and arguments. A program without a slash is looked up in the `PATH` of `env`, inside
    /// the root.
    pub argv: Vec<String>,
    /// `KEY=value` entries; nothing is inherited.
    pub env: Vec<String>,
    /// Working directory inside the root; made (with parents, 0755, owned by the user) if missing.
    pub cwd: String,
    /// Docker's `User` syntax: empty, `name`, `uid`, `name:group`, `uid:gid`; names are looked up
    /// inside the root. HOME is set from the passwd entry when `env` has none.
    pub user: String,
    /// What the process sees as `/`.
    pub root: Root,
    /// UTS hostname; `None` keeps the host's and makes no UTS namespace.
    pub hostname: Option<String>,
    /// Extra mounts, in order, inside the root.
    pub mounts: Vec<Mount>,
    /// Resource limits.
    pub limits: Limits,
    /// Whether standard input is a pipe (else /dev/null).
    pub stdin_pipe: bool,
    /// A file system of a fixed size ([`crate::Disk`]) to mount before the root is: `upper` and
    /// `work` lie on it. With [`SpawnFds::disk`].
    pub disk: Option<DiskMount>,
    /// What root in a container may do; [`Root::Bare`] has none whatever this says.
    pub capabilities: Capabilities,
    /// Whether no program gains privileges when it is executed (`no_new_privs`, prctl(2)), so that
    /// neither set-user-id programs nor file capabilities have an effect.
    /// [`ProcessSpec::gains_no_privileges`] says where that is so in any case.
    pub no_new_privileges: bool,
    /// Whether a container's root, and the files that are mounted in it ([`Mount::File`]), can only
    /// be read. For [`Root::Overlay`] with [`IsolationSpec::Namespace`].
    #[serde(default)]
    pub read_only: bool,
    /// What separates a container from the machine; [`Root::Bare`] takes
    /// [`IsolationSpec::Namespace`] only.
    #[serde(rename = "kernel")]
    pub isolation: IsolationSpec,
}

impl ProcessSpec {
    /// Whether the process has `no_new_privs`: because the request asks for it, because the process
    /// is no container, or because root inside would be the host's root, which a set-user-id
    /// program must not become. (A virtual machine's root is not the host's.)
    pub(crate) fn gains_no_privileges(&self, has_users: bool) -> bool {
        let root_is_the_hosts = match self.root {
            Root::Bare => true,
            Root::Overlay { .. } => !has_users,
            Root::Directory(_) => false,
        };
        self.no_new_privileges || root_is_the_hosts
    }
}

/// The isolation class of a container, with the host's files that it needs. (The names that differ
/// on the wire are those that spawners of earlier builds know.)
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IsolationSpec {
    /// Namespaces, on the machine's own kernel.
    #[default]
    #[serde(rename = "Host")]
    Namespace,
    /// gVisor's kernel, in user space. Its processes have the container's cgroup, network, ids and
    /// files; the container's processes have gVisor's alone.
    Gvisor {
        /// `runsc`: an executable of the host that needs no shared libraries.
        runsc: PathBuf,
    },
    /// A kernel of its own, in a virtual machine. The machine has the container's cgroup, network
    /// and ids, and its files by virtiofs; the container's processes have the machine.
    Microvm(Machine),
}

/// What a virtual machine is made of; paths of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// The server of files.
    pub virtiofsd: PathBuf,
    /// The guest's kernel (bzImage).
    pub kernel: PathBuf,
    /// Its initial RAM disk, with the agent.
    pub initrd: PathBuf,
    /// The executable that runs the machine: called with [`crate::microvm::VERB`].
    pub agent: PathBuf,
    /// Whether /dev/kvm runs the machine; else QEMU emulates it.
    pub kvm: bool,
}

/// Where a disk is mounted: in the container's own mount namespace, nowhere else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskMount {
    /// [`crate::Disk::device`].
    pub device: PathBuf,
    /// A directory of the host that is covered.
    pub at: PathBuf,
}

/// Capabilities (capabilities(7)) of a container's root, in its user namespace: Docker's default
/// set, or less. There is no way to more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Docker's names without `CAP_`, and the bits.
    const DOCKER: [(&str, u32); 14] = [
        ("CHOWN", 0),
        ("DAC_OVERRIDE", 1),
        ("FOWNER", 3),
        ("FSETID", 4),
        ("KILL", 5),
        ("SETGID", 6),
        ("SETUID", 7),
        ("SETPCAP", 8),
        ("NET_BIND_SERVICE", 10),
        ("NET_RAW", 13),
        ("SYS_CHROOT", 18),
        ("MKNOD", 27),
        ("AUDIT_WRITE", 29),
        ("SETFCAP", 31),
    ];
    /// No capability.
    pub const NONE: Capabilities = Capabilities(0);

    /// This set without the capability of this name, as Docker writes it (`NET_RAW`, `CAP_NET_RAW`,
    /// `ALL`). One that it does not have anyway changes nothing.
    #[must_use]
    pub fn without(self, name: &str) -> Capabilities {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Capabilities::NONE;
        }
        let bit = Self::DOCKER.iter().find(|(known, _)| *known == name);
        Capabilities(bit.map_or(self.0, |(_, bit)| self.0 & !(1 << bit)))
    }

    /// The full names.
    pub(crate) fn names(self) -> Vec<String> {
        let held = Self::DOCKER
            .iter()
            .filter(|(_, bit)| self.bits() & 1 << bit != 0);
        held.map(|(name, _)| format!("CAP_{name}")).collect()
    }

    /// The bits, never more than Docker's.
    pub(crate) fn bits(self) -> u64 {
        self.0 & Capabilities::default().0
    }
}

impl Default for Capabilities {
    /// Docker's default set.
    fn default() -> Self {
        Capabilities(Self::DOCKER.iter().fold(0, |set, (_, bit)| set | 1 << bit))
    }
}

/// What a process sees as its file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Root {
    /// Nothing but what the mounts put there (no volumes), read-only; the few devices that every
    /// program wants; and a /proc with nothing but its own processes in it. For a runtime of one
    /// process with many threads (workerd): no other process can be started in it, and its own
    /// system call filter is narrower than a container's. It has all of a container's walls but the
    /// user namespace, as no user of it has a capability.
    Bare,
    /// An overlay mounted in the process's own mount namespace: a container. Gets PID, IPC, UTS,
    /// cgroup, mount and user namespaces, /proc, /sys (read-only), /dev, masked paths, dropped
    /// capabilities, the Landlock scopes and the seccomp filter, and leaves no core dump.
    /// Directories belong, on disk, to the ids inside.
    Overlay {
        /// Read-only layers, topmost first; may be empty (an image from scratch without layers).
        lower: Vec<PathBuf>,
        /// Writable directory, exists.
        upper: PathBuf,
        /// overlayfs's work directory, exists, empty, same file system as `upper`.
        work: PathBuf,
    },
    /// A directory as it is; otherwise a container as of [`Root::Overlay`]. Inside a virtual
    /// machine, where the overlay is outside.
    Directory(PathBuf),
}

impl Root {
    /// Whether it is a container's.
    pub(crate) fn is_container(&self) -> bool {
        !matches!(self, Root::Bare)
    }
}

/// A mount inside the root. A target that is missing is made in the upper directory (as are /proc,
/// /sys and /dev) and stays there, empty, after the process: whoever turns the upper directory into
/// a layer must leave those out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Mount {
    /// A file or directory of the host.
    Bind {
        /// Host path.
        source: PathBuf,
        /// Path inside; made if missing.
        target: PathBuf,
        /// Read-only.
        read_only: bool,
    },
    /// A writable directory over others that stay as they are: an overlay of its own.
    Overlay {
        /// Read-only layers, topmost first; may be empty.
        lower: Vec<PathBuf>,
        /// Writable directory, exists; its owner and mode are those of the mount's root.
        upper: PathBuf,
        /// overlayfs's work directory, exists, empty, same file system as `upper`.
        work: PathBuf,
        /// Path inside; made if missing.
        target: PathBuf,
    },
    /// An empty directory in memory, which is charged to the container. For containers with
    /// [`IsolationSpec::Namespace`].
    Tmpfs(Tmpfs),
    /// A file with this content (for /etc/resolv.conf, /etc/hosts), backed by memory.
    File {
        /// Path inside; made if missing.
        target: PathBuf,
        /// Content.
        content: String,
    },
}

/// A file system in memory. Device nodes never work in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Path inside; made if missing.
    pub target: PathBuf,
    /// Bytes it can hold; `None`: half of the machine's memory (tmpfs(5)).
    pub size_bytes: Option<u64>,
    /// Files and directories it can hold; `None`: as the kernel has it.
    pub inodes: Option<u64>,
    /// Permissions of its root; `None`: those of the directory that it covers, or 1777 if there is
    /// none.
    pub mode: Option<u32>,
    /// Owner of its root, as seen inside.
    pub uid: u32,
    /// Group of its root, as seen inside.
    pub gid: u32,
    /// Whether programs can be executed from it.
    pub exec: bool,
    /// Whether set-user-id programs in it have their effect.
    pub suid: bool,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// Resource limits; `None` is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes; swap is not added on top.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// RLIMIT_NOFILE.
    pub nofile: Option<u64>,
    /// Bytes that may be written to the root; whoever makes the root holds to it, with a
    /// [`crate::Disk`].
    #[serde(default)]
    pub disk_bytes: Option<u64>,
}

/// A process to start inside a running container: in its namespaces and its cgroup, with the
/// capabilities, no_new_privs and filter of its main process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Unique among live processes. `[a-z0-9-]`, at most 64 bytes.
    pub id: String,
    /// [`ProcessSpec::id`] of the container's main process.
    pub container: String,
    /// As [`ProcessSpec::argv`].
    pub argv: Vec<String>,
    /// As [`ProcessSpec::env`].
    pub env: Vec<String>,
    /// Working directory inside the root; must be there. Empty is `/`.
    pub cwd: String,
    /// As [`ProcessSpec::user`].
    pub user: String,
    /// RLIMIT_NOFILE; `None` is the spawner's.
    pub nofile: Option<u64>,
    /// Its standard streams.
    pub streams: ExecStreams,
}

/// The standard streams of a process inside a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecStreams {
    /// /dev/null, all three.
    Null,
    /// Pipes for output and error, and for input if asked for (else /dev/null).
    Pipes {
        /// Whether standard input is a pipe.
        stdin: bool,
    },
    /// A new terminal of the container (pty(7)), which is the process's controlling one.
    Terminal(TerminalSize),
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// Descriptors that go with a request.
#[derive(Debug, Default)]
pub struct SpawnFds {
    /// The network namespace. Needed: nothing that is started here has the host's.
    pub netns: Option<OwnedFd>,
    /// [`crate::netns::here::system_files`] of that namespace, to become /sys of a container that
    /// is not on another kernel. Without, one is mounted, for which the kernel looks through those
    /// of all containers.
    pub sys: Option<OwnedFd>,
    /// [`crate::Disk::mount`], for [`ProcessSpec::disk`]: kept by the spawner until the process is
    /// forgotten.
    pub disk: Option<OwnedFd>,
    /// Descriptors the process finds at these numbers (>= 3).
    pub inherit: Vec<(i32, OwnedFd)>,
    /// A [`crate::ProcessImage`] to begin from, if the program turns out to be the one that it was
    /// taken of; for [`Root::Overlay`].
    pub image: Option<OwnedFd>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn isolation_classes_have_the_names_that_earlier_spawners_know() {
        assert_eq!(json!(IsolationSpec::Namespace), json!("Host"));
        let runsc = PathBuf::from("/usr/bin/runsc");
        let gvisor = json!({"Gvisor": {"runsc": "/usr/bin/runsc"}});
        assert_eq!(json!(IsolationSpec::Gvisor { runsc }), gvisor);
        let spec: ProcessSpec = serde_json::from_value(json!({
            "id": "a", "label": "", "argv": ["/a"], "env": [], "cwd": "", "user": "",
            "root": "Bare", "hostname": null, "mounts": [], "limits": {}, "stdin_pipe": false,
            "disk": null, "capabilities": 0, "no_new_privileges": true, "kernel": gvisor,
        }))
        .unwrap();
        assert_eq!(json!(spec.isolation), gvisor);
    }
}
