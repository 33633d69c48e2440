//! From what a script shall run to workerd's configuration: the text, the files beside it, the environment with the secrets.
//!
//! Owns: the shape of a process's folder and of its config (contract: workerd, 1.1, 4, 5; workerd.capnp of the pinned binary).
//! Must not: do I/O; [`Plan`] is a description that `folder` carries out.
//!
//! ```text
//! <run>/<process>/            0700, owned by the script's user id
//!   config.capnp              0600
//!   m/0 m/1 ...               modules, as embedded by the config
//!   assets/...                static assets under their URL paths
//!   http.sock                 requests: the router of the assets in front of the Worker, or the Worker
//!   disp.sock                 scheduled events, through the dispatcher Worker
//!   rpc-0.sock rpc-1.sock     what other scripts' service bindings reach: the default entrypoint, then named ones
//!   svc-0.sock ...            this script's bindings to other scripts; the daemon listens
//!   docker.sock               the container engine; the daemon listens
//!   engine.sock               what workerd does not send to the engine (`prelude`); the daemon listens
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use wharf_bindings::{Entry, WorkerdBinding};
use wharf_model::names::APPLICATION_IMAGE;
use wharf_model::{Binding, ModuleKind, Version};

use crate::prelude;
use crate::text::{quote, quote_list};
use crate::{CF_BLOB_HEADER, Desired, FORWARDED_PROTO_HEADER};

/// Host of the `CONNECT` request that opens a Cap'n Proto connection between two scripts' processes.
pub const CONNECT_HOST: &str = "wharf";
/// Image name by which the engine recognises the creation of a sidecar.
pub const SIDECAR_IMAGE: &str = "wharf:sidecar";
/// Cloudflare's default when an upload names no date.
const OLDEST_COMPATIBILITY_DATE: &str = "2021-11-02";

/// The Worker that turns a POST into a `scheduled` event: such events can't be sent over a socket otherwise (contract: workerd, 4).
const DISPATCHER: &str = r#"export default {
  async fetch(request, env) {
    // The watchdog asks.
    if (request.method === "GET") return new Response(null, { status: 204 });
    const { cron, scheduledTime } = await request.json();
    return Response.json(await env.APP.scheduled({ cron, scheduledTime: new Date(scheduledTime) }));
  },
};
"#;

/// Places and choices of one process.
#[derive(Debug, Clone)]
pub struct Place {
    /// The process's folder.
    pub dir: PathBuf,
    /// Durable Object storage; `None` keeps objects in memory (for a trial start).
    pub storage: Option<PathBuf>,
    /// Whether Workers may connect to private addresses.
    pub allow_private: bool,
}

/// A file of the process's folder with the blob it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFile {
    /// Relative path.
    pub path: PathBuf,
    /// The blob's hash.
    pub blob: String,
}

/// A binding to another script: the daemon listens on `socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// File name of the socket.
    pub socket: String,
    /// The script that is called.
    pub service: String,
    /// What of it.
    pub entry: Entry,
}

/// Everything that a process needs, as data.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Text of `config.capnp`; the constant's name is `config`.
    pub config: String,
    /// Modules and assets.
    pub files: Vec<BlobFile>,
    /// `KEY=value`: the secrets.
    pub env: Vec<String>,
    /// Names of the sockets workerd listens on; each is reported once it does.
    pub listens: BTreeSet<String>,
    /// Where other scripts reach what; file names of sockets.
    pub entries: BTreeMap<Entry, String>,
    /// Bindings to other scripts.
    pub outgoing: Vec<Outgoing>,
    /// Whether the process needs the engine's sockets.
    pub containers: bool,
}

