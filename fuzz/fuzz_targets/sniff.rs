//! The first bytes of outbound connections: ClientHello and its SNI, HTTP and its Host.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_net::fuzzing::sniff(bytes));
