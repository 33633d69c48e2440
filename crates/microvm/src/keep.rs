//! The agent that is a container's first process outside: it runs the machine, and ends as the
//! program in it does.
//!
//! Owns: the machine's programs, which are its children and end with it. Must not: believe the
//! guest anything that matters outside: it connects for it within the container's own network
//! namespace, listens there, and writes what the container says.
//!
//! ```text
//! server of files -> capabilities dropped -> QEMU -> the guest speaks -> the program runs
//!   -> its end is this one's
//! ```

mod machine;
mod network;

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::fd::OwnedFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use wharf_sandbox::microvm::{LastWords, REQUEST, Request, inherited};

use self::machine::Machine;
pub(crate) use self::machine::TAG;
use crate::exec::SOCKET;
use crate::mux::{self, Opener, Side, Stream};
use crate::outside::{End, Outside, refuse};
use crate::wire::{FromGuest, ToGuest, VERSION, receive, send};

/// How long the guest's kernel and agent may take to come up. Emulated, on a busy machine, that is
/// many seconds.
const BOOT: Duration = Duration::from_secs(120);
/// Exit code when the machine has ended before its program: as if killed.
const LOST: u8 = 137;

pub(crate) fn run() -> ExitCode {
    let (report, last_words) = match inherited() {
        Ok(fds) => fds,
        Err(error) => {
            eprintln!("wharf: {error}");
            return ExitCode::from(125);
        }
    };
    let mut report = Some(report);
    match serve(&mut report) {
        Ok(End::Ended(words)) => {
            let code = u8::try_from(words.exit.code).unwrap_or(255);
            if let Err(error) = say(&last_words, &words) {
                eprintln!("wharf: telling how the container ended: {error:#}");
            }
            ExitCode::from(code)
        }
        Ok(End::Refused(code)) => ExitCode::from(code),
        Err(error) => {
            match &report {
                Some(report) => refuse(report, 125, &format!("the virtual machine: {error:#}")),
                // Into the container's own log: it ends for a reason that is none of its own.
                None => eprintln!("wharf: the virtual machine: {error:#}"),
            }
            ExitCode::from(LOST)
        }
    }
}

fn say(to: &OwnedFd, words: &LastWords) -> Result<()> {
    rustix::io::write(to, &serde_json::to_vec(words)?)?;
    Ok(())
}

fn serve(report: &mut Option<OwnedFd>) -> Result<End> {
    let text = std::fs::read(REQUEST).with_context(|| format!("reading {REQUEST}"))?;
    let request: Request = serde_json::from_slice(&text).context("reading the request")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let end = runtime.block_on(run_machine(report, request));
    // A thread may still wait for input that will not come.
    runtime.shutdown_background();
    end
}

async fn run_machine(report: &mut Option<OwnedFd>, request: Request) -> Result<End> {
    let execs = UnixListener::bind(SOCKET).context("listening for processes inside")?;
    let mut machine = Machine::start(&request).await?;
    let link = machine.link().await?;
    let (opener, arrivals) = mux::connect(link, Side::Outside);
    let served = container(report, request, opener, arrivals, execs);
    tokio::select! {
        biased;
        end = served => match end {
            Ok(end) => Ok(end),
            Err(error) => Err(machine.reason(error).await),
        },
        () = machine.ended() => Err(machine.reason(anyhow!("it has ended")).await),
    }
}

async fn container(
    report: &mut Option<OwnedFd>,
    request: Request,
    opener: Opener,
    mut arrivals: mpsc::Receiver<Stream>,
    execs: UnixListener,
) -> Result<End> {
    let mut stream = opener.open().await?;
    let outside = Outside {
        report,
        stdin: request.stdin_pipe,
        terminal: false,
    };
    let version = VERSION;
    send(&mut stream, &ToGuest::Main { version, request }).await?;
    // The guest's first sign of life: it tells its ports.
    let first = tokio::time::timeout(BOOT, arrivals.recv());
    let first = first
        .await
        .map_err(|_| anyhow!("its kernel was not up after {} s", BOOT.as_secs()))?;
    let first = first.context("the connection with it ended")?;
    let (from, to) = tokio::io::split(stream);
    let guests = async {
        let mut next = Some(first);
        while let Some(stream) = next {
            tokio::spawn(answer(stream, opener.clone()));
            next = arrivals.recv().await;
        }
        // The end of the connection is told by the process's stream.
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        end = outside.run(from, to) => Ok(end?),
        error = network::tell_of_ipv6(&opener) => Err(error).context("watching the network's addresses"),
        never = guests => match never {},
        never = processes(&execs, &opener) => match never {},
    }
}

/// What the guest wants.
async fn answer(mut stream: Stream, opener: Opener) {
    let outcome = match receive(&mut stream).await {
        Ok(FromGuest::Connect(address)) => network::connect(stream, address).await,
        Ok(FromGuest::Resolve) => network::resolve(stream).await,
        Ok(FromGuest::Ports) => network::listen(stream, opener).await,
        Err(error) => Err(error),
    };
    // A connection that failed is dropped, which the guest notices.
    drop(outcome);
}

/// Processes inside: what their agents say goes to the guest, and back.
async fn processes(execs: &UnixListener, opener: &Opener) -> Infallible {
    loop {
        match execs.accept().await {
            Ok((agent, _)) => drop(tokio::spawn(relay(agent, opener.clone()))),
            Err(error) => {
                eprintln!("wharf: accepting a process: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn relay(mut agent: UnixStream, opener: Opener) {
    if let Ok(mut stream) = opener.open().await {
        // Either end is noticed by the other.
        let _ = tokio::io::copy_bidirectional(&mut agent, &mut stream).await;
    }
}
