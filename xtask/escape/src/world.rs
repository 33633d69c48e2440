//! The place where containers run: a spawner for each set of walls, the image with the hostile program, and the host's side of what is tried.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::Mutex;
use wharf_sandbox::disk::{Disk, Template};
use wharf_sandbox::weak::{Wall, take_down};
use wharf_sandbox::{
    Capabilities, DiskMount, ExecSpec, ExecStreams, Exit, IdRanges, Limits, Mount, Process,
    ProcessSpec, Root, SpawnError, SpawnFds, Spawner, SpawnerConfig, Streams,
};
use wharf_testkit::Place;

use crate::case::{Inside, Side, Walls};
use crate::class::Class;

/// No probe takes longer; none passes by it.
const PATIENCE: Duration = Duration::from_secs(60);

const ABSTRACT: &str = "wharf-escape";

const WALLS: [(&str, Wall); 17] = [
    ("seccomp", Wall::Seccomp),
    ("capabilities", Wall::Capabilities),
    ("no-new-privs", Wall::NoNewPrivs),
    ("landlock", Wall::Landlock),
    ("masks", Wall::Masks),
    ("read-only-sys", Wall::ReadOnlySys),
    ("no-devices", Wall::NoDevices),
    ("pid-namespace", Wall::PidNamespace),
    ("ipc-namespace", Wall::IpcNamespace),
    ("pivot", Wall::Pivot),
    ("rooted", Wall::Rooted),
    ("magic-links", Wall::MagicLinks),
    ("descriptors", Wall::Descriptors),
    ("read-only-program", Wall::ReadOnlyProgram),
    ("not-dumpable", Wall::NotDumpable),
    ("keyring", Wall::Keyring),
    ("terminals", Wall::Terminals),
];

/// This program as a spawner: the walls that are down, then what the sandbox appends.
pub(crate) fn spawner(args: &[String]) -> ExitCode {
    let Some((names, rest)) = args.split_first() else {
        return ExitCode::from(2);
    };
    for name in names.split(',').filter(|name| !name.is_empty()) {
        match WALLS.iter().find(|(known, _)| *known == name) {
            Some((_, wall)) => take_down(&[*wall]),
            None => return ExitCode::from(2),
        }
    }
    wharf_sandbox::spawner::run(rest)
}

/// A container to start.
pub(crate) struct Setup {
    pub(crate) spec: ProcessSpec,
    pub(crate) fds: SpawnFds,
}

impl Setup {
    /// The network namespace of this program, which is the probes' host.
    pub(crate) fn host_network(&mut self) -> Result<()> {
        self.fds.netns = Some(std::fs::File::open("/proc/self/ns/net")?.into());
        Ok(())
    }
}

struct Running {
    place: Place,
    spawner: Spawner,
}

pub(crate) struct World {
    pub(crate) class: Class,
    /// Its directory is the suite's.
    pub(crate) place: Place,
    spawners: Mutex<BTreeMap<Walls, Running>>,
    layer: PathBuf,
    /// File systems of 16 MiB.
    disks: Template,
    /// One that no container of a probe is given.
    other_disk: Disk,
    _abstract: std::os::unix::net::UnixListener,
    victim: std::sync::Mutex<Child>,
    counter: AtomicU32,
    listeners: std::sync::Mutex<Vec<TcpListener>>,
}

