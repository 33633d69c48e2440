//! Network namespaces with nothing but loopback in them, and sockets inside them.
//!
//! Owns: how a namespace is set up, and how sockets come to be inside one. Must not: carry traffic
//! or know of policy.
//!
//! All functions run on a thread of their own that enters the namespace and ends; the caller's
//! thread never changes namespace. A socket stays in the namespace where it was made, whoever uses
//! it afterwards: connections inside are therefore made by keeping unconnected sockets ready
//! ([`tcp_sockets`]) and connecting them on any thread, with no thread hop.
//!
//! Every namespace is set up alike, so all have the same addresses ([`ADDRESS_V4`],
//! [`ADDRESS_V6`]).

pub mod here;
mod link;
mod listeners;
mod netlink;
mod nft;
mod pause;
mod source;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::net::sockopt;

pub use self::listeners::Listeners;
use self::netlink::named;
pub use self::pause::Pause;

/// The namespace's own IPv4 address, on loopback: the source of what goes outside.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 71, 2);
/// The namespace's own IPv6 address, on loopback, where [`Redirect::ipv6`] was asked for.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6861, 0x7266, 0, 0, 0, 0, 2);

/// Places in a namespace's table of TCP connections, 8 bytes each. With more connections they share
/// places, and are found a little more slowly.
const TCP_CONNECTIONS: u32 = 2048;

/// Ports, inside every namespace, where redirected traffic arrives.
#[derive(Debug, Clone, Copy)]
pub struct Redirect {
    /// All outbound TCP (nft nat REDIRECT; the original destination by SO_ORIGINAL_DST).
    pub tcp_port: u16,
    /// All outbound UDP to port 53. TCP to port 53 goes where other TCP goes.
    pub dns_port: u16,
    /// Whether there is a way out by IPv6 too. Without it there is no IPv6 route, and connects fail
    /// at once with ENETUNREACH: right on hosts that have no IPv6 themselves, since a redirected
    /// connection is accepted before it is known whether the destination can be reached. `::1`
    /// exists either way.
    pub ipv6: bool,
}

/// Makes a namespace: loopback up, a default route to it (with `src`), TCP and UDP/53 to
/// non-loopback destinations redirected to 127.0.0.1 and ::1, everything else to outside refused
/// with EPERM. `net.ipv4.ip_unprivileged_port_start` is 0 inside and pings need no capability.
///
/// # Errors
/// What the kernel refused, with the step that it refused: no CAP_SYS_ADMIN, or a kernel without
/// nf_tables.
pub fn create(redirect: Redirect) -> io::Result<OwnedFd> {
    create_and(redirect, || ()).map(|(namespace, ())| namespace)
}

/// The same, and runs a function inside, on the thread that has made the namespace. What it opens
/// stays inside.
///
/// # Errors
/// As [`create`]; or the function panicked.
pub fn create_and<T: Send>(
    redirect: Redirect,
    function: impl FnOnce() -> T + Send,
) -> io::Result<(OwnedFd, T)> {
    let v6 = redirect.ipv6.then_some(ADDRESS_V6);
    let parent = parent();
    on_own_thread(move || {
        if let Some(parent) = parent {
            enter(parent.as_fd())?;
        }
        unshare()?;
        let namespace = File::open("/proc/thread-self/ns/net")
            .map_err(|e| named("opening /proc/thread-self/ns/net", e))?;
        link::configure(ADDRESS_V4, v6)?;
        nft::install(redirect, ADDRESS_V4, v6)?;
        // These files show the namespace of the thread that opens them.
        for (file, value) in [
            ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
            ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
        ] {
            std::fs::write(file, value).map_err(|e| named(&format!("writing {file}"), e))?;
        }
        Ok((namespace.into(), function()))
    })
}

/// Where namespaces are made, so that each has a table of TCP connections of its own
/// (tcp_child_ehash_entries in the kernel's ip-sysctl): the end of a namespace looks through the
/// whole of the table that it uses, and the host's is large and everybody's. `None`: not with this
/// kernel (before Linux 6.1).
fn parent() -> Option<&'static OwnedFd> {
    static PARENT: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let make = || {
        unshare()?;
        std::fs::write(
            "/proc/sys/net/ipv4/tcp_child_ehash_entries",
            TCP_CONNECTIONS.to_string(),
        )?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    };
    PARENT.get_or_init(|| on_own_thread(make).ok()).as_ref()
}

/// Gives a namespace that was made without [`Redirect::ipv6`] a way out by IPv6 after all. May be
/// repeated.
///
/// # Errors
/// As [`create`]; also a kernel without IPv6, or with it switched off.
pub fn add_ipv6(netns: BorrowedFd<'_>, redirect: Redirect) -> io::Result<()> {
    run_inside(netns, || {
        // The rules first: nothing goes anywhere unredirected.
        nft::replace_v6(redirect, ADDRESS_V6)?;
        link::add_v6(ADDRESS_V6)
    })?
}

/// Gives the calling thread's namespace the rules of this version of Wharf, in place of an older
/// one's. Connections that exist go on as they are. For functions that [`run_inside`] runs.
///
/// # Errors
/// As [`create`].
pub fn renew_rules(redirect: Redirect) -> io::Result<()> {
    nft::replace_v4(redirect, ADDRESS_V4)?;
    // The rules do no harm without a route, which the namespace may have.
    if let Err(error) = nft::replace_v6(redirect, ADDRESS_V6) {
        tracing::debug!(%error, "no rules of IPv6");
    }
    Ok(())
}

