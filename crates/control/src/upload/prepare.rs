//! Makes of a read upload what the store will commit.
//!
//! Runs in a blocking task, under the script's lock: what it looks up does not change until the commit.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use wharf_model::{
    AssetFile, Assets, Binding, ContainerDeclaration, DurableObjectNamespace, Module, ModuleKind,
    Version,
};
use wharf_store::{Classes, NewDeployment, SecretChange, Store, Upload};

use crate::assets;
use crate::containers::checks;
use crate::envelope::{ApiError, ApiResult, now_ms};
use crate::upload::bindings::{Surroundings, resolve};
use crate::upload::exports::{Exports, Outcome};
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

/// An upload that can be committed once its `exports`, if it has any, are settled.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) upload: Upload,
    pub(crate) declared: Option<Declared>,
}

/// An upload's `exports`, to be compared with what its code exports.
#[derive(Debug)]
pub(crate) struct Declared {
    exports: Exports,
    script: String,
    before: Vec<DurableObjectNamespace>,
}

impl Declared {
    /// Classes of which [`Self::settle`] must know whether the code exports them.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.exports.asked(&self.before)
    }

    /// The report for the client. `missing` are those of the asked classes that the code does not
    /// export.
    ///
    /// # Errors
    /// The declaration does not fit the namespaces or the code.
    pub(crate) fn settle(&self, missing: &BTreeSet<String>) -> ApiResult<Value> {
        let in_code = |class: &str| Some(!missing.contains(class));
        // The ids are those of the upload, which was prepared before.
        let outcome =
            (self.exports).reconcile(&self.script, &self.before, in_code, || Ok(String::new()))?;
        outcome.refusal().map_or_else(|| Ok(outcome.report()), Err)
    }
}

/// Makes the upload, or says why not.
pub(crate) fn prepare(store: &Store, request: &Request, parts: Parts) -> ApiResult<Prepared> {
    let metadata = Metadata::parse(&parts.metadata)?;
    let name = &request.script;
    let script = store.script(name)?;
    if script.is_none() && !request.deploy {
        return Err(ApiError::worker_not_found(name));
    }
    let before = Classes {
        namespaces: store.namespaces(name)?,
        exports: script.as_ref().is_some_and(|script| script.class_exports),
        migration_tag: script.and_then(|script| script.migration_tag),
    };
    let Some(exports) = Exports::parse(metadata.exports.as_ref())? else {
        let migrated = migrate(request, &before, metadata.migrations.as_ref())?;
        let namespaces = &migrated.as_ref().unwrap_or(&before).namespaces;
        let mut upload = build(store, request, &metadata, parts.modules, namespaces, None)?;
        upload.namespaces = migrated;
        return Ok(Prepared {
            upload,
            declared: None,
        });
    };
    if metadata.migrations.as_ref().is_some_and(|m| !m.is_null()) {
        return Err(ApiError::invalid(
            "\"migrations\" and Durable Object classes in \"exports\" exclude each other: remove \"migrations\"",
        ));
    }
    let outcome = exports.reconcile(name, &before.namespaces, |_| None, fresh_id)?;
    if !request.deploy && outcome.changes() {
        return Err(not_by_upload());
    }
    let Outcome { namespaces, .. } = &outcome;
    let built = build(
        store,
        request,
        &metadata,
        parts.modules,
        namespaces,
        Some(&exports),
    );
    let mut upload = match (built, outcome.refusal()) {
        // A mistake in a binding may follow from one here, so this comes first.
        (Err(_), Some(refusal)) => return Err(refusal),
        (built, _) => built?,
    };
    upload.namespaces = request.deploy.then_some(Classes {
        namespaces: outcome.namespaces,
        // Without it, wrangler sends its migrations again if the configuration goes back to them,
        // and is told that this is not possible.
        migration_tag: None,
        exports: true,
    });
    Ok(Prepared {
        upload,
        declared: Some(Declared {
            exports,
            script: name.clone(),
            before: before.namespaces,
        }),
    })
}

