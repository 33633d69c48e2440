//! The upload's metadata: its form, and what of it is refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::envelope::{ApiError, ApiResult};

/// The part `metadata`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) main_module: Option<String>,
    body_part: Option<String>,
    pub(crate) bindings: Option<Vec<Value>>,
    pub(crate) compatibility_date: Option<String>,
    pub(crate) compatibility_flags: Option<Vec<String>>,
    pub(crate) migrations: Option<Value>,
    pub(crate) containers: Option<Vec<ContainerRef>>,
    pub(crate) keep_bindings: Option<Vec<String>>,
    pub(crate) keep_assets: Option<bool>,
    pub(crate) annotations: Option<BTreeMap<String, Value>>,
    pub(crate) assets: Option<AssetsRef>,
    exports: Option<Value>,
    tail_consumers: Option<Value>,
    streaming_tail_consumers: Option<Value>,
    logpush: Option<bool>,
    capnp_schema: Option<Value>,
    cache_options: Option<Value>,
    /// observability, placement, limits, ...: kept with the version, not acted on.
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
        let metadata: Self = serde_json::from_str(text).map_err(|error| {
            ApiError::bad_request(format!("the upload's metadata can't be read: {error}"))
        })?;
        metadata.refuse_unsupported()?;
        Ok(metadata)
    }

    fn refuse_unsupported(&self) -> ApiResult<()> {
        let set = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        let enabled = |value: &Option<Value>| {
            value
                .as_ref()
                .and_then(|v| v.get("enabled"))
                .and_then(Value::as_bool)
                == Some(true)
        };
        let feature = if self.body_part.is_some() {
            "service-worker format scripts (use `export default { fetch }`)"
        } else if set(&self.exports) {
            "\"exports\" configurations (declare Durable Object classes by \"migrations\")"
        } else if set(&self.tail_consumers) || set(&self.streaming_tail_consumers) {
            "tail consumers"
        } else if self.logpush == Some(true) {
            "Logpush jobs (\"logpush\": true)"
        } else if set(&self.capnp_schema) {
            "Cap'n Proto schemas (\"unsafe.capnp\")"
        } else if enabled(&self.cache_options) {
            "cache options (\"cache\")"
        } else {
            return Ok(());
        };
        Err(ApiError::unsupported(feature))
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
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations
            .iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }
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
            (r#"{"exports":{"A":{"type":"durable-object"}}}"#, "exports"),
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
