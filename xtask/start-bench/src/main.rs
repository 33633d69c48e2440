//! Measures container starts: Wharf at three levels beside dockerd, podman, runc, crun and a bare fork and exec. `cargo xtask bench start`
//! prepares all that this needs (packages, images, a node with the Worker deployed) and runs it in a mount namespace of its own.
//!
//! Owns: the measuring, the others' daemons, and the report. Must not: be run by hand; its arguments are xtask's matter. BENCHMARKS.md says how
//! and what is measured.

mod class;
mod daemons;
mod growth;
mod http;
mod interrupt;
mod load;
mod look;
mod measure;
mod place;
mod report;
mod runtime;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;

use self::class::Class;
use self::daemons::{Docker, Podman};
use self::measure::Subject;
use self::place::Place;
use self::report::{Machine, Report};
use self::runtime::ahead::{Ahead, ready};
use self::runtime::api::ApiRuntime;
use self::runtime::engine::{EngineRuntime, SPAWNER_VERB, World};
use self::runtime::floor::Floor;
use self::runtime::oci::{self, AGENT_VERB, Oci};
use self::runtime::preload::Preloaded;
use self::runtime::whole::{Node, Whole};

#[derive(Debug, Parser)]
struct Args {
    /// name=rootfs.tar=["program",...]
    #[arg(long = "class", required = true)]
    classes: Vec<Class>,
    /// The node's gateway; without a node, the engine is measured alone, beside the floor
    #[arg(long, requires_all = ["host", "data_dir"])]
    gateway: Option<SocketAddr>,
    /// The Worker's host name
    #[arg(long, default_value_t)]
    host: String,
    /// The node's data directory
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Starts of each kind
    #[arg(long)]
    n: usize,
    /// Starts of each kind where one takes a quarter of a second
    #[arg(long)]
    n_slow: usize,
    /// Turns in which the starts are made
    #[arg(long)]
    rounds: usize,
    /// Cold starts at once
    #[arg(long, default_value_t)]
    burst: usize,
    /// Idle containers
    #[arg(long, default_value_t)]
    idle: usize,
    /// Seconds of starts at a rate
    #[arg(long, default_value_t)]
    sustained: u64,
    /// Starts of each kind where there is more of something
    #[arg(long, default_value_t)]
    growth: usize,
    /// A program that deploys the same Worker with instances started ahead
    #[arg(long)]
    deploy_ahead: Option<PathBuf>,
    /// That Worker's host name
    #[arg(long, default_value_t)]
    ahead_host: String,
    /// A program that deploys a Worker whose images have `LABEL wharf.preload`
    #[arg(long)]
    deploy_preload: Option<PathBuf>,
    /// That Worker's host name
    #[arg(long, default_value_t)]
    preload_host: String,
    /// Its classes
    #[arg(long = "preload-class")]
    preload_classes: Vec<String>,
    /// What is measured
    #[arg(long)]
    commit: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The file in whose table its classes are replaced
    #[arg(long)]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    // The spawner must stay single-threaded and small: decided before anything else runs.
    if args.get(1).map(String::as_str) == Some(SPAWNER_VERB) {
        return wharf_sandbox::spawner::run(&args[2..]);
    }
    let result = match args.get(1).map(String::as_str) {
        Some(AGENT_VERB) => oci::agent(&args[2..]),
        _ => run(&Args::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    interrupt::install()?;
    let mut machine = Machine::look(&args.commit)?;
    let place = Arc::new(Place::new()?);
    for class in &args.classes {
        interrupt::check()?;
        place.unpack(class)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let runtime = Arc::new(runtime);
    let world = Ended(
        runtime.clone(),
        runtime.block_on(World::start(&place, &args.classes))?,
    );
    let node = args.gateway.zip(args.data_dir.as_ref());
    let node = node.map(|(gateway, data_dir)| Node {
        gateway,
        host: args.host.clone(),
        api: http::Api(data_dir.join("run/wharf.sock")),
        data_dir: data_dir.display().to_string(),
    });
    let n = args.n;
    let mut subjects = vec![
        Subject::new(Floor::new(place.clone())?, n),
        Subject::new(EngineRuntime::new(runtime.clone(), world.1.clone()), n),
    ];
    // Before the first request: what a deployed application costs.
    let sleeping = node.as_ref().map(|node| load::sleeping(node).into());
    interrupt::check()?;
    let others = match &node {
        Some(node) => Some(add_others(args, node, &place, &mut machine, &mut subjects)?),
        None => None,
    };

    let mut rows = Vec::new();
    for class in &args.classes {
        let modes = &measure::Mode::ALL;
        rows.extend(measure::class(class, &mut subjects, args.rounds, modes)?);
    }
    // Their memory and their threads are no part of what follows.
    drop(subjects);
    drop(others);

    let of_static = args.classes.iter().find(|class| class.name == "static");
    let with_node = |n: usize| node.as_ref().filter(|_| n > 0).zip(of_static);
    let burst =
        with_node(args.burst).map(|(node, class)| load::burst(node, class, args.burst).into());
    interrupt::check()?;
    let density =
        with_node(args.idle).map(|(node, class)| load::density(node, class, args.idle).into());
    interrupt::check()?;
    let sustained = of_static.filter(|_| args.sustained > 0).map(|class| {
        let sustained = load::sustained(&world.1, &place, class, 500, args.sustained);
        runtime.block_on(sustained).into()
    });
    interrupt::check()?;
    let growth = of_static.filter(|_| args.growth > 0);
    let growth =
        growth.map(|class| growth::growth(&runtime, &world.1, &place, class, args.growth).into());
    interrupt::check()?;
    let ahead = match node.as_ref().zip(args.deploy_ahead.as_ref()) {
        Some((node, deploy)) => {
            let (of_it, memory) = ahead(args, node, deploy)?;
            rows.extend(of_it);
            memory
        }
        None => Vec::new(),
    };
    if let Some((node, deploy)) = node.as_ref().zip(args.deploy_preload.as_ref()) {
        rows.extend(preloaded(args, node, deploy)?);
    }
    machine.load_after = report::load();
    let report = Report {
        machine,
        rows,
        sleeping,
        burst,
        density,
        sustained,
        growth,
        ahead,
    };
    // Other runtimes may be missing here; a row of Wharf's own without a figure is a fault.
    let unmeasured = report.rows.iter().find_map(|row| {
        let own = row.runtime.starts_with("wharf") && row.p50_ms.is_none();
        let reason = row.reason.as_deref().unwrap_or("no start was measured");
        own.then(|| format!("{} {} {}: {reason}", row.class, row.level, row.runtime))
    });
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", table::table(std::slice::from_ref(&report)));
    }
    if let Some(path) = &args.write {
        table::write(report, path)?;
        eprintln!("written to {}", path.display());
    }
    match unmeasured {
        Some(row) => anyhow::bail!("nothing was measured of {row}"),
        None => Ok(()),
    }
}

/// Whatever is measured beside the engine and the floor: others' runtimes and daemons, and the node.
fn add_others(
    args: &Args,
    node: &Node,
    place: &Arc<Place>,
    machine: &mut Machine,
    subjects: &mut Vec<Subject>,
) -> Result<(Result<Docker>, Result<Podman>)> {
    eprintln!("others' daemons and images");
    let docker = Docker::start(place, &args.classes);
    interrupt::check()?;
    let podman = Podman::start(place, &args.classes);
    interrupt::check()?;
    if let Ok(docker) = &docker {
        let version = machine.versions.entry("dockerd".to_owned()).or_default();
        version.push_str(&format!("; storage driver {}", docker.driver()));
    }
    let (n, slow) = (args.n, args.n_slow);
    let cgroup = place.cgroup();
    let others = |name, api: &http::Api| ApiRuntime::new(name, api.clone(), Some(cgroup.clone()));
    for name in ["runc", "crun"] {
        subjects.push(match Oci::new(name, place.clone()) {
            Ok(oci) => Subject::new(oci, n),
            Err(error) => Subject::broken("engine", name, n, &error),
        });
    }
    subjects.push(Subject::new(
        ApiRuntime::new("wharf", node.api.clone(), None),
        n,
    ));
    subjects.push(match &docker {
        Ok(docker) => Subject::new(others("dockerd", &docker.api), slow),
        Err(error) => Subject::broken("docker-api", "dockerd", slow, error),
    });
    subjects.push(match &podman {
        Ok(podman) => Subject::new(others("podman", &podman.api), slow),
        Err(error) => Subject::broken("docker-api", "podman", slow, error),
    });
    subjects.push(Subject::new(Whole::new(node.clone()), n));
    Ok((docker, podman))
}

/// Starts for which something is ready, after everything else: what waits in memory is no part of the other figures.
fn ahead(
    args: &Args,
    node: &Node,
    deploy: &Path,
) -> Result<(Vec<report::Row>, Vec<report::Ahead>)> {
    eprintln!("instances started ahead");
    run_deploy(deploy)?;
    let node = Node {
        host: args.ahead_host.clone(),
        ..node.clone()
    };
    let (mut rows, mut memory) = (Vec::new(), Vec::new());
    for class in &args.classes {
        interrupt::check()?;
        let figures = ready(&node, class).map(|it| report::Standby {
            kib: it["memory_bytes"].as_u64().unwrap_or(0)
                / it["ready"].as_u64().unwrap_or(1).max(1)
                / 1024,
        });
        memory.push(report::Ahead {
            class: class.name.clone(),
            memory: figures.into(),
        });
        rows.extend(isolated(args, class, Ahead::new(node.clone()))?);
    }
    Ok((rows, memory))
}

/// Starts of interpreters whose imports were done ahead, last: these images are held in memory, too.
fn preloaded(args: &Args, node: &Node, deploy: &Path) -> Result<Vec<report::Row>> {
    eprintln!("imports done ahead");
    run_deploy(deploy)?;
    let node = Node {
        host: args.preload_host.clone(),
        ..node.clone()
    };
    let mut rows = Vec::new();
    let has = |class: &&Class| args.preload_classes.contains(&class.name);
    for class in args.classes.iter().filter(has) {
        rows.extend(isolated(args, class, Preloaded::new(node.clone()))?);
    }
    Ok(rows)
}

/// Isolated starts of one runtime alone.
fn isolated(
    args: &Args,
    class: &Class,
    runtime: impl runtime::Runtime + 'static,
) -> Result<Vec<report::Row>> {
    let mut subjects = [Subject::new(runtime, args.n)];
    let modes = [measure::Mode::Isolated];
    measure::class(class, &mut subjects, args.rounds, &modes)
}

fn run_deploy(program: &Path) -> Result<()> {
    let deployed = std::process::Command::new(program).output()?;
    if !deployed.status.success() {
        anyhow::bail!(
            "{}: {}{}",
            program.display(),
            String::from_utf8_lossy(&deployed.stdout),
            String::from_utf8_lossy(&deployed.stderr)
        );
    }
    Ok(())
}

/// Ends the engine, whatever happened.
struct Ended(Arc<tokio::runtime::Runtime>, World);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Err(error) = self.0.block_on(self.1.end()) {
            eprintln!("the engine's end: {error:#}");
        }
    }
}
