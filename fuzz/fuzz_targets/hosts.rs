//! Host patterns of outbound handlers, and the names that they are for.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_net::fuzzing::hosts(bytes));
