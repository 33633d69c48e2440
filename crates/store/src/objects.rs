//! The seam behind which blobs lie: immutable content under the hex SHA-256 of itself.
//!
//! Owns: the contract, [`ObjectStore`]. [`files`] is the first implementation;
//! [`conformance::objects`](crate::conformance::objects) has the tests that each must pass.
//! Must not: know who uses a blob; `blobs.rs` does, and decides what is removed.
//!
//! ```text
//! begin -> write, write, ... -> finish: hash right -> on disk -> visible under its hash, whole
//!                   |             \-> hash wrong: an error, and nothing is visible
//!                   \-> dropped, or the process killed: nothing is visible
//! ```

pub mod files;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::meta::BoxFuture;

/// What is known of a stored object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Lower-case hex SHA-256 of the content.
    pub hash: String,
    /// Bytes.
    pub bytes: u64,
    /// Time since it was stored or touched last.
    pub age: Duration,
}

/// An object that is being written; dropping it leaves nothing.
pub trait ObjectWriter: Send {
    /// Adds content.
    fn write<'a>(&'a mut self, content: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Makes the object visible, durably, and returns its hash. Content that is stored already
    /// counts as touched.
    ///
    /// # Errors
    /// [`StoreError::WrongHash`](crate::StoreError::WrongHash) if the content has not the hash that
    /// was expected; nothing is stored then.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<String>>;
}

/// A store of blobs. What is visible is whole and durable.
pub trait ObjectStore: fmt::Debug + Send + Sync + 'static {
    /// Begins to store content, whose hash may be known.
    fn begin(&self, expected: Option<&str>) -> BoxFuture<'_, Result<Box<dyn ObjectWriter>>>;

    /// Reads an object, and checks that it still has its hash.
    ///
    /// # Errors
    /// [`StoreError::NotFound`](crate::StoreError::NotFound) if it is not there;
    /// [`StoreError::Corrupt`](crate::StoreError::Corrupt) if it is damaged.
    fn get<'a>(&'a self, hash: &'a str) -> BoxFuture<'a, Result<Vec<u8>>>;

    /// What is known of an object; `None` if it is not there.
    fn info<'a>(&'a self, hash: &'a str) -> BoxFuture<'a, Result<Option<ObjectInfo>>>;

    /// Sets an object's age back to nothing. False if it is not there, or has another size.
    fn touch<'a>(&'a self, hash: &'a str, bytes: u64) -> BoxFuture<'a, Result<bool>>;

    /// All objects, in no order. One that comes or goes meanwhile may be left out.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ObjectInfo>>>;

    /// Removes an object, if it is there.
    fn remove<'a>(&'a self, hash: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Where the object's content is, or would be, as a file of this machine; `None` where it is
    /// somewhere else.
    fn local_path(&self, hash: &str) -> Option<PathBuf>;
}

/// Whether a name can be that of an object: 64 lower-case hex digits.
pub(crate) fn is_hash(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