impl World {
    pub(crate) async fn new(class: Class, program: &Path) -> Result<World> {
        let own = std::env::current_exe()?.display().to_string();
        let place = Place::new(&own);
        let layer = make_layer(&place.path("layer"), program)?;
        let outside = place.path("outside");
        fs::write(outside.join("victim"), "the host's")?;
        // As a secret of the host would not be.
        fs::set_permissions(outside.join("victim"), fs::Permissions::from_mode(0o644))?;
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755))?;
        let disks = Template::make(place.dir.path(), 16 << 20).context("a disk")?;
        let other_disk = disks.disk().context("a disk")?;
        let name = SocketAddr::from_abstract_name(ABSTRACT)?;
        let listener = UnixListener::bind_addr(&name)?;
        let victim = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()?;
        Ok(World {
            class,
            place,
            spawners: Mutex::default(),
            layer,
            disks,
            other_disk,
            _abstract: listener,
            victim: std::sync::Mutex::new(victim),
            counter: AtomicU32::new(0),
            listeners: std::sync::Mutex::default(),
        })
    }

    /// A directory of the host's, and a file in it that every container must not find.
    pub(crate) fn outside(&self) -> PathBuf {
        self.place.path("outside")
    }

    pub(crate) fn marker(&self) -> String {
        self.outside().join("victim").display().to_string()
    }

    /// A word of every path of the host's that the suite has.
    pub(crate) fn own_name(&self) -> String {
        let name = self.place.dir.path().file_name();
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its directory, mounted at its own path.
    pub(crate) fn outside_mounted(&self) -> Mount {
        Mount::Bind {
            source: self.outside(),
            target: self.outside(),
            read_only: true,
        }
    }

    /// A process of the host's.
    pub(crate) fn victim(&self) -> u32 {
        self.victim.lock().map_or(0, |child| child.id())
    }

    pub(crate) fn victim_state(&self) -> String {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.victim())).unwrap_or_default();
        // Name, state, parent, group, session; and its priority.
        let fields: Vec<&str> = stat.split(' ').collect();
        let some = [1, 3, 4, 5, 17, 18].map(|i| fields.get(i).copied().unwrap_or_default());
        some.join(" ")
    }

    /// Where the spawner of all walls listens.
    pub(crate) async fn spawner_socket(&self) -> Result<PathBuf> {
        self.spawner(&Walls::ALL).await?;
        let spawners = self.spawners.lock().await;
        let running = spawners.get(&Walls::ALL).context("no spawner")?;
        Ok(running.place.dir.path().join("spawner.sock"))
    }

    /// Has a listener on the host's loopback from now on.
    pub(crate) fn listen(&self) -> Result<()> {
        let mut listeners = self
            .listeners
            .lock()
            .map_err(|_| anyhow::anyhow!("a panic"))?;
        listeners.push(TcpListener::bind("127.0.0.1:0")?);
        Ok(())
    }

    /// An abstract socket of the host's, where somebody listens.
    pub(crate) fn abstract_name(&self) -> String {
        ABSTRACT.to_owned()
    }

    /// Major and minor number of another instance's disk.
    pub(crate) fn other_disk(&self) -> Vec<String> {
        let device = fs::metadata(self.other_disk.device()).map_or(0, |m| m.rdev());
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        vec![major.to_string(), minor.to_string()]
    }

    /// Puts the container's root on a disk of 16 MiB, as instances of applications have one.
    pub(crate) fn on_disk(&self, setup: &mut Setup) -> Result<()> {
        let disk = self.disks.disk()?;
        let at = self.place.path(&format!("{}-disk", setup.spec.id));
        if let Root::Overlay { upper, work, .. } = &mut setup.spec.root {
            (*upper, *work) = (at.join("upper"), at.join("work"));
        }
        setup.spec.disk = Some(DiskMount {
            device: disk.device().to_owned(),
            at,
        });
        setup.fds.disk = Some(disk.mount().try_clone_to_owned()?);
        Ok(())
    }

    /// A link in an image that leads to the host's directory.
    pub(crate) fn layer_exit(&self) -> Result<PathBuf> {
        let exit = self.place.path("exit-layer").join("exit");
        if exit.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(self.outside(), &exit)?;
        }
        Ok(exit)
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.layer.clone()
    }

    /// A name that nothing else here has.
    pub(crate) fn fresh(&self, name: &str) -> String {
        format!("{name}-{}", self.counter.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) async fn spawner(&self, walls: &Walls) -> Result<Spawner> {
        let mut spawners = self.spawners.lock().await;
        if let Some(running) = spawners.get(walls) {
            return Ok(running.spawner.clone());
        }
        let own = std::env::current_exe()?.display().to_string();
        let place = Place::new(&own);
        let names = WALLS.iter().filter(|(_, wall)| walls.down.contains(wall));
        let names: Vec<&str> = names.map(|(name, _)| *name).collect();
        let config = SpawnerConfig {
            command: vec![own, "--spawner".to_owned(), names.join(",")],
            ids: walls.users.then(IdRanges::default),
            ..place.config(20_000)
        };
        let (spawner, _) = Spawner::start(config).await?;
        let running = Running {
            place,
            spawner: spawner.clone(),
        };
        spawners.insert(walls.clone(), running);
        Ok(spawner)
    }

    /// A container of the hostile image that runs one of its probes, in an empty network.
    pub(crate) fn setup(&self, name: &str, probe: &str, arguments: &[String]) -> Result<Setup> {
        let id = self.fresh(name);
        let mut argv = vec!["/probe".to_owned(), probe.to_owned()];
        argv.extend_from_slice(arguments);
        let spec = ProcessSpec {
            label: String::new(),
            argv,
            env: vec!["PATH=/".to_owned()],
            cwd: "/".to_owned(),
            user: String::new(),
            root: Root::Overlay {
                lower: vec![self.layer.clone()],
                upper: self.place.path(&format!("{id}-upper")),
                work: self.place.path(&format!("{id}-work")),
            },
            hostname: Some("inside".to_owned()),
            mounts: Vec::new(),
            limits: Limits::default(),
            stdin_pipe: false,
            disk: None,
            capabilities: Capabilities::default(),
            no_new_privileges: false,
            read_only: false,
            isolation: self.class.spec(self.place.path("guest"))?,
            id,
        };
        let fds = SpawnFds {
            netns: Some(empty_network()?),
            sys: None,
            ..SpawnFds::default()
        };
        Ok(Setup { spec, fds })
    }

    pub(crate) async fn inside(&self, name: &str, inside: &Inside, side: Side) -> Result<String> {
        let mut setup = self.setup(name, inside.probe, &(inside.arguments)(self, side))?;
        (inside.change)(self, side, &mut setup)?;
        let walls = match side {
            Side::Held => &inside.held,
            Side::Weak => &inside.weak,
        };
        self.run(walls, setup).await
    }

    /// Runs it to its end; what its probe saw, or how it ended without saying.
    pub(crate) async fn run(&self, walls: &Walls, setup: Setup) -> Result<String> {
        let spawner = self.spawner(walls).await?;
        let process = match spawner.spawn(&setup.spec, setup.fds).await {
            Ok(process) => process,
            Err(SpawnError::Refused { .. }) => return Ok("not started".to_owned()),
            Err(error) => return Err(error.into()),
        };
        let id = &setup.spec.id;
        let (out, err) = (read_all(process.stdout), read_all(process.stderr));
        let ended = tokio::time::timeout(PATIENCE, spawner.wait(id)).await;
        let exit = match ended {
            Ok(exit) => exit?,
            Err(_) => {
                spawner.kill(id).await?;
                spawner.wait(id).await?;
                spawner.forget(id).await?;
                bail!("it did not end");
            }
        };
        spawner.forget(id).await?;
        Ok(verdict(&out.await?, &err.await?, &exit))
    }

    /// Starts a container that stays, and waits until it holds what it is to hold.
    pub(crate) async fn hold(&self, walls: &Walls, setup: Setup) -> Result<Held> {
        let spawner = self.spawner(walls).await?;
        let process = spawner.spawn(&setup.spec, setup.fds).await?;
        let said = first_line(&process).await?;
        anyhow::ensure!(said.contains("holds"), "the other container: {said}");
        Ok(Held {
            spawner,
            id: setup.spec.id,
            _process: process,
        })
    }

    pub(crate) async fn end(self) -> Result<()> {
        if let Ok(mut victim) = self.victim.lock() {
            victim.kill()?;
            victim.wait()?;
        }
        for running in self.spawners.into_inner().into_values() {
            running.place.finish(&running.spawner).await;
        }
        Ok(())
    }
}

