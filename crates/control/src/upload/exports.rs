//! `exports`: the Durable Object classes that a Worker declares, and what becomes of its namespaces. Pure.
//!
//! Owns: the entries' form, and the rules of the reconciliation (Cloudflare's "Durable Object class
//! exports"; names of scenarios and fields as in its OpenAPI schema). Must not: look into code; the
//! caller says which classes the code exports.
//!
//! A live entry keeps or makes a namespace, a tombstone (`deleted`, `renamed`) ends or renames one.
//! Nothing is deleted without a tombstone: a namespace that no entry names is an error.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wharf_model::DurableObjectNamespace;

use crate::envelope::{ApiError, ApiResult};

/// Code of a refused reconciliation; wrangler then prints `meta.details`.
pub(crate) const REFUSED: u32 = 100_402;

/// The entries of type `durable-object`, by class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exports(BTreeMap<String, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Live {
        storage: Storage,
        container: Option<String>,
    },
    Deleted,
    Renamed {
        to: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Storage {
    Sqlite,
    LegacyKv,
}

impl Storage {
    fn of(namespace: &DurableObjectNamespace) -> Self {
        if namespace.use_sqlite {
            Self::Sqlite
        } else {
            Self::LegacyKv
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::LegacyKv => "legacy-kv",
        }
    }
}

/// An entry as it is sent. Which fields a state has is checked by [`entry`].
#[derive(Debug, Deserialize)]
struct Sent {
    state: Option<String>,
    storage: Option<Storage>,
    renamed_to: Option<String>,
    container: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One class that is not as declared; an element of `meta.details`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    class: String,
    scenario: &'static str,
    message: String,
    suggestion: String,
}

/// What the declaration comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The namespaces after the deploy. With `problems`, those that have one stay as they are.
    pub(crate) namespaces: Vec<DurableObjectNamespace>,
    /// Each of them refuses the deploy.
    pub(crate) problems: Vec<Problem>,
    created: Vec<String>,
    deleted: Vec<String>,
    renamed: Vec<(String, String)>,
    info: Vec<(&'static str, String, String)>,
    removable: Vec<String>,
}

impl Outcome {
    /// Whether a namespace is made, renamed or deleted.
    pub(crate) fn changes(&self) -> bool {
        !(self.created.is_empty() && self.deleted.is_empty() && self.renamed.is_empty())
    }

    /// `exports_reconciliation` of the answer: wrangler prints it.
    pub(crate) fn report(&self) -> Value {
        let renamed: Vec<Value> = (self.renamed.iter())
            .map(|(from, to)| json!({"from": from, "to": to}))
            .collect();
        let info: Vec<Value> = (self.info.iter())
            .map(|(scenario, class, message)| {
                json!({"scenario": scenario, "class": class, "message": message})
            })
            .collect();
        json!({
            "created": self.created, "updated": [], "deleted": self.deleted, "renamed": renamed,
            "transferred": [], "transfer_pending": [], "warnings": [], "info": info,
            "removable_entries": self.removable,
        })
    }

    /// The error that `problems` are, if there are any.
    pub(crate) fn refusal(&self) -> Option<ApiError> {
        if self.problems.is_empty() {
            return None;
        }
        let details: Vec<Value> = (self.problems.iter())
            .map(|problem| {
                json!({
                    "class": problem.class, "scenario": problem.scenario,
                    "message": problem.message, "suggestion": problem.suggestion,
                })
            })
            .collect();
        let lines: Vec<String> = (self.problems.iter())
            .map(|p| format!("[{}] {} {}", p.scenario, p.message, p.suggestion))
            .collect();
        let message = format!(
            "Durable Object exports reconciliation failed: {}",
            lines.join(" ")
        );
        Some(
            ApiError::new(StatusCode::BAD_REQUEST, REFUSED, message)
                .with_meta(json!({"details": details})),
        )
    }

    fn problem(&mut self, class: &str, scenario: &'static str, message: String, mend: String) {
        self.problems.push(Problem {
            class: class.to_owned(),
            scenario,
            message,
            suggestion: mend,
        });
    }

    fn stale(&mut self, class: &str, state: &str) {
        let message = format!(
            "Tombstone of type '{state}' for class '{class}' has no effect (no namespace has this class name). Safe to remove from `exports`."
        );
        self.info
            .push(("stale_tombstone", class.to_owned(), message));
        self.removable.push(class.to_owned());
    }
}

impl Exports {
    /// Reads `exports`. `None` if it has no entry of a Durable Object class.
    ///
    /// # Errors
    /// An entry has not the form of its state, or asks for what Wharf does not have.
    pub(crate) fn parse(exports: Option<&Value>) -> ApiResult<Option<Self>> {
        let map = match exports {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(ApiError::bad_request("\"exports\" is no object")),
        };
        let mut classes = BTreeMap::new();
        for (name, value) in map {
            match value.get("type").and_then(Value::as_str) {
                Some("durable-object") => {
                    classes.insert(name.clone(), entry(name, value)?);
                }
                Some("worker") => worker(name, value)?,
                Some("workflow") => {
                    return Err(ApiError::unsupported(format!(
                        "Workflows (\"exports.{name}\")"
                    )));
                }
                Some(other) => {
                    return Err(ApiError::unsupported(format!(
                        "exports of type {other:?} (\"exports.{name}\")"
                    )));
                }
                None => {
                    return Err(ApiError::bad_request(format!(
                        "\"exports.{name}\" has no \"type\""
                    )));
                }
            }
        }
        let exports = Self(classes);
        exports.check_renames()?;
        Ok((!exports.0.is_empty()).then_some(exports))
    }

    /// A class is renamed to one that is declared, and no two to the same.
    fn check_renames(&self) -> ApiResult<()> {
        let mut targets = BTreeSet::new();
        for (class, entry) in &self.0 {
            let Entry::Renamed { to } = entry else {
                continue;
            };
            let fault = if to == class {
                "is the class itself"
            } else if !matches!(self.0.get(to), Some(Entry::Live { .. })) {
                "is not declared: add a live entry of that name to \"exports\""
            } else if !targets.insert(to) {
                "is the new name of another class, too"
            } else {
                continue;
            };
            return Err(ApiError::invalid(format!(
                "\"exports.{class}.renamed_to\": {to:?} {fault}"
            )));
        }
        Ok(())
    }

    /// The class that declares the container `name` as its own.
    pub(crate) fn class_of_container(&self, name: &str) -> Option<&str> {
        self.containers()
            .find(|(_, c)| *c == name)
            .map(|(class, _)| class)
    }

    /// Classes with the names of their containers.
    pub(crate) fn containers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(class, entry)| match entry {
            Entry::Live {
                container: Some(container),
                ..
            } => Some((class.as_str(), container.as_str())),
            _ => None,
        })
    }

    /// Classes of which the reconciliation asks whether the code exports them.
    pub(crate) fn asked(&self, namespaces: &[DurableObjectNamespace]) -> BTreeSet<String> {
        (self.0.keys().cloned())
            .chain(namespaces.iter().map(|namespace| namespace.class.clone()))
            .collect()
    }

    /// Compares the declaration with the namespaces that are there. `in_code` tells whether the
    /// code exports a class; `None` where that is not known yet, and then nothing is said about it.
    /// `fresh` makes ids: 32 random hex digits.
    ///
    /// # Errors
    /// The classes among `fresh`. [`Outcome::problems`] lists the mistakes of the declaration.
    pub(crate) fn reconcile(
        &self,
        script: &str,
        before: &[DurableObjectNamespace],
        in_code: impl Fn(&str) -> Option<bool>,
        mut fresh: impl FnMut() -> ApiResult<String>,
    ) -> ApiResult<Outcome> {
        let mut outcome = Outcome::default();
        let known = |class: &str| before.iter().find(|n| n.class == class);
        for namespace in before {
            let mut namespace = namespace.clone();
            let class = namespace.class.clone();
            match self.0.get(&class) {
                None => undeclared(&mut outcome, &class, in_code(&class)),
                Some(Entry::Live { storage, .. }) => {
                    same_storage(&mut outcome, &class, *storage, Storage::of(&namespace));
                    if in_code(&class) == Some(false) {
                        outcome.problem(
                            &class,
                            "config_export_not_in_code",
                            format!("`exports` declares class '{class}', which the Worker's code does not export."),
                            format!("Export the class, or give it a `deleted` or `renamed` entry: {}.", tombstone(&class)),
                        );
                    }
                }
                Some(Entry::Deleted) if in_code(&class) == Some(true) => outcome.problem(
                    &class,
                    "tombstone_delete_class_still_in_code",
                    format!("Class '{class}' is declared `deleted`, but the Worker's code still exports it."),
                    "Remove the class from the code, then deploy again.".to_owned(),
                ),
                Some(Entry::Deleted) => {
                    outcome.deleted.push(class);
                    continue;
                }
                Some(Entry::Renamed { to }) if known(to).is_some() => outcome.problem(
                    &class,
                    "tombstone_renamed_to_occupied",
                    format!("Class '{class}' cannot become '{to}': a namespace of that name exists already."),
                    format!("Delete that one first, with its data, in a deploy of its own: {}.", tombstone(to)),
                ),
                Some(Entry::Renamed { to }) => {
                    if let Some(Entry::Live { storage, .. }) = self.0.get(to) {
                        same_storage(&mut outcome, to, *storage, Storage::of(&namespace));
                    }
                    if in_code(&class) == Some(true) {
                        let message = format!(
                            "Tombstone of type 'renamed' applied. Class '{class}' is still exported in code; this is the supported pattern for zero-downtime rename rollouts."
                        );
                        outcome.info.push(("tombstone_class_still_in_code", class.clone(), message));
                    }
                    not_in_code(&mut outcome, to, in_code(to));
                    outcome.renamed.push((class, to.clone()));
                    namespace.class.clone_from(to);
                }
            }
            outcome.namespaces.push(namespace);
        }
        for (class, entry) in &self.0 {
            let exists = outcome.namespaces.iter().any(|n| n.class == *class);
            match entry {
                _ if known(class).is_some() => {}
                Entry::Deleted => outcome.stale(class, "deleted"),
                Entry::Renamed { .. } => outcome.stale(class, "renamed"),
                Entry::Live { .. } if exists => {}
                Entry::Live { storage: Storage::LegacyKv, .. } => outcome.problem(
                    class,
                    "invalid_export",
                    format!("Class '{class}' is new, and `exports` makes no new classes with storage \"legacy-kv\"."),
                    "Use \"storage\": \"sqlite\".".to_owned(),
                ),
                Entry::Live { .. } => {
                    not_in_code(&mut outcome, class, in_code(class));
                    outcome.created.push(class.clone());
                    outcome.namespaces.push(DurableObjectNamespace {
                        id: fresh()?,
                        script: script.to_owned(),
                        class: class.clone(),
                        use_sqlite: true,
                        unique_key: fresh()?,
                    });
                }
            }
        }
        Ok(outcome)
    }
}

