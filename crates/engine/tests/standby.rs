//! Instances that are started ahead: real processes, frozen, handed over.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use wharf_engine::lifecycle::{State, Until};
use wharf_engine::{Application, Create, EngineError, Isolation, Owner, StandbyEvent};
use wharf_net::{Network, Policy};
use wharf_testkit::engine::{Daemon, World, script_owner, shell};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");
/// Says at its start who it is, ticks, and answers with that on port 8080.
const APP: &str = "echo begun $WHO; (n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.02; done) & \
    mkdir /www; printf $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www";

fn request(name: &str, script: &str, network: Option<Network>) -> Create {
    let mut request = shell(&script_owner(), name, script);
    request.env = vec!["WHO=me".to_owned()];
    request.network = network;
    request.application = Some(Application {
        id: "app".into(),
        name: "hello".into(),
        max_instances: 30,
    });
    request
}

/// A network as a sidecar has it.
async fn network(daemon: &Daemon) -> Network {
    daemon.networks.create().await.unwrap()
}

async fn started(daemon: &Daemon, name: &str) -> String {
    let request = request(name, APP, Some(network(daemon).await));
    let id = daemon.engine.create(request).await.unwrap();
    let owner = script_owner();
    daemon.engine.start_instance(&owner, name).await.unwrap();
    id
}

async fn handed(daemon: &Daemon, name: &str) -> bool {
    let found = daemon.engine.inspect(&script_owner(), name).await.unwrap();
    found.handed
}

/// What the app answers through an ingress, as workerd asks.
async fn fetch(ingress: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(ingress).await.unwrap();
    stream
        .write_all(
            b"CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: x\r\nX-Dst-Addr: 127.0.0.1:8080\r\n\r\n",
        )
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer:?}"));
    body.to_owned()
}

#[tokio::test]
async fn what_it_waits_for_comes_when_it_runs_on() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let script = "(sleep 1; echo fired) & mkdir /www; exec httpd -f -p 8080 -h /www";
    let standby = daemon.engine.prepare_standby(request("x", script, None));
    let id = standby.await.unwrap().id;
    // Its second is over, but not for it.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(
        daemon
            .engine
            .logs(&Owner::Operator, &id)
            .await
            .unwrap()
            .is_empty()
    );
    let request = request("one", script, Some(network(&daemon).await));
    assert_eq!(daemon.engine.create(request).await.unwrap(), id);
    let begin = std::time::Instant::now();
    let owner = script_owner();
    daemon.engine.start_instance(&owner, "one").await.unwrap();
    daemon.says(&owner, "one", "fired\n").await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "it waits for a whole second again"
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn each_is_handed_once_and_stands_still_until_then() {
    let world = World::new(SPAWNER);
    let daemon = Arc::new(world.daemon(60_000).await);
    let engine = &daemon.engine;
    let mut events = engine.watch_standbys();
    let mut ahead = BTreeSet::new();
    for _ in 0..3 {
        let standby = engine.prepare_standby(request("x", APP, None)).await;
        ahead.insert(standby.unwrap().id);
    }
    // They are nobody's, not counted, and say no more.
    assert!(engine.list(Some(&script_owner())).await.is_empty());
    let ticks = async || {
        let mut said = Vec::new();
        for id in &ahead {
            said.push(engine.logs(&Owner::Operator, id).await.unwrap().len());
        }
        said
    };
    let before = ticks().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ticks().await, before);

    let names: Vec<String> = (0..20).map(|n| format!("o{n}")).collect();
    let starts = names.iter().map(|name| {
        let (daemon, name) = (daemon.clone(), name.clone());
        tokio::spawn(async move { started(&daemon, &name).await })
    });
    let mut ids = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        ids.push(start.await.unwrap());
    }
    let distinct: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(distinct.len(), 20);
    assert!(ahead.is_subset(&distinct));
    let mut were_ahead = 0;
    for name in &names {
        let it = engine.inspect(&script_owner(), name).await.unwrap();
        assert_eq!((&it.state, it.generation), (&State::Running, 1));
        were_ahead += usize::from(it.handed);
        assert!(it.env.contains(&"WHO=me".to_owned()));
        // Through its own sidecar's ingress, the one with its name answers; and it runs.
        let network = engine.network(&script_owner(), name).await.unwrap();
        assert_eq!(fetch(network.ingress()).await, it.id[..12]);
        let log = daemon.output(&script_owner(), name, false).await;
        assert!(log.starts_with("begun me\n"), "{log}");
        let said = log.lines().count();
        daemon
            .says(&script_owner(), name, &format!("tick {}\n", said + 5))
            .await;
    }
    assert_eq!(were_ahead, 3);
    let told: BTreeSet<_> = [(); 3]
        .map(|()| match events.try_recv() {
            Ok(StandbyEvent::Handed { id }) => id,
            other => panic!("{other:?}"),
        })
        .into();
    assert_eq!(told, ahead);
    // One that was handed is like any other: it ends, and is started anew.
    let name = names
        .iter()
        .zip(&ids)
        .find(|(_, id)| ahead.contains(*id))
        .unwrap()
        .0;
    engine.stop(&script_owner(), name, Some(0)).await.unwrap();
    let exit = engine.wait(&script_owner(), name, false).await.unwrap();
    assert_eq!(exit.code, 137);
    let owner = script_owner();
    engine.start_instance(&owner, name).await.unwrap();
    let again = engine.inspect(&owner, name).await.unwrap();
    assert_eq!((again.state, again.generation), (State::Running, 2));
    world.end(Arc::into_inner(daemon).unwrap()).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn one_on_gvisors_kernel_stands_still_and_is_handed_to_who_asks_for_that_class() {
    wharf_testkit::runsc();
    stands_still_and_is_handed(Isolation::Gvisor).await;
}

