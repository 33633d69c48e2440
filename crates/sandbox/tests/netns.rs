//! Network namespaces on the real kernel. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use wharf_sandbox::netns::{self, ADDRESS_V4, ADDRESS_V6, Connecting, Redirect};

const WAIT: Duration = Duration::from_secs(10);

fn namespace(ipv6: bool) -> OwnedFd {
    netns::create(Redirect {
        tcp_port: 64001,
        dns_port: 64053,
        ipv6,
    })
    .unwrap()
}

fn inside<T: Send>(ns: &OwnedFd, function: impl FnOnce() -> T + Send) -> T {
    netns::run_inside(ns.as_fd(), function).unwrap()
}

fn connect(addr: &str) -> io::Result<TcpStream> {
    let addr: SocketAddr = addr.parse().unwrap();
    TcpStream::connect_timeout(&addr, WAIT)
}

fn blocking(listener: TcpListener) -> TcpListener {
    listener.set_nonblocking(false).unwrap();
    listener
}

#[test]
fn holds_nothing_but_loopback_and_leaves_the_caller_alone() {
    let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let ns = namespace(true);
    let (devices, own) = inside(&ns, || {
        (
            std::fs::read_to_string("/proc/thread-self/net/dev").unwrap(),
            std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
        )
    });
    let names: Vec<_> = devices
        .lines()
        .skip(2)
        .filter_map(|l| Some(l.split_once(':')?.0.trim()))
        .filter(|n| !n.starts_with("sit") && !n.starts_with("tunl") && !n.starts_with("gre"))
        .collect();
    assert_eq!(names, ["lo"]);
    assert_ne!(own, before);
    assert_eq!(
        std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
        before
    );
}

#[test]
fn low_ports_and_pings_need_no_capability() {
    let ns = namespace(false);
    let (port, ping) = inside(&ns, || {
        (
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(),
            std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap(),
        )
    });
    assert_eq!(port.trim(), "0");
    assert_eq!(
        ping.split_whitespace().collect::<Vec<_>>(),
        ["0", "2147483647"]
    );
}

#[test]
fn its_connections_are_in_a_table_of_its_own_where_the_kernel_can() {
    // Linux 6.1.
    if !std::path::Path::new("/proc/sys/net/ipv4/tcp_child_ehash_entries").exists() {
        return;
    }
    let ns = namespace(false);
    let places = inside(&ns, || {
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_ehash_entries").unwrap()
    });
    // Of who uses the host's table, the number is negative (the kernel's ip-sysctl).
    assert!(places.trim().parse::<i64>().unwrap() > 0, "{places}");
}

#[test]
fn outbound_tcp_arrives_at_the_redirect_with_its_destination() {
    let ns = namespace(true);
    let listener = inside(&ns, || netns::here::listen_tcp_dual(64001).unwrap());
    let listener = blocking(listener);
    for (destination, own) in [
        ("203.0.113.5:80", IpAddr::V4(ADDRESS_V4)),
        ("[2001:db8::5]:443", IpAddr::V6(ADDRESS_V6)),
        ("192.0.2.53:53", IpAddr::V4(ADDRESS_V4)),
        ("[2001:db8::53]:53", IpAddr::V6(ADDRESS_V6)),
    ] {
        let mut client = inside(&ns, || connect(destination)).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), own);
        assert_eq!(
            netns::original_destination(server.as_fd()).unwrap(),
            destination.parse().unwrap()
        );
        client.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).unwrap();
        server.write_all(&got).unwrap();
        client.set_read_timeout(Some(WAIT)).unwrap();
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
    }
}

#[test]
fn dns_by_udp_arrives_at_its_own_port_and_the_answer_comes_from_the_server_that_was_asked() {
    let ns = namespace(true);
    let answerer = inside(&ns, || netns::here::bind_udp_dual(64053).unwrap());
    answerer.set_nonblocking(false).unwrap();
    answerer.set_read_timeout(Some(WAIT)).unwrap();
    for server in ["192.0.2.53:53", "[2001:db8::53]:53"] {
        let client = inside(&ns, || {
            let any = if server.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            UdpSocket::bind(any).unwrap()
        });
        client.set_read_timeout(Some(WAIT)).unwrap();
        client.send_to(b"who", server).unwrap();
        let mut buffer = [0; 16];
        let (n, from) = answerer.recv_from(&mut buffer).unwrap();
        netns::send_from_loopback(answerer.as_fd(), &buffer[..n], from).unwrap();
        let (n, from) = client
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{server}: {e}"));
        assert_eq!((&buffer[..n], from), (&b"who"[..], server.parse().unwrap()));
    }
}

