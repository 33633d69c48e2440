//! What a container reaches by its network: only what policy allows, whatever the address is written like, and nothing of the host or of others.
//!
//! The world outside is a server that answers "reached": whatever policy lets through is dialled there. So nothing leaves the machine.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, LocalBoxFuture};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, rdata::A};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use wharf_net::{Dial, Direct, NetConfig, Network, Networks, Policy};

use crate::case::{Case, Side, Walls};
use crate::host::HOST_ADDRESS;
use crate::world::{Setup, World};

const REACHED: &str = "reached";
const CUT: &str = "cut";
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
/// A name whose first address is public, and every later one the metadata service's.
const REBINDING: &str = "rebind.test";
const OPEN: &str = "private addresses are allowed";
const HOST: &str = "the host's network";

pub(crate) fn cases() -> Vec<Case> {
    let mut all = destinations();
    all.extend(host_network());
    all.extend(others());
    all
}

fn destinations() -> Vec<Case> {
    let to = |name, about, how| {
        Case::outside(name, about, how)
            .expect(&[CUT])
            .without(OPEN, &[REACHED])
    };
    vec![
        to(
            "metadata",
            "the cloud's metadata services",
            |world, side| {
                let addresses = [
                    "169.254.169.254:80",
                    "[fd00:ec2::254]:80",
                    "169.254.170.2:80",
                    "100.100.100.200:80",
                ];
                private(world, side, "reach", &addresses)
            },
        ),
        to(
            "metadata-in-ipv6",
            "the same within IPv6 addresses",
            |world, side| {
                let addresses = [
                    "[::ffff:169.254.169.254]:80",
                    "[64:ff9b::a9fe:a9fe]:80",
                    "[2002:a9fe:a9fe::1]:80",
                ];
                private(world, side, "reach", &addresses)
            },
        ),
        to(
            "metadata-as-written",
            "the same in decimal, octal and hexadecimal",
            |world, side| {
                let forms = [
                    "2852039166",
                    "0251.0376.0251.0376",
                    "0xa9fea9fe",
                    "169.254.43518",
                ];
                private(world, side, "reach-as-written", &forms)
            },
        ),
        to(
            "metadata-by-name",
            "a public name with a private address",
            |world, side| private(world, side, "reach-by-name", &["private.test"]),
        ),
        to(
            "rebinding",
            "a name that is public when asked first and private afterwards",
            |world, side| private(world, side, "rebind", &[REBINDING]),
        ),
        to(
            "private-networks",
            "the host's private networks",
            |world, side| {
                let addresses = [
                    "10.0.0.1:80",
                    "172.16.0.1:80",
                    "192.168.1.1:80",
                    "100.64.0.1:80",
                    "[fd00::1]:80",
                ];
                private(world, side, "reach", &addresses)
            },
        ),
        Case::outside(
            "control-internet",
            "the internet, where there is one",
            |world, _| off(world, Side::Weak, "reach", &["203.0.113.5:80"]),
        )
        .control(&[REACHED]),
        Case::outside(
            "no-internet",
            "the internet, where there is none",
            |world, side| off(world, side, "reach", &["203.0.113.5:80"]),
        )
        .expect(&[CUT])
        .without("internet", &[REACHED]),
        Case::outside(
            "no-internet-names",
            "data by names that are asked for, where there is no internet",
            |world, side| off(world, side, "resolve", &["secret.public.test"]),
        )
        .expect(&["no such name"])
        .without("internet", &["an address"]),
        Case::outside(
            "host-mismatch",
            "the internet under a mapped name (Host), where there is none",
            |world, side| mapped(world, side, "reach-as", &["203.0.113.5:80", "mapped.test"]),
        )
        .expect(&[CUT, "another answer"])
        .without("internet, no mapping", &[REACHED]),
        Case::outside(
            "sni-mismatch",
            "a private address under a mapped name (SNI)",
            |world, side| {
                mapped(
                    world,
                    side,
                    "reach-as-tls",
                    &["10.0.0.1:443", "mapped.test"],
                )
            },
        )
        .expect(&[CUT, "another answer"])
        .without("private addresses are allowed, no mapping", &[REACHED]),
    ]
}

