//! Sizes of instances: named ones and those of one's own, and what fits into an application.
//!
//! Owns: the units in which Cloudflare's sizes become limits. Must not: know how a size was said.

use wharf_engine::Limits;
use wharf_model::InstanceType;

use crate::application::ApplicationInfo;
use crate::refusal::Refusal;

/// The smallest CPU quota, thousandths of a core: the kernel's smallest is a hundredth.
const LEAST_CPU_MILLIS: u64 = 10;
/// Processes and threads that one instance may have: enough for a JVM or Chromium, too few for a
/// fork bomb to hurt the node.
const PIDS_PER_INSTANCE: u64 = 4096;

/// The size that one start asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Size {
    /// One of Cloudflare's instance types, by its name.
    Named(String),
    /// Figures.
    Custom {
        /// CPU cores, fractions allowed.
        vcpu: f64,
        /// MiB.
        memory_mib: u64,
        /// MB (10^6 bytes).
        disk_mb: u64,
    },
}

impl Size {
    /// The limits of a start of this size. A named size is that size; one by figures may only be
    /// smaller than what the application was deployed with (without a size of its own, than the
    /// largest there is).
    ///
    /// # Errors
    /// An unknown name, a figure that is none, or one that is too large.
    pub fn limits(&self, application: &ApplicationInfo) -> Result<Limits, Refusal> {
        let size = match self {
            Size::Named(name) => InstanceType::parse(name).map(InstanceType::limits).ok_or_else(|| {
                Refusal::invalid(format!(
                    "unknown instance type \"{name}\"; there are lite, basic, standard-1, standard-2, standard-3 and standard-4"
                ))
            })?,
            &Size::Custom {
                vcpu,
                memory_mib,
                disk_mb,
            } => {
                let size = wharf_model::Limits {
                    vcpu,
                    memory_mib,
                    disk_mb,
                };
                fits(application, size)?;
                size
            }
        };
        let of_size = instance_limits(size);
        Ok(Limits {
            pids: application.limits.pids,
            nofile: application.limits.nofile,
            ..of_size
        })
    }
}

/// A size as the engine holds an instance to it.
pub fn instance_limits(size: wharf_model::Limits) -> Limits {
    Limits {
        memory_bytes: Some(size.memory_mib.saturating_mul(1 << 20)),
        cpu_millis: Some(cpu_millis(size.vcpu)),
        pids: Some(PIDS_PER_INSTANCE),
        nofile: None,
        disk_bytes: Some(disk_bytes(size.disk_mb)),
    }
}

/// Thousandths of a core; at least the kernel's least.
pub fn cpu_millis(vcpu: f64) -> u64 {
    // Saturates, and is 0 for what is no number.
    ((vcpu * 1000.0) as u64).max(LEAST_CPU_MILLIS)
}

/// Bytes; Cloudflare's `disk_mb` and `diskMb` are in units of 10^6 bytes.
pub fn disk_bytes(disk_mb: u64) -> u64 {
    disk_mb.saturating_mul(1_000_000)
}

/// The lower of two limits, for each resource.
pub(crate) fn lower(limits: &Limits, asked: &Limits) -> Limits {
    let least = |limit: Option<u64>, asked: Option<u64>| match (limit, asked) {
        (Some(limit), Some(asked)) => Some(limit.min(asked)),
        (limit, asked) => limit.or(asked),
    };
    Limits {
        memory_bytes: least(limits.memory_bytes, asked.memory_bytes),
        cpu_millis: least(limits.cpu_millis, asked.cpu_millis),
        pids: least(limits.pids, asked.pids),
        nofile: least(limits.nofile, asked.nofile),
        disk_bytes: least(limits.disk_bytes, asked.disk_bytes),
    }
}

