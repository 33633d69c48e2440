//! The signed tokens of an asset upload (JSON Web Token, HS256; RFC 7519, RFC 7515). wrangler hands them back as it got them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// Upload files of the session.
    Upload,
    /// Use the session's files in a version.
    Complete,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) purpose: Purpose,
    pub(crate) session: String,
    pub(crate) script: String,
    /// Unix time in seconds.
    pub(crate) exp: i64,
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

fn mac(key: &[u8; 32], signed: &str) -> Hmac<Sha256> {
    // HMAC fills a shorter key up with zeros itself; a whole block can't be of the wrong length.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(signed.as_bytes());
    mac
}

/// Signs claims.
pub(crate) fn sign(key: &[u8; 32], claims: &Claims) -> Result<String, serde_json::Error> {
    let signed = format!(
        "{}.{}",
        BASE64.encode(HEADER),
        BASE64.encode(serde_json::to_vec(claims)?)
    );
    let signature = BASE64.encode(mac(key, &signed).finalize().into_bytes());
    Ok(format!("{signed}.{signature}"))
}

/// The claims of a token that this node signed, for this purpose, and that has not expired.
pub(crate) fn verify(
    key: &[u8; 32],
    token: &str,
    purpose: Purpose,
    now_seconds: i64,
) -> Option<Claims> {
    let (signed, signature) = token.rsplit_once('.')?;
    let signature = BASE64.decode(signature).ok()?;
    mac(key, signed).verify_slice(&signature).ok()?;
    // Signed by this node, so the header is HEADER.
    let (_, claims) = signed.split_once('.')?;
    let claims: Claims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
    (claims.purpose == purpose && claims.exp >= now_seconds).then_some(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            purpose: Purpose::Upload,
            session: "s".into(),
            script: "hello".into(),
            exp: 100,
        }
    }

    #[test]
    fn only_this_nodes_unexpired_tokens_for_the_purpose_count() {
        let key = [7; 32];
        let token = sign(&key, &claims()).unwrap();
        assert_eq!(verify(&key, &token, Purpose::Upload, 100), Some(claims()));
        assert_eq!(verify(&key, &token, Purpose::Upload, 101), None);
        assert_eq!(verify(&key, &token, Purpose::Complete, 1), None);
        assert_eq!(verify(&[8; 32], &token, Purpose::Upload, 1), None);
        for broken in ["", ".", "..", "a.b.c", token.trim_end_matches(|c| c != '.')] {
            assert_eq!(verify(&key, broken, Purpose::Upload, 1), None, "{broken}");
        }
    }

    #[test]
    fn changed_claims_do_not_verify() {
        let key = [7; 32];
        let token = sign(&key, &claims()).unwrap();
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        parts[1] =
            BASE64.encode(r#"{"purpose":"upload","session":"other","script":"x","exp":100}"#);
        assert_eq!(verify(&key, &parts.join("."), Purpose::Upload, 1), None);
    }
}
