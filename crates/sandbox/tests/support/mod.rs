//! A spawner of its own for each test, a root file system of busybox, and guards that leave nothing behind.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wharf_sandbox::{
    Exit, Limits, Mount, Network, Process, ProcessSpec, Root, SpawnError, SpawnFds, Spawner,
    SpawnerConfig, Survivor,
};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What a container wrote and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A directory, a cgroup name, and whatever spawner runs there.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) cgroup_name: String,
}

impl Place {
    pub(crate) fn new() -> Place {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces and cgroups: run them as root"
        );
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Place {
            dir: tempfile::tempdir().unwrap(),
            cgroup_name: format!("wharf-test-{}-{number}", std::process::id()),
        }
    }

    pub(crate) fn config(&self, grace_ms: u64) -> SpawnerConfig {
        SpawnerConfig {
            socket: self.dir.path().join("spawner.sock"),
            command: vec![env!("CARGO_BIN_EXE_wharf-spawner-test").to_owned()],
            grace_ms,
            cgroup_name: self.cgroup_name.clone(),
        }
    }

    pub(crate) async fn start(&self) -> Spawner {
        let (spawner, survivors) = self.start_with(20_000).await;
        assert!(survivors.is_empty(), "{survivors:?}");
        spawner
    }

    pub(crate) async fn start_with(&self, grace_ms: u64) -> (Spawner, Vec<Survivor>) {
        let (spawner, survivors) = Spawner::start(self.config(grace_ms)).await.unwrap();
        fs::write(self.dir.path().join("pid"), spawner.pid().to_string()).unwrap();
        (spawner, survivors)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A root file system with busybox and its applets; made once.
    pub(crate) fn busybox(&self) -> PathBuf {
        let root = self.dir.path().join("busybox");
        if root.exists() {
            return root;
        }
        let program = Path::new("/bin/busybox");
        assert!(
            program.exists(),
            "these tests need /bin/busybox: apt-get install busybox-static"
        );
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy(program, root.join("bin/busybox")).unwrap();
        let list = std::process::Command::new(program)
            .arg("--list")
            .output()
            .unwrap();
        for applet in String::from_utf8(list.stdout)
            .unwrap()
            .lines()
            .filter(|a| *a != "busybox")
        {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::create_dir(root.join("etc")).unwrap();
        fs::create_dir(root.join("tmp")).unwrap();
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            root.join("etc/group"),
            "root:x:0:\napp:x:1001:\nextra:x:50:app\n",
        )
        .unwrap();
        root
    }

    /// A container over busybox that runs a shell script, in an empty network namespace.
    pub(crate) fn container(&self, id: &str, script: &str) -> (ProcessSpec, SpawnFds) {
        let spec = ProcessSpec {
            id: id.to_owned(),
            label: format!("label of {id}"),
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            user: String::new(),
            root: Root::Overlay {
                lower: vec![self.busybox()],
                upper: self.path(&format!("{id}-upper")),
                work: self.path(&format!("{id}-work")),
            },
            network: Network::Namespace,
            hostname: Some("inside".into()),
            mounts: vec![],
            limits: Limits::default(),
            stdin_pipe: false,
        };
        (
            spec,
            SpawnFds {
                netns: Some(netns()),
                inherit: vec![],
            },
        )
    }

    /// A process in the host's root.
    pub(crate) fn host(&self, id: &str, argv: &[&str]) -> ProcessSpec {
        ProcessSpec {
            id: id.to_owned(),
            label: String::new(),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            env: vec!["PATH=/usr/bin:/bin".into()],
            cwd: "/".into(),
            user: "12345:12345".into(),
            root: Root::Host,
            network: Network::Host,
            hostname: None,
            mounts: vec![],
            limits: Limits::default(),
            stdin_pipe: false,
        }
    }

    /// Runs a script in a container to its end.
    pub(crate) async fn run(&self, spawner: &Spawner, id: &str, script: &str) -> Ran {
        self.run_with(spawner, id, script, |_| {}).await
    }

    pub(crate) async fn run_with(
        &self,
        spawner: &Spawner,
        id: &str,
        script: &str,
        change: impl FnOnce(&mut ProcessSpec),
    ) -> Ran {
        let (mut spec, fds) = self.container(id, script);
        change(&mut spec);
        run(spawner, &spec, fds).await.unwrap()
    }

    /// Shuts down and checks that nothing is left.
    pub(crate) async fn finish(self, spawner: Spawner) {
        let pid = spawner.pid();
        spawner.shutdown().await.unwrap();
        self.assert_gone(pid).await;
    }

    pub(crate) async fn assert_gone(&self, spawner_pid: u32) {
        eventually("the spawner ends", || !is_alive(spawner_pid as i32)).await;
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let left: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("sock"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// This place's directories in all cgroup hierarchies.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let base = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(base)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir());
        std::iter::once(base.to_owned())
            .chain(hierarchies)
            .map(|h| h.join(&self.cgroup_name))
            .filter(|p| p.exists())
            .collect()
    }
}

impl Drop for Place {
    /// After a failed test: the spawner and all it runs.
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.dir.path().join("pid"))
            && let Ok(pid) = pid.parse()
            && fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == "wharf-spawner")
        {
            kill(pid);
        }
        for base in self.cgroups() {
            for _ in 0..200 {
                let children: Vec<_> = fs::read_dir(&base)
                    .into_iter()
                    .flatten()
                    .filter_map(|e| Some(e.ok()?.path()))
                    .filter(|p| p.is_dir())
                    .collect();
                for child in children {
                    for pid in fs::read_to_string(child.join("cgroup.procs"))
                        .unwrap_or_default()
                        .lines()
                    {
                        kill(pid.parse().unwrap());
                    }
                    let _ = fs::remove_dir(&child);
                }
                if fs::remove_dir(&base).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

pub(crate) async fn run(
    spawner: &Spawner,
    spec: &ProcessSpec,
    fds: SpawnFds,
) -> Result<Ran, SpawnError> {
    let process = spawner.spawn(spec, fds).await?;
    let (out, err) = (read_all(process.stdout), read_all(process.stderr));
    let exit = spawner.wait(&spec.id).await?;
    let ran = Ran {
        exit,
        out: out.await.unwrap(),
        err: err.await.unwrap(),
    };
    spawner.forget(&spec.id).await?;
    Ok(ran)
}

pub(crate) fn read_all(fd: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        fs::File::from(fd).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The first line of a process's output; it goes on running.
pub(crate) async fn first_line(process: &Process) -> String {
    let out = process.stdout.try_clone().unwrap();
    tokio::task::spawn_blocking(move || {
        let (mut file, mut line, mut byte) = (fs::File::from(out), Vec::new(), [0]);
        while file.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    })
    .await
    .unwrap()
}

/// An empty network namespace.
pub(crate) fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: the thread is this closure's own and ends with it.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        OwnedFd::from(fs::File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

pub(crate) fn is_alive(pid: i32) -> bool {
    // A zombie has ended.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn file(target: &str, content: &str) -> Mount {
    Mount::File {
        target: target.into(),
        content: content.into(),
    }
}

pub(crate) fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount::Bind {
        source: source.to_owned(),
        target: target.into(),
        read_only,
    }
}
