//! Content digests. Only SHA-256: the one algorithm that every OCI implementation must have.

use sha2::{Digest as _, Sha256};

use crate::error::{ImageError, Result};

/// `sha256:<64 hex>`.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

const PREFIX: &str = "sha256:";

impl Digest {
    /// Parses `sha256:<64 lower-case hex>`.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(hex) = text.strip_prefix(PREFIX) else {
            return Err(ImageError::Invalid(format!(
                "\"{}\" is not a digest that is supported: it must begin with sha256:",
                text.escape_default()
            )));
        };
        if is_hex(hex) && hex.len() == 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageError::Invalid(format!(
                "\"{}\" is not a digest: sha256: must be followed by 64 lower-case hex digits",
                text.escape_default()
            )))
        }
    }
    /// Of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

/// Lower-case hex digits only, at least one.
pub(crate) fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = ImageError;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// A digest in the making.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub(crate) fn finish(self) -> Digest {
        Digest(format!("{PREFIX}{}", hex::encode(self.0.finalize())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_the_empty_string_is_the_known_one() {
        assert_eq!(
            Digest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn refuses_what_could_name_another_file() {
        let good = "a".repeat(64);
        assert!(Digest::parse(&format!("sha256:{good}")).is_ok());
        for bad in [
            String::new(),
            good.clone(),
            format!("sha512:{good}"),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{good}0"),
            format!("sha256:{}", "a".repeat(63)),
            format!("sha256:../{}", "a".repeat(61)),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_is_exact(text in "(sha256:)?\\PC{0,70}") {
            if let Ok(digest) = Digest::parse(&text) {
                prop_assert_eq!(digest.as_str(), text.as_str());
                prop_assert!(digest.hex().len() == 64);
            }
        }
        #[test]
        fn what_is_computed_parses(bytes: Vec<u8>) {
            let digest = Digest::of(&bytes);
            prop_assert_eq!(Digest::parse(digest.as_str()).unwrap(), digest);
        }
    }
}
