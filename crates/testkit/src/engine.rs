//! A real engine: real spawner, real namespaces, an image made of busybox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wharf_engine::isolation::MicrovmConfig;
use wharf_engine::{Create, Engine, EngineConfig, Isolation, Owner, StartOptions};
use wharf_image::ImageStore;
use wharf_net::{NetConfig, Networks};
use wharf_sandbox::{Limits, Spawner};
use wharf_snapshot::{SnapshotConfig, Snapshots};

use crate::{Place, busybox, eventually};

/// Everything that outlives one engine.
pub struct World {
    /// The node's directory and its spawner.
    pub place: Place,
    /// The node's images.
    pub images: ImageStore,
    program: PathBuf,
}

/// One daemon's life.
pub struct Daemon {
    /// It has one image, `busybox:latest`.
    pub engine: Engine,
    /// The engine's.
    pub networks: Networks,
    /// The engine's.
    pub spawner: Spawner,
}

impl World {
    /// With an executable that is nothing but a spawner ([`Place::new`]).
    pub fn new(program: &str) -> World {
        let place = Place::new(program);
        let images = ImageStore::open(&place.path("images")).unwrap();
        images
            .import_rootfs("busybox:latest", busybox::tar().as_slice())
            .unwrap();
        World {
            place,
            images,
            program: program.into(),
        }
    }

    /// Another image, of a root file system's tar.
    pub fn import(&self, name: &str, tar: &Path) {
        let tar = std::fs::File::open(tar).unwrap();
        self.images.import_rootfs(name, tar).unwrap();
    }

    /// An empty store of snapshots, or what an earlier one left; of at most 64 MiB an owner, for an hour.
    pub fn snapshots(&self) -> Snapshots {
        let config = SnapshotConfig {
            max_bytes: 32 << 20,
            owner_bytes: 64 << 20,
            ttl_ms: 3_600_000,
            offer_ms: 60_000,
        };
        Snapshots::open(&self.place.path("snapshots"), config).unwrap()
    }

    /// Its images.
    pub fn images(&self) -> ImageStore {
        self.images.clone()
    }

    /// Where the engine keeps its instances.
    pub fn instances(&self) -> PathBuf {
        self.place.dir.path().join("instances")
    }

    /// Directories of instances (what is being removed does not count).
    pub fn directories(&self) -> usize {
        let names = std::fs::read_dir(self.instances())
            .unwrap()
            .map(|e| e.unwrap().file_name());
        names
            .filter(|name| !name.to_string_lossy().starts_with('.'))
            .count()
    }

    /// A daemon's start: the first one, or one after another's death.
    pub async fn daemon(&self, adopt_idle_ms: u64) -> Daemon {
        self.daemon_of(adopt_idle_ms, Isolation::Namespace).await
    }

    /// [`World::daemon`] of a node with this class for instances for which none is said.
    pub async fn daemon_of(&self, adopt_idle_ms: u64, isolation: Isolation) -> Daemon {
        let (spawner, survivors) = self.place.start(3000).await;
        let networks = Networks::new(NetConfig {
            pool_size: 1,
            hold_ms: 5000,
            dns_servers: Vec::new(),
            allow_private: false,
        });
        let config = EngineConfig {
            dir: self.instances(),
            log_bytes: 1 << 20,
            stop_grace_ms: 500,
            adopt_idle_ms,
            bandwidth_per_cpu: None,
            isolation,
            preloads: 4,
            microvm: MicrovmConfig {
                agent: self.program.clone(),
                kernel_root: crate::guest_kernel(),
                directory: self.place.dir.path().join("guest"),
                // Not every machine has KVM.
                kvm: false,
            },
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
            networks,
            spawner,
        }
    }

    /// A clean end.
    ///
    /// # Panics
    /// Something stays.
    pub async fn end(&self, daemon: Daemon) {
        daemon.engine.remove_all(None).await;
        self.place.finish(&daemon.spawner).await;
    }
}

impl Daemon {
    /// A container that runs a shell script; returns its id.
    pub async fn create(&self, owner: &Owner, name: &str, script: &str) -> String {
        self.engine
            .create(shell(owner, name, script))
            .await
            .unwrap()
    }

    /// [`Daemon::create`], and starts it.
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
        eventually(&format!("{name} says {text}"), async || {
            let output = self.output(owner, name, false).await;
            output.contains(text).then_some(())
        })
        .await;
    }
}

/// The script `hello`.
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
        limits: Limits {
            // As the instances of applications have one.
            disk_bytes: (*owner != Owner::Operator).then_some(32_000_000),
            ..Limits::default()
        },
        network: None,
        own_network: wharf_engine::OwnNetwork::default(),
        auto_remove: false,
        application: None,
        volumes: Vec::new(),
        snapshot: None,
        start: StartOptions::default(),
        isolation: None,
        no_new_privileges: false,
        surroundings: wharf_engine::Surroundings::default(),
    }
}
