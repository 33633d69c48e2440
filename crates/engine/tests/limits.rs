//! What an instance may use, and what is told of an end that a limit had a part in.

#![allow(clippy::unwrap_used)] // helpers of tests

use tokio::runtime::Runtime;
use wharf_testkit::engine::{World, script_owner, shell};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");

#[test]
fn a_full_disk_ends_where_it_is_and_is_told_also_by_the_next_daemon() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let first = Runtime::new().unwrap();
    let (id, pid) = first.block_on(async {
        let daemon = world.daemon(60_000).await;
        let engine = &daemon.engine;
        assert_eq!(engine.disks_unsupported(), None);
        let script = "mkfifo /tmp/go; echo ready; read x < /tmp/go; dd if=/dev/zero of=/big bs=1M count=100; exit 3";
        let mut create = shell(&owner, "full", script);
        create.limits.disk_bytes = Some(24_000_000);
        let id = engine.create(create).await.unwrap();
        engine.start_instance(&owner, "full").await.unwrap();
        daemon.says(&owner, "full", "ready").await;
        let usage = engine.usage().await.remove(&id).unwrap();
        assert!(usage.process.memory_bytes.unwrap() > 0, "{usage:?}");
        assert!(usage.disk_bytes.unwrap() < 1 << 20 && !usage.disk_is_full, "{usage:?}");
        let limit = usage.disk_limit_bytes.unwrap();
        assert!((24_000_000..26_000_000).contains(&limit), "{usage:?}");
        (id, engine.inspect(&owner, "full").await.unwrap().pid.unwrap())
    });
    drop(first);
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        let engine = &daemon.engine;
        std::fs::write(format!("/proc/{pid}/root/tmp/go"), "go\n").unwrap();
        assert_eq!(engine.wait(&owner, "full", false).await.unwrap().code, 3);
        let seen = engine.inspect(&owner, "full").await.unwrap();
        let told = "its disk is full: the limit is 24 MB";
        let usage = engine.usage().await.remove(&id).unwrap();
        assert_eq!(seen.error.as_deref(), Some(told), "{usage:?}");
        assert!(
            usage.disk_is_full && usage.process.cpu_us.unwrap() > 0,
            "{usage:?}"
        );
        world.end(daemon).await;
    });
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn what_a_stopped_instance_wrote_is_there_at_its_next_start() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    let mut create = shell(&owner, "again", "cat /kept; echo once >> /kept");
    create.limits.disk_bytes = Some(24_000_000);
    daemon.engine.create(create).await.unwrap();
    for _ in 0..3 {
        daemon.engine.start_instance(&owner, "again").await.unwrap();
        daemon.engine.wait(&owner, "again", false).await.unwrap();
    }
    assert_eq!(
        daemon.output(&owner, "again", false).await,
        "once\nonce\nonce\n"
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn a_disk_that_is_used_again_shows_nothing_of_its_last_instance() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    let mut devices = std::collections::HashSet::new();
    let mut seen_again = 0;
    for n in 0..12 {
        let name = format!("n{n}");
        let script = "stat -c %a:%u:%g /; ls -a / /tmp /var 2>&1; df -B1024 / | tail -1; echo x > /left; mkdir -p /var/left/a/b; ln -s / /var/left/a/link; \
             mkdir -m 700 /tmp/left; chmod 711 /; chown 5:6 /; dd if=/dev/zero of=/tmp/left/big bs=1M count=3 2>/dev/null";
        let mut create = shell(&owner, &name, script);
        create.limits.disk_bytes = Some(24_000_000);
        let id = daemon.engine.create(create).await.unwrap();
        daemon.engine.start_instance(&owner, &name).await.unwrap();
        daemon.engine.wait(&owner, &name, false).await.unwrap();
        let output = daemon.output(&owner, &name, false).await;
        assert!(output.starts_with("755:0:0\n"), "{output}");
        assert!(!output.contains("left"), "{output}");
        let record = std::fs::read_to_string(world.instances().join(&id).join("instance.json"));
        let record: serde_json::Value = serde_json::from_str(&record.unwrap()).unwrap();
        seen_again += usize::from(!devices.insert(record["fixed"]["device"].to_string()));
        daemon.engine.remove(&owner, &name, true).await.unwrap();
        // Emptied in the background.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(seen_again > 0, "no disk was used again: {devices:?}");
    world.end(daemon).await;
}

#[tokio::test]
async fn limits_are_told_with_their_figures() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    for (name, script, told) in [
        (
            "memory",
            "head -c 200m /dev/zero | tail -c 150m > /dev/null",
            "out of memory: the limit is 64.0 MiB",
        ),
        (
            "pids",
            "i=0; while [ $i -lt 12 ]; do sleep 5 & i=$((i+1)); done; exit 1",
            "too many processes: the limit is 8,",
        ),
    ] {
        let mut create = shell(&owner, name, script);
        create.limits.memory_bytes = Some(64 << 20);
        create.limits.pids = Some(8);
        daemon.engine.create(create).await.unwrap();
        daemon.engine.start_instance(&owner, name).await.unwrap();
        daemon.engine.wait(&owner, name, false).await.unwrap();
        let seen = daemon.engine.inspect(&owner, name).await.unwrap();
        assert!(
            seen.error.as_ref().is_some_and(|e| e.starts_with(told)),
            "{seen:?}"
        );
    }
    world.end(daemon).await;
}
