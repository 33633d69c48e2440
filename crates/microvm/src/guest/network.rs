//! The container's network, inside the machine: a namespace like any container's, whose ways out
//! lead to the agent outside.
//!
//! Owns: the namespace, its listeners, and which ports the container listens on. Must not: decide
//! what is allowed: what goes out is connected to outside, in the container's namespace there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use wharf_sandbox::netns::{self, Listeners, Redirect};

use crate::mux::{Opener, Stream};
use crate::wire::{FromGuest, receive, send};

/// The same ports as outside, so that a container finds the same ones taken.
const TCP_PORT: u16 = 64001;
const DNS_PORT: u16 = 64053;
const REDIRECT: Redirect = Redirect {
    tcp_port: TCP_PORT,
    dns_port: DNS_PORT,
    ipv6: false,
};
/// The most bytes of a question by UDP.
const LONGEST: usize = 65536;
/// Time between two looks at which ports are listened on: a hundredth of the time since that
/// changed last, within these bounds.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];

/// The sockets, made and not served yet.
pub(super) struct Sockets {
    namespace: OwnedFd,
    tcp: Vec<std::net::TcpListener>,
    dns_udp: Vec<std::net::UdpSocket>,
}

/// Makes the namespace and enters it, with the only thread there is: whatever it opens later is
/// inside.
pub(super) fn enter() -> Result<Sockets> {
    let namespace = netns::create(REDIRECT)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let mut sockets = Sockets {
        namespace,
        tcp: Vec::new(),
        dns_udp: Vec::new(),
    };
    for loopback in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let tcp = netns::here::listen_tcp(SocketAddr::new(loopback, TCP_PORT))?;
        let dns_udp = netns::here::bind_udp(SocketAddr::new(loopback, DNS_PORT))?;
        sockets.tcp.push(tcp);
        sockets.dns_udp.push(dns_udp);
    }
    Ok(sockets)
}

impl Sockets {
    /// Serves the ways out, from now on. Returns the namespace.
    pub(super) fn open(self, opener: &Opener) -> Result<OwnedFd> {
        // What goes to port 53 by TCP is answered outside as well, where it is redirected again.
        for listener in self.tcp {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(accept(listener, opener.clone()));
        }
        for socket in self.dns_udp {
            let socket = UdpSocket::from_std(socket)?;
            tokio::spawn(questions(socket, opener.clone()));
        }
        Ok(self.namespace)
    }
}

/// Opens the way out by IPv6.
pub(super) fn add_ipv6(namespace: BorrowedFd<'_>) -> io::Result<()> {
    let redirect = Redirect {
        ipv6: true,
        ..REDIRECT
    };
    netns::add_ipv6(namespace, redirect)
}

async fn accept(listener: TcpListener, opener: Opener) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => drop(tokio::spawn(carry(connection, opener.clone()))),
            // No descriptors left; it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A connection of the container to the outside.
async fn carry(mut connection: TcpStream, opener: Opener) {
    let carried = async {
        connection.set_nodelay(true)?;
        let destination = netns::original_destination(connection.as_fd())?;
        let mut stream = opener.open().await?;
        send(&mut stream, &FromGuest::Connect(destination)).await?;
        let (_, received) = copy_bidirectional(&mut connection, &mut stream).await?;
        Ok::<_, io::Error>(received)
    };
    if carried.await.is_err() {
        // Not reached, refused, or broken: as without a machine in between, it is reset.
        let _ = connection.set_zero_linger();
    }
}

async fn questions(socket: UdpSocket, opener: Opener) {
    let socket = std::sync::Arc::new(socket);
    let mut question = vec![0; LONGEST];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (socket, opener) = (socket.clone(), opener.clone());
        let question = question[..length].to_vec();
        tokio::spawn(async move {
            // Without an answer it is asked again, or given up, as with any lost datagram.
            let _ = async {
                let mut stream = opener.open().await?;
                send(&mut stream, &FromGuest::Resolve).await?;
                send(&mut stream, &question).await?;
                let answer: Vec<u8> = receive(&mut stream).await?;
                socket.send_to(&answer, from).await
            }
            .await;
        });
    }
}

/// A connection from outside to a port on which the container listens.
pub(super) async fn enter_port(mut stream: Stream, port: u16) -> io::Result<()> {
    let mut connection = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(connection) => connection,
        Err(_) => match TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
            Ok(connection) => connection,
            // It may listen at the container's own address alone.
            Err(_) => TcpStream::connect((netns::ADDRESS_V4, port)).await?,
        },
    };
    connection.set_nodelay(true)?;
    copy_bidirectional(&mut stream, &mut connection).await?;
    Ok(())
}

/// Tells outside on which ports the container listens.
pub(super) struct Ports {
    stream: Stream,
    listeners: Listeners,
}

impl Ports {
    /// The stream is the guest's sign of life, and the sockets must be there by then.
    pub(super) async fn open(opener: &Opener, _: &Sockets) -> Result<Ports> {
        let mut stream = opener.open().await?;
        send(&mut stream, &FromGuest::Ports).await?;
        let listeners = Listeners::here(TCP_PORT).context("asking for listeners")?;
        Ok(Ports { stream, listeners })
    }

    /// Serves until the machine's outside is gone.
    pub(super) async fn run(mut self) {
        let (mut told, mut changed) = (Vec::new(), Instant::now());
        loop {
            match self.listeners.ports() {
                Ok(mut ports) => {
                    ports.retain(|port| *port != TCP_PORT);
                    let ports: Vec<u16> = ports.into_iter().collect();
                    if ports != told {
                        if send(&mut self.stream, &ports).await.is_err() {
                            return;
                        }
                        (told, changed) = (ports, Instant::now());
                    }
                }
                Err(error) => eprintln!("wharf: looking for listeners: {error}"),
            }
            let pause = changed.elapsed() / 100;
            tokio::time::sleep(pause.clamp(LOOKS[0], LOOKS[1])).await;
        }
    }
}
