//! Processes beside the main one of a container, through the sockets, against real containers.
#![allow(clippy::unwrap_used)] // a panic is a failed test

mod client;
mod dialect;
mod node;
mod volume;
mod worker;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");
