//! Project tasks: `cargo xtask <verb>`. One module for each verb.

mod base_image;
mod bench;
mod bench_start;
mod conformance;
mod debian;
mod demo;
mod escape;
mod fuzz;
mod guest;
mod guest_kernel;
mod hello;
mod interrupt;
mod node;
mod progress;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Tasks of the Wharf project"
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build, start a node, deploy examples/hello with wrangler, ask it, and stay up until Ctrl-C
    Demo(demo::Options),
    /// Run every check and test
    Test {
        /// Only tests whose names contain one of these; skips formatting and lints
        filter: Vec<String>,
    },
    /// Run the sandbox's tests on Debian's own kernel with cgroup v2 alone, in an emulated machine
    Guest {
        /// Only these programs of tests: files of crates/sandbox/tests without `.rs`, or `wharf_sandbox` for what is beside the code
        only: Vec<String>,
    },
    /// Run a suite that others wrote, from a folder outside the repository
    #[command(subcommand)]
    Conformance(conformance::Suite),
    /// Print figures, each beside the same work done without Wharf
    Bench(bench::Options),
    /// Run hostile programs in containers of an isolation class, and show that each succeeds where its wall is down
    Escape(escape::Options),
    /// Run a fuzz target of fuzz/ for a while
    Fuzz(fuzz::Options),
    /// Install what the other tasks need into target/tools: workerd, wrangler, what the examples import, Debian packages
    Setup,
    /// Make a root filesystem from Debian packages and print its path: a tar for `wharf image import`
    BaseImage {
        /// Which one
        kind: base_image::Kind,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Demo(options) => demo::run(&options),
        Verb::Test { filter } => test::run(&filter),
        Verb::Guest { only } => guest::run_tests(&only),
        Verb::Conformance(suite) => conformance::run(&suite),
        Verb::Bench(options) => bench::run(&options),
        Verb::Escape(options) => escape::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Setup => setup::everything(),
        Verb::BaseImage { kind } => {
            base_image::base_image(kind).map(|path| println!("{}", path.display()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not with Debug: a person is to read what to do, not a backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
