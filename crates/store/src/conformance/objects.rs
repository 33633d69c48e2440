//! Blobs: whole or not there, whatever happens to who writes them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::StoreError;
use crate::meta::wait;
use crate::objects::ObjectStore;

/// How a store of blobs under test is opened.
pub trait Subject: Sized {
    /// Opens the store that is kept at `place`, a directory: an empty one at first, later the same
    /// again.
    fn open(place: &Path) -> Self;

    /// The store.
    fn store(&self) -> Arc<dyn ObjectStore>;

    /// Changes the content of a stored object behind the store's back.
    fn damage(&self, hash: &str, content: &[u8]);
}

fn fresh<S: Subject>() -> (tempfile::TempDir, S) {
    let dir = tempfile::tempdir().unwrap();
    let subject = S::open(dir.path());
    (dir, subject)
}

fn hash(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Stores content in pieces.
fn put(
    store: &Arc<dyn ObjectStore>,
    pieces: &[&[u8]],
    expected: Option<&str>,
) -> Result<String, StoreError> {
    wait(async {
        let mut writer = store.begin(expected).await?;
        for piece in pieces {
            writer.write(piece).await?;
        }
        writer.finish().await
    })
}

fn hashes(store: &Arc<dyn ObjectStore>) -> Vec<String> {
    let mut hashes: Vec<_> = wait(store.list())
        .unwrap()
        .into_iter()
        .map(|object| object.hash)
        .collect();
    hashes.sort();
    hashes
}

/// In one piece, in many, and in none; also after reopening.
pub fn content_is_read_as_it_was_written<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let store = subject.store();
    let large: Vec<u8> = (0..3_u32 << 20).map(|n| (n % 251) as u8).collect();
    let pieces: Vec<&[u8]> = large.chunks(100_000).collect();
    let cases: [(&[&[u8]], &[u8]); 3] =
        [(&[b"one"], b"one"), (&[], b""), (&pieces, large.as_slice())];
    for (pieces, content) in cases {
        assert_eq!(put(&store, pieces, None).unwrap(), hash(content));
    }
    drop((store, subject));
    let subject = S::open(dir.path());
    let store = subject.store();
    for (_, content) in cases {
        assert!(wait(store.get(&hash(content))).unwrap() == content);
        let info = wait(store.info(&hash(content))).unwrap().unwrap();
        assert_eq!(info.bytes, content.len() as u64);
        if let Some(path) = store.local_path(&hash(content)) {
            assert!(std::fs::read(path).unwrap() == content);
        }
    }
    assert_eq!(hashes(&store).len(), 3);
}

/// Whoever asks by a name that no content has, hears so.
pub fn what_is_not_there_is_not_found<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    for name in [
        &hash(b"never"),
        "",
        "..",
        "../../etc/passwd",
        &"A".repeat(64),
    ] {
        assert!(matches!(
            wait(store.get(name)),
            Err(StoreError::NotFound(_))
        ));
        assert_eq!(wait(store.info(name)).unwrap(), None);
        assert!(!wait(store.touch(name, 0)).unwrap());
        wait(store.remove(name)).unwrap();
    }
}

/// Neither under the hash that was expected nor under its own.
pub fn content_with_another_hash_is_refused<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let error = put(&store, &[b"other"], Some(&hash(b"wanted"))).unwrap_err();
    assert!(matches!(error, StoreError::WrongHash { .. }), "{error}");
    assert_eq!(hashes(&store), Vec::<String>::new());
    put(&store, &[b"wan", b"ted"], Some(&hash(b"wanted"))).unwrap();
    assert_eq!(hashes(&store), [hash(b"wanted")]);
}

/// Not while it is written, and not if the writer gives up or is forgotten.
pub fn what_is_half_written_is_not_visible<S: Subject>() {
    let (dir, subject) = fresh::<S>();
    let store = subject.store();
    let invisible = |store: &Arc<dyn ObjectStore>| {
        assert_eq!(hashes(store), Vec::<String>::new());
        assert_eq!(wait(store.info(&hash(b"half"))).unwrap(), None);
    };
    let mut writer = wait(store.begin(Some(&hash(b"half")))).unwrap();
    wait(writer.write(b"half")).unwrap();
    invisible(&store);
    drop(writer);
    invisible(&store);
    let mut writer = wait(store.begin(None)).unwrap();
    wait(writer.write(b"half")).unwrap();
    // As a process that was killed: nothing is cleaned up.
    std::mem::forget(writer);
    drop((store, subject));
    let subject = S::open(dir.path());
    invisible(&subject.store());
    put(&subject.store(), &[b"half"], None).unwrap();
    assert_eq!(hashes(&subject.store()), [hash(b"half")]);
}

/// Two writers of the same content at a time leave it once and whole.
pub fn the_same_content_twice_is_one_object<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let mut first = wait(store.begin(None)).unwrap();
    let mut second = wait(store.begin(None)).unwrap();
    for writer in [&mut first, &mut second] {
        wait(writer.write(b"same")).unwrap();
    }
    let (first, second) = (wait(first.finish()), wait(second.finish()));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(hashes(&store), [hash(b"same")]);
    assert_eq!(wait(store.get(&hash(b"same"))).unwrap(), b"same");
}

/// Reading says so; storing the same content again repairs what has another length.
pub fn damaged_content_is_noticed<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let name = put(&store, &[b"hello"], None).unwrap();
    subject.damage(&name, b"jello");
    assert!(matches!(
        wait(store.get(&name)),
        Err(StoreError::Corrupt(_))
    ));
    subject.damage(&name, b"hel");
    assert!(!wait(store.touch(&name, 5)).unwrap());
    put(&store, &[b"hello"], None).unwrap();
    assert_eq!(wait(store.get(&name)).unwrap(), b"hello");
}

/// A touch, and a put of the same content, make it young; a removed one is gone.
pub fn objects_age_and_are_removed<S: Subject>() {
    let (_dir, subject) = fresh::<S>();
    let store = subject.store();
    let name = put(&store, &[b"hello"], None).unwrap();
    let age = || wait(store.info(&name)).unwrap().unwrap().age;
    // A bucket tells times in whole seconds.
    let step = Duration::from_millis(1100);
    std::thread::sleep(step);
    let old = age();
    assert!(old >= Duration::from_millis(50), "{old:?}");
    assert!(wait(store.touch(&name, 5)).unwrap());
    assert!(age() < old);
    std::thread::sleep(step);
    let old = age();
    put(&store, &[b"hello"], None).unwrap();
    assert!(age() < old);
    wait(store.remove(&name)).unwrap();
    assert_eq!(hashes(&store), Vec::<String>::new());
    assert!(matches!(
        wait(store.get(&name)),
        Err(StoreError::NotFound(_))
    ));
}

/// One `#[test]` for each case, for an implementation of [`Subject`].
#[macro_export]
macro_rules! object_store_conformance {
    ($subject:ty) => {
        $crate::object_store_conformance!(@ $subject:
            content_is_read_as_it_was_written
            what_is_not_there_is_not_found
            content_with_another_hash_is_refused
            what_is_half_written_is_not_visible
            the_same_content_twice_is_one_object
            damaged_content_is_noticed
            objects_age_and_are_removed
        );
    };
    (@ $subject:ty: $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::objects::$case::<$subject>();
            }
        )*
    };
}