/// A container that runs beside.
pub(crate) struct Held {
    pub(crate) spawner: Spawner,
    pub(crate) id: String,
    /// Its output stays open.
    _process: Process,
}

impl Held {
    pub(crate) async fn end(self) -> Result<()> {
        self.spawner.kill(&self.id).await?;
        self.spawner.wait(&self.id).await?;
        Ok(self.spawner.forget(&self.id).await?)
    }

    /// Runs a probe in it, from a working directory.
    pub(crate) async fn exec(&self, id: String, cwd: &str, argv: &[&str]) -> Result<String> {
        let spec = ExecSpec {
            id,
            container: self.id.clone(),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            env: Vec::new(),
            cwd: cwd.to_owned(),
            user: String::new(),
            nofile: None,
            streams: ExecStreams::Pipes { stdin: false },
        };
        let (process, streams) = match self.spawner.exec(&spec).await {
            Ok(started) => started,
            Err(SpawnError::Refused { .. }) => return Ok("not started".to_owned()),
            Err(error) => return Err(error.into()),
        };
        let Streams::Pipes { stdout, stderr, .. } = streams else {
            bail!("no pipes");
        };
        let (out, err) = (read_all(stdout), read_all(stderr));
        let exit = process.wait().await?;
        Ok(verdict(&out.await?, &err.await?, &exit))
    }
}

