//! Manifests by tag or digest.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use wharf_image::{Digest, ImageStore};

use crate::error::{ApiError, Code};
use crate::{CONTENT_DIGEST, MAX_MANIFEST, empty, run};

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A client that accepts manifests but no indexes gets, for a tag of an index, the manifest for this machine. Any other type that it did not
/// list is sent nevertheless (RFC 9110, 12.5.1 allows it): its `Content-Type` says what it is, and clients exist that list too little.
pub(crate) async fn get(
    images: ImageStore,
    name: String,
    reference: String,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let accepted: Vec<String> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|item| item.split(';').next().unwrap_or_default().trim().to_owned())
        .collect();
    let (digest, media_type, body) = run(move || {
        let found = images.manifest(&name, &reference)?;
        let accepts = |media_type: &str| {
            accepted.is_empty()
                || accepted
                    .iter()
                    .any(|a| a == media_type || a == "*/*" || a == "application/*")
        };
        if INDEXES.contains(&found.1.as_str())
            && !accepts(&found.1)
            && !reference.contains(':')
            && let Some(child) = images.platform_manifest(&name, &reference)?
        {
            let child = images.manifest(&name, child.as_str())?;
            if accepts(&child.1) {
                return Ok(child);
            }
        }
        Ok(found)
    })
    .await
    .map_err(ApiError::of(Code::ManifestUnknown, Code::DigestInvalid))?;
    let mut response = empty(
        StatusCode::OK,
        &[
            (header::CONTENT_TYPE, media_type),
            (header::CONTENT_LENGTH, body.len().to_string()),
            (header::ETAG, format!("\"{digest}\"")),
            (CONTENT_DIGEST, digest.to_string()),
        ],
    )?;
    // For HEAD the server leaves it out and keeps the length.
    *response.body_mut() = Body::from(body);
    Ok(response)
}

pub(crate) async fn put(
    images: ImageStore,
    name: String,
    reference: String,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = match Limited::new(body, MAX_MANIFEST).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(ApiError::new(
                Code::SizeInvalid,
                format!("a manifest may have {MAX_MANIFEST} bytes at most"),
            )
            .status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        Err(error) => {
            return Err(ApiError::new(
                Code::ManifestInvalid,
                format!("the body broke off: {error}"),
            ));
        }
    };
    if reference.contains(':') {
        let claimed = crate::blobs::digest(&reference)?;
        let found = Digest::of(&bytes);
        if found != claimed {
            return Err(ApiError::new(
                Code::DigestInvalid,
                format!("the manifest that was sent has digest {found}, not {claimed}"),
            ));
        }
    }
    let sent_as = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next())
        .map(|v| v.trim().to_owned());
    let Some(media_type) = sent_as else {
        return Err(ApiError::new(
            Code::ManifestInvalid,
            "a manifest must be sent with its media type as Content-Type",
        ));
    };
    let location = name.clone();
    let (digest, subject) = run(move || {
        let digest = images.put_manifest(&name, &reference, &media_type, &bytes)?;
        let subject = images.subject(&name, &digest);
        Ok((digest, subject))
    })
    .await
    .map_err(ApiError::of(
        Code::ManifestBlobUnknown,
        Code::ManifestInvalid,
    ))?;
    let mut headers = vec![
        (
            header::LOCATION,
            format!("/v2/{location}/manifests/{digest}"),
        ),
        (CONTENT_DIGEST, digest.to_string()),
        (header::CONTENT_LENGTH, "0".to_owned()),
    ];
    headers.extend(subject.map(|subject| (OCI_SUBJECT, subject.to_string())));
    empty(StatusCode::CREATED, &headers)
}

pub(crate) async fn delete(
    images: ImageStore,
    name: String,
    reference: String,
) -> Result<Response, ApiError> {
    run(move || images.delete_manifest(&name, &reference))
        .await
        .map_err(ApiError::of(Code::ManifestUnknown, Code::DigestInvalid))?;
    empty(StatusCode::ACCEPTED, &[])
}
