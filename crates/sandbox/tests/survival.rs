//! Daemons and spawners that come, go and crash.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use wharf_sandbox::{IsolationSpec, SpawnError, Spawner};
use wharf_testkit::{is_alive, kill, until};

use self::support::{Place, read_all};

#[tokio::test]
async fn a_new_daemon_finds_processes_exits_and_output() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.container(
        "long",
        "echo first; read line < /tmp/go; echo second; exit 9",
    );
    let fifo = place.path("fifo").join("go");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let spec = wharf_sandbox::ProcessSpec {
        mounts: vec![support::bind(&fifo, "/tmp/go", false)],
        ..spec
    };
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "first");
    let (spec, fds) = place.container("short", "echo output of short; exit 3");
    spawner.spawn(&spec, fds).await.unwrap();
    let (spawner_pid, pid) = (spawner.pid(), process.pid);
    drop((spawner, process));

    std::fs::write(&fifo, "go\n").unwrap();
    until("it ends without a daemon", || !is_alive(pid)).await;
    let (spawner, mut survivors) = place.start_with(20_000).await;
    assert_eq!(spawner.pid(), spawner_pid, "the same spawner");
    survivors.sort_by(|a, b| a.process.id.cmp(&b.process.id));
    let [long, short] = <[_; 2]>::try_from(survivors).unwrap();
    assert_eq!(
        (
            long.process.id.as_str(),
            long.label.as_str(),
            long.process.pid
        ),
        ("long", "label of long", pid)
    );
    assert_eq!(spawner.wait("long").await.unwrap().code, 9);
    assert_eq!(read_all(long.process.stdout).await.unwrap(), "second\n");
    assert_eq!(spawner.wait("short").await.unwrap().code, 3);
    assert_eq!(
        read_all(short.process.stdout).await.unwrap(),
        "output of short\n"
    );
    spawner.forget("long").await.unwrap();
    assert!(matches!(
        spawner.wait("long").await,
        Err(SpawnError::Spawner(_))
    ));
    drop(spawner);
    let (spawner, survivors) = place.start_with(20_000).await;
    assert_eq!(survivors.len(), 1, "the forgotten one is not among them");
    assert_eq!(survivors[0].exit.unwrap().code, 3);
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_running_process_can_be_signalled_by_the_next_daemon() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.container(
        "c",
        "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done",
    );
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    drop((spawner, process));
    let (spawner, survivors) = place.start_with(20_000).await;
    assert_eq!(survivors[0].exit, None);
    assert!(spawner.signal("c", 15).await.unwrap());
    assert_eq!(spawner.wait("c").await.unwrap().code, 5);
    place.finish(spawner).await;
}

#[tokio::test]
async fn without_a_daemon_everything_ends_after_the_grace_period() {
    let place = Place::new();
    let (spawner, _) = place.start_with(100).await;
    let (spec, fds) = place.container("c", "sleep 1000");
    let container = spawner.spawn(&spec, fds).await.unwrap();
    let (spec, fds) = place.bare("h", &["/bin/busybox", "sleep", "1000"]);
    let bare = spawner.spawn(&spec, fds).await.unwrap();
    let pid = spawner.pid();
    assert!(is_alive(pid as i32));
    drop(spawner);
    place.assert_gone(pid).await;
    assert!(!is_alive(container.pid) && !is_alive(bare.pid));
}

#[tokio::test]
async fn a_crashed_spawner_leaves_nothing_to_the_next_one() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.container("c", "sleep 1000 & sleep 1000");
    let container = spawner.spawn(&spec, fds).await.unwrap();
    let (spec, fds) = place.bare("h", &["/bin/busybox", "sleep", "1000"]);
    let bare = spawner.spawn(&spec, fds).await.unwrap();
    let waiting = tokio::spawn({
        let spawner = spawner.clone();
        async move { spawner.wait("c").await }
    });
    kill(spawner.pid() as i32);
    assert!(
        matches!(waiting.await.unwrap(), Err(SpawnError::Spawner(_))),
        "whoever waits is told"
    );
    assert!(is_alive(container.pid) && is_alive(bare.pid));
    drop(spawner);

    let (spawner, survivors) = place.start_with(20_000).await;
    assert!(survivors.is_empty());
    assert!(!is_alive(container.pid) && !is_alive(bare.pid));
    assert_eq!(place.run(&spawner, "c", "exit 4").await.exit.code, 4);
    place.finish(spawner).await;
}

