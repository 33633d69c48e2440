//! Published ports: listeners on the host whose connections are carried to a port inside.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

use crate::relay::{Guarded, relay, reset};
use crate::{NetError, Network, Shared};

/// How many connections one published port serves at a time; more wait to be accepted.
const CONNECTIONS: usize = 1024;

impl Network {
    /// Listens on an address of the host (port 0: any) for as long as the network lives, and carries connections to `port` inside (127.0.0.1,
    /// then ::1). One that nobody inside accepts is reset. Returns where it listens.
    ///
    /// # Errors
    /// The address is in use, not this host's, or not allowed.
    pub async fn publish(&self, outside: SocketAddr, port: u16) -> Result<SocketAddr, NetError> {
        let failed = |e| NetError::io(format!("publishing port {port} on {outside}"), e);
        let listener = TcpListener::bind(outside).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let shared = self.shared();
        let serve = move |shared: Arc<Shared>, stream: TcpStream, slot: crate::Slot| async move {
            let _slot = slot;
            if let Err(error) = carry(&shared, stream, port).await {
                tracing::debug!(%error, port, "connection to a published port");
            }
        };
        self.shared().spawn(crate::serve_each(
            shared,
            Arc::new(listener),
            CONNECTIONS,
            serve,
        ));
        Ok(bound)
    }
}

async fn carry(shared: &Shared, outside: TcpStream, port: u16) -> io::Result<()> {
    let inside = match shared.inside.dial(port).await {
        Ok(inside) => inside,
        Err(error) => {
            reset(outside);
            return Err(error);
        }
    };
    outside.set_nodelay(true)?;
    relay(
        Guarded::new(outside),
        Guarded::new(inside),
        &shared.bandwidth,
    )
    .await
}
