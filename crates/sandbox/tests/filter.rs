//! System calls: what programs need works, what leads out is refused, and with the error that
//! programs understand.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Error;
use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use wharf_sandbox::netns;

use self::support::Place;

const LANDLOCK_CREATE_RULESET: i64 = 444;

fn word(result: i64) -> String {
    let errno = Error::last_os_error().raw_os_error();
    match errno {
        _ if result >= 0 => "worked".to_owned(),
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::ENOSYS) => "ENOSYS".to_owned(),
        Some(libc::EAFNOSUPPORT) => "EAFNOSUPPORT".to_owned(),
        other => format!("{other:?}"),
    }
}

/// getpid by the 32-bit door, where the numbers are others.
#[cfg(target_arch = "x86_64")]
fn by_the_32_bit_door() -> i64 {
    let result: i64;
    // SAFETY: getpid takes nothing and changes nothing; `int 0x80` preserves all registers but rax
    // on x86-64 (r8 to r11 are declared).
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") 20i64 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

/// Asks 127.0.0.1 for an echo, as ping does without a raw socket.
fn ping() -> bool {
    // SAFETY: takes numbers; the descriptor is new and owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP);
        std::net::UdpSocket::from(std::os::fd::OwnedFd::from_raw_fd(fd))
    };
    let echo_request = [8, 0, 0, 0, 0, 0, 0, 1];
    let mut reply = [0; 64];
    socket.send_to(&echo_request, "127.0.0.1:0").is_ok()
        && socket.recv(&mut reply).is_ok_and(|length| length >= 8)
        && reply[0] == 0
}

/// Runs inside, as a program of its own.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call gets zeros, numbers, or pointers to live variables"
)]
fn inside() {
    let threads: Vec<_> = (0..8).map(|n| std::thread::spawn(move || n)).collect();
    let sum: i32 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    println!("threads {sum}");
    for (name, number) in [
        ("clone3", libc::SYS_clone3),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("mount", libc::SYS_mount),
        ("fsopen", libc::SYS_fsopen),
        ("open_tree", libc::SYS_open_tree),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("bpf", libc::SYS_bpf),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("kexec_load", libc::SYS_kexec_load),
        ("init_module", libc::SYS_init_module),
        ("acct", libc::SYS_acct),
        ("quotactl", libc::SYS_quotactl),
        ("swapon", libc::SYS_swapon),
        ("syslog", libc::SYS_syslog),
        ("newest", 9999),
        ("x32", 0x4000_0000 + libc::SYS_getpid),
    ] {
        println!(
            "{name} {}",
            word(unsafe { libc::syscall(number, 0, 0, 0, 0, 0) })
        );
    }
    #[cfg(target_arch = "x86_64")]
    println!("i386 {}", by_the_32_bit_door() == -i64::from(libc::ENOSYS));
    for (name, family, kind, protocol) in [
        ("unix", libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ("tcp", libc::AF_INET, libc::SOCK_STREAM, 0),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ("ping", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
    ] {
        let result = unsafe { libc::socket(family, kind, protocol) };
        println!("{name} {}", word(result.into()));
    }
    println!("pinged {}", ping());
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let lowered = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) };
    let read = unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
    println!(
        "core {lowered} {read} {} {}",
        limit.rlim_cur, limit.rlim_max
    );
    // A debugger, of its own child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            libc::_exit(0)
        }
    }
    let mut status = 0;
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    let traced = libc::WIFSTOPPED(status);
    println!(
        "ptrace {traced} {}",
        word(unsafe { libc::ptrace(libc::PTRACE_KILL, child, 0, 0) })
    );
    let abstract_socket = |name: &str| SocketAddr::from_abstract_name(name).unwrap();
    let _listener = UnixListener::bind_addr(&abstract_socket("own")).unwrap();
    println!(
        "own-abstract {}",
        UnixStream::connect_addr(&abstract_socket("own")).is_ok()
    );
    let outside = UnixStream::connect_addr(&abstract_socket("outside"));
    println!(
        "outside-abstract {:?}",
        outside.map_err(|e| e.raw_os_error()).err()
    );
}

#[tokio::test]
async fn system_calls() {
    if std::env::var_os("INSIDE").is_some() {
        return inside();
    }
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, mut fds) = place.this_program("calls", &place.path("u"), "system_calls");
    let network = netns::create(netns::Redirect {
        tcp_port: 1,
        dns_port: 2,
        ipv6: false,
    })
    .unwrap();
    // Something of the host that lets the container's network namespace in: a socket of the
    // daemon's, say.
    let name = SocketAddr::from_abstract_name("outside").unwrap();
    let bind = || UnixListener::bind_addr(&name).unwrap();
    let _listener = netns::run_inside(std::os::fd::AsFd::as_fd(&network), bind).unwrap();
    fds.netns = Some(network);
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    let mut expected = vec!["threads 28", "clone3 ENOSYS", "newest ENOSYS", "x32 ENOSYS"];
    expected.extend([
        "unshare EPERM",
        "setns EPERM",
        "mount EPERM",
        "fsopen EPERM",
        "open_tree EPERM",
        "keyctl EPERM",
        "add_key EPERM",
        "request_key EPERM",
        "bpf EPERM",
        "userfaultfd EPERM",
        "perf_event_open EPERM",
        "io_uring_setup EPERM",
        "open_by_handle_at EPERM",
        "kexec_load EPERM",
        "init_module EPERM",
        "acct EPERM",
        "quotactl EPERM",
        "swapon EPERM",
        "syslog EPERM",
    ]);
    #[cfg(target_arch = "x86_64")]
    expected.push("i386 true");
    expected.extend([
        "unix worked",
        "tcp worked",
        "netlink worked",
        "ping worked",
        "raw EPERM",
        "packet EPERM",
        "vsock EAFNOSUPPORT",
        "alg EAFNOSUPPORT",
        "can EAFNOSUPPORT",
    ]);
    expected.extend([
        "core 0 0 1 1",
        "pinged true",
        "ptrace true worked",
        "own-abstract true",
    ]);
    // SAFETY: asks for the version; there is no pointer.
    let landlock = unsafe { libc::syscall(LANDLOCK_CREATE_RULESET, 0, 0, 1) };
    if landlock >= 6 {
        expected.push("outside-abstract Some(Some(1))");
    }
    for line in expected {
        assert!(ran.out.lines().any(|l| l == line), "{line}: {ran:?}");
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_crash_leaves_no_core_dump() {
    let place = Place::new();
    let spawner = place.start().await;
    let upper = place.path("core-upper");
    let script = "cd /tmp; ulimit -c unlimited; sh -c 'kill -SEGV $$'; echo $?; ls /tmp";
    let ran = place.run(&spawner, "core", script).await;
    assert_eq!(ran.out, "139\n", "{ran:?}");
    assert_eq!(
        std::fs::read_dir(upper).unwrap().count(),
        3,
        "/dev, /proc and /sys"
    );
    place.finish(spawner).await;
}
