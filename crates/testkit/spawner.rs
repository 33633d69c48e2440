//! The executable behind tests of real processes: nothing but the spawner. Every crate with such tests names this file as a program of its own,
//! because cargo builds no other package's programs for a package's tests.

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    wharf_sandbox::spawner::run(&args)
}
