//! Docker's `--read-only`, `--tmpfs`, `--shm-size`, `--hostname`, `--add-host`, `--dns-search` and
//! `--dns-option`, as a create's body says them. Must not: know how they are brought about.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use wharf_engine::{Surroundings, Tmpfs, VolumeMount};

use super::body::{Body, HostConfig};
use crate::errors::ApiError;
use crate::storage::target;

/// Most entries of a list; each is written into a file that the container has in memory.
const MAX_ENTRIES: usize = 256;

/// What a body asks for.
pub(super) fn of(body: &Body, host: &HostConfig) -> Result<Surroundings, ApiError> {
    let hosts = host.extra_hosts.iter().flatten();
    let surroundings = Surroundings {
        read_only: host.readonly_rootfs == Some(true),
        tmpfs: all_tmpfs(host)?,
        hostname: hostname(body.hostname.as_deref())?,
        hosts: hosts
            .map(|entry| extra_host(entry))
            .collect::<Result<_, _>>()?,
        dns_search: words("DnsSearch (--dns-search)", host.dns_search.as_deref())?,
        dns_options: words("DnsOptions (--dns-option)", host.dns_options.as_deref())?,
    };
    for (name, count) in [
        ("ExtraHosts (--add-host)", surroundings.hosts.len()),
        ("Tmpfs (--tmpfs)", surroundings.tmpfs.len()),
    ] {
        if count > MAX_ENTRIES {
            return Err(ApiError::bad_request(format!(
                "{name} has {count} entries, more than {MAX_ENTRIES}"
            )));
        }
    }
    Ok(surroundings)
}

/// Refuses what contradicts the rest of a create: two mounts in one place, and names in a network
/// that is another container's.
pub(super) fn fits(
    asked: &Surroundings,
    is_anothers: bool,
    volumes: &[VolumeMount],
) -> Result<(), ApiError> {
    let mut places: BTreeSet<&Path> = volumes.iter().map(|it| it.target.as_path()).collect();
    for tmpfs in &asked.tmpfs {
        if !places.insert(&tmpfs.target) {
            let text = format!("Duplicate mount point: {}", tmpfs.target.display());
            return Err(ApiError::bad_request(text));
        }
    }
    let named = [
        (asked.hostname.is_some(), "hostname"),
        (!asked.hosts.is_empty(), "custom host-to-IP mapping"),
        (!asked.dns_search.is_empty(), "dns-search"),
        (!asked.dns_options.is_empty(), "dns-option"),
    ];
    match named.iter().find(|(given, _)| *given && is_anothers) {
        Some((_, name)) => Err(ApiError::bad_request(format!(
            "conflicting options: {name} and the network mode container:<name>: leave it out"
        ))),
        None => Ok(()),
    }
}

fn hostname(text: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let good = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    if text.len() > 63 || !text.split('.').all(good) {
        return Err(ApiError::bad_request(format!(
            "invalid hostname \"{}\": it must be letters, digits, hyphens and dots, at most 63",
            text.escape_debug()
        )));
    }
    Ok(Some(text.to_owned()))
}

/// `name:address`; IPv6 may be in brackets.
fn extra_host(entry: &str) -> Result<(String, IpAddr), ApiError> {
    let shown = entry.escape_debug();
    let (name, address) = entry.split_once(':').unwrap_or((entry, ""));
    if address == "host-gateway" {
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "ExtraHosts = \"{shown}\" (--add-host) is not supported by this Wharf: no address leads to the machine from inside a container; write an address"
            ),
        ));
    }
    let plain = address.trim_start_matches('[').trim_end_matches(']');
    let is_name = !name.is_empty() && name.chars().all(is_of_a_word) && !name.starts_with('#');
    match plain.parse() {
        Ok(address) if is_name => Ok((name.to_owned(), address)),
        _ => Err(ApiError::bad_request(format!(
            "invalid ExtraHosts entry \"{shown}\" (--add-host): it must be <name>:<address>"
        ))),
    }
}

fn is_of_a_word(c: char) -> bool {
    c.is_ascii_graphic()
}

