//! A spawner of its own for each test, a root file system of busybox, and guards that leave nothing
//! behind.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use wharf_sandbox::{
    Capabilities, Exit, Limits, Mount, Process, ProcessSpec, Root, SpawnError, SpawnFds, Spawner,
    Survivor,
};

/// What a container wrote and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A place with what runs in it.
pub(crate) struct Place(wharf_testkit::Place);

impl Deref for Place {
    type Target = wharf_testkit::Place;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Place {
    pub(crate) fn new() -> Place {
        Place(wharf_testkit::Place::new(env!(
            "CARGO_BIN_EXE_wharf-spawner-test"
        )))
    }

    pub(crate) async fn start(&self) -> Spawner {
        let (spawner, survivors) = self.start_with(20_000).await;
        assert!(survivors.is_empty(), "{survivors:?}");
        spawner
    }

    pub(crate) async fn start_with(&self, grace_ms: u64) -> (Spawner, Vec<Survivor>) {
        self.0.start(grace_ms).await
    }

    /// A root file system with busybox and its applets; made once.
    pub(crate) fn busybox(&self) -> PathBuf {
        let root = self.dir.path().join("busybox");
        if !root.exists() {
            wharf_testkit::busybox::write(&root);
        }
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
            hostname: Some("inside".into()),
            mounts: vec![],
            limits: Limits::default(),
            stdin_pipe: false,
            disk: None,
            capabilities: Capabilities::default(),
            no_new_privileges: false,
            read_only: false,
            isolation: wharf_sandbox::IsolationSpec::Namespace,
        };
        (
            spec,
            SpawnFds {
                netns: Some(netns()),
                sys: None,
                disk: None,
                inherit: vec![],
                image: None,
            },
        )
    }

    /// A container in which this test program runs one of its tests, told by `INSIDE` in its
    /// environment; with the host's C library.
    pub(crate) fn this_program(
        &self,
        id: &str,
        upper: &Path,
        test: &str,
    ) -> (ProcessSpec, SpawnFds) {
        let (mut spec, fds) = self.container(id, "");
        spec.root = Root::Overlay {
            lower: vec![],
            upper: upper.to_owned(),
            work: self.path(&format!("{id}-work")),
        };
        spec.mounts = vec![bind(&std::env::current_exe().unwrap(), "/program", true)];
        spec.mounts.extend(
            ["/usr", "/lib", "/lib64"]
                .map(Path::new)
                .into_iter()
                .filter(|p| p.exists())
                .map(|p| bind(p, p.to_str().unwrap(), true)),
        );
        spec.argv = ["/program", "--nocapture", "--exact", test]
            .map(str::to_owned)
            .to_vec();
        spec.env.push("INSIDE=1".into());
        (spec, fds)
    }

    /// A process of a static busybox in a root with nothing else, and its network.
    pub(crate) fn bare(&self, id: &str, argv: &[&str]) -> (ProcessSpec, SpawnFds) {
        let spec = ProcessSpec {
            id: id.to_owned(),
            label: String::new(),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            user: "12345:12345".into(),
            root: Root::Bare,
            hostname: Some("bare".into()),
            mounts: vec![bind(
                &self.busybox().join("bin/busybox"),
                "/bin/busybox",
                true,
            )],
            limits: Limits::default(),
            stdin_pipe: false,
            disk: None,
            capabilities: Capabilities::default(),
            no_new_privileges: false,
            read_only: false,
            isolation: wharf_sandbox::IsolationSpec::Namespace,
        };
        let fds = SpawnFds {
            netns: Some(netns()),
            sys: None,
            disk: None,
            image: None,
            inherit: vec![],
        };
        (spec, fds)
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
        self.0.finish(&spawner).await;
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

/// As many processes are made ahead, once a container was started.
pub(crate) const AHEAD: usize = 8;

/// The spawner's children, without its warden.
pub(crate) fn children(spawner: u32) -> BTreeSet<i32> {
    let mut children = all_children(spawner);
    children.retain(|pid| !is_warden(*pid));
    children
}

/// The process beside the spawner that outlives it.
pub(crate) fn warden_of(spawner: u32) -> Option<i32> {
    all_children(spawner)
        .into_iter()
        .find(|pid| is_warden(*pid))
}

fn all_children(spawner: u32) -> BTreeSet<i32> {
    let text = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children"));
    let text = text.unwrap_or_default();
    let pids = text.split_whitespace().map(str::parse);
    pids.collect::<Result<_, _>>().unwrap()
}

fn is_warden(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "wharf-warden")
}

/// Until the spawner has made ahead all that it makes, and has so many containers besides.
pub(crate) async fn all_is_made_ahead(spawner: &Spawner, containers: usize) {
    has_children(spawner, AHEAD + containers).await;
}

/// Until the spawner has so many children, and keeps them.
pub(crate) async fn has_children(spawner: &Spawner, count: usize) {
    let pid = spawner.pid();
    wharf_testkit::eventually("processes made ahead", async || {
        let found = children(pid);
        // Others are there for a moment only: one makes a user namespace.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        (found.len() == count && children(pid) == found).then_some(())
    })
    .await;
}

/// How many descriptors the spawner has.
pub(crate) fn descriptors(spawner: &Spawner) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", spawner.pid()));
    open.unwrap().count()
}

/// The same, when processes and user namespaces are made ahead and nothing changes any more.
pub(crate) async fn descriptors_at_rest(spawner: &Spawner, containers: usize) -> usize {
    all_is_made_ahead(spawner, containers).await;
    let (mut before, mut looks) = (0, 0);
    while looks < 4 {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        looks = if before == descriptors(spawner) {
            looks + 1
        } else {
            0
        };
        before = descriptors(spawner);
    }
    before
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
fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: the thread is this closure's own and ends with it.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        OwnedFd::from(fs::File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
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
