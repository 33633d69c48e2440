//! The CONNECT ingress between a client and an app that send whatever they like, in pieces and with ends anywhere. It must neither panic nor hang,
//! and what an app is sent must be well-formed HTTP or exactly the client's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_net::fuzzing::ingress(bytes));
