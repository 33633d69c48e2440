//! Beyond single starts: many at once, many idle, and many a second for a while.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::class::{self, Class};
use crate::measure::percentile;
use crate::place::Place;
use crate::report::{Burst, Density, Sleeping, Sustained};
use crate::runtime::Runtime;
use crate::runtime::engine::World;
use crate::runtime::floor::Floor;
use crate::runtime::whole::Node;
use crate::{interrupt, look};

/// Memory settles: pools are filled again, caches of freed pages are given back.
const SETTLE: Duration = Duration::from_secs(2);
const EIGHT_GIB_KIB: u64 = 8 << 20;
/// Clients of the sustained load.
const CLIENTS: usize = 16;

/// `n` requests to as many fresh objects at the same moment.
pub(crate) fn burst(node: &Node, class: &Class, n: usize) -> Result<Burst> {
    eprintln!("{n} cold starts at once:");
    let barrier = Barrier::new(n + 1);
    let name = |i: usize| format!("burst-{}-{i}", std::process::id());
    let (mut times, mut reason, total) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n)
            .map(|i| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    node.ask(class, &name(i)).map(|at| at - start)
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let (mut times, mut reason) = (Vec::new(), None);
        for thread in threads {
            match thread.join() {
                Ok(Ok(time)) => times.push(time),
                Ok(Err(error)) => reason = Some(format!("{error:#}")),
                Err(_) => reason = Some("a client has panicked".to_owned()),
            }
        }
        (times, reason, start.elapsed())
    });
    for i in 0..n {
        interrupt::check()?;
        if let Err(error) = node.destroy(class, &name(i)) {
            reason.get_or_insert_with(|| format!("destroying: {error:#}"));
        }
    }
    times.sort();
    Ok(Burst {
        n,
        served: times.len(),
        p50_ms: percentile(&times, 0.5),
        max_ms: percentile(&times, 1.0),
        total_ms: (total.as_secs_f64() * 1e6).round() / 1e3,
        reason,
    })
}

/// The node's own processes: daemon, spawner, workerd. Memory in KiB.
#[derive(Default)]
struct OwnMemory {
    pss: u64,
    kernel: u64,
    workerd_pss: u64,
    workerd_anonymous: u64,
    daemon_descriptors: usize,
    daemon_limit: Option<u64>,
    spawner_descriptors: usize,
}

fn own_memory(node: &Node) -> Result<OwnMemory> {
    let mut own = OwnMemory {
        kernel: look::kernel_memory(),
        ..OwnMemory::default()
    };
    for pid in look::processes_with(&node.data_dir) {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let (pss, anonymous) = look::memory(pid);
        own.pss += pss;
        match comm.trim() {
            "workerd" => {
                own.workerd_pss += pss;
                own.workerd_anonymous += anonymous;
            }
            // The daemon, not what it may have started from the same executable.
            "wharf" if look::descriptors(pid) > own.daemon_descriptors => {
                own.daemon_descriptors = look::descriptors(pid);
                own.daemon_limit = look::descriptor_limit(pid);
            }
            "wharf-spawner" => own.spawner_descriptors = look::descriptors(pid),
            _ => {}
        }
    }
    if own.workerd_pss == 0 || own.daemon_descriptors == 0 {
        bail!("the node's processes are not found by their command lines");
    }
    Ok(own)
}

/// What an application costs that is deployed and was never asked.
pub(crate) fn sleeping(node: &Node) -> Result<Sleeping> {
    let own = own_memory(node)?;
    Ok(Sleeping {
        pss_kib: own.workerd_pss,
        anonymous_kib: own.workerd_anonymous,
    })
}