/// The network namespace of a running process.
///
/// # Errors
/// No such process, or no right to look at it; also if the process is in the namespace of the
/// caller, which means that the process id now names something else than one of our containers.
pub fn of_process(pid: i32) -> io::Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(|e| named(&format!("opening {path}"), e))?;
    let own = File::open("/proc/thread-self/ns/net")
        .map_err(|e| named("opening /proc/thread-self/ns/net", e))?;
    let (theirs, ours) = (rustix::fs::fstat(&namespace)?, rustix::fs::fstat(&own)?);
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) {
        return Err(io::Error::other(format!(
            "process {pid} has no network namespace of its own"
        )));
    }
    Ok(namespace.into())
}

/// Runs a function on a fresh thread inside the namespace and waits for it. What it opens stays
/// inside.
///
/// # Errors
/// The thread could not be started or may not enter; or the function panicked.
pub fn run_inside<T: Send>(
    netns: BorrowedFd<'_>,
    function: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    on_own_thread(move || {
        enter(netns)?;
        Ok(function())
    })
}

/// A non-blocking TCP listener bound inside.
///
/// # Errors
/// As [`run_inside`], and those of socket(2), bind(2), listen(2).
pub fn listen_tcp(netns: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    run_inside(netns, || here::listen_tcp(addr))?
}

/// A non-blocking UDP socket bound inside.
///
/// # Errors
/// As [`run_inside`], and those of socket(2) and bind(2).
pub fn bind_udp(netns: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
    run_inside(netns, || here::bind_udp(addr))?
}

/// Non-blocking TCP sockets made inside and not connected yet: `v4` of IPv4, then `v6` of IPv6
/// (none if the kernel has no IPv6). They keep the namespace alive. [`connect_socket`] connects
/// one.
///
/// # Errors
/// As [`run_inside`], and those of socket(2).
pub fn tcp_sockets(netns: BorrowedFd<'_>, v4: usize, v6: usize) -> io::Result<UnconnectedSockets> {
    run_inside(netns, || here::tcp_sockets(v4, v6))?
}

/// Sockets of IPv4, and of IPv6.
pub type UnconnectedSockets = (Vec<OwnedFd>, Vec<OwnedFd>);

/// How far [`connect_socket`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connecting {
    /// Connected.
    Done,
    /// Begun; the socket becomes writable at the end, and SO_ERROR says how it went.
    Begun,
}

/// Connects a socket of [`tcp_sockets`], on the caller's thread, without blocking. On loopback the
/// kernel mostly knows the outcome at once. After a refusal the same socket may be tried again
/// (Linux resets it: connect(2) to a closed port leaves it unconnected).
///
/// # Errors
/// Those of connect(2), e.g. ECONNREFUSED.
pub fn connect_socket(socket: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<Connecting> {
    // A non-blocking connect over loopback ends with the answer already in, but says EINPROGRESS;
    // the second call tells.
    match rustix::net::connect(socket, &addr) {
        Ok(()) => return Ok(Connecting::Done),
        Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    match rustix::net::connect(socket, &addr) {
        Ok(()) | Err(rustix::io::Errno::ISCONN) => Ok(Connecting::Done),
        Err(rustix::io::Errno::ALREADY | rustix::io::Errno::INPROGRESS) => Ok(Connecting::Begun),
        Err(e) => Err(e.into()),
    }
}

/// Where a redirected connection wanted to go (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).
///
/// # Errors
/// ENOENT if the connection was not redirected.
pub fn original_destination(stream: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let local = SocketAddr::try_from(rustix::net::getsockname(stream)?)?;
    // A listener for both families has connections of IPv4 too.
    Ok(match local.ip().to_canonical() {
        IpAddr::V4(_) => sockopt::ip_original_dst(stream)?.into(),
        IpAddr::V6(_) => sockopt::ipv6_original_dst(stream)?.into(),
    })
}

/// The namespace that a socket is in (SIOCGSKNS).
///
/// # Errors
/// No CAP_NET_ADMIN in the user namespace that owns it, or no descriptors are left.
pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// linux/sockios.h
    const SIOCGSKNS: libc::Ioctl = 0x894C;
    // SAFETY: the descriptor is open for the call, and this ioctl takes no argument.
    let namespace = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if namespace < 0 {
        return Err(named(
            "finding a socket's network namespace",
            io::Error::last_os_error(),
        ));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// Sends a datagram from the loopback address of the receiver's family, whatever address the socket
/// is bound to: the answer to a redirected datagram must come from where that was redirected to, or
/// connection tracking does not recognise it (IPV6_PKTINFO, RFC 3542, section 6). Does not block.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send_from_loopback(socket: BorrowedFd<'_>, packet: &[u8], to: SocketAddr) -> io::Result<()> {
    let SocketAddr::V6(to) = to else {
        // A socket of IPv4 alone is bound to loopback.
        rustix::net::sendto(socket, packet, rustix::net::SendFlags::empty(), &to)?;
        return Ok(());
    };
    let source = match to.ip().to_ipv4_mapped() {
        Some(_) => Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
        None => Ipv6Addr::LOCALHOST,
    };
    source::send_from(socket, packet, to, source)
}

fn on_own_thread<T: Send>(function: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("wharf-netns".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, function)?
            .join()
            .map_err(|_| io::Error::other("a thread inside a network namespace panicked"))?
    })
}

fn unshare() -> io::Result<()> {
    // SAFETY: takes no pointers; it changes the namespace of the calling thread alone, which is one
    // of `on_own_thread`.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(named(
            "making a network namespace (it needs root)",
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; only the calling thread, which is one of
    // `on_own_thread`, changes namespace.
    if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(named(
            "entering a network namespace (it needs root)",
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}