fn tombstone(class: &str) -> String {
    format!("\"{class}\": {{\"type\": \"durable-object\", \"state\": \"deleted\"}}")
}

fn undeclared(outcome: &mut Outcome, class: &str, in_code: Option<bool>) {
    if in_code == Some(false) {
        outcome.problem(
            class,
            "orphaned_provisioned_namespace",
            format!("A namespace exists for '{class}', but no `exports` entry declares it."),
            format!(
                "Add the class to the code and to `exports`, or delete it with its data: {}.",
                tombstone(class)
            ),
        );
    } else {
        outcome.problem(
            class,
            "provisioned_class_missing_from_config",
            format!("A namespace exists for class '{class}', but `exports` has no entry for it."),
            format!(
                "Keep it with an entry \"{class}\": {{\"type\": \"durable-object\", \"storage\": ...}}, or delete it with its data: {}.",
                tombstone(class)
            ),
        );
    }
}

fn same_storage(outcome: &mut Outcome, class: &str, declared: Storage, has: Storage) {
    if declared != has {
        outcome.problem(
            class,
            "storage_type_mismatch",
            format!(
                "Class '{class}' is declared with storage \"{}\", but its namespace has \"{}\", which cannot change.",
                declared.name(),
                has.name()
            ),
            format!("Set \"storage\" to \"{}\".", has.name()),
        );
    }
}

