//! Metadata (scripts, versions, namespaces, applications, tokens) and blobs by hash.
//!
//! Two storeys. Below are two seams: [`meta`], records under keys as in etcd, with SQLite behind it,
//! and [`objects`], blobs by hash, with files behind it. Above is the typed layer ([`Store`]), which
//! knows what the records mean (`keys.rs` lists them) and changes them in transactions
//! (`draft.rs`).
//!
//! Owns: `<data>/wharf.sqlite` and `<data>/blobs`. Migrations by version; a crash at any instant
//! leaves the old or the new state whole: blobs are durable before the one transaction that names
//! them, and what belongs to one change is in one transaction. Secrets and token hashes are inside,
//! so files are 0600 and directories 0700.
//! Must not: know of HTTP or processes, or be opened twice at a time (the daemon's lock file sees to
//! that). The typed layer's calls are synchronous and short; async callers use `spawn_blocking`.

mod applications;
mod assets;
mod blobs;
#[cfg(feature = "conformance")]
pub mod conformance;
mod deploys;
mod draft;
mod keys;
mod locks;
pub mod meta;
mod migrate;
pub mod objects;
mod schema;
mod scripts;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use self::applications::Rollout;
pub use self::assets::{ManifestEntry, StoredAsset, UploadSession};
pub use self::blobs::GcReport;
pub use self::deploys::{
    Classes, Committed, Deployment, NewDeployment, SecretChange, Undo, Upload,
};
pub use self::locks::{Lock, Place};
pub use self::scripts::ScriptSettings;
pub use self::tokens::RegistryToken;
use crate::meta::MetaStore;
use crate::meta::sqlite::{Clock, SqliteStore};
use crate::objects::files::FileObjects;

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
    /// Others changed the same records again and again.
    #[error("the store is busy; try again")]
    Busy,
    /// Content is not what it was said to be.
    #[error("the content has the hash {found}, not {expected}")]
    WrongHash {
        /// The hash that was expected.
        expected: String,
        /// The hash that it has.
        found: String,
    },
    /// A place in the queue for a lock is gone.
    #[error("this node was stopped for so long that it lost its locks; try again")]
    LockLost,
    /// The system gave no thread.
    #[error("no thread from the system: {0}")]
    Thread(std::io::Error),
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
    objects: FileObjects,
    meta: Arc<dyn MetaStore>,
    account_id: String,
    signing_key: [u8; 32],
    session: locks::Session,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.session.end(&*self.meta);
    }
}

impl Store {
    /// Opens the store below `dir` (the data directory), creating or migrating it as needed.
    pub fn open(dir: &Path) -> Result<Store> {
        std::fs::create_dir_all(dir).map_err(io("cannot create", dir))?;
        let objects = FileObjects::open(&dir.join("blobs"))?;
        let meta = SqliteStore::open(&dir.join("wharf.sqlite"), Clock::System)?;
        Store::over(Arc::new(meta), objects)
    }

    /// The typed layer over a store of metadata: where a second implementation plugs in.
    fn over(meta: Arc<dyn MetaStore>, objects: FileObjects) -> Result<Store> {
        let (account_id, signing_key) = identity(&*meta)?;
        let store = Store {
            inner: Arc::new(Inner {
                objects,
                meta,
                account_id,
                signing_key,
                session: locks::Session::default(),
            }),
        };
        store.end_former_session()?;
        Ok(store)
    }

    /// The one account's id: 32 lower-case hex digits, made when the store was.
    pub fn account_id(&self) -> String {
        self.inner.account_id.clone()
    }

    /// Key for tokens that the control API signs for itself; random, made when the store was, never leaves the node.
    pub fn signing_key(&self) -> [u8; 32] {
        self.inner.signing_key
    }
}

/// The account's id and the signing key, made if they are not there.
fn identity(meta: &dyn MetaStore) -> Result<(String, [u8; 32])> {
    draft::transact(meta, |draft| {
        let mut made = |key: &str, bytes: usize| -> Result<String> {
            if let Some(found) = draft.get(key)? {
                return Ok(found);
            }
            let fresh = hex::encode(random(bytes)?);
            draft.put(key.to_owned(), &fresh)?;
            Ok(fresh)
        };
        let account_id = made(keys::ACCOUNT_ID, 16)?;
        let key = made(keys::SIGNING_KEY, 32)?;
        let key = hex::decode(key)
            .ok()
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .ok_or_else(|| StoreError::Corrupt(format!("{} is not 32 bytes", keys::SIGNING_KEY)))?;
        Ok((account_id, key))
    })
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
