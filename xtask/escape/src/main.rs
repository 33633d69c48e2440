//! The escape suite: hostile programs in containers, and the same behind walls that were taken down. `cargo xtask escape` builds and runs it.
//!
//! Owns: what is tried, what must be seen, and the verdict. Must not: run outside namespaces of its own: what it weakens, and what it calls "the
//! host" (network, processes, host name, shared memory, mounts), is made for it and goes with it.
//!
//! ```text
//! escape ARGS -> unshare (pid, net, ipc, uts, mount) -> escape --program PATH ARGS -> spawners: escape --spawner WALLS ... (one for each set of walls)
//! ```
//! A probe is run twice: *held*, behind the walls of a class, where it must see what is expected and the host must stay as it is; and *weakened*, where
//! the harm must happen (or, where it would be the machine's, the call must get past the wall to the kernel). A probe that is never seen to succeed
//! could not fail either.

mod archives;
mod builds;
mod case;
mod class;
mod host;
mod kernel;
mod limits;
mod network;
mod node;
mod processes;
mod program;
mod report;
mod world;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use self::case::{Case, How, Side};
use self::class::Class;
use self::report::Row;
use self::world::World;

#[derive(Debug, Parser)]
struct Args {
    /// The isolation class
    #[arg(long, value_enum, default_value = "namespace")]
    class: Class,
    /// Only probes whose names contain this
    #[arg(long)]
    probe: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The hostile program; set when it runs in namespaces of its own
    #[arg(long, hide = true)]
    program: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        // The spawner must stay single-threaded and small: decided before anything else runs.
        Some("--spawner") => return world::spawner(&args[2..]),
        // An engine's: started with nothing but what the sandbox appends, and no wall down.
        Some(socket) if socket.ends_with("spawner.sock") => {
            return wharf_sandbox::spawner::run(&args[1..]);
        }
        // What runs virtual machines, and runs in them.
        Some(wharf_sandbox::microvm::VERB) => return wharf_microvm::run(&args[2..]),
        // By /proc/self/exe of a container: see `processes`.
        Some("--own-file") => return processes::own_file(),
        _ => {}
    }
    let parsed = Args::parse();
    let result = match &parsed.program {
        Some(program) => run(&parsed, program),
        None => enter(&parsed, &args[1..]),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Becomes this program in namespaces of its own. Whatever ends it ends all that it started.
fn enter(parsed: &Args, args: &[String]) -> Result<bool> {
    if let Err(reason) = parsed.class.available() {
        report::unavailable(parsed.class, &reason, parsed.json);
        return Ok(false);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the escape suite makes namespaces, mounts and cgroups: run it as root");
    }
    let error = Command::new("unshare")
        .args([
            "--fork",
            "--pid",
            "--mount",
            "--mount-proc",
            "--net",
            "--ipc",
            "--uts",
        ])
        .args(["--kill-child=KILL", "--"])
        .arg(std::env::current_exe()?)
        .arg("--program")
        .arg(program::build()?)
        .args(args)
        .exec();
    Err(error).context("unshare (of util-linux)")
}

fn run(args: &Args, program: &Path) -> Result<bool> {
    let wanted = |case: &Case| {
        args.probe
            .as_ref()
            .is_none_or(|text| case.name.contains(text))
    };
    let cases: Vec<Case> = all().into_iter().filter(wanted).collect();
    if cases.is_empty() {
        bail!(
            "no probe has {:?} in its name",
            args.probe.as_deref().unwrap_or_default()
        );
    }
    host::set_up()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let rows = runtime.block_on(async {
        let world = World::new(args.class, program).await?;
        let rows = tokio::select! {
            rows = all_rows(&world, &cases) => rows,
            interrupted = interruption() => interrupted,
        };
        world.end().await?;
        rows
    })?;
    report::print(&rows, args.json)?;
    Ok(rows.iter().all(Row::is_good))
}

/// As the first process of its PID namespace it ends by no signal that it does not wait for.
async fn interruption<T>() -> Result<T> {
    let mut end = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = end.recv() => {}
    }
    bail!("interrupted")
}

fn all() -> Vec<Case> {
    let mut all = kernel::cases();
    all.extend(processes::cases());
    all.extend(limits::cases());
    all.extend(network::cases());
    all.extend(archives::cases());
    all.extend(builds::cases());
    all.extend(node::cases());
    all
}

/// First all behind the walls, with the host looked at after each; then all weakened.
async fn all_rows(world: &World, cases: &[Case]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let before = host::picture(world)?;
    for case in cases {
        if let Some(reason) = &case.skipped {
            rows.push(Row::skipped(world.class, case, reason));
            continue;
        }
        let start = Instant::now();
        let seen = one(world, case, Side::Held).await;
        let took = start.elapsed();
        let after = host::picture(world)?;
        let changed = host::difference(&before, &after);
        rows.push(Row::held(world.class, case, seen, changed, took));
    }
    for (row, case) in rows.iter_mut().zip(cases) {
        // What is taken down is this class's alone.
        if world.class == Class::Namespace && case.unshown.is_none() && case.skipped.is_none() {
            let start = Instant::now();
            let seen = one(world, case, Side::Weak).await;
            row.weakened(seen, case.lacking, start.elapsed());
        }
    }
    Ok(rows)
}

async fn one(world: &World, case: &Case, side: Side) -> String {
    let seen = match &case.how {
        How::Inside(inside) => world.inside(case.name, inside, side).await,
        How::Outside(function) => function(world, side).await,
    };
    seen.unwrap_or_else(|error| format!("error: {error:#}"))
}
