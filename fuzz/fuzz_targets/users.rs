//! A user's name, and the passwd and group files of an image.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_sandbox::fuzzing::users(bytes));
