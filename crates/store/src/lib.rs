//! The node's metadata: scripts, versions, namespaces, applications, tokens, in SQLite; and blobs by hash on disk.
//!
//! Owns: `<data>/wharf.sqlite` and `<data>/blobs`. Migrations by version; a crash at any instant leaves the old or the new state whole.
//! Must not: know of HTTP or processes. Calls are synchronous and short; async callers use `spawn_blocking`.

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}
