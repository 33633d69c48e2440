//! Connections: at most one daemon, and at most one newcomer that has not said Hello yet.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Connection, Entry, Outcome, Requester, Server, State, no_such};
use crate::frame::{Arrived, Frame, Inbox, Lost, Outbox, parse};
use crate::spawner::launch::Given;
use crate::spawner::protocol::{Message, ReplyBody, Request, RequestBody, VERSION};

/// After a failed accept (no descriptor free): the listener stays readable, and must neither fill
/// the log nor keep the loop busy.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What came with a request.
type Descriptors = Result<Vec<OwnedFd>, Lost>;

impl Server {
    pub(super) fn accept(&mut self) {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            Err(error) => {
                eprintln!("spawner: accept: {error}");
                self.deaf_until = Some(Instant::now() + ACCEPT_PAUSE);
                return;
            }
        };
        // The socket's mode keeps others out; a descriptor that was handed on would not.
        let trusted = rustix::net::sockopt::socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if trusted && self.ending.is_none() {
            self.connections += 1;
            self.newcomer = Some(Connection {
                number: self.connections,
                socket,
                inbox: Inbox::default(),
                outbox: Outbox::default(),
            });
        }
    }

    pub(super) fn hear_newcomer(&mut self) {
        let Some(connection) = &mut self.newcomer else {
            return;
        };
        let request = match hear(connection) {
            Ok(requests) if requests.is_empty() => return,
            Ok(requests) => requests,
            Err(_) => {
                self.newcomer = None; // Left before it became anything.
                return;
            }
        };
        if !matches!(
            request.first(),
            Some((
                Request {
                    body: RequestBody::Hello,
                    ..
                },
                _
            ))
        ) {
            self.newcomer = None;
            return;
        }
        self.send(&Message::Replaced, Vec::new());
        self.daemon = self.newcomer.take();
        self.thaw_all();
        self.deadline = None;
        self.welcome();
        for (request, descriptors) in request.into_iter().skip(1) {
            self.handle(request, descriptors);
        }
    }

    pub(super) fn welcome(&mut self) {
        let known = |e: &&Entry| {
            !e.abandoned
                && matches!(
                    e.state,
                    State::Running | State::Draining(Outcome::Exit(_)) | State::Ended(_)
                )
        };
        let mut messages = Vec::new();
        for (id, entry) in self.entries.iter().filter(|(_, e)| known(e)) {
            let exit = if let State::Ended(exit) = entry.state {
                Some(exit)
            } else {
                None
            };
            let mine = [
                Some(&entry.stdout),
                Some(&entry.stderr),
                entry.disk.as_ref(),
            ];
            let copies: io::Result<Vec<OwnedFd>> =
                mine.into_iter().flatten().map(OwnedFd::try_clone).collect();
            match copies {
                Ok(streams) => {
                    let message = Message::Survivor {
                        id: id.clone(),
                        label: entry.label.clone(),
                        pid: entry.pid,
                        exit,
                    };
                    messages.push((message, streams));
                }
                Err(error) => {
                    eprintln!("spawner: copying the descriptors of {id}: {error}")
                }
            }
        }
        self.send(
            &Message::Welcome {
                version: VERSION,
                pid: std::process::id(),
                survivors: messages.len(),
            },
            Vec::new(),
        );
        for (message, streams) in messages {
            self.send(&message, streams);
        }
    }

    pub(super) fn hear_daemon(&mut self) {
        let Some(connection) = &mut self.daemon else {
            return;
        };
        match hear(connection) {
            Ok(requests) => {
                for (request, descriptors) in requests {
                    self.handle(request, descriptors);
                }
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    eprintln!("spawner: the daemon's connection: {error}");
                }
                self.lose_daemon();
            }
        }
    }

    pub(super) fn lose_daemon(&mut self) {
        self.daemon = None;
        self.thaw_all();
        if self.ending.is_none() {
            self.deadline = Some(Instant::now() + self.grace);
        }
    }

    /// To the daemon, if there is one.
    pub(super) fn send(&mut self, message: &Message, descriptors: Vec<OwnedFd>) {
        let Some(connection) = &mut self.daemon else {
            return;
        };
        let sent = Frame::new(message, descriptors).and_then(|frame| {
            connection.outbox.push(frame);
            flush(connection)
        });
        if let Err(error) = sent {
            if error.kind() != io::ErrorKind::BrokenPipe {
                eprintln!("spawner: the daemon's connection: {error}");
            }
            self.lose_daemon();
        }
    }

    /// Whether the one who asked is still there.
    pub(super) fn is_connected(&self, requester: Requester) -> bool {
        is_connected(&self.daemon, requester)
    }

    pub(super) fn reply(
        &mut self,
        requester: Requester,
        body: ReplyBody,
        descriptors: Vec<OwnedFd>,
    ) {
        if self.is_connected(requester) {
            self.send(
                &Message::Reply {
                    number: requester.number,
                    body,
                },
                descriptors,
            );
        }
    }

    pub(super) fn handle(&mut self, request: Request, descriptors: Descriptors) {
        let Some(connection) = self.daemon.as_ref().map(|d| d.number) else {
            return;
        };
        let requester = Requester {
            connection,
            number: request.number,
        };
        let descriptors = match descriptors {
            Ok(descriptors) => descriptors,
            Err(lost) => {
                let body = ReplyBody::Exhausted {
                    message: format!("the spawner is {lost}"),
                };
                return self.reply(requester, body, Vec::new());
            }
        };
        let body = match request.body {
            RequestBody::Spawn {
                spec,
                netns,
                sys,
                image,
                inherit,
            } => {
                let mut descriptors = descriptors.into_iter();
                let netns = if netns { descriptors.next() } else { None };
                let sys = if sys { descriptors.next() } else { None };
                let disk = spec.disk.as_ref().and_then(|_| descriptors.next());
                let image = if image { descriptors.next() } else { None };
                let given = Given {
                    netns,
                    sys,
                    disk,
                    image,
                    inherit: inherit.into_iter().zip(descriptors).collect(),
                };
                match self.spawn(&spec, given, requester) {
                    Ok(()) => return, // The report decides.
                    Err(body) => body,
                }
            }
            RequestBody::Exec { spec } => match self.exec(&spec, requester) {
                Ok(()) => return, // The report decides.
                Err(body) => body,
            },
            RequestBody::Signal { id, signal } => self.signal(&id, signal),
            RequestBody::Usage { id } => self.usage(&id),
            RequestBody::SignalExec { id, signal } => self.signal_exec(&id, signal),
            RequestBody::Kill { id } => match self.entries.contains_key(&id) {
                true => {
                    self.kill(&id);
                    ReplyBody::Done
                }
                false => no_such(&id),
            },
            RequestBody::Freeze { id } => self.freeze(&id),
            RequestBody::Thaw { id } => self.thaw(&id),
            RequestBody::Forget { id } => match self.entries.get(&id) {
                None => no_such(&id),
                Some(entry) if matches!(entry.state, State::Ended(_)) => {
                    self.replace |= !entry.replaced;
                    self.entries.remove(&id);
                    ReplyBody::Done
                }
                Some(_) => ReplyBody::Failed {
                    message: format!(
                        "process {id} has not ended; only an ended one can be forgotten"
                    ),
                },
            },
            RequestBody::Shutdown => {
                self.shutdown_requests.push(requester);
                self.end();
                return;
            }
            RequestBody::Hello => ReplyBody::Failed {
                message: "already welcome".to_owned(),
            },
        };
        self.reply(requester, body, Vec::new());
    }
}

pub(super) fn is_connected(daemon: &Option<Connection>, requester: Requester) -> bool {
    daemon
        .as_ref()
        .is_some_and(|d| d.number == requester.connection)
}

/// Sends what waits, and reads all whole requests. UnexpectedEof when the other side is gone.
fn hear(connection: &mut Connection) -> io::Result<Vec<(Request, Descriptors)>> {
    flush(connection)?;
    let open = match connection.inbox.fill(connection.socket.as_fd()) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => false,
        Err(error) => return Err(error),
    };
    if !open {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut requests = Vec::new();
    while let Some(Arrived {
        payload,
        descriptors,
    }) = connection.inbox.next()?
    {
        requests.push((parse(&payload)?, descriptors));
    }
    Ok(requests)
}

fn flush(connection: &mut Connection) -> io::Result<()> {
    match connection.outbox.flush(connection.socket.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}
