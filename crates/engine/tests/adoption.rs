//! A daemon dies, another takes over. The first one's death is the end of its runtime: all its
//! tasks and descriptors go at once, as with SIGKILL.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::runtime::Runtime;
use wharf_engine::lifecycle::State;
use wharf_engine::{Application, EngineError, Owner, StartOptions};
use wharf_testkit::engine::{Daemon, World, script_owner, shell};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");
const TICKS: &str = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.02; done";

fn first_daemon(world: &World, work: impl AsyncFnOnce(&Daemon)) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let daemon = world.daemon(60_000).await;
        work(&daemon).await;
    });
    drop(runtime);
}

#[test]
fn running_containers_are_adopted_with_their_output() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let mut ingress = None;
    first_daemon(&world, async |daemon| {
        let mut request = shell(&owner, "a", TICKS);
        request.application = Some(Application {
            id: "app".into(),
            name: "hello".into(),
            max_instances: 1,
        });
        daemon.engine.create(request).await.unwrap();
        daemon.engine.start_instance(&owner, "a").await.unwrap();
        daemon.says(&owner, "a", "tick 1\n").await;
        daemon.create(&owner, "never-started", TICKS).await;
        daemon.create(&Owner::Operator, "dev", TICKS).await;
        let engine = &daemon.engine;
        engine
            .start_instance(&Owner::Operator, "dev")
            .await
            .unwrap();
        let network = engine.network(&Owner::Operator, "dev").await.unwrap();
        ingress = Some(network.ingress());
    });
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        let engine = &daemon.engine;
        let inspect = engine.inspect(&owner, "a").await.unwrap();
        assert_eq!((inspect.state, inspect.generation), (State::Running, 1));
        // The workerd that dials the operator's containers lives on; a Worker's is a new one, which
        // will claim its.
        let network = engine.network(&Owner::Operator, "dev").await;
        assert_eq!(network.ok().map(|n| n.ingress()), ingress);
        engine.stop(&Owner::Operator, "dev", Some(0)).await.unwrap();
        assert!(matches!(
            engine.inspect(&owner, "never-started").await,
            Err(EngineError::NotFound(_))
        ));
        let seen = daemon.output(&owner, "a", false).await.lines().count();
        daemon
            .says(&owner, "a", &format!("tick {}\n", seen + 10))
            .await;
        let output = daemon.output(&owner, "a", false).await;
        let wanted: String = (1..=output.lines().count())
            .map(|n| format!("tick {n}\n"))
            .collect();
        assert_eq!(output, wanted, "no line lost, none twice");
        // It counts against its application.
        let mut request = shell(&owner, "b", TICKS);
        request.application = Some(Application {
            id: "app".into(),
            name: "hello".into(),
            max_instances: 1,
        });
        assert!(matches!(
            engine.create(request).await,
            Err(EngineError::Limit(_))
        ));
        engine.stop(&owner, "a", Some(0)).await.unwrap();
        assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 137);
        world.end(daemon).await;
        assert_eq!(world.directories(), 0);
    });
}

#[test]
fn an_exit_that_nobody_saw_is_still_exact() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    first_daemon(&world, async |daemon| {
        daemon
            .run(
                &owner,
                "a",
                "echo started; sleep 0.5; echo last words; exit 9",
            )
            .await;
        daemon.says(&owner, "a", "started").await;
    });
    std::thread::sleep(Duration::from_secs(1));
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        assert_eq!(
            daemon.engine.wait(&owner, "a", false).await.unwrap().code,
            9
        );
        assert_eq!(
            daemon.output(&owner, "a", false).await,
            "started\nlast words\n"
        );
        world.end(daemon).await;
    });
}

