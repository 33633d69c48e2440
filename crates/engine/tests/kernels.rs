//! Instances on another kernel than the machine's (gVisor's, or a virtual machine's, which is
//! emulated here), by way of the engine: where their class comes from, and that the rest of the
//! contract is the same.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use tokio::runtime::Runtime;
use wharf_engine::lifecycle::State;
use wharf_engine::{Create, EngineError, Isolation, Owner};
use wharf_testkit::engine::{World, script_owner, shell};
use wharf_testkit::runsc;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");

fn of_class(class: Isolation, owner: &Owner, name: &str, script: &str) -> Create {
    if class == Isolation::Gvisor {
        runsc();
    }
    let mut create = Create {
        isolation: Some(class),
        ..shell(owner, name, script)
    };
    create.limits.memory_bytes = Some(128 << 20);
    create
}

/// The same test in each class.
macro_rules! in_each_class {
    ($($test:ident: $gvisor:ident, $microvm:ident;)*) => {$(
        #[tokio::test]
        async fn $gvisor() {
            $test(Isolation::Gvisor).await;
        }

        #[tokio::test]
        async fn $microvm() {
            $test(Isolation::Microvm).await;
        }
    )*};
}

in_each_class! {
    ends_as_others_do: it_ends_as_others_do_and_its_disk_is_as_large_on_gvisor,
        it_ends_as_others_do_and_its_disk_is_as_large_in_a_machine;
    memory_bomb: a_memory_bomb_is_told_with_the_figure_on_gvisor,
        a_memory_bomb_is_told_with_the_figure_in_a_machine;
    archives: archives_reach_it_and_its_files_are_found_on_gvisor,
        archives_reach_it_and_its_files_are_found_in_a_machine;
}

async fn ends_as_others_do(class: Isolation) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let script = "cat /proc/version; cat /etc/hostname; head -c 64m /dev/zero > /full; echo more > /more; \
        trap 'echo asked; exit 6' TERM; echo ready; while :; do sleep 0.05; done";
    let id = engine
        .create(of_class(class, &owner, "a", script))
        .await
        .unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "ready").await;
    let inspect = engine.inspect(&owner, "a").await.unwrap();
    assert_eq!(inspect.isolation, class);
    assert!(engine.usage().await.contains_key(&id));
    engine.stop(&owner, "a", Some(20_000)).await.unwrap();
    assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 6);
    let said = daemon.output(&owner, "a", false).await;
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(said.starts_with("Linux version"), "{said}");
    assert!(!said.starts_with(&host), "{said}");
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
    let deaf = of_class(
        class,
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

async fn memory_bomb(class: Isolation) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    // More than the limit, in the main process: what else is killed need not be the end.
    let bomb = of_class(
        class,
        &owner,
        "bomb",
        "exec tail -c 300m /dev/zero > /dev/null",
    );
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

async fn archives(class: Isolation) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let script = "echo kept > /data; echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; cat /tmp/go; stat -c %u /tmp/go; sleep 100";
    engine
        .create(of_class(class, &owner, "a", script))
        .await
        .unwrap();
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
fn it_is_adopted_after_the_daemons_death_on_gvisor() {
    adopted(Isolation::Gvisor);
}

#[test]
fn it_is_adopted_after_the_daemons_death_in_a_machine() {
    adopted(Isolation::Microvm);
}

fn adopted(class: Isolation) {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let runtime = Runtime::new().unwrap();
    let script = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done";
    runtime.block_on(async {
        let daemon = world.daemon(60_000).await;
        daemon
            .engine
            .create(of_class(class, &owner, "a", script))
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
        assert_eq!(inspect.isolation, class);
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
