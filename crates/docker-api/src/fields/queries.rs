//! The parameters of queries, by operation.

use super::others::COMMIT_MEND;
use super::{Field, honoured, is_flag, is_off, meaningless, refused};

const PLATFORM: Field = refused("platform", "--platform", "images are for linux/amd64 alone")
    .asking(|value, _| !matches!(value.as_str(), None | Some("" | "linux" | "linux/amd64")));
const PLATFORMS: Field = refused(
    "platforms",
    "--platform",
    "images are for linux/amd64 alone",
);
const NO_KEYS: Field = meaningless("detachKeys", "there is no terminal to type them in");
const NO_MANIFESTS: Field = refused(
    "manifests",
    "",
    "leave it out; an image is for one platform",
)
.asking(is_flag);
const SIZE: Field = refused("size", "-s", "leave it out; sizes are not counted").asking(is_flag);

pub(crate) const CONTAINERS: &[Field] = &[
    honoured("all"),
    honoured("limit"),
    SIZE,
    honoured("filters"),
];
pub(crate) const CREATE: &[Field] = &[honoured("name"), PLATFORM];
pub(crate) const INSPECT: &[Field] = &[SIZE];
pub(crate) const LOGS: &[Field] = &[
    honoured("follow"),
    honoured("stdout"),
    honoured("stderr"),
    honoured("since"),
    honoured("until"),
    honoured("timestamps"),
    honoured("tail"),
    meaningless(
        "details",
        "they are what log options add, and these are refused",
    ),
];
pub(crate) const START: &[Field] = &[
    NO_KEYS,
    refused(
        "checkpoint",
        "--checkpoint",
        "leave it out; there are no checkpoints",
    ),
    refused(
        "checkpoint-dir",
        "--checkpoint-dir",
        "leave it out; there are no checkpoints",
    ),
];
pub(crate) const STOP: &[Field] = &[
    honoured("t"),
    refused(
        "signal",
        "-s",
        "use docker kill -s; docker stop sends the image's STOPSIGNAL",
    ),
];
pub(crate) const KILL: &[Field] = &[honoured("signal")];
pub(crate) const ATTACH: &[Field] = &[
    NO_KEYS,
    honoured("logs"),
    honoured("stream"),
    honoured("stdin"),
    honoured("stdout"),
    honoured("stderr"),
];
pub(crate) const WAIT: &[Field] = &[honoured("condition")];
pub(crate) const ARCHIVE: &[Field] = &[honoured("path")];
pub(crate) const ARCHIVE_PUT: &[Field] = &[
    honoured("path"),
    refused(
        "noOverwriteDirNonDir",
        "",
        "leave it out; look at what is there first, as docker cp does",
    )
    .asking(is_flag),
    refused(
        "copyUIDGID",
        "-a",
        "leave it out; docker cp keeps no owners",
    )
    .asking(is_flag),
];
pub(crate) const REMOVE: &[Field] = &[
    meaningless("v", "a container's volumes always go with it"),
    refused("link", "--link", "leave it out; there are no links").asking(is_flag),
    honoured("force"),
];
pub(crate) const IMAGES: &[Field] = &[
    meaningless("all", "there are no images of single build steps"),
    refused(
        "filters",
        "a name, or -f",
        "leave it out, and look for it in the whole list",
    )
    .asking(|value, _| !matches!(value.as_str(), None | Some("" | "{}"))),
    refused("shared-size", "", "leave it out; sizes are not counted").asking(is_flag),
    meaningless("digests", "they are always in the answer"),
    NO_MANIFESTS,
];
const IMPORT_MEND: &str = "leave it out; put it into a Dockerfile FROM the imported image";
pub(crate) const IMAGE_CREATE: &[Field] = &[
    honoured("fromImage"),
    honoured("fromSrc"),
    honoured("repo"),
    honoured("tag"),
    refused("message", "--message", IMPORT_MEND),
    refused("changes", "--change", IMPORT_MEND),
    PLATFORM,
];
pub(crate) const IMAGE: &[Field] = &[NO_MANIFESTS, PLATFORM];
pub(crate) const PUSH: &[Field] = &[honoured("tag"), PLATFORM];
pub(crate) const TAG: &[Field] = &[honoured("repo"), honoured("tag")];
pub(crate) const IMAGE_REMOVE: &[Field] = &[
    meaningless(
        "force",
        "a name is always taken away; what uses the image keeps its layers",
    ),
    meaningless("noprune", "an image has no parents without a name"),
    PLATFORMS,
];
pub(crate) const COMMIT: &[Field] = &[
    honoured("container"),
    honoured("repo"),
    honoured("tag"),
    refused("comment", "-m", COMMIT_MEND),
    refused("author", "-a", COMMIT_MEND),
    refused(
        "pause",
        "-p=false",
        "leave it out; files are copied while nothing runs",
    )
    .asking(is_off),
    refused("changes", "-c", COMMIT_MEND),
];
pub(crate) const RESIZE: &[Field] = &[honoured("h"), honoured("w")];
pub(crate) const VOLUMES: &[Field] = &[honoured("filters")];
pub(crate) const VOLUME_REMOVE: &[Field] = &[meaningless(
    "force",
    "there are no drivers whose failure it would hide",
)];
pub(crate) const NETWORK: &[Field] = &[
    meaningless("verbose", "of swarms, of which there are none"),
    meaningless("scope", "there is one network of this name"),
];
