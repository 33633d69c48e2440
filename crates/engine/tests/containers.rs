//! Real containers through the engine.

use std::time::Duration;

use wharf_engine::Isolation;
use wharf_engine::lifecycle::{EndedBy, State, Until};
use wharf_engine::{Application, EngineError, Owner};
use wharf_testkit::engine::{World, script_owner, shell};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");
const FOREVER: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done";

#[tokio::test]
async fn output_and_exit_code_are_exact() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    let engine = &daemon.engine;
    let mut request = shell(
        &owner,
        "a",
        "echo out; echo err >&2; echo $GREETING $HOSTNAME; cat /etc/hostname; exit 42",
    );
    request.env = vec!["GREETING=moin".to_owned()];
    let id = engine.create(request).await.unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    let exit = engine.wait(&owner, "a", false).await.unwrap();
    assert_eq!((exit.code, exit.signal), (42, None));
    let host = &id[..12];
    assert_eq!(
        daemon.output(&owner, "a", false).await,
        format!("out\nmoin {host}\n{host}\n")
    );
    assert_eq!(daemon.output(&owner, "a", true).await, "err\n");

    let inspect = engine.inspect(&owner, &id[..8]).await.unwrap();
    assert_eq!(inspect.state, State::Exited(exit));
    assert!(
        inspect.started_ms.is_some()
            && inspect.finished_ms >= inspect.started_ms
            && inspect.pid.is_none()
    );
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn stop_is_polite_first_and_a_signal_death_is_128_plus_n() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    daemon.run(&owner, "polite", FOREVER).await;
    daemon.says(&owner, "polite", "ready").await;
    engine.stop(&owner, "polite", None).await.unwrap();
    assert_eq!(engine.wait(&owner, "polite", false).await.unwrap().code, 7);
    assert!(matches!(
        engine.stop(&owner, "polite", None).await,
        Err(EngineError::NotModified(_))
    ));

    // PID 1 without a handler does not hear SIGTERM.
    daemon
        .run(&owner, "deaf", "echo ready; while :; do sleep 0.02; done")
        .await;
    daemon.says(&owner, "deaf", "ready").await;
    engine.stop(&owner, "deaf", Some(50)).await.unwrap();
    let exit = engine.wait(&owner, "deaf", false).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(matches!(
        engine.signal(&owner, "deaf", 15).await,
        Err(EngineError::Conflict(_))
    ));
    world.end(daemon).await;
}

#[tokio::test]
async fn each_start_is_a_new_generation_also_under_a_reused_name() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    daemon
        .run(&owner, "a", "echo one >> /kept; cat /kept")
        .await;
    engine.wait(&owner, "a", false).await.unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    engine.wait(&owner, "a", false).await.unwrap();
    assert_eq!(engine.inspect(&owner, "a").await.unwrap().generation, 2);
    assert_eq!(
        daemon.output(&owner, "a", false).await,
        "one\none\none\n",
        "its files outlive a restart"
    );
    engine.remove(&owner, "a", false).await.unwrap();
    assert!(matches!(
        engine.inspect(&owner, "a").await,
        Err(EngineError::NotFound(_))
    ));
    daemon.run(&owner, "a", FOREVER).await;
    assert_eq!(engine.inspect(&owner, "a").await.unwrap().generation, 3);
    assert!(matches!(
        engine.create(shell(&owner, "a", "x")).await,
        Err(EngineError::Conflict(_))
    ));
    assert!(matches!(
        engine.start_instance(&owner, "a").await,
        Err(EngineError::NotModified(_))
    ));
    assert!(matches!(
        engine.remove(&owner, "a", false).await,
        Err(EngineError::Conflict(_))
    ));
    world.end(daemon).await;
}

