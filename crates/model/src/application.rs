//! A container application: image and limits behind a Durable Object namespace (contracts: wrangler, section 6).

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// Image, size, and what is asked of Wharf itself.
    pub configuration: Configuration,
    /// Everything else that was sent (scheduling_policy, constraints, ...), echoed back.
    pub extra: Value,
    /// Unix time in milliseconds.
    pub created_ms: i64,
    /// Unix time in milliseconds.
    pub modified_ms: i64,
}

impl Application {
    /// The image reference that new instances start from.
    pub fn image(&self) -> Option<&str> {
        self.configuration.sent.get("image")?.as_str()
    }

    /// Whether the Worker chooses image and size with each start (`"scheduling_policy": "durable_object"`): such an application has the id of
    /// its namespace, no image, no `instance_type` and no `max_instances`.
    pub fn is_managed(&self) -> bool {
        self.extra.get("scheduling_policy").and_then(|v| v.as_str()) == Some(MANAGED_POLICY)
    }

    /// What its configuration means.
    ///
    /// # Errors
    /// An older version of Wharf has stored one that makes no sense; what is wrong, for the deployer.
    pub fn spec(&self) -> Result<&Spec, String> {
        let spec = self.configuration.spec.as_ref();
        spec.map_err(|reason| {
            format!(
                "the configuration of application \"{}\" is wrong: {reason}; deploy it again",
                self.name
            )
        })
    }
}

/// `configuration` of an application, as sent, with what it means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Value", into = "Value")]
pub struct Configuration {
    sent: Value,
    spec: Result<Spec, String>,
}

/// What an application's configuration means.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Limits of an instance.
    pub limits: Limits,
    /// What is asked of Wharf itself: `"unsafe": {"configuration": {"wharf": {...}}}` of a container
    /// in the wrangler configuration, which wrangler merges into what it sends.
    pub settings: Settings,
}

impl Configuration {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, for the deployer.
    pub fn parse(sent: Value) -> Result<Configuration, String> {
        let spec = Ok(Spec::read(&sent)?);
        Ok(Configuration { sent, spec })
    }

    /// As it was sent.
    pub fn sent(&self) -> &Value {
        &self.sent
    }
}

/// One that was stored: it was read before, or it says why it cannot be.
impl From<Value> for Configuration {
    fn from(sent: Value) -> Configuration {
        let spec = Spec::read(&sent);
        Configuration { sent, spec }
    }
}

impl From<Configuration> for Value {
    fn from(configuration: Configuration) -> Value {
        configuration.sent
    }
}

impl Spec {
    /// Limits come from `instance_type`, or from `vcpu`, `memory_mib` and `disk.size_mb`; a figure
    /// that is not given is lite's (contracts: wrangler, section 6).
    fn read(sent: &Value) -> Result<Spec, String> {
        let settings = Settings::read(sent)?;
        let lite = InstanceType::Lite.limits();
        let given = |value: Option<&'_ Value>| value.filter(|v| !v.is_null()).cloned();
        let positive = |name: &str, value: Option<Value>| match value {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| *n > 0.0) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{name} must be a positive number, not {value}")),
            },
        };
        let whole = |name: &str, value: Option<Value>| {
            let number = positive(name, value.clone())?;
            match number.filter(|n| n.fract() != 0.0) {
                None => Ok(number.map(|n| n as u64)),
                Some(n) => Err(format!("{name} must be a whole number, not {n}")),
            }
        };
        let custom = Limits {
            vcpu: positive("vcpu", given(sent.get("vcpu")))?.unwrap_or(lite.vcpu),
            memory_mib: whole("memory_mib", given(sent.get("memory_mib")))?
                .unwrap_or(lite.memory_mib),
            disk_mb: whole(
                "disk.size_mb",
                given(sent.get("disk").and_then(|disk| disk.get("size_mb"))),
            )?
            .unwrap_or(lite.disk_mb),
        };
        let limits = match given(sent.get("instance_type")) {
            None => custom,
            Some(kind) => {
                let known = kind.as_str().and_then(InstanceType::parse);
                let known = known.ok_or_else(|| {
                    format!(
                        "unknown instance_type {kind}; there are lite, basic, standard-1, standard-2, standard-3 and standard-4"
                    )
                })?;
                known.limits()
            }
        };
        Ok(Spec { limits, settings })
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
    /// What is wrong with it and what to write instead, for the deployer.
    pub fn read(configuration: &Value) -> Result<Self, String> {
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
    fn a_size_is_named_or_figures_and_never_guessed() {
        let limits = |sent| Configuration::parse(sent).map(|it| it.spec.unwrap().limits);
        assert_eq!(limits(json!({})), Ok(InstanceType::Lite.limits()));
        assert_eq!(
            limits(json!({"instance_type": "basic"})),
            Ok(InstanceType::Basic.limits())
        );
        assert_eq!(
            limits(json!({"vcpu": 0.5, "memory_mib": 512, "disk": {"size_mb": 3000.0}})),
            Ok(Limits {
                vcpu: 0.5,
                memory_mib: 512,
                disk_mb: 3000
            })
        );
        for (bad, word) in [
            (json!({"instance_type": "huge"}), "huge"),
            (json!({"instance_type": 3}), "unknown instance_type 3"),
            (json!({"vcpu": "1"}), "vcpu"),
            (json!({"memory_mib": -1}), "memory_mib"),
            (json!({"memory_mib": 512.5}), "whole"),
            (json!({"disk": {"size_mb": 0}}), "disk.size_mb"),
        ] {
            let reason = limits(bad.clone()).unwrap_err();
            assert!(reason.contains(word), "{reason}");
            // Stored by an older version: kept, with the reason.
            let stored: Configuration = serde_json::from_value(bad.clone()).unwrap();
            assert_eq!(stored.spec, Err(reason));
            assert_eq!(serde_json::to_value(&stored).unwrap(), bad);
        }
    }

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
