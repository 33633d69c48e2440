//! The bodies of the other requests.

use super::{Field, honoured, meaningless, refused};

/// `POST /containers/{id}/exec`.
pub(crate) const EXEC: &[Field] = &[
    honoured("AttachStdin"),
    honoured("AttachStdout"),
    honoured("AttachStderr"),
    honoured("ConsoleSize"),
    meaningless(
        "DetachKeys",
        "the client goes away by closing its connection",
    ),
    honoured("Tty"),
    honoured("Env"),
    honoured("Cmd"),
    refused(
        "Privileged",
        "--privileged, privileged mode",
        "leave it out; a process has its container's walls",
    ),
    honoured("User"),
    honoured("WorkingDir"),
];

/// `POST /exec/{id}/start`. The exec's own `Tty` counts, as with Docker.
pub(crate) const EXEC_START: &[Field] = &[
    honoured("Detach"),
    meaningless("Tty", "the exec was made with a terminal or without"),
    honoured("ConsoleSize"),
];

const VOLUMES: &str = "leave it out; the volumes are workerd's snapshots alone";

/// `POST /volumes/create`.
pub(crate) const VOLUME: &[Field] = &[
    honoured("Name"),
    refused("Driver", "--driver", VOLUMES)
        .asking(|value, _| !matches!(value.as_str(), None | Some("" | "local"))),
    refused("DriverOpts", "--opt", VOLUMES),
    honoured("Labels"),
    refused("ClusterVolumeSpec", "", VOLUMES),
];

/// `POST /commit`: a container's configuration.
pub(crate) const COMMIT_MEND: &str = "leave it out; a snapshot keeps files alone";

/// `POST /auth`.
pub(crate) const AUTH: &[Field] = &[
    meaningless("username", "the password alone decides"),
    honoured("password"),
    meaningless("email", "the password alone decides"),
    honoured("serveraddress"),
    meaningless("auth", "Docker does not read it here either"),
    refused("identitytoken", "", "log in with the password"),
    refused("registrytoken", "", "log in with the password"),
];
