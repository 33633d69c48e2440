use serde_json::json;

use super::*;
use crate::script::reads_create;

/// The names that Docker publishes, API 1.43 to 1.51, by the place in the body of a create.
const PUBLISHED: &[(&str, &str)] = &[
    (
        "",
        "Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts Tty OpenStdin StdinOnce Env Cmd Healthcheck \
         ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled MacAddress OnBuild Labels StopSignal StopTimeout Shell \
         HostConfig NetworkingConfig",
    ),
    (
        "Healthcheck",
        "Test Interval Timeout Retries StartPeriod StartInterval",
    ),
    (
        "HostConfig",
        "CpuShares Memory CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps \
         BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems Devices \
         DeviceCgroupRules DeviceRequests KernelMemory KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness NanoCpus \
         OomKillDisable Init PidsLimit Ulimits CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth Binds ContainerIDFile LogConfig \
         NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom Mounts ConsoleSize Annotations CapAdd CapDrop \
         CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged \
         PublishAllPorts ReadonlyRootfs SecurityOpt StorageOpt Tmpfs UTSMode UsernsMode ShmSize Sysctls Runtime Isolation MaskedPaths \
         ReadonlyPaths",
    ),
    ("HostConfig.LogConfig", "Type Config"),
    ("HostConfig.RestartPolicy", "Name MaximumRetryCount"),
    (
        "HostConfig.Mounts",
        "Target Source Type ReadOnly Consistency BindOptions VolumeOptions ImageOptions TmpfsOptions ClusterOptions",
    ),
    (
        "HostConfig.Mounts.BindOptions",
        "Propagation NonRecursive CreateMountpoint ReadOnlyNonRecursive ReadOnlyForceRecursive",
    ),
    (
        "HostConfig.Mounts.VolumeOptions",
        "NoCopy Labels DriverConfig Subpath",
    ),
    (
        "HostConfig.Mounts.VolumeOptions.DriverConfig",
        "Name Options",
    ),
    ("HostConfig.Mounts.ImageOptions", "Subpath"),
    ("HostConfig.Mounts.TmpfsOptions", "SizeBytes Mode Options"),
    ("NetworkingConfig", "EndpointsConfig"),
    (
        "NetworkingConfig.EndpointsConfig",
        "IPAMConfig Links MacAddress Aliases DriverOpts GwPriority NetworkID EndpointID Gateway IPAddress IPPrefixLen IPv6Gateway \
         GlobalIPv6Address GlobalIPv6PrefixLen DNSNames",
    ),
    (
        "NetworkingConfig.EndpointsConfig.IPAMConfig",
        "IPv4Address IPv6Address LinkLocalIPs",
    ),
];

fn find(fields: &'static [Field], name: &str) -> &'static Field {
    let found = fields.iter().find(|field| field.name == name);
    found.unwrap_or_else(|| panic!("{name} is in no table"))
}

fn table(place: &str) -> &'static [Field] {
    place
        .split('.')
        .filter(|name| !name.is_empty())
        .fold(create::BODY, |fields, name| match find(fields, name).rule {
            Rule::Object(fields) | Rule::Named(fields) => fields,
            _ => panic!("{place}: {name} has no fields"),
        })
}

/// A body with one field.
fn body(place: &str, name: &str, value: Value) -> Value {
    place
        .rsplit('.')
        .filter(|at| !at.is_empty())
        .fold(json!({ name: value }), |inner, at| match at {
            "Mounts" => json!({ at: [inner] }),
            "EndpointsConfig" => json!({ at: { "bridge": inner } }),
            _ => json!({ at: inner }),
        })
}

/// A value that asks for something.
fn asking(field: &Field) -> Value {
    let values = [
        json!(true),
        json!("something"),
        json!(7),
        json!(["something"]),
    ];
    let asks = |value: &Value| (field.asks)(value, &Map::new());
    let found = values.into_iter().rev().find(asks);
    found.unwrap_or_else(|| panic!("nothing asks for {}", field.name))
}

#[test]
fn every_published_field_of_a_create_is_in_the_table_and_no_other() {
    for (place, names) in PUBLISHED {
        let known: Vec<&str> = table(place).iter().map(|field| field.name).collect();
        let published: Vec<&str> = names.split_whitespace().collect();
        for name in &published {
            assert!(known.contains(name), "{place}: {name}");
        }
        assert_eq!(known.len(), published.len(), "{place}");
    }
}

