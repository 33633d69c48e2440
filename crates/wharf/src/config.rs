//! The configuration: `wharf.toml`, overridden by the command line.
//!
//! Owns: every key, its default and its meaning ([`Config::documented`] prints them). Must not: start anything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wharf_sandbox::IdRanges;

/// Where a node's configuration is looked for when `--config` is not given.
pub(crate) const DEFAULT_FILE: &str = "/etc/wharf/wharf.toml";

/// The whole configuration. Unknown keys are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) gateway: Gateway,
    pub(crate) control: Control,
    pub(crate) workerd: Workerd,
    pub(crate) containers: Containers,
    pub(crate) snapshots: Snapshots,
    pub(crate) network: Network,
    pub(crate) node: Node,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gateway {
    pub(crate) listen: SocketAddr,
    pub(crate) base_domains: Vec<String>,
    pub(crate) dev: bool,
    pub(crate) max_header_bytes: usize,
    pub(crate) idle_timeout_ms: u64,
    pub(crate) max_connections: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Control {
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Workerd {
    pub(crate) binary: Option<PathBuf>,
    pub(crate) uid_base: u32,
    pub(crate) drain_ms: u64,
    pub(crate) memory_mib: u64,
    pub(crate) cpu_millis: u64,
    pub(crate) watchdog_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Containers {
    pub(crate) stop_grace_ms: u64,
    pub(crate) log_bytes: u64,
    pub(crate) orphan_grace_ms: u64,
    pub(crate) user_namespaces: bool,
    pub(crate) id_first: u32,
    pub(crate) id_ranges: u32,
    pub(crate) standby_mib: Option<u64>,
    pub(crate) isolation: wharf_model::Isolation,
    pub(crate) microvm: Microvm,
    pub(crate) guest_kernel: Option<PathBuf>,
    pub(crate) preloads: usize,
}

/// How virtual machines are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Microvm {
    Kvm,
    Emulated,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Snapshots {
    pub(crate) ttl_hours: u64,
    pub(crate) max_mib: u64,
    pub(crate) script_mib: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    pub(crate) pool_size: usize,
    pub(crate) hold_ms: u64,
    pub(crate) dns_servers: Vec<SocketAddr>,
    pub(crate) allow_private: bool,
    pub(crate) mbit_per_vcpu: u64,
}

impl Network {
    /// Bytes a second.
    pub(crate) fn bytes_per_vcpu(&self) -> Option<u64> {
        (self.mbit_per_vcpu > 0).then(|| self.mbit_per_vcpu.saturating_mul(1_000_000 / 8))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Node {
    pub(crate) location: String,
    pub(crate) region: String,
    pub(crate) country: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "/var/lib/wharf".into(),
            gateway: Gateway::default(),
            control: Control::default(),
            workerd: Workerd::default(),
            containers: Containers::default(),
            snapshots: Snapshots::default(),
            network: Network::default(),
            node: Node::default(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            base_domains: vec!["localhost".into()],
            dev: false,
            max_header_bytes: 64 << 10,
            idle_timeout_ms: 75_000,
            max_connections: 4096,
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Control {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
        }
    }
}

impl Default for Workerd {
    fn default() -> Self {
        Workerd {
            binary: None,
            uid_base: 720_000,
            drain_ms: 10_000,
            memory_mib: 1024,
            cpu_millis: 2000,
            watchdog_ms: 10_000,
        }
    }
}

impl Default for Containers {
    fn default() -> Self {
        Containers {
            stop_grace_ms: 10_000,
            log_bytes: 1 << 20,
            orphan_grace_ms: 60_000,
            user_namespaces: true,
            id_first: IdRanges::default().first,
            id_ranges: IdRanges::default().count,
            standby_mib: None,
            isolation: wharf_model::Isolation::Namespace,
            microvm: Microvm::Kvm,
            guest_kernel: None,
            preloads: 4,
        }
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots {
            ttl_hours: 720,
            max_mib: 10_240,
            script_mib: 51_200,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Network {
            pool_size: 32,
            hold_ms: 2_000,
            dns_servers: Vec::new(),
            allow_private: false,
            mbit_per_vcpu: 0,
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Node {
            location: "loc01".into(),
            region: "LOCAL".into(),
            country: "XX".into(),
        }
    }
}

/// Every key with its default, as a valid `wharf.toml`. A test holds it against [`Config::default`].
const DOCUMENTED: &str = r#"# Where Wharf keeps its state: metadata, images, Durable Object storage. `--data-dir` overrides it.
data_dir = "/var/lib/wharf"

[gateway]
# Address of the HTTP front door.
listen = "127.0.0.1:8080"
# <script>.<base> is served for each of these.
base_domains = ["localhost"]
# Whether the 404 page for an unknown host lists the Workers that exist.
dev = false
# Largest head of a request, bytes.
max_header_bytes = 65536
# Idle keep-alive connections are closed after this, milliseconds; a request's head must arrive within it too.
idle_timeout_ms = 75000
# Most client connections at a time.
max_connections = 4096

[control]
# Address of the control API (wrangler) and of the registry.
listen = "127.0.0.1:7400"

[workerd]
# The workerd executable. Default: $WHARF_WORKERD, else `workerd` beside the wharf executable, in target/tools, or in PATH.
# binary = "/usr/local/bin/workerd"
# Each script's workerd runs as user uid_base + the script's number.
uid_base = 720000
# A replaced version's requests in flight may take this long, milliseconds.
drain_ms = 10000
# Memory limit of one workerd process, MiB.
memory_mib = 1024
# CPU of one workerd process, thousandths of a core. JavaScript runs in one thread of it; the others collect garbage and compile.
cpu_millis = 2000
# A Worker whose JavaScript computes for so long without a pause, CPU milliseconds, is taken for a loop without end: its process is ended and
# started again. Whatever else waits for that thread does not count: time without a processor, or for a disk.
watchdog_ms = 10000

[containers]
# From the stop signal to SIGKILL, milliseconds.
stop_grace_ms = 10000
# Output kept per instance, bytes.
log_bytes = 1048576
# How long containers live on without the daemon after it died; and how long, once their workerd or the daemon has ended, they are kept when their
# object does not wake, milliseconds. setInactivityTimeout() of an object goes before the latter.
orphan_grace_ms = 60000
# Whether root in a container is nobody outside. Needs Linux 5.19 and a data directory on ext4, xfs or btrfs; without them a node does not
# start, unless this is false: then root in a container is the host's root, held by nothing but the other walls, and set-user-id programs
# (sudo, su) have no effect.
user_namespaces = true
# The host's user and group ids that containers get: id_ranges times 65536, from id_first on, a range for each that runs. The default lies
# where systemd, /etc/subuid and LXD have nothing. Two nodes on one machine should have ranges of their own.
id_first = 1879048192
id_ranges = 4094
# Most memory of the instances that are started ahead, of all applications together, MiB: of those that ask for it with min_instances, and of no other. Default: a
# tenth of the machine's. 0: none are.
# standby_mib = 2048
# What separates an instance from this machine, where neither its application nor its image says: "namespace", "gvisor" (needs runsc) or "microvm" (needs QEMU,
# virtiofsd, a kernel for guests, and KVM). A label of an image can choose more than this, not less.
isolation = "namespace"
# How the virtual machines of class microvm are run: "kvm", or "emulated": many times slower, for trying it on a machine without KVM.
microvm = "kvm"
# Where their kernel is: below this directory, boot/vmlinuz-*-cloud-* (the newest) and its modules in lib/modules. Default: where `wharf guest-kernel` puts it.
# guest_kernel = "/var/lib/wharf/guest/kernel"
# How many Python interpreters with their imports done are kept for images that ask for it (LABEL wharf.preload), in memory; 0 switches that off.
preloads = 4

[snapshots]
# A snapshot that has not been restored for so long is removed, hours (720: thirty days, as on Cloudflare).
ttl_hours = 720
# Most of one snapshot, MiB. What it shares with its image does not count.
max_mib = 10240
# Most of all snapshots of one Worker, MiB.
script_mib = 51200

[network]
# Network namespaces kept ready.
pool_size = 32
# For how long after the start of a container connections wait for a port to listen, milliseconds. Within the first minute, later ones wait for
# 0.7 s each: with @cloudflare/containers' 67 tries a slow container has that minute. Keep it below the 5000 after which the package gives up a try.
hold_ms = 2000
# DNS servers for containers, "1.2.3.4:53"; empty: those of /etc/resolv.conf.
dns_servers = []
# Whether containers and Workers may reach private and link-local addresses, and the machine's own. Its loopback they never reach.
allow_private = false
# What an instance with one vCPU may send to the internet and to its Worker together, and as much receive, megabits (10^6 bits) per second; other sizes
# in proportion, so that 1600 are 100 for "lite" (1/16 vCPU). 0: no limit.
mbit_per_vcpu = 0

[node]
# What CLOUDFLARE_LOCATION, CLOUDFLARE_REGION and CLOUDFLARE_COUNTRY_A2 say inside containers. The defaults claim no place: XX is the code for an
# unknown country.
location = "loc01"
region = "LOCAL"
country = "XX"
"#;

impl Containers {
    /// The id ranges, if containers get user namespaces.
    pub(crate) fn ids(&self) -> Option<IdRanges> {
        self.user_namespaces.then_some(IdRanges {
            first: self.id_first,
            count: self.id_ranges,
        })
    }
}

impl Config {
    /// Reads `file`, or the default file if it exists, or the defaults.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Config> {
        let (path, required) = match file {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => {
                return Ok(Config::default());
            }
            Err(e) => anyhow::bail!("the configuration {}: {e}", path.display()),
        };
        let config: Config = toml::from_str(&text)
            .map_err(|e| anyhow::anyhow!("the configuration {}: {e}", path.display()))?;
        config
            .check()
            .map_err(|e| anyhow::anyhow!("the configuration {}: {e}", path.display()))?;
        Ok(config)
    }

    /// Refuses values with which a node would not work, by the key's name.
    fn check(&self) -> Result<(), String> {
        self.check_numbers()?;
        let bases = &self.gateway.base_domains;
        if bases.iter().all(|base| base.trim_matches('.').is_empty()) {
            return Err(
                "gateway.base_domains names no domain; the default is [\"localhost\"]".into(),
            );
        }
        self.check_users()?;
        if let Some(ids) = self.containers.ids() {
            ids.check()
                .map_err(|e| format!("containers.id_first and id_ranges: {e}"))?;
        }
        self.check_place()
    }

    fn check_numbers(&self) -> Result<(), String> {
        // hyper's smallest buffer of a connection is 8 KiB.
        let header_bytes = self.gateway.max_header_bytes as u64;
        let numbers = [
            ("gateway.max_header_bytes", header_bytes, 8192, 16 << 20),
            (
                "gateway.idle_timeout_ms",
                self.gateway.idle_timeout_ms,
                100,
                u64::MAX,
            ),
            (
                "gateway.max_connections",
                self.gateway.max_connections as u64,
                1,
                1 << 20,
            ),
            ("workerd.memory_mib", self.workerd.memory_mib, 64, 1 << 30),
            ("workerd.cpu_millis", self.workerd.cpu_millis, 10, 1 << 20),
            (
                "workerd.watchdog_ms",
                self.workerd.watchdog_ms,
                100,
                u64::MAX,
            ),
            (
                "containers.log_bytes",
                self.containers.log_bytes,
                4096,
                1 << 40,
            ),
            ("snapshots.ttl_hours", self.snapshots.ttl_hours, 1, u64::MAX),
            ("snapshots.max_mib", self.snapshots.max_mib, 1, 1 << 40),
            (
                "snapshots.script_mib",
                self.snapshots.script_mib,
                1,
                1 << 40,
            ),
        ];
        for (key, value, least, most) in numbers {
            if value < least {
                return Err(format!("{key} is {value}; the least is {least}"));
            }
            if value > most {
                return Err(format!("{key} is {value}; the most is {most}"));
            }
        }
        Ok(())
    }

    fn check_place(&self) -> Result<(), String> {
        let is_country =
            |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase());
        if !is_country(&self.node.country) {
            return Err(format!(
                "node.country is {:?}; it is two capital letters (ISO 3166)",
                self.node.country
            ));
        }
        for (key, value) in [
            ("location", &self.node.location),
            ("region", &self.node.region),
        ] {
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!("node.{key} is {value:?}; it is one word"));
            }
        }
        Ok(())
    }

    /// workerd must run as nobody else's user: neither a person's or a service's nor a container's.
    fn check_users(&self) -> Result<(), String> {
        let base = self.workerd.uid_base;
        if base < 65_536 {
            return Err(format!(
                "workerd.uid_base is {base}; users below 65536 are the machine's own"
            ));
        }
        let ids = self.containers.ids();
        if ids.is_some_and(|ids| base >= ids.first) {
            return Err(format!(
                "workerd.uid_base is {base}, and containers have ids from {} on (containers.id_first); it must lie below",
                self.containers.id_first
            ));
        }
        Ok(())
    }

    /// All keys with their defaults and what they mean.
    pub(crate) fn documented() -> &'static str {
        DOCUMENTED
    }

    /// `<data>/run`, with sockets and everything that a clean stop removes.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.data_dir.join("run")
    }

    /// What virtual machines are made of.
    pub(crate) fn guest_dir(&self) -> PathBuf {
        self.data_dir.join("guest")
    }

    /// The operator's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("wharf.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_states_the_defaults() {
        let documented: Config = toml::from_str(Config::documented()).unwrap();
        assert_eq!(
            format!("{documented:?}"),
            format!("{:?}", Config::default())
        );
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = toml::from_str::<Config>("[gateway]\nlisten_on = 1\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("listen_on"), "{error}");
    }

    #[test]
    fn a_value_with_which_a_node_would_not_work_is_refused_by_name() {
        Config::default().check().unwrap();
        for (text, key) in [
            (
                "[gateway]\nmax_header_bytes = 100",
                "gateway.max_header_bytes",
            ),
            ("[gateway]\nidle_timeout_ms = 0", "gateway.idle_timeout_ms"),
            ("[gateway]\nmax_connections = 0", "gateway.max_connections"),
            ("[gateway]\nbase_domains = []", "gateway.base_domains"),
            ("[gateway]\nbase_domains = [\".\"]", "gateway.base_domains"),
            ("[workerd]\nuid_base = 0", "workerd.uid_base"),
            ("[workerd]\nuid_base = 1879048193", "workerd.uid_base"),
            ("[workerd]\nmemory_mib = 0", "workerd.memory_mib"),
            ("[workerd]\ncpu_millis = 0", "workerd.cpu_millis"),
            ("[workerd]\nwatchdog_ms = 0", "workerd.watchdog_ms"),
            ("[containers]\nlog_bytes = 0", "containers.log_bytes"),
            ("[containers]\nid_ranges = 0", "containers.id_first"),
            ("[snapshots]\nttl_hours = 0", "snapshots.ttl_hours"),
            ("[snapshots]\nmax_mib = 0", "snapshots.max_mib"),
            ("[snapshots]\nscript_mib = 0", "snapshots.script_mib"),
            ("[node]\ncountry = \"Germany\"", "node.country"),
            ("[node]\nlocation = \"a b\"", "node.location"),
            ("[node]\nregion = \"\"", "node.region"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err();
            assert!(error.starts_with(key), "{text}: {error}");
        }
    }
}
