//! Under which keys the typed layer keeps its records, and how names become parts of keys.
//!
//! Each value is JSON. What is looked up in a second way has a second key, written in the same
//! transaction:
//!
//! ```text
//! store/account-id, store/signing-key   made with the store
//! store/last-script-number              so that a deleted script's number never comes back
//! scripts/<name>                        ScriptRecord: what is deployed, settings, schedules
//! secrets/<script>                      name -> text
//! namespaces/<script>                   its Durable Object namespaces, by class
//! namespace-ids/<id>                    the namespace once more
//! namespace-keys/<unique key>           the namespace once more
//! versions/<script>/<number>            Version
//! version-ids/<id>                      VersionRef: script and number
//! deployments/<script>/<sequence>       Deployment
//! schedule-runs/<script>/<cron>         due time of the last run, Unix ms
//! applications/<id>                     Application
//! application-names/<name>              id
//! application-namespaces/<namespace id> id
//! rollouts/<application>/<sequence>     Rollout
//! tokens/<hash>                         TokenRecord
//! registry-tokens/<hash>                RegistryTokenRecord
//! assets/<client's hash>                AssetRecord
//! upload-sessions/<id>                  UploadSession
//! expiries/<Unix ms>/<key>              a key that goes after that time; no value
//! collection                            blobs that are just being removed; goes with its lease
//! sessions/<node>                       lease of a node that runs; goes with it
//! locks/<name>/<place>                  a place in a queue; goes with the lease of who waits
//! ```
//!
//! Numbers have leading zeros, so that the order of bytes is theirs.

use std::fmt::Write;

pub(crate) const ACCOUNT_ID: &str = "store/account-id";
pub(crate) const SIGNING_KEY: &str = "store/signing-key";
pub(crate) const LAST_SCRIPT_NUMBER: &str = "store/last-script-number";
pub(crate) const SCRIPTS: &str = "scripts/";
pub(crate) const NAMESPACES: &str = "namespaces/";
pub(crate) const APPLICATIONS: &str = "applications/";
pub(crate) const TOKENS: &str = "tokens/";
pub(crate) const REGISTRY_TOKENS: &str = "registry-tokens/";
pub(crate) const ASSETS: &str = "assets/";
pub(crate) const EXPIRIES: &str = "expiries/";
pub(crate) const COLLECTION: &str = "collection";

/// A name as one part of a key.
fn part(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '/' => part.push_str("%2F"),
            '%' => part.push_str("%25"),
            other => part.push(other),
        }
    }
    part
}

/// `<kind>/<name>`
pub(crate) fn one(kind: &str, name: &str) -> String {
    format!("{kind}/{}", part(name))
}

/// `<kind>/<name>/`: what belongs to the name.
pub(crate) fn under(kind: &str, name: &str) -> String {
    format!("{kind}/{}/", part(name))
}

/// `<kind>/<name>/<member>`
pub(crate) fn member(kind: &str, name: &str, member: &str) -> String {
    format!("{kind}/{}/{}", part(name), part(member))
}

/// `<kind>/<name>/<number>`; numbers up to 20 digits, which is all of `u64`.
pub(crate) fn numbered(kind: &str, name: &str, number: u64) -> String {
    let mut key = under(kind, name);
    // Writing to a String does not fail.
    let _ = write!(key, "{number:020}");
    key
}

/// The number at the end of a key that [`numbered`] made.
pub(crate) fn number(key: &str) -> Option<u64> {
    key.rsplit('/').next()?.parse().ok()
}

/// The key that says when another one goes, in Unix milliseconds.
pub(crate) fn expiry(expires_ms: i64, key: &str) -> String {
    format!("{EXPIRIES}{:020}/{key}", expires_ms.max(0))
}

/// What [`expiry`] was made from.
pub(crate) fn expiring(expiry: &str) -> Option<(i64, &str)> {
    let (ms, key) = expiry.strip_prefix(EXPIRIES)?.split_once('/')?;
    Some((ms.parse().ok()?, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_reach_into_other_keys() {
        assert_eq!(member("locks", "a/b", "c%"), "locks/a%2Fb/c%25");
        assert!(!one("scripts", "shop-2").starts_with(&under("scripts", "shop")));
        assert_ne!(one("x", "a%2Fb"), one("x", "a/b"));
    }

    #[test]
    fn numbers_are_in_order_and_read_again() {
        let key = |number| numbered("versions", "shop", number);
        assert!(key(9) < key(10) && key(10) < key(u64::MAX));
        assert_eq!(number(&key(17)), Some(17));
        assert_eq!(expiring(&expiry(17, "a/b")), Some((17, "a/b")));
    }
}