/// `n` idle containers, each with its object, and what they cost.
pub(crate) fn density(node: &Node, class: &Class, n: usize) -> Result<Density> {
    eprintln!("{n} idle containers:");
    let name = |i: usize| format!("idle-{}-{i}", std::process::id());
    std::thread::sleep(SETTLE);
    let before = own_memory(node)?;
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let each = |what: &(dyn Fn(usize) -> Result<()> + Sync)| {
        next.store(0, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n || interrupt::check().is_err() {
                            break;
                        }
                        if let Err(error) = what(i) {
                            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                    }
                });
            }
        });
    };
    each(&|i| node.ask(class, &name(i)).map(drop));
    let measured = interrupt::check().and_then(|()| {
        std::thread::sleep(SETTLE);
        let after = own_memory(node)?;
        let pids = node.pids()?;
        let app: u64 = pids.iter().map(|pid| look::memory(*pid).0).sum();
        Ok((after, pids.len(), app))
    });
    each(&|i| node.destroy(class, &name(i)));
    interrupt::check()?;
    let (after, running, app) = measured?;
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.context(format!("{running} of {n} ran")));
    }
    if running < n {
        bail!("{running} of {n} ran");
    }
    let count = n as u64;
    let app = app / count;
    let own = after.pss.saturating_sub(before.pss) / count;
    let kernel = after.kernel.saturating_sub(before.kernel) / count;
    let per = |after: usize, before: usize| after.saturating_sub(before) as f64 / n as f64;
    let daemon_descriptors = per(after.daemon_descriptors, before.daemon_descriptors);
    Ok(Density {
        n,
        app_kib: app,
        own_processes_kib: own,
        kernel_kib: kernel,
        beyond_app_kib: own + kernel,
        daemon_descriptors,
        spawner_descriptors: per(after.spawner_descriptors, before.spawner_descriptors),
        fit_in_8_gib: EIGHT_GIB_KIB.checked_div(app + own + kernel).unwrap_or(0),
        fit_in_descriptors: after
            .daemon_limit
            .filter(|_| daemon_descriptors > 0.0)
            .map(|limit| (limit as f64 / daemon_descriptors) as u64),
        fits_are_extrapolated: true,
    })
}

/// What must not grow.
#[derive(Clone, Copy)]
struct Size {
    memory: u64,
    kernel: u64,
    descriptors: usize,
    cgroups: usize,
    files: usize,
}

fn size(world: &World, place: &Place) -> Size {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let spawner = i32::try_from(world.spawner.pid()).unwrap_or(0);
    let instances = std::fs::read_dir(place.dir().join("engine/instances"));
    Size {
        memory: look::memory(own).1 + look::memory(spawner).1,
        kernel: look::kernel_memory(),
        descriptors: look::descriptors(own) + look::descriptors(spawner),
        cgroups: place.engine_cgroups(),
        files: instances.map_or(0, |all| {
            // Directories that wait for another instance are of a fixed number.
            let own = |e: &std::io::Result<std::fs::DirEntry>| {
                e.as_ref()
                    .is_ok_and(|e| !e.file_name().to_string_lossy().starts_with('.'))
            };
            all.filter(own).count()
        }),
    }
}

/// Start, first byte and removal, `rate` times a second, for a while: the rate that is reached, and what grew.
pub(crate) async fn sustained(
    world: &World,
    place: &Arc<Place>,
    class: &Class,
    rate: u32,
    seconds: u64,
) -> Result<Sustained> {
    eprintln!("{rate} starts a second for {seconds} s:");
    // Pools and allocators take their size first.
    load(world, class, rate, Duration::from_secs(2)).await?;
    tokio::time::sleep(SETTLE).await;
    let before = size(world, place);
    let (mut times, failed, reason, elapsed) =
        load(world, class, rate, Duration::from_secs(seconds)).await?;
    let floor = tokio::task::block_in_place(|| floor(place, class))?;
    tokio::time::sleep(SETTLE).await;
    let after = size(world, place);
    times.sort();
    let grown = |after: u64, before: u64| after as i64 - before as i64;
    Ok(Sustained {
        asked_per_second: rate,
        seconds,
        reached_per_second: (times.len() as f64 / elapsed.as_secs_f64() * 10.0).round() / 10.0,
        floor_per_second: Some(floor),
        failed,
        p50_ms: percentile(&times, 0.5),
        p99_ms: percentile(&times, 0.99),
        max_ms: percentile(&times, 1.0),
        grown_memory_kib: grown(after.memory, before.memory),
        grown_kernel_kib: grown(after.kernel, before.kernel),
        grown_descriptors: grown(after.descriptors as u64, before.descriptors as u64),
        grown_cgroups: grown(after.cgroups as u64, before.cgroups as u64),
        grown_instance_directories: grown(after.files as u64, before.files as u64),
        reason,
    })
}

