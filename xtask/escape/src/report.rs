//! The table.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::case::Case;
use crate::class::Class;

/// What became of a probe.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    probe: &'static str,
    about: &'static str,
    class: &'static str,
    expected: Vec<&'static str>,
    seen: String,
    /// What is another on the host than it was before.
    host_changed: Vec<String>,
    weakening: &'static str,
    succeeds: Vec<&'static str>,
    weakened: Option<String>,
    unshown: Option<String>,
    holds: bool,
    shown: bool,
    /// Both runs, milliseconds.
    took_ms: u128,
}

impl Row {
    pub(crate) fn held(
        class: Class,
        case: &Case,
        seen: String,
        host_changed: Vec<String>,
        took: Duration,
    ) -> Row {
        Row {
            probe: case.name,
            about: case.about,
            class: class.name(),
            expected: case.expected.clone(),
            holds: case.holds(class, &seen) && host_changed.is_empty(),
            seen,
            took_ms: took.as_millis(),
            host_changed,
            weakening: case.weakening,
            succeeds: case.succeeds.clone(),
            weakened: None,
            unshown: case.unshown.clone(),
            shown: case.unshown.is_some() || class != Class::Namespace,
        }
    }

    /// On this machine there is nothing to try.
    pub(crate) fn skipped(class: Class, case: &Case, reason: &str) -> Row {
        let mut row = Row::held(class, case, String::new(), Vec::new(), Duration::ZERO);
        (row.holds, row.shown) = (true, true);
        row.unshown = Some(reason.to_owned());
        row
    }

    pub(crate) fn weakened(&mut self, seen: String, lacking: Option<&str>, took: Duration) {
        self.took_ms += took.as_millis();
        if lacking == Some(seen.as_str()) {
            self.unshown = Some("this kernel has no such thing".to_owned());
            self.shown = true;
            return;
        }
        self.shown = self.succeeds.contains(&seen.as_str());
        self.weakened = Some(seen);
    }

    pub(crate) fn is_good(&self) -> bool {
        self.holds && self.shown
    }

    fn line(&self) -> [String; 6] {
        let weakened = match (&self.weakened, &self.unshown) {
            (Some(seen), _) => format!("{seen} ({})", self.weakening),
            (None, Some(reason)) => format!("cannot be shown: {reason}"),
            (None, None) => "-".to_owned(),
        };
        let mut seen = self.seen.clone();
        if !self.host_changed.is_empty() {
            seen.push_str(&format!("; HOST CHANGED: {}", self.host_changed.join(", ")));
        }
        let verdict = match (self.holds, self.shown) {
            (true, true) => "ok",
            (false, _) => "ESCAPED OR DIFFERS",
            (true, false) => "NOT SHOWN TO SUCCEED",
        };
        [
            self.probe.to_owned(),
            self.class.to_owned(),
            self.expected.join("|"),
            seen,
            weakened,
            verdict.to_owned(),
        ]
    }
}

/// A class that cannot be tried has passed nothing.
pub(crate) fn unavailable(class: Class, reason: &str, json: bool) {
    match json {
        true => println!(
            "{}",
            serde_json::json!({"class": class.name(), "unavailable": reason})
        ),
        false => println!("class {}: not tried: {reason}", class.name()),
    }
}

pub(crate) fn print(rows: &[Row], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(rows)?);
        return Ok(());
    }
    let head = [
        "probe",
        "class",
        "expected",
        "seen",
        "weakened: seen",
        "verdict",
    ]
    .map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head)
        .chain(rows.iter().map(Row::line))
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|l| l[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    let good = rows.iter().filter(|row| row.is_good()).count();
    let unshown = rows.iter().filter(|row| row.unshown.is_some()).count();
    println!(
        "{good} of {} hold and are shown to succeed where weakened; {unshown} of them cannot be shown",
        rows.len()
    );
    Ok(())
}
