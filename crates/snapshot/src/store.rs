//! Snapshots on disk and in memory: in, out, how much, and for how long.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::copy::{Allowance, Copied};
use crate::error::{Context, Result, SnapshotError};
use crate::offers::Offers;

/// What is allowed.
#[derive(Debug, Clone)]
pub struct SnapshotConfig {
    /// Most bytes of one snapshot, of its own.
    pub max_bytes: u64,
    /// Most bytes of all snapshots of one owner.
    pub owner_bytes: u64,
    /// A snapshot goes when it has not been used for so long, milliseconds.
    pub ttl_ms: u64,
    /// An offer that nobody has taken goes after so long, milliseconds.
    pub offer_ms: u64,
}

/// Of what a snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A whole container: a layer over its image.
    Container {
        /// The image, as it was named.
        image: String,
        /// Its id.
        image_id: String,
    },
}

/// A snapshot that is kept.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Whose: opaque here.
    pub owner: String,
    /// Unique within the owner.
    pub name: String,
    /// As given with it.
    pub labels: BTreeMap<String, String>,
    /// Unix ms.
    pub created_ms: i64,
    /// Unix ms; taken or last restored.
    pub last_used_ms: i64,
    /// Of what.
    pub kind: Kind,
    /// What it came to.
    pub bytes: u64,
    /// Bytes that it shares with layers.
    pub linked: u64,
    /// What a tar archive of it would have, bytes.
    pub archive: u64,
    /// Its files: never changed, to be a lower directory of overlays.
    pub files: PathBuf,
}

/// What an owner has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Whose.
    pub owner: String,
    /// Snapshots.
    pub count: u64,
    /// Bytes of their own.
    pub bytes: u64,
    /// Bytes that they share with image layers and with each other.
    pub shared_bytes: u64,
}

/// `snapshot.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    owner: String,
    name: String,
    labels: BTreeMap<String, String>,
    created_ms: i64,
    kind: Kind,
    bytes: u64,
    linked: u64,
    archive: u64,
}

/// The store. Cheap to clone. One process at a time has a directory open.
#[derive(Debug, Clone)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    config: SnapshotConfig,
    table: Mutex<HashMap<(String, String), Snapshot>>,
    offers: Offers,
}

/// A snapshot that has no name yet; removed unless it is kept.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    kept: bool,
}

impl Draft {
    /// The directory for its files.
    pub fn files(&self) -> PathBuf {
        self.dir.join("fs")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.dir);
        }
    }
}

/// What is not removed now is removed when the store is opened.
fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::error!(dir = %dir.display(), %error, "a snapshot that is gone stays on disk until the next start");
    }
}

