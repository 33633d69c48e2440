//! An instance's files from outside: volumes, archives into it, and holding it still.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wharf_engine::{EngineError, FromSnapshot, VolumeMount};
use wharf_testkit::engine::{Daemon, World, script_owner, shell};
use wharf_testkit::until;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");
const WAIT: &str = "echo ready; while :; do sleep 0.02; done";

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1001);
        // The crate would refuse a hostile name.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

async fn put(
    daemon: &Daemon,
    name: &str,
    into: &str,
    entries: &[(&str, &str)],
) -> Result<(), EngineError> {
    let archive = std::io::Cursor::new(archive(entries));
    let (engine, owner) = (&daemon.engine, script_owner());
    engine
        .extract(&owner, name, Path::new(into), 1 << 20, Box::new(archive))
        .await
}

async fn runs_to_the_end(daemon: &Daemon, name: &str) -> String {
    let (engine, owner) = (&daemon.engine, script_owner());
    engine.start_instance(&owner, name).await.unwrap();
    engine.wait(&owner, name, false).await.unwrap();
    daemon.output(&owner, name, false).await
}

#[tokio::test]
async fn archives_reach_containers_before_they_start_while_they_run_and_after() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let seen = "cat /etc/deep/er/file; until [ -e /tmp/go ]; do sleep 0.01; done; cat /tmp/go; stat -c %u:%g /etc/deep/er/file /tmp/go";
    daemon.create(&owner, "a", seen).await;
    put(&daemon, "a", "/etc", &[("deep/er/file", "before\n")])
        .await
        .unwrap();
    engine.start_instance(&owner, "a").await.unwrap();
    daemon.says(&owner, "a", "before").await;
    put(&daemon, "a", "/tmp", &[("go", "while it runs\n")])
        .await
        .unwrap();
    engine.wait(&owner, "a", false).await.unwrap();
    let output = daemon.output(&owner, "a", false).await;
    assert_eq!(output, "before\nwhile it runs\n1000:1001\n1000:1001\n");
    put(&daemon, "a", "/new/dir", &[("file", "after")])
        .await
        .unwrap();
    assert_eq!(
        fs::read_to_string(
            engine
                .files(&owner, "a")
                .unwrap()
                .upper
                .join("new/dir/file")
        )
        .unwrap(),
        "after"
    );
    // A used work directory does not keep it from starting again.
    assert!(
        runs_to_the_end(&daemon, "a")
            .await
            .ends_with("while it runs\n1000:1001\n1000:1001\n")
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn no_archive_leads_out_of_a_container() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    let outside = world.place.path("outside");
    let link = format!(
        "ln -s {} /tmp/out; ln -s /proc/1/root /tmp/root; {WAIT}",
        outside.display()
    );
    daemon.run(&owner, "a", &link).await;
    daemon.says(&owner, "a", "ready").await;
    for (into, name) in [
        ("/tmp/out", "file"),
        ("/tmp", "out/file"),
        ("/tmp/root/tmp", "file"),
        ("/proc/sys/kernel", "file"),
        ("/proc", "sysrq-trigger"),
        ("/sys", "file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/tmp", "../file"),
        ("/tmp/../../..", "file"),
    ] {
        // Refused, or kept inside: never outside.
        let error = put(&daemon, "a", into, &[(name, "x")]).await.err();
        assert!(
            matches!(error, Some(EngineError::Invalid(_))),
            "{into} {name}: {error:?}"
        );
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    world.end(daemon).await;
}

#[tokio::test]
async fn volumes_begin_with_what_they_are_given_and_keep_what_is_written() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let kept = world.place.path("kept");
    fs::write(kept.join("file"), "kept\n").unwrap();
    std::os::unix::fs::chown(&kept, Some(1000), Some(1001)).unwrap();
    let volume = |target: &str, lower: &[PathBuf]| VolumeMount {
        target: target.into(),
        lower: lower.to_vec(),
    };
    let mut request = shell(
        &owner,
        "a",
        "cat /app/data/file; stat -c %u:%g /app/data; ls /app/data/new; date >> /app/data/file; touch /app/data/new/x; wc -l < /app/data/file",
    );
    request.volumes = vec![
        volume("/app/data", std::slice::from_ref(&kept)),
        volume("/app/data/new", &[]),
    ];
    engine.create(request.clone()).await.unwrap();
    put(&daemon, "a", "/app/data/new", &[("put", "")])
        .await
        .unwrap();
    let output = runs_to_the_end(&daemon, "a").await;
    assert_eq!(output, "kept\n1000:1001\nput\n2\n");
    let output = runs_to_the_end(&daemon, "a").await;
    assert!(output.ends_with("put\nx\n3\n"), "{output}");
    assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "kept\n");
    assert!(engine.snapshots_in_use().contains(&kept));

    // Another one begins anew.
    request.name = "b".to_owned();
    engine.create(request).await.unwrap();
    assert!(runs_to_the_end(&daemon, "b").await.ends_with("\n2\n"));
    engine.remove(&owner, "a", false).await.unwrap();
    engine.remove(&owner, "b", false).await.unwrap();
    assert!(engine.snapshots_in_use().is_empty());
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn a_container_that_is_held_stands_still() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let count = "echo ready; n=0; while :; do n=$((n+1)); echo $n > /tmp/count; sleep 0.001; done";
    daemon.run(&owner, "a", count).await;
    daemon.says(&owner, "a", "ready").await;
    let upper = engine.files(&owner, "a").unwrap().upper;
    until("it counts", || upper.join("tmp/count").exists()).await;
    let look = || fs::read_to_string(upper.join("tmp/count")).unwrap();
    let held = engine.hold(&owner, "a").await.unwrap();
    let at = look();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(look(), at);
    held.release().await.unwrap();
    until("it counts on", || look() != at).await;

    // Also when whoever held it gives up.
    drop(engine.hold(&owner, "a").await.unwrap());
    let at = look();
    until("it counts on", || look() != at).await;

    // One that is removed meanwhile is told.
    let held = engine.hold(&owner, "a").await.unwrap();
    engine.remove(&owner, "a", true).await.unwrap();
    let error = held.release().await.unwrap_err();
    assert!(matches!(error, EngineError::NotFound(_)), "{error}");
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn a_snapshot_starts_only_on_its_image() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let layer = world.place.path("layer");
    fs::write(layer.join("from-snapshot"), "snapshot\n").unwrap();
    daemon.create(&owner, "first", "true").await;
    let image_id = engine.inspect(&owner, "first").await.unwrap().image_id;
    let mut request = shell(&owner, "a", "cat /from-snapshot; ls /etc/passwd");
    request.snapshot = Some(FromSnapshot {
        name: "snap".to_owned(),
        files: layer.clone(),
        image_id,
    });
    engine.create(request.clone()).await.unwrap();
    let output = runs_to_the_end(&daemon, "a").await;
    assert_eq!(output, "snapshot\n/etc/passwd\n");
    assert!(engine.snapshots_in_use().contains(&layer));

    request.name = "b".to_owned();
    request.snapshot.as_mut().unwrap().image_id = format!("sha256:{}", "0".repeat(64));
    let error = engine.create(request).await.unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)));
    assert!(
        error
            .to_string()
            .contains("was taken of the image sha256:000000000000"),
        "{error}"
    );
    world.end(daemon).await;
}
