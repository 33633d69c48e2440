//! The report for people: a table, printed, and put between the marks in BENCHMARKS.md.
//!
//! Owns: which runs the file shows. The runs' data is in a JSON file beside it, and of each class the newest run is shown: all five take an
//! hour and a half, and runtimes are only compared within a class. Must not: measure.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::growth::ALONE;
use crate::report::{Grown, Machine, Outcome, Report, Row};

const BEGIN: &str = "<!-- figures of `cargo xtask bench start --write`: begin -->";
const END: &str = "<!-- figures: end -->";

/// In this order, whichever run is older.
const CLASSES: [&str; 5] = ["static", "busybox", "python", "node", "numpy"];

fn ms(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"))
}

/// Markdown, and readable as it is. Of each class there is one run at most.
pub(crate) fn table(runs: &[Report]) -> String {
    let mut out = String::new();
    for run in runs {
        out += &conditions(run, runs.len() > 1);
    }
    let mut versions = "";
    let lists: Vec<_> = runs.iter().map(|run| list(&run.machine)).collect();
    for list in &lists {
        if list != versions {
            let _ = write!(out, "\n{list}");
        }
        versions = list;
    }
    let mut rows: Vec<&Row> = runs.iter().flat_map(|run| &run.rows).collect();
    rows.sort_by_key(|row| CLASSES.iter().position(|class| *class == row.class));
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
    for row in &rows {
        let floor = rows
            .iter()
            .find(|it| it.runtime == "floor" && it.class == row.class && it.mode == row.mode);
        let ratio = floor
            .and_then(|floor| Some(row.p50_ms? / floor.p50_ms?))
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"));
        lines.push(vec![
            row.class.clone(),
            row.level.clone(),
            row.mode.clone(),
            row.runtime.clone(),
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
    out += &aligned(&lines, 4);
    out += &failures(&rows);
    for run in runs {
        out += &notes(run);
    }
    out += &walls(&rows);
    out
}

/// When and where; which classes, if that is to be told.
fn conditions(run: &Report, name: bool) -> String {
    let m = &run.machine;
    let mut out = String::new();
    if name {
        let mut classes: Vec<_> = run.rows.iter().map(|row| row.class.as_str()).collect();
        classes.dedup();
        let _ = write!(out, "- {}: ", classes.join(", "));
    }
    let _ = writeln!(
        out,
        "{}, commit {}. {} CPUs ({}), {} MiB, Linux {}, cgroup {}. Load {} before, {} after.",
        m.date,
        m.commit,
        m.cpus,
        m.cpu,
        m.memory_mib,
        m.kernel,
        m.cgroup,
        m.load_before,
        m.load_after
    );
    out
}

fn list(machine: &Machine) -> String {
    let lines = machine
        .versions
        .iter()
        .map(|(name, version)| format!("- {name}: {version}\n"));
    lines.collect()
}

fn failures(rows: &[&Row]) -> String {
    let mut out = String::new();
    for row in rows {
        if let Some(reason) = &row.reason {
            let _ = writeln!(
                out,
                "- {} {} {} {}: {reason}",
                row.class, row.level, row.mode, row.runtime
            );
        }
    }
    match out.is_empty() {
        true => out,
        false => format!("\nFailures (the first of each row):\n\n{out}"),
    }
}

fn notes(run: &Report) -> String {
    let mut out = String::new();
    match &run.burst {
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
    match &run.sustained {
        Some(Outcome::Measured(s)) => {
            let _ = write!(
                out,
                "\n**{} starts a second for {} s**, static class, engine (start, first byte, removal): {:.1}/s reached{}, {} failed; first byte p50 {} ms, p99 {} ms, max {} ms. Grown: \
                 engine and spawner {} KiB, kernel {} KiB, descriptors {}, cgroups {}, instance directories {}.{}\n",
                s.asked_per_second,
                s.seconds,
                s.reached_per_second,
                s.floor_per_second.map_or_else(String::new, |floor| {
                    let ratio = floor / s.reached_per_second;
                    format!(" (the floor: {floor:.0}/s, {ratio:.1} times as many)")
                }),
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
    match &run.growth {
        Some(Outcome::Measured(growth)) => {
            out += "\n**Starts where there is more of something**, static class, engine, isolated:\n\n";
            out += &growth_table(&growth.rows);
        }
        Some(Outcome::Failed { reason }) => {
            let _ = write!(out, "\n**Starts where there is more**: failed: {reason}\n");
        }
        None => {}
    }
    match &run.density {
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
    match &run.sleeping {
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
    let ahead = run.ahead.iter().map(|it| match &it.memory {
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

/// With the mean of all that were measured alone.
fn growth_table(rows: &[Grown]) -> String {
    let head = [
        "beside",
        "n",
        "p50 ms",
        "p99 ms",
        "max ms",
        "p50 against alone",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let alone = rows.iter().filter(|row| row.what == ALONE);
    let alone: Vec<f64> = alone.filter_map(|row| row.p50_ms).collect();
    let alone = alone.iter().sum::<f64>() / alone.len() as f64;
    for row in rows {
        lines.push(vec![
            row.what.clone(),
            row.n.to_string(),
            ms(row.p50_ms),
            ms(row.p99_ms),
            ms(row.max_ms),
            row.p50_ms
                .map_or_else(|| "-".to_owned(), |own| format!("{:.2}", own / alone)),
        ]);
    }
    aligned(&lines, 1)
}

/// Each runtime's walls, as seen; of the first class that shows them.
fn walls(rows: &[&Row]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
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

/// Puts a run between the marks of a Markdown file, and into the JSON file of the same name, in place of what older ones have of its classes.
pub(crate) fn write(run: Report, path: &Path) -> Result<()> {
    let data = path.with_extension("json");
    let mut runs: Vec<Report> = match fs::read(&data) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{}: not what this program writes; remove it to begin anew",
                data.display()
            )
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| data.display().to_string()),
    };
    for older in &mut runs {
        give_way(older, &run);
    }
    runs.retain(|older| !older.rows.is_empty());
    runs.push(run);

    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (head, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("{} has no line {BEGIN:?}", path.display()))?;
    let (_, tail) = rest
        .split_once(END)
        .with_context(|| format!("{} has no line {END:?}", path.display()))?;
    let text = format!("{head}{BEGIN}\n\n{}\n{END}{tail}", table(&runs));
    fs::write(&data, serde_json::to_string_pretty(&runs)? + "\n")
        .with_context(|| data.display().to_string())?;
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// Removes from an older run what the newer one has.
fn give_way(older: &mut Report, newer: &Report) {
    let has = |class: &str| newer.rows.iter().any(|row| row.class == class);
    older.rows.retain(|row| !has(&row.class));
    older.ahead.retain(|it| !has(&it.class));
    // These are of the machine or of the run's first class.
    older.sleeping.take_if(|_| newer.sleeping.is_some());
    older.burst.take_if(|_| newer.burst.is_some());
    older.density.take_if(|_| newer.density.is_some());
    older.sustained.take_if(|_| newer.sustained.is_some());
    older.growth.take_if(|_| newer.growth.is_some());
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" A failure: {reason}"))
}

/// A Markdown table with columns of one width; the first `words` are no figures.
fn aligned(lines: &[Vec<String>], words: usize) -> String {
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
                column if column < words => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if i == 0 {
            let rules: Vec<_> = widths
                .iter()
                .enumerate()
                .map(|(column, width)| match column {
                    column if column < words => "-".repeat(*width),
                    _ => format!("{}:", "-".repeat(width - 1)),
                })
                .collect();
            let _ = writeln!(out, "| {} |", rules.join(" | "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(date: &str, classes: &[&str], burst: bool) -> Report {
        let rows: Vec<_> = classes
            .iter()
            .map(|class| {
                json!({"class": class, "level": "engine", "mode": "isolated", "runtime": "floor", "n": 300,
                    "p50_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0, "failed": 0})
            })
            .collect();
        let burst = burst.then(|| json!({"n": 100, "served": 100, "total_ms": 900.0}));
        serde_json::from_value(json!({
            "machine": {"cpu": "a CPU", "cpus": 2, "memory_mib": 1, "kernel": "6", "cgroup": "v1", "date": date, "commit": "abc",
                "load_before": "0", "load_after": "0", "versions": {}},
            "rows": rows, "burst": burst, "ahead": [],
        }))
        .unwrap()
    }

    #[test]
    fn of_each_class_the_newest_run_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("BENCHMARKS.md");
        fs::write(&path, format!("before\n{BEGIN}\nsunday\n{END}\nafter\n")).unwrap();
        for run in [
            run("monday", &["node", "static"], true),
            run("tuesday", &["numpy", "node"], false),
            run("wednesday", &["static"], true),
        ] {
            write(run, &path).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("before\n{BEGIN}\n")));
        assert!(text.ends_with(&format!("{END}\nafter\n")));
        assert!(
            !text.contains("monday") && !text.contains("sunday"),
            "{text}"
        );
        assert!(text.contains("- numpy, node: tuesday"), "{text}");
        assert!(text.contains("- static: wednesday"), "{text}");
        assert_eq!(text.matches("100 cold starts at once").count(), 1);
        let rows = ["| static ", "| node ", "| numpy "].map(|row| text.find(row).unwrap());
        assert!(rows.is_sorted(), "{text}");
    }

    #[test]
    fn a_file_of_others_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("BENCHMARKS.md");
        fs::write(&path, format!("{BEGIN}\n{END}\n")).unwrap();
        let data = dir.path().join("BENCHMARKS.json");
        fs::write(&data, "{}").unwrap();
        let error = write(run("monday", &["static"], false), &path).unwrap_err();
        assert!(error.to_string().contains("remove it to begin anew"));
        assert_eq!(fs::read_to_string(&data).unwrap(), "{}");
    }
}
