//! What a workerd process can reach, with the real one: of the machine, of other scripts, of the network.
#![allow(clippy::unwrap_used)] // a failing test may panic

mod support;

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use wharf_net::{Dial, NetConfig, Networks};

use self::support::{World, with_class};

/// Dials what it is told to, by `fetch()` and by a socket of its own.
const DIALS: &str = r#"
import { connect } from "cloudflare:sockets";
export default {
  async fetch(request) {
    const { searchParams } = new URL(request.url);
    const to = searchParams.get("to");
    try {
      if (searchParams.get("how") === "fetch") return new Response(await (await fetch(`http://${to}/`)).text());
      const socket = connect(to);
      const writer = socket.writable.getWriter();
      await writer.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
      const text = await new Response(socket.readable).text();
      return new Response(text === "" ? "refused" : text);
    } catch (e) {
      return new Response("refused");
    }
  },
};"#;

const COUNTER: &str = r#"
import { DurableObject } from "cloudflare:workers";
export class Counter extends DurableObject {
  async fetch() {
    const count = 1 + ((await this.ctx.storage.get("count")) ?? 0);
    await this.ctx.storage.put("count", count);
    return new Response(String(count));
  }
}
export default { fetch(request, env) { return env.COUNTER.getByName("one").fetch(request); } };"#;

/// A server that says "inside" and counts who came.
async fn server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\ninside";
            let _ = stream.write_all(answer).await;
        }
    });
    (address, task)
}

/// The outside world: where addresses really lead.
#[derive(Debug)]
struct Outside(HashMap<SocketAddr, SocketAddr>);

impl Dial for Outside {
    fn dial(
        &self,
        destination: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<TcpStream>> + Send + '_>> {
        Box::pin(async move {
            match self.0.get(&destination) {
                Some(real) => TcpStream::connect(real).await,
                None => Err(ErrorKind::HostUnreachable.into()),
            }
        })
    }

    fn ipv6(&self) -> bool {
        false
    }
}

/// Answers every question for an A record with 203.0.113.7.
async fn name_server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (n, from) = socket.recv_from(&mut packet).await.unwrap();
            // The question's name ends with a zero byte; type and class follow.
            let end = 12 + packet[12..n].iter().position(|b| *b == 0).unwrap() + 5;
            let is_a = packet[end - 4..end - 2] == [0, 1];
            let mut answer = packet[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7]);
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (address, task)
}

async fn dial(world: &World, how: &str, to: &str) -> String {
    world.text("dials", &format!("/?how={how}&to={to}")).await
}

#[tokio::test]
async fn the_internet_is_reached_by_name_and_private_addresses_if_allowed() {
    let (real, server) = server().await;
    let (dns, name_server) = name_server().await;
    for (workerds, networks, private) in [
        (false, false, "refused"),
        (true, false, "refused"),
        (false, true, "refused"),
        (true, true, "inside"),
    ] {
        let outside = ["203.0.113.7:80", "10.1.2.3:80"].map(|a| (a.parse().unwrap(), real));
        let config = NetConfig {
            pool_size: 0,
            hold_ms: 2000,
            dns_servers: vec![dns],
            allow_private: networks,
        };
        let networks = Networks::with_dialer(config, Arc::new(Outside(outside.into())));
        let world = World::in_networks(networks, |c| c.allow_private = workerds).await;
        world.deploy(world.desired("dials", 1, DIALS)).await;
        for how in ["fetch", "connect"] {
            for (to, expected) in [
                ("203.0.113.7:80", "inside"),
                ("some.example:80", "inside"),
                ("10.1.2.3:80", private),
            ] {
                let got = dial(&world, how, to).await;
                assert!(got.ends_with(expected), "{how} {to}: {got}");
            }
        }
        world.close().await;
    }
    server.abort();
    name_server.abort();
}

