//! The guest's first process: it makes the machine ready, and serves the agent outside.
//!
//! Owns: what a kernel without an operating system needs (modules, file systems, cgroups), the
//! container's network namespace inside, and the spawner. Must not: outlive the container: when it
//! ends, so does the machine.
//!
//! ```text
//! /proc, /sys, /dev -> modules -> a root that can be left -> cgroups -> network -> the link
//!   -> serving
//! ```

mod network;
mod port;
mod process;

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::system::{RebootCommand, finit_module, reboot};
use wharf_sandbox::microvm::VERB;
use wharf_sandbox::{Spawner, SpawnerConfig};

use crate::mux::{self, Side};
use crate::wire::{ToGuest, VERSION, receive};
use crate::{SPAWNER, initrd, keep};

/// Where the container's root file system is mounted.
const ROOT: &str = "/container";
/// The parts of the initial RAM disk that stay in use.
const LIBRARIES: [&str; 3] = ["/lib", "/lib64", "/usr"];
const CGROUPS: &str = "/sys/fs/cgroup";
/// finit_module(2): MODULE_INIT_COMPRESSED_FILE.
const COMPRESSED: i32 = 4;

pub(crate) fn run() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("wharf: not in a virtual machine");
        return ExitCode::from(2);
    }
    let outcome = prepare().and_then(serve);
    if let Err(error) = outcome {
        // The console: the agent outside shows its last lines.
        eprintln!("wharf: in the virtual machine: {error:#}");
    }
    // The machine ends with it. A kernel that cannot do that panics at the end of its first
    // process, which ends it, too.
    let _ = reboot(RebootCommand::Restart);
    ExitCode::FAILURE
}

/// A step on the way, for whoever waits in vain: the agent outside shows the console's last lines.
fn stage(what: &str) {
    eprintln!("wharf: {what}");
}

/// Prepares everything. Returns the container's network namespace, which this process is in from
/// then on, so that all its sockets are.
fn prepare() -> Result<network::Sockets> {
    let none = None::<&CStr>;
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, at, kind, MountFlags::empty(), none)
            .with_context(|| format!("mounting {at}"))?;
    }
    stage("loading modules");
    load_modules()?;
    leave_ramdisk().context("leaving the RAM disk")?;
    mount("cgroup2", CGROUPS, "cgroup2", MountFlags::empty(), none).context("mounting cgroups")?;
    // What is in the root cgroup keeps its children from having controllers.
    let own = Path::new(CGROUPS).join("agent");
    fs::create_dir(&own).context("making a cgroup")?;
    fs::write(own.join("cgroup.procs"), "1").context("entering a cgroup")?;
    let control = Path::new(CGROUPS).join("cgroup.subtree_control");
    fs::write(&control, "+memory +cpu +pids").context("giving the cgroups their controllers")?;
    stage("mounting the container's files");
    mount(keep::TAG, ROOT, "virtiofs", MountFlags::NODEV, none)
        .context("mounting the container's files")?;
    stage("making the container's network");
    // The cgroup's limit decides, not a guess of how much there will be.
    fs::write("/proc/sys/vm/overcommit_memory", "1").context("vm.overcommit_memory")?;
    network::enter().context("making the container's network")
}

fn load_modules() -> Result<()> {
    let list = fs::read_to_string(initrd::MODULES).context("the list of modules")?;
    for path in list.lines() {
        let load = || -> Result<()> {
            let file = fs::File::open(path)?;
            let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
            match finit_module(&file, c"", flags) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        load().with_context(|| format!("loading {path}"))?;
    }
    Ok(())
}

/// A ramdisk's root cannot be left by pivot_root(2), which is how containers leave it: another
/// takes its place.
fn leave_ramdisk() -> Result<()> {
    let new = Path::new("/new");
    fs::create_dir(new)?;
    mount(
        "tmpfs",
        new,
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=755"),
    )?;
    let directories = ["proc", "sys", "dev", "run", "tmp", "lib", "lib64", "usr"];
    for name in directories.into_iter().chain([&ROOT[1..]]) {
        fs::create_dir(new.join(name))?;
    }
    for path in LIBRARIES {
        if Path::new(path).exists() {
            mount_bind(path, new.join(&path[1..]))?;
        }
    }
    fs::write(new.join(&initrd::AGENT[1..]), "")?;
    mount_bind(initrd::AGENT, new.join(&initrd::AGENT[1..]))?;
    for path in ["proc", "sys", "dev"] {
        mount_move(Path::new("/").join(path), new.join(path))?;
    }
    std::env::set_current_dir(new)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")?;
    fs::create_dir_all("/dev/pts")?;
    Ok(())
}

fn serve(sockets: network::Sockets) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        stage("connecting to the outside");
        let link = port::open().await?;
        let (opener, mut arrivals) = mux::connect(link, Side::Inside);
        // The other side takes it as the sign of life.
        let watch = network::Ports::open(&opener, &sockets).await?;
        let config = SpawnerConfig {
            socket: PathBuf::from("/run/spawner"),
            command: [initrd::AGENT, VERB, SPAWNER].map(str::to_owned).to_vec(),
            grace_ms: 1000,
            cgroup_name: "wharf".to_owned(),
            ids: None,
        };
        let (spawner, _) = Spawner::start(config).await.context("starting the spawner")?;
        let mut first = arrivals.recv().await.context("nobody is outside")?;
        let ToGuest::Main { version, request } = receive(&mut first).await? else {
            bail!("the container was to come first");
        };
        if version != VERSION {
            let (theirs, ours) = (version, VERSION);
            bail!("the agent outside speaks version {theirs}, this one {ours}: restart the node's spawner");
        }
        let namespace = sockets.open(&opener)?;
        tokio::spawn(watch.run());
        let container = Arc::new(process::Container {
            spawner,
            namespace,
            root: PathBuf::from(ROOT),
        });
        let others = async {
            while let Some(stream) = arrivals.recv().await {
                tokio::spawn(process::answer(container.clone(), stream));
            }
            Err(anyhow!("the connection with the outside is gone"))
        };
        tokio::select! {
            ended = process::main(&container, request, first) => ended,
            gone = others => gone,
        }
    })
}