/// What a probe said it saw.
pub(crate) fn said(out: &str) -> Option<String> {
    let line = out
        .lines()
        .rev()
        .find(|line| line.starts_with("{\"probe\""))?;
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(value["seen"].as_str()?.to_owned())
}

fn verdict(out: &str, err: &str, exit: &Exit) -> String {
    if exit.oom_killed {
        return "killed by the limit".to_owned();
    }
    said(out).unwrap_or_else(|| match exit.signal {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit code {}: {}", exit.code, err.trim()),
    })
}

fn read_all(fd: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let _ = fs::File::from(fd).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

async fn first_line(process: &Process) -> Result<String> {
    let out = process.stdout.try_clone()?;
    let line = tokio::task::spawn_blocking(move || {
        let (mut file, mut line, mut byte) = (fs::File::from(out), Vec::new(), [0]);
        while file.read(&mut byte).is_ok_and(|n| n == 1) && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).into_owned()
    });
    Ok(line.await?)
}

/// A network namespace with nothing in it.
pub(crate) fn empty_network() -> Result<OwnedFd> {
    let redirect = wharf_sandbox::netns::Redirect {
        tcp_port: 64001,
        dns_port: 64053,
        ipv6: true,
    };
    wharf_sandbox::netns::create(redirect).context("a network namespace")
}

/// The hostile image: the program, copies of it with more rights, a device node, users.
fn make_layer(layer: &Path, program: &Path) -> Result<PathBuf> {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags};
    for name in ["probe", "probe-suid", "probe-caps"] {
        fs::copy(program, layer.join(name)).with_context(|| program.display().to_string())?;
        fs::set_permissions(layer.join(name), fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(layer.join("probe-suid"), fs::Permissions::from_mode(0o6755))?;
    // Version 2, effective: CAP_NET_RAW (capabilities(7), linux/capability.h).
    let mut capability = vec![1, 0, 0, 2];
    for word in [1u32 << 13, 0, 0, 0] {
        capability.extend(word.to_le_bytes());
    }
    let file = layer.join("probe-caps");
    rustix::fs::setxattr(
        &file,
        "security.capability",
        &capability,
        XattrFlags::empty(),
    )?;
    let kmsg = rustix::fs::makedev(1, 11);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(
        CWD,
        layer.join("device"),
        FileType::CharacterDevice,
        mode,
        kmsg,
    )?;
    fs::create_dir(layer.join("tmp"))?;
    fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::create_dir(layer.join("etc"))?;
    let users = "root:x:0:0::/root:/probe\napp:x:1000:1001::/:/probe\n";
    fs::write(layer.join("etc/passwd"), users)?;
    Ok(layer.to_owned())
}
