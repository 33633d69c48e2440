//! Who is at the other end of a loopback connection.
//!
//! The ingress of the operator's containers is on the host's loopback, because the workerd of `wrangler dev` dials there (contract: workerd, 1.5), and
//! whatever runs on the machine can dial it too. The kernel knows whose a socket is: sock_diag(7) answers in some 10 microseconds, and where the
//! kernel was built without it /proc/net/tcp says the same, only slower.
//!
//! Owns: finding the user, and the rule who may use such an ingress. Must not: trust what the connection says.

use std::io;
use std::net::SocketAddr;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::net::TcpStream;

/// `NETLINK_SOCK_DIAG`, netlink(7).
const SOCK_DIAG: u32 = 4;
/// `SOCK_DIAG_BY_FAMILY`, sock_diag(7).
const BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const NLMSG_HEADER: usize = 16;
/// Into `struct inet_diag_msg`: the user, the inode.
const UID: usize = 64;
const INODE: usize = 68;

/// Whether a connection to an ingress comes from root, who could do anything anyway.
pub(crate) fn is_roots(stream: &TcpStream) -> bool {
    let found = stream
        .peer_addr()
        .and_then(|peer| uid_of(peer, stream.local_addr()?));
    let admitted = matches!(found, Ok(Some(0)));
    if !admitted {
        // It has gone already, or it is not welcome.
        tracing::warn!(
            ingress = ?stream.local_addr(),
            user = ?found,
            "a connection to a container's ingress was refused: it is not the operator's"
        );
    }
    admitted
}

/// The user whose connection from `peer` to `local` it is; `None` if there is none, or none any more: of a socket that was closed (it has no inode)
/// the kernel may say that it is root's.
fn uid_of(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    match ask_kernel(peer, local) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => read_table(peer, local),
        Err(_) => Ok(None),
        found => found,
    }
}

fn ask_kernel(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    let (SocketAddr::V4(peer), SocketAddr::V4(local)) = (peer, local) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states; then struct inet_diag_sockid, of which an address has 16 bytes.
    let mut request = vec![0; NLMSG_HEADER];
    request.extend([AF_INET, IPPROTO_TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(peer.port().to_be_bytes());
    request.extend(local.port().to_be_bytes());
    for address in [peer.ip(), local.ip()] {
        request.extend(address.octets());
        request.extend([0; 12]);
    }
    // Any interface; no cookie.
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());

    let protocol =
        Protocol::from_raw(std::num::NonZeroU32::new(SOCK_DIAG).ok_or(io::ErrorKind::Unsupported)?);
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(protocol),
    )?;
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 1024];
    // The kernel has answered before `send` returned.
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    let answer = &answer[..length];
    let short = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = answer.get(4..6).ok_or_else(short)?;
    let body = &answer[NLMSG_HEADER.min(length)..];
    if kind == NLMSG_ERROR.to_ne_bytes() {
        let code = word(body, 0).ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error((code as i32).wrapping_neg()));
    }
    let (uid, inode) = (word(body, UID), word(body, INODE));
    let (uid, inode) = uid.zip(inode).ok_or_else(short)?;
    Ok((inode != 0).then_some(uid))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn read_table(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    Ok(find_in_table(
        &std::fs::read_to_string("/proc/net/tcp")?,
        peer,
        local,
    ))
}

/// A row of proc_net_tcp(5): number, local and remote address, state, queues, timer, retransmits, user, timeout, inode.
fn find_in_table(table: &str, peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    let (peer, local) = (as_in_table(peer)?, as_in_table(local)?);
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        let [_, from, to, _, _, _, _, uid, _, inode] = columns[..] else {
            return None;
        };
        let is_it = from == peer && to == local && inode != "0";
        is_it.then(|| uid.parse().ok())?
    })
}

/// The address as a number of the machine's byte order, and the port, in hexadecimal.
fn as_in_table(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{ip:08X}:{:04X}", address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_kernel_and_its_table_know_whose_a_connection_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(ask_kernel(peer, local).unwrap(), Some(own));
        assert_eq!(read_table(peer, local).unwrap(), Some(own));
        // The other way round it is this process's too; with another port it is nobody's.
        let mut elsewhere = peer;
        elsewhere.set_port(peer.port() ^ 1);
        assert_eq!(uid_of(elsewhere, local).unwrap(), None);
        // One that was closed says nothing of its owner.
        drop(client);
        assert_eq!(uid_of(peer, local).unwrap(), None);
    }

    #[test]
    fn it_costs_microseconds() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        let mut fastest = u128::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            ask_kernel(peer, local).unwrap();
            fastest = fastest.min(start.elapsed().as_micros());
        }
        assert!(fastest < 50, "{fastest} us");
    }

    #[test]
    fn rows_are_told_apart() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000 720001        0 12 1\n\
            2: 0100007F:C351 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3\n";
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(
            find_in_table(table, address(50000), address(8080)),
            Some(720_001)
        );
        assert_eq!(find_in_table(table, address(50001), address(8080)), None);
        assert_eq!(find_in_table(table, address(50002), address(8080)), None);
    }
}
