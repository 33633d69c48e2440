//! The other side: what a victim in a container of its own holds while a probe looks for it. Prints its line at once and stays.

use std::io::Write;

use crate::Probe;
use crate::sys::number;

pub(crate) const PROBES: &[(&str, Probe)] = &[
    ("hold-shared-memory", |args| {
        let key = number(args, 0) as i32;
        let id = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o666) };
        hold(if id < 0 { "no" } else { "holds" })
    }),
    ("shared-memory", |args| {
        match unsafe { libc::shmget(number(args, 0) as i32, 0, 0) } {
            -1 => crate::sys::errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            _ => "another's".to_owned(),
        }
    }),
    ("hold-port", |args| {
        let listener = std::net::TcpListener::bind(("0.0.0.0", number(args, 0) as u16));
        match listener {
            Ok(listener) => {
                println!("{{\"probe\":\"hold-port\",\"seen\":\"holds\"}}");
                let _ = std::io::stdout().flush();
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.write_all(b"reached\n");
                }
                "ended".to_owned()
            }
            Err(error) => hold(&error.to_string()),
        }
    }),
    ("swap-links", |_| swap_links()),
    // Looks at every other process that appears, by all that leads out of it, until there was one; for as long as the suite lets it.
    ("watch", |args| {
        println!("{{\"probe\":\"watch\",\"seen\":\"holds\"}}");
        let _ = std::io::stdout().flush();
        watch(args)
    }),
    ("stay", |_| hold("holds")),
];

fn watch(args: &[String]) -> String {
    let below = crate::sys::argument(args, 0).trim_start_matches('/');
    let own = std::process::id().to_string();
    loop {
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == own || name.parse::<u32>().is_err() {
                continue;
            }
            let process = entry.path();
            let mut ways = vec![
                process.join("root").join(below),
                process.join("cwd").join(below),
            ];
            for fd in 3..24 {
                ways.push(
                    process
                        .join("fd")
                        .join(fd.to_string())
                        .join("../".repeat(12))
                        .join(below),
                );
            }
            if ways.iter().any(|way| std::fs::read(way).is_ok()) {
                let _ = std::fs::write("/seen", "seen");
                hold("seen");
            }
        }
    }
}

fn hold(seen: &str) -> String {
    println!("{{\"probe\":\"hold\",\"seen\":\"{seen}\"}}");
    let _ = std::io::stdout().flush();
    loop {
        std::thread::park();
    }
}

/// Changes /race/x between a directory and a link to a directory of the host, and /race/f between a file and a link to a file of the host
/// (/race/secret and /race/outside say where), as fast as it can.
fn swap_links() -> String {
    let outside = std::fs::read_to_string("/race/outside").unwrap_or_default();
    let outside = outside.trim();
    let _ = std::fs::create_dir("/race/dir");
    let _ = std::fs::write("/race/dir/victim", "inside");
    let _ = std::os::unix::fs::symlink(outside, "/race/link");
    let _ = std::fs::rename("/race/dir", "/race/x");
    println!("{{\"probe\":\"hold\",\"seen\":\"holds\"}}");
    let _ = std::io::stdout().flush();
    const EXCHANGE: usize = 2;
    let cwd = libc::AT_FDCWD as isize as usize;
    loop {
        let args = [
            cwd,
            crate::sys::text("/race/x"),
            cwd,
            crate::sys::text("/race/link"),
            EXCHANGE,
        ];
        // overlayfs may refuse an exchange: then by two renames.
        if crate::sys::call(libc::SYS_renameat2, &args).is_err() {
            let _ = std::fs::rename("/race/x", "/race/away");
            let _ = std::fs::rename("/race/link", "/race/x");
            let _ = std::fs::rename("/race/x", "/race/link");
            let _ = std::fs::rename("/race/away", "/race/x");
        }
    }
}
