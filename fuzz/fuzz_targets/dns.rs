//! The DNS answerer's messages, of containers and of servers outside.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_net::fuzzing::dns(bytes));
