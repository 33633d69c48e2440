//! A client of the Docker API's sockets that sends whatever it likes, in pieces and with its end anywhere. It is answered in HTTP or closed, in bounded
//! time, and nothing panics.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_docker_api::fuzzing::docker_api(bytes));