#[test]
fn a_socket_leads_back_to_its_namespace() {
    let ns = namespace(false);
    let socket = inside(&ns, || netns::here::listen_tcp_dual(64001).unwrap());
    let found = netns::of_socket(socket.as_fd()).unwrap();
    let place = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).unwrap();
    assert_eq!(place(&found), place(&ns));
}

#[test]
fn an_older_versions_rules_are_replaced_while_connections_go_on() {
    let ns = netns::create(Redirect {
        tcp_port: 1,
        dns_port: 2,
        ipv6: true,
    })
    .unwrap();
    let old = blocking(netns::listen_tcp(ns.as_fd(), "127.0.0.1:1".parse().unwrap()).unwrap());
    let mut client = inside(&ns, || connect("203.0.113.5:80")).unwrap();
    let (mut server, _) = old.accept().unwrap();
    let redirect = Redirect {
        tcp_port: 64001,
        dns_port: 64053,
        ipv6: false,
    };
    inside(&ns, || netns::renew_rules(redirect).unwrap());
    client.write_all(b"on").unwrap();
    let mut got = [0; 2];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"on");
    let new = inside(&ns, || netns::here::listen_tcp_dual(64001).unwrap());
    let new = blocking(new);
    for destination in ["203.0.113.5:80", "[2001:db8::5]:443"] {
        let _client = inside(&ns, || connect(destination)).unwrap();
        new.accept().unwrap();
    }
}

