//! Connections to ports inside a namespace, and looking whether somebody listens there.
//!
//! Sockets for both are made ahead, inside, by a thread that ends again; using one then needs no
//! thread hop. A socket that was refused is tried again or goes back to the stock. When nobody has
//! used them for a while they go, since each takes a descriptor of the daemon: what remains of an
//! idle network is the listener, by which the namespace is found again.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use wharf_sandbox::netns::{self, Connecting, Listeners};

/// What Wharf itself listens on inside, by TCP.
pub(crate) const OWN_PORT: u16 = 64001;

/// The stock of each family; fewer of IPv6, since almost everything listens on IPv4. Each takes a
/// descriptor of the daemon, so idle containers have none ([`Inside::keep_lean`]).
pub(crate) const STOCK: [usize; 2] = [3, 1];
/// Where many connect at once.
const LARGE_STOCK: [usize; 2] = [8, 2];
/// Below this many of IPv4 the stock is filled up in the background.
const LOW: usize = 2;
/// Unused for so long to twice as long, a stock goes.
const IDLE: Duration = Duration::from_secs(5);
/// How many connections wait for accept.
const BACKLOG: i32 = 1024;
/// How long a listener whose queue is full may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum Family {
    V4 = 0,
    V6 = 1,
}

/// What ports inside are looked at with.
#[derive(Debug)]
enum Eye {
    Open(Listeners),
    /// Nobody has looked for a while.
    Closed,
    /// The kernel cannot be asked.
    Blind,
}

/// A namespace and the stock of sockets in it.
#[derive(Debug)]
pub(crate) struct Inside {
    /// Accepts redirected connections.
    redirected: Arc<TcpListener>,
    eye: Mutex<Eye>,
    stock: Mutex<[Vec<OwnedFd>; 2]>,
    filling: AtomicBool,
    /// How often anything was used.
    uses: AtomicU64,
    /// Tells [`Inside::keep_lean`] of that.
    used: Notify,
    /// The kernel makes no IPv6 sockets.
    v4_only: AtomicBool,
    /// Those who found the stock empty wait for one filling, instead of each making its own.
    empty: tokio::sync::Mutex<()>,
}

impl Inside {
    /// With sockets that were made in it, [`STOCK`] of them or fewer.
    pub(crate) fn new(
        redirected: Arc<TcpListener>,
        listeners: Option<Listeners>,
        (v4, v6): netns::UnconnectedSockets,
    ) -> Self {
        Self {
            redirected,
            eye: Mutex::new(listeners.map_or(Eye::Blind, Eye::Open)),
            v4_only: AtomicBool::new(v6.is_empty()),
            stock: Mutex::new([v4, v6]),
            filling: AtomicBool::new(false),
            uses: AtomicU64::new(0),
            used: Notify::new(),
            empty: tokio::sync::Mutex::default(),
        }
    }

