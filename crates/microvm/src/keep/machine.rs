//! The programs of the machine: virtiofsd and QEMU.
//!
//! Owns: their arguments, starting them, and finding out why they ended. Must not: know what is
//! said with the guest.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::fd::{AsRawFd, RawFd};
use rustix::io::FdFlags;
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use wharf_sandbox::microvm::{
    GUEST_MEMORY, INITRD, KERNEL, QEMU, REQUEST, ROOTFS, Request, TRANSLATION, VERB, VIRTIOFSD,
    tsc_khz,
};

use crate::GUEST;

const FILES_SOCKET: &str = "/state/files";
const FILES_LOG: &str = "/state/files.log";
const LINK_SOCKET: &str = "/state/link";
const CONSOLE: &str = "/state/console";
const MACHINE_LOG: &str = "/state/machine.log";
/// Where QEMU's firmware is; it looks for it beside its own file, which is elsewhere here.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];
/// Name of the file system in the guest.
pub(crate) const TAG: &str = "root";
/// Memory of containers without a limit, bytes.
const UNLIMITED: u64 = 2 << 30;
const MIB: u64 = 1 << 20;

/// Both.
pub(super) struct Machine {
    files: Child,
    qemu: Child,
    link: UnixListener,
}

impl Machine {
    /// Starts both. Gives up all capabilities between the two.
    pub(super) async fn start(request: &Request) -> Result<Machine> {
        // It is read, and holds the container's secrets.
        std::fs::remove_file(REQUEST).with_context(|| format!("removing {REQUEST}"))?;
        // It finds the socket listening: nobody waits for it.
        let socket = std::os::unix::net::UnixListener::bind(FILES_SOCKET)
            .context("listening for the server of files")?;
        rustix::io::fcntl_setfd(&socket, FdFlags::empty()).context("passing a socket on")?;
        let files = start(VIRTIOFSD, &files_arguments(socket.as_raw_fd()), FILES_LOG)?;
        drop(socket);
        drop_capabilities().context("dropping capabilities")?;
        let link = UnixListener::bind(LINK_SOCKET).context("listening for the machine")?;
        let qemu = start(QEMU, &machine_arguments(request), MACHINE_LOG)?;
        Ok(Machine { files, qemu, link })
    }

    /// The connection with the guest's agent, which may not be there yet.
    pub(super) async fn link(&mut self) -> Result<UnixStream> {
        tokio::select! {
            link = self.link.accept() => Ok(link.context("accepting the machine")?.0),
            () = ended(&mut self.qemu, &mut self.files) => Err(self.reason(anyhow!("it has ended")).await),
        }
    }

    /// Waits until one of both has ended.
    pub(super) async fn ended(&mut self) {
        ended(&mut self.qemu, &mut self.files).await;
    }

    /// Why it failed: by what those of its programs have said that have ended, and the guest's
    /// kernel.
    pub(super) async fn reason(&mut self, error: anyhow::Error) -> anyhow::Error {
        // Whoever broke the connection may be about to end.
        let _ = tokio::time::timeout(Duration::from_millis(200), self.ended()).await;
        let programs = [
            ("QEMU", self.qemu.try_wait(), MACHINE_LOG),
            ("virtiofsd", self.files.try_wait(), FILES_LOG),
        ];
        let ended = programs.into_iter().filter_map(|(name, status, log)| {
            // Each ends well when the other is gone.
            let status = status.ok()?.filter(|status| !status.success())?;
            Some(format!("{name} has ended ({status}){}", said(log)))
        });
        let ended: Vec<String> = ended.collect();
        let reason = match ended.is_empty() {
            true => format!("{error:#}"),
            false => ended.join("; "),
        };
        anyhow!("{reason}{}", said(CONSOLE))
    }
}

async fn ended(qemu: &mut Child, files: &mut Child) {
    // That waiting fails is as good as an end: there is no such process.
    tokio::select! {
        _ = qemu.wait() => {}
        _ = files.wait() => {}
    }
}

fn start(program: &str, arguments: &[String], log: &str) -> Result<Child> {
    let log = File::create(log).with_context(|| format!("making {log}"))?;
    Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {program}"))
}

/// Arguments of virtiofsd, as both programs of this name take them: QEMU's own and its successor in
/// Rust.
fn files_arguments(socket: RawFd) -> Vec<String> {
    let options = format!("source={ROOTFS},sandbox=chroot,cache=auto,xattr");
    vec![format!("--fd={socket}"), "-o".to_owned(), options]
}

fn machine_arguments(request: &Request) -> Vec<String> {
    let memory = request.limits.memory_bytes.unwrap_or(UNLIMITED) + GUEST_MEMORY;
    let memory = memory.div_ceil(MIB);
    let here = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let cpus = match request.limits.cpu_millis {
        Some(millis) => millis.div_ceil(1000).clamp(1, here),
        None => here,
    };
    let (accelerator, cpu) = match request.kvm {
        true => ("kvm".to_owned(), "host"),
        false => (format!("tcg,tb-size={}", TRANSLATION / MIB), "max"),
    };
    // How fast the clock runs cannot be found out by an emulated processor that does not get all
    // the time it wants: it would not come up.
    let clock = match tsc_khz() {
        Some(khz) if !request.kvm => format!("tsc_early_khz={khz} tsc=reliable no_timer_check"),
        _ => String::new(),
    };
    let command_line = format!(
        "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t pci=off random.trust_cpu=on {clock} -- {VERB} {GUEST}"
    );
    let mut all = Vec::new();
    let mut add = |option: &str, value: &str| {
        all.push(option.to_owned());
        if !value.is_empty() {
            all.push(value.to_owned());
        }
    };
    add(
        "-M",
        "microvm,pit=on,pic=on,rtc=on,acpi=on,memory-backend=memory",
    );
    add("-accel", &accelerator);
    add("-cpu", cpu);
    add("-smp", &cpus.to_string());
    add("-m", &format!("{memory}M"));
    let backend = format!("memory-backend-memfd,id=memory,size={memory}M,share=on");
    add("-object", &backend);
    for alone in ["-no-user-config", "-nodefaults", "-no-reboot"] {
        add(alone, "");
    }
    for directory in FIRMWARE {
        add("-L", directory);
    }
    add("-display", "none");
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // Else they are of a kind that virtiofsd does not speak.
    add("-global", "virtio-mmio.force-legacy=false");
    add("-kernel", KERNEL);
    add("-initrd", INITRD);
    add("-append", &command_line);
    add("-serial", &format!("file:{CONSOLE}"));
    add("-chardev", &format!("socket,id=files,path={FILES_SOCKET}"));
    add(
        "-device",
        &format!("vhost-user-fs-device,chardev=files,tag={TAG},queue-size=1024"),
    );
    add("-chardev", &format!("socket,id=link,path={LINK_SOCKET}"));
    add("-device", "virtio-serial-device");
    add("-device", "virtserialport,chardev=link,name=wharf");
    add("-device", "virtio-rng-device");
    all
}

/// The last lines of a log, to go on with after an error's text.
fn said(log: &str) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(4)..];
    match last {
        [] => String::new(),
        last => format!("; {}", last.join("; ")),
    }
}

/// Drops them for good, for this thread and all that it starts: root without a bounding set is
/// nothing.
fn drop_capabilities() -> rustix::io::Result<()> {
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // It may not, having none; or there is no such capability.
            Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}