/// Words of a line of resolv.conf(5). `.` as the only domain means none.
fn words(field: &str, list: Option<&[String]>) -> Result<Vec<String>, ApiError> {
    let list = list.unwrap_or_default();
    let bad = |word: &&String| word.is_empty() || !word.chars().all(is_of_a_word);
    if let Some(bad) = list.iter().find(bad) {
        let shown = bad.escape_debug();
        return Err(ApiError::bad_request(format!(
            "invalid {field} \"{shown}\": it must be one word"
        )));
    }
    if list.len() > MAX_ENTRIES {
        let count = list.len();
        return Err(ApiError::bad_request(format!(
            "{field} has {count} entries, more than {MAX_ENTRIES}"
        )));
    }
    Ok(list.to_vec())
}

/// `Mounts` of type tmpfs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    source: Option<String>,
    target: String,
    read_only: bool,
    tmpfs_options: Option<MountOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MountOptions {
    size_bytes: Option<i64>,
    mode: Option<u32>,
    options: Option<Vec<Vec<String>>>,
}

fn all_tmpfs(host: &HostConfig) -> Result<Vec<Tmpfs>, ApiError> {
    let mut all = Vec::new();
    for (path, options) in host.tmpfs.iter().flatten() {
        let mut tmpfs = plain(path)?;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            apply(&mut tmpfs, option)?;
        }
        all.push(tmpfs);
    }
    let mounts = host.mounts.iter().flatten();
    for mount in mounts.filter(|mount| mount["Type"] == "tmpfs") {
        all.push(of_mount(mount)?);
    }
    let size = given_size("ShmSize", host.shm_size)?;
    let given = all.iter().any(|it| it.target == Path::new("/dev/shm"));
    if let Some(size) = size.filter(|_| !given) {
        all.push(Tmpfs {
            size_bytes: Some(size),
            mode: Some(0o1777),
            ..plain("/dev/shm")?
        });
    }
    Ok(all)
}

fn of_mount(mount: &Value) -> Result<Tmpfs, ApiError> {
    let mount: Mount = Mount::deserialize(mount)
        .map_err(|error| ApiError::bad_request(format!("invalid mount: {error}")))?;
    if mount.source.is_some_and(|source| !source.is_empty()) {
        return Err(ApiError::bad_request(
            "invalid mount: a tmpfs has no Source",
        ));
    }
    let mut tmpfs = plain(&mount.target)?;
    tmpfs.read_only = mount.read_only;
    let options = mount.tmpfs_options.unwrap_or_default();
    tmpfs.size_bytes = given_size("TmpfsOptions.SizeBytes", options.size_bytes)?;
    if let Some(mode) = options.mode.filter(|mode| *mode != 0) {
        apply(&mut tmpfs, &format!("mode={mode:o}"))?;
    }
    for option in options.options.unwrap_or_default() {
        apply(&mut tmpfs, &option.join("="))?;
    }
    Ok(tmpfs)
}

/// A size that may be left out, or be zero, which says nothing.
fn given_size(name: &str, size: Option<i64>) -> Result<Option<u64>, ApiError> {
    match size.map(u64::try_from) {
        None | Some(Ok(0)) => Ok(None),
        Some(Ok(size)) => Ok(Some(size)),
        Some(Err(_)) => Err(ApiError::bad_request(format!(
            "invalid {name}: a size is not negative"
        ))),
    }
}

/// Docker's defaults.
fn plain(path: &str) -> Result<Tmpfs, ApiError> {
    let target = target(path)?;
    let is_systems = ["/dev", "/proc", "/sys"]
        .iter()
        .any(|system| target.starts_with(system));
    if is_systems && target != Path::new("/dev/shm") {
        return Err(ApiError::bad_request(format!(
            "invalid mount target \"{}\": of /dev, /proc and /sys only /dev/shm can be a tmpfs",
            target.display()
        )));
    }
    Ok(Tmpfs {
        target,
        size_bytes: None,
        inodes: None,
        mode: None,
        uid: 0,
        gid: 0,
        exec: false,
        suid: false,
        read_only: false,
    })
}

