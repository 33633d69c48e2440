//! The Cap'n Proto messages between workerd processes, of which the relay counts what is in flight.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_workerd::fuzzing::rpc(bytes));
