//! What comes out: JSON, a table, and the table between the marks in BENCHMARKS.md.

use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- figures of `cargo xtask bench start --write`: begin -->";
const END: &str = "<!-- figures: end -->";

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) sleeping: Option<Outcome<Sleeping>>,
    pub(crate) burst: Option<Outcome<Burst>>,
    pub(crate) density: Option<Outcome<Density>>,
    pub(crate) sustained: Option<Outcome<Sustained>>,
    pub(crate) ahead: Vec<Ahead>,
}

/// A figure, or why there is none.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) cgroup: &'static str,
    pub(crate) date: String,
    pub(crate) load_before: String,
    pub(crate) load_after: String,
    pub(crate) versions: BTreeMap<String, String>,
}

/// One runtime, class, level and mode.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) class: String,
    pub(crate) level: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) runtime: &'static str,
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
#[derive(Debug, Serialize)]
pub(crate) struct Burst {
    pub(crate) n: usize,
    pub(crate) served: usize,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) total_ms: f64,
    pub(crate) reason: Option<String>,
}

/// A deployed application without containers: its workerd process. KiB.
#[derive(Debug, Serialize)]
pub(crate) struct Sleeping {
    /// Its share of all that it maps.
    pub(crate) pss_kib: u64,
    /// Of that, what is no file: what each further application costs at least.
    pub(crate) anonymous_kib: u64,
}

/// Many idle containers. Memory in KiB per container.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
pub(crate) struct Sustained {
    pub(crate) asked_per_second: u32,
    pub(crate) seconds: u64,
    pub(crate) reached_per_second: f64,
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

/// What an instance that is started ahead costs.
#[derive(Debug, Serialize)]
pub(crate) struct Ahead {
    pub(crate) class: String,
    pub(crate) memory: Outcome<Standby>,
}

/// By its cgroup's account.
#[derive(Debug, Serialize)]
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
    pub(crate) fn look() -> Result<Machine> {
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
            cgroup,
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%d %H:%M UTC")
                .to_string(),
            load_before: load(),
            load_after: String::new(),
            versions,
        })
    }
}

fn ms(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"))
}