#[tokio::test]
async fn removal_ends_waits_and_takes_the_directory() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), daemon.engine.clone());
    daemon.run(&owner, "a", FOREVER).await;
    let wait = |until| {
        let (engine, owner) = (engine.clone(), owner.clone());
        tokio::spawn(async move { engine.wait_until(&owner, "a", until).await })
    };
    let (exit, removed) = (wait(Until::NotRunning), wait(Until::Removed));
    tokio::time::sleep(Duration::from_millis(20)).await;
    engine.remove(&owner, "a", true).await.unwrap();
    assert_eq!(exit.await.unwrap().unwrap().code, 137);
    assert_eq!(removed.await.unwrap().unwrap().code, 137);
    assert_eq!(world.directories(), 0);
    assert!(engine.list(None).await.is_empty());
    world.end(daemon).await;
}

#[tokio::test]
async fn a_missing_command_is_named_and_exits_127() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let mut request = shell(&owner, "a", "");
    request.cmd = vec!["/no/such/server".to_owned()];
    engine.create(request).await.unwrap();
    let error = engine.start_instance(&owner, "a").await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Invalid(text) if text.contains("/no/such/server")),
        "{error:?}"
    );
    assert_eq!(engine.wait(&owner, "a", false).await.unwrap().code, 127);
    let inspect = engine.inspect(&owner, "a").await.unwrap();
    assert!(inspect.error.unwrap().contains("/no/such/server"));

    let mut request = shell(&owner, "b", "");
    request.image = "nowhere:1".to_owned();
    assert!(matches!(
        engine.create(request).await,
        Err(EngineError::NotFound(_))
    ));
    let mut request = shell(&owner, "c", "");
    request.cmd = Vec::new();
    assert!(matches!(
        engine.create(request).await,
        Err(EngineError::Invalid(_))
    ));
    world.end(daemon).await;
}

#[tokio::test]
async fn one_application_runs_no_more_than_its_maximum() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let request = |name: &str| {
        let mut request = shell(&owner, name, FOREVER);
        request.application = Some(Application {
            id: "app".into(),
            name: "hello".into(),
            max_instances: 2,
        });
        request
    };
    for name in ["a", "b", "c"] {
        engine.create(request(name)).await.unwrap();
    }
    engine.start_instance(&owner, "a").await.unwrap();
    engine.start_instance(&owner, "b").await.unwrap();
    let text = "application \"hello\" already runs 2 of max_instances 2; raise max_instances or let one sleep";
    let refused = engine.start_instance(&owner, "c").await;
    assert!(
        matches!(&refused, Err(EngineError::Limit(t)) if t == text),
        "{refused:?}"
    );
    let refused = engine.create(request("d")).await;
    assert!(
        matches!(&refused, Err(EngineError::Limit(t)) if t == text),
        "{refused:?}"
    );
    let refusals = engine.refusals();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(
        (
            refusals[0].application.as_str(),
            refusals[0].reason.as_str()
        ),
        ("app", text)
    );
    engine.stop(&owner, "a", Some(0)).await.unwrap();
    engine.start_instance(&owner, "c").await.unwrap();
    // A roll to another image stops what runs.
    assert_eq!(
        engine
            .roll(
                "app",
                &engine.inspect(&owner, "b").await.unwrap().image_id,
                Isolation::Namespace,
                false
            )
            .await,
        0
    );
    assert_eq!(
        engine
            .roll("app", "sha256:other", Isolation::Namespace, false)
            .await,
        2
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn owners_do_not_see_each_other() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (one, two) = (script_owner(), Owner::Script("other".to_owned()));
    let id = daemon.create(&one, "a", FOREVER).await;
    daemon.create(&two, "a", FOREVER).await;
    for reference in [id.as_str(), &id[..12]] {
        assert!(matches!(
            daemon.engine.inspect(&two, reference).await,
            Err(EngineError::NotFound(_))
        ));
    }
    // The operator sees both; a name that both have is not enough, and its own comes first.
    let operator = Owner::Operator;
    let seen = daemon.engine.inspect(&operator, &id[..12]).await.unwrap();
    assert_eq!((&seen.id, &seen.owner), (&id, &one));
    assert!(daemon.engine.inspect(&operator, "a").await.is_err());
    let own = daemon.create(&operator, "a", FOREVER).await;
    let seen = daemon.engine.inspect(&operator, "a").await.unwrap();
    assert_eq!(seen.id, own);
    assert!(matches!(
        daemon.engine.inspect(&one, &own).await,
        Err(EngineError::NotFound(_))
    ));
    daemon.engine.remove_all(Some(&one)).await;
    assert_eq!(daemon.engine.list(None).await.len(), 2);
    world.end(daemon).await;
}

