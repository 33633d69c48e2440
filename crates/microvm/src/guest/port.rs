//! The way out of the machine: a port of the virtual console, as a socket.
//!
//! Owns: two threads that copy between both. Must not: look at what they copy.
//!
//! The port is no pipe: one read returns what is in one of its buffers, and there may be more
//! without a new event; a write that waits keeps a processor busy until the host has taken it. So
//! it is neither waited for by epoll(7) at edges, nor by blocking calls, but with poll(2).

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::outside::write_all;

/// How long to wait for the device to appear.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of one read or write: the driver takes no more at once.
const CHUNK: usize = 32 << 10;

/// Opens it.
pub(super) async fn open() -> Result<tokio::net::UnixStream> {
    let path = tokio::time::timeout(PATIENCE, find())
        .await
        .context("no port appears")??;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let port = rustix::fs::open(&path, flags, Mode::empty())
        .with_context(|| format!("opening {}", path.display()))?;
    // Until the host has said that somebody is there, a read says that nobody is.
    let connected = async {
        loop {
            let mut fds = [PollFd::new(&port, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default()))?;
            if !fds[0].revents().contains(PollFlags::HUP) {
                return Ok::<_, io::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected)
        .await
        .context("nobody is outside")??;
    let port = Arc::new(port);
    let (ours, theirs) = UnixStream::pair()?;
    let (from, to) = (theirs.try_clone()?, theirs);
    let out = port.clone();
    std::thread::Builder::new()
        .name("port-in".to_owned())
        .spawn(move || {
            let ended = inward(&port, &to);
            // The other side of the socket notices.
            let _ = to.shutdown(Shutdown::Both);
            tell("from", ended);
        })?;
    std::thread::Builder::new()
        .name("port-out".to_owned())
        .spawn(move || tell("to", outward(&from, &out)))?;
    ours.set_nonblocking(true)?;
    Ok(tokio::net::UnixStream::from_std(ours)?)
}

fn tell(direction: &str, ended: io::Result<()>) {
    if let Err(error) = ended {
        eprintln!("wharf: copying {direction} the outside: {error}");
    }
}

/// Waits for the device, which appears when its driver has found it.
async fn find() -> io::Result<PathBuf> {
    loop {
        let entries = fs::read_dir("/dev")?.collect::<io::Result<Vec<_>>>()?;
        let mut paths = entries.iter().map(fs::DirEntry::path);
        if let Some(port) = paths.find(|path| path.to_string_lossy().contains("/vport")) {
            return Ok(port);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn inward(port: &OwnedFd, mut to: &UnixStream) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        match rustix::io::read(port, &mut bytes) {
            // Nobody is outside.
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&bytes[..length])?,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(port, PollFlags::IN)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn outward(mut from: &UnixStream, port: &OwnedFd) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        let length = from.read(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        write_all(port, &bytes[..length])?;
    }
}
