//! The gateway on a real port, between TCP clients and Unix socket servers that speak bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod requests;
mod streams;
