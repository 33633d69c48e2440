//! Limits hold, and what met one is told with the figure.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use self::support::Place;

#[tokio::test]
async fn what_is_asked_for_is_set() {
    let place = Place::new();
    let spawner = place.start().await;
    let support = wharf_sandbox::cgroup::describe();
    assert_eq!(
        support.warning(),
        None,
        "this test needs all controllers: {support}"
    );
    let ran = place
        .run_with(
            &spawner,
            "memory",
            "head -c 200m /dev/zero | tail -c 150m > /dev/null; echo survived",
            |spec| {
                spec.limits.memory_bytes = Some(64 << 20);
            },
        )
        .await;
    assert!(ran.exit.oom_killed, "{ran:?}");
    let ran = place
        .run_with(
            &spawner,
            "pids",
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done",
            |spec| spec.limits.pids = Some(8),
        )
        .await;
    assert!(ran.err.contains("fork"), "{ran:?}");
    assert!(!ran.exit.oom_killed);
    let ran = place
        .run_with(
            &spawner,
            "files",
            "ulimit -n; cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null",
            |spec| {
                spec.limits.nofile = Some(99);
                spec.limits.cpu_millis = Some(250);
            },
        )
        .await;
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines[0], "99");
    assert!(lines[1].starts_with("25000"), "{ran:?}");
    let ran = place
        .run_with(&spawner, "many", "ulimit -n", |spec| {
            spec.limits.nofile = Some(1 << 30)
        })
        .await;
    assert!(
        ran.out.trim().parse::<u64>().unwrap() > 99,
        "as far as allowed: {ran:?}"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn meeting_a_limit_is_counted() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut spec, fds) = place.container("m", "head -c 200m /dev/zero | tail -c 150m > /dev/null");
    spec.limits.memory_bytes = Some(64 << 20);
    spawner.spawn(&spec, fds).await.unwrap();
    assert!(spawner.wait("m").await.unwrap().oom_killed);
    let usage = spawner.usage("m").await.unwrap();
    assert!(usage.oom_kills.unwrap() >= 1, "{usage:?}");
    assert_ne!(usage.memory_limit_hits, Some(0), "{usage:?}");
    // Swap is not added: the kernel counts to the limit and no further.
    if let Some(peak) = usage.memory_peak_bytes {
        assert!((60 << 20..=64 << 20).contains(&peak), "{usage:?}");
    }

    let script =
        "i=0; while [ $i -lt 12 ]; do sleep 1000 & i=$((i+1)); done; echo unreached; sleep 1000";
    let (mut spec, fds) = place.container("p", script);
    spec.limits.pids = Some(8);
    spawner.spawn(&spec, fds).await.unwrap();
    spawner.wait("p").await.unwrap();
    let usage = spawner.usage("p").await.unwrap();
    assert!(usage.pids_limit_hits.unwrap() >= 1, "{usage:?}");

    // A twentieth of a core: of the time in which it would work, it waits for most.
    let (mut spec, fds) = place.container("c", "echo ready; while :; do :; done");
    spec.limits.cpu_millis = Some(50);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    support::first_line(&process).await;
    let usage = wharf_testkit::eventually("it is throttled", async || {
        let usage = spawner.usage("c").await.unwrap();
        (usage.throttled_periods.unwrap() >= 5).then_some(usage)
    })
    .await;
    assert!(usage.throttled_us.unwrap() > 0, "{usage:?}");
    assert_eq!(usage.pids, Some(1));
    assert!(usage.memory_bytes.unwrap() > 0, "{usage:?}");
    let before = std::time::Instant::now();
    let worked = usage.cpu_us.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1000)).await;
    let worked = spawner.usage("c").await.unwrap().cpu_us.unwrap() - worked;
    let share = worked as f64 / before.elapsed().as_micros() as f64;
    assert!(share < 0.1, "{share} of a core");
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_container() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "sh -c 'f() { f & f & }; f; while :; do f; done' & exec sleep 1000";
    let (mut spec, fds) = place.container("bomb", script);
    spec.limits.pids = Some(64);
    spawner.spawn(&spec, fds).await.unwrap();
    wharf_testkit::eventually("the limit is met", async || {
        let hits = spawner.usage("bomb").await.unwrap().pids_limit_hits;
        (hits.unwrap() > 10).then_some(())
    })
    .await;
    spawner.kill("bomb").await.unwrap();
    assert_eq!(spawner.wait("bomb").await.unwrap().code, 137);
    place.finish(spawner).await;
}

#[tokio::test]
async fn open_files_are_bounded() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "exec 3>/tmp/3 4>/tmp/4 5>/tmp/5 6>/tmp/6 7>/tmp/7 && echo five; exec 8>/tmp/8 9>/tmp/9 || echo unreached";
    let ran = place
        .run_with(&spawner, "files", script, |s| s.limits.nofile = Some(8))
        .await;
    assert_eq!(ran.out, "five\n", "{ran:?}");
    assert_ne!(ran.exit.code, 0);
    place.finish(spawner).await;
}

/// Runs inside, as a program of its own: takes as many inotify instances as there are, says how
/// many there were, and keeps them.
fn take_all_inotify_instances() {
    let mut taken = Vec::new();
    while let Ok(instance) = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC) {
        taken.push(instance);
        if taken.len() == 10_000 {
            break;
        }
    }
    println!("taken {}.", taken.len());
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[tokio::test]
async fn a_container_that_takes_all_inotify_instances_takes_none_of_others() {
    if std::env::var_os("INSIDE").is_some() {
        return take_all_inotify_instances();
    }
    const NAME: &str = "a_container_that_takes_all_inotify_instances_takes_none_of_others";
    let place = Place::new();
    let spawner = place.start().await;
    let bound = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let bound: usize = bound.trim().parse().unwrap();
    let mut taken = Vec::new();
    for id in ["first", "second"] {
        let (spec, fds) = place.this_program(id, &place.path(&format!("{id}-upper")), NAME);
        let process = spawner.spawn(&spec, fds).await.unwrap();
        let mut output = tokio::fs::File::from_std(process.stdout.into());
        let mut said = String::new();
        while !said.contains('.') || !said.contains("taken") {
            let mut some = [0; 256];
            let n = tokio::io::AsyncReadExt::read(&mut output, &mut some)
                .await
                .unwrap();
            assert_ne!(n, 0, "{said}");
            said += &String::from_utf8_lossy(&some[..n]);
        }
        let number = said.split("taken ").nth(1).unwrap();
        taken.push(number.split('.').next().unwrap().parse::<usize>().unwrap());
    }
    // The host's root has its own, too: this test runs as root.
    let host = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
    for id in ["first", "second"] {
        spawner.kill(id).await.unwrap();
        spawner.wait(id).await.unwrap();
        spawner.forget(id).await.unwrap();
    }
    host.unwrap();
    assert_eq!(taken, [bound.min(10_000); 2]);
    place.finish(spawner).await;
}
