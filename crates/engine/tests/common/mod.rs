//! A real engine in a temporary directory: real spawner, real namespaces, an image made of busybox. Needs root and busybox (static), as the project's
//! other tests of real containers do.
// Each test binary uses a part.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use wharf_engine::{Create, Engine, EngineConfig, Owner};
use wharf_image::ImageStore;
use wharf_net::{NetConfig, Networks};
use wharf_sandbox::{Limits, Spawner, SpawnerConfig, Survivor};

pub const LOG_BYTES: u64 = 1 << 20;

/// Everything that outlives one engine. The spawner ends everything itself soon after its daemon's end, also if a test fails.
pub struct World {
    pub dir: tempfile::TempDir,
    pub images: ImageStore,
    /// The executable that is nothing but a spawner.
    program: String,
}

/// One daemon's life.
pub struct Daemon {
    pub engine: Engine,
    pub spawner: Spawner,
    pub networks: Networks,
}

impl World {
    pub fn new(program: &str) -> World {
        let dir = tempfile::Builder::new()
            .prefix("wharf-engine")
            .tempdir_in("/tmp")
            .unwrap();
        let images = ImageStore::open(&dir.path().join("images")).unwrap();
        images
            .import_rootfs("busybox:latest", busybox_root().as_slice())
            .unwrap();
        World {
            dir,
            images,
            program: program.to_owned(),
        }
    }

    pub fn instances(&self) -> std::path::PathBuf {
        self.dir.path().join("instances")
    }

    /// Directories of instances (what is being removed does not count).
    pub fn directories(&self) -> usize {
        std::fs::read_dir(self.instances())
            .unwrap()
            .filter(|e| {
                !e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with('.')
            })
            .count()
    }

    pub async fn spawner(&self) -> (Spawner, Vec<Survivor>) {
        let unique = self
            .dir
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .to_lowercase();
        let config = SpawnerConfig {
            socket: self.dir.path().join("spawner.sock"),
            command: vec![self.program.clone()],
            grace_ms: 3000,
            cgroup_name: unique.replace('.', "-"),
        };
        Spawner::start(config).await.unwrap()
    }

    /// A daemon's start: the first one, or one after another's death.
    pub async fn daemon(&self, adopt_idle_ms: u64) -> Daemon {
        let (spawner, survivors) = self.spawner().await;
        let networks = Networks::new(NetConfig {
            pool_size: 1,
            hold_ms: 5000,
            dns_servers: Vec::new(),
            allow_private: false,
        });
        let config = EngineConfig {
            dir: self.instances(),
            log_bytes: LOG_BYTES,
            stop_grace_ms: 500,
            adopt_idle_ms,
        };
        let engine = Engine::start(
            config,
            spawner.clone(),
            survivors,
            self.images.clone(),
            networks.clone(),
        );
        Daemon {
            engine: engine.await.unwrap(),
            spawner,
            networks,
        }
    }
}

impl Daemon {
    /// A clean end: nothing stays.
    pub async fn end(self) {
        self.engine.remove_all(None).await;
        self.spawner.shutdown().await.unwrap();
    }

    pub async fn create(&self, owner: &Owner, name: &str, script: &str) -> String {
        self.engine
            .create(shell(owner, name, script))
            .await
            .unwrap()
    }

    pub async fn run(&self, owner: &Owner, name: &str, script: &str) -> String {
        let id = self.create(owner, name, script).await;
        self.engine.start_instance(owner, name).await.unwrap();
        id
    }

    /// All of standard output (or error) so far.
    pub async fn output(&self, owner: &Owner, name: &str, is_stderr: bool) -> String {
        let entries = self.engine.logs(owner, name).await.unwrap();
        let bytes = entries
            .into_iter()
            .filter(|e| e.0 == is_stderr)
            .flat_map(|e| e.2)
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Waits until standard output contains `text`.
    pub async fn says(&self, owner: &Owner, name: &str, text: &str) {
        let found = async {
            while !self.output(owner, name, false).await.contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found)
            .await
            .unwrap_or_else(|_| panic!("{name} never said {text}"));
    }
}

pub fn script_owner() -> Owner {
    Owner::Script("hello".to_owned())
}

/// A container that runs a shell script.
pub fn shell(owner: &Owner, name: &str, script: &str) -> Create {
    Create {
        owner: owner.clone(),
        name: name.to_owned(),
        image: "busybox".to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        entrypoint: None,
        env: Vec::new(),
        user: None,
        working_dir: None,
        labels: BTreeMap::new(),
        limits: Limits::default(),
        network: None,
        application: None,
    }
}

/// /bin/busybox and links for what the tests call.
fn busybox_root() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    let program =
        std::fs::read(busybox.expect("busybox is missing: install busybox-static")).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    tar.append_data(&mut header, "bin/busybox", program.as_slice())
        .unwrap();
    for name in [
        "sh", "cat", "sleep", "hostname", "id", "ls", "nc", "head", "seq", "dd", "kill",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    for name in ["tmp", "etc", "proc", "sys", "dev"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, name, std::io::empty())
            .unwrap();
    }
    tar.into_inner().unwrap()
}
