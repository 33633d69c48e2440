//! What a Worker's prelude sends along with a start.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_docker_api::fuzzing::start_options(bytes));
