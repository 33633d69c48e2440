//! Docker's JSON for containers, and how times are written in it.

use serde_json::{Value, json};
use wharf_engine::Inspect;
use wharf_engine::lifecycle::State;

use crate::ports;
use crate::script::security::NO_NEW_PRIVILEGES;

/// What Docker writes for a time that has not come.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 in UTC with milliseconds.
pub fn time(unix_ms: Option<i64>) -> String {
    unix_ms
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| NO_TIME.to_owned(), |time| format!("{time:.3}"))
}

/// Docker's word for a state.
pub(crate) fn status(state: &State) -> &'static str {
    match state {
        State::Created | State::Starting => "created",
        // Docker has no word for a container that was asked to stop: it still runs.
        State::Running | State::Stopping => "running",
        State::Exited(_) => "exited",
        State::Removed => "removing",
    }
}

/// `State` of a container.
fn state(container: &Inspect) -> Value {
    let exit = match &container.state {
        State::Exited(exit) => Some(*exit),
        _ => None,
    };
    let status = status(&container.state);
    json!({
        "Status": status,
        "Running": status == "running",
        "Paused": false,
        "Restarting": false,
        "OOMKilled": exit.is_some_and(|exit| exit.oom_killed),
        "Dead": false,
        "Pid": container.pid.unwrap_or(0),
        "ExitCode": exit.map_or(0, |exit| exit.code),
        "Error": error(container),
        "StartedAt": time(container.started_ms),
        "FinishedAt": time(container.finished_ms),
    })
}

/// Why it did not start, or an end that neither it nor its user has brought about.
fn error(container: &Inspect) -> String {
    let ended = matches!(container.state, State::Exited(_));
    match (&container.error, container.ended_by) {
        (Some(error), _) => error.clone(),
        (None, Some(by)) if ended && !by.is_expected() => format!("ended by {}", by.describe()),
        _ => String::new(),
    }
}

/// `GET /containers/<id>/json`. `image` is the name to show.
pub(crate) fn container(container: &Inspect, image: &str) -> Value {
    let short = container.id.get(..12).unwrap_or(&container.id);
    json!({
        "Id": container.id,
        "Name": format!("/{}", container.name),
        "Created": time(Some(container.created_ms)),
        "Path": container.argv.first().map_or("", String::as_str),
        "Args": container.argv.get(1..).unwrap_or_default(),
        "Image": container.image_id,
        "State": state(container),
        "RestartCount": 0,
        "Driver": "overlay2",
        "Platform": "linux",
        "Config": {
            "Hostname": container.surroundings.hostname.as_deref().unwrap_or(short),
            "Image": image,
            "Env": container.env,
            "Cmd": container.argv,
            "Labels": container.labels,
        },
        "NetworkSettings": { "Ports": ports::settings(&container.published), "Networks": {} },
        "HostConfig": {
            "Runtime": container.isolation.as_str(),
            "ReadonlyRootfs": container.surroundings.read_only,
            "SecurityOpt": container.no_new_privileges.then_some([NO_NEW_PRIVILEGES]),
        },
        "Mounts": [],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(None), NO_TIME);
        assert_eq!(time(Some(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(Some(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
    }
}
