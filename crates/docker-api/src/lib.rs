//! The Docker Engine API dialect: one socket per workerd process, and the operator's socket.
//!
//! Owns: Docker's request and response shapes and its error shape `{"message": ...}`; the recognition of workerd's sidecar requests (contract: workerd, 1.3).
//! Must not: keep instances; those are the engine's.

mod errors;
mod exec;
mod fields;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod json;
mod operations;
pub mod operator;
mod peer;
mod ports;
mod request;
pub mod script;
mod serve;
mod storage;
mod upgrade;
mod version;

pub use self::json::time;
pub use self::serve::{Bounds, serve_unix, serve_unix_within};
pub use self::version::API_VERSION;
