//! The executable behind tests of virtual machines: the spawner, and what runs machines and runs in them.

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((verb, rest)) if verb == wharf_sandbox::microvm::VERB => wharf_microvm::run(rest),
        _ => wharf_sandbox::spawner::run(&args),
    }
}
