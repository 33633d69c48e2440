//! An archive of a layer, which its author made hostile: it is read and unpacked, and nothing
//! outside the directory changes.

#![no_main]

use std::path::Path;

/// In memory, since each input makes files.
const PLACE: &str = "/dev/shm";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_image::fuzzing::tar(bytes, Path::new(PLACE)));
