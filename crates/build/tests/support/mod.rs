//! A builder with a real image store, spawner and networks, a busybox base image, and guards that leave nothing behind.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use wharf_build::{BuildError, BuildRequest, Builder, Progress};
use wharf_image::{Image, ImageStore, Layer};
use wharf_net::{Dial, NetConfig, Networks};
use wharf_sandbox::{Spawner, SpawnerConfig};

static COUNTER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Node {
    pub(crate) images: ImageStore,
    pub(crate) spawner: Spawner,
    pub(crate) builder: Builder,
    /// The build context.
    pub(crate) context: PathBuf,
    guard: Guard,
}

/// After a failed test: ends the spawner, which takes all it runs with it.
struct Guard {
    dir: TempDir,
    pid: u32,
    cgroup_name: String,
    finished: bool,
}

/// What a build said and made.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) result: Result<Image, BuildError>,
    /// Step texts, with whether they came from the cache.
    pub(crate) steps: Vec<(String, bool)>,
    pub(crate) output: String,
}

impl Node {
    pub(crate) async fn new() -> Node {
        Node::with(Arc::new(wharf_net::Direct)).await
    }

    pub(crate) async fn with(dialer: Arc<dyn Dial>) -> Node {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces and cgroups: run them as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let cgroup_name = format!("wharf-build-{}-{number}", std::process::id());
        let (spawner, _) = Spawner::start(SpawnerConfig {
            socket: dir.path().join("spawner.sock"),
            command: vec![env!("CARGO_BIN_EXE_wharf-build-spawner-test").to_owned()],
            grace_ms: 1000,
            cgroup_name: cgroup_name.clone(),
        })
        .await
        .unwrap();
        let guard = Guard {
            pid: spawner.pid(),
            cgroup_name,
            finished: false,
            dir,
        };
        let dir = guard.dir.path();
        let images = ImageStore::open(&dir.join("images")).unwrap();
        let networks = Networks::with_dialer(
            NetConfig {
                pool_size: 0,
                hold_ms: 1000,
                dns_servers: Vec::new(),
                allow_private: false,
            },
            dialer,
        );
        let context = dir.join("context");
        fs::create_dir(&context).unwrap();
        Node {
            builder: Builder::new(images.clone(), spawner.clone(), networks, dir.join("build")),
            images,
            spawner,
            context,
            guard,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.guard.dir.path()
    }

    /// Imports `busybox:latest`: /bin is a link to usr/bin, as in Debian.
    pub(crate) fn busybox(&self) {
        let program = Path::new("/bin/busybox");
        assert!(
            program.exists(),
            "these tests need /bin/busybox: apt-get install busybox-static"
        );
        let root = self.dir().join("busybox");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::copy(program, root.join("usr/bin/busybox")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        let list = std::process::Command::new(program)
            .arg("--list")
            .output()
            .unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines() {
            if applet != "busybox" {
                symlink("busybox", root.join("usr/bin").join(applet)).unwrap();
            }
        }
        fs::create_dir(root.join("etc")).unwrap();
        fs::create_dir(root.join("tmp")).unwrap();
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            root.join("etc/group"),
            "root:x:0:\napp:x:1001:\nweb:x:50:\n",
        )
        .unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.follow_symlinks(false);
        tar.append_dir_all(".", &root).unwrap();
        self.images
            .import_rootfs("busybox", &*tar.into_inner().unwrap())
            .unwrap();
        fs::remove_dir_all(root).unwrap();
    }

    /// Writes a file of the context.
    pub(crate) fn file(&self, path: &str, content: &str) {
        let path = self.context.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn request(&self, dockerfile: &str) -> BuildRequest {
        BuildRequest {
            context: self.context.clone(),
            dockerfile: dockerfile.to_owned(),
            tags: vec!["result:latest".to_owned()],
            ..BuildRequest::default()
        }
    }

    pub(crate) async fn build(&self, dockerfile: &str) -> Built {
        self.build_with(self.request(dockerfile)).await
    }

    pub(crate) async fn build_with(&self, request: BuildRequest) -> Built {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let result = self.builder.build(request, sender).await;
        let mut built = Built {
            result,
            steps: Vec::new(),
            output: String::new(),
        };
        let mut bytes = Vec::new();
        while let Some(progress) = receiver.recv().await {
            match progress {
                Progress::Step {
                    number,
                    total,
                    text,
                    cached,
                } => {
                    built.steps.push((text, cached));
                    assert_eq!(number, built.steps.len(), "steps are numbered from 1");
                    assert!(number <= total, "step {number} of {total}");
                }
                Progress::Output(part) => bytes.extend(part),
            }
        }
        built.output = String::from_utf8(bytes).unwrap();
        built
    }

    /// Looks into the merged tree of layers.
    pub(crate) fn look<T>(&self, layers: &[Layer], look: impl FnOnce(&Path) -> T) -> T {
        let lower = self.images.lower_dirs(layers).unwrap();
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        let tree = wharf_sandbox::overlay::detached(&lower, None).unwrap();
        look(Path::new(&format!("/proc/self/fd/{}", tree.as_raw_fd())))
    }

    pub(crate) fn read(&self, image: &Image, path: &str) -> String {
        self.look(&image.layers, |root| {
            fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
        })
    }

    /// Paths in one layer, sorted.
    pub(crate) fn layer_paths(&self, layer: &Layer) -> Vec<String> {
        fn list(dir: &Path, base: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                into.push(
                    path.strip_prefix(base)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
                if path.is_dir() && !path.is_symlink() {
                    list(&path, base, into);
                }
            }
        }
        let dir = &self.images.lower_dirs(std::slice::from_ref(layer)).unwrap()[0];
        let mut paths = Vec::new();
        list(dir, dir, &mut paths);
        paths.sort();
        paths
    }

    /// Shuts down; nothing of a build may be left.
    pub(crate) async fn finish(mut self) {
        let left: Vec<_> = fs::read_dir(self.dir().join("images/tmp"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        self.spawner.shutdown().await.unwrap();
        self.guard.finished = true;
    }
}

impl Built {
    pub(crate) fn image(self) -> Image {
        match self.result {
            Ok(image) => image,
            Err(e) => panic!("{e}\n{:?}\n{}", self.steps, self.output),
        }
    }

    pub(crate) fn error(self) -> String {
        self.result.expect_err("the build fails").to_string()
    }

    /// Whether each step but FROM came from the cache.
    pub(crate) fn cached(&self) -> Vec<bool> {
        self.steps
            .iter()
            .filter(|(text, _)| !text.contains("FROM "))
            .map(|(_, cached)| *cached)
            .collect()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let comm = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid.cast_signed())
            && comm.starts_with("wharf")
        {
            // It ends everything in its cgroup when it is asked to end.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        eprintln!("the cgroup of this test was {}", self.cgroup_name);
    }
}
