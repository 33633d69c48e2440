//! A script upload: its multipart body, its metadata, and the configuration of a container
//! application.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_control::fuzzing::multipart(bytes));
