//! The agent that stands for one process inside a container's machine.
//!
//! Owns: the connection with the container's main agent, and the raw mode of its terminal. Must
//! not: hold any power: it only relays.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::fs::FileType;
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use tokio::net::UnixStream;
use wharf_sandbox::microvm::{ExecRequest, inherited};

use crate::outside::{End, Outside, refuse, terminal_size};
use crate::wire::{ToGuest, send};

/// Exit code when the machine is gone: as if killed, which the process is.
const LOST: u8 = 137;

/// Where the main agent listens for these.
pub(crate) const SOCKET: &str = "/state/exec";

pub(crate) fn run() -> ExitCode {
    let (report, request) = match inherited() {
        Ok(fds) => fds,
        Err(error) => {
            eprintln!("wharf: {error}");
            return ExitCode::from(125);
        }
    };
    let mut report = Some(report);
    match serve(&mut report, request) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if let Some(report) = &report {
                let message = format!("the container's virtual machine: {error:#}");
                refuse(report, 125, &message);
            }
            ExitCode::from(LOST)
        }
    }
}

/// The exit code of the process.
fn serve(report: &mut Option<OwnedFd>, request: OwnedFd) -> Result<u8> {
    let mut text = Vec::new();
    std::fs::File::from(request)
        .read_to_end(&mut text)
        .context("reading the request")?;
    let request: ExecRequest = serde_json::from_slice(&text).context("reading the request")?;
    let stdin = std::io::stdin();
    let terminal = isatty(&stdin);
    if terminal {
        let mut attributes = tcgetattr(&stdin).context("reading the terminal's mode")?;
        attributes.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &attributes)
            .context("setting the terminal's mode")?;
    }
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&stdin)?.st_mode);
    let has_input = terminal || kind != FileType::CharacterDevice;
    let opening = ToGuest::Exec {
        request,
        stdin: has_input,
        terminal: terminal.then(terminal_size).flatten(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let end = runtime.block_on(async {
        let mut stream = UnixStream::connect(SOCKET)
            .await
            .context("asking the container's agent")?;
        send(&mut stream, &opening).await?;
        let (from, to) = stream.into_split();
        let outside = Outside {
            report,
            stdin: has_input,
            terminal,
        };
        Ok::<_, anyhow::Error>(outside.run(from, to).await?)
    })?;
    // A thread may still wait for input that will not come.
    runtime.shutdown_background();
    Ok(match end {
        End::Ended(words) => u8::try_from(words.exit.code).unwrap_or(255),
        End::Refused(code) => code,
    })
}
