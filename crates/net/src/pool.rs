//! Namespaces made ahead.
//!
//! Owns: a thread that keeps the wished number of them ready, with their listeners, sockets and certificate authority, so that a
//! cold start waits for none of it. Must not: know what becomes of them.

use std::collections::VecDeque;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wharf_sandbox::netns::{self, Listeners, Redirect};

use crate::NetError;
use crate::ca::{Ca, CaKey};
use crate::inside::{OWN_PORT, STOCK};

/// Where redirected traffic arrives. Above the ports that the kernel gives to clients (32768-60999), and the same in every version
/// of Wharf: a daemon adopts namespaces that an earlier one made.
const TCP_PORT: u16 = OWN_PORT;
const DNS_PORT: u16 = 64053;

/// Where to a namespace redirects.
pub(crate) const REDIRECT: Redirect = Redirect {
    tcp_port: TCP_PORT,
    dns_port: DNS_PORT,
    ipv6: false,
};

/// A start has just taken one: what it does next, and the starts that come with it, are more urgent than a replacement.
const REFILL_DELAY: Duration = Duration::from_millis(20);
/// With less than one of so many left, they are not.
const LOW: usize = 4;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A namespace with all that a network needs, not served yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) ca: Ca,
    pub(crate) sockets: Sockets,
    /// As [`crate::Network::system_files`].
    pub(crate) sys: Option<OwnedFd>,
}

impl Prepared {
    /// Makes a namespace. Blocks for about a millisecond.
    pub(crate) fn create(ipv6: bool) -> Result<Self, NetError> {
        let inside = || (Sockets::here(), netns::here::system_files());
        let (_namespace, (sockets, sys)) = netns::create_and(Redirect { ipv6, ..REDIRECT }, inside)
            .map_err(|e| NetError::io("making a container's network", e))?;
        Ok(Self {
            // Else the container's start mounts its own, or tells why that can't be.
            sys: sys.ok(),
            sockets: sockets?,
            ca: Ca::generate()?,
        })
    }

    /// Opens everything anew in a namespace that exists, with an authority that has this key, or a new one.
    pub(crate) fn within(namespace: OwnedFd, ca: Option<&CaKey>) -> Result<Self, NetError> {
        let making = |e| NetError::io("making sockets inside a container's network", e);
        // One thread that enters the namespace for all of it. An older version of Wharf may have
        // made its rules.
        let sockets = netns::run_inside(namespace.as_fd(), || {
            netns::renew_rules(REDIRECT).map_err(making)?;
            Sockets::here()
        })
        .map_err(making)??;
        Ok(Self {
            sockets,
            ca: ca.map_or_else(Ca::generate, Ca::restore)?,
            sys: None,
        })
    }
}

/// Everything that is made inside. The listener and the socket serve IPv4 and IPv6.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Accepts redirected connections.
    pub(crate) tcp: TcpListener,
    /// Receives redirected DNS queries.
    pub(crate) dns: UdpSocket,
    /// `None` on a kernel that cannot be asked for listeners.
    pub(crate) listeners: Option<Listeners>,
    pub(crate) stock: netns::UnconnectedSockets,
}

impl Sockets {
    fn here() -> Result<Self, NetError> {
        let failed = |port| {
            move |e| {
                let what = format!("listening on port {port} inside a container's network");
                NetError::io(what, e)
            }
        };
        let tcp = netns::here::listen_tcp_dual(TCP_PORT).map_err(failed(TCP_PORT))?;
        let dns = netns::here::bind_udp_dual(DNS_PORT).map_err(failed(DNS_PORT))?;
        let listeners = Listeners::here(TCP_PORT)
            .inspect_err(|error| {
                tracing::warn!(%error, "whether a port inside listens is found out by connecting (is the kernel module tcp_diag there?)");
            })
            .ok();
        let stock = netns::here::tcp_sockets(STOCK[0], STOCK[1])
            .map_err(|e| NetError::io("making sockets inside a container's network", e))?;
        Ok(Self {
            tcp,
            dns,
            listeners,
            stock,
        })
    }
}

/// The pool. Its thread ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    size: usize,
    ipv6: bool,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Prepared>,
    last_taken: Option<Instant>,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(size: usize, ipv6: bool) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            size,
            ipv6,
        });
        if size > 0 {
            let worker = shared.clone();
            let started = std::thread::Builder::new()
                .name("wharf-net-pool".to_owned())
                .spawn(move || worker.keep_filled());
            if let Err(error) = started {
                tracing::warn!(%error, "no thread for the pool of networks: each is made when it is needed");
            }
        }
        Self(shared)
    }

    /// One that is ready.
    pub(crate) fn take(&self) -> Option<Prepared> {
        let mut state = self.0.state();
        let taken = state.ready.pop_front();
        state.last_taken = Some(Instant::now());
        drop(state);
        self.0.changed.notify_all();
        taken
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.0.state().ready.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        state.ready.clear();
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_filled(&self) {
        let mut retry = FIRST_RETRY;
        let mut state = self.state();
        while !state.closed {
            if state.ready.len() >= self.size {
                state = self.wait(state, None);
                continue;
            }
            let since = state.last_taken.map_or(Duration::MAX, |at| at.elapsed());
            if state.ready.len() >= self.size.div_ceil(LOW) && since < REFILL_DELAY {
                state = self.wait(state, Some(REFILL_DELAY - since));
                continue;
            }
            drop(state);
            let made = Prepared::create(self.ipv6);
            state = self.state();
            match made {
                Ok(prepared) if !state.closed => {
                    retry = FIRST_RETRY;
                    state.ready.push_back(prepared);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, retry_in = ?retry, "no network could be made ahead");
                    state = self.wait(state, Some(retry));
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        bound: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match bound {
            Some(bound) => {
                self.changed
                    .wait_timeout_while(state, bound, |s| !s.closed)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
        }
    }
}
