//! The body of `POST /containers/create`: Docker's ContainerConfig with HostConfig and
//! NetworkingConfig, as of API 1.43 to 1.51.

use serde_json::{Map, Value};

use super::{Field, Rule, honoured, is_given, meaningless, object, refused};

const NO_TERMINAL: &str =
    "a container has no terminal and no standard input; run a shell in it with docker exec -it";
const LIMITS: &str = "limit it with --cpus, --memory and --pids-limit";
const WALLS: &str = "leave it out; a container's walls are its isolation class's (--runtime)";
const WINDOWS: &str = "leave it out; it is for containers of Windows";
const FROM_IMAGE: &str = "of an image; nothing that runs a container reads it";
const ADDRESSES: &str =
    "leave it out; a container has no address of its own; publish ports with -p";

/// The body.
pub(crate) const BODY: &[Field] = &[
    honoured("Hostname"),
    refused(
        "Domainname",
        "--domainname",
        "leave it out; a container has no domain name",
    ),
    honoured("User"),
    meaningless(
        "AttachStdin",
        "the request that attaches says what it attaches",
    ),
    meaningless(
        "AttachStdout",
        "the request that attaches says what it attaches",
    ),
    meaningless(
        "AttachStderr",
        "the request that attaches says what it attaches",
    ),
    meaningless(
        "ExposedPorts",
        "each port can be reached, and -P is refused",
    ),
    refused("Tty", "-t, a terminal", NO_TERMINAL),
    refused("OpenStdin", "-i, standard input", NO_TERMINAL),
    refused("StdinOnce", "-i, standard input", NO_TERMINAL),
    honoured("Env"),
    honoured("Cmd"),
    object("Healthcheck", HEALTH),
    meaningless(
        "ArgsEscaped",
        "of Windows; Docker on Linux does not read it either",
    ),
    honoured("Image"),
    refused(
        "Volumes",
        "-v",
        "leave it out; what a container writes goes with it",
    ),
    honoured("WorkingDir"),
    honoured("Entrypoint"),
    refused("NetworkDisabled", "", "use --network none"),
    refused("MacAddress", "--mac-address", ADDRESSES),
    meaningless("OnBuild", FROM_IMAGE),
    honoured("Labels"),
    refused(
        "StopSignal",
        "--stop-signal",
        "put STOPSIGNAL into the Dockerfile",
    )
    .asking(|value, _| !matches!(value.as_str(), None | Some(""))),
    // Docker's default, which workerd always sends.
    refused(
        "StopTimeout",
        "--stop-timeout",
        "give the time to docker stop (-t)",
    )
    .asking(|value, _| !matches!(value.as_i64(), None | Some(0 | 10))),
    meaningless("Shell", FROM_IMAGE),
    object("HostConfig", HOST),
    object("NetworkingConfig", NETWORKING),
];

const HEALTH_MEND: &str = "leave it out; Wharf runs no health checks";
const HEALTH: &[Field] = &[
    refused("Test", "--health-cmd", HEALTH_MEND).asking(|value, _| {
        let list = value.as_array().map_or(&[][..], Vec::as_slice);
        !(list.is_empty() || list.len() == 1 && (list[0] == "NONE" || list[0] == ""))
    }),
    refused("Interval", "--health-interval", HEALTH_MEND),
    refused("Timeout", "--health-timeout", HEALTH_MEND),
    refused("Retries", "--health-retries", HEALTH_MEND),
    refused("StartPeriod", "--health-start-period", HEALTH_MEND),
    refused("StartInterval", "--health-start-interval", HEALTH_MEND),
];