pub(crate) fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Snapshots {
    /// Opens or makes the store in `dir`; removes what a crash left half done.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(dir: &Path, config: SnapshotConfig) -> Result<Snapshots> {
        let doing = || format!("opening the snapshots in {}", dir.display());
        let tmp = dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(doing);
            }
            _ => {}
        }
        // Nobody else's business: files of all owners.
        for dir in [dir, &tmp, &dir.join("kept")] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(dir).context(doing)?;
        }
        let dir = fs::canonicalize(dir).context(doing)?;
        let mut table = HashMap::new();
        for entry in fs::read_dir(dir.join("kept")).context(doing)? {
            let path = entry.context(doing)?.path();
            match read(&path) {
                Ok(found) => {
                    table.insert((found.owner.clone(), found.name.clone()), found);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "not a snapshot of this store; left alone");
                }
            }
        }
        Ok(Snapshots {
            inner: Arc::new(Inner {
                dir,
                config,
                table: Mutex::new(table),
                offers: Offers::default(),
            }),
        })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<(String, String), Snapshot>> {
        let table = self.inner.table.lock();
        table.unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty draft.
    ///
    /// # Errors
    /// The disk takes no more.
    pub fn draft(&self) -> Result<Draft> {
        let dir = self.inner.dir.join("tmp").join(new_id());
        let doing = || format!("making {}", dir.display());
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .context(doing)?;
        let draft = Draft {
            dir: dir.clone(),
            kept: false,
        };
        fs::create_dir(draft.files()).context(doing)?;
        fs::set_permissions(draft.files(), fs::Permissions::from_mode(0o755)).context(doing)?;
        Ok(draft)
    }

    /// How much an owner may put into one more snapshot.
    pub fn allowance(&self, owner: &str) -> Allowance {
        let config = &self.inner.config;
        let used = self.used(owner);
        let left = config.owner_bytes.saturating_sub(used);
        let mib = |bytes: u64| bytes >> 20;
        if left < config.max_bytes {
            let refusal = format!(
                "the snapshots of {owner} have {} MiB; with this one they would have more than snapshots.script_mib ({})",
                mib(used),
                mib(config.owner_bytes)
            );
            return Allowance {
                bytes: left,
                refusal,
            };
        }
        Allowance {
            bytes: config.max_bytes,
            refusal: format!(
                "the snapshot has more than snapshots.max_mib ({})",
                mib(config.max_bytes)
            ),
        }
    }

    fn used(&self, owner: &str) -> u64 {
        let table = self.table();
        let kept = table.values().filter(|s| s.owner == owner);
        kept.map(|s| s.bytes).sum::<u64>() + self.inner.offers.bytes(owner)
    }

    /// Keeps a draft under a name. It is on disk when this returns.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`], or the disk takes no more; then the draft is removed.
    pub fn keep(
        &self,
        mut draft: Draft,
        owner: &str,
        name: &str,
        kind: Kind,
        labels: BTreeMap<String, String>,
        copied: Copied,
    ) -> Result<Snapshot> {
        let key = (owner.to_owned(), name.to_owned());
        let exists = || Err(SnapshotError::Exists(name.to_owned()));
        if self.table().contains_key(&key) {
            return exists();
        }
        let doing = || format!("keeping the snapshot {name}");
        let stored = Stored {
            owner: owner.to_owned(),
            name: name.to_owned(),
            labels,
            created_ms: now_ms(),
            kind,
            bytes: copied.bytes,
            linked: copied.linked,
            archive: copied.archive,
        };
        let mut file = File::create_new(draft.dir.join("snapshot.json")).context(doing)?;
        let json = serde_json::to_vec(&stored).map_err(std::io::Error::from);
        file.write_all(&json.context(doing)?).context(doing)?;
        // Everything that was copied, and the record.
        rustix::fs::syncfs(&file).context(doing)?;
        let kept = self.inner.dir.join("kept");
        let place = kept.join(draft.dir.file_name().unwrap_or_default());
        {
            // Held over the rename, so that a name is taken once.
            let mut table = self.table();
            if table.contains_key(&key) {
                drop(table);
                return exists();
            }
            fs::rename(&draft.dir, &place).context(doing)?;
            draft.kept = true;
            let snapshot = snapshot(stored, &place, now_ms());
            table.insert(key.clone(), snapshot);
        }
        let synced = File::open(&kept).and_then(|dir| dir.sync_all());
        synced.context(doing)?;
        self.get(owner, name).ok_or_else(|| SnapshotError::Io {
            context: doing(),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// One of an owner's.
    pub fn get(&self, owner: &str, name: &str) -> Option<Snapshot> {
        let key = (owner.to_owned(), name.to_owned());
        self.table().get(&key).cloned()
    }

    /// One that is to be restored: its life begins anew.
    ///
    /// # Errors
    /// The disk takes no more.
    pub fn use_now(&self, owner: &str, name: &str) -> Result<Option<Snapshot>> {
        let key = (owner.to_owned(), name.to_owned());
        let mut table = self.table();
        let Some(found) = table.get_mut(&key) else {
            return Ok(None);
        };
        found.last_used_ms = now_ms();
        let record = found.files.with_file_name("snapshot.json");
        File::options()
            .append(true)
            .open(record)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .context(|| format!("noting that the snapshot {name} is used"))?;
        Ok(Some(found.clone()))
    }

    /// All of an owner, oldest first.
    pub fn list(&self, owner: &str) -> Vec<Snapshot> {
        let mut found: Vec<_> = {
            let table = self.table();
            table
                .values()
                .filter(|s| s.owner == owner)
                .cloned()
                .collect()
        };
        found.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
        found
    }

    /// What each owner has, by name.
    pub fn usage(&self) -> Vec<Usage> {
        let mut by_owner: BTreeMap<String, Usage> = BTreeMap::new();
        for snapshot in self.table().values() {
            let owner = snapshot.owner.clone();
            let usage = by_owner.entry(owner.clone()).or_insert(Usage {
                owner,
                count: 0,
                bytes: 0,
                shared_bytes: 0,
            });
            usage.count += 1;
            usage.bytes += snapshot.bytes;
            usage.shared_bytes += snapshot.linked;
        }
        by_owner.into_values().collect()
    }

    /// Removes one. Returns whether it was there. The caller has looked whether it is in use.
    ///
    /// # Errors
    /// It cannot be taken out of sight.
    pub fn remove(&self, owner: &str, name: &str) -> Result<bool> {
        let key = (owner.to_owned(), name.to_owned());
        let hidden = {
            let mut table = self.table();
            let Some(found) = table.get(&key) else {
                return Ok(false);
            };
            let hidden = self.inner.dir.join("tmp").join(new_id());
            let place = found.files.parent().unwrap_or(&found.files);
            fs::rename(place, &hidden).context(|| format!("removing the snapshot {name}"))?;
            table.remove(&key);
            hidden
        };
        remove(&hidden);
        Ok(true)
    }

    /// Removes what the owners for whom `known` is false have, and what has not been used for its time; never what is `in_use`
    /// ([`Snapshot::files`]). Offers that nobody took go too. Returns how many snapshots went.
    ///
    /// # Errors
    /// One cannot be removed; the next round tries again.
    pub fn sweep(
        &self,
        in_use: &HashSet<PathBuf>,
        known: impl Fn(&str) -> bool,
        now_ms: i64,
    ) -> Result<usize> {
        self.inner.offers.expire(self.inner.config.offer_ms);
        let ttl = i64::try_from(self.inner.config.ttl_ms).unwrap_or(i64::MAX);
        let gone: Vec<_> = {
            let table = self.table();
            let old =
                |s: &&Snapshot| now_ms.saturating_sub(s.last_used_ms) > ttl || !known(&s.owner);
            table
                .values()
                .filter(old)
                .filter(|s| !in_use.contains(&s.files))
                .map(|s| (s.owner.clone(), s.name.clone()))
                .collect()
        };
        let mut removed = 0;
        for (owner, name) in gone {
            removed += usize::from(self.remove(&owner, &name)?);
        }
        Ok(removed)
    }

    /// Holds a draft for its owner under a token that nobody can guess. It can be taken once, and not for long.
    pub fn offer(&self, owner: &str, draft: Draft, copied: Copied) -> String {
        self.inner.offers.expire(self.inner.config.offer_ms);
        self.inner.offers.make(owner, draft, copied)
    }

    /// Takes an owner's offer.
    pub fn take(&self, owner: &str, token: &str) -> Option<(Draft, Copied)> {
        self.inner.offers.expire(self.inner.config.offer_ms);
        self.inner.offers.take(owner, token)
    }
}

pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn snapshot(stored: Stored, place: &Path, last_used_ms: i64) -> Snapshot {
    Snapshot {
        owner: stored.owner,
        name: stored.name,
        labels: stored.labels,
        created_ms: stored.created_ms,
        last_used_ms,
        kind: stored.kind,
        bytes: stored.bytes,
        linked: stored.linked,
        archive: stored.archive,
        files: place.join("fs"),
    }
}

fn read(place: &Path) -> std::io::Result<Snapshot> {
    let path = place.join("snapshot.json");
    let stored: Stored = serde_json::from_slice(&fs::read(&path)?)?;
    fs::metadata(place.join("fs"))?;
    let used = to_ms(fs::metadata(&path)?.modified()?);
    Ok(snapshot(stored, place, used))
}