fn fits(application: &ApplicationInfo, size: wharf_model::Limits) -> Result<(), Refusal> {
    let wharf_model::Limits {
        vcpu,
        memory_mib,
        disk_mb,
    } = size;
    if !(vcpu.is_finite() && vcpu > 0.0) || memory_mib == 0 || disk_mb == 0 {
        return Err(Refusal::invalid(
            "start({instance}) needs a vcpu, a memoryMib and a diskMb greater than 0",
        ));
    }
    let (asked, limits) = (instance_limits(size), &application.largest);
    let too_large = |asked: Option<u64>, most: Option<u64>| most.filter(|most| asked > Some(*most));
    let mut too_much = Vec::new();
    if let Some(most) = too_large(asked.cpu_millis, limits.cpu_millis) {
        let most = most as f64 / 1000.0;
        too_much.push(format!("{vcpu} vCPU of at most {most}"));
    }
    if let Some(most) = too_large(asked.memory_bytes, limits.memory_bytes) {
        let most = most >> 20;
        too_much.push(format!("{memory_mib} MiB of memory of at most {most}"));
    }
    if let Some(most) = too_large(asked.disk_bytes, limits.disk_bytes) {
        let most = most / 1_000_000;
        too_much.push(format!("{disk_mb} MB of disk of at most {most}"));
    }
    if too_much.is_empty() {
        return Ok(());
    }
    let remedy = match application.image {
        Some(_) => "raise its instance_type in the wrangler configuration, or ask for less",
        None => "that is standard-4, the largest size: ask for less",
    };
    Err(Refusal::too_large(format!(
        "start({{instance}}) asks for more than application \"{}\" has: {}; {remedy}",
        application.name,
        too_much.join(", ")
    )))
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
            largest: limits.clone(),
            limits,
            ..ApplicationInfo::for_tests()
        }
    }

    fn limits(size: Size) -> Result<(u64, u64), String> {
        let limits = size.limits(&application()).map_err(|e| e.message)?;
        assert_eq!(limits.pids, Some(9));
        Ok((
            limits.memory_bytes.unwrap() >> 20,
            limits.cpu_millis.unwrap(),
        ))
    }

    #[test]
    fn a_named_size_is_that_size() {
        let named = |name: &str| limits(Size::Named(name.to_owned()));
        assert_eq!(named("lite"), Ok((256, 62)));
        assert_eq!(named("dev"), Ok((256, 62)));
        assert_eq!(named("basic"), Ok((1024, 250)));
        assert_eq!(named("standard-4"), Ok((12288, 4000)));
        assert!(named("huge").unwrap_err().contains("huge"));
    }

    #[test]
    fn a_size_of_ones_own_must_fit() {
        let custom = |vcpu, memory_mib, disk_mb| {
            limits(Size::Custom {
                vcpu,
                memory_mib,
                disk_mb,
            })
        };
        assert_eq!(custom(0.125, 100, 1000), Ok((100, 125)));
        assert_eq!(custom(0.25, 1024, 4000), Ok((1024, 250)));
        assert_eq!(
            custom(1.5, 2048, 4001).unwrap_err(),
            "start({instance}) asks for more than application \"hello\" has: 1.5 vCPU of at most 0.25, 2048 MiB of memory of at most 1024, \
             4001 MB of disk of at most 4000; raise its instance_type in the wrangler configuration, or ask for less"
        );
        for (vcpu, memory, disk) in [(0.0, 1, 1), (-1.0, 1, 1), (0.1, 0, 1), (0.1, 1, 0)] {
            assert!(custom(vcpu, memory, disk).is_err());
        }
    }

    #[test]
    fn without_an_image_of_its_own_the_largest_size_is_the_bound() {
        let managed = ApplicationInfo {
            image: None,
            largest: instance_limits(InstanceType::Standard4.limits()),
            ..application()
        };
        let ask = |memory_mib: u64| {
            let size = Size::Custom {
                vcpu: 4.0,
                memory_mib,
                disk_mb: 20_000,
            };
            let limits = size.limits(&managed);
            limits.map(|l| l.memory_bytes).map_err(|e| e.message)
        };
        assert_eq!(ask(12288), Ok(Some(12288 << 20)));
        let refusal = ask(12289).unwrap_err();
        assert!(refusal.ends_with("12289 MiB of memory of at most 12288; that is standard-4, the largest size: ask for less"), "{refusal}");
    }

    #[test]
    fn a_request_can_only_lower_limits() {
        let own = Limits {
            memory_bytes: Some(1 << 28),
            ..Limits::default()
        };
        let ask = |memory_bytes, cpu_millis, pids| {
            let asked = Limits {
                memory_bytes,
                cpu_millis,
                pids,
                ..Limits::default()
            };
            let limits = lower(&own, &asked);
            (limits.memory_bytes, limits.cpu_millis, limits.pids)
        };
        assert_eq!(ask(None, None, None), (Some(1 << 28), None, None));
        assert_eq!(
            ask(Some(1 << 20), Some(500), Some(7)),
            (Some(1 << 20), Some(500), Some(7))
        );
        assert_eq!(ask(Some(1 << 40), None, None), (Some(1 << 28), None, None));
    }
}