/// The script's classes after the upload's migrations, if it has any.
fn migrate(
    request: &Request,
    before: &Classes,
    migrations: Option<&Value>,
) -> ApiResult<Option<Classes>> {
    let Some(migrations) = migrations.filter(|migrations| !migrations.is_null()) else {
        return Ok(None);
    };
    if !request.deploy {
        return Err(ApiError::new(
            http::StatusCode::BAD_REQUEST,
            10211,
            "Migrations must be fully applied by `wrangler deploy` first; a version that is only uploaded can't carry them",
        ));
    }
    if before.exports {
        return Err(ApiError::invalid(format!(
            "Worker {:?} was deployed with \"exports\", and cannot go back to \"migrations\": \
             declare its Durable Object classes by \"exports\", and remove \"migrations\"",
            request.script
        )));
    }
    let state = (before.namespaces.clone(), before.migration_tag.clone());
    let (namespaces, migration_tag) =
        migrations::apply(&request.script, state, migrations, fresh_id)?;
    Ok(Some(Classes {
        namespaces,
        migration_tag,
        exports: false,
    }))
}

/// The answer to a version that would change classes and is not deployed.
fn not_by_upload() -> ApiError {
    ApiError::new(
        http::StatusCode::BAD_REQUEST,
        100_406,
        "\"exports\" makes, renames or deletes a Durable Object class, which `wrangler deploy` must do first; \
         a version that is only uploaded can't",
    )
}

fn build(
    store: &Store,
    request: &Request,
    metadata: &Metadata,
    modules: Vec<Module>,
    namespaces: &[DurableObjectNamespace],
    exports: Option<&Exports>,
) -> ApiResult<Upload> {
    let name = &request.script;
    let base = store.latest_version(name)?;
    let assets = resolve_assets(store, name, metadata, base.as_ref())?;
    let mut modules = modules;
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
            script_exists: &|other| match store.script(other) {
                Ok(found) => Ok(found.is_some()),
                Err(error) => Err(error.to_string()),
            },
            secrets: &secrets,
            keep: metadata.keep_bindings.as_deref().unwrap_or_default(),
            has_assets: assets.is_some(),
        },
    )?;
    let containers = declarations(store, metadata.containers.as_deref(), namespaces, exports)?;
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
        namespaces: None,
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
    namespaces: &[DurableObjectNamespace],
    exports: Option<&Exports>,
) -> ApiResult<Vec<(String, ContainerDeclaration)>> {
    let containers = containers.unwrap_or_default();
    for (class, name) in exports.iter().flat_map(|exports| exports.containers()) {
        if !containers.iter().any(|c| c.name.as_deref() == Some(name)) {
            return Err(ApiError::invalid(format!(
                "\"exports.{class}.container\" names the container {name:?}, which \"containers\" does not have"
            )));
        }
    }
    let mut declared: Vec<(String, ContainerDeclaration)> = Vec::new();
    for container in containers {
        let shown = container.name.as_deref().unwrap_or("unnamed");
        let by_exports = exports.and_then(|e| e.class_of_container(container.name.as_deref()?));
        let class = match (container.class_name.as_deref(), by_exports) {
            (Some(class), Some(other)) if class != other => {
                return Err(ApiError::invalid(format!(
                    "container {shown:?} has the \"class_name\" {class:?}, but is the container of {other:?} in \"exports\""
                )));
            }
            (class, other) => class.or(other),
        };
        let Some(class) = class else {
            return Err(ApiError::invalid(format!(
                "container {shown:?} has no \"class_name\", and no class in \"exports\" names it as its \"container\""
            )));
        };
        let Some(namespace) = namespaces.iter().find(|n| n.class == class) else {
            return Err(
                wharf_bindings::no_namespace(class, &format!("container {shown:?}")).into(),
            );
        };
        if !namespace.use_sqlite {
            return Err(ApiError::invalid(format!(
                "class {class:?} has a container, but was made by \"new_classes\" (\"legacy-kv\"); containers need \"new_sqlite_classes\" (\"sqlite\")"
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
            None => declared.push((class.to_owned(), declaration)),
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
