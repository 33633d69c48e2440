//! `cargo xtask bench`: figures, each beside the same work done without Wharf in the same run.
//!
//! `cargo xtask bench ingress` measures that hop alone ([`ingress`]).
//!
//! Cold start: first byte of a request whose Worker and Durable Object start a container, against fork and exec of the same server.
//! Throughput: Worker -> Durable Object -> container, against plain workerd (Worker -> Durable Object -> the server as a plain process),
//! and against the server alone. Machines are noisy: read the ratios.

mod ingress;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::node::{Http, Node, Profile, build};
use crate::{debian, hello, interrupt, setup};

/// What the bench can be told.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Cold starts to measure, of each kind
    #[arg(long, default_value_t = 100)]
    starts: usize,
    /// Seconds of load per throughput row
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Benches of one thing.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Container starts beside dockerd, podman, runc and crun: five kinds of images, three levels (see BENCHMARKS.md)
    Start(crate::bench_start::Options),
    /// The hop through the ingress, beside a direct connection to the same app
    Ingress {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Seconds per row
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    cold_start: Vec<Latency>,
    throughput: Vec<Throughput>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpus: usize,
    kernel: String,
    memory_mib: u64,
}

#[derive(Debug, Serialize)]
struct Latency {
    what: &'static str,
    n: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    failed: usize,
    /// p50 against the first row's.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Throughput {
    what: &'static str,
    connections: usize,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    failed: usize,
    /// Requests per second against plain workerd's with as many connections.
    ratio: f64,
}

/// Runs the bench and prints its report.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(What::Start(options)) = &options.what {
        return crate::bench_start::run(options);
    }
    if !debian::is_root() {
        bail!("the bench must run as root: it starts a node");
    }
    interrupt::install()?;
    if let Some(What::Ingress { json, seconds }) = options.what {
        let report = ingress::run(seconds)?;
        match json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => ingress::print(&report),
        }
        return Ok(());
    }
    let example = hello::prepare()?;
    let binary = build(Profile::Release)?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (gateway, control) = (free_port(any)?, free_port(any)?);
    let project = BenchProject::copy_of(&example)?;
    let node = Node::start(&binary, gateway, control)?;
    node.deploy(&project.0)?;
    let server = example.join("build/server");

    eprintln!(
        "cold starts: {} of each kind, one every 150 ms",
        options.starts
    );
    let mut cold_start = Vec::new();
    cold_start.push(latency(
        "fork and exec of the server",
        options.starts,
        |_| {
            let started = Instant::now();
            let process = Plain::start(&server)?;
            let answer = Http::connect(process.address, "x")?.get("/")?;
            Ok((answer.status == 200).then(|| started.elapsed()))
        },
    )?);
    let unique = std::process::id();
    cold_start.push(latency(
        "request to the gateway, new object and container",
        options.starts,
        |i| {
            let mut client = Http::connect(gateway, "hello.localhost")?;
            let answer = client.get(&format!("/api/hello/{unique}-{i}"))?;
            Ok((answer.status == 200).then_some(answer.first_byte))
        },
    )?);
    let floor = cold_start[0].p50_ms;
    cold_start
        .iter_mut()
        .for_each(|row| row.ratio = row.p50_ms / floor);

    let plain = Plain::start(&server)?;
    let workerd = PlainWorkerd::start(plain.address)?;
    let mut throughput = Vec::new();
    for connections in [1, 32] {
        eprintln!(
            "throughput: {connections} connections, {} s a row",
            options.seconds
        );
        let mut rows = Vec::new();
        let time = Duration::from_secs(options.seconds);
        rows.push(load(
            "plain workerd: Worker, Durable Object, server process",
            workerd.address,
            "x",
            connections,
            time,
        )?);
        rows.push(load(
            "Wharf: gateway, Worker, Durable Object, container",
            gateway,
            "hello.localhost",
            connections,
            time,
        )?);
        rows.push(load(
            "the server alone",
            plain.address,
            "x",
            connections,
            time,
        )?);
        let base = rows[0].requests_per_second;
        rows.iter_mut()
            .for_each(|row| row.ratio = row.requests_per_second / base);
        throughput.extend(rows);
    }
    let report = Report {
        machine: machine()?,
        cold_start,
        throughput,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &Report) {
    let m = &report.machine;
    println!(
        "\n{} CPUs, {} MiB, Linux {}\n",
        m.cpus, m.memory_mib, m.kernel
    );
    println!(
        "{:<56} {:>5} {:>9} {:>9} {:>9} {:>7} {:>7}",
        "cold start to first byte", "n", "p50 ms", "p99 ms", "max ms", "failed", "ratio"
    );
    for r in &report.cold_start {
        println!(
            "{:<56} {:>5} {:>9.2} {:>9.2} {:>9.2} {:>7} {:>7.2}",
            r.what, r.n, r.p50_ms, r.p99_ms, r.max_ms, r.failed, r.ratio
        );
    }
    println!(
        "\n{:<56} {:>5} {:>9} {:>9} {:>9} {:>7} {:>7}",
        "throughput", "conns", "req/s", "p50 ms", "p99 ms", "failed", "ratio"
    );
    for r in &report.throughput {
        println!(
            "{:<56} {:>5} {:>9.0} {:>9.2} {:>9.2} {:>7} {:>7.2}",
            r.what, r.connections, r.requests_per_second, r.p50_ms, r.p99_ms, r.failed, r.ratio
        );
    }
}

fn machine() -> Result<Machine> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = meminfo
        .split_whitespace()
        .nth(1)
        .and_then(|v| v.parse().ok())
        .context("/proc/meminfo")?;
    Ok(Machine {
        cpus: std::thread::available_parallelism()?.get(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        memory_mib: kib / 1024,
    })
}

