//! `wharf docker ...`: a docker-compatible command line over the operator's socket, as wrangler calls it (contract: wrangler, section 4).
//!
//! Owns: argument parsing and output formats of the docker commands it has. Must not: touch the stores; everything goes through the Docker API.

/// Runs a docker command line (without the program's name); returns the exit code. `host` is the default for `--host`/DOCKER_HOST.
pub async fn main(args: Vec<String>, host: String) -> i32 {
    let _ = (args, host);
    todo!()
}
