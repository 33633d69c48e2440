//! What a container can see and must not be able to do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::HashMap;
use std::os::unix::fs::symlink;

use wharf_sandbox::{Capabilities, Root, SpawnError, netns};

use self::support::{Place, bind, file};

#[tokio::test]
async fn namespaces_are_its_own() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = r#"
        echo "self $$"
        echo "processes $(ls /proc | grep -c '^[0-9]')"
        echo "interfaces $(ls /sys/class/net | tr '\n' ' ')"
        echo "hostname $(hostname)"
        echo "mounts $(grep -c . /proc/self/mountinfo)"
        echo "host-paths $(grep -c -e wharf -e /work /proc/self/mountinfo)"
        echo "cgroup $(cut -d: -f3 /proc/self/cgroup | sort -u | grep -c -v '^/$')"
        for n in mnt pid net ipc uts cgroup; do echo "$n $(readlink /proc/self/ns/$n)"; done
        echo "umask $(umask)"
    "#;
    let ran = place.run(&spawner, "ns", script).await;
    let seen: HashMap<&str, &str> = ran
        .out
        .lines()
        .filter_map(|l| l.trim().split_once(' '))
        .collect();
    assert_eq!(seen["self"], "1");
    let processes: u32 = seen["processes"].parse().unwrap();
    assert!(
        processes <= 4,
        "the shell, its subshell, ls and grep at most: {ran:?}"
    );
    assert_eq!(seen["interfaces"].trim(), "lo");
    assert_eq!(seen["hostname"], "inside");
    assert_eq!(seen["umask"], "0022");
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(seen[kind], ours.to_str().unwrap(), "{kind}");
    }
    let mounts = place
        .run(&spawner, "mounts", "cat /proc/self/mountinfo")
        .await
        .out;
    let places: Vec<&str> = mounts
        .lines()
        .map(|l| l.split(' ').nth(4).unwrap())
        .collect();
    for place in &places {
        assert!(
            *place == "/"
                || ["/proc", "/dev", "/sys"]
                    .iter()
                    .any(|p| place.starts_with(p)),
            "{mounts}"
        );
    }
    let cgroups = place
        .run(
            &spawner,
            "cg",
            "grep -E ':(memory|cpu|pids)?:' /proc/self/cgroup",
        )
        .await
        .out;
    // The v2 line, and the v1 ones if any, begin at the container's own cgroup.
    assert!(cgroups.lines().all(|l| l.ends_with(":/")), "{cgroups}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn privileges_are_dockers_default() {
    let place = Place::new();
    let spawner = place.start().await;
    let status = |out: String| -> HashMap<String, String> {
        out.lines()
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
            .collect()
    };
    let root = status(
        place
            .run(&spawner, "root", "cat /proc/self/status")
            .await
            .out,
    );
    // CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
    // SYS_CHROOT KILL AUDIT_WRITE
    let docker = "00000000a80425fb";
    assert_eq!(
        (
            root["CapEff"].as_str(),
            root["CapPrm"].as_str(),
            root["CapBnd"].as_str()
        ),
        (docker, docker, docker)
    );
    assert_eq!(
        (root["CapInh"].as_str(), root["CapAmb"].as_str()),
        ("0000000000000000", "0000000000000000")
    );
    assert_eq!(
        (root["NoNewPrivs"].as_str(), root["Seccomp"].as_str()),
        ("0", "2")
    );
    let app = status(
        place
            .run_with(&spawner, "app", "cat /proc/self/status", |s| {
                s.user = "app".into()
            })
            .await
            .out,
    );
    assert_eq!(
        (
            app["CapEff"].as_str(),
            app["CapPrm"].as_str(),
            app["CapBnd"].as_str()
        ),
        ("0000000000000000", "0000000000000000", docker)
    );
    assert_eq!(
        (app["NoNewPrivs"].as_str(), app["Seccomp"].as_str()),
        ("0", "2")
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn what_must_fail_fails() {
    let place = Place::new();
    let spawner = place.start().await;
    let host_disk = std::fs::metadata("/")
        .map(|m| std::os::unix::fs::MetadataExt::dev(&m))
        .unwrap();
    let (major, minor) = (rustix::fs::major(host_disk), rustix::fs::minor(host_disk));
    let attempts = [
        ("mount", "mount -t tmpfs none /tmp".to_owned()),
        ("umount", "umount /proc/sys".to_owned()),
        ("remount", "mount -o remount,rw /sys".to_owned()),
        ("namespace", "unshare -U true".to_owned()),
        ("mount namespace", "unshare -m true".to_owned()),
        (
            "host's disk",
            format!("mknod /tmp/disk b {major} {minor}; head -c 1 /tmp/disk"),
        ),
        (
            "host's disk in /dev",
            format!("mknod /dev/disk b {major} {minor}; head -c 1 /dev/disk"),
        ),
        (
            "host's disk in /dev/shm",
            format!("mknod /dev/shm/disk b {major} {minor}; head -c 1 /dev/shm/disk"),
        ),
        (
            "kernel memory",
            "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem".to_owned(),
        ),
        ("sysctl", "echo 1 > /proc/sys/kernel/panic".to_owned()),
        ("sysrq", "echo h > /proc/sysrq-trigger".to_owned()),
        ("core image", "head -c 1 /proc/kcore | grep -q .".to_owned()),
        ("sysfs", "echo 1 > /sys/kernel/mm/ksm/run".to_owned()),
        (
            "own limits",
            "echo max > /sys/fs/cgroup/pids/pids.max || echo max > /sys/fs/cgroup/pids.max"
                .to_owned(),
        ),
        (
            "a new cgroup",
            "mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x".to_owned(),
        ),
        ("hostname", "hostname other".to_owned()),
        (
            "clock",
            "date -s 2020-01-01; [ $(date +%Y) = 2020 ]".to_owned(),
        ),
        (
            "interface",
            "ip link set lo up && ip link add dummy0 type dummy".to_owned(),
        ),
        ("reboot", "reboot -f".to_owned()),
        ("null device of the host", "rm /dev/null".to_owned()),
    ];
    for (number, (what, script)) in attempts.into_iter().enumerate() {
        let ran = place
            .run(
                &spawner,
                &format!("try-{number}"),
                &format!("({script}) && echo it worked"),
            )
            .await;
        assert!(!ran.out.contains("it worked"), "{what}: {ran:?}");
    }
    let empty = place.run(&spawner, "masked", "ls /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v :; cat /proc/timer_list /proc/keys").await;
    assert_eq!(empty.out.trim(), "", "{empty:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn what_should_work_works() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = r#"
        set -e
        echo x > /dev/null
        [ "$(head -c 3 /dev/zero | wc -c)" = 3 ]
        [ "$(head -c 3 /dev/urandom | wc -c)" = 3 ]
        [ "$(head -c 3 /dev/random | wc -c)" = 3 ]
        echo x > /dev/full && exit 1
        echo to stdout > /dev/stdout
        echo shared > /dev/shm/file
        chown 5:6 /tmp
        chmod 000 /dev/null
        chroot / true
        ls /dev/pts /dev/mqueue
        mkfifo /tmp/fifo
        su app -s /bin/sh -c 'id -u'
        [ -e /dev/fd/0 ]
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true
    "#;
    let ran = place
        .run_with(&spawner, "ok", script, |s| {
            s.limits.memory_bytes = Some(64 << 20)
        })
        .await;
    assert_eq!(ran.exit.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("to stdout") && ran.out.contains("1000") && ran.out.contains("67108864"),
        "{ran:?}"
    );
    let null = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata("/dev/null").unwrap());
    assert_eq!(null & 0o777, 0o666, "the host's /dev/null is another one");
    place.finish(spawner).await;
}

#[tokio::test]
async fn extra_mounts_and_their_content() {
    let place = Place::new();
    let spawner = place.start().await;
    let shared = place.path("shared");
    std::fs::write(shared.join("from-host"), "host").unwrap();
    let script = "cat /etc/resolv.conf /ro/from-host; echo inside > /rw/new; echo x > /ro/new && echo wrote; echo edit >> /etc/hosts; cat /etc/hosts";
    let ran = place
        .run_with(&spawner, "m", script, |spec| {
            spec.mounts = vec![
                file("/etc/resolv.conf", "nameserver 10.0.0.1\n"),
                file("/etc/hosts", "127.0.0.1 localhost\n"),
                bind(&shared, "/ro", true),
                bind(&shared, "/rw", false),
            ];
        })
        .await;
    assert_eq!(
        ran.out, "nameserver 10.0.0.1\nhost127.0.0.1 localhost\nedit\n",
        "{ran:?}"
    );
    assert_eq!(
        std::fs::read_to_string(shared.join("new")).unwrap(),
        "inside\n"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn hostile_images_cannot_lead_mounts_outside() {
    let place = Place::new();
    let spawner = place.start().await;
    let outside = place.path("outside");
    let layer = place.path("hostile");
    std::fs::create_dir(layer.join("etc")).unwrap();
    symlink(&outside, layer.join("absolute")).unwrap();
    symlink(
        format!("../../../../../../..{}", outside.display()),
        layer.join("relative"),
    )
    .unwrap();
    symlink(
        "../run/systemd/resolve/stub-resolv.conf",
        layer.join("etc/resolv.conf"),
    )
    .unwrap();
    symlink("/proc/self/root", layer.join("magic")).unwrap();
    let base = place.busybox();
    let hostile = |spec: &mut wharf_sandbox::ProcessSpec| {
        let Root::Overlay { lower, .. } = &mut spec.root else {
            unreachable!()
        };
        *lower = vec![layer.clone(), base.clone()];
    };
    let ran = place
        .run_with(
            &spawner,
            "links",
            "cat /absolute/a /relative/b /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf /m",
            |spec| {
                hostile(spec);
                spec.mounts = vec![
                    file("/absolute/a", "A"),
                    file("/relative/b", "B"),
                    file("/etc/resolv.conf", "R"),
                    file("/magic/m", "M"),
                ];
                spec.cwd = "/absolute/work/dir".into();
            },
        )
        .await;
    assert_eq!(ran.out, "ABRRM", "{ran:?}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);

    for target in ["/proc/x", "/proc/self/attr", "/magic/proc/x"] {
        let (mut spec, fds) = place.container("refused", "true");
        hostile(&mut spec);
        spec.mounts = vec![file(target, "")];
        assert!(
            matches!(
                support::run(&spawner, &spec, fds).await,
                Err(SpawnError::Refused { .. })
            ),
            "{target}"
        );
    }
    for name in ["proc", "sys", "dev"] {
        let layer = place.path(&format!("{name}-link"));
        std::fs::create_dir(layer.join("elsewhere")).unwrap();
        symlink("elsewhere", layer.join(name)).unwrap();
        let (mut spec, fds) = place.container("refused", "true");
        spec.root = Root::Overlay {
            lower: vec![layer, base.clone()],
            upper: place.path(&format!("{name}-upper")),
            work: place.path(&format!("{name}-work")),
        };
        match support::run(&spawner, &spec, fds).await {
            Err(SpawnError::Refused { message, .. }) => {
                assert!(message.contains(name), "{message}")
            }
            other => panic!("{other:?}"),
        }
    }
    // A pipe in place of a file that is read while the process is set up must not hang it.
    let layer = place.path("fifo");
    std::fs::create_dir(layer.join("etc")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        layer.join("etc/passwd"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let ran = place
        .run_with(&spawner, "fifo", "echo 0", |spec| {
            let Root::Overlay { lower, .. } = &mut spec.root else {
                unreachable!()
            };
            *lower = vec![layer.clone(), base.clone()];
        })
        .await;
    assert_eq!(ran.out, "0\n");
    place.finish(spawner).await;
}

#[tokio::test]
async fn nothing_is_mounted_on_the_host() {
    // A copy of the host's mounts that only this test and its spawner see: others mount, too.
    // SAFETY: the thread is the test's own, and its spawner is forked from it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    use rustix::mount::MountPropagationFlags as Propagation;
    rustix::mount::mount_change("/", Propagation::PRIVATE | Propagation::REC).unwrap();
    // Shared, as systemd has it: what a container mounted without care would be seen here.
    rustix::mount::mount_change("/", Propagation::SHARED | Propagation::REC).unwrap();
    let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let place = Place::new();
    let spawner = place.start().await;
    let before = mounts();
    let (mut spec, fds) = place.container("c", "echo ready; sleep 1000");
    spec.mounts = vec![file("/etc/hosts", "")];
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let during = mounts();
    assert!(
        !during.contains(place.dir.path().to_str().unwrap()),
        "{during}"
    );
    assert_eq!(before, during);
    place.finish(spawner).await;
}

#[tokio::test]
async fn capabilities_can_only_be_taken_away() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "grep -E 'Cap(Eff|Bnd)' /proc/self/status; chown 1:1 /tmp && echo chowned; mkfifo /tmp/x-$RANDOM && echo made";
    for (capabilities, bits, chowned) in [
        (Capabilities::default(), "00000000a80425fb", true),
        (
            Capabilities::default()
                .without("cap_chown")
                .without("SYS_ADMIN"),
            "00000000a80425fa",
            false,
        ),
        (Capabilities::NONE, "0000000000000000", false),
        (
            Capabilities::default().without("ALL"),
            "0000000000000000",
            false,
        ),
    ] {
        let ran = place
            .run_with(&spawner, "caps", script, |s| s.capabilities = capabilities)
            .await;
        assert_eq!(ran.out.matches(bits).count(), 2, "{ran:?}");
        assert_eq!(ran.out.contains("chowned"), chowned, "{ran:?}");
        assert!(ran.out.contains("made"), "{ran:?}");
    }
    // What a request cannot say, whoever wrote it.
    let all: Capabilities = serde_json::from_str(&u64::MAX.to_string()).unwrap();
    let ran = place
        .run_with(&spawner, "all", script, |s| s.capabilities = all)
        .await;
    assert_eq!(ran.out.matches("00000000a80425fb").count(), 2, "{ran:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn ports_below_1024_are_for_everybody() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "httpd -p 80 -h /etc && wget -q -O - http://127.0.0.1/passwd | head -n 1";
    for user in ["", "app"] {
        let (mut spec, mut fds) = place.container("net", script);
        spec.user = user.into();
        let redirect = netns::Redirect {
            tcp_port: 1,
            dns_port: 2,
            ipv6: false,
        };
        fds.netns = Some(netns::create(redirect).unwrap());
        let ran = support::run(&spawner, &spec, fds).await.unwrap();
        assert_eq!(ran.out, "root:x:0:0::/root:/bin/sh\n", "{ran:?}");
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn shared_memory_is_bounded() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=65; ls -l /dev/shm/x | awk '{print $5}'; df -m /dev/shm | tail -n 1";
    let ran = place.run(&spawner, "shm", script).await;
    assert!(ran.err.contains("No space left"), "{ran:?}");
    assert!(ran.out.starts_with("67108864\n"), "{ran:?}");
    place.finish(spawner).await;
}
