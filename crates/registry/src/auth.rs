//! Who may come in: whoever has the token, as Bearer or as the password of Basic.

use base64::Engine;
use http::{HeaderMap, header};

use crate::{Access, CheckToken};

pub(crate) fn access(headers: &HeaderMap, check: &CheckToken) -> Option<Access> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    check(&token(value)?)
}

/// The token in an `Authorization` header (RFC 6750, RFC 7617).
fn token(header: &str) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(rest)
        .ok()?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_schemes_carry_the_token() {
        assert_eq!(token("Bearer t0k").as_deref(), Some("t0k"));
        assert_eq!(token("bearer t0k").as_deref(), Some("t0k"));
        // v1:to:k
        assert_eq!(token("Basic djE6dG86aw==").as_deref(), Some("to:k"));
        for bad in ["t0k", "Basic !", "Basic djE=", "Digest x", ""] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }
}
