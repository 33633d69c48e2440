//! A Dockerfile and a .dockerignore: lines, instructions, stages and substitutions.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wharf_build::fuzzing::dockerfile(bytes));