#[test]
fn what_nobody_asks_for_is_reaped_and_what_is_damaged_is_ended() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let mut ids = Vec::new();
    first_daemon(&world, async |daemon| {
        for name in ["forgotten", "wanted", "damaged"] {
            ids.push(daemon.run(&owner, name, TICKS).await);
        }
        daemon.run(&Owner::Operator, "operators", TICKS).await;
    });
    std::fs::write(world.instances().join(&ids[2]).join("instance.json"), "{").unwrap();
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(500).await;
        let engine = &daemon.engine;
        engine.inspect(&owner, "wanted").await.unwrap();
        assert!(matches!(
            engine.inspect(&owner, "damaged").await,
            Err(EngineError::NotFound(_))
        ));
        let reaped = async {
            while engine.list(Some(&owner)).await.len() > 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reaped)
            .await
            .unwrap();
        assert_eq!(
            engine.inspect(&owner, "wanted").await.unwrap().state,
            State::Running
        );
        assert_eq!(
            engine
                .inspect(&Owner::Operator, "operators")
                .await
                .unwrap()
                .state,
            State::Running
        );
        assert_eq!(world.directories(), 2);
        world.end(daemon).await;
        assert_eq!(world.directories(), 0);
    });
}

#[test]
fn labels_and_the_hard_timeout_outlive_the_daemon() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let labels = |value: &str| BTreeMap::from([("team".to_owned(), value.to_owned())]);
    first_daemon(&world, async |daemon| {
        // Process 1 gets no signal that it has no handler for.
        let mut request = shell(&owner, "a", &format!("trap 'exit 7' TERM; {TICKS}"));
        request.labels = BTreeMap::from([("of".to_owned(), "create".to_owned())]);
        request.start = StartOptions {
            token: Some("one".into()),
            labels: labels("first"),
            hard_timeout_ms: Some(2_000),
        };
        let engine = &daemon.engine;
        engine.create(request).await.unwrap();
        let early = engine.set_labels(&owner, "a", None, labels("x")).await;
        assert!(matches!(early, Err(EngineError::Conflict(_))), "{early:?}");
        engine.start_instance(&owner, "a").await.unwrap();
        let set = engine.set_labels(&owner, "a", Some("one"), labels("second"));
        set.await.unwrap();
        // Meant for another start of this name.
        let other = engine
            .set_labels(&owner, "a", Some("two"), labels("third"))
            .await;
        assert!(matches!(other, Err(EngineError::NotFound(_))), "{other:?}");
        daemon.says(&owner, "a", "tick 1\n").await;
    });
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        let engine = &daemon.engine;
        let inspect = engine.inspect(&owner, "a").await.unwrap();
        assert_eq!(inspect.state, State::Running);
        assert_eq!(inspect.object_labels, labels("second"));
        assert_eq!(inspect.labels["team"], "second");
        assert_eq!(inspect.labels["of"], "create");
        // It counts from the start, not from the adoption.
        let exit = engine.wait(&owner, "a", false).await.unwrap();
        assert_eq!(exit.code, 7);
        let ended = engine.inspect(&owner, "a").await.unwrap();
        assert_eq!(
            ended.error.as_deref(),
            Some("stopped: its hardTimeout of 2000 ms is over")
        );
        let ran_ms = ended.finished_ms.unwrap() - ended.started_ms.unwrap();
        assert!((2_000..8_000).contains(&ran_ms), "{ran_ms}");
        world.end(daemon).await;
    });
}

#[test]
fn an_orphan_is_removed_unless_somebody_asks_for_it() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(300).await;
        let engine = &daemon.engine;
        for name in ["forgotten", "woken", "patient"] {
            daemon.create(&owner, name, TICKS).await;
            engine.start_instance(&owner, name).await.unwrap();
        }
        engine
            .set_inactivity(&owner, "patient", None, 3_600_000)
            .await
            .unwrap();
        engine.orphan(&owner);
        engine.inspect(&owner, "woken").await.unwrap();
        let gone = |list: &[wharf_engine::Inspect]| !list.iter().any(|i| i.name == "forgotten");
        wharf_testkit::eventually("the reaper", async || {
            gone(&engine.list(None).await).then_some(())
        })
        .await;
        let left: Vec<_> = engine
            .list(None)
            .await
            .into_iter()
            .map(|i| i.name)
            .collect();
        assert_eq!(left, ["woken", "patient"]);
        world.end(daemon).await;
    });
}