#[tokio::test]
async fn a_script_keeps_only_so_many_that_have_ended() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    for n in 0..103 {
        let name = format!("n{n}");
        let mut request = shell(&owner, &name, "");
        request.cmd = vec!["/missing".to_owned()];
        engine.create(request).await.unwrap();
        engine.start_instance(&owner, &name).await.unwrap_err();
    }
    let gone = async {
        while engine.inspect(&owner, "n2").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .unwrap();
    assert_eq!(engine.list(Some(&owner)).await.len(), 100);
    assert!(engine.inspect(&owner, "n3").await.is_ok());
    world.end(daemon).await;
}

#[tokio::test]
async fn two_containers_can_share_a_network_and_the_ingress_reaches_it() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let network = daemon.networks.create().await.unwrap();
    let mut request = shell(&owner, "server", "echo hello | nc -l -p 8080");
    request.network = Some(network.clone());
    engine.create(request).await.unwrap();
    engine.start_instance(&owner, "server").await.unwrap();
    assert_eq!(
        engine.network(&owner, "server").await.unwrap().ingress(),
        network.ingress()
    );
    let mut stream = loop {
        match network.dial(8080).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text)
        .await
        .unwrap();
    assert_eq!(text, "hello\n");
    world.end(daemon).await;
}

#[tokio::test]
async fn who_ended_a_container_is_known() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let ended_by = async |name: &str| {
        engine.wait(&owner, name, false).await.unwrap();
        engine.inspect(&owner, name).await.unwrap().ended_by
    };
    daemon.run(&owner, "returns", "exit 3").await;
    assert_eq!(ended_by("returns").await, Some(EndedBy::Itself));
    daemon
        .run(&owner, "crashes", "sh -c 'kill -SEGV $$'; exit 139")
        .await;
    assert_eq!(ended_by("crashes").await, Some(EndedBy::Itself));

    for name in ["stopped", "signalled", "rolled"] {
        let mut request = shell(&owner, name, FOREVER);
        request.application = (name == "rolled").then(|| Application {
            id: "app".to_owned(),
            name: "app".to_owned(),
            max_instances: 1,
        });
        engine.create(request).await.unwrap();
        engine.start_instance(&owner, name).await.unwrap();
        assert_eq!(engine.inspect(&owner, name).await.unwrap().ended_by, None);
        daemon.says(&owner, name, "ready").await;
    }
    engine.stop(&owner, "stopped", None).await.unwrap();
    assert_eq!(ended_by("stopped").await, Some(EndedBy::Stop));
    engine.signal(&owner, "signalled", 15).await.unwrap();
    assert_eq!(ended_by("signalled").await, Some(EndedBy::Signal));
    assert_eq!(
        engine
            .roll("app", "sha256:other", Isolation::Namespace, false)
            .await,
        1
    );
    assert_eq!(ended_by("rolled").await, Some(EndedBy::Rollout));
    // A new start has a new end.
    engine.start_instance(&owner, "rolled").await.unwrap();
    daemon.says(&owner, "rolled", "ready\nready").await;
    engine.signal(&owner, "rolled", 9).await.unwrap();
    assert_eq!(ended_by("rolled").await, Some(EndedBy::Signal));
    engine.start_instance(&owner, "rolled").await.unwrap();
    daemon.says(&owner, "rolled", "ready\nready\nready").await;
    assert_eq!(engine.end_application("other").await, 0);
    assert_eq!(engine.end_application("app").await, 1);
    assert_eq!(ended_by("rolled").await, Some(EndedBy::Deletion));

    let mut request = shell(&owner, "greedy", "tail /dev/zero");
    request.limits.memory_bytes = Some(16 << 20);
    engine.create(request).await.unwrap();
    engine.start_instance(&owner, "greedy").await.unwrap();
    assert_eq!(ended_by("greedy").await, Some(EndedBy::OutOfMemory));
    world.end(daemon).await;
}

