//! `wharf docker ...`: a docker-compatible command line over the operator's socket, as wrangler calls it (contract: wrangler, section 4).
//!
//! Owns: argument parsing and output formats of the docker commands it has. Must not: touch the stores; everything goes through the Docker API.

mod args;
pub mod client;
mod commands;
pub mod template;

use clap::Parser;

pub use self::client::{Client, ClientError};

/// Runs a docker command line (without the program's name); returns the exit code. `host` is used when neither `--host` nor DOCKER_HOST is given.
pub async fn main(args: Vec<String>, host: String) -> i32 {
    let argv = std::iter::once("docker".to_owned()).chain(args);
    let cli = match args::Docker::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(e) => {
            // clap prints help to stdout and mistakes to stderr; docker's exit code for a bad command line is 125, for help 0.
            let code = if e.use_stderr() { 125 } else { 0 };
            let _ = e.print();
            return code;
        }
    };
    let host = cli.host.clone().filter(|h| !h.is_empty()).unwrap_or(host);
    let run = async {
        let client = Client::new(&host)?;
        commands::run(&client, cli.command).await
    };
    match run.await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("{e}");
            1
        }
    }
}
