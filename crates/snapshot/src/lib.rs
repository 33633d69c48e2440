//! Snapshots: named directories of one owner, taken cheaply and restored without a copy.
//!
//! Owns: `<data>/snapshots`; the merged view of a container's layers ([`View`]), copies of it ([`copy`]) and archives of it ([`pack`]).
//! Must not: speak HTTP, know of containers' lives, or mount anything. All calls are synchronous.
//!
//! A snapshot is taken from the layers themselves, not through the overlay: what lies in a layer that never changes (of the image, of an
//! earlier snapshot) becomes another name of the same file; only what the container wrote is copied, by reflink where the file system can.
//! A restored container gets the snapshot as a lower layer of an overlay, so a restore copies nothing, and a snapshot never changes.
//!
//! ```text
//! snapshots/kept/<id>/snapshot.json   what it is; its modification time is when it was last used
//! snapshots/kept/<id>/fs/             the files, with the ids and attributes that they have in the container
//! snapshots/tmp/                      on the way in or out; emptied on open
//! ```
//! In by one rename once the content is on disk, out by one rename before the removal: a crash at any instant leaves nothing that is listed
//! and incomplete.
//!
//! A *draft* is a snapshot without a name. An *offer* is a draft that waits, under a token, for the request that names it.

mod copy;
mod error;
mod metadata;
mod offers;
mod pack;
mod store;
mod view;

pub use self::copy::{Allowance, Copied, Form, copy, prune};
pub use self::error::SnapshotError;
pub use self::pack::pack;
pub use self::store::{Draft, Kind, Snapshot, SnapshotConfig, Snapshots, Usage};
pub use self::view::{Dir, Layer, Node, View};
