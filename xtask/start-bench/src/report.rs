//! What comes out of one run, as data. [`crate::table`] is for people.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) sleeping: Option<Outcome<Sleeping>>,
    pub(crate) burst: Option<Outcome<Burst>>,
    pub(crate) density: Option<Outcome<Density>>,
    pub(crate) sustained: Option<Outcome<Sustained>>,
    pub(crate) growth: Option<Outcome<Growth>>,
    pub(crate) ahead: Vec<Ahead>,
}

/// A figure, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Outcome<T> {
    /// The figure.
    Measured(T),
    /// The reason.
    Failed {
        /// In words.
        reason: String,
    },
}

impl<T> From<Result<T>> for Outcome<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(value) => Outcome::Measured(value),
            Err(error) => Outcome::Failed {
                reason: format!("{error:#}"),
            },
        }
    }
}

/// The conditions.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) cgroup: String,
    pub(crate) date: String,
    /// What was measured: Git's short name of the commit, with `+` if files had changed since.
    pub(crate) commit: String,
    pub(crate) load_before: String,
    pub(crate) load_after: String,
    pub(crate) versions: BTreeMap<String, String>,
}

/// One runtime, class, level and mode.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) class: String,
    pub(crate) level: String,
    pub(crate) mode: String,
    pub(crate) runtime: String,
    pub(crate) n: usize,
    /// Decision to start to first byte; none if nothing was measured.
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) failed: usize,
    /// Order to remove to everything gone.
    pub(crate) teardown_p50_ms: Option<f64>,
    pub(crate) teardown_max_ms: Option<f64>,
    /// The walls that were seen around the process.
    pub(crate) isolation: Option<String>,
    /// The first failure's.
    pub(crate) reason: Option<String>,
}

/// Many cold starts at the same moment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Burst {
    pub(crate) n: usize,
    pub(crate) served: usize,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) total_ms: f64,
    pub(crate) reason: Option<String>,
}

/// A deployed application without containers: its workerd process. KiB.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sleeping {
    /// Its share of all that it maps.
    pub(crate) pss_kib: u64,
    /// Of that, what is no file: what each further application costs at least.
    pub(crate) anonymous_kib: u64,
}

/// Many idle containers. Memory in KiB per container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Density {
    pub(crate) n: usize,
    pub(crate) app_kib: u64,
    pub(crate) own_processes_kib: u64,
    pub(crate) kernel_kib: u64,
    pub(crate) beyond_app_kib: u64,
    pub(crate) daemon_descriptors: f64,
    pub(crate) spawner_descriptors: f64,
    pub(crate) fit_in_8_gib: u64,
    pub(crate) fit_in_descriptors: Option<u64>,
    pub(crate) fits_are_extrapolated: bool,
}

/// Starts at a rate.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sustained {
    pub(crate) asked_per_second: u32,
    pub(crate) seconds: u64,
    pub(crate) reached_per_second: f64,
    /// What as many clients reach with the bare floor.
    pub(crate) floor_per_second: Option<f64>,
    pub(crate) failed: usize,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) grown_memory_kib: i64,
    pub(crate) grown_kernel_kib: i64,
    pub(crate) grown_descriptors: i64,
    pub(crate) grown_cgroups: i64,
    pub(crate) grown_instance_directories: i64,
    pub(crate) reason: Option<String>,
}

/// Starts where there is more of something.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Growth {
    pub(crate) rows: Vec<Grown>,
}

/// Starts beside one thing of which there is more.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Grown {
    pub(crate) what: String,
    pub(crate) n: usize,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
}

/// What an instance that is started ahead costs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ahead {
    pub(crate) class: String,
    pub(crate) memory: Outcome<Standby>,
}

/// By its cgroup's account.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Standby {
    pub(crate) kib: u64,
}

/// The machine's load: 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut words = text.split(' ');
    let figures: Vec<_> = words.by_ref().take(3).collect();
    figures.join(" ")
}

impl Machine {
    /// This machine, now.
    pub(crate) fn look(commit: &str) -> Result<Machine> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let kib = meminfo
            .split_whitespace()
            .nth(1)
            .and_then(|v| v.parse::<u64>().ok())
            .context("/proc/meminfo")?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find(|l| l.starts_with("model name"));
        let cpu = model.and_then(|l| l.split_once(": ")).map_or("?", |m| m.1);
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
        let cgroup = match controllers {
            Ok(_) => "v2",
            Err(_) => "v1",
        };
        let mut versions = BTreeMap::new();
        for (name, argument) in [
            ("dockerd", "--version"),
            ("containerd", "--version"),
            ("podman", "--version"),
            ("runc", "--version"),
            ("crun", "--version"),
        ] {
            let output = Command::new(name).arg(argument).output();
            let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            let text = text.unwrap_or_else(|e| e.to_string());
            versions.insert(
                name.to_owned(),
                text.lines().next().unwrap_or("?").to_owned(),
            );
        }
        Ok(Machine {
            cpu: cpu.to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            memory_mib: kib / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            cgroup: cgroup.to_owned(),
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%d %H:%M UTC")
                .to_string(),
            commit: commit.to_owned(),
            load_before: load(),
            load_after: String::new(),
            versions,
        })
    }
}