fn free_port(any: SocketAddr) -> Result<SocketAddr> {
    Ok(TcpListener::bind(any)?.local_addr()?)
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (sorted.len() as f64 * share) as usize;
    sorted
        .get(index.min(last))
        .map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
}

/// One start every 150 ms, as isolated as a cold start is.
fn latency(
    what: &'static str,
    n: usize,
    mut one: impl FnMut(usize) -> Result<Option<Duration>>,
) -> Result<Latency> {
    let mut times = Vec::new();
    let mut failed = 0;
    for i in 0..n {
        interrupt::check()?;
        let next = Instant::now() + Duration::from_millis(150);
        match one(i) {
            Ok(Some(time)) => times.push(time),
            Ok(None) | Err(_) => failed += 1,
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    times.sort();
    Ok(Latency {
        what,
        n,
        p50_ms: percentile(&times, 0.5),
        p99_ms: percentile(&times, 0.99),
        max_ms: percentile(&times, 1.0),
        failed,
        ratio: 1.0,
    })
}

/// Keep-alive connections that ask again as soon as they are answered.
fn load(
    what: &'static str,
    address: SocketAddr,
    host: &str,
    connections: usize,
    time: Duration,
) -> Result<Throughput> {
    // Not measured: the container's start and the pools' first connections.
    let mut client = Http::connect(address, host)?;
    for _ in 0..20 {
        client.get("/api/hello")?;
    }
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let results: Vec<(Vec<Duration>, usize)> = std::thread::scope(|scope| {
        let worker = || {
            let (mut times, mut failed) = (Vec::new(), 0);
            let mut client = None;
            while !stop.load(Ordering::Relaxed) {
                let mut open = match client.take() {
                    Some(open) => open,
                    None => match Http::connect(address, host) {
                        Ok(open) => open,
                        Err(_) => {
                            failed += 1;
                            continue;
                        }
                    },
                };
                let asked = Instant::now();
                match open.get("/api/hello") {
                    Ok(answer) if answer.status == 200 => {
                        times.push(asked.elapsed());
                        client = Some(open);
                    }
                    _ => failed += 1,
                }
            }
            (times, failed)
        };
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(worker)).collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().filter_map(|t| t.join().ok()).collect()
    });
    let elapsed = started.elapsed();
    interrupt::check()?;
    let mut times: Vec<Duration> = results
        .iter()
        .flat_map(|(t, _)| t.iter().copied())
        .collect();
    times.sort();
    Ok(Throughput {
        what,
        connections,
        requests_per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50_ms: percentile(&times, 0.5),
        p99_ms: percentile(&times, 0.99),
        failed: results.iter().map(|(_, f)| f).sum(),
        ratio: 1.0,
    })
}

/// The example's server as a plain process.
struct Plain {
    child: Child,
    address: SocketAddr,
}

impl Plain {
    /// Starts it and waits until it accepts, spinning: the measured start should not contain a poll interval.
    fn start(server: &Path) -> Result<Plain> {
        let address = free_port(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let child = Command::new(server)
            .env("PORT", address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let process = Plain { child, address };
        wait_for(address)?;
        Ok(process)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            bail!("nothing listens on {address} within 10 s");
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// workerd without Wharf: a Worker, a Durable Object, and the server behind an external service.
struct PlainWorkerd {
    child: Child,
    dir: std::path::PathBuf,
    address: SocketAddr,
}

impl PlainWorkerd {
    fn start(server: SocketAddr) -> Result<PlainWorkerd> {
        let address = free_port(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let dir = std::env::temp_dir().join(format!("wharf-bench-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("do"))?;
        std::fs::write(
            dir.join("worker.js"),
            r#"import { DurableObject } from "cloudflare:workers";
export class Front extends DurableObject { fetch(request) { return this.env.SERVER.fetch(request); } }
export default { fetch(request, env) { return env.FRONT.getByName("one").fetch(request); } };
"#,
        )?;
        std::fs::write(
            dir.join("config.capnp"),
            format!(
                r#"using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      modules = [(name = "worker.js", esModule = embed "worker.js")],
      compatibilityDate = "2026-11-01",
      durableObjectNamespaces = [(className = "Front", uniqueKey = "front", enableSql = true)],
      durableObjectStorage = (localDisk = "do"),
      bindings = [(name = "FRONT", durableObjectNamespace = "Front"), (name = "SERVER", service = "server")])),
    (name = "server", external = (address = "{server}", http = ())),
    (name = "do", disk = (path = "{}", writable = true))],
  sockets = [(name = "http", address = "{address}", http = (), service = "main")]);
"#,
                dir.join("do").display()
            ),
        )?;
        let child = Command::new(setup::tools()?.workerd)
            .arg("serve")
            .arg(dir.join("config.capnp"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let process = PlainWorkerd {
            child,
            dir,
            address,
        };
        wait_for(address)?;
        Ok(process)
    }
}

impl Drop for PlainWorkerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A copy of the hello example that may run as many containers as the bench starts.
struct BenchProject(std::path::PathBuf);

impl BenchProject {
    fn copy_of(source: &Path) -> Result<BenchProject> {
        let dir = std::env::temp_dir().join(format!("wharf-bench-project-{}", std::process::id()));
        let status = Command::new("cp")
            .args(["-a", "--no-target-directory"])
            .arg(source)
            .arg(&dir)
            .status()?;
        let project = BenchProject(dir);
        if !status.success() {
            bail!("{} can't be copied", source.display());
        }
        let config = project.0.join("wrangler.jsonc");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(
            &config,
            text.replace("\"max_instances\": 5", "\"max_instances\": 5000"),
        )?;
        Ok(project)
    }
}

impl Drop for BenchProject {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
