//! Paths and queries. Repository names have slashes, so what a path means is told by its end.

use wharf_image::is_repository;

use crate::error::{ApiError, Code};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Base,
    Catalog,
    /// wrangler's garbage collection.
    Collect,
    Tags(String),
    /// Repository, tag or digest.
    Manifest(String, String),
    Referrers(String, String),
    Blob(String, String),
    Uploads(String),
    /// Repository, upload id.
    Upload(String, String),
}

impl Route {
    pub(crate) fn parse(path: &str) -> Result<Self, ApiError> {
        let path = decode(path);
        let rest = path
            .strip_prefix("/v2")
            .map(|rest| rest.trim_start_matches('/'))
            .unwrap_or_default();
        match rest {
            "" => return Ok(Self::Base),
            "_catalog" => return Ok(Self::Catalog),
            "gc/layers" => return Ok(Self::Collect),
            _ => {}
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let name = |parts: &[&str]| {
            let name = parts.join("/");
            if is_repository(&name) {
                Ok(name)
            } else {
                Err(ApiError::new(
                    Code::NameInvalid,
                    format!("invalid repository name \"{}\"", name.escape_default()),
                ))
            }
        };
        match parts.as_slice() {
            [of @ .., "tags", "list"] => Ok(Self::Tags(name(of)?)),
            [of @ .., "manifests", reference] => {
                Ok(Self::Manifest(name(of)?, (*reference).to_owned()))
            }
            [of @ .., "referrers", digest] => Ok(Self::Referrers(name(of)?, (*digest).to_owned())),
            [of @ .., "blobs", "uploads"] | [of @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads(name(of)?))
            }
            [of @ .., "blobs", "uploads", id] => Ok(Self::Upload(name(of)?, (*id).to_owned())),
            [of @ .., "blobs", digest] => Ok(Self::Blob(name(of)?, (*digest).to_owned())),
            _ => Err(ApiError::new(
                Code::NameUnknown,
                format!("nothing is served at {}", path.escape_default()),
            )),
        }
    }
}

/// The pairs of a query, decoded.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        Self(
            text.unwrap_or_default()
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(&value.replace('+', " ")))
                })
                .collect(),
        )
    }
    /// Refuses parameters that the route does not know, by name.
    pub(crate) fn check(&self, route: &Route) -> Result<(), ApiError> {
        let known: &[&str] = match route {
            Route::Catalog => &["n", "last", "tags"],
            Route::Tags(_) => &["n", "last"],
            Route::Referrers(..) => &["artifactType"],
            // Blobs are shared between repositories, so `from` does not matter.
            Route::Uploads(_) => &["mount", "from", "digest"],
            Route::Upload(..) => &["digest"],
            _ => &[],
        };
        // `ns` names the registry that a mirror stands for; this one stands for itself alone.
        let other = |(key, _): &&(String, String)| key != "ns" && !known.contains(&key.as_str());
        match self.0.iter().find(other) {
            None => Ok(()),
            Some((key, _)) => Err(ApiError::new(
                Code::Unsupported,
                format!(
                    "the query parameter \"{}\" is not supported here: leave it out",
                    key.escape_default()
                ),
            )),
        }
    }
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Takes percent encoding off. What is not valid stays as it is, and fails the checks of names.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(path: &str) -> Route {
        Route::parse(path).unwrap()
    }

    #[test]
    fn the_end_of_a_path_says_what_it_is() {
        let s = str::to_owned;
        assert_eq!(route("/v2"), Route::Base);
        assert_eq!(route("/v2/"), Route::Base);
        assert_eq!(route("/v2/_catalog"), Route::Catalog);
        assert_eq!(route("/v2/gc/layers"), Route::Collect);
        assert_eq!(route("/v2/a/b/tags/list"), Route::Tags(s("a/b")));
        assert_eq!(
            route("/v2/a/manifests/manifests/v1"),
            Route::Manifest(s("a/manifests"), s("v1"))
        );
        assert_eq!(
            route("/v2/a/blobs/sha256%3Aab"),
            Route::Blob(s("a"), s("sha256:ab"))
        );
        assert_eq!(route("/v2/a/blobs/uploads/"), Route::Uploads(s("a")));
        assert_eq!(route("/v2/a/blobs/uploads"), Route::Uploads(s("a")));
        assert_eq!(
            route("/v2/a/b/blobs/uploads/id"),
            Route::Upload(s("a/b"), s("id"))
        );
        for bad in [
            "/v2/x",
            "/v2/A/tags/list",
            "/v2//tags/list",
            "/v2/a/../b/tags/list",
            "/v2/a%2f..%2fb/tags/list",
            "/v2/tags/list",
        ] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("digest=sha256%3Aab&mount&x=a+b%"));
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!(query.get("mount"), Some(""));
        assert_eq!(query.get("x"), Some("a b%"));
        assert_eq!(query.get("y"), None);
    }

    #[test]
    fn a_parameter_that_a_route_does_not_know_is_refused_by_name() {
        let check = |path: &str, query: &str| Query::parse(Some(query)).check(&route(path));
        assert!(check("/v2/a/tags/list", "n=2&last=x&ns=docker.io").is_ok());
        assert!(check("/v2/a/blobs/uploads/", "mount=x&from=b").is_ok());
        let error = check("/v2/a/blobs/uploads/", "digest-algorithm=sha512").unwrap_err();
        assert!(format!("{error:?}").contains("digest-algorithm"));
        assert!(check("/v2/a/manifests/v1", "tag=v2").is_err());
    }

    proptest! {
        #[test]
        fn no_path_panics_and_names_are_always_valid(path in "/v2(/[a-z%./A-Z0-9é]{0,9}){0,5}(/tags/list|/manifests/x|/blobs/x)?") {
            if let Ok(Route::Tags(name) | Route::Manifest(name, _) | Route::Blob(name, _)) = Route::parse(&path) {
                prop_assert!(is_repository(&name));
            }
        }
    }
}
