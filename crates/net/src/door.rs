//! Where workerd finds a container's network, and where the network finds workerd.
//!
//! workerd dials the ingress at a port of 127.0.0.1, and listens at one for what its containers send (contract: workerd, 1.5, 1.6). Both are in the
//! namespace that workerd runs in: its own, or the host's (`wrangler dev`, which the operator runs). In a namespace of its own nobody else is, so that
//! who connects needs no proof; on the host's loopback everybody is, and only root is let in.
//!
//! ```text
//! closed --open--> on the host, or in a workerd's network --open elsewhere--> there       closed again when that network ends
//! ```

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{NetError, Network, Shared, ingress, succession};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Door {
    state: Mutex<State>,
    /// Held while it is opened, which is done once for each place.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        address: SocketAddr,
        /// The network of workerd's process; `None` is the host.
        worker: Option<Weak<Shared>>,
        /// Ends the listener.
        _listens: DropGuard,
    },
}

impl Door {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the ingress.
    pub(crate) fn address(&self) -> SocketAddr {
        match &*self.state() {
            State::Closed => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            State::Open { address, .. } => *address,
        }
    }

    /// Whether it is open for that one.
    fn is_open_for(&self, wanted: Option<&Arc<Shared>>) -> bool {
        match (&*self.state(), wanted) {
            (State::Closed, _) => false,
            (State::Open { worker: None, .. }, wanted) => wanted.is_none(),
            (
                State::Open {
                    worker: Some(_), ..
                },
                None,
            ) => false,
            (
                State::Open {
                    worker: Some(worker),
                    ..
                },
                Some(wanted),
            ) => worker.as_ptr() == Arc::as_ptr(wanted),
        }
    }

    /// Connects to a port that workerd listens on.
    ///
    /// # Errors
    /// It does not, or is gone.
    pub(crate) async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let worker = match &*self.state() {
            State::Closed => return Err(ErrorKind::NotConnected.into()),
            State::Open { worker: None, .. } => None,
            State::Open {
                worker: Some(worker),
                ..
            } => Some(worker.upgrade().ok_or(ErrorKind::NotConnected)?),
        };
        match worker {
            Some(worker) => worker.inside.dial(port).await,
            None => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await,
        }
    }
}

async fn listen(worker: Option<&Arc<Shared>>, address: SocketAddr) -> io::Result<TcpListener> {
    match worker {
        Some(worker) => worker.inside.listen(address).await,
        None => TcpListener::bind(address).await,
    }
}

/// At a port that is free.
async fn listen_somewhere(
    shared: &Shared,
    worker: Option<&Arc<Shared>>,
) -> io::Result<TcpListener> {
    for port in shared.config.ports.next() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match listen(worker, address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && port != 0 => {}
            other => return other,
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// Opens the door of a network there, at that address or at any port, unless it is open there already.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    worker: Option<&Network>,
    address: Option<SocketAddr>,
) -> Result<(), NetError> {
    let worker = worker.map(|network| &network.handle.0);
    let _turn = shared.door.opening.lock().await;
    if shared.door.is_open_for(worker) {
        return Ok(());
    }
    let failed = |e| {
        let place = address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        NetError::io(format!("listening on {place} for a container's ingress"), e)
    };
    let listener = match address {
        Some(address) => listen(worker, address).await,
        None => listen_somewhere(shared, worker).await,
    }
    .map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let listens = CancellationToken::new();
    let (closed, ended) = (
        listens.clone(),
        worker
            .map(|worker| worker.ended.clone())
            .unwrap_or_default(),
    );
    let serve = ingress::serve(shared.clone(), Arc::new(listener), worker.is_none());
    shared.spawn(async move {
        tokio::select! {
            () = serve => {}
            () = closed.cancelled() => {}
            () = ended.cancelled() => {}
        }
    });
    let opened = State::Open {
        address,
        worker: worker.map(Arc::downgrade),
        _listens: listens.drop_guard(),
    };
    let before = std::mem::replace(&mut *shared.door.state(), opened);
    if matches!(before, State::Open { .. }) {
        // Where it listens in another network is another port, even with the same number.
        let current = succession::current(shared);
        current.egress.send_modify(|egress| egress.port = None);
    }
    Ok(())
}
