//! Taking without end what the machine has for all. The first argument is where a probe itself stops.

use std::fs::{self, File, OpenOptions};
use std::io::Write;

use crate::Probe;
use crate::sys::{call, errno, number};

const MIB: usize = 1 << 20;

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("fork-bomb", |args| {
        counted(number(args, 0), || match unsafe { libc::fork() } {
            0 => loop {
                // Ends with its container.
                unsafe { libc::pause() };
            },
            -1 => Err(last()),
            _ => Ok(()),
        })
    }),
    ("thread-bomb", |args| {
        counted(number(args, 0), || {
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(|| {
                    loop {
                        std::thread::park();
                    }
                })
                .map(drop)
                .map_err(|e| e.raw_os_error().unwrap_or(0))
        })
    }),
    ("memory-bomb", |args| {
        let mut kept = Vec::new();
        counted(number(args, 0), || {
            // Touched, so that it is there.
            kept.push(vec![1u8; MIB]);
            Ok(())
        })
    }),
    ("shm-bomb", |args| {
        write_mib("/dev/shm/file", number(args, 0))
    }),
    ("memfd-bomb", |args| {
        let fd = unsafe { libc::memfd_create(c"x".as_ptr(), 0) };
        write_mib(&format!("/proc/self/fd/{fd}"), number(args, 0))
    }),
    ("page-cache", |args| {
        let written = write_mib("/tmp/file", number(args, 0));
        if written != "all of it" {
            return written;
        }
        let base = "/sys/fs/cgroup";
        let files = ["memory/memory.max_usage_in_bytes", "memory.peak"];
        let most = files
            .iter()
            .find_map(|f| fs::read_to_string(format!("{base}/{f}")).ok());
        let Some(most) = most.and_then(|most| most.trim().parse::<usize>().ok()) else {
            return "no figure".to_owned();
        };
        let own = number(args, 1) * MIB;
        if most <= own {
            "within the limit"
        } else {
            "beyond"
        }
        .to_owned()
    }),
    ("socket-buffers", |args| {
        let mut kept = Vec::new();
        let block = vec![0u8; 64 << 10];
        let mut taken = 0;
        let wanted = number(args, 0) * MIB;
        while taken < wanted {
            let Ok((mut a, b)) = std::os::unix::net::UnixStream::pair() else {
                return format!("stopped: {}", errno(last()));
            };
            let _ = a.set_nonblocking(true);
            while let Ok(n) = a.write(&block) {
                taken += n;
            }
            kept.push((a, b));
        }
        "all of it".to_owned()
    }),
    ("pipe-buffers", |args| {
        let mut kept = Vec::new();
        let block = vec![0u8; 64 << 10];
        let mut taken = 0;
        while taken < number(args, 0) * MIB {
            let mut ends = [0; 2];
            if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) } != 0 {
                return format!("stopped: {}", errno(last()));
            }
            unsafe { libc::fcntl(ends[1], libc::F_SETPIPE_SZ, 1 << 20) };
            while let Ok(n) = call(
                libc::SYS_write,
                &[ends[1] as usize, block.as_ptr() as usize, block.len()],
            ) {
                taken += n as usize;
            }
            kept.push(ends);
        }
        "all of it".to_owned()
    }),
    ("fd-flood", |args| {
        let mut kept = Vec::new();
        counted(number(args, 0), || {
            let file = File::open("/proc/self/exe").map_err(|e| e.raw_os_error().unwrap_or(0))?;
            kept.push(file);
            Ok(())
        })
    }),
    ("inode-flood", |args| {
        let _ = fs::create_dir("/tmp");
        let mut n = 0;
        counted(number(args, 0), || {
            n += 1;
            let made = File::create(format!("/tmp/{n}"));
            made.map(drop).map_err(|e| e.raw_os_error().unwrap_or(0))
        })
    }),
    ("disk-fill", |args| write_mib("/tmp/file", number(args, 0))),
    ("log-flood", |args| {
        let line = vec![b'x'; 64 << 10];
        let mut out = std::io::stdout();
        for _ in 0..number(args, 0) * 16 {
            if out
                .write_all(&line)
                .and_then(|()| out.write_all(b"\n"))
                .is_err()
            {
                return "refused".to_owned();
            }
        }
        "written".to_owned()
    }),
    ("pty-flood", |args| {
        let mut kept = Vec::new();
        counted(number(args, 0), || {
            let opened = OpenOptions::new().read(true).write(true).open("/dev/ptmx");
            kept.push(opened.map_err(|e| e.raw_os_error().unwrap_or(0))?);
            Ok(())
        })
    }),
    ("segment-bomb", |args| {
        counted(number(args, 0), || {
            let id = unsafe { libc::shmget(libc::IPC_PRIVATE, MIB, libc::IPC_CREAT | 0o600) };
            if id < 0 {
                return Err(last());
            }
            let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
            if at as isize == -1 {
                return Err(last());
            }
            unsafe { std::ptr::write_bytes(at.cast::<u8>(), 1, MIB) };
            Ok(())
        })
    }),
];

fn last() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Does it so many times, or until it is refused.
fn counted(most: usize, mut once: impl FnMut() -> Result<(), i32>) -> String {
    for _ in 0..most {
        if let Err(number) = once() {
            return format!("stopped: {}", errno(number));
        }
    }
    "all of it".to_owned()
}

fn write_mib(path: &str, mib: usize) -> String {
    let _ = fs::create_dir("/tmp");
    let block = vec![1u8; MIB];
    let mut file = match OpenOptions::new().create(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) => return format!("opening: {}", crate::sys::io_word::<()>(Err(error))),
    };
    let written = counted(mib, || {
        file.write_all(&block)
            .map_err(|e| e.raw_os_error().unwrap_or(0))
    });
    if written == "all of it"
        && let Err(error) = file.sync_all()
    {
        return format!("stopped: {}", errno(error.raw_os_error().unwrap_or(0)));
    }
    written
}
