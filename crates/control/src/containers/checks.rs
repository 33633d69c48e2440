//! What of an application's configuration is refused. Pure.

use serde_json::{Map, Value};
use wharf_model::{Application, Configuration, MANAGED_POLICY};

use crate::envelope::{ApiError, ApiResult};
use crate::fields;

/// Reads `configuration`; checks all but whether its image exists.
pub(crate) fn configuration(configuration: &Value) -> ApiResult<Configuration> {
    if !configuration.is_object() {
        return Err(ApiError::bad_request(
            "an application needs a \"configuration\"",
        ));
    }
    fields::CONFIGURATION.check_value(Some(configuration))?;
    fields::DISK.check_value(configuration.get("disk"))?;
    observability(configuration.get("observability"))?;
    let ssh = configuration
        .get("wrangler_ssh")
        .and_then(|ssh| ssh.get("enabled"))
        .and_then(Value::as_bool);
    if ssh == Some(true) {
        return Err(ApiError::unsupported(
            "SSH sessions into containers (\"ssh\": {\"enabled\": true})",
        ));
    }
    Configuration::parse(configuration.clone()).map_err(ApiError::bad_request)
}

/// Checks an application's fields beside its configuration, as they come with a create or a change.
pub(crate) fn application(body: &Map<String, Value>) -> ApiResult<()> {
    fields::APPLICATION.check(body)?;
    fields::CONSTRAINTS.check_value(body.get("constraints"))?;
    fields::AFFINITIES.check_value(body.get("affinities"))?;
    observability(body.get("observability"))?;
    match body.get("scheduling_policy").filter(|p| !p.is_null()) {
        None => Ok(()),
        // All but the last choose among Cloudflare's places, and a node is one.
        Some(policy)
            if matches!(
                policy.as_str(),
                Some("default" | "moon" | "regional" | "fill_metals" | MANAGED_POLICY)
            ) =>
        {
            Ok(())
        }
        Some(policy) => Err(ApiError::unsupported_but(
            format!("scheduling policies such as {policy} (\"scheduling_policy\")"),
            "remove it",
        )),
    }
}

fn observability(value: Option<&Value>) -> ApiResult<()> {
    fields::APPLICATION_OBSERVABILITY.check_value(value)?;
    fields::TELEMETRY.check_value(value.and_then(|v| v.get("logs")))?;
    Ok(())
}

/// Checks `configuration` of an application that its Durable Object manages: image and size come with each start.
pub(crate) fn managed_configuration(value: &Value) -> ApiResult<Configuration> {
    let read = configuration(value)?;
    for key in value.as_object().into_iter().flat_map(Map::keys) {
        match key.as_str() {
            // The last is refused above, unless it is empty.
            "wrangler_ssh" | "authorized_keys" | "trusted_user_ca_keys" | "experimental_flags" => {}
            _ => {
                return Err(ApiError::bad_request(format!(
                    "an application with \"scheduling_policy\": \"durable_object\" has no {key:?}: image and size come with start()"
                )));
            }
        }
    }
    Ok(read)
}

/// What is said of a container with `"scheduling_policy": "durable_object"` and nothing that it may start.
pub(crate) fn no_named_images(container: &str) -> ApiError {
    ApiError::unsupported(format!(
        "containers with \"scheduling_policy\": \"durable_object\" and without named \"images\" (container {container:?})"
    ))
}

/// Checks that a container stays what its application is: with named images, or with one image of the application's own.
pub(crate) fn same_management(application: &Application, named: bool) -> ApiResult<()> {
    let (has, wants) = match (application.is_managed(), named) {
        (true, false) => ("named images", "no named images"),
        (false, true) => ("one image of its own", "named images"),
        _ => return Ok(()),
    };
    Err(ApiError::bad_request(format!(
        "application {:?} has {has}, and the configuration now says {wants}; to change that, delete it first: `wrangler containers delete {}`",
        application.name, application.id
    )))
}

/// Reads `max_instances`.
pub(crate) fn max_instances(value: &Value) -> ApiResult<u32> {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "max_instances must be a whole number of at least 1, not {value}"
            ))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nonsense_is_refused() {
        for good in [
            json!({"image": "a:1"}),
            json!({"wharf": {"isolation": "gvisor"}}),
            json!({"wharf": {"isolation": "microvm"}}),
            json!({"instance_type": "dev", "wrangler_ssh": {"enabled": false}}),
            json!({"vcpu": 0.5, "memory_mib": 100, "disk": {"size_mb": 2000}}),
        ] {
            assert!(configuration(&good).is_ok(), "{good}");
        }
        for bad in [
            json!(null),
            json!({"instance_type": "huge"}),
            json!({"vcpu": 0}),
            json!({"memory_mib": "lots"}),
            json!({"disk": {"size_mb": -1}}),
            json!({"wrangler_ssh": {"enabled": true}}),
            json!({"wharf": {"isolation": "none"}}),
        ] {
            assert!(configuration(&bad).is_err(), "{bad}");
        }
        for good in [
            json!({}),
            json!({"wrangler_ssh": {"enabled": false}, "experimental_flags": []}),
        ] {
            assert!(managed_configuration(&good).is_ok(), "{good}");
        }
        for bad in [
            json!({"image": "a:1"}),
            json!({"instance_type": "lite"}),
            json!({"experimental_flags": ["x"]}),
            json!({"wrangler_ssh": {"enabled": true}}),
        ] {
            assert!(managed_configuration(&bad).is_err(), "{bad}");
        }
        assert!(max_instances(&json!(0)).is_err());
        assert!(max_instances(&json!(1.5)).is_err());
        assert_eq!(max_instances(&json!(3)).unwrap(), 3);
    }
}