/// A version that cannot be configured; the text names the mistake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Makes the plan of a process. `entries` are those that other scripts bind, besides the default one.
pub fn plan(
    desired: &Desired,
    place: &Place,
    entries: &BTreeSet<Entry>,
) -> Result<Plan, ConfigError> {
    let version = &desired.version;
    let has_code = !version.modules.is_empty();
    if !has_code && version.assets.is_none() {
        return Err(ConfigError(format!(
            "Worker \"{}\" has neither code nor static assets",
            version.script
        )));
    }
    let mut plan = Plan {
        config: String::new(),
        files: Vec::new(),
        env: Vec::new(),
        listens: BTreeSet::new(),
        entries: BTreeMap::new(),
        outgoing: Vec::new(),
        containers: !version.container_classes.is_empty(),
    };
    let mut services = Vec::new();
    if has_code {
        services.push(worker(desired, place, &mut plan)?);
        services.push(format!(
            "(name = \"dispatcher\", worker = (modules = [(name = \"dispatcher.js\", esModule = {})], compatibilityDate = \"2026-01-01\", \
             compatibilityFlags = [\"service_binding_extra_handlers\"], bindings = [(name = \"APP\", service = \"main\")]))",
            quote(DISPATCHER)
        ));
    }
    if let Some(assets) = &version.assets {
        services.push(assets_service(version, assets, place, &mut plan)?);
    }
    let allow = if place.allow_private {
        "[\"public\", \"private\"]"
    } else {
        "[\"public\"]"
    };
    services.push(format!(
        "(name = \"internet\", network = (allow = {allow}, tlsOptions = (trustBrowserCas = true)))"
    ));
    if let (Some(storage), false) = (&place.storage, desired.namespaces.is_empty()) {
        services.push(format!(
            "(name = \"storage\", disk = (path = {}, writable = true))",
            quote_path(storage)?
        ));
    }
    if has_prelude(version) {
        services.push(format!(
            "(name = {}, external = (address = {}, http = ()))",
            quote(prelude::ENGINE_SOCKET),
            unix(place, prelude::ENGINE_SOCKET)?
        ));
    }
    for outgoing in &plan.outgoing {
        services.push(format!(
            "(name = {}, external = (address = {}, http = ({})))",
            quote(&outgoing.socket),
            unix(place, &outgoing.socket)?,
            hop_options(true)
        ));
    }

    let front = if version.assets.is_some() {
        "assets"
    } else {
        "main"
    };
    let mut sockets = vec![socket(
        place,
        "http",
        &hop_options(false),
        &quote(front),
        &mut plan,
    )?];
    if has_code {
        sockets.push(socket(place, "disp", "", "\"dispatcher\"", &mut plan)?);
    }
    let default = Entry::default();
    let all = std::iter::once(&default).chain(entries.iter().filter(|e| **e != default));
    for (number, entry) in all.enumerate() {
        if !has_code && entry.entrypoint.is_some() {
            continue;
        }
        let name = format!("rpc-{number}");
        let service = designator(front, entry);
        sockets.push(socket(
            place,
            &name,
            &hop_options(true),
            &service,
            &mut plan,
        )?);
        plan.entries.insert(entry.clone(), format!("{name}.sock"));
    }

    plan.config = format!(
        "using Workerd = import \"/workerd/workerd.capnp\";\n\nconst config :Workerd.Config = (\n  services = [\n    {},\n  ],\n  sockets = [\n    {},\n  ],\n);\n",
        services.join(",\n    "),
        sockets.join(",\n    ")
    );
    Ok(plan)
}

/// The default entrypoint is reached through the assets' router, as on Cloudflare; a named one directly.
fn designator(front: &str, entry: &Entry) -> String {
    let mut out = match &entry.entrypoint {
        None => format!("(name = {}", quote(front)),
        Some(name) => format!("(name = \"main\", entrypoint = {}", quote(name)),
    };
    if let Some(props) = &entry.props {
        // Writing to a String cannot fail.
        let _ = write!(out, ", props = (json = {})", quote(props));
    }
    out.push(')');
    out
}

fn hop_options(capnp: bool) -> String {
    let connect = if capnp {
        format!(", capnpConnectHost = {}", quote(CONNECT_HOST))
    } else {
        String::new()
    };
    format!(
        "cfBlobHeader = {}, forwardedProtoHeader = {}{connect}",
        quote(CF_BLOB_HEADER),
        quote(FORWARDED_PROTO_HEADER)
    )
}

fn socket(
    place: &Place,
    name: &str,
    options: &str,
    service: &str,
    plan: &mut Plan,
) -> Result<String, ConfigError> {
    plan.listens.insert(name.to_owned());
    Ok(format!(
        "(name = {}, address = {}, http = ({options}), service = {service})",
        quote(name),
        unix(place, &format!("{name}.sock"))?
    ))
}

fn unix(place: &Place, file: &str) -> Result<String, ConfigError> {
    let path = place.dir.join(file);
    let path = path_text(&path)?;
    Ok(quote(&format!("unix:{path}")))
}

fn quote_path(path: &Path) -> Result<String, ConfigError> {
    Ok(quote(path_text(path)?))
}

fn path_text(path: &Path) -> Result<&str, ConfigError> {
    path.to_str().ok_or_else(|| {
        ConfigError(format!(
            "the path {} is not UTF-8; choose another data directory",
            path.display()
        ))
    })
}

