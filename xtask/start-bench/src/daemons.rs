//! Others' daemons: containerd with dockerd, and podman's API service, each on a private socket with private directories, ended by their pids.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::class::Class;
use crate::http::Api;
use crate::place::{Place, run};
use crate::runtime::oci::without_hybrid_cgroups;

/// How long a daemon may take to come up, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process with a log; ended in order when dropped.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Daemon> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C reaches this program first, which ends them in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} can't be started"))?;
        Ok(Daemon { child, log })
    }

    /// Waits for its socket's answer.
    fn wait_for(&mut self, api: &Api) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while api.call("GET", "/info", None).is_err() {
            crate::interrupt::check()?;
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<_> = log.lines().rev().take(3).collect();
                bail!("does not come up: {}", lines.join(" | "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                eprintln!("{} does not end and is killed", self.log.display());
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// dockerd with a containerd of its own. Fields are dropped in order: dockerd first.
pub(crate) struct Docker {
    pub(crate) api: Api,
    _dockerd: Daemon,
    _containerd: Daemon,
    _place: Arc<Place>,
}

impl Docker {
    /// Starts both and imports the classes. No bridge and no firewall rules: the containers have no network to outside, here as with everyone.
    pub(crate) fn start(place: &Arc<Place>, classes: &[Class]) -> Result<Docker> {
        let dir = place.dir().join("docker");
        fs::create_dir_all(&dir)?;
        let path = |name: &str| dir.join(name);
        let config = path("containerd.toml");
        fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
                path("containerd"),
                path("containerd-state"),
                path("containerd.sock")
            ),
        )?;
        let mut containerd = Command::new("containerd");
        containerd.arg("--config").arg(&config);
        let containerd = Daemon::start(&dir, "containerd", &mut containerd)?;
        let deadline = Instant::now() + PATIENCE;
        while !path("containerd.sock").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let api = Api(path("docker.sock"));
        let mut dockerd = Command::new("dockerd");
        dockerd
            .arg(format!("--host=unix://{}", api.0.display()))
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("docker.pid"))
            .arg("--containerd")
            .arg(path("containerd.sock"))
            .args(["--bridge=none", "--iptables=false", "--ip-masq=false"]);
        let mut dockerd = Daemon::start(&dir, "dockerd", &mut dockerd)?;
        dockerd.wait_for(&api).context("dockerd")?;
        for class in classes {
            crate::interrupt::check()?;
            api.import(&class.rootfs, &class.image())
                .context("dockerd")?;
        }
        Ok(Docker {
            api,
            _dockerd: dockerd,
            _containerd: containerd,
            _place: place.clone(),
        })
    }

    /// The storage driver that it chose.
    pub(crate) fn driver(&self) -> String {
        let info = self.api.call("GET", "/info", None).unwrap_or_default();
        info["Driver"].as_str().unwrap_or("?").to_owned()
    }
}

/// `podman system service`.
pub(crate) struct Podman {
    pub(crate) api: Api,
    _service: Daemon,
    _place: Arc<Place>,
}

impl Podman {
    /// Starts it, and imports the classes under the names that Docker clients use.
    pub(crate) fn start(place: &Arc<Place>, classes: &[Class]) -> Result<Podman> {
        let dir = place.dir().join("podman");
        fs::create_dir_all(&dir)?;
        let podman = || {
            // Debian's podman runs crun.
            let mut command = without_hybrid_cgroups();
            command.arg("podman");
            for (option, name) in [
                ("--root", "root"),
                ("--runroot", "run"),
                ("--tmpdir", "tmp"),
            ] {
                command.arg(option).arg(dir.join(name));
            }
            command.args(["--cgroup-manager=cgroupfs", "--log-level=error"]);
            command
        };
        for class in classes {
            crate::interrupt::check()?;
            let name = format!("docker.io/{}", class.image());
            run(podman()
                .args(["import", "--quiet"])
                .arg(&class.rootfs)
                .arg(name))?;
        }
        let api = Api(dir.join("podman.sock"));
        let socket = format!("unix://{}", api.0.display());
        let mut service = podman();
        service.args(["system", "service", "--time=0", &socket]);
        let mut service = Daemon::start(&dir, "podman", &mut service)?;
        service.wait_for(&api).context("podman")?;
        Ok(Podman {
            api,
            _service: service,
            _place: place.clone(),
        })
    }
}
