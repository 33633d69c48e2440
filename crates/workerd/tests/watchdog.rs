//! A Worker that takes more than it may have is ended and started again with the reason, and no other Worker notices.
#![allow(clippy::unwrap_used)] // a failing test may panic

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::support::{World, get};

/// Whatever it is asked to do.
const GREEDY: &str = r#"
let kept = [];
export default {
  async fetch(request) {
    const { pathname, searchParams } = new URL(request.url);
    if (pathname === "/loop") for (;;) {}
    if (pathname === "/promises") { const again = () => Promise.resolve().then(again); await again(); }
    if (pathname === "/eat") for (;;) kept.push(new Uint8Array(1 << 20).fill(7));
    if (pathname === "/objects") for (let n = 0; ; n++) kept.push({ n, text: `text ${n}` });
    if (pathname === "/compute") {
      const rounds = Number(searchParams.get("rounds"));
      let n = 0;
      for (let i = 0; i < rounds; i++) n = (n * 31 + i) % 1000003;
      return new Response(String(n));
    }
    return new Response("serves");
  },
};"#;

const KIND: &str = "export default { fetch() { return new Response('kind') } }";

/// Asks the other Worker all the time; how often it answered, once it is told to stop. Panics if it fails once.
fn keep_asking(world: &Arc<World>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let task = tokio::spawn({
        let (world, stop) = (world.clone(), stop.clone());
        async move {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(world.text("kind", "/").await, "kind");
                answers += 1;
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            answers
        }
    });
    (stop, task)
}

/// A request that ends the process, and what is said of it.
async fn ends(world: &World, path: &str) -> String {
    let lease = world.supervisor.acquire("greedy").await.unwrap();
    let answer = get(&lease, path).await;
    assert!(answer.is_err(), "{path}: {answer:?}");
    let reason = lease.end_reason().await;
    reason.unwrap_or_else(|| panic!("{path}: no reason for {answer:?}"))
}

async fn world(adjust: impl FnOnce(&mut wharf_workerd::WorkerdConfig)) -> Arc<World> {
    let world = World::with(adjust).await;
    world.deploy(world.desired("greedy", 1, GREEDY)).await;
    world.deploy(world.desired("kind", 2, KIND)).await;
    Arc::new(world)
}

async fn close(world: Arc<World>) {
    let world = Arc::into_inner(world).unwrap();
    world.close().await;
}

#[tokio::test]
async fn a_loop_is_ended_and_its_worker_serves_again() {
    let world = world(|config| config.watchdog_ms = 500).await;
    let kind = world.pid("kind");
    let (stop, others) = keep_asking(&world);
    for (crashes, path) in [(1, "/loop"), (2, "/promises")] {
        let reason = ends(&world, path).await;
        assert!(
            reason.contains("error 1102") && reason.contains("without a pause"),
            "{reason}"
        );
        assert_eq!(world.text("greedy", "/").await, "serves");
        let status = world.status("greedy");
        assert_eq!(status.crashes, crashes);
        assert_eq!(status.last_error, Some(reason));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(others.await.unwrap() > 0);
    assert_eq!((world.pid("kind"), world.status("kind").crashes), (kind, 0));
    close(world).await;
}

#[tokio::test]
async fn a_worker_that_eats_memory_is_ended_with_the_figure() {
    let world = world(|config| config.memory_bytes = Some(256 << 20)).await;
    let kind = world.pid("kind");
    let (stop, others) = keep_asking(&world);
    for path in ["/eat", "/objects"] {
        let reason = ends(&world, path).await;
        assert!(
            reason.contains("error 1102") && reason.contains("256 MiB"),
            "{reason}"
        );
        assert_eq!(world.text("greedy", "/").await, "serves");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(others.await.unwrap() > 0);
    assert_eq!((world.pid("kind"), world.status("kind").crashes), (kind, 0));
    close(world).await;
}

#[tokio::test]
async fn many_requests_that_compute_are_no_loop() {
    let world = world(|config| config.watchdog_ms = 500).await;
    let pid = world.pid("greedy");
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let world = world.clone();
        asked.spawn(async move { world.get("greedy", "/compute?rounds=3000000").await.status });
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(
        (world.pid("greedy"), world.status("greedy").crashes),
        (pid, 0)
    );
    close(world).await;
}

#[tokio::test]
async fn one_that_does_not_run_is_not_one_that_loops() {
    let world = world(|config| config.watchdog_ms = 200).await;
    let pid = world.pid("greedy");
    // It has computed enough to be asked, and is stopped.
    world.get("greedy", "/compute?rounds=3000000").await;
    let signal = |name: &str| {
        let mut kill = std::process::Command::new("kill");
        assert!(
            kill.args([name, &pid.to_string()])
                .status()
                .unwrap()
                .success()
        );
    };
    signal("-STOP");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    signal("-CONT");
    assert_eq!(world.text("greedy", "/").await, "serves");
    assert_eq!(
        (world.pid("greedy"), world.status("greedy").crashes),
        (pid, 0)
    );
    close(world).await;
}

#[tokio::test]
async fn one_that_computes_has_no_more_of_the_cpu_than_its_limit() {
    let world = world(|config| config.cpu_millis = Some(100)).await;
    // The processes of both Workers.
    let used = || async {
        let mut us = 0;
        for number in 1..=4 {
            let usage = world.spawner.usage(&format!("workerd-{number}")).await;
            us += usage.map_or(0, |usage| usage.cpu_us.unwrap());
        }
        std::time::Duration::from_micros(us)
    };
    let (begin, before) = (std::time::Instant::now(), used().await);
    let computed = loop {
        world.get("greedy", "/compute?rounds=3000000").await;
        let computed = used().await - before;
        if computed.as_millis() >= 200 {
            break computed;
        }
    };
    // A period's share more at the beginning, and what the kernel rounds.
    let most = begin.elapsed().mul_f64(2.0 * 0.1) + std::time::Duration::from_millis(60);
    assert!(computed <= most, "{computed:?} in {:?}", begin.elapsed());
    close(world).await;
}
