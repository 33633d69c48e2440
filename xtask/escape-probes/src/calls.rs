//! Calls that a container has no business with. Their arguments are wrong, so that the kernel, where it is asked, refuses them for that reason.

use crate::Probe;
use crate::sys::{attempt, call, errno, text};

const BAD_POINTER: usize = 1;

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("bpf", |_| attempt(libc::SYS_bpf, &[5, BAD_POINTER, 48])),
    ("perf-event-open", |_| {
        attempt(libc::SYS_perf_event_open, &[BAD_POINTER])
    }),
    ("userfaultfd", |_| {
        attempt(libc::SYS_userfaultfd, &[usize::MAX])
    }),
    ("io-uring", |_| {
        attempt(libc::SYS_io_uring_setup, &[1, BAD_POINTER])
    }),
    ("kexec-load", |_| {
        attempt(libc::SYS_kexec_load, &[0, 1000, BAD_POINTER, 0])
    }),
    ("init-module", |_| {
        attempt(libc::SYS_init_module, &[BAD_POINTER, 64, BAD_POINTER])
    }),
    ("swapon", |_| {
        attempt(libc::SYS_swapon, &[text("/no/such/file"), 0])
    }),
    ("swapoff", |_| {
        attempt(libc::SYS_swapoff, &[text("/no/such/file")])
    }),
    ("reboot", |_| attempt(libc::SYS_reboot, &[0, 0, 0, 0])),
    ("clock-settime", |_| {
        let bad: [i64; 2] = [0, -1];
        attempt(libc::SYS_clock_settime, &[0, &raw const bad as usize])
    }),
    ("settimeofday", |_| {
        let bad: [i64; 2] = [0, -1];
        attempt(libc::SYS_settimeofday, &[&raw const bad as usize, 0])
    }),
    ("adjtimex", |_| adjust()),
    ("syslog", |_| attempt(libc::SYS_syslog, &[10])),
    ("acct", |_| {
        attempt(libc::SYS_acct, &[text("/no/such/file")])
    }),
    ("quotactl", |_| {
        attempt(
            libc::SYS_quotactl,
            &[0xff << 8, text("/no/such/file"), 0, 0],
        )
    }),
    ("vhangup", |_| attempt(libc::SYS_vhangup, &[])),
    ("fanotify", |_| attempt(libc::SYS_fanotify_init, &[0, 0])),
    ("mbind", |_| attempt(libc::SYS_mbind, &[0, 0, 100, 0, 0, 0])),
    ("move-pages", |_| {
        attempt(libc::SYS_move_pages, &[1, 0, 0, 0, 0, 0])
    }),
    ("kcmp", |_| {
        let own = std::process::id() as usize;
        attempt(libc::SYS_kcmp, &[own, own, 1, 0, 0])
    }),
    ("personality", |_| {
        attempt(
            libc::SYS_personality,
            &[0x0040_0000 /* ADDR_NO_RANDOMIZE */],
        )
    }),
    ("ioperm", |_| attempt(libc::SYS_ioperm, &[0x80, 1, 1])),
    ("open-by-handle", |_| shocker()),
    ("i386-door", |_| i386()),
    ("type-into-terminal", |_| {
        let byte = b'x';
        attempt(
            libc::SYS_ioctl,
            &[0, 0x5412 /* TIOCSTI */, &raw const byte as usize],
        )
    }),
    ("clone3", |_| attempt(libc::SYS_clone3, &[BAD_POINTER, 64])),
];

/// Sets the clock's status bits to what they are.
fn adjust() -> String {
    const STATUS: u32 = 0x10;
    // SAFETY: all zeros is a valid one, which only asks.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    if let Err(number) = call(libc::SYS_adjtimex, &[&raw mut time as usize]) {
        return format!("reading: {}", errno(number));
    }
    time.modes = STATUS;
    attempt(libc::SYS_adjtimex, &[&raw mut time as usize])
}

/// Opens a file by a handle, which passes by every directory on the way (the "shocker" of 2014).
fn shocker() -> String {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let mut mount = 0i32;
    let at = &raw mut handle as usize;
    let cwd = libc::AT_FDCWD as isize as usize;
    let named = call(
        libc::SYS_name_to_handle_at,
        &[cwd, text("/dev/shm"), at, &raw mut mount as usize, 0],
    );
    if let Err(number) = named {
        return format!("name_to_handle_at: {}", errno(number));
    }
    // On a file system of the container's own: what is asked is whether the call is there.
    let below = call(
        libc::SYS_openat,
        &[cwd, text("/dev/shm"), libc::O_RDONLY as usize, 0],
    );
    let below = below.unwrap_or(-1) as usize;
    attempt(
        libc::SYS_open_by_handle_at,
        &[below, at, libc::O_RDONLY as usize],
    )
}

#[cfg(target_arch = "x86_64")]
fn i386() -> String {
    let result: i64;
    // SAFETY: getpid takes nothing; `int 0x80` keeps all registers but those named.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") 20i64 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    match result as i32 {
        number if number < 0 => errno(-number),
        _ => "worked".to_owned(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn i386() -> String {
    "ENOSYS".to_owned()
}
