//! The variables that the platform sets in a container (contract: workerd, 1.3).

use crate::application::ApplicationInfo;

const OBJECT_ID: &str = "CLOUDFLARE_DURABLE_OBJECT_ID";
/// What workerd appends, with values that say nothing.
const PLACEHOLDERS: [&str; 6] = [
    "CLOUDFLARE_COUNTRY_A2",
    "CLOUDFLARE_DEPLOYMENT_ID",
    "CLOUDFLARE_LOCATION",
    "CLOUDFLARE_REGION",
    "CLOUDFLARE_APPLICATION_ID",
    OBJECT_ID,
];

/// The variables without those of the platform.
pub(crate) fn without_platforms(env: &[String]) -> Vec<String> {
    let own = env
        .iter()
        .filter(|entry| !PLACEHOLDERS.contains(&key_of(entry)));
    own.cloned().collect()
}

/// The variables of a start, with real values for workerd's placeholders. A placeholder without a
/// value is left out: it would be taken for one.
pub(crate) fn complete(
    env: &[String],
    application: &ApplicationInfo,
    object_id: &str,
) -> Vec<String> {
    let variables = &application.variables;
    let is_set = |key: &str| variables.iter().any(|(name, _)| name == key);
    let mut env = without_platforms(env);
    env.retain(|entry| !is_set(key_of(entry)));
    env.extend(
        variables
            .iter()
            .map(|(key, value)| format!("{key}={value}")),
    );
    if application.min_instances > 0 {
        // Its instances may be started before there is an object that asks for them. None has it,
        // so that all are alike.
        env.retain(|entry| key_of(entry) != OBJECT_ID);
    } else if !is_set(OBJECT_ID) {
        env.push(format!("{OBJECT_ID}={object_id}"));
    }
    env
}

fn key_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_never_reach_the_container() {
        let owned = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
        let application = ApplicationInfo {
            variables: [("CLOUDFLARE_REGION", "EEUR"), ("CLOUDFLARE_EXTRA", "1")]
                .map(owned)
                .to_vec(),
            ..ApplicationInfo::for_tests()
        };
        let env = [
            "FOO=bar",
            "CLOUDFLARE_REGION=REGN",
            "CLOUDFLARE_COUNTRY_A2=XX",
            "CLOUDFLARE_DURABLE_OBJECT_ID=xxxx",
        ];
        assert_eq!(
            complete(&env.map(str::to_owned), &application, "abc"),
            [
                "FOO=bar",
                "CLOUDFLARE_REGION=EEUR",
                "CLOUDFLARE_EXTRA=1",
                "CLOUDFLARE_DURABLE_OBJECT_ID=abc"
            ]
        );
    }
}
