//! The settings of each part of a node, out of its configuration.
//!
//! Must not: hold a value that a person may want to change; `wharf.toml` does.

use std::path::PathBuf;

use anyhow::Context;
use wharf_engine::EngineConfig;
use wharf_engine::isolation::MicrovmConfig;
use wharf_net::NetConfig;
use wharf_node::Region;
use wharf_sandbox::SpawnerConfig;
use wharf_workerd::WorkerdConfig;

use crate::config::{Config, Microvm};

pub(super) fn gateway_config(config: &Config) -> wharf_gateway::GatewayConfig {
    wharf_gateway::GatewayConfig {
        base_domains: config.gateway.base_domains.clone(),
        dev: config.gateway.dev,
        max_header_bytes: config.gateway.max_header_bytes,
        idle_timeout_ms: config.gateway.idle_timeout_ms,
        max_connections: config.gateway.max_connections,
        has_room: has_room_for_connections,
        strip_headers: vec![http::HeaderName::from_static(wharf_workerd::CF_BLOB_HEADER)],
    }
}

pub(super) fn snapshot_config(config: &Config) -> wharf_snapshot::SnapshotConfig {
    let config = &config.snapshots;
    wharf_snapshot::SnapshotConfig {
        max_bytes: config.max_mib << 20,
        owner_bytes: config.script_mib << 20,
        ttl_ms: config.ttl_hours.saturating_mul(3_600_000),
        offer_ms: 120_000,
    }
}

/// Whether descriptors are left for one more connection from outside. The last eighth is for what
/// those that exist need within the node, and for its own work.
fn has_room_for_connections() -> bool {
    wharf_engine::resources::own_descriptors()
        .is_ok_and(|(used, limit)| used.saturating_add((limit / 8).min(2048)) <= limit)
}

pub(super) fn spawner_config(config: &Config) -> anyhow::Result<SpawnerConfig> {
    use sha2::Digest;
    let hash = hex::encode(sha2::Sha256::digest(
        config.data_dir.as_os_str().as_encoded_bytes(),
    ));
    let executable = std::env::current_exe()?;
    let executable = executable.to_str().ok_or_else(|| {
        anyhow::anyhow!(
            "the path of this executable is not UTF-8: {}",
            executable.display()
        )
    })?;
    Ok(SpawnerConfig {
        socket: config.run_dir().join("spawner.sock"),
        command: vec![executable.to_owned(), crate::SPAWNER_VERB.to_owned()],
        grace_ms: config.containers.orphan_grace_ms,
        cgroup_name: format!("wharf-{}", &hash[..8]),
        ids: config.containers.ids(),
    })
}

pub(super) fn net_config(config: &Config) -> NetConfig {
    NetConfig {
        pool_size: config.network.pool_size,
        hold_ms: config.network.hold_ms,
        dns_servers: config.network.dns_servers.clone(),
        allow_private: config.network.allow_private,
    }
}

pub(super) fn engine_config(config: &Config) -> anyhow::Result<EngineConfig> {
    Ok(EngineConfig {
        dir: config.data_dir.join("instances"),
        log_bytes: config.containers.log_bytes,
        stop_grace_ms: config.containers.stop_grace_ms,
        adopt_idle_ms: config.containers.orphan_grace_ms,
        bandwidth_per_cpu: config.network.bytes_per_vcpu(),
        isolation: config.containers.isolation,
        preloads: config.containers.preloads,
        microvm: MicrovmConfig {
            agent: std::env::current_exe().context("finding wharf's own executable")?,
            kernel_root: match &config.containers.guest_kernel {
                Some(root) => root.clone(),
                None => config.guest_dir().join(wharf_microvm::package::LINK),
            },
            directory: config.guest_dir(),
            kvm: config.containers.microvm == Microvm::Kvm,
        },
    })
}

pub(super) fn workerd_config(config: &Config, binary: PathBuf) -> WorkerdConfig {
    WorkerdConfig {
        uid_base: config.workerd.uid_base,
        drain_ms: config.workerd.drain_ms,
        memory_bytes: Some(config.workerd.memory_mib << 20),
        allow_private: config.network.allow_private,
        cpu_millis: Some(config.workerd.cpu_millis),
        watchdog_ms: config.workerd.watchdog_ms,
        ..WorkerdConfig::new(
            binary,
            config.run_dir().join("w"),
            config.data_dir.join("scripts"),
        )
    }
}

pub(super) fn region(config: &Config) -> Region {
    Region {
        country: config.node.country.clone(),
        location: config.node.location.clone(),
        region: config.node.region.clone(),
    }
}
