//! The node's metadata: scripts, versions, namespaces, applications, tokens, in SQLite; and blobs by hash on disk.
//!
//! Owns: `<data>/wharf.sqlite` and `<data>/blobs`. Migrations by version; a crash at any instant leaves the old or the new state whole:
//! blobs are on disk (fsync, rename, fsync of the directory) before the one transaction that names them, and what belongs to one change
//! is in one transaction. Secrets and token hashes are inside, so files are 0600 and directories 0700.
//! Must not: know of HTTP or processes, or be opened twice at a time (the daemon's lock file sees to that). Calls are synchronous and
//! short; async callers use `spawn_blocking`.

mod applications;
mod assets;
mod blobs;
#[cfg(feature = "conformance")]
pub mod conformance;
mod deploys;
pub mod meta;
mod schema;
mod scripts;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use applications::Rollout;
pub use assets::{ManifestEntry, StoredAsset, UploadSession};
pub use blobs::GcReport;
pub use deploys::{Classes, Committed, Deployment, NewDeployment, SecretChange, Undo, Upload};
pub use scripts::ScriptSettings;
pub use tokens::RegistryToken;

/// Why a call to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried, e.g. `cannot write`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The database was written by a newer Wharf.
    #[error(
        "the database has version {found}, this Wharf knows versions up to {known}; start the newer Wharf that wrote it, or use another --data-dir"
    )]
    Newer {
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// A row or blob does not hold what it must.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// What was asked for is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The name or id is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// Steps that no transaction can take together, or a revision that can't be meant.
    #[error("the store can't do this: {0}")]
    InvalidTxn(String),
    /// The lease has run out, or was revoked.
    #[error("lease {0} is over")]
    LeaseGone(meta::LeaseId),
    /// The history that was asked for is gone.
    #[error("the history before revision {compacted} is gone")]
    Compacted {
        /// The first revision from which history is whole.
        compacted: meta::Revision,
    },
    /// The system gave no random bytes.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
}

/// The result of a call to the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    blobs: PathBuf,
    account_id: String,
    signing_key: [u8; 32],
    // One connection: writes are serial in SQLite anyway, and reads take microseconds.
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the store below `dir` (the data directory), creating or migrating it as needed.
    pub fn open(dir: &Path) -> Result<Store> {
        std::fs::create_dir_all(dir).map_err(io("cannot create", dir))?;
        let blobs = dir.join("blobs");
        blobs::prepare(&blobs)?;
        let mut connection = schema::open(&dir.join("wharf.sqlite"))?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let account_id = meta_or(&transaction, "account_id", 16)?;
        let signing_key = meta_or(&transaction, "signing_key", 32)?;
        transaction.commit()?;
        let signing_key = <[u8; 32]>::try_from(signing_key)
            .map_err(|_| StoreError::Corrupt("meta.signing_key is not 32 bytes".into()))?;
        Ok(Store {
            inner: Arc::new(Inner {
                blobs,
                account_id: hex::encode(account_id),
                signing_key,
                connection: Mutex::new(connection),
            }),
        })
    }

    /// The one account's id: 32 lower-case hex digits, made when the store was.
    pub fn account_id(&self) -> String {
        self.inner.account_id.clone()
    }

    /// Key for tokens that the control API signs for itself; random, made when the store was, never leaves the node.
    pub fn signing_key(&self) -> [u8; 32] {
        self.inner.signing_key
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back; the connection itself is sound.
        self.inner
            .connection
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs `change` in one transaction: all of it is stored, or nothing.
    fn change<T>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = change(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }
}

fn meta_or(transaction: &Transaction<'_>, key: &str, bytes: usize) -> Result<Vec<u8>> {
    use rusqlite::OptionalExtension;
    let found: Option<Vec<u8>> = transaction
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()?;
    if let Some(value) = found {
        return Ok(value);
    }
    let value = random(bytes)?;
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2)",
        (key, &value),
    )?;
    Ok(value)
}

/// Removes what has a time to live and is past it.
fn remove_expired(transaction: &Transaction<'_>) -> Result<()> {
    for table in ["upload_sessions", "registry_tokens"] {
        transaction.execute(
            &format!("DELETE FROM {table} WHERE expires_ms < ?1"),
            [now_ms()],
        )?;
    }
    Ok(())
}

fn random(bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    getrandom::fill(&mut buffer).map_err(StoreError::Random)?;
    Ok(buffer)
}

fn io<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io {
        what,
        path: path.to_path_buf(),
        source,
    }
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis() as i64)
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt(format!("cannot be written as JSON: {error}")))
}

fn from_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(format!("{what}: {error}")))
}
