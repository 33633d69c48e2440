//! What the suite calls the host: namespaces of its own with a loopback, and a picture of what must not change there.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use crate::world::World;

/// An address of the "host" that is not loopback. Reserved for benchmarks (RFC 2544): nobody's.
pub(crate) const HOST_ADDRESS: &str = "198.18.0.1";

/// Loopback, an address, and a route, all of which end in this namespace.
pub(crate) fn set_up() -> Result<()> {
    for args in [
        vec!["link", "set", "lo", "up"],
        vec!["addr", "add", "198.18.0.1/32", "dev", "lo"],
        vec!["route", "add", "default", "dev", "lo"],
        vec!["-6", "addr", "add", "2001:db8::1/128", "dev", "lo"],
        vec!["-6", "route", "add", "default", "dev", "lo"],
    ] {
        let status = Command::new("busybox")
            .arg("ip")
            .args(&args)
            .status()
            .context("busybox")?;
        anyhow::ensure!(status.success(), "ip {}: {status}", args.join(" "));
    }
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    Ok(())
}

/// What must stay, by name. Of the machine only what nobody else changes.
pub(crate) fn picture(world: &World) -> Result<BTreeMap<String, String>> {
    let mut picture = BTreeMap::new();
    for file in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/panic",
        "/proc/sys/kernel/sysrq",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/swaps",
        "/proc/net/route",
        "/proc/net/fib_trie",
        "/sys/kernel/mm/ksm/run",
        "/proc/sysvipc/shm",
        "/proc/self/mountinfo",
    ] {
        let text = std::fs::read_to_string(file).unwrap_or_else(|e| e.to_string());
        picture.insert(file.to_owned(), text);
    }
    let interfaces: Vec<String> = std::fs::read_to_string("/proc/net/dev")?
        .lines()
        .filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned()))
        .collect();
    picture.insert("interfaces".to_owned(), interfaces.join(" "));
    let outside = world.outside();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&outside)? {
        let entry = entry?;
        let content = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let metadata = entry.metadata()?;
        use std::os::unix::fs::MetadataExt;
        let (mode, links, owner) = (metadata.mode(), metadata.nlink(), metadata.uid());
        files.push(format!(
            "{:?} {mode:o} {links} {owner} {content}",
            entry.file_name()
        ));
    }
    files.sort();
    picture.insert(outside.display().to_string(), files.join("\n"));
    picture.insert("victim".to_owned(), world.victim_state());
    Ok(picture)
}

/// The names of what is another.
pub(crate) fn difference(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let changed = before
        .iter()
        .filter(|(name, text)| after.get(*name) != Some(text));
    changed.map(|(name, _)| name.clone()).collect()
}