/// How many lives of the bare program as many clients get through in a second.
fn floor(place: &Arc<Place>, class: &Class) -> Result<f64> {
    const TIME: Duration = Duration::from_secs(3);
    let start = Instant::now();
    let lives = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS as u16)
            .map(|number| {
                scope.spawn(move || {
                    let (mut floor, mut lives) = (Floor::beside(place.clone(), number), 0);
                    while start.elapsed() < TIME && interrupt::check().is_ok() {
                        floor.start(class, "")?;
                        floor.stop()?;
                        lives += 1;
                    }
                    Ok(lives)
                })
            })
            .collect();
        let ended = clients.into_iter().map(|client| {
            let lives = client.join();
            lives.unwrap_or_else(|_| bail!("a client has panicked"))
        });
        ended.sum::<Result<u32>>()
    })?;
    Ok((f64::from(lives) / start.elapsed().as_secs_f64()).round())
}

type Loaded = (Vec<Duration>, usize, Option<String>, Duration);

/// Clients take the next due time each, wait for it, and start one. Late ones are not made up for: the rate reached says so.
async fn load(world: &World, class: &Class, rate: u32, time: Duration) -> Result<Loaded> {
    static RUN: AtomicUsize = AtomicUsize::new(0);
    let run = RUN.fetch_add(1, Ordering::Relaxed);
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (world, class, next) = (world.clone(), class.clone(), next.clone());
        clients.spawn(async move {
            let (mut times, mut failed, mut reason) = (Vec::new(), 0, None);
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let due = start + Duration::from_secs(1) * i as u32 / rate;
                if due > start + time || start.elapsed() > time || interrupt::check().is_err() {
                    break (times, failed, reason);
                }
                tokio::time::sleep_until(due.into()).await;
                let name = format!("load-{run}-{i}");
                match life(&world, &class, &name).await {
                    Ok(time) => times.push(time),
                    Err(error) => {
                        failed += 1;
                        reason = Some(format!("{error:#}"));
                    }
                }
            }
        });
    }
    let (mut times, mut failed, mut reason) = (Vec::new(), 0, None);
    for (t, f, r) in clients.join_all().await {
        times.extend(t);
        failed += f;
        reason = reason.or(r);
    }
    interrupt::check()?;
    Ok((times, failed, reason, start.elapsed()))
}

/// One container's life; how long its first byte took.
async fn life(world: &World, class: &Class, name: &str) -> Result<Duration> {
    let start = Instant::now();
    let lived = async {
        let network = world.run(class, name).await?;
        let mut stream = TcpStream::connect(network.ingress()).await?;
        stream.set_nodelay(true)?;
        let connect = format!(
            "CONNECT 127.0.0.1:{0} HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\n\r\n",
            class::PORT
        );
        stream.write_all(connect.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                bail!("the ingress closed the connection");
            }
        }
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).await?;
        let time = start.elapsed();
        if !answer[..n].starts_with(b"HTTP/1.1 200") {
            bail!("answered {}", String::from_utf8_lossy(&answer[..n]));
        }
        Ok(time)
    };
    let lived = tokio::time::timeout(crate::http::PATIENCE, lived).await;
    let removed = world.remove(name).await;
    let time = lived.context("no answer in time")??;
    removed?;
    Ok(time)
}
