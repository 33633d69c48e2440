//! What workerd has said in `PUT /egress` (contract: workerd, 1.5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hosts::Hosts;

/// Mappings that a Worker makes again after an adoption come in one go. When none has come for this long, they are back.
const QUIET: Duration = Duration::from_secs(10);

/// What workerd has said about connections that it wants to see itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// Where workerd listens for them, on 127.0.0.1 where it runs.
    pub port: Option<u16>,
    /// Patterns of host names that have a mapping.
    pub allow_hostnames: Vec<String>,
    /// Patterns that an earlier process of workerd had for the container that runs now, and this one has not.
    ///
    /// A new process adopts the container without its mappings, and the Worker adds them one after the other. Until they are back, or the container
    /// is started again, what had a mapping is still taken to workerd, which denies it: otherwise it would pass by the Worker for a while.
    earlier: Vec<String>,
    /// The process of workerd has adopted the container. Such a one does not know whether the container may reach the internet, and passes
    /// nothing through.
    adopted: bool,
    /// When it last said something.
    said: Option<Instant>,
    hosts: Arc<Hosts>,
}

/// The body of `PUT /egress`. Every part is optional, and what is absent stays as it was.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Update {
    port: Option<u16>,
    dns: Option<Dns>,
    internet: Option<Internet>,
}

#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dns {
    allow_hostnames: Option<Vec<String>>,
}

#[derive(Debug, Clone, serde::Deserialize)]
struct Internet {
    enabled: Option<bool>,
}

impl Update {
    /// Whether the container may reach the internet. Said at each start of the container by the process that starts it, and never by one that
    /// has adopted it.
    pub(crate) fn internet(&self) -> Option<bool> {
        self.internet.as_ref()?.enabled
    }
}

impl Egress {
    /// Takes over what an update says.
    pub(crate) fn apply(&mut self, update: Update, now: Instant) {
        self.said = Some(now);
        if update.internet().is_some() {
            self.earlier.clear();
            self.adopted = false;
        } else if update.port.is_some() && update.port != self.port {
            self.earlier.extend_from_slice(&self.allow_hostnames);
            self.adopted = true;
        }
        if let Some(port) = update.port {
            self.port = Some(port);
        }
        if let Some(hostnames) = update.dns.and_then(|dns| dns.allow_hostnames) {
            self.allow_hostnames = hostnames;
            if self
                .earlier
                .iter()
                .all(|earlier| self.allow_hostnames.contains(earlier))
            {
                self.earlier.clear();
            }
        }
        self.hosts = Arc::new(Hosts::new(self.allow_hostnames.iter().chain(&self.earlier)));
    }

    /// Whether what no mapping takes must be carried here, since workerd, which has adopted the container, would not pass it through.
    pub(crate) fn passes_nothing(&self, now: Instant) -> bool {
        let quiet = self
            .said
            .is_some_and(|said| now.saturating_duration_since(said) >= QUIET);
        self.adopted && self.earlier.is_empty() && quiet
    }

    /// Names that may have a mapping.
    pub(crate) fn hosts(&self) -> Arc<Hosts> {
        self.hosts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(egress: &mut Egress, body: &str) {
        egress.apply(serde_json::from_str(body).unwrap(), Instant::now());
    }

    #[test]
    fn a_new_process_of_workerd_does_not_open_what_the_earlier_had_mapped() {
        let mut egress = Egress::default();
        put(
            &mut egress,
            r#"{"port":1,"dns":{"allowHostnames":["a","b"]},"internet":{"enabled":true}}"#,
        );
        assert!(egress.hosts().may_match("a"));
        put(&mut egress, r#"{"port":1,"dns":{"allowHostnames":["b"]}}"#);
        assert!(
            !egress.hosts().may_match("a"),
            "the same process may take a mapping away"
        );

        // Adopted; then the mappings come back one by one.
        put(&mut egress, r#"{"port":2}"#);
        assert!(egress.hosts().may_match("b"));
        put(&mut egress, r#"{"port":2,"dns":{"allowHostnames":["c"]}}"#);
        assert!(egress.hosts().may_match("b") && egress.hosts().may_match("c"));
        // Twice in a row.
        put(&mut egress, r#"{"port":3}"#);
        put(&mut egress, r#"{"port":3,"dns":{"allowHostnames":[]}}"#);
        assert!(egress.hosts().may_match("b") && egress.hosts().may_match("c"));
        // The next start begins anew.
        put(
            &mut egress,
            r#"{"port":3,"dns":{"allowHostnames":["d"]},"internet":{"enabled":true}}"#,
        );
        assert!(!egress.hosts().may_match("b") && egress.hosts().may_match("d"));
    }

    #[test]
    fn after_an_adoption_the_rest_is_carried_here_once_all_mappings_are_back() {
        let long_after = || Instant::now() + QUIET;
        let mut egress = Egress::default();
        put(
            &mut egress,
            r#"{"port":1,"dns":{"allowHostnames":["a","b"]},"internet":{"enabled":true}}"#,
        );
        assert!(!egress.passes_nothing(long_after()), "workerd does it");
        put(&mut egress, r#"{"port":2}"#);
        put(&mut egress, r#"{"port":2,"dns":{"allowHostnames":["b"]}}"#);
        assert!(!egress.passes_nothing(long_after()), "one is missing");
        put(
            &mut egress,
            r#"{"port":2,"dns":{"allowHostnames":["b","a","c"]}}"#,
        );
        assert!(!egress.passes_nothing(Instant::now()), "more may come");
        assert!(egress.passes_nothing(long_after()));
        put(
            &mut egress,
            r#"{"port":2,"dns":{"allowHostnames":["a"]},"internet":{"enabled":true}}"#,
        );
        assert!(!egress.passes_nothing(long_after()));
    }
}