#[test]
fn each_published_field_is_honoured_without_meaning_or_refused_by_its_name() {
    for (place, names) in PUBLISHED {
        for name in names.split_whitespace() {
            let field = find(table(place), name);
            match field.rule {
                // What the handler reads has a type: another type is an error.
                Rule::Honoured if matches!(*place, "" | "HostConfig") => {
                    let wrong = body(place, name, json!({"x": [[{}]]}));
                    assert!(!reads_create(&wrong), "{place}.{name} is not read");
                }
                Rule::Honoured | Rule::Object(_) | Rule::Named(_) => {}
                Rule::Meaningless(reason) => {
                    assert!(!reason.is_empty());
                    let body = body(place, name, json!("something"));
                    assert_eq!(check(&body, create::BODY, false), Ok(()));
                }
                Rule::Refused(mend) => {
                    let value = asking(field);
                    let body = body(place, name, value);
                    let error = check(&body, create::BODY, false).unwrap_err();
                    assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
                    let message = error.message;
                    assert!(
                        message.contains(name) && message.contains(mend),
                        "{message}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_asks_for_nothing_is_accepted_everywhere() {
    for (place, names) in PUBLISHED {
        for name in names.split_whitespace() {
            let body = body(place, name, Value::Null);
            assert_eq!(check(&body, create::BODY, false), Ok(()), "{place}.{name}");
            for nothing in [json!(0), json!(false), json!(""), json!({})] {
                let body = self::body(place, name, nothing);
                if !matches!(name, "MaskedPaths" | "ReadonlyPaths") {
                    assert_eq!(check(&body, create::BODY, false), Ok(()), "{body}");
                }
            }
        }
    }
}

#[test]
fn names_are_compared_without_case() {
    let mut body = json!({"image": "x", "hostconfig": {"privileged": true}});
    normalise(&mut body, create::BODY);
    assert_eq!(
        body,
        json!({"Image": "x", "HostConfig": {"Privileged": true}})
    );
    let error = check(&body, create::BODY, false).unwrap_err();
    assert!(error.message.contains("HostConfig.Privileged"), "{error}");
}

#[test]
fn workerd_may_say_what_it_says_to_every_engine() {
    let body = json!({"StopTimeout": 10, "HostConfig": {"PidMode": "host", "RestartPolicy": {"Name": "on-failure"}}});
    assert_eq!(check(&body, create::BODY, true), Ok(()));
    assert!(check(&body, create::BODY, false).is_err());
}

#[test]
fn what_a_value_asks_for_depends_on_its_field() {
    for (good, body) in [
        (true, json!({"Memory": 5, "MemorySwap": 5})),
        (false, json!({"Memory": 5, "MemorySwap": -1})),
        (
            true,
            json!({"CgroupnsMode": "private", "IpcMode": "private"}),
        ),
        (false, json!({"MaskedPaths": []})),
        (
            true,
            json!({"LogConfig": {"Type": "json-file", "Config": {}}}),
        ),
        (false, json!({"LogConfig": {"Type": "none"}})),
    ] {
        let body = json!({"HostConfig": body});
        let checked = check(&body, create::BODY, false);
        assert_eq!(checked.is_ok(), good, "{body}");
    }
    let network = |name: &str| json!({"NetworkingConfig": {"EndpointsConfig": {name: {}}}});
    assert_eq!(create::check_networks(&network("default")), Ok(()));
    let error = create::check_networks(&network("mine")).unwrap_err();
    assert!(error.message.contains("EndpointsConfig.mine"), "{error}");
}

#[test]
fn other_bodies_are_checked_as_well() {
    for (fields, published) in [
        (
            others::EXEC,
            "AttachStdin AttachStdout AttachStderr ConsoleSize DetachKeys Tty Env Cmd Privileged User WorkingDir",
        ),
        (others::EXEC_START, "Detach Tty ConsoleSize"),
        (
            others::VOLUME,
            "Name Driver DriverOpts Labels ClusterVolumeSpec",
        ),
        (
            others::AUTH,
            "username password email serveraddress auth identitytoken registrytoken",
        ),
    ] {
        for name in published.split_whitespace() {
            let field = find(fields, name);
            if let Rule::Refused(_) = field.rule {
                let error = check(&json!({ name: asking(field) }), fields, false).unwrap_err();
                assert!(error.message.contains(name), "{error}");
            }
        }
        assert_eq!(fields.len(), published.split_whitespace().count());
    }
}
