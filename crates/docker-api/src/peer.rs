//! The process at the other end of a connection.

use std::io;

use tokio::net::UnixStream;

/// Who is connected, as the kernel tells; in the extensions of each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(i32);

impl Peer {
    /// `None` if it cannot be seen from here: it is in another PID namespace.
    pub(crate) fn of(stream: &UnixStream) -> Option<Peer> {
        let pid = stream.peer_cred().ok()?.pid()?;
        (pid > 0).then_some(Peer(pid))
    }

    /// Waits for the process's end; at once if it has ended.
    pub(crate) async fn ended(self) -> io::Result<()> {
        wharf_sandbox::process_end(self.0).await
    }
}