#[tokio::test]
async fn output_is_read_along_to_its_end() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = Owner::Operator;
    // Longer than the log is kept: who reads along in time misses nothing of it.
    let script = "i=0; while [ $i -lt 3000 ]; do echo \"$i $(printf '%01000d' 0)\"; i=$((i+1)); done; echo end >&2; exit 3";
    daemon.create(&owner, "c", script).await;
    let mut follower = daemon.engine.follow(&owner, "c", true).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut output = [String::new(), String::new()];
        while let Some(entries) = follower.next().await.unwrap() {
            for (is_stderr, _, bytes) in entries {
                output[usize::from(is_stderr)].push_str(std::str::from_utf8(&bytes).unwrap());
            }
        }
        output
    });
    daemon.engine.start_instance(&owner, "c").await.unwrap();
    let [out, err] = reading.await.unwrap();
    let numbers: Vec<_> = out
        .lines()
        .map(|line| line.split(' ').next().unwrap().parse::<u32>().unwrap())
        .collect();
    assert_eq!(numbers, (0..3000).collect::<Vec<_>>());
    assert_eq!(err, "end\n");
    // The kept rest, and nothing to wait for.
    let mut late = daemon.engine.follow(&owner, "c", false).await.unwrap();
    let kept = late.backlog().unwrap();
    assert!(!kept.is_empty() && late.next().await.unwrap().is_none());
    let mut later = daemon.engine.follow(&owner, "c", true).await.unwrap();
    assert!(later.next().await.unwrap().is_none());
    world.end(daemon).await;
}

#[tokio::test]
async fn what_a_container_listens_on_is_known() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let id = daemon
        .run(&owner, "a", "nc -l -p 8080 & nc -l -p 9090 & wait")
        .await;
    wharf_testkit::eventually("two listeners", async || {
        (engine.listening(&id) == Some(vec![8080, 9090])).then_some(())
    })
    .await;
    engine.signal(&owner, "a", 9).await.unwrap();
    engine.wait(&owner, "a", false).await.unwrap();
    assert_eq!(engine.listening(&id), None);
    world.end(daemon).await;
}

#[tokio::test]
async fn an_own_network_shows_its_ports_and_goes_with_the_process() {
    use tokio::io::AsyncReadExt;
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = Owner::Operator;
    let any = "127.0.0.1:0".parse().unwrap();
    let request = |name: &str, outside| wharf_engine::Create {
        own_network: wharf_engine::OwnNetwork {
            internet: false,
            publish: vec![wharf_engine::Published {
                inside: 80,
                outside,
            }],
        },
        auto_remove: true,
        ..shell(&owner, name, "while :; do echo hi | nc -l -p 80; done")
    };
    daemon.engine.create(request("c", any)).await.unwrap();
    daemon.engine.start_instance(&owner, "c").await.unwrap();
    let published = daemon.engine.inspect(&owner, "c").await.unwrap().published;
    let address = published[0].outside;
    assert_eq!(published[0].inside, 80);
    wharf_testkit::eventually("an answer", async || {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        (text == "hi\n").then_some(())
    })
    .await;
    // A port that is taken is named.
    daemon.engine.create(request("d", address)).await.unwrap();
    let error = daemon.engine.start_instance(&owner, "d").await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    daemon.engine.signal(&owner, "c", 9).await.unwrap();
    wharf_testkit::eventually("both to be removed", async || {
        daemon.engine.list(None).await.is_empty().then_some(())
    })
    .await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    world.end(daemon).await;
}