impl Report {
    /// Markdown, and readable as it is.
    pub(crate) fn table(&self) -> String {
        let m = &self.machine;
        let mut out = format!(
            "{}. {} CPUs ({}), {} MiB, Linux {}, cgroup {}. Load {} before, {} after.\n\n",
            m.date, m.cpus, m.cpu, m.memory_mib, m.kernel, m.cgroup, m.load_before, m.load_after
        );
        for (name, version) in &m.versions {
            let _ = writeln!(out, "- {name}: {version}");
        }
        let head = [
            "class",
            "level",
            "mode",
            "runtime",
            "n",
            "p50 ms",
            "p99 ms",
            "max ms",
            "failed",
            "x floor",
            "gone p50 ms",
            "gone max ms",
        ];
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let floor = self
                .rows
                .iter()
                .find(|it| it.runtime == "floor" && it.class == row.class && it.mode == row.mode);
            let ratio = floor
                .and_then(|floor| Some(row.p50_ms? / floor.p50_ms?))
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"));
            lines.push(vec![
                row.class.clone(),
                row.level.to_owned(),
                row.mode.to_owned(),
                row.runtime.to_owned(),
                row.n.to_string(),
                ms(row.p50_ms),
                ms(row.p99_ms),
                ms(row.max_ms),
                row.failed.to_string(),
                ratio,
                ms(row.teardown_p50_ms),
                ms(row.teardown_max_ms),
            ]);
        }
        out.push('\n');
        out += &aligned(&lines);
        out += &self.notes();
        out += &self.walls();
        out
    }

    fn notes(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            if let Some(reason) = &row.reason {
                let _ = writeln!(
                    out,
                    "- {} {} {} {}: {reason}",
                    row.class, row.level, row.mode, row.runtime
                );
            }
        }
        if !out.is_empty() {
            out = format!("\nFailures (the first of each row):\n\n{out}");
        }
        match &self.burst {
            Some(Outcome::Measured(b)) => {
                let _ = write!(
                    out,
                    "\n**{} cold starts at once**, static class, whole path: {} served; first byte p50 {} ms, last {} ms; all done after {:.0} ms.{}\n",
                    b.n,
                    b.served,
                    ms(b.p50_ms),
                    ms(b.max_ms),
                    b.total_ms,
                    because(b.reason.as_deref())
                );
            }
            Some(Outcome::Failed { reason }) => {
                let _ = write!(out, "\n**Cold starts at once**: failed: {reason}\n");
            }
            None => {}
        }
        match &self.sustained {
            Some(Outcome::Measured(s)) => {
                let _ = write!(
                    out,
                    "\n**{} starts a second for {} s**, static class, engine (start, first byte, removal): {:.1}/s reached, {} failed; first byte p50 {} ms, p99 {} ms, max {} ms. Grown: \
                     engine and spawner {} KiB, kernel {} KiB, descriptors {}, cgroups {}, instance directories {}.{}\n",
                    s.asked_per_second,
                    s.seconds,
                    s.reached_per_second,
                    s.failed,
                    ms(s.p50_ms),
                    ms(s.p99_ms),
                    ms(s.max_ms),
                    s.grown_memory_kib,
                    s.grown_kernel_kib,
                    s.grown_descriptors,
                    s.grown_cgroups,
                    s.grown_instance_directories,
                    because(s.reason.as_deref())
                );
            }
            Some(Outcome::Failed { reason }) => {
                let _ = write!(out, "\n**Starts at a rate**: failed: {reason}\n");
            }
            None => {}
        }
        match &self.density {
            Some(Outcome::Measured(d)) => {
                let _ = write!(
                    out,
                    "\n**{} idle containers**, static class, whole path, per container: the app's own {} KiB, and beyond it {} KiB (daemon, spawner and workerd {} KiB, kernel {} KiB); \
                     {:.1} descriptors of the daemon, {:.1} of the spawner. Extrapolated, not run: 8 GiB hold {}",
                    d.n,
                    d.app_kib,
                    d.beyond_app_kib,
                    d.own_processes_kib,
                    d.kernel_kib,
                    d.daemon_descriptors,
                    d.spawner_descriptors,
                    d.fit_in_8_gib,
                );
                out += &match d.fit_in_descriptors {
                    Some(fit) => format!("; the daemon's limit of open files here holds {fit}.\n"),
                    None => ".\n".to_owned(),
                };
            }
            Some(Outcome::Failed { reason }) => {
                let _ = write!(out, "\n**Idle containers**: failed: {reason}\n");
            }
            None => {}
        }
        match &self.sleeping {
            Some(Outcome::Measured(s)) => {
                let _ = write!(
                    out,
                    "\n**A sleeping application** (deployed, no container) is its workerd process: {} KiB, of which {} KiB are no file.\n",
                    s.pss_kib, s.anonymous_kib
                );
            }
            Some(Outcome::Failed { reason }) => {
                let _ = write!(out, "\n**A sleeping application**: failed: {reason}\n");
            }
            None => {}
        }
        let ahead = self.ahead.iter().map(|it| match &it.memory {
            Outcome::Measured(standby) => format!("{} {} KiB", it.class, standby.kib),
            Outcome::Failed { reason } => format!("{} failed: {reason}", it.class),
        });
        let ahead: Vec<_> = ahead.collect();
        if !ahead.is_empty() {
            let _ = write!(
                out,
                "\n**An instance started ahead** holds, by its cgroup's account: {}.\n",
                ahead.join("; ")
            );
        }
        out
    }

    /// Each runtime's walls, as seen; of the first class that shows them.
    fn walls(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for row in &self.rows {
            let Some(walls) = &row.isolation else {
                continue;
            };
            let head = format!("- {} {}: ", row.level, row.runtime);
            if !lines.iter().any(|line| line.starts_with(&head)) {
                lines.push(format!("{head}{walls}"));
            }
        }
        format!(
            "\nWalls around the app, as seen from outside:\n\n{}\n",
            lines.join("\n")
        )
    }

    /// Puts the table between the marks of a file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let (head, rest) = text
            .split_once(BEGIN)
            .with_context(|| format!("{} has no line {BEGIN:?}", path.display()))?;
        let (_, tail) = rest
            .split_once(END)
            .with_context(|| format!("{} has no line {END:?}", path.display()))?;
        let text = format!("{head}{BEGIN}\n\n{}\n{END}{tail}", self.table());
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" A failure: {reason}"))
}

/// A Markdown table with columns of one width.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        lines
            .iter()
            .map(|l| l[column].len())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<_> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0..4 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if i == 0 {
            let rules: Vec<_> = widths
                .iter()
                .enumerate()
                .map(|(column, width)| match column {
                    0..4 => "-".repeat(*width),
                    _ => format!("{}:", "-".repeat(width - 1)),
                })
                .collect();
            let _ = writeln!(out, "| {} |", rules.join(" | "));
        }
    }
    out
}
