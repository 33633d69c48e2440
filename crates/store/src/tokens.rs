//! Who may speak to this node: API tokens, and the short-lived passwords that `docker login` gets.
//!
//! Only SHA-256 hashes are kept. The tokens have 256 random bits, so a slow hash would add nothing.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::meta::{List, wait};
use crate::{Result, Store, StoreError, keys, now_ms, random};

/// What a registry token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryToken {
    /// Whether it may push; pulling is always allowed.
    pub push: bool,
}

fn fresh(prefix: &str) -> Result<(String, Vec<u8>)> {
    let token = format!("{prefix}{}", hex::encode(random(32)?));
    let hash = Sha256::digest(token.as_bytes()).to_vec();
    Ok((token, hash))
}

/// Compares with every hash, each in constant time, so that the answer's time tells nothing about a near hit.
fn matches<'a>(token: &str, hashes: impl Iterator<Item = &'a [u8]>) -> bool {
    let wanted = Sha256::digest(token.as_bytes());
    hashes
        .fold(Choice::from(0), |found, hash| {
            found | wanted.as_slice().ct_eq(hash)
        })
        .into()
}

/// An API token as it is stored, under the hex SHA-256 of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) name: String,
    pub(crate) created_ms: i64,
}

/// A registry password as it is stored, under the hex SHA-256 of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RegistryTokenRecord {
    pub(crate) push: bool,
    pub(crate) expires_ms: i64,
}

/// The hash at the end of a token's key.
fn hash_of(key: &str) -> Result<Vec<u8>> {
    let hash = key.rsplit('/').next().unwrap_or_default();
    hex::decode(hash).map_err(|error| StoreError::Corrupt(format!("{key}: {error}")))
}

pub(crate) fn token_key(hash: &[u8]) -> String {
    format!("{}{}", keys::TOKENS, hex::encode(hash))
}

pub(crate) fn registry_token_key(hash: &[u8]) -> String {
    format!("{}{}", keys::REGISTRY_TOKENS, hex::encode(hash))
}

impl Store {
    /// The first API token, made and returned if there is none yet; `None` from then on. It can't be read again, so `keep` gets it before it
    /// counts: a crash in between makes a new one at the next start instead of losing the only one.
    ///
    /// # Errors
    /// Also [`StoreError::Busy`] if another one was made in the same instant: then what `keep` got
    /// does not count.
    pub fn first_token(&self, keep: impl FnOnce(&str) -> Result<()>) -> Result<Option<String>> {
        let any = List::under(keys::TOKENS).limit(1).keys_only();
        if !wait(self.inner.meta.list(&any))?.records.is_empty() {
            return Ok(None);
        }
        let (token, hash) = fresh("wharf_")?;
        let mut keep = Some(keep);
        self.transact(|draft| {
            // `keep` can't be taken back, so there is no second attempt.
            let keep = keep.take().ok_or(StoreError::Busy)?;
            draft.require_empty(keys::TOKENS);
            let record = TokenRecord {
                name: "first".to_owned(),
                created_ms: now_ms(),
            };
            draft.put(token_key(&hash), &record)?;
            keep(&token)
        })?;
        Ok(Some(token))
    }

    /// Whether this is one of the API tokens. A store that can't be read lets nobody in, and logs why.
    pub fn check_token(&self, token: &str) -> bool {
        self.try_check_token(token).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot check an API token");
            false
        })
    }

    fn try_check_token(&self, token: &str) -> Result<bool> {
        let hashes = self
            .listed::<TokenRecord>(&List::under(keys::TOKENS))?
            .into_iter()
            .map(|(key, _)| hash_of(&key))
            .collect::<Result<Vec<_>>>()?;
        Ok(matches(token, hashes.iter().map(Vec::as_slice)))
    }

    /// Makes a password for the registry that works for `lifetime_ms` milliseconds.
    pub fn create_registry_token(&self, push: bool, lifetime_ms: i64) -> Result<String> {
        let (token, hash) = fresh("")?;
        let record = RegistryTokenRecord {
            push,
            expires_ms: now_ms().saturating_add(lifetime_ms),
        };
        self.transact(|draft| {
            draft.remove_expired(now_ms())?;
            draft.put_expiring(registry_token_key(&hash), &record, record.expires_ms)
        })?;
        Ok(token)
    }

    /// What a registry password allows; `None` if it is wrong or expired. API tokens allow all.
    pub fn registry_token(&self, token: &str) -> Option<RegistryToken> {
        let found = self.try_registry_token(token).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot check a registry token");
            None
        });
        found.or_else(|| {
            self.check_token(token)
                .then_some(RegistryToken { push: true })
        })
    }

    fn try_registry_token(&self, token: &str) -> Result<Option<RegistryToken>> {
        let now = now_ms();
        let mut rows = Vec::new();
        for (key, record) in
            self.listed::<RegistryTokenRecord>(&List::under(keys::REGISTRY_TOKENS))?
        {
            if record.expires_ms >= now {
                rows.push((hash_of(&key)?, record.push));
            }
        }
        let may = |push: bool| {
            matches(
                token,
                rows.iter()
                    .filter(|row| row.1 == push)
                    .map(|row| row.0.as_slice()),
            )
        };
        let (full, pull) = (may(true), may(false));
        Ok((full || pull).then_some(RegistryToken { push: full }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_could_not_be_kept_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let full = |_: &str| Err(crate::StoreError::Corrupt("disk full".to_owned()));
        assert!(store.first_token(full).is_err());
        let token = store.first_token(|_| Ok(())).unwrap().unwrap();
        assert!(store.check_token(&token));
    }

    #[test]
    fn the_first_token_is_shown_once_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let token = store.first_token(|_| Ok(())).unwrap().unwrap();
        assert_eq!(store.first_token(|_| Ok(())).unwrap(), None);
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.first_token(|_| Ok(())).unwrap(), None);
        assert!(store.check_token(&token));
        assert!(!store.check_token(&token[..token.len() - 1]));
        assert!(!store.check_token(""));
    }

    #[test]
    fn tokens_are_not_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let token = store.first_token(|_| Ok(())).unwrap().unwrap();
        let needle = token.as_bytes();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let content = std::fs::read(&path).unwrap();
                assert!(
                    !content.windows(needle.len()).any(|w| w == needle),
                    "{} holds the token",
                    path.display()
                );
            }
        }
    }

    #[test]
    fn registry_passwords_expire_and_are_not_api_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let api = store.first_token(|_| Ok(())).unwrap().unwrap();
        let live = store.create_registry_token(false, 60_000).unwrap();
        let dead = store.create_registry_token(true, -1).unwrap();
        assert_eq!(
            store.registry_token(&live),
            Some(RegistryToken { push: false })
        );
        assert_eq!(
            store.registry_token(&api),
            Some(RegistryToken { push: true })
        );
        assert!(store.registry_token(&dead).is_none());
        assert!(!store.check_token(&live));
    }
}
