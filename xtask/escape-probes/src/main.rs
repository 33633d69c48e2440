//! The hostile program of the escape suite: `probe NAME [ARGUMENT...]` tries one thing that a container must not be able to do and prints one line of JSON
//! with what happened, `{"probe":NAME,"seen":WORD}`: the name of an error, or what was got. It judges nothing; `xtask/escape` does.
//!
//! Unsafe code is this program's trade (the calls that it makes have no safe wrapper, for good reason), and it is no part of the product: nothing of
//! Wharf links it. Each module's calls get numbers, or pointers to variables that outlive the call.
//!
//! Must not: harm the machine where it succeeds. It passes arguments that the kernel refuses after its check of rights, writes back what it
//! read, or takes no more than a fixed amount.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    reason = "the whole program is raw system calls; see above"
)]

mod calls;
mod devices;
mod files;
mod floods;
mod holds;
mod keys;
mod mounts;
mod namespaces;
mod netlink;
mod privileges;
mod processes;
mod reach;
mod sockets;
mod sys;
mod ways_out;

use std::process::ExitCode;

/// A probe: gets the arguments behind its name, returns what it saw.
type Probe = fn(&[String]) -> String;

const GROUPS: &[&[(&str, Probe)]] = &[
    mounts::PROBES,
    files::PROBES,
    processes::PROBES,
    keys::PROBES,
    calls::PROBES,
    namespaces::PROBES,
    sockets::PROBES,
    netlink::PROBES,
    devices::PROBES,
    privileges::PROBES,
    ways_out::PROBES,
    floods::PROBES,
    reach::PROBES,
    holds::PROBES,
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let Some(name) = args.get(1) else {
        eprintln!("probe NAME [ARGUMENT...]");
        return ExitCode::from(2);
    };
    let found = GROUPS.iter().copied().flatten();
    let Some((_, probe)) = found.into_iter().find(|(known, _)| known == name) else {
        eprintln!("no probe {name:?}");
        return ExitCode::from(2);
    };
    let seen = probe(&args[2..]);
    println!("{}", serde_json::json!({"probe": name, "seen": seen}));
    ExitCode::SUCCESS
}
