//! The floor: the same program without any isolation, by fork and exec.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::Runtime;
use crate::class::Class;
use crate::http;
use crate::place::Place;

/// Plain processes on the host's loopback. The static class is run as it is; what needs its own libraries through chroot(8).
pub(crate) struct Floor {
    place: Arc<Place>,
    child: Option<Child>,
    /// For the next process; looked for before the time counts.
    address: SocketAddr,
    /// All processes have the same.
    is_fixed: bool,
}

impl Floor {
    pub(crate) fn new(place: Arc<Place>) -> Result<Floor> {
        Ok(Floor {
            place,
            child: None,
            address: free_address()?,
            is_fixed: false,
        })
    }

    /// Beside others of its kind: at a port that the kernel gives to nobody else, which is theirs alone.
    pub(crate) fn beside(place: Arc<Place>, number: u16) -> Floor {
        Floor {
            place,
            child: None,
            address: (Ipv4Addr::LOCALHOST, FIRST_PORT + number).into(),
            is_fixed: true,
        }
    }
}

/// Below the kernel's ports for clients.
const FIRST_PORT: u16 = 21_000;

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Runtime for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn level(&self) -> &'static str {
        "engine"
    }

    fn start(&mut self, class: &Class, _: &str) -> Result<Instant> {
        let root = self.place.rootfs(class);
        let mut command = if class.name == "static" {
            Command::new(root.join(class.argv[0].trim_start_matches('/')))
        } else {
            let mut command = Command::new("chroot");
            command.arg(&root).arg(&class.argv[0]);
            command
        };
        command.args(&class.argv[1..]).env_clear();
        for variable in class.env(self.address.port()) {
            if let Some((key, value)) = variable.split_once('=') {
                command.env(key, value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().context("fork and exec")?);
        http::first_byte_of(self.address)
    }

    fn pid(&mut self) -> Result<i32> {
        let child = self.child.as_ref().context("no process")?;
        Ok(i32::try_from(child.id())?)
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
            if !self.is_fixed {
                self.address = free_address()?;
            }
        }
        Ok(())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the floor's process: {error:#}");
        }
    }
}
