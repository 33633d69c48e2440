//! Reading the multipart body: one part of metadata, and one per module.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, header};
use multer::{Constraints, Multipart, SizeLimit};
use wharf_model::{Module, ModuleKind};

use crate::App;
use crate::body::{JSON_LIMIT, drain};
use crate::envelope::{ApiError, ApiResult};

/// Most bytes of a script upload.
pub(crate) const UPLOAD_LIMIT: u64 = 100 << 20;
/// Most bytes of all modules together.
pub(crate) const MODULES_LIMIT: u64 = 64 << 20;

/// A script upload, its modules stored.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The part `metadata` (or `settings`), as text.
    pub(crate) metadata: String,
    pub(crate) modules: Vec<Module>,
}

/// What a part other than the JSON is.
enum Part {
    Module(ModuleKind),
    /// Source maps are for stack traces, which this Wharf shows as they are.
    Ignored,
}

/// Stores a module's content, and returns its hash.
pub(crate) type Put<'a> = &'a (dyn Fn(Bytes) -> BoxFuture<'static, ApiResult<String>> + Sync);

/// Reads an upload. `json_part` names the part that holds JSON.
pub(crate) async fn read(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
    json_part: &str,
) -> ApiResult<Parts> {
    let put = |content: Bytes| -> BoxFuture<'static, ApiResult<String>> {
        let app = Arc::clone(app);
        async move { app.db(move |store| store.put_blob(&content)).await }.boxed()
    };
    read_into(&put, headers, body, json_part).await
}

/// [`read`] with another place for modules.
pub(crate) async fn read_into(
    put: Put<'_>,
    headers: &HeaderMap,
    body: Body,
    json_part: &str,
) -> ApiResult<Parts> {
    let boundary = boundary(headers)?;
    let mut stream = body.into_data_stream();
    let constraints = Constraints::new().size_limit(
        SizeLimit::new()
            .whole_stream(UPLOAD_LIMIT)
            .per_field(MODULES_LIMIT)
            .for_field(json_part, JSON_LIMIT),
    );
    let parts = {
        let multipart = Multipart::with_constraints(&mut stream, boundary, constraints);
        read_parts(put, multipart, json_part).await
    };
    if parts.is_err() {
        drain(&mut stream).await;
    }
    parts
}

/// The boundary, without which a multipart body can't be read.
pub(crate) fn boundary(headers: &HeaderMap) -> ApiResult<String> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    multer::parse_boundary(content_type).map_err(|_| {
        ApiError::bad_request(format!(
            "the body must be multipart/form-data with a boundary; its Content-Type is {content_type:?}"
        ))
    })
}

/// The answer to a body that multer refuses.
pub(crate) fn refused(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamSizeExceeded { limit } => ApiError::too_large("the upload", limit),
        multer::Error::FieldSizeExceeded { limit, field_name } => ApiError::too_large(
            &format!(
                "the upload's part {:?}",
                field_name.as_deref().unwrap_or_default()
            ),
            limit,
        ),
        other => ApiError::bad_request(format!("the multipart body can't be read: {other}")),
    }
}

async fn read_parts(
    put: Put<'_>,
    mut multipart: Multipart<'_>,
    json_part: &str,
) -> ApiResult<Parts> {
    let mut metadata = None;
    let mut modules: Vec<Module> = Vec::new();
    let mut names = BTreeSet::new();
    let mut total = 0;
    while let Some(field) = multipart.next_field().await.map_err(refused)? {
        if field.name() == Some(json_part) {
            metadata = Some(field.text().await.map_err(refused)?);
            continue;
        }
        let name = field
            .file_name()
            .or(field.name())
            .unwrap_or_default()
            .to_owned();
        match kind(&name, field.content_type().map(AsRef::<str>::as_ref))? {
            Part::Ignored => drop(field.bytes().await.map_err(refused)?),
            Part::Module(kind) => {
                let content = field.bytes().await.map_err(refused)?;
                total += content.len() as u64;
                if total > MODULES_LIMIT {
                    return Err(ApiError::too_large(
                        "the total size of the Worker's modules",
                        MODULES_LIMIT,
                    ));
                }
                let name = module_name(&name)?;
                if !names.insert(name.clone()) {
                    return Err(ApiError::invalid(format!(
                        "the upload has two modules named {name:?}"
                    )));
                }
                let blob = put(content).await?;
                modules.push(Module { name, kind, blob });
            }
        }
    }
    let metadata = metadata.ok_or_else(|| {
        ApiError::bad_request(format!("the upload has no part named {json_part:?}"))
    })?;
    Ok(Parts { metadata, modules })
}

fn kind(name: &str, content_type: Option<&str>) -> ApiResult<Part> {
    let essence = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    Ok(Part::Module(match essence {
        "application/javascript+module" | "text/javascript+module" => ModuleKind::EsModule,
        "application/javascript" | "text/javascript" => ModuleKind::CommonJs,
        "application/wasm" => ModuleKind::Wasm,
        "application/octet-stream" => ModuleKind::Data,
        "text/plain" => ModuleKind::Text,
        "application/json" => ModuleKind::Json,
        "application/source-map" => return Ok(Part::Ignored),
        "text/x-python" | "text/x-python-requirement" => {
            return Err(ApiError::unsupported(format!(
                "Python Workers (module {name:?})"
            )));
        }
        other => {
            return Err(ApiError::invalid(format!(
                "module {name:?} has the content type {other:?}, which is none of a Worker's module types"
            )));
        }
    }))
}

/// The module's path, without a leading `./`.
pub(crate) fn module_name(name: &str) -> ApiResult<String> {
    let path = name.trim_start_matches("./");
    let bad = path.is_empty()
        || path.len() > 512
        || path.starts_with('/')
        || path.contains('\0')
        || path.split('/').any(|segment| segment == "..");
    if bad {
        return Err(ApiError::invalid(format!(
            "{name:?} can't be a module's name: a relative path without \"..\" is needed"
        )));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_stay_inside() {
        assert_eq!(module_name("./a/b.js").unwrap(), "a/b.js");
        for bad in ["", "./", "/etc/passwd", "../x", "a/../../x", "a\0b"] {
            assert!(module_name(bad).is_err(), "{bad:?}");
        }
    }
}