fn host_network() -> Vec<Case> {
    let outwards = |name, about| {
        Case::inside(name, about)
            .change(|_, side, setup| {
                if side == Side::Weak {
                    setup.host_network()?;
                }
                Ok(())
            })
            .without(HOST, &["worked"])
    };
    vec![
        outwards("udp", "datagrams to the internet").arguments(|_, _| vec!["203.0.113.5:9".into()]),
        outwards("udp6", "datagrams to the internet by IPv6")
            .arguments(|_, _| vec!["[2001:db8::5]:9".into()]),
        outwards("ping", "echo requests to the internet")
            .arguments(|_, _| vec!["203.0.113.5".into()]),
        Case::outside(
            "host-loopback",
            "what listens on the host's loopback: gateway, control API, registry",
            |world, side| {
                async move {
                    let port = serve("127.0.0.1:0").await?.port();
                    let there = [
                        "127.0.0.1",
                        "0.0.0.0",
                        "[::1]",
                        "127.1.2.3",
                        "[::ffff:127.0.0.1]",
                        "[64:ff9b::7f00:1]",
                    ];
                    let there: Vec<String> = there.iter().map(|a| format!("{a}:{port}")).collect();
                    let network = Outer::new(Policy { internet: true }, false).await?;
                    let mut setup = world.setup("host-loopback", "reach", &there)?;
                    network.join(side == Side::Weak, &mut setup)?;
                    world.run(&Walls::ALL, setup).await
                }
                .boxed_local()
            },
        )
        .expect(&[CUT])
        .without(HOST, &[REACHED]),
        Case::outside(
            "host-address",
            "what listens on the host's own addresses",
            |world, side| {
                async move {
                    let port = serve(&format!("{HOST_ADDRESS}:0")).await?.port();
                    let config = config(side == Side::Weak, Vec::new());
                    let network = Networks::with_dialer(config, Arc::new(Direct))
                        .create()
                        .await?;
                    network.set_policy(Policy { internet: true });
                    let mut setup = world.setup(
                        "host-address",
                        "reach",
                        &[format!("{HOST_ADDRESS}:{port}")],
                    )?;
                    setup.fds.netns = Some(network.namespace()?);
                    world.run(&Walls::ALL, setup).await
                }
                .boxed_local()
            },
        )
        .expect(&[CUT])
        .without(OPEN, &[REACHED]),
        Case::inside(
            "listeners",
            "any listener on loopback that is not its network's own",
        )
        .arguments(|_, _| vec!["64001".into(), "64053".into()])
        .change(|world, side, setup| {
            if side == Side::Weak {
                setup.host_network()?;
                world.listen()?;
            }
            Ok(())
        })
        .expect(&["none"])
        .without(HOST, &["some"]),
    ]
}

