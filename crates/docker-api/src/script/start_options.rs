//! What the prelude of a Worker sends along with a start (`wharf_workerd::prelude`; contract: workerd, 1.4), in a variable of the create's environment.
//!
//! Owns: reading and checking it, and the limits of a start that names a size. Must not: trust it more than the Worker itself: the variable can come
//! from nowhere else than the Worker's own code.

use super::ApplicationInfo;
use crate::errors::ApiError;
use serde::Deserialize;
use std::collections::BTreeMap;
use wharf_engine::{Limits, StartOptions};
use wharf_model::InstanceType;

/// The variable. The container never sees it.
pub const START_VARIABLE: &str = "__WHARF_START";

/// workerd's own bounds on labels (its `container.c++`), which hold for whoever writes to the socket himself too.
const MAX_LABELS: usize = 10;
const MAX_LABEL_NAME: usize = 16;
const MAX_LABEL_VALUE: usize = 64;
/// A UUID, with room.
const MAX_TOKEN: usize = 64;

/// The smallest CPU quota, thousandths of a core: the kernel's smallest is a hundredth.
const LEAST_CPU_MILLIS: u64 = 10;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Carried {
    token: Option<String>,
    instance: Option<Instance>,
    hard_timeout_ms: Option<u64>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// `start({instance})`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Instance {
    Named(String),
    #[serde(rename_all = "camelCase")]
    Custom {
        vcpu: f64,
        memory_mib: u64,
        disk_mb: u64,
    },
}

impl Carried {
    /// Takes the variable out of the environment.
    pub(crate) fn take(env: &mut Vec<String>) -> Result<Carried, ApiError> {
        let prefix = format!("{START_VARIABLE}=");
        let found: Vec<String> = env.extract_if(.., |e| e.starts_with(&prefix)).collect();
        let [text] = found.as_slice() else {
            return match found.len() {
                0 => Ok(Carried::default()),
                n => Err(refused(&format!("is there {n} times"))),
            };
        };
        let carried: Carried = serde_json::from_str(&text[prefix.len()..])
            .map_err(|error| refused(&format!("is not what the platform writes: {error}")))?;
        check_labels(&carried.labels)?;
        if carried.token.as_ref().is_some_and(|t| t.len() > MAX_TOKEN) {
            return Err(refused("has too long a token"));
        }
        if carried.hard_timeout_ms == Some(0) {
            return Err(ApiError::bad_request("Hard timeout must be greater than 0"));
        }
        Ok(carried)
    }

    /// What names a size, and nothing else.
    pub(crate) fn of_size(instance: Option<Instance>) -> Self {
        Carried {
            instance,
            ..Carried::default()
        }
    }

    /// The size that it names.
    pub(crate) fn size(&self) -> Option<Instance> {
        self.instance.clone()
    }

    /// Names this start.
    pub(crate) fn token(&self) -> Option<String> {
        self.token.clone()
    }

    /// What this start may use: the application's limits, or those of the size that it names.
    pub(crate) fn limits(&self, application: &ApplicationInfo) -> Result<Limits, ApiError> {
        let (vcpu, memory_mib, disk_mb) = match &self.instance {
            None => return Ok(application.limits.clone()),
            Some(Instance::Named(name)) => {
                let size = InstanceType::parse(name).ok_or_else(|| {
                    ApiError::bad_request(format!(
                        "unknown instance type \"{name}\"; there are lite, basic, standard-1, standard-2, standard-3 and standard-4"
                    ))
                })?;
                let size = size.limits();
                (size.vcpu, size.memory_mib, size.disk_mb)
            }
            Some(Instance::Custom {
                vcpu,
                memory_mib,
                disk_mb,
            }) => {
                fits(application, *vcpu, *memory_mib, *disk_mb)?;
                (*vcpu, *memory_mib, *disk_mb)
            }
        };
        Ok(Limits {
            memory_bytes: Some(memory_mib.saturating_mul(1 << 20)),
            cpu_millis: Some(cpu_millis(vcpu)),
            disk_bytes: Some(disk_bytes(disk_mb)),
            ..application.limits.clone()
        })
    }

    /// What the engine shall know.
    pub(crate) fn into_start(self) -> StartOptions {
        StartOptions {
            token: self.token,
            labels: self.labels,
            hard_timeout_ms: self.hard_timeout_ms,
        }
    }
}

/// Thousandths of a core.
pub fn cpu_millis(vcpu: f64) -> u64 {
    // Saturates, and is 0 for what is no number.
    ((vcpu * 1000.0) as u64).max(LEAST_CPU_MILLIS)
}