/// One of `size=64m`, `mode=1770`, `noexec`, ...
fn apply(tmpfs: &mut Tmpfs, option: &str) -> Result<(), ApiError> {
    let shown = option.escape_debug();
    let path = tmpfs.target.display().to_string();
    let invalid = || {
        ApiError::bad_request(format!(
            "invalid tmpfs option \"{shown}\" (--tmpfs {path}): its value is no number"
        ))
    };
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    match (key, option.contains('=')) {
        ("size", true) => tmpfs.size_bytes = Some(bytes(value).ok_or_else(invalid)?),
        ("nr_inodes", true) => tmpfs.inodes = Some(bytes(value).ok_or_else(invalid)?),
        ("mode", true) => {
            let mode = u32::from_str_radix(value, 8).ok();
            let mode = mode.filter(|mode| *mode <= 0o7777);
            tmpfs.mode = Some(mode.ok_or_else(invalid)?);
        }
        ("uid", true) => tmpfs.uid = id(value).ok_or_else(invalid)?,
        ("gid", true) => tmpfs.gid = id(value).ok_or_else(invalid)?,
        ("exec", false) => tmpfs.exec = true,
        ("noexec", false) => tmpfs.exec = false,
        ("suid", false) => tmpfs.suid = true,
        ("nosuid", false) => tmpfs.suid = false,
        ("ro", false) => tmpfs.read_only = true,
        ("rw", false) => tmpfs.read_only = false,
        // As it is in any case.
        ("nodev" | "defaults" | "private" | "rprivate" | "relatime", false) => {}
        _ => {
            return Err(ApiError::new(
                StatusCode::NOT_IMPLEMENTED,
                format!(
                    "tmpfs option \"{shown}\" (--tmpfs {path}) is not supported by this Wharf: there are size, mode, uid, gid, nr_inodes, exec, suid, ro, and their opposites"
                ),
            ));
        }
    }
    Ok(())
}

/// An id that a container has.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id < 65_536)
}

/// `64m`: with tmpfs(5)'s suffixes.
fn bytes(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()?.to_ascii_lowercase() {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        _ => 0,
    };
    let digits = match shift {
        0 => text,
        _ => text.get(..text.len() - 1)?,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(options: &str) -> Result<Tmpfs, ApiError> {
        let host = serde_json::json!({"Tmpfs": {"/x": options}});
        let host: HostConfig = serde_json::from_value(host).unwrap();
        Ok(all_tmpfs(&host)?.remove(0))
    }

    #[test]
    fn tmpfs_options_are_read_or_refused_by_name() {
        let read = tmpfs("rw,exec,suid,size=64m,mode=1770,uid=5,gid=6,nr_inodes=1k").unwrap();
        assert_eq!(read.size_bytes, Some(64 << 20));
        assert_eq!((read.mode, read.inodes), (Some(0o1770), Some(1024)));
        assert_eq!((read.uid, read.gid), (5, 6));
        assert!(read.exec && read.suid && !read.read_only);
        let plain = tmpfs("").unwrap();
        assert!(!plain.exec && !plain.suid && plain.mode.is_none());
        for (bad, status) in [
            ("dev", 501),
            ("mpol=bind:1", 501),
            ("size=50%", 400),
            ("mode=9", 400),
            ("uid=70000", 400),
            ("size", 501),
        ] {
            let error = tmpfs(bad).unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{bad}");
            assert!(error.message.contains(bad), "{error}");
        }
    }

    #[test]
    fn sizes_and_modes_that_cannot_be_are_refused_by_name() {
        let mount = |options: Value| serde_json::json!({"Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": options}]});
        for (host, name) in [
            (serde_json::json!({"ShmSize": -1}), "ShmSize"),
            (mount(serde_json::json!({"SizeBytes": -5})), "SizeBytes"),
            (mount(serde_json::json!({"Mode": 0o200_000})), "mode"),
        ] {
            let host: HostConfig = serde_json::from_value(host).unwrap();
            let error = all_tmpfs(&host).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn a_line_of_a_file_cannot_be_smuggled_in() {
        for bad in [
            "a",
            "a:b",
            "a:1.2.3.4\n6.6.6.6 b",
            "a b:1.2.3.4",
            ":1.2.3.4",
            "#a:1.2.3.4",
        ] {
            assert!(extra_host(bad).is_err(), "{bad:?}");
        }
        let name = |text: &str| extra_host(text).map(|(name, _)| name);
        assert_eq!(name("db:10.0.0.1"), Ok("db".to_owned()));
        assert_eq!(name("db:[::1]"), Ok("db".to_owned()));
        let error = extra_host("host.docker.internal:host-gateway").unwrap_err();
        assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
        assert!(words("x", Some(&["a\nnameserver 6.6.6.6".to_owned()])).is_err());
    }

    #[test]
    fn host_names_are_names() {
        assert_eq!(
            hostname(Some("web-1.example")).unwrap().as_deref(),
            Some("web-1.example")
        );
        assert_eq!(hostname(Some("")), Ok(None));
        for bad in ["-a", "a..b", "a b", "a\n", &"a".repeat(64)] {
            assert!(hostname(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
