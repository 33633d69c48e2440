//! `version_metadata`: which version runs.

use serde_json::json;
use wharf_model::Binding;
use wharf_model::fields::Fate;

use crate::{Kind, Refusal, Said, Surroundings, Worker, WorkerdBinding};

/// `{id, tag, timestamp}` of the version.
pub(crate) struct VersionMetadata;

impl Kind for VersionMetadata {
    fn name(&self) -> &'static str {
        "version_metadata"
    }

    fn fields(&self) -> &'static [(&'static str, Fate)] {
        &[]
    }

    fn parse(&self, said: &Said<'_>, _: &Surroundings<'_>) -> Result<Binding, Refusal> {
        Ok(Binding::VersionMetadata {
            name: said.name.to_owned(),
        })
    }

    fn configure(&self, _: &Binding, worker: &Worker<'_>) -> Result<WorkerdBinding, String> {
        let version = worker.version;
        let tag = version.annotations.get("workers/tag");
        let timestamp = jiff::Timestamp::from_millisecond(version.created_ms)
            .map(|t| format!("{t:.3}"))
            .map_err(|error| format!("the version's time of creation: {error}"))?;
        Ok(WorkerdBinding::Json(json!({
            "id": version.id,
            "tag": tag.map_or("", String::as_str),
            "timestamp": timestamp,
        })))
    }
}
