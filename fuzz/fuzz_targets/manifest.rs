//! Manifests, image configurations, digests and references, as a client of the registry sends them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_image::fuzzing::manifest(bytes));
