//! `cargo xtask demo`: the whole path once, from nothing to an answer out of a container.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::node::{Http, Node, Profile, build, check_port};
use crate::{debian, hello, interrupt};

/// What the demo can be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Exit after the answer instead of staying up until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Gateway address
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Control API and registry address
    #[arg(long, default_value = "127.0.0.1:7400")]
    control_listen: SocketAddr,
}

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !debian::is_root() {
        bail!(
            "the demo must run as root: it makes namespaces, mounts and cgroups; try `sudo -E env PATH=\"$PATH\" cargo xtask demo`"
        );
    }
    check_port(options.listen, "--listen")?;
    check_port(options.control_listen, "--control-listen")?;
    interrupt::install()?;
    let project = hello::prepare()?;
    let binary = build(Profile::Release)?;
    let node = Node::start(&binary, options.listen, options.control_listen)?;
    node.deploy(&project)?;

    let host = format!("hello.localhost:{}", options.listen.port());
    let ask = |what: &str| -> Result<(Duration, String)> {
        let started = Instant::now();
        let answer = Http::connect(options.listen, &host)?
            .get("/api/hello")
            .context("the request failed")?;
        let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
        if answer.status != 200 {
            bail!(
                "{what} was answered {}: {text}\nThe node said:\n{}",
                answer.status,
                node.log()
            );
        }
        Ok((started.elapsed(), text))
    };
    let (cold, text) = ask("the first request")?;
    let mut warm = Vec::new();
    for _ in 0..20 {
        warm.push(ask("a warm request")?.0);
    }
    warm.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    println!("\n  {text}\n");
    println!(
        "  cold start  {:7.1} ms  Worker, Durable Object and container started by the request",
        ms(cold)
    );
    println!(
        "  warm        {:7.1} ms  median of {}",
        ms(warm[warm.len() / 2]),
        warm.len()
    );
    println!("  URL         http://{host}/\n");
    if options.once {
        return Ok(());
    }
    println!("Ctrl-C stops it and leaves nothing behind.");
    while !interrupt::happened() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