async fn warden(spawner: u32) -> i32 {
    let watches = async || support::warden_of(spawner);
    wharf_testkit::eventually("a warden watches", watches).await
}

#[tokio::test]
async fn everything_ends_when_daemon_and_spawner_are_killed_and_nobody_comes() {
    let place = Place::new();
    let (spawner, _) = place.start_with(300).await;
    let (spec, fds) = place.container("c", "sleep 1000 & sleep 1000");
    let container = spawner.spawn(&spec, fds).await.unwrap();
    let (spec, fds) = place.bare("h", &["/bin/busybox", "sleep", "1000"]);
    let bare = spawner.spawn(&spec, fds).await.unwrap();
    let pid = spawner.pid();
    let first = warden(pid).await;
    kill(first);
    until("it is gone", || !is_alive(first)).await;
    let warden = warden(pid).await;
    kill(pid as i32);
    drop(spawner);
    until("the warden ends", || !is_alive(warden)).await;
    assert!(!is_alive(container.pid) && !is_alive(bare.pid));
    place.assert_gone(pid).await;
}

#[tokio::test]
async fn a_container_on_gvisor_ends_with_daemon_and_spawner_too() {
    let place = Place::new();
    let (spawner, _) = place.start_with(300).await;
    let (mut spec, fds) = place.container("c", "echo ready; sleep 1000");
    spec.isolation = IsolationSpec::Gvisor {
        runsc: wharf_testkit::runsc(),
    };
    let container = spawner.spawn(&spec, fds).await.unwrap();
    let pid = spawner.pid();
    let warden = warden(pid).await;
    kill(pid as i32);
    drop(spawner);
    until("the warden ends", || !is_alive(warden)).await;
    assert!(!is_alive(container.pid));
    place.assert_gone(pid).await;
}