#[tokio::test]
async fn the_hosts_loopback_is_out_of_reach_whatever_is_allowed() {
    let (real, server) = server().await;
    let port = real.port();
    let world = World::in_networks(support::networks(true), |c| c.allow_private = true).await;
    world.deploy(world.desired("dials", 1, DIALS)).await;
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1.2.3",
        "0.0.0.0",
        "10.88.71.1",
        "10.88.71.2",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ] {
        for how in ["fetch", "connect"] {
            let got = dial(&world, how, &format!("{host}:{port}")).await;
            assert_eq!(got, "refused", "{how} {host}");
        }
    }
    world.close().await;
    server.abort();
}

/// Everything below a directory, as another process sees it.
fn everything(root: &Path, directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let inside = Path::new("/").join(path.strip_prefix(root).unwrap());
        if inside == Path::new("/proc") {
            continue;
        }
        if path.is_dir() {
            everything(root, &path, found);
        } else {
            found.insert(inside);
        }
    }
}

#[tokio::test]
async fn a_process_sees_its_own_files_and_nothing_of_the_host_or_of_others() {
    let world = World::new().await;
    let dir = world.place.dir.path().to_owned();
    for (name, number) in [("one", 1), ("two", 2)] {
        let desired = with_class(world.desired(name, number, COUNTER), "Counter");
        world.deploy(desired).await;
        assert_eq!(world.text(name, "/").await, "1");
    }
    let pid = world.pid("one");
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let mut found = BTreeSet::new();
    everything(&root, &root, &mut found);
    let lease = world.supervisor.acquire("one").await.unwrap();
    let own = lease.socket.parent().unwrap();
    let storage = dir.join("scripts/1/do");
    assert!(found.contains(&lease.socket), "{found:?}");
    assert!(found.iter().any(|path| path.starts_with(&storage)));
    found.retain(|path| !path.starts_with(own) && !path.starts_with(&storage));
    let is_library = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.starts_with("/lib") || path.starts_with("/usr/lib") || name.starts_with("ld-linux")
    };
    assert!(found.iter().any(|path| is_library(path)));
    found.retain(|path| !is_library(path));
    found.remove(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    let left: BTreeSet<PathBuf> = [
        "/dev/null",
        "/dev/random",
        "/dev/urandom",
        "/dev/zero",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/resolv.conf",
    ]
    .iter()
    .map(PathBuf::from)
    .chain([dir.join("workerd")])
    .collect();
    assert_eq!(found, left);
    // What it did not bring it cannot write to, and the processes it sees are its own.
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let writable = words[5].split(',').any(|option| option == "rw");
        let path = Path::new(words[4]);
        let may = path == own || path == storage || path == Path::new("/proc");
        assert_eq!(writable, may, "{line}");
        assert!(words[5].contains("nosuid"), "{line}");
    }
    let processes = std::fs::read_dir(root.join("proc")).unwrap();
    let names: BTreeSet<String> = processes
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let own_only = ["1", "self", "thread-self"].map(str::to_owned);
    assert_eq!(names, BTreeSet::from(own_only));
    drop(lease);
    world.close().await;
}

#[tokio::test]
async fn a_process_has_namespaces_a_filter_and_limits_of_its_own() {
    let world = World::new().await;
    for (name, number) in [("one", 1), ("two", 2)] {
        world
            .deploy(world.desired(name, number, "export default { fetch() {} }"))
            .await;
    }
    let (one, two) = (world.pid("one"), world.pid("two"));
    let link = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let ours = link("self", kind).unwrap();
        let of = |pid: i32| link(&pid.to_string(), kind).unwrap();
        assert!(
            of(one) != ours && of(two) != ours && of(one) != of(two),
            "{kind}"
        );
    }
    let status = std::fs::read_to_string(format!("/proc/{one}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (field("Seccomp:"), field("NoNewPrivs:")),
        ("2".into(), "1".into())
    );
    let cgroups = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_ne!(cgroups(one), cgroups(two));
    world.close().await;
}
