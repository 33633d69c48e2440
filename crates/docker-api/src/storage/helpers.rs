//! workerd's nameless helper containers: recognised by their shape, done natively, never made.
//!
//! | shape | what it is |
//! |---|---|
//! | one bind `<volume>:<path>`, no command; never started | fills the volume with the archive that is put to `<path>` |
//! | `/bin/cp -a /src/. /dst/` with binds `<volume>:/src:ro` and `<volume>:/dst` | clones a snapshot when it is started |

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use super::Storage;
use super::volumes::is_clone;
use crate::errors::ApiError;

/// What of a create tells a helper.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HelperBody<'a> {
    pub(crate) entrypoint: &'a [String],
    pub(crate) cmd: &'a [String],
    pub(crate) binds: &'a [String],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    Fill { volume: String, at: String },
    Clone { from: String, to: String },
}

#[derive(Debug, Clone)]
pub(super) struct Helper {
    pub(super) job: Job,
    /// Once it was started: its exit code.
    exit: Option<i32>,
}

/// Whether a create without a name is one of a helper.
pub(crate) fn is_helper(body: &HelperBody<'_>) -> bool {
    recognise(body).is_some()
}

fn recognise(body: &HelperBody<'_>) -> Option<Job> {
    let words =
        |words: &[&str], list: &[String]| list.iter().map(String::as_str).eq(words.iter().copied());
    match body.binds {
        [only] if body.entrypoint.is_empty() && body.cmd.is_empty() => {
            let (volume, at) = only.split_once(':')?;
            let plain = at.starts_with('/') && !at.contains(':');
            (plain && is_clone(volume) == Some(false)).then(|| Job::Fill {
                volume: volume.to_owned(),
                at: at.to_owned(),
            })
        }
        [source, target]
            if words(&["/bin/cp"], body.entrypoint)
                && words(&["-a", "/src/.", "/dst/"], body.cmd) =>
        {
            let from = source.strip_suffix(":/src:ro")?;
            let to = target.strip_suffix(":/dst")?;
            let ours = is_clone(from) == Some(false) && is_clone(to) == Some(true);
            ours.then(|| Job::Clone {
                from: from.to_owned(),
                to: to.to_owned(),
            })
        }
        _ => None,
    }
}

impl Storage {
    /// Answers a create of a helper.
    ///
    /// # Errors
    /// It is none ([`is_helper`]).
    pub(crate) fn create_helper(&self, body: HelperBody<'_>) -> Result<Response, ApiError> {
        let job = recognise(&body).ok_or_else(|| ApiError::bad_request("this is no helper"))?;
        let (one, two) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        let id = format!("{}{}", one.simple(), two.simple());
        let body = json!({ "Id": id, "Warnings": [] });
        self.helpers().insert(id, Helper { job, exit: None });
        Ok((StatusCode::CREATED, Json(body)).into_response())
    }

    /// Whether a name is a helper's.
    pub(crate) fn is_helper(&self, id: &str) -> bool {
        self.helpers().get(id).is_some()
    }

    pub(super) fn helper(&self, id: &str) -> Option<Helper> {
        self.helpers().get(id).cloned()
    }

    /// One that is known; else it was removed meanwhile.
    fn known(&self, id: &str) -> Result<Helper, ApiError> {
        let missing = || ApiError::not_found(format!("No such container: {id}"));
        self.helper(id).ok_or_else(missing)
    }

    /// Starts one.
    pub(crate) fn start_helper(&self, id: &str) -> Result<Response, ApiError> {
        let helper = self.known(id)?;
        if helper.exit.is_some() {
            return Ok(StatusCode::NOT_MODIFIED.into_response());
        }
        let Job::Clone { from, to } = helper.job else {
            return Err(ApiError::bad_request(
                "this helper only takes an archive: it cannot be started",
            ));
        };
        // What `cp` would say of a missing source.
        let found = self.snapshots.get(&self.key, &from).is_some();
        let noted = found
            && match self.volumes().get_mut(&to) {
                Some(volume) => {
                    volume.of = Some(from);
                    true
                }
                None => false,
            };
        if let Some(helper) = self.helpers().get_mut(id) {
            helper.exit = Some(i32::from(!noted));
        }
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// Waits for its end.
    pub(crate) fn wait_for_helper(&self, id: &str) -> Result<Response, ApiError> {
        let exit = self.known(id)?.exit.unwrap_or(0);
        Ok(Json(json!({ "StatusCode": exit })).into_response())
    }

    /// `GET /containers/<id>/json`.
    pub(crate) fn inspect_helper(&self, id: &str) -> Result<Response, ApiError> {
        let exit = self.known(id)?.exit;
        let status = if exit.is_some() { "exited" } else { "created" };
        let state = json!({ "Status": status, "Running": false, "ExitCode": exit.unwrap_or(0) });
        Ok(Json(json!({ "Id": id, "State": state, "Config": {} })).into_response())
    }

    /// Removes it.
    pub(crate) fn remove_helper(&self, id: &str) {
        self.helpers().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        const SNAP: &str = "workerd-snap-0a1b2c3d-0000-4000-8000-0123456789ab";
        const CLONE: &str = "workerd-snap-clone-0a1b2c3d-0000-4000-8000-0123456789ab";
        let of = |entrypoint: &[&str], cmd: &[&str], binds: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
            let (entrypoint, cmd, binds) = (owned(entrypoint), owned(cmd), owned(binds));
            recognise(&HelperBody {
                entrypoint: &entrypoint,
                cmd: &cmd,
                binds: &binds,
            })
        };
        let fill = Job::Fill {
            volume: SNAP.into(),
            at: "/mnt".into(),
        };
        assert_eq!(of(&[], &[], &[&format!("{SNAP}:/mnt")]), Some(fill));
        let copy = ["-a", "/src/.", "/dst/"];
        let clone = Job::Clone {
            from: SNAP.into(),
            to: CLONE.into(),
        };
        let (source, target) = (format!("{SNAP}:/src:ro"), format!("{CLONE}:/dst"));
        let binds = [source.as_str(), &target];
        assert_eq!(of(&["/bin/cp"], &copy, &binds), Some(clone));
        for (entrypoint, cmd, binds) in [
            (&[][..], &[][..], &["data:/mnt"][..]),
            (&[], &[], &[&format!("{SNAP}:/mnt:ro")]),
            (&[], &[], &[&format!("{CLONE}:/mnt")]),
            (&[], &["sh"], &[&format!("{SNAP}:/mnt")]),
            (&[], &[], &[]),
            (&["/bin/cp"], &["-r", "/src/.", "/dst/"], &binds),
            (&["/bin/cp"], &copy, &["data:/src:ro", &target]),
        ] {
            assert_eq!(of(entrypoint, cmd, binds), None);
        }
    }
}
