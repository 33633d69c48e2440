//! Connections to a port inside that wait until somebody listens there.
//!
//! Those that wait for the same port share one task that looks at it ([`Lookouts`]); it ends with the last of them. Looking is asking the
//! kernel for a listener (sock_diag), not connecting: the program sees only the connections that are meant for it. Where the kernel
//! cannot be asked, each look wakes those who wait, and they try.
//! What a connection does that is held is in [`wait`].

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::watch;
use wharf_sandbox::netns::Pause;

use super::hold;
use super::wait::{self, Behind, DialError, age};
use crate::inside::Attempt;
use crate::pulse::Held;
use crate::{Shared, Target, succession};

/// The tasks that look at ports.
#[derive(Debug, Default)]
pub(crate) struct Lookouts {
    waiting: Waiting,
}

/// Who waits for which port. For each such port there is one task that looks.
///
/// ```text
///  (nobody) --join, the first: with the duty to look--> waited for --leave, the last--> (nobody)
/// ```
#[derive(Debug, Default)]
struct Waiting {
    /// The count goes up with each look that found a listener.
    ports: Mutex<HashMap<u16, watch::Sender<u64>>>,
}

impl Waiting {
    /// Joins those who wait for a port. With a sender comes the duty to look at it, and to tell,
    /// until [`Waiting::leave`] says that nobody waits.
    fn join(&self, port: u16) -> (watch::Receiver<u64>, Option<watch::Sender<u64>>) {
        let mut ports = lock(&self.ports);
        if let Some(seen) = ports.get(&port) {
            return (seen.subscribe(), None);
        }
        let (seen, receiver) = watch::channel(0);
        ports.insert(port, seen.clone());
        (receiver, Some(seen))
    }

    /// Whether nobody waits any more; then the port is nobody's.
    fn leave(&self, port: u16, seen: &watch::Sender<u64>) -> bool {
        let mut ports = lock(&self.ports);
        let last = seen.receiver_count() == 0;
        if last {
            ports.remove(&port);
        }
        last
    }
}

impl Lookouts {
    /// Joins those who wait for a port.
    fn join(&self, shared: &Arc<Shared>, port: u16) -> watch::Receiver<u64> {
        let (receiver, duty) = self.waiting.join(port);
        if let Some(seen) = duty {
            shared.spawn(watch_port(shared.clone(), port, seen));
        }
        receiver
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at a port while somebody waits for it and the process runs.
async fn watch_port(shared: Arc<Shared>, port: u16, seen: watch::Sender<u64>) {
    let mut targets = shared.target.subscribe();
    let mut pause = Pause::default();
    loop {
        let age = age(&targets.borrow_and_update());
        if age.is_some() && shared.inside.look(port) {
            seen.send_modify(|count| *count += 1);
        }
        if shared.lookouts.waiting.leave(port, &seen) {
            return;
        }
        match age {
            Some(age) => pause.wait(hold::next_look(age)).await,
            // What does not run does not listen.
            None => tokio::select! {
                _ = targets.changed() => {}
                () = seen.closed() => {}
            },
        }
    }
}

/// Dials inside, holding while nobody listens. Returns whose inside it is as well: a network may be taken over while it is waited for.
pub(super) async fn dial(
    own: &Arc<Shared>,
    port: u16,
) -> Result<(Arc<Shared>, TcpStream), DialError> {
    loop {
        let shared = succession::current(own);
        // Cancelling a try loses nothing: a socket that is not connected goes back to the stock.
        tokio::select! {
            biased;
            dialled = dial_in(&shared, port) => return dialled.map(|stream| (shared, stream)),
            () = own.succession.after(&shared) => {}
        }
    }
}

async fn dial_in(shared: &Arc<Shared>, port: u16) -> Result<TcpStream, DialError> {
    let mut inside = Inside {
        shared,
        port,
        targets: shared.target.subscribe(),
        attempt: shared.inside.attempt(port),
        waiting: None,
    };
    wait::connect(&mut inside, port, shared.config.hold, hold::look_again).await
}

/// A port inside.
struct Inside<'a> {
    shared: &'a Arc<Shared>,
    port: u16,
    targets: watch::Receiver<Target>,
    attempt: Attempt,
    /// Since the first try has failed.
    waiting: Option<(watch::Receiver<u64>, Held)>,
}

impl Behind for Inside<'_> {
    type Stream = TcpStream;

    fn target(&mut self) -> Target {
        self.targets.borrow_and_update().clone()
    }

    fn look(&self) -> bool {
        self.shared.inside.look(self.port)
    }

    async fn dial(&mut self) -> io::Result<TcpStream> {
        self.attempt.connect().await
    }

    async fn news(&mut self) {
        let (shared, port) = (self.shared, self.port);
        let (seen, _) = self.waiting.get_or_insert_with(|| {
            let held = shared.config.pulse.hold();
            (shared.lookouts.join(shared, port), held)
        });
        tokio::select! {
            // The task behind it lives as long as this receiver.
            _ = seen.changed() => {}
            _ = self.targets.changed() => {}
        }
    }
}

#[cfg(test)]
#[path = "ready_tests.rs"]
mod tests;
