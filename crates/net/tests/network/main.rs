//! Whole networks on the real kernel, with the outside world played by servers on loopback. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bandwidth;
mod dns;
mod egress;
mod http_ingress;
mod ingress;
mod lifetime;
mod outbound;
mod succession;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use wharf_net::{Dial, NetConfig, Network, Networks};
use wharf_sandbox::netns;

/// No test waits for longer; none passes by waiting this long.
const WAIT: Duration = Duration::from_secs(20);

/// The outside world: where addresses really lead, and who was asked for.
#[derive(Debug, Default)]
struct World {
    hosts: HashMap<SocketAddr, SocketAddr>,
    dialled: Mutex<Vec<SocketAddr>>,
    ipv6: bool,
}

impl Dial for World {
    fn dial(&self, destination: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.dialled.lock().unwrap().push(destination);
        Box::pin(async move {
            match self.hosts.get(&destination) {
                Some(host) => TcpStream::connect(host).await,
                None => Err(io::ErrorKind::HostUnreachable.into()),
            }
        })
    }

    fn ipv6(&self) -> bool {
        self.ipv6
    }
}

fn config() -> NetConfig {
    NetConfig {
        pool_size: 0,
        hold_ms: 20_000,
        dns_servers: Vec::new(),
        allow_private: false,
    }
}

async fn network(config: NetConfig) -> Network {
    in_world(config, World::default()).await.0
}

async fn in_world(config: NetConfig, world: World) -> (Network, Arc<World>) {
    let world = Arc::new(world);
    let networks = Networks::with_dialer(config, world.clone());
    (networks.create().await.unwrap(), world)
}

/// A listener inside, as the app in the container has it.
fn listen_inside(network: &Network, addr: &str) -> TcpListener {
    let ns = network.namespace().unwrap();
    let listener = netns::listen_tcp(ns.as_fd(), addr.parse().unwrap()).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// A connection made by a program in the container.
async fn connect_inside(network: &Network, addr: &str) -> io::Result<TcpStream> {
    let ns = network.namespace().unwrap();
    let addr: SocketAddr = addr.parse().unwrap();
    let stream = tokio::task::spawn_blocking(move || {
        netns::run_inside(ns.as_fd(), || {
            std::net::TcpStream::connect_timeout(&addr, WAIT)
        })
    })
    .await
    .unwrap()??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Sends a request to the ingress and gives the status and the connection behind the head.
async fn request(network: &Network, request: &str) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(network.ingress()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(WAIT, stream.read_u8()).await.unwrap().unwrap();
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, stream)
}

/// What workerd sends.
async fn connect(network: &Network, port: u16) -> (u16, TcpStream) {
    let head = format!(
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Dst-Addr: 127.0.0.1:{port}\r\n\r\n"
    );
    request(network, &head).await
}

async fn put_egress(network: &Network, body: &str) -> u16 {
    let head = format!(
        "PUT /egress HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    request(network, &head).await.0
}

/// The rest of an answer whose connection stays open: what comes within one read.
async fn body(mut stream: TcpStream) -> String {
    let mut buffer = vec![0; 64 * 1024];
    let n = timeout(WAIT, stream.read(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(WAIT, listener.accept()).await.unwrap().unwrap().0
}

async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(WAIT, stream.read_to_end(&mut all)).await.unwrap()?;
    Ok(all)
}

/// The connection was cut, not ended.
async fn assert_reset(stream: &mut TcpStream) {
    let error = read_to_end(stream).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A program in the container that connects there is cut off. That can be so fast that connect(2) itself says so.
async fn assert_refused(network: &Network, addr: &str) {
    match connect_inside(network, addr).await {
        Ok(mut stream) => assert_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}
