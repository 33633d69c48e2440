//! Root inside is nobody outside, and yet everything that images do with owners works.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::MetadataExt;

use wharf_sandbox::{IdRanges, IsolationSpec, Root, SpawnError, Spawner, SpawnerConfig};

use self::support::{Place, bind};

const RANGES: IdRanges = IdRanges {
    first: 0x7000_0000,
    count: 0x0ffe,
};

/// The host's ids of a process: real uid and gid.
fn host_ids(pid: i32) -> (u32, u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let id = |name: &str| -> u32 {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (id("Uid:"), id("Gid:"))
}

#[tokio::test]
async fn each_container_has_ids_of_its_own() {
    let place = Place::new();
    let spawner = place.start().await;
    let mut roots = Vec::new();
    for n in 0..12 {
        let (spec, fds) = place.container(&format!("c{n}"), "id -u; exec sleep 1000");
        let process = spawner.spawn(&spec, fds).await.unwrap();
        assert_eq!(support::first_line(&process).await, "0");
        let (uid, gid) = host_ids(process.pid);
        assert_eq!(uid, gid);
        assert!(uid >= RANGES.first);
        roots.push(uid);
    }
    roots.sort_unstable();
    let apart = |two: &[u32]| two[1] - two[0] >= 65_536;
    assert!(roots.windows(2).all(apart), "no id is of two: {roots:?}");

    let (mut spec, fds) = place.container("app", "id -u; id -g; exec sleep 1000");
    spec.user = "app".into();
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "1000");
    let (uid, gid) = host_ids(process.pid);
    let root = wharf_sandbox::root_of_process(process.pid).unwrap();
    assert_eq!((uid - root, gid - root), (1000, 1001));
    roots.push(root);
    roots.sort_unstable();
    assert!(roots.windows(2).all(apart), "{roots:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn nothing_of_the_host_belongs_to_root_inside() {
    let place = Place::new();
    let spawner = place.start().await;
    // What a mount with mapped ids does not cover: the kernel's own files.
    let script = "stat -c %u /proc/sys /sys /sys/kernel /proc/uptime | sort -u; cat /proc/self/uid_map /proc/self/gid_map; \
                  readlink /proc/self/ns/user";
    let ran = place.run(&spawner, "a", script).await;
    let mut lines = ran.out.lines();
    assert_eq!(lines.next(), Some("65534"), "{ran:?}");
    for _ in 0..2 {
        let words: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!((words[0], words[2]), ("0", "65536"), "{ran:?}");
    }
    let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(lines.next(), ours.to_str(), "{ran:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn owners_on_disk_are_those_inside() {
    let place = Place::new();
    let spawner = place.start().await;
    let layer = place.path("layer");
    std::fs::write(layer.join("of-root"), "x").unwrap();
    std::fs::write(layer.join("of-app"), "x").unwrap();
    std::os::unix::fs::chown(layer.join("of-app"), Some(1000), Some(1001)).unwrap();
    let shared = place.path("shared");
    let script = r#"
        set -e
        stat -c '%n %u:%g' /of-root /of-app /bin / /tmp /dev /dev/null /dev/pts /dev/shm /etc/made /shared
        echo y > /by-root
        su app -s /bin/sh -c 'echo y > /tmp/by-app; echo y >> /of-app; mkdir /tmp/dir'
        chown 65535:65535 /of-root
        chown -R 33:33 /etc
        echo > /shared/by-root
        su app -s /bin/sh -c 'echo y >> /of-root' 2>/dev/null && exit 9
        mkdir /new && chmod 2770 /new && chown 7:8 /new
        chown 65536 /new 2>/dev/null && exit 10
        echo fine
    "#;
    let base = place.busybox();
    let upper = place.path("a-upper");
    let ran = place
        .run_with(&spawner, "a", script, |spec| {
            let Root::Overlay { lower, .. } = &mut spec.root else {
                unreachable!()
            };
            *lower = vec![layer.clone(), base.clone()];
            spec.mounts = vec![
                support::file("/etc/made", "text"),
                bind(&shared, "/shared", false),
            ];
        })
        .await;
    assert!(ran.out.ends_with("fine\n"), "{ran:?}");
    let owners: Vec<&str> = ran.out.lines().collect();
    assert!(owners.contains(&"/of-app 1000:1001"), "{ran:?}");
    let others = owners
        .iter()
        .filter(|l| l.contains(':') && !l.contains("of-app"));
    assert!(others.clone().count() == 10, "{ran:?}");
    assert!(others.clone().all(|l| l.ends_with(" 0:0")), "{ran:?}");

    let owner = |path: std::path::PathBuf| {
        let found = std::fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid())
    };
    for (name, expected) in [
        ("by-root", (0, 0)),
        ("tmp/by-app", (1000, 1001)),
        ("tmp/dir", (1000, 1001)),
        ("of-app", (1000, 1001)),
        ("of-root", (65535, 65535)),
        ("etc", (33, 33)),
        ("new", (7, 8)),
        ("proc", (0, 0)),
    ] {
        assert_eq!(owner(upper.join(name)), expected, "{name}");
    }
    assert_eq!(owner(shared.join("by-root")), (0, 0));
    assert_eq!(
        owner(layer.join("of-root")),
        (0, 0),
        "the layer is as it was"
    );

    // The same directory goes on in another container, with other ids: nothing has to be chowned.
    let (mut spec, fds) =
        place.container("b", "stat -c %u:%g /tmp/by-app /new; echo z >> /by-root");
    spec.root = Root::Overlay {
        lower: vec![layer, base],
        upper,
        work: place.path("b-work2"),
    };
    let again = support::run(&spawner, &spec, fds).await.unwrap();
    assert_eq!(again.out, "1000:1001\n7:8\n", "{again:?}");
    assert_eq!(again.exit.code, 0);
    place.finish(spawner).await;
}

#[tokio::test]
async fn ids_beyond_the_range_are_refused_by_name() {
    let place = Place::new();
    let spawner = place.start().await;
    for user in ["65536", "1:70000"] {
        let (mut spec, fds) = place.container("x", "true");
        spec.user = user.into();
        match support::run(&spawner, &spec, fds).await {
            Err(SpawnError::Refused { message, .. }) => {
                assert!(message.contains("0 to 65535"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    place.finish(spawner).await;
}

async fn start(place: &Place, ids: Option<IdRanges>) -> Spawner {
    let config = SpawnerConfig {
        ids,
        ..place.config(20_000)
    };
    Spawner::start(config).await.unwrap().0
}

#[tokio::test]
async fn a_range_is_free_again_when_its_container_is_gone_and_not_before() {
    let place = Place::new();
    let ids = IdRanges {
        first: 0x7000_0000,
        count: 2,
    };
    let spawner = start(&place, Some(ids)).await;
    let mut pids = Vec::new();
    for id in ["a", "b"] {
        let (spec, fds) = place.container(id, "sleep 1000 & sleep 1000");
        pids.push(spawner.spawn(&spec, fds).await.unwrap().pid);
    }
    let (spec, fds) = place.container("c", "true");
    let refused = spawner.spawn(&spec, fds).await.unwrap_err().to_string();
    assert!(refused.contains("all 2 id ranges"), "{refused}");
    let range = host_ids(pids[0]).0;
    spawner.kill("a").await.unwrap();
    spawner.wait("a").await.unwrap();
    spawner.forget("a").await.unwrap();
    let (spec, fds) = place.container("d", "sleep 1000");
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(host_ids(process.pid).0, range);
    // One that is refused gives its range back.
    spawner.kill("b").await.unwrap();
    spawner.wait("b").await.unwrap();
    for _ in 0..3 {
        let (mut spec, fds) = place.container("e", "true");
        spec.argv = vec!["/missing".into()];
        assert!(matches!(
            support::run(&spawner, &spec, fds).await,
            Err(SpawnError::Refused { exit_code: 127, .. })
        ));
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn without_user_namespaces_only_when_asked_for() {
    let place = Place::new();
    let spawner = start(&place, None).await;
    let (spec, fds) = place.container("a", "id -u; exec sleep 1000");
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "0");
    assert_eq!(host_ids(process.pid), (0, 0));
    // On gVisor's kernel, too.
    let (mut spec, fds) = place.container("b", "dmesg | head -1; id -u; sleep 1000");
    spec.isolation = IsolationSpec::Gvisor {
        runsc: wharf_testkit::runsc(),
    };
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert!(support::first_line(&process).await.contains("gVisor"));
    assert_eq!(support::first_line(&process).await, "0");
    assert_eq!(host_ids(process.pid), (0, 0));
    place.finish(spawner).await;
}

/// Runs inside (as a program of its own): extended attributes of files that root of a user
/// namespace sets.
fn inside() {
    // VFS_CAP_REVISION_2 with cap_net_bind_service+ep (linux/capability.h).
    let capability: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    let bytes: Vec<u8> = capability.iter().flat_map(|w| w.to_le_bytes()).collect();
    std::fs::write("/with-capability", "").unwrap();
    for (name, value) in [("security.capability", &bytes[..]), ("user.note", b"text")] {
        match xattr::set("/with-capability", name, value) {
            Ok(()) => println!("{name} set"),
            Err(error) => println!("{name} {error}"),
        }
    }
    let read = xattr::get("/with-capability", "security.capability").unwrap();
    println!("reads the same {}", read.as_deref() == Some(&bytes[..]));
}

#[tokio::test]
async fn file_capabilities_are_kept_as_in_any_image() {
    if std::env::var_os("INSIDE").is_some() {
        return inside();
    }
    let place = Place::new();
    let spawner = place.start().await;
    let upper = place.path("u");
    let (spec, fds) =
        place.this_program("caps", &upper, "file_capabilities_are_kept_as_in_any_image");
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    for line in [
        "security.capability set",
        "user.note set",
        "reads the same true",
    ] {
        assert!(ran.out.lines().any(|l| l == line), "{line}: {ran:?}");
    }
    // What becomes a layer is the form that every engine reads: version 2, without a root id.
    let on_disk = xattr::get(upper.join("with-capability"), "security.capability");
    assert_eq!(on_disk.unwrap().unwrap().len(), 20);
    place.finish(spawner).await;
}
