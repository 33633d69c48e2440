//! The fields and query parameters that Cloudflare's API takes, and what each becomes here. Pure.
//!
//! A name without a row is refused, and so is one whose lack of effect could harm. A field that
//! would be refused passes while it says nothing: null, false, zero, or empty.

use wharf_model::fields::Fate::{self, Honoured, NoMeaning, Refused};
use wharf_model::fields::{Table, Unsupported};

use crate::envelope::ApiError;

impl From<Unsupported> for ApiError {
    fn from(field: Unsupported) -> Self {
        ApiError::unsupported_but(field.what, field.remedy)
    }
}

const LOGS: &str = "the node's log has every line of every Worker and container";
const ONE_PLACE: &str = "a node is one place: it is next to itself";
const TAILS: &str = "remove it; the node's log has what Workers write";

/// The part `metadata` of an upload.
pub(crate) const UPLOAD: Table<'static> = Table {
    of: "the upload's metadata",
    fields: &[
        ("main_module", Honoured),
        ("bindings", Honoured),
        ("compatibility_date", Honoured),
        ("compatibility_flags", Honoured),
        ("migrations", Honoured),
        ("exports", Honoured),
        ("containers", Honoured),
        ("keep_bindings", Honoured),
        ("keep_assets", Honoured),
        ("annotations", Honoured),
        ("assets", Honoured),
        ("cache_options", Honoured),
        ("observability", Honoured),
        ("code_update_strategy", Honoured),
        (
            "body_part",
            Refused(
                "service-worker format scripts",
                "use `export default { fetch }`",
            ),
        ),
        ("tail_consumers", Refused("tail consumers", TAILS)),
        (
            "streaming_tail_consumers",
            Refused("streaming tail consumers", TAILS),
        ),
        ("logpush", Refused("Logpush jobs", TAILS)),
        (
            "capnp_schema",
            Refused("Cap'n Proto schemas", "remove \"unsafe.capnp\""),
        ),
        ("limits", Honoured),
        ("placement", NoMeaning(ONE_PLACE)),
        (
            "package_dependencies",
            NoMeaning("a list of npm packages for Cloudflare's statistics"),
        ),
        ("usage_model", NoMeaning("nothing is billed")),
    ],
};

/// `limits` of an upload.
pub(crate) const LIMITS: Table<'static> = Table {
    of: "\"limits\"",
    fields: &[
        // How long the Worker's JavaScript may compute without a pause.
        ("cpu_ms", Honoured),
        (
            "subrequests",
            Refused(
                "limits of the number of subrequests",
                "remove it; a Worker may make as many as it has time for",
            ),
        ),
    ],
};

/// `code_update_strategy` of an upload or a deployment. wrangler 4.164 sends it with each.
pub(crate) const CODE_UPDATE: Table<'static> = Table {
    of: "\"code_update_strategy\"",
    fields: &[
        (
            "mode",
            NoMeaning("objects move to the new code with the deploy, which both modes allow"),
        ),
        (
            "max_delay",
            NoMeaning("the longest time that an update may wait, and none waits"),
        ),
    ],
};

/// `observability` of a Worker.
pub(crate) const OBSERVABILITY: Table<'static> = Table {
    of: "\"observability\"",
    fields: &[
        ("enabled", NoMeaning(LOGS)),
        ("head_sampling_rate", NoMeaning(LOGS)),
        ("issues", NoMeaning("a view in Cloudflare's dashboard")),
        ("logs", Honoured),
        ("traces", Honoured),
        (
            "redact_query_string",
            NoMeaning("no line that the node keeps of a Worker has a request's URL"),
        ),
    ],
};

/// `observability.logs` and `observability.traces`.
pub(crate) const TELEMETRY: Table<'static> = Table {
    of: "\"observability\"",
    fields: &[
        ("enabled", NoMeaning(LOGS)),
        ("head_sampling_rate", NoMeaning(LOGS)),
        ("invocation_logs", NoMeaning(LOGS)),
        ("persist", NoMeaning(LOGS)),
        ("propagation_policy", NoMeaning("there are no traces")),
        (
            "destinations",
            Refused(
                "destinations of logs and traces",
                "remove it, and collect the node's log instead",
            ),
        ),
    ],
};

/// `assets` of an upload.
pub(crate) const ASSETS: Table<'static> = Table {
    of: "the upload's \"assets\"",
    fields: &[("jwt", Honoured), ("config", Honoured)],
};

/// `assets.config` of an upload.
pub(crate) const ASSETS_CONFIG: Table<'static> = Table {
    of: "\"assets.config\"",
    fields: &[
        ("html_handling", Honoured),
        ("not_found_handling", Honoured),
        ("run_worker_first", Honoured),
        ("_redirects", Honoured),
        ("_headers", Honoured),
        // "/" is what there is anyway.
        ("base_path", Honoured),
    ],
};

/// One of an upload's `containers`.
pub(crate) const CONTAINER: Table<'static> = Table {
    of: "the upload's \"containers\"",
    fields: &[
        ("class_name", Honoured),
        ("name", Honoured),
        ("images", Honoured),
    ],
};

/// Fields of every binding.
pub(crate) const BINDING: &[(&str, Fate)] = &[("type", Honoured), ("name", Honoured)];

/// Fields of a binding that is taken over from another version.
pub(crate) const INHERIT: &[(&str, Fate)] = &[("old_name", Honoured), ("version_id", Honoured)];

/// `script-settings`.
pub(crate) const SCRIPT_SETTINGS: Table<'static> = Table {
    of: "the script's settings",
    fields: &[
        ("tags", Honoured),
        ("observability", Honoured),
        ("tail_consumers", Refused("tail consumers", TAILS)),
        (
            "streaming_tail_consumers",
            Refused("streaming tail consumers", TAILS),
        ),
        ("logpush", Refused("Logpush jobs", TAILS)),
    ],
};

