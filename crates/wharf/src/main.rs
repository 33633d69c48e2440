//! The `wharf` executable: command line, configuration, and the daemon that wires the other crates together.
//!
//! Owns: what each verb prints, start and stop of the daemon. Must not: hold logic that a library crate could have.

mod cli;
mod config;
mod daemon;

use std::process::ExitCode;

/// First argument under which this executable becomes the spawner.
pub(crate) const SPAWNER_VERB: &str = "__spawner";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    // These must stay single-threaded and small: decided before anything else runs.
    if args.get(1).map(String::as_str) == Some(SPAWNER_VERB) {
        return wharf_sandbox::spawner::run(&args[2..]);
    }
    if args.get(1).map(String::as_str) == Some(wharf_sandbox::microvm::VERB) {
        return wharf_microvm::run(&args[2..]);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("wharf: the async runtime does not start: {e}");
            return ExitCode::FAILURE;
        }
    };
    // wrangler runs WRANGLER_DOCKER_BIN, a link named `docker` to this executable.
    let called_as = args
        .first()
        .map(|a| a.rsplit('/').next().unwrap_or(a).to_owned());
    let code = if called_as.as_deref() == Some("docker") {
        runtime.block_on(cli::docker(
            args[1..].to_vec(),
            cli::socket_beside_executable(),
        ))
    } else {
        runtime.block_on(cli::main())
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
