//! What a start may ask for of a container's file system and names beside the image: a root that
//! can only be read, directories in memory, its host name, /etc/hosts and /etc/resolv.conf. Plain
//! data, and the two files' text. Must not: mount anything.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use wharf_sandbox::Tmpfs;

use crate::{EngineError, Isolation, isolation};

/// What a start asks for; the default is what every other container has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Surroundings {
    /// Whether the root file system can only be read (Docker's `--read-only`). Volumes and tmpfs
    /// mounts stay writable.
    pub read_only: bool,
    /// Directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Host name; `None`: the first twelve digits of the id.
    pub hostname: Option<String>,
    /// More lines of /etc/hosts: name and address.
    pub hosts: Vec<(String, IpAddr)>,
    /// Domains in which names are looked up (resolv.conf(5), `search`).
    pub dns_search: Vec<String>,
    /// Options of the look-up (resolv.conf(5), `options`).
    pub dns_options: Vec<String>,
}

impl Surroundings {
    /// Whether it asks for nothing.
    pub(crate) fn is_plain(&self) -> bool {
        *self == Surroundings::default()
    }

    /// Refuses what a class of isolation does not have.
    pub(crate) fn check(&self, class: Isolation) -> Result<(), EngineError> {
        let asked = match (self.read_only, self.tmpfs.is_empty()) {
            _ if isolation::has_surroundings(class) => return Ok(()),
            (true, _) => "a read-only root file system (--read-only)",
            (_, false) => "a directory in memory (--tmpfs, --shm-size)",
            _ => return Ok(()),
        };
        let class = class.as_str();
        Err(EngineError::Invalid(format!(
            "{asked} is not supported in the isolation class {class}: leave it out, or use --runtime namespace"
        )))
    }

    /// /etc/resolv.conf.
    pub(crate) fn resolv_conf(&self, mut text: String) -> String {
        for (key, values) in [("search", &self.dns_search), ("options", &self.dns_options)] {
            if !values.is_empty() {
                text += &format!("{key} {}\n", values.join(" "));
            }
        }
        text
    }

    /// /etc/hosts. The container has no address of its own but loopback.
    pub(crate) fn hosts(&self, hostname: &str) -> String {
        let mut text = format!(
            "127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        );
        for (name, address) in &self.hosts {
            text += &format!("{address}\t{name}\n");
        }
        text
    }
}
