//! What runs: the image's configuration and the request merged as Docker merges them. Pure.

use std::collections::BTreeMap;

use crate::{Create, EngineError};

/// Docker's default search path on Linux.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The parts of an image's configuration that concern the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl ImageDefaults {
    pub(crate) fn of(config: &oci_spec::image::ImageConfiguration) -> Self {
        let Some(config) = config.config().as_ref() else {
            return ImageDefaults::default();
        };
        ImageDefaults {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            user: config.user().clone(),
            working_dir: config.working_dir().clone(),
            stop_signal: config.stop_signal().clone(),
            labels: config
                .labels()
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        }
    }
}

/// The merged process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    pub(crate) stop_signal: i32,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Merges. The rules are those of Docker's `merge` and `getEntrypointAndArgs`.
pub(crate) fn merge(
    image: &ImageDefaults,
    request: &Create,
    hostname: &str,
) -> Result<Merged, EngineError> {
    let mut cmd = request.cmd.clone();
    let entrypoint = match &request.entrypoint {
        // Without an entrypoint of its own the request's command replaces only the image's command.
        None => {
            if cmd.is_empty() {
                cmd.clone_from(&image.cmd);
            }
            image.entrypoint.clone()
        }
        Some(given) if given.is_empty() => {
            if cmd.is_empty() {
                cmd.clone_from(&image.cmd);
            }
            Vec::new()
        }
        // `--entrypoint ""` sends one empty string: no entrypoint, and the image's command is
        // dropped as for any other.
        Some(given) if given.len() == 1 && given[0].is_empty() => Vec::new(),
        Some(given) => given.clone(),
    };
    let argv: Vec<String> = entrypoint.into_iter().chain(cmd).collect();
    if argv.first().is_none_or(String::is_empty) {
        return Err(EngineError::Invalid(format!(
            "no command specified: the image {} has neither ENTRYPOINT nor CMD, and the request has none; add one to the Dockerfile",
            request.image
        )));
    }
    let mut env = Vec::new();
    for entry in [
        format!("PATH={DEFAULT_PATH}"),
        format!("HOSTNAME={hostname}"),
    ]
    .iter()
    .chain(&image.env)
    .chain(&request.env)
    {
        set_env(&mut env, entry)?;
    }
    let non_empty = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let working_dir = non_empty(&request.working_dir)
        .or_else(|| non_empty(&image.working_dir))
        .unwrap_or_else(|| "/".to_owned());
    if !working_dir.starts_with('/') {
        return Err(EngineError::Invalid(format!(
            "the working directory \"{working_dir}\" is invalid, it needs to be an absolute path"
        )));
    }
    let stop_signal = match non_empty(&image.stop_signal) {
        None => 15,
        Some(text) => parse_signal(&text).ok_or_else(|| {
            EngineError::Invalid(format!("the image's STOPSIGNAL \"{text}\" is no signal"))
        })?,
    };
    let mut labels = image.labels.clone();
    labels.extend(request.labels.clone());
    Ok(Merged {
        argv,
        env,
        user: non_empty(&request.user)
            .or_else(|| non_empty(&image.user))
            .unwrap_or_default(),
        working_dir,
        stop_signal,
        labels,
    })
}

/// Sets `K=V`; an entry without `=` removes the key, as with Docker.
pub(crate) fn set_env(env: &mut Vec<String>, entry: &str) -> Result<(), EngineError> {
    if entry.contains('\0') {
        return Err(EngineError::Invalid(
            "an environment entry contains a NUL byte".to_owned(),
        ));
    }
    let (key, has_value) = match entry.split_once('=') {
        Some((key, _)) => (key, true),
        None => (entry, false),
    };
    if key.is_empty() {
        return Err(EngineError::Invalid(format!(
            "invalid environment variable: \"{entry}\""
        )));
    }
    let same_key = |have: &String| have.split_once('=').is_some_and(|(k, _)| k == key);
    match (env.iter().position(same_key), has_value) {
        (Some(at), true) => env[at] = entry.to_owned(),
        (Some(at), false) => {
            env.remove(at);
        }
        (None, true) => env.push(entry.to_owned()),
        (None, false) => {}
    }
    Ok(())
}

