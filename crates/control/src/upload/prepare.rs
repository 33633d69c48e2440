//! From a read upload to what the store shall commit.
//!
//! Runs in a blocking task, under the script's lock: what it looks up does not change until the commit.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wharf_model::{AssetFile, Assets, Binding, ContainerDeclaration, Module, ModuleKind, Version};
use wharf_store::{NewDeployment, SecretChange, Store, Upload};

use crate::assets;
use crate::containers::checks;
use crate::envelope::{ApiError, ApiResult, now_ms};
use crate::upload::bindings::{Surroundings, no_namespace, resolve};
use crate::upload::metadata::{AssetsRef, ContainerRef, Metadata};
use crate::upload::migrations;
use crate::upload::multipart::{Parts, module_name};

/// What the request says beside its body.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) script: String,
    /// `wrangler` or `api`.
    pub(crate) source: &'static str,
    /// PUT: make the script if need be, apply migrations, deploy. POST versions: none of these.
    pub(crate) deploy: bool,
}

/// Makes the upload, or says why not.
pub(crate) fn prepare(store: &Store, request: &Request, parts: Parts) -> ApiResult<Upload> {
    let metadata = Metadata::parse(&parts.metadata)?;
    let name = &request.script;
    let script = store.script(name)?;
    if script.is_none() && !request.deploy {
        return Err(ApiError::worker_not_found(name));
    }
    let base = store.latest_version(name)?;
    let before = (
        store.namespaces(name)?,
        script.and_then(|script| script.migration_tag),
    );
    let migrated = match metadata.migrations.as_ref().filter(|m| !m.is_null()) {
        Some(_) if !request.deploy => {
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                10211,
                "Migrations must be fully applied by `wrangler deploy` first; a version that is only uploaded can't carry them",
            ));
        }
        Some(migrations) => Some(migrations::apply(
            name,
            before.clone(),
            migrations,
            fresh_id,
        )?),
        None => None,
    };
    let namespaces = &migrated.as_ref().unwrap_or(&before).0;

    let assets = resolve_assets(store, name, &metadata, base.as_ref())?;
    let mut modules = parts.modules;
    let mut uploaded = metadata.bindings.clone().unwrap_or_default();
    let (main_module, assets_only) = match &metadata.main_module {
        Some(main) => (main_of(main, &modules)?, false),
        None if assets.is_some() && modules.is_empty() => {
            let (main, binding) = assets_only_worker(store)?;
            modules.push(main.clone());
            uploaded.push(binding);
            (main.name, true)
        }
        None => {
            return Err(ApiError::invalid(
                "the upload's metadata has no \"main_module\"",
            ));
        }
    };

    let secrets = store.secrets(name)?;
    let bindings = resolve(
        &uploaded,
        &Surroundings {
            script: name,
            namespaces,
            base: base.as_ref(),
            version: &|id| Ok(store.version(id)?.filter(|version| version.script == *name)),
            script_exists: &|other| Ok(store.script(other)?.is_some()),
            secrets: &secrets,
            keep: metadata.keep_bindings.as_deref().unwrap_or_default(),
            has_assets: assets.is_some(),
        },
    )?;
    let containers = declarations(store, metadata.containers.as_deref(), namespaces)?;
    let annotations = metadata.annotations()?;
    let mut extra = metadata.rest.clone();
    // A list of npm packages for Cloudflare's statistics.
    extra.remove("package_dependencies");
    extra.insert("source".into(), request.source.into());
    extra.insert("assets_only".into(), assets_only.into());

    let version = Version {
        id: uuid::Uuid::new_v4().to_string(),
        script: name.clone(),
        number: 0,
        created_ms: now_ms(),
        main_module,
        modules,
        compatibility_date: metadata.date(
            jiff::Timestamp::now()
                .to_zoned(jiff::tz::TimeZone::UTC)
                .date(),
        )?,
        compatibility_flags: metadata.compatibility_flags.clone().unwrap_or_default(),
        assets,
        container_classes: containers.iter().map(|(class, _)| class.clone()).collect(),
        containers: containers.into_iter().collect(),
        annotations: annotations.clone(),
        extra: Value::Object(extra),
        bindings,
    };
    Ok(Upload {
        secrets: secret_changes(&secrets, &version.bindings),
        deploy: request.deploy.then(|| NewDeployment {
            source: request.source.to_owned(),
            annotations: deployment_annotations(&annotations),
        }),
        namespaces: migrated,
        create_script: request.deploy,
        version,
    })
}

fn fresh_id() -> ApiResult<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(ApiError::internal)?;
    Ok(hex::encode(bytes))
}

/// A deployment that came with its version bears the version's message.
fn deployment_annotations(version: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    version
        .get("workers/message")
        .map(|message| ("workers/message".to_owned(), message.clone()))
        .into_iter()
        .collect()
}