fn worker(desired: &Desired, place: &Place, plan: &mut Plan) -> Result<String, ConfigError> {
    let version = &desired.version;
    let mut modules = modules(version, plan)?;
    let mut bindings = Vec::new();
    if has_prelude(version) {
        let before = prelude_modules(desired)?;
        modules.splice(0..0, before);
        bindings.push(format!(
            "(name = {}, service = {})",
            quote(prelude::BINDING),
            quote(prelude::ENGINE_SOCKET)
        ));
    }
    for binding in &version.bindings {
        let value = binding_value(binding, desired, plan)?;
        bindings.push(format!("(name = {}, {value})", quote(binding.name())));
    }
    let mut out = format!(
        "(name = \"main\", worker = (modules = [{}], compatibilityDate = {}, compatibilityFlags = {}, bindings = [{}], globalOutbound = \"internet\"",
        modules.join(", "),
        quote(compatibility_date(version)),
        quote_list(&version.compatibility_flags),
        bindings.join(", ")
    );
    if !desired.namespaces.is_empty() {
        let mut namespaces = Vec::new();
        for (class, namespace) in &desired.namespaces {
            let container = if version.container_classes.contains(class) {
                format!(", container = ({})", images(version, class))
            } else {
                String::new()
            };
            namespaces.push(format!(
                "(className = {}, uniqueKey = {}, enableSql = {}{container})",
                quote(class),
                quote(&namespace.unique_key),
                namespace.use_sqlite
            ));
        }
        let storage = match place.storage {
            Some(_) => "(localDisk = \"storage\")",
            None => "(inMemory = void)",
        };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            ", durableObjectNamespaces = [{}], durableObjectStorage = {storage}",
            namespaces.join(", ")
        );
    }
    for class in &version.container_classes {
        if !desired.namespaces.contains_key(class) {
            return Err(ConfigError(format!(
                "class \"{class}\" has a container but no Durable Object namespace; add it to `migrations`"
            )));
        }
    }
    if plan.containers {
        let _ = write!(
            out,
            ", containerEngine = (localDocker = (socketPath = {}, containerEgressInterceptorImage = {}))",
            unix(place, "docker.sock")?,
            quote(SIDECAR_IMAGE)
        );
    }
    out.push_str("))");
    Ok(out)
}

/// What a class's container starts from: its application's image, or one that the start chooses (`ctx.container.images` has the choice).
/// An application without an image of its own has the first name too: the engine refuses a start that names no image with the reason,
/// which workerd, without a name, would keep to itself.
fn images(version: &Version, class: &str) -> String {
    let mut out = format!("imageName = {}", quote(APPLICATION_IMAGE));
    if let Some(images) = version.named_images(class) {
        let images: Vec<String> = images
            .iter()
            .map(|(name, image)| format!("(name = {}, image = {})", quote(name), quote(image)))
            .collect();
        // Writing to a String cannot fail.
        let _ = write!(out, ", images = [{}]", images.join(", "));
    }
    out
}

/// Whether the upload gets modules before its own. Only an ES module exports classes by name.
fn has_prelude(version: &Version) -> bool {
    let es =
        |m: &wharf_model::Module| m.name == version.main_module && m.kind == ModuleKind::EsModule;
    !version.container_classes.is_empty() && version.modules.iter().any(es)
}

fn prelude_modules(desired: &Desired) -> Result<[String; 2], ConfigError> {
    let version = &desired.version;
    for name in [prelude::MAIN, prelude::CARRY] {
        if version.modules.iter().any(|m| m.name == name) {
            return Err(ConfigError(format!(
                "the module name \"{name}\" is Wharf's own; give that module another name"
            )));
        }
    }
    if version
        .bindings
        .iter()
        .any(|b| b.name() == prelude::BINDING)
    {
        return Err(ConfigError(format!(
            "the binding name \"{}\" is Wharf's own; give that binding another name",
            prelude::BINDING
        )));
    }
    let classes = version.container_classes.iter().filter_map(|class| {
        let namespace = desired.namespaces.get(class)?;
        Some((class.as_str(), namespace.unique_key.as_str()))
    });
    let main = prelude::main_module(&version.main_module, classes);
    Ok([
        (prelude::MAIN, main.as_str()),
        (prelude::CARRY, prelude::CARRY_TEXT),
    ]
    .map(|(name, text)| format!("(name = {}, esModule = {})", quote(name), quote(text))))
}

fn compatibility_date(version: &Version) -> &str {
    if version.compatibility_date.is_empty() {
        OLDEST_COMPATIBILITY_DATE
    } else {
        &version.compatibility_date
    }
}

