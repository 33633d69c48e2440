//! A container application: image and limits behind a Durable Object namespace (contracts: wrangler, section 6).

use serde::{Deserialize, Serialize};

/// The `scheduling_policy` of applications that their Durable Objects manage.
pub const MANAGED_POLICY: &str = "durable_object";

/// A container application, as the API knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Application {
    /// Dashed UUID.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// The Durable Object namespace whose objects own the instances.
    pub namespace_id: Option<String>,
    /// Starts at 1, counts up with each change.
    pub version: u32,
    /// Most instances at a time.
    pub max_instances: u32,
    /// `configuration` as sent: image, instance_type or vcpu/memory_mib/disk, ...
    pub configuration: serde_json::Value,
    /// Everything else that was sent (scheduling_policy, constraints, ...), echoed back.
    pub extra: serde_json::Value,
    /// Unix time in milliseconds.
    pub created_ms: i64,
    /// Unix time in milliseconds.
    pub modified_ms: i64,
}

impl Application {
    /// The image reference that new instances start from.
    pub fn image(&self) -> Option<&str> {
        self.configuration.get("image")?.as_str()
    }

    /// Whether the Worker chooses image and size with each start (`"scheduling_policy": "durable_object"`): such an application has the id of
    /// its namespace, no image, no `instance_type` and no `max_instances`.
    pub fn is_managed(&self) -> bool {
        self.extra.get("scheduling_policy").and_then(|v| v.as_str()) == Some(MANAGED_POLICY)
    }

    /// What the deployer asks of Wharf itself: `"unsafe": {"configuration": {"wharf": {...}}}` of a container in the wrangler configuration, which wrangler
    /// merges into what it sends. Nothing given is [`Settings::default`].
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, for the deployer.
    pub fn settings(&self) -> Result<Settings, String> {
        Settings::read(&self.configuration)
    }

    /// Resource limits of an instance, from `instance_type` or from `vcpu`, `memory_mib` and `disk.size_mb`;
    /// what is not given has lite's value (contracts: wrangler, section 6).
    pub fn limits(&self) -> Limits {
        let lite = InstanceType::Lite.limits();
        let conf = &self.configuration;
        if let Some(kind) = conf.get("instance_type").and_then(|v| v.as_str()) {
            return InstanceType::parse(kind).map_or(lite, InstanceType::limits);
        }
        Limits {
            vcpu: conf
                .get("vcpu")
                .and_then(|v| v.as_f64())
                .unwrap_or(lite.vcpu),
            memory_mib: conf
                .get("memory_mib")
                .and_then(|v| v.as_u64())
                .unwrap_or(lite.memory_mib),
            disk_mb: conf
                .get("disk")
                .and_then(|d| d.get("size_mb"))
                .and_then(|v| v.as_u64())
                .unwrap_or(lite.disk_mb),
        }
    }
}

/// What a deployer asks of Wharf for an application, beyond what Cloudflare's configuration has words for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The wall around each instance; `None` leaves it to the image's label and the node.
    pub isolation: Option<Isolation>,
    /// Whether set-user-id programs and file capabilities have no effect in its instances.
    pub no_new_privileges: bool,
    /// Instances to keep started ahead.
    pub min_instances: u32,
}

impl Settings {
    /// Reads them out of an application's `configuration`.
    ///
    /// # Errors
    /// As [`Application::settings`].
    pub fn read(configuration: &serde_json::Value) -> Result<Self, String> {
        let Some(value) = configuration.get("wharf").filter(|v| !v.is_null()) else {
            return Ok(Settings::default());
        };
        Settings::deserialize(value).map_err(|e| {
            format!("\"wharf\" in the container's \"configuration\" (the keys are \"isolation\", \"min_instances\" and \"no_new_privileges\"): {e}")
        })
    }
}

/// What separates an instance from its machine. Ordered from the weakest wall to the strongest.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces, an id range, seccomp: the host's own kernel, walled off.
    #[default]
    Namespace,
    /// gVisor's `runsc`: a kernel of its own in user space.
    Gvisor,
    /// A virtual machine.
    Microvm,
}

impl Isolation {
    /// Its name, as in configurations and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Gvisor => "gvisor",
            Self::Microvm => "microvm",
        }
    }

    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Namespace, Self::Gvisor, Self::Microvm]
            .into_iter()
            .find(|class| class.as_str() == name)
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU cores, fractions allowed.
    pub vcpu: f64,
    /// MiB.
    pub memory_mib: u64,
    /// MB (10^6 bytes).
    pub disk_mb: u64,
}

/// Cloudflare's named instance sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceType {
    /// 1/16 vCPU, 256 MiB, 2 GB; `dev` is its old name.
    Lite,
    /// 1/4 vCPU, 1 GiB, 4 GB.
    Basic,
    /// 1/2 vCPU, 4 GiB, 8 GB; `standard` is its old name.
    Standard1,
    /// 1 vCPU, 6 GiB, 12 GB.
    Standard2,
    /// 2 vCPU, 8 GiB, 16 GB.
    Standard3,
    /// 4 vCPU, 12 GiB, 20 GB.
    Standard4,
}

impl InstanceType {
    /// Reads Cloudflare's name of a size.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "lite" | "dev" => Self::Lite,
            "basic" => Self::Basic,
            "standard-1" | "standard" => Self::Standard1,
            "standard-2" => Self::Standard2,
            "standard-3" => Self::Standard3,
            "standard-4" => Self::Standard4,
            _ => return None,
        })
    }

    /// The size's limits.
    pub fn limits(self) -> Limits {
        let (vcpu, memory_mib, disk_mb) = match self {
            Self::Lite => (0.0625, 256, 2000),
            Self::Basic => (0.25, 1024, 4000),
            Self::Standard1 => (0.5, 4096, 8000),
            Self::Standard2 => (1.0, 6144, 12000),
            Self::Standard3 => (2.0, 8192, 16000),
            Self::Standard4 => (4.0, 12288, 20000),
        };
        Limits {
            vcpu,
            memory_mib,
            disk_mb,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_read_and_nonsense_is_refused() {
        assert_eq!(
            Settings::read(&json!({"image": "a:1"})).unwrap(),
            Settings::default()
        );
        assert_eq!(
            Settings::read(&json!({"wharf": {"isolation": "gvisor", "min_instances": 2}})).unwrap(),
            Settings {
                isolation: Some(Isolation::Gvisor),
                min_instances: 2,
                no_new_privileges: false,
            }
        );
        assert!(
            Settings::read(&json!({"wharf": {"no_new_privileges": true}}))
                .unwrap()
                .no_new_privileges
        );
        for (bad, word) in [
            (
                json!({"wharf": {"isolation": "firecracker"}}),
                "firecracker",
            ),
            (json!({"wharf": {"min_instances": -1}}), "-1"),
            (json!({"wharf": {"no_new_privileges": "yes"}}), "yes"),
            (json!({"wharf": {"mininstances": 1}}), "mininstances"),
            (json!({"wharf": 3}), "3"),
        ] {
            let error = Settings::read(&bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
