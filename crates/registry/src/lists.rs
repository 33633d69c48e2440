//! Lists: repositories, tags, referrers.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use wharf_image::ImageStore;

use crate::error::{ApiError, Code};
use crate::route::Query;
use crate::{header_value, json as json_response, run};

pub(crate) async fn catalog(images: ImageStore, query: &Query) -> Result<Response, ApiError> {
    let repositories = run(move || images.repositories()).await?;
    if query.get("tags") == Some("true") {
        // Not of the standard: an object with the tags (contract: wrangler, end of section 3).
        let object: serde_json::Map<_, _> = repositories
            .into_iter()
            .map(|(name, tags)| (name, json!(tags)))
            .collect();
        return Ok(json_response(
            StatusCode::OK,
            &json!({"repositories": object}),
        ));
    }
    let names = repositories.into_iter().map(|(name, _)| name).collect();
    let page = Page::cut(names, query)?;
    page.response("/v2/_catalog", |names| json!({"repositories": names}))
}

pub(crate) async fn tags(
    images: ImageStore,
    name: String,
    query: &Query,
) -> Result<Response, ApiError> {
    let repository = name.clone();
    let tags = run(move || images.tags(&repository)).await?;
    let page = Page::cut(tags, query)?;
    page.response(
        &format!("/v2/{name}/tags/list"),
        |tags| json!({"name": name, "tags": tags}),
    )
}

pub(crate) async fn referrers(
    images: ImageStore,
    name: String,
    digest: &str,
    query: &Query,
) -> Result<Response, ApiError> {
    let subject = crate::blobs::digest(digest)?;
    let wanted = query.get("artifactType").map(str::to_owned);
    let filtered = wanted.is_some();
    let found = run(move || Ok(images.referrers(&name, &subject))).await?;
    let manifests: Vec<_> = found
        .into_iter()
        .filter(|r| wanted.is_none() || r.artifact_type == wanted)
        .map(|r| {
            let mut descriptor =
                json!({"mediaType": r.media_type, "digest": r.digest.as_str(), "size": r.size});
            if let Some(artifact_type) = r.artifact_type {
                descriptor["artifactType"] = json!(artifact_type);
            }
            if let Some(annotations) = r.annotations {
                descriptor["annotations"] = annotations;
            }
            descriptor
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let body = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    let mut response = Response::new(Body::from(body.to_string()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if filtered {
        headers.insert(
            "oci-filters-applied",
            HeaderValue::from_static("artifactType"),
        );
    }
    Ok(response)
}

/// A part of a sorted list, and the query for the next one.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    items: Vec<String>,
    next: Option<String>,
}

impl Page {
    /// `n` is how many, `last` the item before the first (distribution specification, listing tags).
    fn cut(items: Vec<String>, query: &Query) -> Result<Self, ApiError> {
        let last = query.get("last").filter(|l| !l.is_empty());
        let mut items: Vec<_> = items
            .into_iter()
            .filter(|item| last.is_none_or(|last| item.as_str() > last))
            .collect();
        let mut next = None;
        if let Some(n) = query.get("n") {
            let n: usize = n.parse().map_err(|_| {
                ApiError::new(
                    Code::PaginationNumberInvalid,
                    "n must be a number, 0 or more",
                )
            })?;
            if n < items.len() {
                items.truncate(n);
                next = items.last().map(|last| format!("n={n}&last={last}"));
            }
        }
        Ok(Self { items, next })
    }

    fn response(
        self,
        path: &str,
        body: impl FnOnce(&[String]) -> serde_json::Value,
    ) -> Result<Response, ApiError> {
        let mut response = json_response(StatusCode::OK, &body(&self.items));
        if let Some(next) = self.next {
            let link = header_value(&format!("<{path}?{next}>; rel=\"next\""))?;
            response.headers_mut().insert(header::LINK, link);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> (Vec<String>, Option<String>) {
        let items = ["a", "b", "c"].map(str::to_owned).to_vec();
        let page = Page::cut(items, &Query::parse(Some(query))).unwrap();
        (page.items, page.next)
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        assert_eq!(page("").0.len(), 3);
        let (items, next) = page("n=2");
        assert_eq!(items, ["a", "b"]);
        let next = next.unwrap();
        assert_eq!(page(&next), (vec!["c".to_owned()], None));
        assert_eq!(page("n=0"), (vec![], None));
        assert_eq!(page("last=z"), (vec![], None));
        assert_eq!(page("n=3").1, None);
        assert!(Page::cut(vec![], &Query::parse(Some("n=x"))).is_err());
    }
}
