//! `cargo xtask bench start`: prepares packages, images and a node with a Worker, and runs the measuring program (xtask/start-bench) beside it.
//!
//! Owns: what is prepared, and that it is gone afterwards. Must not: measure; that is done by an optimised program.

mod images;
mod project;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::images::Class;
use crate::node::{Node, Profile, build, free_address};
use crate::progress::{run as run_command, step};
use crate::{debian, hello, interrupt, setup};

/// What the bench can be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The static class alone, with few starts
    #[arg(long)]
    quick: bool,
    /// Only the engine beside the floor, without a node and without others' runtimes
    #[arg(long, conflicts_with = "write")]
    engine: bool,
    /// Starts to measure, of each kind
    #[arg(long, default_value_t = FULL)]
    n: usize,
    /// Only these image classes; the figures beyond single starts are of the static one
    #[arg(long, value_delimiter = ',', value_enum)]
    class: Vec<Class>,
    /// Put the table into BENCHMARKS.md, where other classes keep the figures that they have
    #[arg(long)]
    write: bool,
}

/// Starts of each kind, unless told otherwise.
const FULL: usize = 300;

/// How much is measured.
struct Amount {
    n: usize,
    /// For those that take a quarter of a second each.
    n_slow: usize,
    rounds: usize,
    idle: usize,
    sustained_seconds: u64,
    /// 0: not measured.
    growth: usize,
}

impl Amount {
    fn of(options: &Options) -> Amount {
        let n = match (options.quick, options.n) {
            (true, FULL) => 40,
            (_, n) => n.max(1),
        };
        let short = n < FULL;
        Amount {
            n,
            n_slow: if options.quick { n.min(10) } else { n },
            rounds: if short { n.min(5) } else { 10 },
            idle: if short { 50 } else { 300 },
            sustained_seconds: if short { 5 } else { 60 },
            growth: if short { 0 } else { 100 },
        }
    }
}

/// Runs the bench.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !debian::is_root() {
        bail!("the bench must run as root: it starts a node, and containers of others");
    }
    interrupt::install()?;
    let amount = Amount::of(options);
    let classes = match (&options.class[..], options.quick) {
        ([], true) => vec![Class::Static],
        ([], false) => Class::ALL.to_vec(),
        (chosen, _) => chosen.to_vec(),
    };
    if !options.engine
        && let Err(error) = install_others()
    {
        // Their rows will say that they are not there.
        eprintln!("not everything to measure against is there: {error:#}");
    }
    let example = hello::prepare()?;
    let bench = build_bench()?;
    let dir = tempfile::Builder::new()
        .prefix("wharf-bench-start-")
        .tempdir()?;
    let server = example.join("build/server");
    let mut arguments = Vec::new();
    let mut tars = Vec::new();
    for class in &classes {
        interrupt::check()?;
        let rootfs = class.rootfs(dir.path(), &server)?;
        let argv = serde_json::to_string(class.argv())?;
        arguments.push("--class".to_owned());
        arguments.push(format!("{}={}={argv}", class.name(), rootfs.display()));
        tars.push((class, rootfs));
    }
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--commit", commit());
    add("--n", amount.n.to_string());
    add("--n-slow", amount.n_slow.to_string());
    add("--rounds", amount.rounds.to_string());
    if classes.contains(&Class::Static) {
        add("--burst", "100".to_owned());
        add("--idle", amount.idle.to_string());
        add("--sustained", amount.sustained_seconds.to_string());
        add("--growth", amount.growth.to_string());
    }
    if options.write {
        let path = setup::root().join("BENCHMARKS.md");
        add("--write", path.display().to_string());
    }
    if options.json {
        arguments.push("--json".to_owned());
    }
    if options.engine {
        let measured = measure(&bench, &arguments);
        interrupt::check()?;
        return measured;
    }
    let wharf = build(Profile::Release)?;
    let modules = example.join("node_modules");
    let project = project::write(dir.path(), project::NAME, &classes, &modules)?;
    let ahead = project::write(dir.path(), project::AHEAD, &classes, &modules)?;
    let gateway = free_address()?;
    let node = Node::start(&wharf, gateway, free_address()?)?;
    step("images into the node", || {
        for (class, rootfs) in &tars {
            interrupt::check()?;
            run_command(
                node.wharf()
                    .args([
                        "image",
                        "import",
                        &format!("wharf-bench/{}:1", class.name()),
                    ])
                    .arg(rootfs),
            )?;
        }
        Ok(())
    })?;
    node.deploy(&project)?;
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--gateway", gateway.to_string());
    add(
        "--host",
        format!("{}.localhost:{}", project::NAME, gateway.port()),
    );
    add(
        "--ahead-host",
        format!("{}.localhost:{}", project::AHEAD, gateway.port()),
    );
    let deploy = dir.path().join("deploy-ahead");
    node.write_deploy(&ahead, &deploy)?;
    add("--deploy-ahead", deploy.display().to_string());
    let mut with_imports = classes.clone();
    with_imports.retain(|class| class.modules().is_some());
    if !with_imports.is_empty() {
        let project = project::write(dir.path(), project::PRELOAD, &with_imports, &modules)?;
        let deploy = dir.path().join("deploy-preload");
        node.write_deploy(&project, &deploy)?;
        add("--deploy-preload", deploy.display().to_string());
        add(
            "--preload-host",
            format!("{}.localhost:{}", project::PRELOAD, gateway.port()),
        );
        for class in &with_imports {
            add("--preload-class", class.name().to_owned());
        }
    }
    add("--data-dir", node.data_dir().display().to_string());
    let measured = measure(&bench, &arguments);
    interrupt::check()?;
    measured.with_context(|| format!("the node said:\n{}", node.log()))
}

/// Packages to measure against. Their services are not started by the installation: the bench runs daemons of its own.
fn install_others() -> Result<()> {
    let packages = [
        debian::DOCKER,
        debian::PODMAN,
        debian::CONTAINERS_COMMON,
        debian::RUNC,
        debian::CRUN,
    ];
    if debian::are_there(&packages) {
        return Ok(());
    }
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(policy, std::fs::Permissions::from_mode(0o755))?;
    }
    let installed = debian::install(&packages);
    if ours {
        std::fs::remove_file(policy)?;
    }
    installed
}

/// Git's short name of what is built, with `+` for changed files; `?` where there is no Git.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(setup::root())
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = || git(&["status", "--porcelain", "--untracked-files=no"]);
    match git(&["rev-parse", "--short", "HEAD"]) {
        Some(name) if changed().is_some_and(|files| files.is_empty()) => name,
        Some(name) => format!("{name}+"),
        None => "?".to_owned(),
    }
}

fn build_bench() -> Result<PathBuf> {
    step("building the measuring program", || {
        run_command(
            setup::cargo()
                .args(["build", "--release", "--package", "start-bench"])
                .current_dir(setup::root()),
        )
    })?;
    interrupt::check()?;
    Ok(setup::root().join("target/release/start-bench"))
}

/// Runs it in a mount namespace of its own, with a /run of its own: whatever others mount and leave there goes with it.
fn measure(program: &Path, arguments: &[String]) -> Result<()> {
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-c"])
        .arg("mount -t tmpfs -o mode=755 tmpfs /run && exec \"$@\"")
        .arg("sh")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        // Ctrl-C reaches this program, which passes it on and waits for the end.
        .process_group(0)
        .spawn()
        .context("unshare")?;
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt::happened() && !told {
            told = true;
            run_command(Command::new("kill").arg("-INT").arg(child.id().to_string()))?;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("the measuring program ended with {status}");
    }
    Ok(())
}