/// A class that is to have a namespace, and has none yet under this name.
fn not_in_code(outcome: &mut Outcome, class: &str, in_code: Option<bool>) {
    if in_code == Some(false) {
        outcome.problem(
            class,
            "config_references_nonexistent_class",
            format!("`exports` declares class '{class}', which is neither exported by the Worker's code nor has a namespace."),
            "Remove the entry, or export a class of this name that extends DurableObject.".to_owned(),
        );
    }
}

fn entry(class: &str, value: &Value) -> ApiResult<Entry> {
    let wrong = |what: String| ApiError::invalid(format!("\"exports.{class}\" {what}"));
    let sent =
        Sent::deserialize(value).map_err(|error| wrong(format!("can't be read: {error}")))?;
    if class.is_empty() {
        return Err(ApiError::invalid("\"exports\" names an empty class"));
    }
    let state = sent.state.as_deref().unwrap_or("created");
    if matches!(state, "transferred" | "expecting-transfer") {
        return Err(ApiError::unsupported(format!(
            "transfers of Durable Object classes between Workers (\"exports.{class}.state\": {state:?})"
        )));
    }
    let live = state == "created";
    for (field, given, allowed) in [
        ("storage", sent.storage.is_some(), live),
        ("container", sent.container.is_some(), live),
        ("renamed_to", sent.renamed_to.is_some(), state == "renamed"),
    ] {
        if given && !allowed {
            return Err(wrong(format!(
                "of state {state:?} has no {field:?}: remove it"
            )));
        }
    }
    if let Some(field) = sent.rest.keys().find(|field| *field != "type") {
        return Err(wrong(format!(
            "of state {state:?} has no {field:?}: remove it"
        )));
    }
    match (state, sent.storage, sent.renamed_to) {
        ("created", Some(Storage::LegacyKv), _) if sent.container.is_some() => Err(wrong(
            "has a container and storage \"legacy-kv\"; containers need \"sqlite\"".to_owned(),
        )),
        ("created", Some(storage), _) => Ok(Entry::Live {
            storage,
            container: sent.container,
        }),
        ("created", None, _) => Err(wrong(
            "has no \"storage\": add \"storage\": \"sqlite\"".to_owned(),
        )),
        ("deleted", ..) => Ok(Entry::Deleted),
        ("renamed", _, Some(to)) if !to.is_empty() => Ok(Entry::Renamed { to }),
        ("renamed", ..) => Err(wrong("has no \"renamed_to\": add the new name".to_owned())),
        (other, ..) => Err(wrong(format!(
            "has the state {other:?}, which is none of \"created\", \"deleted\", \"renamed\""
        ))),
    }
}

/// An entrypoint. Its only option is its cache, which is off unless it is asked for.
fn worker(name: &str, value: &Value) -> ApiResult<()> {
    let cached = value.pointer("/cache/enabled").and_then(Value::as_bool) == Some(true);
    let fields = value.as_object().into_iter().flat_map(Map::keys);
    let unknown = fields
        .into_iter()
        .find(|field| !matches!(field.as_str(), "type" | "cache"));
    match (cached, unknown) {
        (true, _) => Err(ApiError::unsupported(format!(
            "caches of entrypoints (\"exports.{name}.cache\")"
        ))),
        (_, Some(field)) => Err(ApiError::invalid(format!(
            "\"exports.{name}\" of type \"worker\" has no {field:?}: remove it"
        ))),
        (false, None) => Ok(()),
    }
}

#[cfg(test)]
#[path = "exports_tests.rs"]
mod tests;
