//! Connections to workerd processes, kept for the next request.
//!
//! ```text
//! connect -> in use -> idle -> in use -> ...
//!              |         \-> closed by workerd, or idle too long: dropped
//!              \-> body not read to its end, or an error: dropped
//! ```

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::body::RequestBody;
use crate::{Endpoint, Guard};

/// workerd's HTTP server closes idle connections after 5 s; one that it may close at this moment is not worth its risk.
const MAX_IDLE: Duration = Duration::from_secs(3);
/// More than this many idle connections to one process are of no use.
const MAX_IDLE_PER_PROCESS: usize = 256;
/// Largest response head, and most that is buffered of a body, bytes.
pub(crate) const BUFFER: usize = 256 * 1024;
/// A full accept queue answers `EAGAIN` (unix(7)); how often, and how far apart, connecting is tried.
const CONNECT_TRIES: u32 = 200;
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

pub(crate) type Connection = SendRequest<RequestBody>;

/// Idle connections by process.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<u64, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// An idle connection to the process, the one used last.
    pub(crate) fn take(&self, process: u64) -> Option<Connection> {
        let mut idle = self.lock();
        let list = idle.get_mut(&process)?;
        list.retain(|entry| !entry.connection.is_closed() && entry.since.elapsed() < MAX_IDLE);
        // One whose response has just ended may not have finished its own book-keeping: it is for a later request.
        let at = list.iter().rposition(|entry| entry.connection.is_ready())?;
        Some(list.remove(at).connection)
    }

    /// Opens a new connection.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        process: u64,
    ) -> io::Result<Connection> {
        let Endpoint::Unix(socket) = endpoint;
        let stream = connect_unix(socket).await?;
        let (connection, driver) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .max_header_size(BUFFER)
            .max_headers(wharf_http_head::fields_within(BUFFER))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(process, %error, "connection to workerd failed");
            }
            Self::sweep(&pool, process);
        });
        Ok(connection)
    }

    fn put(&self, process: u64, connection: Connection) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.lock();
        let list = idle.entry(process).or_default();
        if list.len() < MAX_IDLE_PER_PROCESS {
            list.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Forgets closed connections, and with the last one the process.
    fn sweep(pool: &Weak<Self>, process: u64) {
        if let Some(pool) = pool.upgrade() {
            let mut idle = pool.lock();
            if let Some(list) = idle.get_mut(&process) {
                list.retain(|entry| !entry.connection.is_closed());
                if list.is_empty() {
                    idle.remove(&process);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect_unix(socket: &Path) -> io::Result<UnixStream> {
    let mut tries = 0;
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < CONNECT_TRIES => {
                tries += 1;
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// A process and a connection to it, held while a response's body is on its way.
pub(crate) struct Lease {
    /// Lets the process end when dropped.
    pub(crate) guard: Box<dyn Guard>,
    pub(crate) connection: Connection,
    pub(crate) process: u64,
    pub(crate) pool: Arc<Pool>,
}

impl Lease {
    /// The response is complete: the connection may serve another request.
    pub(crate) fn give_back(self) {
        self.pool.put(self.process, self.connection);
        drop(self.guard);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}
