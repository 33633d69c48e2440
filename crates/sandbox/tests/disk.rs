//! What a container writes goes to its disk, and no further.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use wharf_sandbox::disk::Template;
use wharf_sandbox::{Disk, DiskMount, ProcessSpec, Root, SpawnFds};

use self::support::Place;

/// A container whose root is on `disk`.
fn on_disk(place: &Place, id: &str, disk: &Disk, script: &str) -> (ProcessSpec, SpawnFds) {
    let (mut spec, mut fds) = place.container(id, script);
    let at = place.path(&format!("{id}-disk"));
    let Root::Overlay { upper, work, .. } = &mut spec.root else {
        unreachable!()
    };
    (*upper, *work) = (at.join("upper"), at.join("work"));
    spec.disk = Some(DiskMount {
        device: disk.device().to_owned(),
        at,
    });
    fds.disk = Some(disk.mount().try_clone_to_owned().unwrap());
    (spec, fds)
}

#[tokio::test]
async fn writes_past_the_disk_get_enospc_and_the_host_stays_as_it_is() {
    let place = Place::new();
    let spawner = place.start().await;
    let template = Template::make(place.dir.path(), 32 << 20).unwrap();
    let disk = template.disk().unwrap();
    let script = "df -m / | tail -n 1 | awk '{print $2}'
        echo small > /tmp/before
        dd if=/dev/zero of=/big bs=1M count=100 2>&1 | grep -o 'No space left on device'
        echo x > /tmp/more; cat /tmp/before
        rm /big && echo again > /tmp/more && cat /tmp/more
        i=0; while echo x > /tmp/f$i; do i=$((i+1)); done 2>/dev/null; [ $i -gt 500 ] && echo 'and files are bounded'
        su app -s /bin/sh -c 'echo mine > /dev/shm/x; id -u'";
    let (spec, fds) = on_disk(&place, "a", &disk, script);
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    let lines: Vec<&str> = ran.out.lines().collect();
    let size: u64 = lines[0].parse().unwrap();
    assert!((32..36).contains(&size), "{ran:?}");
    let rest = [
        "No space left on device",
        "small",
        "again",
        "and files are bounded",
        "1000",
    ];
    assert_eq!(lines[1..], rest, "{ran:?}");
    assert!(disk.usage().unwrap().is_full);
    // What it wrote is here, with the ids inside, and not in the directory that the disk covered.
    let before = disk.path().join("upper/tmp/before");
    assert_eq!(std::fs::read_to_string(&before).unwrap(), "small\n");
    assert_eq!(std::fs::metadata(&before).unwrap().uid(), 0);
    assert_eq!(std::fs::read_dir(place.path("a-disk")).unwrap().count(), 0);
    for name in std::fs::read_dir(disk.path().join("upper/tmp")).unwrap() {
        let path = name.unwrap().path();
        if path != before {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::remove_dir_all(disk.path().join("work")).unwrap();
    std::fs::create_dir(disk.path().join("work")).unwrap();
    // The same disk in another container, which has other ids.
    let (spec, fds) = on_disk(
        &place,
        "b",
        &disk,
        "cat /tmp/before; stat -c %u /tmp/before",
    );
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    assert_eq!(ran.out, "small\n0\n", "{ran:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_disk_outlives_the_daemon_with_its_container_and_not_longer() {
    let place = Place::new();
    let (spawner, _) = place.start_with(20_000).await;
    let template = Template::make(place.dir.path(), 16 << 20).unwrap();
    let disk = template.disk().unwrap();
    let device = disk.device().to_owned();
    let (spec, fds) = on_disk(
        &place,
        "a",
        &disk,
        "echo kept > /file; echo ready; sleep 1000",
    );
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    drop((disk, template, spawner, process));
    let (spawner, mut survivors) = place.start_with(20_000).await;
    let survivor = survivors.pop().unwrap();
    let disk = Disk::from_mount(survivor.disk.unwrap(), device.clone());
    assert_eq!(
        std::fs::read_to_string(disk.path().join("upper/file")).unwrap(),
        "kept\n"
    );
    assert!(disk.mount().as_fd().try_clone_to_owned().is_ok());
    drop(disk);
    let backing = || {
        let name = device.file_name().unwrap();
        let file = std::path::Path::new("/sys/block")
            .join(name)
            .join("loop/backing_file");
        std::fs::read_to_string(file).unwrap_or_default()
    };
    let own = place.dir.path().to_str().unwrap().to_owned();
    assert!(backing().contains(&own));
    place.finish(spawner).await;
    wharf_testkit::until("the disk is gone", || !backing().contains(&own)).await;
}
