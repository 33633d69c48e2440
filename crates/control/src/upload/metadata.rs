//! The upload's metadata: its form, and what of it is refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::envelope::{ApiError, ApiResult};
use crate::fields;

/// The part `metadata`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) main_module: Option<String>,
    pub(crate) bindings: Option<Vec<Value>>,
    pub(crate) compatibility_date: Option<String>,
    pub(crate) compatibility_flags: Option<Vec<String>>,
    pub(crate) migrations: Option<Value>,
    pub(crate) containers: Option<Vec<ContainerRef>>,
    pub(crate) keep_bindings: Option<Vec<String>>,
    pub(crate) keep_assets: Option<bool>,
    pub(crate) annotations: Option<BTreeMap<String, Value>>,
    pub(crate) assets: Option<AssetsRef>,
    pub(crate) exports: Option<Value>,
    cache_options: Option<Value>,
    /// Fields without meaning here, which are shown again as they came (see `fields`).
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// A Durable Object class that has a container.
#[derive(Debug, Deserialize)]
pub(crate) struct ContainerRef {
    pub(crate) class_name: Option<String>,
    pub(crate) name: Option<String>,
    /// References by name; there are none where the application has an image of its own.
    pub(crate) images: Option<BTreeMap<String, String>>,
}

/// The assets of the upload session that `jwt` names.
#[derive(Debug, Deserialize)]
pub(crate) struct AssetsRef {
    pub(crate) jwt: Option<String>,
    pub(crate) config: Option<Value>,
}

/// Date that Cloudflare takes for an upload without one.
pub(crate) const OLDEST_DATE: &str = "2021-11-02";

impl Metadata {
    /// Reads and checks what can be checked without looking anything up.
    pub(crate) fn parse(text: &str) -> ApiResult<Self> {
        let unreadable = |error: serde_json::Error| {
            ApiError::bad_request(format!("the upload's metadata can't be read: {error}"))
        };
        let object: Map<String, Value> = serde_json::from_str(text).map_err(unreadable)?;
        check_fields(&object)?;
        let metadata: Self = serde_json::from_value(Value::Object(object)).map_err(unreadable)?;
        metadata.refuse_unsupported()?;
        Ok(metadata)
    }

    fn refuse_unsupported(&self) -> ApiResult<()> {
        let cached = self
            .cache_options
            .as_ref()
            .and_then(|options| options.get("enabled"))
            .and_then(Value::as_bool);
        if cached == Some(true) {
            return Err(ApiError::unsupported("cache options (\"cache\")"));
        }
        Ok(())
    }

    /// The compatibility date, checked to be a date that has come.
    pub(crate) fn date(&self, today: jiff::civil::Date) -> ApiResult<String> {
        let Some(text) = &self.compatibility_date else {
            return Ok(OLDEST_DATE.to_owned());
        };
        let shape = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        let date = shape
            .then(|| text.parse::<jiff::civil::Date>().ok())
            .flatten()
            .ok_or_else(|| {
                ApiError::invalid(format!(
                    "compatibility_date {text:?} is no date of the form YYYY-MM-DD"
                ))
            })?;
        // A day of grace: the client's clock may be in another time zone.
        if today.tomorrow().is_ok_and(|tomorrow| date > tomorrow) {
            return Err(ApiError::invalid(format!(
                "compatibility_date {text} is in the future; today is {today}"
            )));
        }
        Ok(text.clone())
    }

    /// `workers/...` annotations as text.
    pub(crate) fn annotations(&self) -> ApiResult<BTreeMap<String, String>> {
        annotations(self.annotations.iter().flatten())
    }
}

/// Annotations of a version or a deployment: texts. Null says nothing.
pub(crate) fn annotations<'a>(
    given: impl Iterator<Item = (&'a String, &'a Value)>,
) -> ApiResult<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for (key, value) in given.filter(|(_, value)| !value.is_null()) {
        let Some(text) = value.as_str() else {
            return Err(ApiError::bad_request(format!(
                "annotation {key:?} must be a text, not {value}"
            )));
        };
        if key == "workers/alias" {
            return Err(ApiError::unsupported_but(
                format!("aliases of versions (\"--preview-alias\", {text:?})"),
                "upload without one; a version has an address when it is deployed",
            ));
        }
        texts.insert(key.clone(), text.to_owned());
    }
    Ok(texts)
}

fn check_fields(metadata: &Map<String, Value>) -> ApiResult<()> {
    fields::UPLOAD.check(metadata)?;
    fields::CODE_UPDATE.check_value(metadata.get("code_update_strategy"))?;
    observability(metadata.get("observability"))?;
    fields::LIMITS.check_value(metadata.get("limits"))?;
    cpu_limit(metadata.get("limits"))?;
    if let Some(Value::Object(assets)) = metadata.get("assets") {
        fields::ASSETS.check(assets)?;
        fields::ASSETS_CONFIG.check_value(assets.get("config"))?;
    }
    for container in metadata
        .get("containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        fields::CONTAINER.check_value(Some(container))?;
    }
    Ok(())
}

/// Checks `limits.cpu_ms`, which has Cloudflare's bounds.
fn cpu_limit(limits: Option<&Value>) -> ApiResult<()> {
    match limits.and_then(|limits| limits.get("cpu_ms")) {
        None | Some(Value::Null) => Ok(()),
        Some(value)
            if value
                .as_u64()
                .is_some_and(|ms| (10..=300_000).contains(&ms)) =>
        {
            Ok(())
        }
        Some(value) => Err(ApiError::invalid(format!(
            "limits.cpu_ms is {value}; it is a whole number from 10 to 300000"
        ))),
    }
}

/// Checks a Worker's `observability`.
pub(crate) fn observability(value: Option<&Value>) -> ApiResult<()> {
    let Some(Value::Object(observability)) = value else {
        return Ok(());
    };
    fields::OBSERVABILITY.check(observability)?;
    for kind in ["logs", "traces"] {
        fields::TELEMETRY.check_value(observability.get(kind))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let today = jiff::civil::date(2026, 11, 20);
        let date = |text: &str| {
            Metadata::parse(&format!(r#"{{"compatibility_date":{text:?}}}"#))
                .unwrap()
                .date(today)
        };
        assert_eq!(date("2026-11-21").unwrap(), "2026-11-21");
        for bad in [
            "2026-11-22",
            "2026-02-30",
            "2026-1-1",
            "today",
            "2026-11-20T00",
            "",
        ] {
            assert!(date(bad).is_err(), "{bad}");
        }
        let none = Metadata::parse("{}").unwrap();
        assert_eq!(none.date(today).unwrap(), OLDEST_DATE);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (metadata, name) in [
            (r#"{"body_part":"x"}"#, "service-worker"),
            (r#"{"tail_consumers":[{"service":"x"}]}"#, "tail consumers"),
            (r#"{"logpush":true}"#, "Logpush"),
        ] {
            let error = Metadata::parse(metadata).unwrap_err();
            assert_eq!(error.code, crate::envelope::UNSUPPORTED);
            assert!(error.message.contains(name), "{}", error.message);
        }
        assert!(Metadata::parse(r#"{"logpush":false,"tail_consumers":[],"exports":{}}"#).is_ok());
    }
}
