//! What is behind a CONNECT that was granted: HTTP/1 or anything else.
//!
//! ```text
//!             the app speaks or closes
//!  Undecided ───────────────────────────────────────────────────> Raw
//!     │  the client sends something that is no request line of HTTP/1,   ▲
//!     │  or half of one and then nothing ────────────────────────────────┤
//!     │  the client sends a request line                                 │ 101
//!     └─────────────────────────────────────────────────> Http ──────────┘
//! ```
//! Nothing is decided by a clock as long as the client is silent: an HTTP server never speaks first, so whoever does so is not one.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::http1;
use super::sniff::{Verdict, verdict};
use crate::bandwidth::Bandwidth;
use crate::relay::{Guarded, relay, reset};

/// Who begins with something like half a request line and then waits does not speak HTTP.
const HALF_A_LINE: Duration = Duration::from_millis(100);

/// Where connections to the app come from.
pub(crate) trait Upstream: Send + Sync + 'static {
    /// Connects; waits within bounds for somebody to listen.
    fn dial(&self) -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// Whether somebody listens now.
    fn is_listening(&self) -> bool;

    /// How fast it may go.
    fn bandwidth(&self) -> &Bandwidth;
}

/// Carries a tunnel to its end. `early` is what the client has sent already, `app` a new connection.
///
/// # Errors
/// What broke it; both sides are reset then.
pub(crate) async fn carry(
    client: TcpStream,
    early: BytesMut,
    app: TcpStream,
    upstream: impl Upstream,
) -> io::Result<()> {
    let mut early = early;
    match speaks_http(&client, &mut early, &app).await {
        Ok(true) => http1::serve(client, early, app, upstream).await,
        Ok(false) => {
            let app = Guarded::new(app);
            app.write_all(&early).await?;
            relay(Guarded::new(client), app, upstream.bandwidth()).await
        }
        Err(error) => {
            reset(client);
            reset(app);
            Err(error)
        }
    }
}

async fn speaks_http(
    client: &TcpStream,
    early: &mut BytesMut,
    app: &TcpStream,
) -> io::Result<bool> {
    loop {
        match verdict(early) {
            Verdict::Http => return Ok(true),
            Verdict::Other => return Ok(false),
            Verdict::More => {}
        }
        let silent = async {
            if early.is_empty() {
                std::future::pending().await
            } else {
                tokio::time::sleep(HALF_A_LINE).await;
            }
        };
        tokio::select! {
            // If both have spoken, the client was first: it is the one that must not be misjudged.
            biased;
            ready = client.readable() => ready?,
            ready = app.readable() => {
                ready?;
                // Readiness may be of the past.
                let mut byte = [0];
                match app.try_io(tokio::io::Interest::READABLE, || {
                    rustix::net::recv(app, &mut byte, rustix::net::RecvFlags::PEEK).map_err(Into::into)
                }) {
                    Ok(_) => return Ok(false),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(e),
                }
            }
            () = silent => return Ok(false),
        }
        match client.try_read_buf(early) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}