const HOST: &[Field] = &[
    // Resources.
    refused("CpuShares", "--cpu-shares", LIMITS),
    honoured("Memory"),
    refused("CgroupParent", "--cgroup-parent", WALLS),
    refused("BlkioWeight", "--blkio-weight", LIMITS),
    refused("BlkioWeightDevice", "--blkio-weight-device", LIMITS),
    refused("BlkioDeviceReadBps", "--device-read-bps", LIMITS),
    refused("BlkioDeviceWriteBps", "--device-write-bps", LIMITS),
    refused("BlkioDeviceReadIOps", "--device-read-iops", LIMITS),
    refused("BlkioDeviceWriteIOps", "--device-write-iops", LIMITS),
    refused("CpuPeriod", "--cpu-period", LIMITS),
    refused("CpuQuota", "--cpu-quota", LIMITS).asking(|value, _| value.as_i64() > Some(0)),
    refused("CpuRealtimePeriod", "--cpu-rt-period", LIMITS),
    refused("CpuRealtimeRuntime", "--cpu-rt-runtime", LIMITS),
    refused("CpusetCpus", "--cpuset-cpus", LIMITS),
    refused("CpusetMems", "--cpuset-mems", LIMITS),
    refused("Devices", "--device", WALLS),
    refused("DeviceCgroupRules", "--device-cgroup-rule", WALLS),
    refused("DeviceRequests", "--gpus", WALLS),
    refused("KernelMemory", "--kernel-memory", LIMITS).asking(|value, _| value.as_i64() > Some(0)),
    refused("KernelMemoryTCP", "", LIMITS).asking(|value, _| value.as_i64() > Some(0)),
    refused("MemoryReservation", "--memory-reservation", LIMITS),
    // Memory and swap together: as much as the memory is no swap, which is what a container has.
    refused(
        "MemorySwap",
        "--memory-swap",
        "leave it out; a container has no swap",
    )
    .asking(|value, host| is_set(value) && Some(value) != host.get("Memory")),
    meaningless("MemorySwappiness", "a container has no swap"),
    honoured("NanoCpus"),
    refused("OomKillDisable", "--oom-kill-disable", LIMITS),
    refused(
        "Init",
        "--init",
        "leave it out; start the program by an init of the image",
    ),
    honoured("PidsLimit"),
    refused("Ulimits", "--ulimit", LIMITS),
    refused("CpuCount", "--cpu-count", WINDOWS),
    refused("CpuPercent", "--cpu-percent", WINDOWS),
    refused("IOMaximumIOps", "--io-maxiops", WINDOWS),
    refused("IOMaximumBandwidth", "--io-maxbandwidth", WINDOWS),
    // The others.
    refused(
        "Binds",
        "-v",
        "leave it out; copy files in with docker cp, or in the Dockerfile",
    ),
    meaningless("ContainerIDFile", "the client writes that file"),
    object("LogConfig", LOG),
    honoured("NetworkMode"),
    Field::new("PortBindings", Rule::Honoured),
    object("RestartPolicy", RESTART).sent_by_workerd(),
    honoured("AutoRemove"),
    refused(
        "VolumeDriver",
        "--volume-driver",
        "leave it out; there are no volume drivers",
    ),
    refused(
        "VolumesFrom",
        "--volumes-from",
        "leave it out; a container's files are its own",
    ),
    object("Mounts", MOUNT),
    meaningless("ConsoleSize", "there is no terminal, which is refused"),
    refused("Annotations", "--annotation", "use labels (-l)"),
    refused("CapAdd", "--cap-add", WALLS),
    refused(
        "CapDrop",
        "--cap-drop",
        "use --security-opt no-new-privileges and a user (-u)",
    ),
    refused("CgroupnsMode", "--cgroupns", WALLS)
        .asking(|value, _| !matches!(value.as_str(), None | Some("" | "private"))),
    refused(
        "Dns",
        "--dns",
        "leave it out; a container asks Wharf's resolver, and no other UDP leaves it",
    ),
    honoured("DnsOptions"),
    honoured("DnsSearch"),
    honoured("ExtraHosts"),
    refused("GroupAdd", "--group-add", "use -u, or groups in the image"),
    refused("IpcMode", "--ipc", WALLS)
        .asking(|value, _| !matches!(value.as_str(), None | Some("" | "private"))),
    refused("Cgroup", "", WALLS),
    refused("Links", "--link", "use --network container:<name>"),
    refused("OomScoreAdj", "--oom-score-adj", LIMITS),
    refused("PidMode", "--pid", WALLS).sent_by_workerd(),
    refused("Privileged", "--privileged, privileged mode", WALLS),
    refused("PublishAllPorts", "-P", "name the ports with -p"),
    honoured("ReadonlyRootfs"),
    honoured("SecurityOpt"),
    refused("StorageOpt", "--storage-opt", "leave it out"),
    honoured("Tmpfs"),
    refused("UTSMode", "--uts", WALLS),
    refused("UsernsMode", "--userns", WALLS),
    honoured("ShmSize"),
    refused("Sysctls", "--sysctl", WALLS),
    honoured("Runtime"),
    refused("Isolation", "--isolation", "use --runtime")
        .asking(|value, _| !matches!(value.as_str(), None | Some("" | "default"))),
    // An empty list is `--security-opt systempaths=unconfined`.
    refused("MaskedPaths", "", WALLS).asking(is_given),
    refused("ReadonlyPaths", "", WALLS).asking(is_given),
];