    /// A new descriptor of the namespace.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(crate) fn namespace(&self) -> io::Result<OwnedFd> {
        netns::of_socket(self.redirected.as_fd())
    }

    /// Whether it is worth trying to connect to a port.
    pub(crate) fn look(&self, port: u16) -> bool {
        self.use_it();
        let mut eye = self.eye.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*eye, Eye::Closed)
            && let Ok(listeners) = self.open_eye()
        {
            *eye = Eye::Open(listeners);
        }
        let Eye::Open(listeners) = &mut *eye else {
            return true;
        };
        listeners.is_listening(port).unwrap_or_else(|error| {
            tracing::debug!(%error, port, "a port inside could not be looked at");
            true
        })
    }

    /// All ports that are listened on; `None` if the kernel cannot say. Whoever only wants to know
    /// keeps nothing open.
    pub(crate) fn listening(&self) -> Option<Vec<u16>> {
        let mut eye = self.eye.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = match &mut *eye {
            Eye::Blind => return None,
            Eye::Open(listeners) => listeners.ports(),
            Eye::Closed => self.open_eye().and_then(|mut listeners| listeners.ports()),
        };
        let ports =
            ports.inspect_err(|error| tracing::debug!(%error, "listeners inside not known"));
        Some(ports.ok()?.into_iter().collect())
    }

    /// Blocks for some 0.1 ms: a thread goes inside.
    fn open_eye(&self) -> io::Result<Listeners> {
        let namespace = self.namespace()?;
        Listeners::open(namespace.as_fd(), OWN_PORT)
            .inspect_err(|error| tracing::debug!(%error, "asking for listeners inside"))
    }

    /// Puts off the end of what was made ahead.
    fn use_it(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
        self.used.notify_one();
    }

    /// Dials once.
    pub(crate) async fn dial(self: &Arc<Self>, port: u16) -> io::Result<TcpStream> {
        self.attempt(port).connect().await
    }

    /// Listens inside, at an IPv4 address.
    pub(crate) async fn listen(self: &Arc<Self>, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.take(Family::V4).await?;
        // It does not come back, and the next one shall not wait.
        self.refill();
        // A port that only connections that have ended still hold is free.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    /// A dial that may be repeated.
    pub(crate) fn attempt(self: &Arc<Self>, port: u16) -> Attempt {
        Attempt {
            inside: self.clone(),
            port,
            sockets: [None, None],
        }
    }

    fn stock(&self) -> MutexGuard<'_, [Vec<OwnedFd>; 2]> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, to: [usize; 2]) -> io::Result<()> {
        let missing = {
            let stock = self.stock();
            [0, 1].map(|i| to[i].saturating_sub(stock[i].len()))
        };
        let namespace = self.namespace()?;
        let (v4, v6) = netns::tcp_sockets(namespace.as_fd(), missing[0], missing[1])?;
        if v6.len() < missing[1] {
            self.v4_only.store(true, Ordering::Relaxed);
        }
        let mut stock = self.stock();
        stock[0].extend(v4);
        stock[1].extend(v6);
        Ok(())
    }

    async fn take(self: &Arc<Self>, family: Family) -> io::Result<OwnedFd> {
        if let Some(socket) = self.pop(family) {
            return Ok(socket);
        }
        let _alone = self.empty.lock().await;
        loop {
            // What was made may be gone again: others take from the stock too.
            if let Some(socket) = self.pop(family) {
                return Ok(socket);
            }
            if matches!(family, Family::V6) && self.v4_only.load(Ordering::Relaxed) {
                return Err(ErrorKind::Unsupported.into());
            }
            let inside = self.clone();
            tokio::task::spawn_blocking(move || inside.fill(LARGE_STOCK))
                .await
                .map_err(io::Error::other)??;
        }
    }

    fn pop(self: &Arc<Self>, family: Family) -> Option<OwnedFd> {
        let (socket, low) = {
            let mut stock = self.stock();
            (stock[family as usize].pop(), stock[0].len() < LOW)
        };
        if low && socket.is_some() {
            self.refill();
        }
        self.use_it();
        socket
    }

    /// Closes what was made ahead when nobody has dialled or looked for a while: an idle container
    /// holds few descriptors. The next dial makes others. Never returns.
    pub(crate) async fn keep_lean(self: Arc<Self>) {
        let mut before = None;
        loop {
            tokio::time::sleep(IDLE).await;
            let uses = Some(self.uses.load(Ordering::Relaxed));
            if before == uses {
                self.close_idle();
                self.used.notified().await;
            }
            before = uses;
        }
    }

    fn close_idle(&self) {
        *self.stock() = Default::default();
        let mut eye = self.eye.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*eye, Eye::Open(_)) {
            *eye = Eye::Closed;
        }
    }

    /// In the background.
    fn refill(self: &Arc<Self>) {
        if self.filling.swap(true, Ordering::Relaxed) {
            return;
        }
        let inside = self.clone();
        // Nobody waits for it: whoever finds the stock empty fills it and sees the error.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = inside.fill(STOCK) {
                tracing::debug!(%error, "sockets inside a namespace could not be made ahead");
            }
            inside.filling.store(false, Ordering::Relaxed);
        });
    }

    fn give_back(&self, family: usize, socket: OwnedFd) {
        let mut stock = self.stock();
        if stock[family].len() < STOCK[family] {
            stock[family].push(socket);
        }
    }
}

/// A dial to one port, to be repeated until somebody listens.
pub(crate) struct Attempt {
    inside: Arc<Inside>,
    port: u16,
    sockets: [Option<OwnedFd>; 2],
}

impl Attempt {
    /// Tries 127.0.0.1, then ::1. ConnectionRefused means that neither listens.
    pub(crate) async fn connect(&mut self) -> io::Result<TcpStream> {
        for (family, address) in [
            (
                Family::V4,
                SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            ),
            (
                Family::V6,
                SocketAddr::from((Ipv6Addr::LOCALHOST, self.port)),
            ),
        ] {
            match self.connect_to(family, address).await {
                Ok(stream) => return Ok(stream),
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                // A kernel without IPv6, or with it switched off.
                Err(e)
                    if matches!(family, Family::V6)
                        && matches!(
                            e.kind(),
                            ErrorKind::Unsupported
                                | ErrorKind::AddrNotAvailable
                                | ErrorKind::NetworkUnreachable
                        ) => {}
                Err(e) => return Err(e),
            }
        }
        Err(ErrorKind::ConnectionRefused.into())
    }

    async fn connect_to(&mut self, family: Family, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match self.sockets[family as usize].take() {
            Some(socket) => socket,
            None => self.inside.take(family).await?,
        };
        let state = match netns::connect_socket(socket.as_fd(), address) {
            Ok(state) => state,
            Err(e) => {
                if e.kind() == ErrorKind::ConnectionRefused {
                    self.sockets[family as usize] = Some(socket);
                }
                return Err(e);
            }
        };
        let stream = TcpStream::from_std(socket.into())?;
        if state == Connecting::Begun {
            tokio::time::timeout(CONNECT_TIMEOUT, stream.writable())
                .await
                .map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
            if let Some(e) = stream.take_error()? {
                return Err(e);
            }
        }
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        for (family, socket) in self.sockets.iter_mut().enumerate() {
            if let Some(socket) = socket.take() {
                self.inside.give_back(family, socket);
            }
        }
    }
}
