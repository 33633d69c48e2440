//! Putting a committed deployment into service, and taking it back if it does not start (the machine in the crate's header).

use std::sync::Arc;

use http::HeaderMap;
use wharf_model::Version;
use wharf_store::{Undo, Upload};

use crate::App;
use crate::envelope::{ApiError, ApiResult};

impl App {
    /// Commits an upload and, if it is deployed, brings it into service.
    pub(crate) async fn commit(self: &Arc<Self>, upload: Upload) -> ApiResult<Version> {
        let committed = self.db(move |store| store.commit_upload(upload)).await?;
        if let Some(undo) = committed.undo {
            self.activate(&committed.version.script, undo).await?;
        }
        Ok(committed.version)
    }

    /// Brings what was just deployed into service.
    pub(crate) async fn activate(self: &Arc<Self>, script: &str, undo: Undo) -> ApiResult<()> {
        let Err(reason) = self.effects.script_changed(script).await else {
            return Ok(());
        };
        tracing::warn!(script, %reason, "a deployment is taken back");
        let before = match undo.previous_version {
            Some(_) => "The previous deployment serves on.",
            None => "Nothing is deployed.",
        };
        self.db(move |store| store.undo_deployment(&undo)).await?;
        if let Err(error) = self.effects.script_changed(script).await {
            tracing::error!(script, %error, "the previous deployment does not start either");
        }
        Err(not_started(&format!("{reason}\n{before}")))
    }
}

/// The answer to a version that does not start.
pub(crate) fn not_started(reason: &str) -> ApiError {
    ApiError::invalid(format!("The Worker did not start: {reason}"))
}

/// Who asks: shown as the source of versions and deployments.
pub(crate) fn source(headers: &HeaderMap) -> &'static str {
    let wrangler = headers
        .get(http::header::USER_AGENT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|agent| agent.starts_with("wrangler/"));
    if wrangler { "wrangler" } else { "api" }
}

/// A script's name as it may be used: it becomes a host name's first label, so letters of one case.
pub(crate) fn check_script_name(name: &str) -> ApiResult<()> {
    let good = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(ApiError::new(
        http::StatusCode::BAD_REQUEST,
        10016,
        format!(
            "Invalid Worker name {name:?}: a name has 1 to 63 lower-case letters, digits, hyphens and underscores, \
             and neither starts nor ends with a hyphen"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_names() {
        for good in ["a", "hello-world", "my_app2", &"x".repeat(63)] {
            assert!(check_script_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "Hello",
            "-a",
            "a-",
            "a.b",
            "a/b",
            "ä",
            "..",
            &"x".repeat(64),
        ] {
            assert!(check_script_name(bad).is_err(), "{bad}");
        }
    }
}
