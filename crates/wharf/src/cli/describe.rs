//! The status of a node for a person: one table for each kind of thing, left out where there is
//! nothing of it.
//!
//! Must not: ask the node; the status is JSON by then.

use std::time::Duration;

use serde_json::Value;

/// Stands for the URL of a Worker that has none.
const NO_ADDRESS: &str = "none (workers_dev is false; service bindings and cron reach it)";

/// The status for a person; `now` is since 1970.
pub(super) fn describe(status: &Value, now: Duration) -> String {
    let mut lines = vec![
        format!("gateway  http://{}", text(&status["gateway"])),
        format!("control  http://{}", text(&status["control"])),
    ];
    table(&mut lines, workers(list(status, "scripts")));
    table(&mut lines, containers(list(status, "instances")));
    for table_of in [standbys, snapshots, shortages] {
        let rows = table_of(status);
        if rows.len() > 1 {
            table(&mut lines, rows);
        }
    }
    let refusals = refusals(status, now);
    if refusals.len() > 1 {
        table(&mut lines, refusals);
    }
    lines.join("\n")
}

/// An empty line, and the rows with their head.
fn table(lines: &mut Vec<String>, rows: Vec<String>) {
    lines.push(String::new());
    lines.extend(rows);
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

fn first_line(value: &Value) -> Option<String> {
    Some(
        value
            .as_str()?
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
    )
}

fn list<'a>(status: &'a Value, key: &str) -> &'a [Value] {
    status[key]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn workers(scripts: &[Value]) -> Vec<String> {
    let mut rows = vec!["WORKER                   STATE     PID      CRASHES  URL".to_owned()];
    for s in scripts {
        let cell = |key: &str| text(&s[key]);
        rows.push(format!(
            "{:<24} {:<9} {:<8} {:<8} {}",
            cell("script"),
            cell("state"),
            cell("pid"),
            cell("crashes"),
            s["url"].as_str().unwrap_or(NO_ADDRESS)
        ));
        rows.extend(first_line(&s["last_error"]).map(|error| format!("  last error: {error}")));
    }
    rows
}

fn containers(instances: &[Value]) -> Vec<String> {
    let mut rows = vec![
        "CONTAINER     APPLICATION              STATE                        PID      IMAGE"
            .to_owned(),
    ];
    for i in instances {
        let cell = |key: &str| text(&i[key]);
        let id: String = cell("id").chars().take(12).collect();
        rows.push(format!(
            "{id:<13} {:<24} {:<28} {:<8} {}",
            cell("application_name"),
            cell("state"),
            cell("pid"),
            short_image(&cell("image"))
        ));
        rows.extend(first_line(&i["error"]).map(|error| format!("  error: {error}")));
    }
    rows
}

fn standbys(status: &Value) -> Vec<String> {
    let mut rows = vec!["STARTED AHEAD FOR        READY    WANTED   HANDED   MIB".to_owned()];
    for s in list(status, "standbys") {
        let cell = |key: &str| text(&s[key]);
        let bytes = s["memory_bytes"].as_u64().unwrap_or_default();
        rows.push(format!(
            "{:<24} {:<8} {:<8} {:<8} {}",
            cell("application_name"),
            cell("ready"),
            cell("wanted"),
            cell("handed"),
            bytes.div_ceil(1 << 20)
        ));
        rows.extend(
            first_line(&s["reason"]).map(|reason| format!("  fewer than wanted: {reason}")),
        );
    }
    rows
}

fn snapshots(status: &Value) -> Vec<String> {
    let mut rows = vec!["SNAPSHOTS OF             COUNT    MIB      SHARED MIB".to_owned()];
    for s in list(status, "snapshots") {
        let mib = |key: &str| s[key].as_u64().unwrap_or_default().div_ceil(1 << 20);
        rows.push(format!(
            "{:<24} {:<8} {:<8} {}",
            text(&s["owner"]),
            text(&s["count"]),
            mib("bytes"),
            mib("shared_bytes")
        ));
    }
    rows
}

fn shortages(status: &Value) -> Vec<String> {
    let mut rows = vec![
        "SHORT OF                 USED         LIMIT        RESERVE      USED MOST BY".to_owned(),
    ];
    for r in list(status, "resources")
        .iter()
        .filter(|r| r["short"] == true)
    {
        rows.push(format!(
            "{:<24} {:<12} {:<12} {:<12} {} ({} instances)",
            text(&r["resource"]),
            text(&r["used"]),
            text(&r["limit"]),
            text(&r["reserve"]),
            text(&r["most"]["name"]),
            text(&r["most"]["instances"])
        ));
    }
    rows
}

fn refusals(status: &Value, now: Duration) -> Vec<String> {
    let mut rows = vec!["LAST NOT STARTED".to_owned()];
    for r in list(status, "refusals") {
        let at_ms = r["at_ms"].as_u64().unwrap_or_default();
        let ago = now.saturating_sub(Duration::from_millis(at_ms)).as_secs();
        rows.push(format!(
            "{:<24} {ago} s ago: {}",
            text(&r["application_name"]),
            text(&r["reason"])
        ));
    }
    rows
}

/// `host/account/name@sha256:<64 hex>` as `name@sha256:<12 hex>`.
fn short_image(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once("@sha256:") {
        Some((name, hex)) => format!("{name}@sha256:{}", hex.chars().take(12).collect::<String>()),
        None => name.to_owned(),
    }
}
