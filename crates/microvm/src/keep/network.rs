//! The container's network, outside: this process is in its namespace, so that all that holds there
//! holds.
//!
//! Owns: connections that the guest asks for, and listeners where its container listens. Must not:
//! decide what is allowed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

use crate::mux::{Opener, Stream};
use crate::wire::{ToGuest, receive, send};

/// Any address outside would do: the namespace's rules redirect all questions.
const RESOLVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)), 53);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// The most bytes of an answer by UDP.
const LONGEST: usize = 65536;

/// RTMGRP_IPV6_IFADDR (linux/rtnetlink.h): addresses of IPv6 come and go.
const ADDRESSES: u32 = 0x100;

/// Tells the guest when there is a way out by IPv6, which the daemon may open at any time: the
/// namespace then has an address. Ends with an error.
pub(super) async fn tell_of_ipv6(opener: &Opener) -> io::Error {
    let tell = async || -> io::Result<Infallible> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None, // NETLINK_ROUTE is 0.
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, ADDRESSES))?;
        // What can be polled is for this what a pipe is.
        let mut changes = pipe::Receiver::from_file_unchecked(socket.into())?;
        while !has_ipv6() {
            // A message says that, its content does not matter. ENOBUFS: there were too many.
            if let Err(error) = changes.read(&mut [0; 4096]).await
                && error.raw_os_error() != Some(Errno::NOBUFS.raw_os_error())
            {
                return Err(error);
            }
        }
        send(&mut opener.open().await?, &ToGuest::Ipv6).await?;
        std::future::pending().await
    };
    match tell().await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn has_ipv6() -> bool {
    let addresses = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let loopback = format!("{:032x}", u128::from(Ipv6Addr::LOCALHOST));
    addresses.lines().any(|line| !line.starts_with(&loopback))
}

/// Connects, and carries.
pub(super) async fn connect(mut stream: Stream, address: SocketAddr) -> io::Result<()> {
    let mut outside = TcpStream::connect(address).await?;
    outside.set_nodelay(true)?;
    copy_bidirectional(&mut stream, &mut outside).await?;
    Ok(())
}

/// Carries one question and its answer.
pub(super) async fn resolve(mut stream: Stream) -> io::Result<()> {
    let question: Vec<u8> = receive(&mut stream).await?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(RESOLVER).await?;
    socket.send(&question).await?;
    let mut answer = vec![0; LONGEST];
    let length = tokio::time::timeout(ANSWER_WITHIN, socket.recv(&mut answer)).await??;
    send(&mut stream, &answer[..length].to_vec()).await
}

/// Listens where the container does, as long as it does.
pub(super) async fn listen(mut stream: Stream, opener: Opener) -> io::Result<()> {
    let mut listeners: BTreeMap<u16, AbortHandle> = BTreeMap::new();
    let outcome = loop {
        let ports: Vec<u16> = match receive(&mut stream).await {
            Ok(ports) => ports,
            Err(error) => break Err(error),
        };
        listeners.retain(|port, listener| {
            let stays = ports.contains(port);
            if !stays {
                listener.abort();
            }
            stays
        });
        for port in ports {
            if listeners.contains_key(&port) {
                continue;
            }
            match bind(port).await {
                Ok(listener) => {
                    let task = tokio::spawn(accept(listener, port, opener.clone()));
                    listeners.insert(port, task.abort_handle());
                }
                Err(error) => eprintln!("wharf: listening on the container's port {port}: {error}"),
            }
        }
    };
    for listener in listeners.values() {
        listener.abort();
    }
    outcome
}

/// Listens at every address of the namespace.
async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        // A kernel without IPv6, or with it switched off.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn accept(listener: TcpListener, port: u16, opener: Opener) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => drop(tokio::spawn(carry(connection, port, opener.clone()))),
            // No descriptors left; it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn carry(mut connection: TcpStream, port: u16, opener: Opener) {
    let carried = async {
        connection.set_nodelay(true)?;
        let mut stream = opener.open().await?;
        send(&mut stream, &ToGuest::Port(port)).await?;
        copy_bidirectional(&mut connection, &mut stream).await
    };
    if carried.await.is_err() {
        // Reset, as by a container whose process ended.
        let _ = connection.set_zero_linger();
    }
}
