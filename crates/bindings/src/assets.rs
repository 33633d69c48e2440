//! `assets`: the static assets of the same upload.

use wharf_model::Binding;
use wharf_model::fields::Fate;

use crate::{Kind, Refusal, Said, Surroundings, Worker, WorkerdBinding};

/// The static assets.
pub(crate) struct StaticAssets;

impl Kind for StaticAssets {
    fn name(&self) -> &'static str {
        "assets"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[]
    }

    fn parse(&self, said: &Said<'_>, _: &Surroundings<'_>) -> Result<Binding, Refusal> {
        Ok(Binding::Assets {
            name: said.name.to_owned(),
        })
    }

    fn check(&self, binding: Binding, around: &Surroundings<'_>) -> Result<Binding, Refusal> {
        match around.has_assets {
            true => Ok(binding),
            false => Err(Refusal::Invalid(format!(
                "binding {:?} is for static assets, but the upload has none",
                binding.name()
            ))),
        }
    }

    fn configure(&self, binding: &Binding, worker: &Worker<'_>) -> Result<WorkerdBinding, String> {
        match &worker.version.assets {
            Some(_) => Ok(WorkerdBinding::Assets),
            None => Err(format!(
                "binding \"{}\" is to static assets, but none were uploaded with this version",
                binding.name()
            )),
        }
    }
}
