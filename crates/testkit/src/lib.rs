//! What tests of real processes share: a place with a spawner that leaves nothing behind, a root file system of busybox, an HTTP client, and
//! (feature `engine`) an engine over all of it. Needs root and a static busybox.
//!
//! Owns: no logic of the project. Must not: be anything but a dev-dependency.
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

pub mod busybox;
#[cfg(feature = "engine")]
pub mod engine;
mod place;
pub mod set_id;

use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::place::Place;

/// Waits for something that has no event to wait for.
///
/// # Panics
/// After 30 s.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// [`eventually`], of a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, async || condition().then_some(())).await;
}

/// Whether a process runs. A zombie has ended.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// gVisor's `runsc`.
///
/// # Panics
/// It is not installed.
pub fn runsc() -> std::path::PathBuf {
    let path = std::path::PathBuf::from("/usr/bin/runsc");
    assert!(
        path.exists(),
        "these tests need runsc: apt-get install runsc"
    );
    path
}

/// SIGKILL; none if the process is gone.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// One request on a connection of its own.
///
/// # Errors
/// The connection broke before the answer's end.
pub async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<String>,
) -> hyper::Result<Response<String>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    Ok(Response::from_parts(parts, text))
}

/// The root directory below which `cargo xtask setup` puts a kernel for virtual machines.
pub fn guest_kernel() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../../target/tools/guest/kernel")
}
