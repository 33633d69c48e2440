//! The executable behind this crate's tests: nothing but the spawner.

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    wharf_sandbox::spawner::run(&args)
}