const COMMAND: &str = "give it to `start()` in the Worker, or build it into the image";
const PLACES: &str = "remove it; a node is one place, whose name is in [node] of wharf.toml";
const CLOUDCHAMBER: &str = "remove it; a container belongs to a Durable Object";

/// A container application, made or changed.
pub(crate) const APPLICATION: Table<'static> = Table {
    of: "the container application",
    fields: &[
        ("name", Honoured),
        ("configuration", Honoured),
        ("max_instances", Honoured),
        ("durable_objects", Honoured),
        ("scheduling_policy", Honoured),
        ("constraints", Honoured),
        ("affinities", Honoured),
        ("observability", Honoured),
        (
            "instances",
            Refused("fixed numbers of instances", CLOUDCHAMBER),
        ),
        ("jobs", Refused("jobs", CLOUDCHAMBER)),
        ("priorities", Refused("priorities", CLOUDCHAMBER)),
        (
            "rollout_active_grace_period",
            Refused(
                "grace periods of rollouts",
                "remove it; a rollout sends the stop signal at once, and containers.stop_grace_ms in wharf.toml is how long an instance may take to end",
            ),
        ),
    ],
};

/// `constraints` of an application.
pub(crate) const CONSTRAINTS: Table<'static> = Table {
    of: "\"constraints\"",
    fields: &[
        (
            "tier",
            NoMeaning("a class of Cloudflare's locations; wrangler sends it unasked"),
        ),
        (
            "tiers",
            NoMeaning("classes of Cloudflare's locations; wrangler sends them unasked"),
        ),
        ("region", Refused("regions", PLACES)),
        ("regions", Refused("regions", PLACES)),
        ("city", Refused("cities", PLACES)),
        ("cities", Refused("cities", PLACES)),
        ("pops", Refused("points of presence", PLACES)),
        ("jurisdiction", Refused("jurisdictions", PLACES)),
    ],
};

/// `affinities` of an application.
pub(crate) const AFFINITIES: Table<'static> = Table {
    of: "\"affinities\"",
    fields: &[
        (
            "colocation",
            NoMeaning("all instances of a node are in one place"),
        ),
        (
            "hardware_generation",
            NoMeaning("a node has one machine to choose from"),
        ),
    ],
};

/// `observability` of an application or of its configuration.
pub(crate) const APPLICATION_OBSERVABILITY: Table<'static> = Table {
    of: "the container's \"observability\"",
    fields: &[
        ("enabled", NoMeaning(LOGS)),
        ("logs", Honoured),
        ("logging", NoMeaning(LOGS)),
        ("target_instance_percentage", NoMeaning(LOGS)),
        ("target_instance_count", NoMeaning(LOGS)),
    ],
};

/// `configuration` of an application, and `target_configuration` of a rollout.
pub(crate) const CONFIGURATION: Table<'static> = Table {
    of: "the container's \"configuration\"",
    fields: &[
        ("image", Honoured),
        ("instance_type", Honoured),
        ("vcpu", Honoured),
        ("memory_mib", Honoured),
        ("disk", Honoured),
        ("wharf", Honoured),
        ("wrangler_ssh", Honoured),
        (
            "experimental_flags",
            Refused("experimental flags of containers", "remove it"),
        ),
        ("observability", Honoured),
        (
            "authorized_keys",
            NoMeaning("keys for SSH sessions, which are refused"),
        ),
        (
            "trusted_user_ca_keys",
            NoMeaning("keys for SSH sessions, which are refused"),
        ),
        (
            "ssh_public_key_ids",
            Refused(
                "SSH sessions into containers",
                "use `wharf docker exec -it`",
            ),
        ),
        (
            "memory",
            Refused("sizes as text", "use \"memory_mib\", a number"),
        ),
        (
            "environment_variables",
            Refused(
                "environment variables of an application",
                "set `envVars` of the class, or give `env` to `start()`",
            ),
        ),
        (
            "secrets",
            Refused(
                "secrets of an application",
                "use a Worker's secret (`wrangler secret put`), and give it to `start()` in `env`",
            ),
        ),
        (
            "labels",
            Refused("labels of an application", "give them to `start()`"),
        ),
        ("command", Refused("commands", COMMAND)),
        ("entrypoint", Refused("entrypoints", COMMAND)),
        (
            "network",
            Refused("networks of an application", "remove it"),
        ),
        (
            "dns",
            Refused("name servers of an application", "remove it"),
        ),
        (
            "ports",
            Refused(
                "ports of an application",
                "remove it; `ctx.container.getTcpPort()` reaches every port",
            ),
        ),
        (
            "checks",
            Refused("checks of an application", "check in the Worker"),
        ),
        ("provisioner", Refused("provisioners", CLOUDCHAMBER)),
        ("runtime", Refused("runtimes", CLOUDCHAMBER)),
    ],
};

/// `configuration.disk`.
pub(crate) const DISK: Table<'static> = Table {
    of: "\"disk\"",
    fields: &[
        ("size_mb", Honoured),
        (
            "size",
            Refused("sizes as text", "use \"size_mb\", a number"),
        ),
    ],
};

/// A rollout.
pub(crate) const ROLLOUT: Table<'static> = Table {
    of: "the rollout",
    fields: &[
        ("description", Honoured),
        ("strategy", Honoured),
        ("target_configuration", Honoured),
        ("kind", Honoured),
        (
            "steps",
            NoMeaning("all instances are rolled over in one step; wrangler sends steps unasked"),
        ),
        (
            "step_percentage",
            NoMeaning("all instances are rolled over in one step; wrangler sends it unasked"),
        ),
    ],
};
