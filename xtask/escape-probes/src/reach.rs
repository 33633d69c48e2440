//! What is reached by the network: an address answers "reached", or it does not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use crate::Probe;
use crate::sys::{argument, errno, io_word};

/// Where nothing comes, nothing will; what comes, comes from the same machine.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("reach", |args| {
        all(args.iter().map(|address| reach(address, "")))
    }),
    ("reach-as", |args| {
        reach(argument(args, 0), argument(args, 1))
    }),
    ("reach-as-tls", |args| {
        let address = argument(args, 0);
        let hello = client_hello(argument(args, 1));
        say(address, &hello)
    }),
    // The resolver's answer to each name is what is dialled, once for each argument.
    ("reach-by-name", |args| {
        all(args.iter().map(|name| match resolve(name) {
            Ok(ip) => reach(&SocketAddr::new(ip, 80).to_string(), name),
            Err(text) => text,
        }))
    }),
    // Asks, as if to check the name, then asks again and dials what is said then.
    ("rebind", |args| {
        let name = argument(args, 0);
        match (resolve(name), resolve(name)) {
            (Ok(first), Ok(second)) if first != second => {
                reach(&SocketAddr::new(second, 80).to_string(), name)
            }
            other => format!("{other:?}"),
        }
    }),
    ("resolve", |args| match resolve(argument(args, 0)) {
        Ok(_) => "an address".to_owned(),
        Err(text) => text,
    }),
    // As the C library reads addresses: decimal, octal, hexadecimal, short.
    ("reach-as-written", |args| {
        all(args
            .iter()
            .map(|text| match (text.as_str(), 80).to_socket_addrs() {
                Ok(mut found) => match found.next() {
                    Some(address) => reach(&address.to_string(), ""),
                    None => "no address".to_owned(),
                },
                Err(_) => match old_form(text) {
                    Some(address) => reach(&format!("{address}:80"), ""),
                    None => "no address".to_owned(),
                },
            }))
    }),
    ("udp", |args| {
        let sent = UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", argument(args, 0)));
        io_word(sent)
    }),
    ("udp6", |args| {
        let sent = UdpSocket::bind("[::]:0").and_then(|s| s.send_to(b"x", argument(args, 0)));
        io_word(sent)
    }),
    ("ping", |args| {
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) };
        if fd < 0 {
            return errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        use std::os::fd::FromRawFd;
        let socket = unsafe { UdpSocket::from_raw_fd(fd) };
        io_word(socket.send_to(
            &[8, 0, 0, 0, 0, 0, 0, 1],
            format!("{}:0", argument(args, 0)),
        ))
    }),
    ("listeners", |args| {
        // proc_net_tcp(5): local address, state (0A listens); but for what the container's own network has.
        let tables = ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/net/{t}")));
        let lines = tables
            .iter()
            .flatten()
            .flat_map(|table| table.lines().skip(1));
        let ports = lines.filter_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let port = columns.get(1)?.rsplit(':').next()?;
            (columns.get(3) == Some(&"0A")).then(|| u16::from_str_radix(port, 16).ok())?
        });
        let others: Vec<u16> = ports
            .filter(|port| !args.contains(&port.to_string()))
            .collect();
        // Some are at another address, or end meanwhile.
        let reached = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_ok();
        match (others.is_empty(), others.iter().any(reached)) {
            (true, _) => "none".to_owned(),
            (false, true) => "some".to_owned(),
            (false, false) => "some, not reached".to_owned(),
        }
    }),
];

/// "reached" if one was; else what most said.
fn all(seen: impl Iterator<Item = String>) -> String {
    let seen: Vec<String> = seen.collect();
    match seen.iter().any(|s| s == "reached") {
        true => "reached".to_owned(),
        false => {
            let mut kinds = seen;
            kinds.sort();
            kinds.dedup();
            kinds.join(", ")
        }
    }
}

fn reach(address: &str, host: &str) -> String {
    let host = if host.is_empty() { address } else { host };
    say(
        address,
        format!("GET /secret HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )
}

fn say(address: &str, text: &[u8]) -> String {
    let address: SocketAddr = match address.parse() {
        Ok(address) => address,
        Err(_) => return format!("no address: {address}"),
    };
    let connected = TcpStream::connect_timeout(&address, PATIENCE);
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) if error.raw_os_error().is_none() => return "no answer".to_owned(),
        // A cut connection may say so in connect(2) or in read(2).
        Err(_) => return "cut".to_owned(),
    };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut answer = Vec::new();
    let _ = stream.write_all(text);
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..n]);
        if String::from_utf8_lossy(&answer).contains("reached") || answer.len() > 8192 {
            break;
        }
    }
    match String::from_utf8_lossy(&answer) {
        text if text.contains("reached") => "reached".to_owned(),
        text if text.starts_with("HTTP/1.1") || text.contains("worker") => {
            "another answer".to_owned()
        }
        _ => "cut".to_owned(),
    }
}

/// Asks the server of /etc/resolv.conf for an address; the C library in this program is static and would want to load others.
fn resolve(name: &str) -> Result<std::net::IpAddr, String> {
    let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = conf
        .lines()
        .find_map(|l| l.strip_prefix("nameserver "))
        .unwrap_or("")
        .trim();
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let ask = || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&query, format!("{server}:53"))?;
        let mut answer = vec![0; 1500];
        let n = socket.recv(&mut answer)?;
        answer.truncate(n);
        Ok(answer)
    };
    let answer = ask().map_err(|e| format!("resolver: {}", io_word::<()>(Err(e))))?;
    match answer.get(3).map(|b| b & 15) {
        Some(0) if answer.len() >= query.len() + 16 => {
            // One record, whose last four bytes are the address.
            let at = answer.len() - 4;
            let bytes: [u8; 4] = answer[at..].try_into().unwrap_or_default();
            Ok(std::net::IpAddr::from(bytes))
        }
        Some(3) => Err("no such name".to_owned()),
        _ => Err("no address".to_owned()),
    }
}

/// inet_aton(3)'s forms: parts in decimal, octal or hexadecimal, the last one filling what is left.
fn old_form(text: &str) -> Option<std::net::Ipv4Addr> {
    let number = |part: &str| match part {
        p if p.starts_with("0x") => u32::from_str_radix(&p[2..], 16).ok(),
        p if p.len() > 1 && p.starts_with('0') => u32::from_str_radix(&p[1..], 8).ok(),
        p => p.parse().ok(),
    };
    let parts: Option<Vec<u32>> = text.split('.').map(number).collect();
    let parts = parts?;
    let (last, first) = parts.split_last()?;
    let high = first
        .iter()
        .enumerate()
        .fold(0, |sum, (i, part)| sum | part << (24 - 8 * i));
    Some(std::net::Ipv4Addr::from(high | last))
}

/// A TLS client's first message with a name in it.
fn client_hello(name: &str) -> Vec<u8> {
    let size = |n: usize| (n as u16).to_be_bytes();
    let mut entry = vec![0];
    entry.extend(size(name.len()));
    entry.extend(name.as_bytes());
    let mut list = size(entry.len()).to_vec();
    list.extend(entry);
    let mut extension = vec![0, 0];
    extension.extend(size(list.len()));
    extension.extend(list);
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    hello.extend(size(extension.len()));
    hello.extend(extension);
    let mut handshake = vec![1, 0];
    handshake.extend(size(hello.len()));
    handshake.extend(hello);
    let mut record = vec![22, 3, 1];
    record.extend(size(handshake.len()));
    record.extend(handshake);
    record
}