/// A signal by number or name, with or without `SIG` (`15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`), on
/// Linux.
pub fn parse_signal(text: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    // Real-time signals as glibc numbers them: it keeps 32 and 33 for itself.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let in_range = |n: i32| (1..=RTMAX).contains(&n).then_some(n);
    if let Ok(number) = text.parse::<i32>() {
        return in_range(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|n| *n == name) {
        return i32::try_from(at + 1).ok();
    }
    match name {
        "IOT" => return Some(6),
        "POLL" => return Some(29),
        "CLD" => return Some(17),
        "RTMIN" => return Some(RTMIN),
        "RTMAX" => return Some(RTMAX),
        _ => {}
    }
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return in_range(RTMIN.checked_add(offset.parse().ok()?)?);
    }
    let offset: i32 = name.strip_prefix("RTMAX-")?.parse().ok()?;
    in_range(RTMAX.checked_sub(offset)?).filter(|n| *n >= RTMIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageDefaults {
        ImageDefaults {
            entrypoint: strings(entrypoint),
            cmd: strings(cmd),
            ..ImageDefaults::default()
        }
    }

    fn request(entrypoint: Option<&[&str]>, cmd: &[&str]) -> Create {
        Create {
            owner: crate::Owner::Operator,
            name: "n".into(),
            image: "i".into(),
            cmd: strings(cmd),
            entrypoint: entrypoint.map(strings),
            env: Vec::new(),
            user: None,
            working_dir: None,
            labels: BTreeMap::new(),
            limits: wharf_sandbox::Limits::default(),
            network: None,
            own_network: crate::OwnNetwork::default(),
            auto_remove: false,
            application: None,
            volumes: Vec::new(),
            snapshot: None,
            isolation: None,
            no_new_privileges: false,
            surroundings: crate::Surroundings::default(),
            start: crate::StartOptions::default(),
        }
    }

    fn argv(image: &ImageDefaults, request: &Create) -> Result<Vec<String>, String> {
        merge(image, request, "h")
            .map(|m| m.argv)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn command_rules_are_dockers() {
        let both = image(&["/e"], &["c"]);
        assert_eq!(argv(&both, &request(None, &[])), Ok(strings(&["/e", "c"])));
        assert_eq!(
            argv(&both, &request(None, &["x", "y"])),
            Ok(strings(&["/e", "x", "y"]))
        );
        assert_eq!(
            argv(&both, &request(Some(&["/new"]), &[])),
            Ok(strings(&["/new"]))
        );
        assert_eq!(
            argv(&both, &request(Some(&["/new"]), &["x"])),
            Ok(strings(&["/new", "x"]))
        );
        assert_eq!(
            argv(&both, &request(Some(&[""]), &["x"])),
            Ok(strings(&["x"]))
        );
        assert_eq!(
            argv(&image(&[], &["c"]), &request(None, &[])),
            Ok(strings(&["c"]))
        );
    }

    #[test]
    fn an_image_without_a_command_is_named() {
        let error = argv(&image(&[], &[]), &request(None, &[])).unwrap_err();
        assert!(error.starts_with("no command specified"), "{error}");
        assert!(argv(&image(&["/e"], &["c"]), &request(Some(&[""]), &[])).is_err());
    }

    #[test]
    fn environment_is_merged_by_key() {
        let image = ImageDefaults {
            env: strings(&["A=1", "B=2", "C=3"]),
            ..image(&["/e"], &[])
        };
        let mut request = request(None, &[]);
        request.env = strings(&["B=over=ride", "D=4", "C"]);
        let merged = merge(&image, &request, "abc").unwrap();
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(
            merged.env,
            strings(&[&path, "HOSTNAME=abc", "A=1", "B=over=ride", "D=4"])
        );
        request.env = strings(&["=x"]);
        assert!(merge(&image, &request, "abc").is_err());
        let own = ImageDefaults {
            env: strings(&["PATH=/bin"]),
            ..image
        };
        request.env = Vec::new();
        assert_eq!(merge(&own, &request, "abc").unwrap().env[0], "PATH=/bin");
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGKILL", 9),
            ("SIGSYS", 31),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "SIGNOPE", "0", "-1", "65", "RTMIN+99", "RTMAX-60"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }
}