fn main_of(main: &str, modules: &[Module]) -> ApiResult<String> {
    let name = module_name(main)?;
    match modules.iter().find(|module| module.name == name) {
        Some(module) if module.kind == ModuleKind::EsModule => Ok(name),
        Some(_) => Err(ApiError::invalid(format!(
            "the main module {main:?} is no ES module (application/javascript+module)"
        ))),
        None => Err(ApiError::invalid(format!(
            "the main module {main:?} is not in the upload"
        ))),
    }
}

/// A project without code serves its assets; its Worker is this one.
fn assets_only_worker(store: &Store) -> ApiResult<(Module, Value)> {
    let code = "export default { fetch: (request, env) => env.ASSETS.fetch(request) };\n";
    let main = Module {
        name: "assets-only.js".into(),
        kind: ModuleKind::EsModule,
        blob: store.put_blob(code.as_bytes())?,
    };
    Ok((main, json!({"type": "assets", "name": "ASSETS"})))
}

fn resolve_assets(
    store: &Store,
    script: &str,
    metadata: &Metadata,
    base: Option<&Version>,
) -> ApiResult<Option<Assets>> {
    let AssetsRef { jwt, config } = match &metadata.assets {
        Some(assets) => assets,
        None => &AssetsRef {
            jwt: None,
            config: None,
        },
    };
    let before = base.and_then(|base| base.assets.as_ref());
    let files: Vec<AssetFile> = match jwt {
        Some(jwt) => assets::completed(store, script, jwt)?,
        None if metadata.keep_assets == Some(true) => match before {
            Some(before) => before.files.clone(),
            None => {
                return Err(ApiError::invalid(
                    "\"keep_assets\" is set, but the previous version has no static assets",
                ));
            }
        },
        None if metadata.assets.is_some() => {
            return Err(ApiError::invalid(
                "the upload's \"assets\" has no \"jwt\" of a completed asset upload",
            ));
        }
        None => return Ok(None),
    };
    let config = config
        .clone()
        .or_else(|| before.filter(|_| jwt.is_none()).map(|b| b.config.clone()))
        .unwrap_or_else(|| json!({}));
    if config
        .get("base_path")
        .and_then(Value::as_str)
        .is_some_and(|path| path != "/" && !path.is_empty())
    {
        return Err(ApiError::unsupported(
            "base paths of static assets (\"base_path\")",
        ));
    }
    Ok(Some(Assets { files, config }))
}

/// What the upload says of containers, by class.
fn declarations(
    store: &Store,
    containers: Option<&[ContainerRef]>,
    namespaces: &[wharf_model::DurableObjectNamespace],
) -> ApiResult<Vec<(String, ContainerDeclaration)>> {
    let mut declared: Vec<(String, ContainerDeclaration)> = Vec::new();
    for container in containers.unwrap_or_default() {
        let shown = container.name.as_deref().unwrap_or("unnamed");
        let Some(class) = &container.class_name else {
            return Err(ApiError::invalid(format!(
                "container {shown:?} has no \"class_name\""
            )));
        };
        let Some(namespace) = namespaces.iter().find(|n| n.class == *class) else {
            return Err(no_namespace(class, &format!("container {shown:?}")));
        };
        if !namespace.use_sqlite {
            return Err(ApiError::invalid(format!(
                "class {class:?} has a container, but was made by \"new_classes\"; containers need \"new_sqlite_classes\""
            )));
        }
        let images = container.images.clone().unwrap_or_default();
        if let Some((name, _)) = images.iter().find(|(n, i)| n.is_empty() || i.is_empty()) {
            return Err(ApiError::invalid(format!(
                "container {shown:?} has an image without a name or a reference ({name:?})"
            )));
        }
        if let Some(application) = store.application_by_namespace(&namespace.id)? {
            checks::same_management(&application, !images.is_empty())?;
        }
        let declaration = ContainerDeclaration {
            name: container.name.clone(),
            images,
        };
        match declared.iter().find(|(known, _)| known == class) {
            None => declared.push((class.clone(), declaration)),
            Some((_, known)) if *known == declaration => {}
            Some(_) => {
                return Err(ApiError::invalid(format!(
                    "class {class:?} has more than one container"
                )));
            }
        }
    }
    Ok(declared)
}

/// How the script's secrets change with a version: new values come in, names that are something else now go.
fn secret_changes(before: &BTreeMap<String, String>, bindings: &[Binding]) -> Vec<SecretChange> {
    bindings
        .iter()
        .filter_map(|binding| match binding {
            Binding::SecretText { name, text } => {
                (before.get(name) != Some(text)).then(|| (name.clone(), Some(text.clone())))
            }
            other => before
                .contains_key(other.name())
                .then(|| (other.name().to_owned(), None)),
        })
        .collect()
}