/// `disk_mb` and `diskMb` are in units of 10^6 bytes.
pub fn disk_bytes(disk_mb: u64) -> u64 {
    disk_mb.saturating_mul(1_000_000)
}

/// A custom size may only be smaller than what the application was deployed with; without a size of its own, than the largest there is.
fn fits(
    application: &ApplicationInfo,
    vcpu: f64,
    memory_mib: u64,
    disk_mb: u64,
) -> Result<(), ApiError> {
    if !(vcpu.is_finite() && vcpu > 0.0) || memory_mib == 0 || disk_mb == 0 {
        return Err(ApiError::bad_request(
            "start({instance}) needs a vcpu, a memoryMib and a diskMb greater than 0",
        ));
    }
    let limits = &application.largest;
    let memory = memory_mib.saturating_mul(1 << 20);
    let mut too_much = Vec::new();
    if limits
        .cpu_millis
        .is_some_and(|most| cpu_millis(vcpu) > most)
    {
        let most = limits.cpu_millis.unwrap_or_default() as f64 / 1000.0;
        too_much.push(format!("{vcpu} vCPU of at most {most}"));
    }
    if limits.memory_bytes.is_some_and(|most| memory > most) {
        let most = limits.memory_bytes.unwrap_or_default() >> 20;
        too_much.push(format!("{memory_mib} MiB of memory of at most {most}"));
    }
    if limits
        .disk_bytes
        .is_some_and(|most| disk_bytes(disk_mb) > most)
    {
        let most = limits.disk_bytes.unwrap_or_default() / 1_000_000;
        too_much.push(format!("{disk_mb} MB of disk of at most {most}"));
    }
    if too_much.is_empty() {
        return Ok(());
    }
    let mend = match application.image {
        Some(_) => "raise its instance_type in the wrangler configuration, or ask for less",
        None => "that is standard-4, the largest size: ask for less",
    };
    Err(ApiError::new(
        http::StatusCode::UNPROCESSABLE_ENTITY,
        format!(
            "start({{instance}}) asks for more than application \"{}\" has: {}; {mend}",
            application.name,
            too_much.join(", ")
        ),
    ))
}

/// As workerd checks labels.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let wrong = |what: &str| Err(ApiError::bad_request(what));
    if labels.len() > MAX_LABELS {
        return wrong("Cannot specify more than 10 container labels");
    }
    for (name, value) in labels {
        let control = |text: &str| text.bytes().any(|b| b < 0x20);
        if name.is_empty() {
            return wrong("Label names cannot be empty");
        }
        if name.len() > MAX_LABEL_NAME {
            return wrong("Label names cannot exceed 16 bytes");
        }
        if value.len() > MAX_LABEL_VALUE {
            return wrong("Label values cannot exceed 64 bytes");
        }
        if control(name) {
            return wrong("Label names cannot contain control characters");
        }
        if control(value) {
            return wrong("Label values cannot contain control characters");
        }
    }
    Ok(())
}