#[tokio::test]
async fn what_the_next_spawner_runs_is_safe_from_the_last_ones_warden() {
    let place = Place::new();
    let (spawner, _) = place.start_with(300).await;
    let pid = spawner.pid();
    let warden = warden(pid).await;
    kill(pid as i32);
    drop(spawner);
    let spawner = place.start().await;
    let (spec, fds) = place.container("c", "sleep 1000");
    let container = spawner.spawn(&spec, fds).await.unwrap();
    until("the first warden ends", || !is_alive(warden)).await;
    assert!(is_alive(container.pid));
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_handle_recovers_from_a_crashed_spawner() {
    let place = Place::new();
    let spawner = place.start().await;
    let before = spawner.pid();
    assert_eq!(place.run(&spawner, "c", "exit 1").await.exit.code, 1);
    kill(before as i32);
    until("the crash is noticed", || !is_alive(before as i32)).await;
    // The loss may be noticed only by the first request.
    let mut tries = 0;
    let exit = loop {
        let (spec, fds) = place.container("c", "exit 2");
        match support::run(&spawner, &spec, fds).await {
            Ok(ran) => break ran.exit,
            Err(error) => {
                tries += 1;
                assert!(tries < 5, "{error}");
            }
        }
    };
    assert_eq!(exit.code, 2);
    assert_ne!(spawner.pid(), before);
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_newest_daemon_wins() {
    let place = Place::new();
    let old = place.start().await;
    let (new, _) = place.start_with(20_000).await;
    let (spec, fds) = place.container("c", "true");
    until("the old one is told", || old_is_replaced(&old)).await;
    let error = support::run(&old, &spec, fds).await.unwrap_err();
    assert!(error.to_string().contains("another daemon"), "{error}");
    assert_eq!(place.run(&new, "d", "exit 6").await.exit.code, 6);
    place.finish(new).await;
}

fn old_is_replaced(old: &Spawner) -> bool {
    let waiting = std::pin::pin!(old.wait("no such process"));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::future::Future::poll(waiting, &mut context) {
        std::task::Poll::Ready(Err(error)) => error.to_string().contains("another daemon"),
        _ => false,
    }
}

#[tokio::test]
async fn a_process_whose_caller_gave_up_is_ended() {
    let place = Place::new();
    let spawner = place.start().await;
    place.busybox();
    for _ in 0..20 {
        let (spec, fds) = place.container("c", "sleep 1000");
        // Dropped after one poll: the request is on its way, the answer finds nobody.
        let mut spawning = Box::pin(spawner.spawn(&spec, fds));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::future::Future::poll(spawning.as_mut(), &mut context).is_pending());
        drop(spawning);
        let start = std::time::Instant::now();
        loop {
            // The id is free again when the abandoned process is gone.
            let (spec, fds) = place.container("c", "exit 8");
            match support::run(&spawner, &spec, fds).await {
                Ok(ran) => break assert_eq!(ran.exit.code, 8),
                Err(SpawnError::Refused { message, .. }) if message.contains("exists already") => {}
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed().as_secs() < 30);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn interrupt_does_not_reach_the_spawner_and_it_stays_small() {
    let place = Place::new();
    let spawner = place.start().await;
    let pid = rustix::process::Pid::from_raw(spawner.pid() as i32).unwrap();
    for signal in [
        rustix::process::Signal::INT,
        rustix::process::Signal::HUP,
        rustix::process::Signal::TERM,
    ] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    // Field 6 of /proc/PID/stat, not getsid(2): where the test's own session began outside the PID
    // namespace it is 0, which rustix refuses.
    let session = |pid: &str| -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        after_name
            .split_whitespace()
            .nth(3)
            .unwrap()
            .parse()
            .unwrap()
    };
    assert_ne!(session(&spawner.pid().to_string()), session("self"));
    // Its own ones, processes made ahead, and the user namespaces that it keeps ready: as many as
    // ever when it has had the time.
    let settled = async || support::descriptors_at_rest(&spawner, 0).await;
    let run = async |round: u32| {
        for n in 0..20 {
            let ran = place
                .run(&spawner, &format!("c{round}-{n}"), "exit 2")
                .await;
            assert_eq!(ran.exit.code, 2);
        }
    };
    run(1).await;
    let before = settled().await;
    run(2).await;
    let after = settled().await;
    assert!(
        after < before + 10,
        "{after} descriptors, {before} before twenty processes that were forgotten"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", spawner.pid())).unwrap();
    let anonymous: u64 = status
        .lines()
        .find_map(|l| {
            l.strip_prefix("RssAnon:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap();
    assert!(anonymous < 2048, "{status}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_start_that_cannot_work_says_why() {
    let place = Place::new();
    let mut config = place.config(1000);
    config.command = vec!["/no/such/program".into()];
    let error = Spawner::start(config).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    let mut config = place.config(1000);
    config.socket = place.dir.path().join("missing/spawner.sock");
    let error = Spawner::start(config).await.unwrap_err().to_string();
    assert!(error.contains("missing/spawner.sock"), "{error}");
    let mut config = place.config(1000);
    config.cgroup_name = "../escape".into();
    let error = Spawner::start(config).await.unwrap_err().to_string();
    assert!(error.contains("../escape"), "{error}");
}

#[tokio::test]
async fn a_frozen_container_stands_still_and_runs_again_also_when_the_daemon_dies() {
    let place = Place::new();
    let spawner = place.start().await;
    let dir = place.path("shared");
    let count = dir.join("count");
    let (spec, fds) = place.container(
        "c",
        "echo ready; n=0; while :; do n=$((n+1)); echo $n > /tmp/shared/count; sleep 0.001; done",
    );
    let spec = wharf_sandbox::ProcessSpec {
        mounts: vec![support::bind(&dir, "/tmp/shared", false)],
        ..spec
    };
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    until("it counts", || count.exists()).await;
    let look = || std::fs::read_to_string(&count).unwrap();
    spawner.freeze("c").await.unwrap();
    let at = look();
    // Long enough for dozens of rounds of one that runs.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(look(), at);
    spawner.thaw("c").await.unwrap();
    until("it counts on", || look() != at).await;

    spawner.freeze("c").await.unwrap();
    let at = look();
    drop(spawner);
    until("it counts on without a daemon", || look() != at).await;
    let (spawner, _) = place.start_with(20_000).await;
    spawner.freeze("c").await.unwrap();
    spawner.kill("c").await.unwrap();
    assert_eq!(spawner.wait("c").await.unwrap().code, 137);
    place.finish(spawner).await;
}
