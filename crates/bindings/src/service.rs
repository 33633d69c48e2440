//! `service`: another Worker, or the same one.

use serde_json::Value;
use wharf_model::fields::Fate::{self, Honoured, Refused};
use wharf_model::{Binding, Version};

use crate::{Kind, Refusal, Said, Surroundings, Worker, WorkerdBinding, foreign};

/// What a service binding reaches in the script it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Entry {
    /// Named entrypoint, or the default one.
    pub entrypoint: Option<String>,
    /// `ctx.props` as JSON text.
    pub props: Option<String>,
}

impl Entry {
    fn new(entrypoint: Option<&String>, props: Option<&Value>) -> Entry {
        Entry {
            // Wrangler may say `default` for the default entrypoint.
            entrypoint: entrypoint.filter(|name| *name != "default").cloned(),
            props: props.filter(|p| !p.is_null()).map(|p| p.to_string()),
        }
    }
}

/// Which entries of other scripts a version binds.
pub fn bound_entries(version: &Version) -> impl Iterator<Item = (&str, Entry)> {
    let bindings = version.bindings.iter();
    bindings.filter_map(move |binding| match binding {
        Binding::Service {
            service,
            entrypoint,
            props,
            ..
        } if *service != version.script => Some((
            service.as_str(),
            Entry::new(entrypoint.as_ref(), props.as_ref()),
        )),
        _ => None,
    })
}

/// A Worker.
pub(crate) struct Service;

impl Kind for Service {
    fn name(&self) -> &'static str {
        "service"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[
            ("service", Honoured),
            ("entrypoint", Honoured),
            ("props", Honoured),
            // "production" is every Worker's only one.
            ("environment", Honoured),
            (
                "cross_account_grant",
                Refused(
                    "service bindings to other accounts",
                    "deploy the other Worker to this node",
                ),
            ),
        ]
    }

    fn parse(&self, said: &Said<'_>, _: &Surroundings<'_>) -> Result<Binding, Refusal> {
        let name = said.name;
        if let Some(environment) = said.text("environment").filter(|e| *e != "production") {
            return Err(Refusal::Unsupported(format!(
                "service environments ({environment:?} in binding {name:?})"
            )));
        }
        let props = said.value.get("props");
        Ok(Binding::Service {
            service: said.need("service")?,
            entrypoint: said.text("entrypoint").map(str::to_owned),
            props: props.filter(|p| !p.is_null()).cloned(),
            name: name.to_owned(),
        })
    }

    fn check(&self, binding: Binding, around: &Surroundings<'_>) -> Result<Binding, Refusal> {
        let Binding::Service { name, service, .. } = &binding else {
            return Err(Refusal::Invalid(foreign(&binding)));
        };
        let exists = |service| (around.script_exists)(service).map_err(Refusal::Store);
        if service != around.script && !exists(service)? {
            return Err(Refusal::Missing {
                code: 10143,
                message: format!(
                    "Could not resolve service binding '{name}'. Target script '{service}' not found: deploy it first."
                ),
            });
        }
        Ok(binding)
    }

    fn configure(&self, binding: &Binding, worker: &Worker<'_>) -> Result<WorkerdBinding, String> {
        let Binding::Service {
            service,
            entrypoint,
            props,
            ..
        } = binding
        else {
            return Err(foreign(binding));
        };
        let entry = Entry::new(entrypoint.as_ref(), props.as_ref());
        Ok(match *service == worker.version.script {
            true => WorkerdBinding::OwnService(entry),
            false => WorkerdBinding::OtherService(service.clone(), entry),
        })
    }
}
