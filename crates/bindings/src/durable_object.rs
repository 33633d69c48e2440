//! `durable_object_namespace`: Durable Objects of a class of the same script.

use wharf_model::Binding;
use wharf_model::fields::Fate::{self, Honoured, Refused};

use crate::{Kind, Refusal, Said, Surroundings, Worker, WorkerdBinding, foreign};

/// A namespace of Durable Objects.
pub(crate) struct DurableObject;

impl Kind for DurableObject {
    fn name(&self) -> &'static str {
        "durable_object_namespace"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[
            ("class_name", Honoured),
            ("script_name", Honoured),
            ("namespace_id", Honoured),
            (
                "environment",
                Refused(
                    "service environments",
                    "remove \"environment\"; the environment of a wrangler configuration is a Worker of its own",
                ),
            ),
        ]
    }

    fn parse(&self, said: &Said<'_>, around: &Surroundings<'_>) -> Result<Binding, Refusal> {
        let name = said.name;
        let others = said
            .text("script_name")
            .filter(|other| *other != around.script);
        if let Some(other) = others {
            return Err(Refusal::Unsupported(format!(
                "Durable Objects of another Worker (\"script_name\": {other:?} in binding {name:?})"
            )));
        }
        let class = said.text("class_name").unwrap_or_default();
        let namespace = around.namespaces.iter().find(|namespace| {
            namespace.class == class
                || (class.is_empty() && Some(&*namespace.id) == said.text("namespace_id"))
        });
        let namespace =
            namespace.ok_or_else(|| no_namespace(class, &format!("binding {name:?}")))?;
        Ok(Binding::DurableObjectNamespace {
            name: name.to_owned(),
            class_name: namespace.class.clone(),
            namespace_id: namespace.id.clone(),
        })
    }

    /// A class may have been renamed since.
    fn check(&self, binding: Binding, around: &Surroundings<'_>) -> Result<Binding, Refusal> {
        let Binding::DurableObjectNamespace {
            name,
            class_name,
            namespace_id,
        } = binding
        else {
            return Err(Refusal::Invalid(foreign(&binding)));
        };
        let current = around.namespaces.iter().find(|n| n.id == namespace_id);
        let current =
            current.ok_or_else(|| no_namespace(&class_name, &format!("binding {name:?}")))?;
        Ok(Binding::DurableObjectNamespace {
            name,
            class_name: current.class.clone(),
            namespace_id,
        })
    }

    fn configure(&self, binding: &Binding, worker: &Worker<'_>) -> Result<WorkerdBinding, String> {
        let Binding::DurableObjectNamespace {
            name, class_name, ..
        } = binding
        else {
            return Err(foreign(binding));
        };
        if !worker.namespaces.contains_key(class_name) {
            return Err(format!(
                "binding \"{name}\" is to the Durable Object class \"{class_name}\", which has no namespace; add it to `migrations`"
            ));
        }
        Ok(WorkerdBinding::DurableObjectNamespace(class_name.clone()))
    }
}

/// The answer to a class that has no namespace; `user` names what wants one.
pub fn no_namespace(class: &str, user: &str) -> Refusal {
    Refusal::Missing {
        code: 10061,
        message: format!(
            "Cannot create binding for class '{class}' ({user}) because it is not currently configured to implement Durable Objects. \
             Did you forget to declare it? Add \"{class}\": {{\"type\": \"durable-object\", \"storage\": \"sqlite\"}} to \"exports\" of your configuration, \
             or {{\"tag\": \"...\", \"new_sqlite_classes\": [\"{class}\"]}} to \"migrations\" if it has those."
        ),
    }
}