fn modules(version: &Version, plan: &mut Plan) -> Result<Vec<String>, ConfigError> {
    // workerd takes the first module for the main one.
    let main = version
        .modules
        .iter()
        .position(|m| m.name == version.main_module)
        .ok_or_else(|| {
            ConfigError(format!(
                "the entry module \"{}\" is not among the uploaded modules",
                version.main_module
            ))
        })?;
    let rest = version
        .modules
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != main)
        .map(|(_, m)| m);
    let mut out = Vec::with_capacity(version.modules.len());
    for (number, module) in std::iter::once(&version.modules[main])
        .chain(rest)
        .enumerate()
    {
        let field = match module.kind {
            ModuleKind::EsModule => "esModule",
            ModuleKind::CommonJs => "commonJsModule",
            ModuleKind::Wasm => "wasm",
            ModuleKind::Data => "data",
            ModuleKind::Text => "text",
            ModuleKind::Json => "json",
        };
        let path = format!("m/{number}");
        out.push(format!(
            "(name = {}, {field} = embed {})",
            quote(&module.name),
            quote(&path)
        ));
        plan.files.push(BlobFile {
            path: path.into(),
            blob: module.blob.clone(),
        });
    }
    Ok(out)
}

/// A binding's value, as workerd's configuration writes it.
fn binding_value(
    binding: &Binding,
    desired: &Desired,
    plan: &mut Plan,
) -> Result<String, ConfigError> {
    let worker = wharf_bindings::Worker {
        version: &desired.version,
        namespaces: &desired.namespaces,
    };
    let configured = wharf_bindings::kind_of(binding).configure(binding, &worker);
    Ok(match configured.map_err(ConfigError)? {
        WorkerdBinding::Text(text) => format!("text = {}", quote(&text)),
        WorkerdBinding::Json(json) => format!("json = {}", quote(&json.to_string())),
        WorkerdBinding::FromEnvironment(text) => {
            let variable = format!("WHARF_SECRET_{}", plan.env.len());
            plan.env.push(format!("{variable}={text}"));
            format!("fromEnvironment = {}", quote(&variable))
        }
        WorkerdBinding::DurableObjectNamespace(class) => {
            format!("durableObjectNamespace = {}", quote(&class))
        }
        WorkerdBinding::OwnService(entry) => {
            let front = match desired.version.assets {
                Some(_) => "assets",
                None => "main",
            };
            format!("service = {}", designator(front, &entry))
        }
        WorkerdBinding::OtherService(service, entry) => {
            let socket = format!("svc-{}.sock", plan.outgoing.len());
            plan.outgoing.push(Outgoing {
                socket: socket.clone(),
                service,
                entry,
            });
            format!("service = {}", quote(&socket))
        }
        WorkerdBinding::Assets => {
            "service = (name = \"assets\", entrypoint = \"AssetWorker\")".to_owned()
        }
    })
}

fn assets_service(
    version: &Version,
    assets: &wharf_model::Assets,
    place: &Place,
    plan: &mut Plan,
) -> Result<String, ConfigError> {
    for file in &assets.files {
        plan.files.push(BlobFile {
            path: asset_path(&file.path)?,
            blob: file.blob.clone(),
        });
    }
    let mut config = serde_json::Map::new();
    if let Some(given) = assets.config.as_object() {
        // The upload's names on the left, workerd's on the right.
        for (from, to) in [
            ("html_handling", "html_handling"),
            ("not_found_handling", "not_found_handling"),
            ("base_path", "base_path"),
            ("run_worker_first", "run_worker_first"),
            ("_headers", "headers"),
            ("_redirects", "redirects"),
        ] {
            if let Some(value) = given.get(from).filter(|v| !v.is_null()) {
                config.insert(to.to_owned(), value.clone());
            }
        }
    }
    let user = if version.modules.is_empty() {
        format!(
            "compatibilityDate = {}, compatibilityFlags = {}",
            quote(compatibility_date(version)),
            quote_list(&version.compatibility_flags)
        )
    } else {
        "userWorker = \"main\"".to_owned()
    };
    Ok(format!(
        "(name = \"assets\", assets = (path = {}, config = {}, {user}))",
        quote_path(&place.dir.join("assets"))?,
        quote(&serde_json::Value::Object(config).to_string())
    ))
}

/// `/css/site.css` to `assets/css/site.css`; refuses what would leave the folder.
fn asset_path(url_path: &str) -> Result<PathBuf, ConfigError> {
    let bad = |why: &str| {
        ConfigError(format!(
            "the asset path {url_path:?} {why}; paths are like /css/site.css"
        ))
    };
    let Some(relative) = url_path.strip_prefix('/') else {
        return Err(bad("does not start with a slash"));
    };
    let mut path = PathBuf::from("assets");
    for part in relative.split('/') {
        if part.is_empty() || part == "." || part == ".." || part.contains('\0') {
            return Err(bad("has a part that no file can have"));
        }
        if part.len() > 255 {
            return Err(bad("has a part of more than 255 bytes"));
        }
        path.push(part);
    }
    Ok(path)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
