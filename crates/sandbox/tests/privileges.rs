//! Programs that gain privileges when they are executed: set-user-id, set-group-id and file
//! capabilities, as Docker has them; and `no_new_privileges`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use wharf_sandbox::{
    Capabilities, ExecSpec, ExecStreams, ProcessSpec, Root, SpawnFds, Spawner, SpawnerConfig,
};
use wharf_testkit::set_id::{self, DOCKER, LOOK, gained, nothing_gained};

use self::support::{Place, Ran, all_is_made_ahead};

/// A layer with such programs.
fn programs(place: &Place) -> std::path::PathBuf {
    let layer = place.path("programs");
    set_id::write(&layer);
    layer
}

/// What each of them says.
fn said(ran: &Ran) -> Vec<String> {
    assert_eq!(ran.err, "", "{ran:?}");
    set_id::said(&ran.out)
}

/// A container with these programs, and the host's C library, that looks at what a user gains.
fn container(place: &Place, layer: &Path, id: &str, script: &str) -> (ProcessSpec, SpawnFds) {
    let (mut spec, fds) = place.container(id, script);
    if let Root::Overlay { lower, .. } = &mut spec.root {
        // A layer and not a mount: a start with mounts of the host's is never one that was made
        // ahead.
        *lower = vec![layer.to_owned(), place.busybox()];
    }
    spec.user = "app".into();
    (spec, fds)
}

async fn exec(spawner: &Spawner, id: &str) -> Ran {
    let spec = ExecSpec {
        id: format!("exec-{id}"),
        container: id.to_owned(),
        argv: vec!["sh".into(), "-c".into(), LOOK.into()],
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: "app".into(),
        nofile: None,
        streams: ExecStreams::Pipes { stdin: false },
    };
    let (process, streams) = spawner.exec(&spec).await.unwrap();
    let wharf_sandbox::Streams::Pipes { stdout, stderr, .. } = streams else {
        unreachable!()
    };
    let (out, err) = (support::read_all(stdout), support::read_all(stderr));
    Ran {
        exit: process.wait().await.unwrap(),
        out: out.await.unwrap(),
        err: err.await.unwrap(),
    }
}

#[tokio::test]
async fn programs_gain_what_their_file_says() {
    let place = Place::new();
    let spawner = place.start().await;
    let layer = programs(&place);
    // The first is made when it is asked for, the second has been made ahead.
    for id in ["first", "second"] {
        let (spec, fds) = container(&place, &layer, id, LOOK);
        let ran = support::run(&spawner, &spec, fds).await.unwrap();
        assert_eq!(said(&ran), gained(DOCKER), "{id}: {ran:?}");
        all_is_made_ahead(&spawner, 0).await;
    }
    // A capability that was taken away is gained by nobody; a program that cannot work without it
    // is not executed (capabilities(7)).
    let (mut spec, fds) = container(&place, &layer, "fewer", LOOK);
    spec.capabilities = Capabilities::default().without("CHOWN");
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    assert_eq!(said(&ran), gained("00000000a80425fa"), "{ran:?}");
    let (mut spec, fds) = container(
        &place,
        &layer,
        "none",
        "/root-suid x /dev/null; /caps x /dev/null",
    );
    spec.capabilities = Capabilities::NONE;
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    assert!(
        ran.err.contains("/caps: Operation not permitted"),
        "{ran:?}"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn exec_gains_what_the_main_process_would() {
    let place = Place::new();
    let spawner = place.start().await;
    let layer = programs(&place);
    for (id, no_new_privileges, expected) in [
        ("may", false, gained(DOCKER)),
        ("not", true, nothing_gained()),
    ] {
        let script = format!("{LOOK}; echo ready; exec sleep 1000");
        let (mut spec, fds) = container(&place, &layer, id, &script);
        spec.no_new_privileges = no_new_privileges;
        let process = spawner.spawn(&spec, fds).await.unwrap();
        let ran = exec(&spawner, id).await;
        assert_eq!(said(&ran), expected, "{ran:?}");
        drop(process);
        spawner.kill(id).await.unwrap();
        spawner.wait(id).await.unwrap();
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn nothing_is_gained_with_no_new_privileges() {
    let place = Place::new();
    let spawner = place.start().await;
    let layer = programs(&place);
    for id in ["first", "second"] {
        let (mut spec, fds) = container(&place, &layer, id, LOOK);
        spec.no_new_privileges = true;
        let ran = support::run(&spawner, &spec, fds).await.unwrap();
        assert_eq!(said(&ran), nothing_gained(), "{id}: {ran:?}");
        all_is_made_ahead(&spawner, 0).await;
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn no_other_mount_than_the_root_gives_privileges() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "awk '$2 != \"/\" && $4 !~ /(^|,)nosuid(,|$)/ {print}' /proc/self/mounts; wc -l < /proc/self/mounts";
    let (mut spec, fds) = place.container("mounts", script);
    spec.mounts = vec![
        support::bind(&place.path("shared"), "/shared", false),
        support::file("/etc/one", "one\n"),
    ];
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    let mounts: usize = ran.out.trim().parse().expect(&ran.out);
    assert!(mounts > 10, "{ran:?}");
    place.finish(spawner).await;
}

/// There, root inside is the host's root.
#[tokio::test]
async fn nothing_is_gained_without_user_namespaces() {
    let place = Place::new();
    let config = SpawnerConfig {
        ids: None,
        ..place.config(20_000)
    };
    let spawner = Spawner::start(config).await.unwrap().0;
    let layer = programs(&place);
    for id in ["first", "second"] {
        let (spec, fds) = container(&place, &layer, id, LOOK);
        let ran = support::run(&spawner, &spec, fds).await.unwrap();
        assert_eq!(said(&ran), nothing_gained(), "{id}: {ran:?}");
        all_is_made_ahead(&spawner, 0).await;
    }
    let (spec, fds) = container(&place, &layer, "long", "exec sleep 1000");
    drop(spawner.spawn(&spec, fds).await.unwrap());
    let ran = exec(&spawner, "long").await;
    assert_eq!(said(&ran), nothing_gained(), "{ran:?}");
    spawner.kill("long").await.unwrap();
    spawner.wait("long").await.unwrap();
    place.finish(spawner).await;
}