fn others() -> Vec<Case> {
    vec![
        Case::outside(
            "other-instance",
            "a port of another instance",
            |world, side| {
                async move {
                    let other = Outer::new(Policy { internet: true }, false).await?;
                    let own = Outer::new(Policy { internet: true }, false).await?;
                    let mut victim = world.setup("victim", "hold-port", &["8080".into()])?;
                    other.join(false, &mut victim)?;
                    let held = world.hold(&Walls::ALL, victim).await?;
                    let there =
                        ["10.88.71.2:8080", "127.0.0.1:8080", "[::1]:8080"].map(str::to_owned);
                    let mut setup = world.setup("other-instance", "reach", &there)?;
                    match side {
                        Side::Held => own.join(false, &mut setup)?,
                        Side::Weak => other.join(false, &mut setup)?,
                    }
                    let seen = world.run(&Walls::ALL, setup).await;
                    held.end().await?;
                    seen
                }
                .boxed_local()
            },
        )
        .expect(&[CUT])
        .without("both in one network", &[REACHED]),
        Case::outside(
            "ingress",
            "another instance's ingress on the host's loopback",
            |world, side| ingress(world, side == Side::Weak, side == Side::Held),
        )
        .expect(&[CUT])
        .without("the host's network, no user namespace", &["another answer"]),
        Case::outside(
            "ingress-owner",
            "the same in the host's network: it knows its user",
            |world, side| ingress(world, true, side == Side::Held),
        )
        .expect(&[CUT])
        .without("no user namespace", &["another answer"]),
        Case::outside(
            "unix-sockets",
            "the daemon's sockets: its spawner's, the operator's, workerd's",
            |world, side| {
                async move {
                    let socket = world.spawner_socket().await?;
                    let directory = socket
                        .parent()
                        .context("a socket lies in a directory")?
                        .to_owned();
                    let paths = ["w/1/docker.sock", "wharf.sock"].map(|name| directory.join(name));
                    for path in &paths {
                        std::fs::create_dir_all(path.parent().unwrap_or(&directory))?;
                        let _ = std::fs::remove_file(path);
                    }
                    let _listeners: Vec<_> = paths
                        .iter()
                        .map(tokio::net::UnixListener::bind)
                        .collect::<io::Result<_>>()?;
                    let mut all: Vec<String> =
                        paths.iter().map(|p| p.display().to_string()).collect();
                    all.push(socket.display().to_string());
                    let mut setup = world.setup("unix-sockets", "unix-sockets", &all)?;
                    if side == Side::Weak {
                        setup.spec.mounts.push(wharf_sandbox::Mount::Bind {
                            source: directory.clone(),
                            target: directory,
                            read_only: true,
                        });
                    }
                    world.run(&Walls::ALL, setup).await
                }
                .boxed_local()
            },
        )
        .expect(&["ENOENT"])
        .without("the daemon's directory is mounted", &["worked"]),
    ]
}

/// The world outside, and a network in it.
struct Outer {
    network: Network,
}

/// Whatever is dialled is the server that answers.
#[derive(Debug)]
struct Everything(SocketAddr);

impl Dial for Everything {
    fn dial(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        TcpStream::connect(self.0).boxed()
    }

    fn ipv6(&self) -> bool {
        true
    }
}

fn config(allow_private: bool, dns_servers: Vec<SocketAddr>) -> NetConfig {
    NetConfig {
        pool_size: 0,
        hold_ms: 1000,
        dns_servers,
        allow_private,
    }
}

impl Outer {
    async fn new(policy: Policy, allow_private: bool) -> Result<Outer> {
        let server = serve("127.0.0.1:0").await?;
        let config = config(allow_private, vec![names().await?]);
        let network = Networks::with_dialer(config, Arc::new(Everything(server)))
            .create()
            .await?;
        network.set_policy(policy);
        Ok(Outer { network })
    }

    /// The container's network is this one, or the host's.
    fn join(&self, host: bool, setup: &mut Setup) -> Result<()> {
        match host {
            true => setup.host_network()?,
            false => setup.fds.netns = Some(self.network.namespace()?),
        }
        setup.spec.mounts.push(wharf_sandbox::Mount::File {
            target: "/etc/resolv.conf".into(),
            content: self.network.resolv_conf(),
        });
        Ok(())
    }

    async fn run(&self, world: &World, probe: &str, arguments: &[&str]) -> Result<String> {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let mut setup = world.setup(probe, probe, &arguments)?;
        self.join(false, &mut setup)?;
        world.run(&Walls::ALL, setup).await
    }
}