#[test]
fn loopback_and_the_own_address_stay_inside() {
    let ns = namespace(true);
    let trap =
        netns::listen_tcp(ns.as_fd(), SocketAddr::new([127, 0, 0, 1].into(), 64001)).unwrap();
    let app = netns::listen_tcp(ns.as_fd(), "0.0.0.0:8080".parse().unwrap()).unwrap();
    let app6 = netns::listen_tcp(ns.as_fd(), "[::]:8080".parse().unwrap()).unwrap();
    for addr in ["127.0.0.1:8080", "127.1.2.3:8080", "10.88.71.2:8080"] {
        inside(&ns, || connect(addr)).unwrap_or_else(|e| panic!("{addr}: {e}"));
        app.accept().unwrap();
    }
    for addr in ["[::1]:8080", "[fd77:6861:7266::2]:8080"] {
        inside(&ns, || connect(addr)).unwrap_or_else(|e| panic!("{addr}: {e}"));
        app6.accept().unwrap();
    }
    assert_eq!(trap.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn traffic_that_is_neither_tcp_nor_dns_fails_at_once() {
    let ns = namespace(true);
    for (bind, to) in [
        ("0.0.0.0:0", "203.0.113.5:443"),
        ("[::]:0", "[2001:db8::5]:443"),
    ] {
        let error =
            inside(&ns, || UdpSocket::bind(bind).unwrap().send_to(b"quic", to)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{to}");
    }
}

#[test]
fn without_ipv6_its_connects_fail_at_once_but_its_loopback_works() {
    let ns = namespace(false);
    let error = inside(&ns, || connect("[2001:db8::5]:443")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
    let app = netns::listen_tcp(ns.as_fd(), "[::1]:8080".parse().unwrap()).unwrap();
    inside(&ns, || connect("[::1]:8080")).unwrap();
    app.accept().unwrap();
}

#[test]
fn ipv6_can_be_added_later() {
    let redirect = Redirect {
        tcp_port: 64001,
        dns_port: 64053,
        ipv6: false,
    };
    let ns = netns::create(redirect).unwrap();
    let listener = netns::listen_tcp(ns.as_fd(), "[::1]:64001".parse().unwrap()).unwrap();
    let listener = blocking(listener);
    for _ in 0..3 {
        netns::add_ipv6(ns.as_fd(), redirect).unwrap();
        inside(&ns, || connect("[2001:db8::5]:443")).unwrap();
        let (stream, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), ADDRESS_V6);
        let destination = netns::original_destination(stream.as_fd()).unwrap();
        assert_eq!(destination, "[2001:db8::5]:443".parse().unwrap());
    }
}

#[test]
fn a_prepared_socket_can_be_tried_until_somebody_listens() {
    let ns = namespace(false);
    let (v4, v6) = netns::tcp_sockets(ns.as_fd(), 1, 1).unwrap();
    for (socket, addr) in [(&v4[0], "127.0.0.1:8080"), (&v6[0], "[::1]:8080")] {
        let addr: SocketAddr = addr.parse().unwrap();
        for _ in 0..50 {
            let error = netns::connect_socket(socket.as_fd(), addr).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        let app = blocking(netns::listen_tcp(ns.as_fd(), addr).unwrap());
        let state = netns::connect_socket(socket.as_fd(), addr).unwrap();
        assert_eq!(state, Connecting::Done);
        app.accept().unwrap();
    }
}

#[test]
fn connections_inside_are_not_tracked() {
    let ns = namespace(true);
    let app = netns::listen_tcp(ns.as_fd(), "127.0.0.1:8080".parse().unwrap()).unwrap();
    let count = || {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")
            .unwrap()
            .trim()
            .parse::<u32>()
            .unwrap()
    };
    let _trap = netns::listen_tcp(ns.as_fd(), "127.0.0.1:64001".parse().unwrap()).unwrap();
    let (local, outbound) = inside(&ns, || {
        let _connections: Vec<_> = (0..20)
            .map(|_| connect("127.0.0.1:8080").unwrap())
            .collect();
        let local = count();
        let _out = connect("203.0.113.5:80").unwrap();
        (local, count())
    });
    drop(app);
    assert_eq!((local, outbound), (0, 1));
}

#[test]
fn the_namespace_of_a_process_outlives_it_only_by_its_descriptor() {
    let error = netns::of_process(std::process::id().cast_signed()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no network namespace of its own"),
        "{error}"
    );
    let ns = namespace(false);
    let mut child = inside(&ns, || {
        std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap()
    });
    let found = netns::of_process(child.id().cast_signed());
    child.kill().unwrap();
    child.wait().unwrap();
    let link = |fd: &OwnedFd| {
        inside(fd, || {
            std::fs::read_link("/proc/thread-self/ns/net").unwrap()
        })
    };
    assert_eq!(link(&found.unwrap()), link(&ns));
}

#[test]
fn making_one_is_refused_with_a_reason_when_the_rules_cannot_be_set() {
    // A thread without privileges stands for every kernel that refuses.
    let error = std::thread::spawn(|| {
        rustix::thread::set_thread_uid(rustix::thread::Uid::from_raw(65534)).unwrap();
        netns::create(Redirect {
            tcp_port: 64001,
            dns_port: 64053,
            ipv6: false,
        })
        .unwrap_err()
    })
    .join()
    .unwrap();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("root"), "{error}");
}

#[test]
fn listeners_are_seen_without_being_touched() {
    let ns = namespace(false);
    let _known = netns::listen_tcp(ns.as_fd(), "127.0.0.1:64001".parse().unwrap()).unwrap();
    let mut listeners = netns::Listeners::open(ns.as_fd(), 64001).unwrap();
    assert!(!listeners.is_listening(8080).unwrap());
    for addr in ["127.0.0.1:8080", "0.0.0.0:8080", "[::1]:8080", "[::]:8080"] {
        let listener = netns::listen_tcp(ns.as_fd(), addr.parse().unwrap()).unwrap();
        assert!(listeners.is_listening(8080).unwrap(), "{addr}");
        assert!(!listeners.is_listening(8081).unwrap(), "{addr}");
        let ports: Vec<u16> = listeners.ports().unwrap().into_iter().collect();
        assert_eq!(ports, [8080, 64001], "{addr}");
        // Nobody has knocked.
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "{addr}"
        );
    }
    // Bound, or connected from there, is not listening.
    let taken = inside(&ns, || TcpListener::bind("127.0.0.1:9000").unwrap());
    let addr: SocketAddr = "127.0.0.1:9000".parse().unwrap();
    let client = inside(&ns, || TcpStream::connect(addr).unwrap());
    let local = client.local_addr().unwrap().port();
    assert!(!listeners.is_listening(local).unwrap());
    drop(taken);
    assert!(!listeners.is_listening(9000).unwrap());
}

#[test]
fn a_kernel_that_knows_no_listener_is_not_asked() {
    let ns = namespace(false);
    let error = netns::Listeners::open(ns.as_fd(), 64001).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
