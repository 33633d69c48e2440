//! Docker's `SecurityOpt`: what it asks for, in Docker's words. Must not: know what a container is
//! given besides.

use http::StatusCode;

use crate::errors::ApiError;

/// The only one that there is.
pub(crate) const NO_NEW_PRIVILEGES: &str = "no-new-privileges";

/// Whether a list of them asks for `no_new_privs`. As in Docker the last one counts, the value is
/// one that Go's `ParseBool` takes, and a colon separates it as well.
///
/// # Errors
/// Another option, or a value that is none.
pub(crate) fn no_new_privileges(options: &[String]) -> Result<bool, ApiError> {
    let mut asked = false;
    for option in options {
        let (key, value) = match option.split_once(['=', ':']) {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        if key != NO_NEW_PRIVILEGES {
            return Err(ApiError::new(
                StatusCode::NOT_IMPLEMENTED,
                format!(
                    "security option {option:?} (--security-opt) is not supported by this Wharf: there is {NO_NEW_PRIVILEGES}"
                ),
            ));
        }
        asked = match value {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(_) => {
                return Err(ApiError::bad_request(format!(
                    "invalid security option {option:?}: the value of {NO_NEW_PRIVILEGES} is true or false"
                )));
            }
        };
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Result<bool, ApiError> {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        no_new_privileges(&options)
    }

    #[test]
    fn options_are_read_as_docker_reads_them() {
        for (options, asked) in [
            (&[][..], false),
            (&["no-new-privileges"], true),
            (&["no-new-privileges=true"], true),
            (&["no-new-privileges:true"], true),
            (&["no-new-privileges:1"], true),
            (&["no-new-privileges=false"], false),
            (&["no-new-privileges", "no-new-privileges:false"], false),
        ] {
            assert_eq!(of(options), Ok(asked), "{options:?}");
        }
    }

    #[test]
    fn other_options_are_refused_by_name() {
        for option in [
            "seccomp=unconfined",
            "apparmor:unconfined",
            "label=disable",
            "systempaths=unconfined",
            "writable-cgroups=true",
            "disable",
        ] {
            let error = of(&["no-new-privileges", option]).unwrap_err();
            assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
            assert!(error.message.contains(option), "{}", error.message);
        }
        for option in ["no-new-privileges=", "no-new-privileges=maybe"] {
            let error = of(&[option]).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert!(error.message.contains(option), "{}", error.message);
        }
    }
}
