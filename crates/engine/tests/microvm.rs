//! Instances in virtual machines, by way of the engine: the rest of the contract is the same. Emulated, as not every machine has KVM.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use tokio::runtime::Runtime;
use wharf_engine::lifecycle::State;
use wharf_engine::{Create, Isolation, Owner};
use wharf_testkit::engine::{World, script_owner, shell};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");

fn machine(owner: &Owner, name: &str, script: &str) -> Create {
    let mut create = Create {
        isolation: Some(Isolation::Microvm),
        ..shell(owner, name, script)
    };
    create.limits.memory_bytes = Some(128 << 20);
    create
}

#[tokio::test]
async fn it_ends_as_others_do_and_its_disk_is_as_large() {
    let world = World::new(PROGRAM);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let script = "cat /etc/hostname; head -c 64m /dev/zero > /full; echo more > /more; \
        trap 'echo asked; exit 6' TERM; echo ready; while :; do sleep 0.05; done";
    let id = engine.create(machine(&owner, "a", script)).await.unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "ready").await;
    let inspect = engine.inspect(&owner, "a").await.unwrap();
    assert_eq!(inspect.isolation, Isolation::Microvm);
    assert!(engine.usage().await.contains_key(&id));
    engine.stop(&owner, "a", Some(20_000)).await.unwrap();
    assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 6);
    let said = daemon.output(&owner, "a", false).await;
    assert!(said.contains(&id[..12]) && said.contains("asked"), "{said}");
    let errors = daemon.output(&owner, "a", true).await;
    assert!(errors.contains("No space left on device"), "{errors}");

    // It starts again, with what it wrote.
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "asked").await;
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn what_meets_a_limit_is_told_with_the_figure() {
    let world = World::new(PROGRAM);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let bomb = "exec tail -c 300m /dev/zero > /dev/null";
    engine.create(machine(&owner, "bomb", bomb)).await.unwrap();
    engine.start_instance(&owner, "bomb").await.unwrap();
    assert!(engine.wait(&owner, "bomb", false).await.unwrap().oom_killed);
    let inspect = engine.inspect(&owner, "bomb").await.unwrap();
    let error = inspect.error.unwrap_or_default();
    assert!(
        error.contains("memory") && error.contains("128.0 MiB"),
        "{error}"
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn archives_reach_it_and_its_files_are_found() {
    let world = World::new(PROGRAM);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let script = "echo kept > /data; echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; cat /tmp/go; stat -c %u /tmp/go; sleep 100";
    engine.create(machine(&owner, "a", script)).await.unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "ready").await;
    let held = engine.hold(&owner, "a").await.unwrap();
    let data = std::fs::read_to_string(held.files().upper.join("data")).unwrap();
    assert_eq!(data, "kept\n");
    drop(held);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(6);
    header.set_mode(0o644);
    header.set_uid(1000);
    tar.append_data(&mut header, "go", &b"given\n"[..]).unwrap();
    let archive = Box::new(std::io::Cursor::new(tar.into_inner().unwrap()));
    engine
        .extract(&owner, "a", Path::new("/tmp"), 1 << 20, archive)
        .await
        .unwrap();
    daemon.says(&owner, "a", "given\n1000\n").await;
    world.end(daemon).await;
}

#[test]
fn it_is_adopted_after_the_daemons_death() {
    let world = World::new(PROGRAM);
    let owner = script_owner();
    let runtime = Runtime::new().unwrap();
    let script = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done";
    runtime.block_on(async {
        let daemon = world.daemon(60_000).await;
        let create = machine(&owner, "a", script);
        daemon.engine.create(create).await.unwrap();
        daemon.engine.start_instance(&owner, "a").await.unwrap();
        daemon.says(&owner, "a", "tick 1\n").await;
    });
    drop(runtime);
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        let engine = &daemon.engine;
        let inspect = engine.inspect(&owner, "a").await.unwrap();
        assert_eq!(inspect.state, State::Running);
        assert_eq!(inspect.isolation, Isolation::Microvm);
        let seen = daemon.output(&owner, "a", false).await.lines().count();
        daemon
            .says(&owner, "a", &format!("tick {}\n", seen + 5))
            .await;
        engine.signal(&owner, "a", 9).await.unwrap();
        assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 137);
        world.end(daemon).await;
    });
}