fn refused(why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "the environment variable {START_VARIABLE} is reserved for the platform, and {why}; give yours another name"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application() -> ApplicationInfo {
        let limits = Limits {
            memory_bytes: Some(1 << 30),
            cpu_millis: Some(250),
            pids: Some(9),
            nofile: None,
            disk_bytes: Some(4_000_000_000),
        };
        ApplicationInfo {
            id: "app".into(),
            name: "hello".into(),
            image: Some("hello:1".into()),
            named_images: Vec::new(),
            largest: limits.clone(),
            limits,
            max_instances: 3,
            min_instances: 0,
            isolation: None,
            no_new_privileges: false,
            variables: Vec::new(),
        }
    }

    fn carried(text: &str) -> Result<Carried, String> {
        let mut env = vec![
            "A=1".to_owned(),
            format!("{START_VARIABLE}={text}"),
            "B=2".to_owned(),
        ];
        let carried = Carried::take(&mut env).map_err(|e| e.message);
        assert_eq!(env, ["A=1", "B=2"]);
        carried
    }

    fn limits(text: &str) -> Result<(u64, u64), String> {
        let limits = carried(text)?.limits(&application());
        let limits = limits.map_err(|e| e.message)?;
        assert_eq!(limits.pids, Some(9));
        Ok((
            limits.memory_bytes.unwrap() >> 20,
            limits.cpu_millis.unwrap(),
        ))
    }

    #[test]
    fn nothing_carried_is_nothing_asked() {
        let none = Carried::take(&mut vec!["A=1".into()]).unwrap();
        let limits = none.limits(&application()).unwrap();
        assert_eq!(limits.memory_bytes, application().limits.memory_bytes);
        assert_eq!(limits.cpu_millis, application().limits.cpu_millis);
        assert_eq!(none.into_start(), StartOptions::default());
    }

    #[test]
    fn everything_arrives() {
        let text = r#"{"token":"t","hardTimeoutMs":1500,"labels":{"team":"a=b"}}"#;
        let start = carried(text).unwrap().into_start();
        assert_eq!(start.token.as_deref(), Some("t"));
        assert_eq!(start.hard_timeout_ms, Some(1500));
        assert_eq!(start.labels["team"], "a=b");
    }

    #[test]
    fn a_named_size_is_that_size() {
        assert_eq!(limits(r#"{"instance":"lite"}"#), Ok((256, 62)));
        assert_eq!(limits(r#"{"instance":"dev"}"#), Ok((256, 62)));
        assert_eq!(limits(r#"{"instance":"basic"}"#), Ok((1024, 250)));
        assert_eq!(limits(r#"{"instance":"standard-4"}"#), Ok((12288, 4000)));
        assert!(limits(r#"{"instance":"huge"}"#).is_err());
    }

    #[test]
    fn a_custom_size_must_fit() {
        let custom = |vcpu: &str, memory: u64, disk: u64| {
            limits(&format!(
                r#"{{"instance":{{"vcpu":{vcpu},"memoryMib":{memory},"diskMb":{disk}}}}}"#
            ))
        };
        assert_eq!(custom("0.125", 100, 1000), Ok((100, 125)));
        assert_eq!(custom("0.25", 1024, 4000), Ok((1024, 250)));
        let refusal = custom("1.5", 2048, 4001).unwrap_err();
        assert_eq!(
            refusal,
            "start({instance}) asks for more than application \"hello\" has: 1.5 vCPU of at most 0.25, 2048 MiB of memory of at most 1024, \
             4001 MB of disk of at most 4000; raise its instance_type in the wrangler configuration, or ask for less"
        );
        for (vcpu, memory, disk) in [("0", 1, 1), ("-1", 1, 1), ("0.1", 0, 1), ("0.1", 1, 0)] {
            assert!(custom(vcpu, memory, disk).is_err());
        }
    }

    #[test]
    fn without_an_image_of_its_own_the_largest_size_is_the_bound() {
        let most = InstanceType::Standard4.limits();
        let managed = ApplicationInfo {
            image: None,
            largest: Limits {
                memory_bytes: Some(most.memory_mib << 20),
                cpu_millis: Some(cpu_millis(most.vcpu)),
                disk_bytes: Some(disk_bytes(most.disk_mb)),
                ..Limits::default()
            },
            ..application()
        };
        let ask = |memory: u64| {
            let text =
                format!(r#"{{"instance":{{"vcpu":4,"memoryMib":{memory},"diskMb":20000}}}}"#);
            let limits = carried(&text).unwrap().limits(&managed);
            limits.map(|l| l.memory_bytes).map_err(|e| e.message)
        };
        assert_eq!(ask(12288), Ok(Some(12288 << 20)));
        let refusal = ask(12289).unwrap_err();
        assert!(refusal.ends_with("12289 MiB of memory of at most 12288; that is standard-4, the largest size: ask for less"), "{refusal}");
    }

    #[test]
    fn a_forged_variable_is_refused_by_name() {
        for text in ["", "{", "7", r#"{"memory":1}"#, r#"{"hardTimeoutMs":0}"#] {
            assert!(carried(text).is_err(), "{text}");
        }
        assert!(carried("x").unwrap_err().contains(START_VARIABLE));
        let mut twice = vec![format!("{START_VARIABLE}={{}}"); 2];
        assert!(Carried::take(&mut twice).is_err());
    }

    #[test]
    fn labels_have_workerds_bounds() {
        let check = |name: &str, value: &str| {
            check_labels(&BTreeMap::from([(name.to_owned(), value.to_owned())])).is_ok()
        };
        assert!(check(&"n".repeat(16), &"v".repeat(64)));
        assert!(check("emoji", "🧪"));
        assert!(!check(&"n".repeat(17), "v"));
        assert!(!check("n", &"v".repeat(65)));
        assert!(!check("", "v"));
        assert!(!check("a\u{1}", "v"));
        assert!(!check("a", "\n"));
        let eleven = (0..11).map(|n| (n.to_string(), String::new())).collect();
        assert!(check_labels(&eleven).is_err());
    }
}
