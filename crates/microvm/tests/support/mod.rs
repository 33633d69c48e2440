//! A spawner of its own for each test, and containers over busybox in emulated machines.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::Read;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path;

use wharf_sandbox::{
    Capabilities, Exit, IsolationSpec, Limits, Machine, Mount, Process, ProcessSpec, Root,
    SpawnError, SpawnFds, Spawner,
};

/// What a container wrote and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A place with what runs in it.
pub(crate) struct Place(pub(crate) wharf_testkit::Place);

impl Deref for Place {
    type Target = wharf_testkit::Place;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

const AGENT: &str = env!("CARGO_BIN_EXE_wharf-microvm-test");

/// Emulated, as not every machine has KVM, unless `WHARF_TEST_KVM` is set.
pub(crate) fn machine(dir: &Path) -> Machine {
    let kernel = wharf_testkit::guest_kernel();
    let kernel = wharf_microvm::initrd::GuestKernel::find(&kernel).unwrap();
    let initrd =
        wharf_microvm::initrd::prepare(&kernel, Path::new(AGENT), &dir.join("guest")).unwrap();
    Machine {
        qemu: "/usr/bin/qemu-system-x86_64".into(),
        virtiofsd: std::env::var("WHARF_TEST_VIRTIOFSD")
            .unwrap_or("/usr/lib/qemu/virtiofsd".into())
            .into(),
        kernel: kernel.image,
        initrd,
        agent: AGENT.into(),
        kvm: std::env::var_os("WHARF_TEST_KVM").is_some(),
    }
}

impl Place {
    pub(crate) fn new() -> Place {
        Place(wharf_testkit::Place::new(AGENT))
    }

    pub(crate) async fn start(&self) -> Spawner {
        let (spawner, survivors) = self.0.start(60_000).await;
        assert!(survivors.is_empty(), "{survivors:?}");
        spawner
    }

    /// A container over busybox that runs a shell script, in an empty network namespace.
    pub(crate) fn container(&self, id: &str, script: &str) -> (ProcessSpec, SpawnFds) {
        let busybox = self.dir.path().join("busybox");
        if !busybox.exists() {
            wharf_testkit::busybox::write(&busybox);
        }
        let spec = ProcessSpec {
            id: id.to_owned(),
            label: String::new(),
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            user: String::new(),
            root: Root::Overlay {
                lower: vec![busybox],
                upper: self.path(&format!("{id}-upper")),
                work: self.path(&format!("{id}-work")),
            },
            hostname: Some("inside".into()),
            mounts: vec![],
            limits: Limits {
                memory_bytes: Some(128 << 20),
                ..Limits::default()
            },
            stdin_pipe: false,
            disk: None,
            capabilities: Capabilities::default(),
            no_new_privileges: false,
            read_only: false,
            isolation: IsolationSpec::Microvm(machine(self.dir.path())),
        };
        let fds = SpawnFds {
            netns: Some(netns()),
            sys: None,
            ..SpawnFds::default()
        };
        (spec, fds)
    }

    /// Runs a script in a container to its end.
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

pub(crate) fn read_all(fd: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The next line of a process's output; it goes on running.
pub(crate) async fn next_line(process: &Process) -> String {
    let out = process.stdout.try_clone().unwrap();
    tokio::task::spawn_blocking(move || {
        let (mut file, mut line, mut byte) = (std::fs::File::from(out), Vec::new(), [0]);
        while file.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    })
    .await
    .unwrap()
}

fn netns() -> OwnedFd {
    wharf_sandbox::netns::create(wharf_sandbox::netns::Redirect {
        tcp_port: 64001,
        dns_port: 64053,
        ipv6: false,
    })
    .unwrap()
}

pub(crate) fn file(target: &str, content: &str) -> Mount {
    Mount::File {
        target: target.into(),
        content: content.into(),
    }
}