#[tokio::test]
async fn one_in_a_machine_stands_still_and_is_handed_to_who_asks_for_that_class() {
    stands_still_and_is_handed(Isolation::Microvm).await;
}

async fn stands_still_and_is_handed(isolation: Isolation) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (engine, owner) = (&daemon.engine, script_owner());
    let of_class = |name: &str, network| Create {
        isolation: Some(isolation),
        ..request(name, APP, network)
    };
    let standby = engine.prepare_standby(of_class("x", None)).await.unwrap();
    let said = || async {
        engine
            .logs(&Owner::Operator, &standby.id)
            .await
            .unwrap()
            .len()
    };
    // What it had written already may still be on its way.
    let mut before = None;
    let mut stands_still = async || {
        for _ in 0..20 {
            let now = Some(said().await);
            if std::mem::replace(&mut before, now) == now {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    };
    assert!(stands_still().await, "it ticks on");

    assert_ne!(started(&daemon, "n").await, standby.id);
    assert!(!handed(&daemon, "n").await);
    let network = network(&daemon).await;
    let asked = of_class("g", Some(network.clone()));
    assert_eq!(engine.create(asked).await.unwrap(), standby.id);
    engine.start_instance(&owner, "g").await.unwrap();
    let it = engine.inspect(&owner, "g").await.unwrap();
    assert!(it.handed && it.isolation == isolation);
    assert_eq!(fetch(network.ingress()).await, standby.id[..12]);
    let lines = daemon.output(&owner, "g", false).await.lines().count();
    daemon
        .says(&owner, "g", &format!("tick {}\n", lines + 5))
        .await;
    drop(network);
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn nothing_is_handed_that_is_not_exactly_what_is_asked_for() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let engine = &daemon.engine;
    let (tar, images) = (wharf_testkit::busybox::tar(), world.images());
    images
        .import_rootfs("busybox:latest", tar.as_slice())
        .unwrap();
    let standby = engine
        .prepare_standby(request("x", APP, None))
        .await
        .unwrap();
    type Change = fn(&mut Create);
    // Nor is it touched by anybody meanwhile: who looks changes nothing.
    let operator = Owner::Operator;
    let signalled = engine.signal(&operator, &standby.id, 10).await;
    assert!(matches!(signalled, Err(EngineError::Conflict(_))));
    let held = engine.hold(&operator, &standby.id).await;
    assert!(matches!(held, Err(EngineError::Conflict(_))));
    let other: [(&str, Change); 8] = [
        ("env", |r| r.env = vec!["WHO=you".to_owned()]),
        ("more-env", |r| r.env.push("MORE=1".to_owned())),
        ("cmd", |r| r.cmd[2].push(' ')),
        ("user", |r| r.user = Some("1000".to_owned())),
        ("cwd", |r| r.working_dir = Some("/tmp".to_owned())),
        ("memory", |r| r.limits.memory_bytes = Some(64 << 20)),
        ("app", |r| r.application.as_mut().unwrap().id.push('2')),
        ("owner", |r| r.owner = Owner::Script("other".to_owned())),
    ];
    for (name, change) in other {
        let mut asked = request(name, APP, Some(network(&daemon).await));
        change(&mut asked);
        let owner = asked.owner.clone();
        let id = engine.create(asked).await.unwrap();
        assert_ne!(id, standby.id, "{name}");
        engine.remove(&owner, name, true).await.unwrap();
    }
    let with_internet = network(&daemon).await;
    with_internet.set_policy(Policy { internet: true });
    let asked = request("net", APP, Some(with_internet));
    assert_ne!(engine.create(asked).await.unwrap(), standby.id);
    // Another image under the same name.
    let mut longer = tar.clone();
    longer.splice(0..0, padding());
    images
        .import_rootfs("busybox:latest", longer.as_slice())
        .unwrap();
    let asked = request("image", APP, Some(network(&daemon).await));
    assert_ne!(engine.create(asked).await.unwrap(), standby.id);
    assert!(!handed(&daemon, "image").await);
    images
        .import_rootfs("busybox:latest", tar.as_slice())
        .unwrap();
    // And then what it is for.
    let asked = request("same", APP, Some(network(&daemon).await));
    assert_eq!(engine.create(asked).await.unwrap(), standby.id);
    assert!(handed(&daemon, "same").await);
    // Made, and then not wanted.
    engine.remove(&script_owner(), "same", true).await.unwrap();
    assert!(!engine.discard_standby(&standby.id).await);
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

/// An empty directory, as a tar entry in front of others.
fn padding() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    builder
        .append_data(&mut header, "more/", std::io::empty())
        .unwrap();
    builder.get_ref().clone()
}

#[tokio::test]
async fn one_that_ends_by_itself_is_told_and_goes_with_its_script() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let engine = &daemon.engine;
    let failed = engine
        .prepare_standby(request("x", "exit 3", None))
        .await
        .unwrap_err();
    assert!(
        matches!(&failed, EngineError::Conflict(text) if text.contains('3')),
        "{failed}"
    );
    let first = engine.prepare_standby(request("x", APP, None)).await;
    let second = engine.prepare_standby(request("x", APP, None)).await;
    let mut events = engine.watch_standbys();
    // Killed from outside, also while it stands still.
    let pid = engine
        .inspect(&Owner::Operator, &first.as_ref().unwrap().id)
        .await
        .unwrap()
        .pid
        .unwrap();
    wharf_testkit::kill(pid);
    let id = first.unwrap().id;
    assert_eq!(events.recv().await, Some(StandbyEvent::Ended { id }));
    engine.remove_all(Some(&script_owner())).await;
    let id = second.unwrap().id;
    assert_eq!(events.recv().await, Some(StandbyEvent::Ended { id }));
    assert!(engine.list(None).await.is_empty());
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn one_that_ends_as_soon_as_it_may_run_tells_its_exit_code() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (engine, owner) = (&daemon.engine, script_owner());
    // Its time is over while it stands still.
    let app = "mkdir /www; httpd -p 8080 -h /www; usleep 300000; exit 5";
    for n in 0..5 {
        let name = format!("o{n}");
        engine
            .prepare_standby(request("x", app, None))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = request(&name, app, Some(network(&daemon).await));
        engine.create(asked).await.unwrap();
        assert!(handed(&daemon, &name).await);
        let wait = engine.wait_until(&owner, &name, Until::NextExit);
        let (exit, started) = tokio::join!(wait, engine.start_instance(&owner, &name));
        started.unwrap();
        assert_eq!(exit.unwrap().code, 5);
    }
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[test]
fn a_new_daemon_ends_what_nobody_has_and_keeps_what_was_handed() {
    let world = World::new(SPAWNER);
    let owner = script_owner();
    let mut kept = None;
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let daemon = world.daemon(60_000).await;
        for _ in 0..2 {
            let standby = daemon.engine.prepare_standby(request("x", APP, None));
            standby.await.unwrap();
        }
        let id = started(&daemon, "started").await;
        let made = request("made", APP, Some(network(&daemon).await));
        daemon.engine.create(made).await.unwrap();
        assert!(handed(&daemon, "made").await && handed(&daemon, "started").await);
        let standby = daemon.engine.prepare_standby(request("x", APP, None));
        standby.await.unwrap();
        // Its record is written just after its start is answered.
        tokio::time::sleep(Duration::from_millis(300)).await;
        kept = Some(id);
    });
    drop(runtime);
    let id = kept.unwrap();
    Runtime::new().unwrap().block_on(async {
        let daemon = world.daemon(60_000).await;
        let all = daemon.engine.list(None).await;
        let names: Vec<_> = all.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["started"]);
        assert_eq!((&all[0].id, &all[0].state), (&id, &State::Running));
        let network = daemon.engine.network(&owner, "started").await.unwrap();
        // On the host's loopback, at any port, until a Worker claims it.
        assert_eq!(fetch(network.ingress()).await, id[..12]);
        let owner = script_owner();
        daemon
            .engine
            .stop(&owner, "started", Some(0))
            .await
            .unwrap();
        let exit = daemon.engine.wait(&owner, "started", false).await.unwrap();
        assert_eq!(exit.code, 137);
        world.end(daemon).await;
        assert_eq!(world.directories(), 0);
    });
}