fn is_set(value: &Value) -> bool {
    super::is_set(value, &Map::new())
}

const LOG: &[Field] = &[
    // Docker's two that keep the output with the container, which is what happens.
    refused(
        "Type",
        "--log-driver",
        "leave it out; read the output with docker logs",
    )
    .asking(|value, _| !matches!(value.as_str(), None | Some("" | "json-file" | "local"))),
    refused(
        "Config",
        "--log-opt",
        "leave it out; wharf.toml says how much is kept",
    ),
];

const RESTART: &[Field] = &[
    refused(
        "Name",
        "--restart",
        "leave it out; start it again with docker start",
    )
    .asking(|value, _| !matches!(value.as_str(), None | Some("" | "no"))),
    refused(
        "MaximumRetryCount",
        "--restart",
        "leave it out; start it again with docker start",
    ),
];

const VOLUMES: &str = "leave it out; the volumes are workerd's snapshots alone";
const MOUNT: &[Field] = &[
    honoured("Type"),
    honoured("Source"),
    honoured("Target"),
    honoured("ReadOnly"),
    meaningless(
        "Consistency",
        "of Docker on macOS; Docker on Linux does not read it either",
    ),
    object("BindOptions", BIND),
    object("VolumeOptions", VOLUME),
    object("ImageOptions", &[refused("Subpath", "--mount", VOLUMES)]),
    object("TmpfsOptions", TMPFS),
    refused("ClusterOptions", "--mount", VOLUMES),
];

const BIND: &[Field] = &[
    refused("Propagation", "--mount", VOLUMES),
    refused("NonRecursive", "--mount", VOLUMES),
    refused("CreateMountpoint", "--mount", VOLUMES),
    refused("ReadOnlyNonRecursive", "--mount", VOLUMES),
    refused("ReadOnlyForceRecursive", "--mount", VOLUMES),
];

const VOLUME: &[Field] = &[
    meaningless("NoCopy", "what the image has at that place is never copied"),
    refused("Labels", "--mount", VOLUMES),
    object(
        "DriverConfig",
        &[
            refused("Name", "--mount", VOLUMES)
                .asking(|value, _| !matches!(value.as_str(), None | Some("" | "local"))),
            refused("Options", "--mount", VOLUMES),
        ],
    ),
    refused("Subpath", "--mount", VOLUMES),
];

const TMPFS: &[Field] = &[honoured("SizeBytes"), honoured("Mode"), honoured("Options")];

const NETWORKING: &[Field] = &[Field::new("EndpointsConfig", Rule::Named(ENDPOINT))];

const ANSWER: &str = "part of an inspection's answer; Docker does not read it in a request either";
const ENDPOINT: &[Field] = &[
    object(
        "IPAMConfig",
        &[
            refused("IPv4Address", "--ip", ADDRESSES),
            refused("IPv6Address", "--ip6", ADDRESSES),
            refused("LinkLocalIPs", "--link-local-ip", ADDRESSES),
        ],
    ),
    refused("Links", "--link", "use --network container:<name>"),
    refused("MacAddress", "--mac-address", ADDRESSES),
    refused("Aliases", "--network-alias", ADDRESSES),
    refused("DriverOpts", "--network", ADDRESSES),
    refused("GwPriority", "--network", ADDRESSES),
    meaningless("NetworkID", ANSWER),
    meaningless("EndpointID", ANSWER),
    meaningless("Gateway", ANSWER),
    meaningless("IPAddress", ANSWER),
    meaningless("IPPrefixLen", ANSWER),
    meaningless("IPv6Gateway", ANSWER),
    meaningless("GlobalIPv6Address", ANSWER),
    meaningless("GlobalIPv6PrefixLen", ANSWER),
    meaningless("DNSNames", ANSWER),
];

/// Refuses an endpoint in a network that there is not.
pub(crate) fn check_networks(body: &Value) -> Result<(), crate::errors::ApiError> {
    let mode = body["HostConfig"]["NetworkMode"].as_str();
    let endpoints = body["NetworkingConfig"]["EndpointsConfig"].as_object();
    let known = |name: &str| matches!(name, "default" | "bridge" | "none") || Some(name) == mode;
    match endpoints
        .into_iter()
        .flatten()
        .find(|(name, _)| !known(name))
    {
        Some((name, settings)) => Err(super::refusal(
            &format!("NetworkingConfig.EndpointsConfig.{name}"),
            "--network",
            settings,
            "use bridge, none or container:<name>",
        )),
        None => Ok(()),
    }
}
