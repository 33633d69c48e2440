//! Instances on gVisor's kernel, by way of the engine: where their class comes from, and that the rest of the contract is the same.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use tokio::runtime::Runtime;
use wharf_engine::lifecycle::State;
use wharf_engine::{Create, EngineError, Isolation, Owner};
use wharf_testkit::engine::{World, script_owner, shell};
use wharf_testkit::runsc;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");

fn gvisor(owner: &Owner, name: &str, script: &str) -> Create {
    runsc();
    Create {
        isolation: Some(Isolation::Gvisor),
        ..shell(owner, name, script)
    }
}

#[tokio::test]
async fn it_ends_as_others_do_and_its_disk_is_as_large() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let script = "dmesg | head -1; cat /etc/hostname; head -c 64m /dev/zero > /full; echo more > /more; \
        trap 'echo asked; exit 6' TERM; echo ready; while :; do sleep 0.05; done";
    let id = engine.create(gvisor(&owner, "a", script)).await.unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "ready").await;
    let inspect = engine.inspect(&owner, "a").await.unwrap();
    assert_eq!(inspect.isolation, Isolation::Gvisor);
    assert!(engine.usage().await.contains_key(&id));
    engine.stop(&owner, "a", Some(20_000)).await.unwrap();
    assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 6);
    let said = daemon.output(&owner, "a", false).await;
    assert!(said.contains("Starting gVisor"), "{said}");
    assert!(
        said.contains(&format!("\n{}\n", &id[..12])) && said.contains("asked"),
        "{said}"
    );
    let errors = daemon.output(&owner, "a", true).await;
    assert!(errors.contains("No space left on device"), "{errors}");

    // It starts again, with what it wrote.
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "asked").await;
    // One that does not listen is killed when its time is up.
    let deaf = gvisor(
        &owner,
        "deaf",
        "trap '' TERM; echo ready; while :; do sleep 1; done",
    );
    engine.create(deaf).await.unwrap();
    engine.start_instance(&owner, "deaf").await.unwrap();
    daemon.says(&owner, "deaf", "ready").await;
    engine.stop(&owner, "deaf", Some(300)).await.unwrap();
    assert_eq!(engine.wait(&owner, "deaf", false).await.unwrap().code, 137);
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn a_memory_bomb_is_told_with_the_figure() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let mut bomb = gvisor(
        &owner,
        "bomb",
        "head -c 400m /dev/zero | tail -c 300m > /dev/null",
    );
    bomb.limits.memory_bytes = Some(128 << 20);
    engine.create(bomb).await.unwrap();
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
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let script = "echo kept > /data; echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; cat /tmp/go; stat -c %u /tmp/go; sleep 100";
    engine.create(gvisor(&owner, "a", script)).await.unwrap();
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
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let runtime = Runtime::new().unwrap();
    let script = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done";
    runtime.block_on(async {
        let daemon = world.daemon(60_000).await;
        daemon
            .engine
            .create(gvisor(&owner, "a", script))
            .await
            .unwrap();
        daemon.engine.start_instance(&owner, "a").await.unwrap();
        daemon.says(&owner, "a", "tick 1\n").await;
    });
    drop(runtime);
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        let engine = &daemon.engine;
        let inspect = engine.inspect(&owner, "a").await.unwrap();
        assert_eq!(inspect.state, State::Running);
        assert_eq!(inspect.isolation, Isolation::Gvisor);
        let seen = daemon.output(&owner, "a", false).await.lines().count();
        daemon
            .says(&owner, "a", &format!("tick {}\n", seen + 5))
            .await;
        // Signals still go the way that its kernel needs.
        engine.signal(&owner, "a", 9).await.unwrap();
        assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 137);
        world.end(daemon).await;
    });
}

/// An image like `busybox` with a label.
fn labelled(world: &World, value: &str) -> String {
    let name = format!("labelled-{value}");
    let base = world.images.resolve("busybox:latest").unwrap();
    let mut config = base.config.clone();
    let mut process = config.config().clone().unwrap_or_default();
    process.set_labels(Some(
        [("wharf.isolation".to_owned(), value.to_owned())].into(),
    ));
    config.set_config(Some(process));
    world
        .images
        .create(config, &base.layers, std::slice::from_ref(&name))
        .unwrap();
    name
}

#[tokio::test]
async fn a_class_comes_from_the_application_or_the_image_and_what_cannot_be_had_is_refused() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let with = |name: &str, label: &str, isolation| Create {
        image: labelled(&world, label),
        isolation,
        ..shell(&owner, name, "cat /proc/version")
    };
    engine.create(with("a", "gvisor", None)).await.unwrap();
    assert_eq!(
        engine.inspect(&owner, "a").await.unwrap().isolation,
        Isolation::Gvisor
    );
    let decided = with("b", "gvisor", Some(Isolation::Namespace));
    engine.create(decided).await.unwrap();
    assert_eq!(
        engine.inspect(&owner, "b").await.unwrap().isolation,
        Isolation::Namespace
    );
    // A label of the request is not the image's.
    let mut request = shell(&owner, "c", "true");
    request
        .labels
        .insert("wharf.isolation".into(), "gvisor".into());
    engine.create(request).await.unwrap();
    assert_eq!(
        engine.inspect(&owner, "c").await.unwrap().isolation,
        Isolation::Namespace
    );
    match engine.create(with("d", "kata", None)).await {
        Err(EngineError::Invalid(text)) => {
            assert!(text.contains("wharf.isolation=\"kata\""), "{text}");
        }
        other => panic!("{other:?}"),
    }
    world.end(daemon).await;
}
