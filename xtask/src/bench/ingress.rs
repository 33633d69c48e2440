//! `cargo xtask bench ingress`: the hop through the ingress alone, beside a direct connection to the same app, in one run.
//!
//! The figures are made by `crates/net/benches/ingress.rs`; here they get their ratios and a form.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::setup;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    exchanges: Vec<Exchanges>,
    bodies: Vec<Body>,
    waiting: Waiting,
}

#[derive(Debug, Serialize, Deserialize)]
struct Exchanges {
    way: String,
    connections: usize,
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Of the median, against `direct`.
    #[serde(default)]
    ratio: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    what: String,
    way: String,
    megabytes_per_second: f64,
    /// Against `direct`.
    #[serde(default)]
    ratio: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    load: Vec<Load>,
    noticed: Vec<Noticed>,
}

/// What connections cost that wait for a port.
#[derive(Debug, Serialize, Deserialize)]
struct Load {
    connections: usize,
    running_for_s: u64,
    percent_of_a_core: f64,
}

/// From listen(2) to the answer to a connection that waited.
#[derive(Debug, Serialize, Deserialize)]
struct Noticed {
    running_for_ms: u64,
    p50_us: f64,
    max_us: f64,
}

pub(super) fn run(seconds: u64) -> Result<Report> {
    let output = Command::new(env!("CARGO"))
        .args([
            "bench",
            "--package",
            "wharf-net",
            "--bench",
            "ingress",
            "--",
        ])
        .args(["--seconds", &seconds.to_string()])
        .current_dir(setup::root())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo bench")?;
    if !output.status.success() {
        bail!("the bench of the ingress failed");
    }
    let mut report: Report =
        serde_json::from_slice(&output.stdout).context("what the bench of the ingress printed")?;
    let direct: Vec<_> = report
        .exchanges
        .iter()
        .filter(|e| e.way == "direct")
        .map(|e| (e.connections, e.p50_us))
        .collect();
    for row in &mut report.exchanges {
        let base = direct.iter().find(|(n, _)| *n == row.connections);
        row.ratio = base.map_or(f64::NAN, |(_, p50)| row.p50_us / p50);
    }
    let direct: Vec<_> = report
        .bodies
        .iter()
        .filter(|b| b.way == "direct")
        .map(|b| (b.what.clone(), b.megabytes_per_second))
        .collect();
    for row in &mut report.bodies {
        let base = direct.iter().find(|(what, _)| *what == row.what);
        row.ratio = base.map_or(f64::NAN, |(_, speed)| row.megabytes_per_second / speed);
    }
    Ok(report)
}

pub(super) fn print(report: &Report) {
    println!(
        "{:<24} {:>5} {:>9} {:>9} {:>9} {:>7}",
        "exchange", "conns", "req/s", "p50 us", "p99 us", "ratio"
    );
    for r in &report.exchanges {
        println!(
            "{:<24} {:>5} {:>9.0} {:>9.1} {:>9.1} {:>7.2}",
            r.way, r.connections, r.requests_per_second, r.p50_us, r.p99_us, r.ratio
        );
    }
    println!("\n{:<24} {:>15} {:>23}", "large body", "MB/s", "ratio");
    for r in &report.bodies {
        let what = format!("{} {}", r.what, r.way);
        println!(
            "{what:<24} {:>15.0} {:>23.2}",
            r.megabytes_per_second, r.ratio
        );
    }
    println!(
        "\n{:<24} {:>5} {:>19}",
        "waiting for a port", "conns", "% of a core"
    );
    for r in &report.waiting.load {
        let what = format!("{} s after the start", r.running_for_s);
        println!(
            "{what:<24} {:>5} {:>19.2}",
            r.connections, r.percent_of_a_core
        );
    }
    println!(
        "\n{:<24} {:>15} {:>9}",
        "listening is noticed", "p50 us", "max us"
    );
    for r in &report.waiting.noticed {
        let what = format!("{} ms after the start", r.running_for_ms);
        println!("{what:<24} {:>15.0} {:>9.0}", r.p50_us, r.max_us);
    }
}