type Strings<'a> = &'a [&'static str];

fn private<'a>(
    world: &'a World,
    side: Side,
    probe: &'static str,
    arguments: Strings<'_>,
) -> LocalBoxFuture<'a, Result<String>> {
    let arguments = arguments.to_vec();
    async move {
        let outer = Outer::new(Policy { internet: true }, side == Side::Weak).await?;
        outer.run(world, probe, &arguments).await
    }
    .boxed_local()
}

fn off<'a>(
    world: &'a World,
    side: Side,
    probe: &'static str,
    arguments: Strings<'_>,
) -> LocalBoxFuture<'a, Result<String>> {
    let arguments = arguments.to_vec();
    async move {
        let internet = side == Side::Weak;
        let outer = Outer::new(Policy { internet }, false).await?;
        outer.run(world, probe, &arguments).await
    }
    .boxed_local()
}

/// Behind a Worker that is asked for a name, as `PUT /egress` says it (contract: workerd, 1.6).
fn mapped<'a>(
    world: &'a World,
    side: Side,
    probe: &'static str,
    arguments: Strings<'_>,
) -> LocalBoxFuture<'a, Result<String>> {
    let arguments = arguments.to_vec();
    async move {
        let weak = side == Side::Weak;
        let outer = Outer::new(Policy { internet: weak }, weak).await?;
        if !weak {
            let worker = worker().await?;
            let body = format!(
                r#"{{"port":{},"dns":{{"allowHostnames":["mapped.test"]}},"internet":{{"enabled":false}}}}"#,
                worker.port()
            );
            let head = format!("PUT /egress HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let mut stream = TcpStream::connect(outer.network.ingress()).await?;
            stream.write_all(head.as_bytes()).await?;
            let mut status = [0; 12];
            stream.read_exact(&mut status).await?;
            anyhow::ensure!(status.ends_with(b"204"), "PUT /egress: {}", String::from_utf8_lossy(&status));
        }
        outer.run(world, probe, &arguments).await
    }
    .boxed_local()
}

fn ingress(world: &World, host: bool, users: bool) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let other = Outer::new(Policy { internet: true }, false).await?;
        let there = [other.network.ingress().to_string()];
        let own = Outer::new(Policy { internet: true }, false).await?;
        let mut setup = world.setup("ingress", "reach", &there)?;
        own.join(host, &mut setup)?;
        let walls = Walls {
            users,
            ..Walls::ALL
        };
        world.run(&walls, setup).await
    }
    .boxed_local()
}

/// A server that answers "reached" to the first bytes of whoever connects.
async fn serve(at: &str) -> Result<SocketAddr> {
    answer(
        at,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 8\r\n\r\nreached\n",
    )
    .await
}

/// A stand-in for workerd, which takes every CONNECT for a Worker's and answers in the Worker's stead.
async fn worker() -> Result<SocketAddr> {
    answer("127.0.0.1:0", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nworker\n").await
}

async fn answer(at: &str, text: &'static [u8]) -> Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(text).await;
                }
            });
        }
    });
    Ok(address)
}

/// A DNS server: names have a public address, `private.test` the metadata service's, and [`REBINDING`] first one, then the other.
async fn names() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    let asked = AtomicU32::new(0);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let Ok(mut message) = Message::from_vec(&buffer[..n]) else {
                continue;
            };
            let Some(name) = message.queries.first().map(|query| query.name().clone()) else {
                continue;
            };
            let text = name.to_ascii();
            let address = match text.trim_end_matches('.') {
                "private.test" => METADATA,
                REBINDING if asked.fetch_add(1, Ordering::Relaxed) > 0 => METADATA,
                _ => PUBLIC,
            };
            message.metadata.message_type = MessageType::Response;
            message.metadata.response_code = ResponseCode::NoError;
            message.add_answer(Record::from_rdata(name, 0, RData::A(A(address))));
            if let Ok(bytes) = message.to_vec() {
                let _ = socket.send_to(&bytes, from).await;
            }
        }
    });
    Ok(address)
}
