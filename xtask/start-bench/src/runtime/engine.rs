//! Wharf's engine alone, in this process: a real spawner, real networks, containers reached through their ingress.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use wharf_engine::isolation::MicrovmConfig;
use wharf_engine::{Create, Engine, EngineConfig, Limits, Owner};
use wharf_image::ImageStore;
use wharf_net::{NetConfig, Network, Networks};
use wharf_sandbox::{Spawner, SpawnerConfig};

use super::Runtime;
use crate::class::{self, Class};
use crate::http;
use crate::place::Place;

/// First argument under which this executable becomes the spawner.
pub(crate) const SPAWNER_VERB: &str = "__spawner";

/// What the daemon has, without the daemon.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) spawner: Spawner,
    pub(crate) images: ImageStore,
    networks: Networks,
}

impl World {
    /// With the daemon's defaults.
    pub(crate) async fn start(place: &Place, classes: &[Class]) -> Result<World> {
        let dir = place.dir().join("engine");
        std::fs::create_dir_all(dir.join("instances"))?;
        let images = ImageStore::open(&dir.join("images"))?;
        for class in classes {
            images.import_rootfs(&class.image(), std::fs::File::open(&class.rootfs)?)?;
        }
        let own = std::env::current_exe()?;
        let config = SpawnerConfig {
            socket: dir.join("spawner.sock"),
            command: vec![own.display().to_string(), SPAWNER_VERB.to_owned()],
            // If this process is killed.
            grace_ms: 3000,
            cgroup_name: place.engine_cgroup(),
            ids: Some(wharf_sandbox::IdRanges::default()),
        };
        let (spawner, survivors) = Spawner::start(config).await?;
        let networks = Networks::new(NetConfig {
            pool_size: 32,
            hold_ms: 20_000,
            dns_servers: Vec::new(),
            allow_private: false,
        });
        let config = EngineConfig {
            dir: dir.join("instances"),
            log_bytes: 1 << 20,
            stop_grace_ms: 10_000,
            adopt_idle_ms: 60_000,
            bandwidth_per_cpu: None,
            isolation: Default::default(),
            preloads: 0,
            microvm: MicrovmConfig {
                agent: Default::default(),
                kernel_root: Default::default(),
                directory: Default::default(),
                kvm: true,
            },
        };
        let engine = Engine::start(
            config,
            spawner.clone(),
            survivors,
            images.clone(),
            networks.clone(),
        );
        match engine.await {
            Ok(engine) => Ok(World {
                engine,
                spawner,
                images,
                networks,
            }),
            Err(error) => {
                spawner.shutdown().await?;
                Err(error.into())
            }
        }
    }

    /// Creates and starts; returns the container's network, which is gone when the last clone of it is.
    pub(crate) async fn run(&self, class: &Class, name: &str) -> Result<Network> {
        let network = self.networks.create().await?;
        let request = Create {
            owner: Owner::Operator,
            name: name.to_owned(),
            image: class.image(),
            cmd: class.argv.clone(),
            entrypoint: None,
            env: class.env(class::PORT),
            user: None,
            working_dir: None,
            labels: Default::default(),
            limits: Limits {
                memory_bytes: Some(class::MEMORY),
                cpu_millis: Some(class::CPU_MILLIS),
                pids: Some(class::PIDS),
                nofile: None,
                disk_bytes: Some(class::DISK),
            },
            network: Some(network.clone()),
            own_network: Default::default(),
            auto_remove: false,
            application: None,
            volumes: Vec::new(),
            snapshot: None,
            start: Default::default(),
            isolation: None,
            no_new_privileges: false,
            surroundings: wharf_engine::Surroundings::default(),
        };
        self.engine.create(request).await?;
        self.engine.start_instance(&Owner::Operator, name).await?;
        Ok(network)
    }

    /// Removes it, running or not.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        Ok(self.engine.remove(&Owner::Operator, name, true).await?)
    }

    /// Ends everything.
    pub(crate) async fn end(&self) -> Result<()> {
        self.engine.remove_all(None).await;
        Ok(self.spawner.shutdown().await?)
    }
}

/// One container at a time.
pub(crate) struct EngineRuntime {
    runtime: Arc<tokio::runtime::Runtime>,
    world: World,
    container: Option<(String, Option<Network>)>,
}

impl EngineRuntime {
    pub(crate) fn new(runtime: Arc<tokio::runtime::Runtime>, world: World) -> EngineRuntime {
        EngineRuntime {
            runtime,
            world,
            container: None,
        }
    }
}

impl Runtime for EngineRuntime {
    fn name(&self) -> &'static str {
        "wharf"
    }

    fn level(&self) -> &'static str {
        "engine"
    }

    fn start(&mut self, class: &Class, name: &str) -> Result<Instant> {
        self.container = Some((name.to_owned(), None));
        let network = self.runtime.block_on(self.world.run(class, name))?;
        let ingress = network.ingress();
        self.container = Some((name.to_owned(), Some(network)));
        http::first_byte_through(ingress, class::PORT)
    }

    fn pid(&mut self) -> Result<i32> {
        let (name, _) = self.container.as_ref().context("no container")?;
        let seen = self.world.engine.inspect(&Owner::Operator, name);
        let seen = self.runtime.block_on(seen)?;
        seen.pid.context("no process")
    }

    fn stop(&mut self) -> Result<()> {
        match self.container.take() {
            Some((name, _network)) => self.runtime.block_on(self.world.remove(&name)),
            None => Ok(()),
        }
    }
}
