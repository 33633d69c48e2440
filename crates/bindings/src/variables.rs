//! Variables: `plain_text`, `json` and `secret_text`.

use wharf_model::Binding;
use wharf_model::fields::Fate::{self, Honoured};

use crate::{Kind, Refusal, Said, Surroundings, Worker, WorkerdBinding, foreign};

/// One `KEY=value` string of a process's environment is limited by the kernel (execve(2),
/// MAX_ARG_STRLEN).
const MAX_SECRET_BYTES: usize = 120 * 1024;

/// A variable.
pub(crate) struct PlainText;

impl Kind for PlainText {
    fn name(&self) -> &'static str {
        "plain_text"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[("text", Honoured)]
    }

    fn parse(&self, said: &Said<'_>, _: &Surroundings<'_>) -> Result<Binding, Refusal> {
        Ok(Binding::PlainText {
            text: said.need("text")?,
            name: said.name.to_owned(),
        })
    }

    fn configure(&self, binding: &Binding, _: &Worker<'_>) -> Result<WorkerdBinding, String> {
        match binding {
            Binding::PlainText { text, .. } => Ok(WorkerdBinding::Text(text.clone())),
            other => Err(foreign(other)),
        }
    }
}

/// A variable that is JSON.
pub(crate) struct Json;

impl Kind for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[("json", Honoured)]
    }

    fn parse(&self, said: &Said<'_>, _: &Surroundings<'_>) -> Result<Binding, Refusal> {
        let name = said.name;
        let json = said.value.get("json").cloned().ok_or_else(|| {
            Refusal::Invalid(format!("binding {name:?} of type \"json\" needs \"json\""))
        })?;
        Ok(Binding::Json {
            json,
            name: name.to_owned(),
        })
    }

    fn configure(&self, binding: &Binding, _: &Worker<'_>) -> Result<WorkerdBinding, String> {
        match binding {
            Binding::Json { json, .. } => Ok(WorkerdBinding::Json(json.clone())),
            other => Err(foreign(other)),
        }
    }
}

/// A secret: it reaches workerd by its environment, so that it never is on disk.
pub(crate) struct SecretText;

impl Kind for SecretText {
    fn name(&self) -> &'static str {
        "secret_text"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[("text", Honoured)]
    }

    fn parse(&self, said: &Said<'_>, _: &Surroundings<'_>) -> Result<Binding, Refusal> {
        Ok(Binding::SecretText {
            text: said.need("text")?,
            name: said.name.to_owned(),
        })
    }

    fn configure(&self, binding: &Binding, _: &Worker<'_>) -> Result<WorkerdBinding, String> {
        let Binding::SecretText { name, text } = binding else {
            return Err(foreign(binding));
        };
        if text.contains('\0') {
            return Err(format!(
                "secret \"{name}\" contains a zero byte, which is not supported; encode the value, for example as base64"
            ));
        }
        if text.len() > MAX_SECRET_BYTES {
            return Err(format!(
                "secret \"{name}\" has {} bytes; the limit is {MAX_SECRET_BYTES}",
                text.len()
            ));
        }
        Ok(WorkerdBinding::FromEnvironment(text.clone()))
    }
}
