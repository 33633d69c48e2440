//! Files behind the seam for blobs.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::path::Path;
use std::sync::Arc;

use wharf_store::conformance::objects::Subject;
use wharf_store::objects::ObjectStore;
use wharf_store::objects::files::FileObjects;

struct Files(FileObjects);

impl Subject for Files {
    fn open(place: &Path) -> Self {
        Files(FileObjects::open(&place.join("blobs")).unwrap())
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.0.clone())
    }

    fn damage(&self, hash: &str, content: &[u8]) {
        std::fs::write(self.0.path(hash), content).unwrap();
    }
}

wharf_store::object_store_conformance!(Files);

#[test]
fn nothing_is_left_of_what_was_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileObjects::open(dir.path()).unwrap();
    let left = || std::fs::read_dir(dir.path().join("tmp")).unwrap().count();
    let writer = wharf_store::meta::wait(files.begin(None)).unwrap();
    assert_eq!(left(), 1);
    drop(writer);
    assert_eq!(left(), 0);
}
