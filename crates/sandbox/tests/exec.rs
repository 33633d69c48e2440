//! Processes started inside a running container.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use wharf_sandbox::{
    ExecProcess, ExecSpec, ExecStreams, Exit, SpawnError, Spawner, Streams, Terminal, TerminalSize,
};
use wharf_testkit::{is_alive, until};

use self::support::{Place, read_all};

const IDLE: &str = "echo ready; sleep 1000";

/// A container that does nothing.
async fn container(place: &Place, spawner: &Spawner, id: &str) -> i32 {
    let (spec, fds) = place.container(id, IDLE);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    process.pid
}

fn spec(container: &str, argv: &[&str]) -> ExecSpec {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    ExecSpec {
        id: format!("exec-{number}"),
        container: container.to_owned(),
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: String::new(),
        nofile: None,
        streams: ExecStreams::Pipes { stdin: false },
    }
}

fn sh(container: &str, script: &str) -> ExecSpec {
    spec(container, &["sh", "-c", script])
}

struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

async fn run(spawner: &Spawner, spec: &ExecSpec) -> Result<Ran, SpawnError> {
    let (process, streams) = spawner.exec(spec).await?;
    let Streams::Pipes { stdout, stderr, .. } = streams else {
        panic!("{streams:?}")
    };
    let (out, err) = (read_all(stdout), read_all(stderr));
    Ok(Ran {
        exit: process.wait().await?,
        out: out.await.unwrap(),
        err: err.await.unwrap(),
    })
}

#[tokio::test]
async fn in_a_container_that_was_made_ahead_the_root_is_the_containers() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "ordinary").await;
    support::all_is_made_ahead(&spawner, 1).await;
    let before = support::children(spawner.pid());
    let pid = container(&place, &spawner, "ahead").await;
    assert!(before.contains(&pid));
    let look = "ls -a / /..; cut -d ' ' -f 4-6 /proc/self/mountinfo | sed 's/c[0-9]*//'";
    let ordinary = run(&spawner, &sh("ordinary", look)).await.unwrap();
    let ahead = run(&spawner, &sh("ahead", look)).await.unwrap();
    assert!(ordinary.out.contains("bin"), "{}", ordinary.out);
    assert_eq!((ahead.out, ahead.err), (ordinary.out, ordinary.err));
    place.finish(spawner).await;
}

fn refused(result: Result<Ran, SpawnError>) -> (String, i32) {
    match result {
        Err(SpawnError::Refused { message, exit_code }) => (message, exit_code),
        Err(other) => panic!("{other:?}"),
        Ok(ran) => panic!("{:?}", ran.exit),
    }
}

fn descriptors(spawner: &Spawner) -> usize {
    // User namespaces are made ahead, at times of their own.
    let is_other = |fd: &std::fs::DirEntry| {
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        !target.to_string_lossy().starts_with("user:")
    };
    std::fs::read_dir(format!("/proc/{}/fd", spawner.pid()))
        .unwrap()
        .filter(|fd| is_other(fd.as_ref().unwrap()))
        .count()
}

/// The count when nothing is under way in container `c`: before an answer, it has done with the
/// answer before.
async fn descriptors_at_rest(spawner: &Spawner) -> usize {
    support::descriptors_at_rest(spawner, 1).await;
    assert!(spawner.signal("c", 0).await.unwrap());
    descriptors(spawner)
}

async fn has_descriptors(spawner: &Spawner, count: usize) {
    until("the spawner's descriptors", || {
        descriptors(spawner) == count
    })
    .await;
}

#[tokio::test]
async fn streams_exit_codes_and_what_is_given() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    let ran = run(&spawner, &sh("c", "echo out; echo err >&2; cat; exit 42"))
        .await
        .unwrap();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
    let exit = Exit {
        code: 42,
        signal: None,
        oom_killed: false,
    };
    assert_eq!(ran.exit, exit);

    let mut with_input = sh("c", "cat; exit 255");
    with_input.streams = ExecStreams::Pipes { stdin: true };
    let (process, streams) = spawner.exec(&with_input).await.unwrap();
    let Streams::Pipes {
        stdin: Some(stdin),
        stdout,
        ..
    } = streams
    else {
        panic!("{streams:?}")
    };
    let out = read_all(stdout);
    File::from(stdin).write_all(b"through the pipe").unwrap();
    assert_eq!(process.wait().await.unwrap().code, 255);
    assert_eq!(out.await.unwrap(), "through the pipe");

    let script = "echo $(id -u) $(id -g) $(id -G) $HOME $X; pwd; ulimit -n; echo > /dev/stdout";
    let mut other = sh("c", script);
    other.user = "app".into();
    other.cwd = "/tmp".into();
    other.env.push("X=1".into());
    other.nofile = Some(99);
    let ran = run(&spawner, &other).await.unwrap();
    assert_eq!(
        ran.out, "1000 1001 1001 50 /home/app 1\n/tmp\n99\n\n",
        "{}",
        ran.err
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn it_has_the_walls_of_the_container() {
    let place = Place::new();
    let spawner = place.start().await;
    let walls = "cd /proc/self; for n in cgroup ipc mnt net pid pid_for_children user uts; do readlink ns/$n; done; \
        cat cgroup; grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|SigIgn|SigBlk)' status; ls /proc/$$/fd; hostname; ls /";
    let (main, fds) = place.container("c", &format!("echo > /made; {walls}; echo; sleep 1000"));
    let process = spawner.spawn(&main, fds).await.unwrap();
    let mut out = File::from(process.stdout.try_clone().unwrap());
    let mut expected = String::new();
    while !expected.ends_with("\n\n") {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1);
        expected.push(char::from(byte[0]));
    }
    let ran = run(&spawner, &sh("c", &format!("{walls}; echo")))
        .await
        .unwrap();
    assert_eq!(ran.out, expected, "{}", ran.err);
    assert!(expected.contains("made") && expected.contains("Seccomp:\t2"));

    // Its number inside is what the container knows it by; its parent is none of the container's.
    let script = "echo $$; grep PPid /proc/self/status | head -1; grep PPid /proc/$$/status; ps | grep -c [w]harf";
    let (process, streams) = spawner.exec(&sh("c", script)).await.unwrap();
    let Streams::Pipes { stdout, .. } = streams else {
        panic!()
    };
    let out = read_all(stdout).await.unwrap();
    let number = process.inside_pid;
    assert_eq!(
        out,
        format!("{number}\nPPid:\t{number}\nPPid:\t0\n0\n"),
        "{process:?}"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_containers_limits_count() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut main, fds) = place.container("c", IDLE);
    main.limits.pids = Some(8);
    spawner.spawn(&main, fds).await.unwrap();
    let forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done";
    let (process, streams) = spawner.exec(&sh("c", forks)).await.unwrap();
    let Streams::Pipes { stderr, .. } = streams else {
        panic!()
    };
    let (mut stderr, mut said) = (File::from(stderr), Vec::new());
    while !String::from_utf8_lossy(&said).contains("fork") {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1);
        said.push(byte[0]);
    }
    assert_eq!(process.wait().await.unwrap().code, 2);

    let (mut main, fds) = place.container("d", IDLE);
    main.limits.memory_bytes = Some(64 << 20);
    spawner.spawn(&main, fds).await.unwrap();
    let much = sh("d", "head -c 200m /dev/zero | tail -c 150m > /dev/null");
    assert_eq!(run(&spawner, &much).await.unwrap().exit.code, 137);
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why() {
    let place = Place::new();
    let spawner = place.start().await;
    let root = place.busybox();
    std::fs::write(root.join("plain"), "text").unwrap();
    std::fs::write(root.join("script"), "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(root.join("script"), PermissionsExt::from_mode(0o755)).unwrap();
    container(&place, &spawner, "c").await;
    let before = descriptors_at_rest(&spawner).await;
    let cases = [
        (
            "nope",
            "exec: \"nope\": executable file not found in $PATH",
            127,
        ),
        ("/nope", "exec: \"/nope\": no such file or directory", 127),
        ("/plain", "exec: \"/plain\": permission denied", 126),
        (
            "/script",
            "exec: \"/script\": no such file or directory (the file exists; its interpreter or loader does not)",
            127,
        ),
    ];
    for (program, message, code) in cases {
        assert_eq!(
            refused(run(&spawner, &spec("c", &[program])).await),
            (message.to_owned(), code)
        );
    }
    let mut bad = spec("c", &["true"]);
    bad.cwd = "/no/where".into();
    assert_eq!(
        refused(run(&spawner, &bad).await),
        (
            "working directory \"/no/where\": no such file or directory".into(),
            127
        )
    );
    for cwd in ["/plain", "here"] {
        bad.cwd = cwd.into();
        assert!(refused(run(&spawner, &bad).await).0.contains(cwd));
    }
    bad.cwd = "/".into();
    bad.user = "nobody-here".into();
    assert!(refused(run(&spawner, &bad).await).0.contains("nobody-here"));
    assert_eq!(refused(run(&spawner, &spec("c", &[])).await).1, 125);
    // No descriptor of the spawner leads out.
    for number in 0..40 {
        let mut out = spec("c", &["true"]);
        out.cwd = format!("/proc/self/fd/{number}");
        assert!(refused(run(&spawner, &out).await).0.contains(&out.cwd));
    }
    let taken = spec("c", &["sleep", "1000"]);
    let _sleep = spawner.exec(&taken).await.unwrap();
    assert!(
        refused(run(&spawner, &taken).await)
            .0
            .contains("exists already")
    );
    has_descriptors(&spawner, before + 1).await; // Its pidfd.
    place.finish(spawner).await;
}

#[tokio::test]
async fn an_image_with_nothing_but_the_program() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut main, fds) = place.container("c", "");
    let upper = place.path("own-upper");
    // What the program is called tells busybox what to do.
    std::fs::copy("/bin/busybox", upper.join("sleep")).unwrap();
    std::fs::hard_link(upper.join("sleep"), upper.join("cat")).unwrap();
    main.argv = vec!["/sleep".into(), "1000".into()];
    main.root = wharf_sandbox::Root::Overlay {
        lower: vec![],
        upper,
        work: place.path("own-work"),
    };
    spawner.spawn(&main, fds).await.unwrap();
    let cat = spec("c", &["/cat", "/proc/1/comm"]);
    assert_eq!(run(&spawner, &cat).await.unwrap().out, "sleep\n");
    let missing = refused(run(&spawner, &spec("c", &["/bin/sh", "-c", "true"])).await);
    assert_eq!(missing.1, 127);
    place.finish(spawner).await;
}

#[tokio::test]
async fn signals_reach_it_and_are_reported() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    for (signal, code) in [(9, 137), (15, 143), (10, 138), (34, 162)] {
        let (process, _streams) = spawner.exec(&spec("c", &["sleep", "1000"])).await.unwrap();
        assert!(process.signal(signal).await.unwrap());
        let exit = process.wait().await.unwrap();
        assert_eq!((exit.code, exit.signal), (code, Some(signal)));
        assert_eq!(process.wait().await.unwrap(), exit, "as often as one likes");
        assert!(!process.signal(signal).await.unwrap(), "it has ended");
    }
    let script = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done";
    let (process, streams) = spawner.exec(&sh("c", script)).await.unwrap();
    let Streams::Pipes { stdout, .. } = streams else {
        panic!()
    };
    let mut ready = [0; 5];
    File::from(stdout).read_exact(&mut ready).unwrap();
    assert!(process.signal(10).await.unwrap());
    assert_eq!(process.wait().await.unwrap().code, 7);
    assert!(process.signal(99).await.is_ok_and(|found| !found));
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_container_takes_it_along_and_its_end_is_told_first() {
    let place = Place::new();
    let spawner = place.start().await;
    for round in 0..10 {
        let id = format!("c{round}");
        let pid = container(&place, &spawner, &id).await;
        let (process, _streams) = spawner.exec(&spec(&id, &["sleep", "1000"])).await.unwrap();
        if round % 2 == 0 {
            spawner.kill(&id).await.unwrap();
        } else {
            // Its main process alone.
            wharf_testkit::kill(pid);
        }
        assert_eq!(spawner.wait(&id).await.unwrap().code, 137);
        let told = tokio::time::timeout(std::time::Duration::ZERO, process.wait()).await;
        assert_eq!(told.expect("already").unwrap().code, 137);
        assert!(!is_alive(process.pid));
        let late = run(&spawner, &sh(&id, "true")).await;
        assert!(matches!(late, Err(SpawnError::NotRunning(_))));
        spawner.forget(&id).await.unwrap();
    }
    let missing = run(&spawner, &sh("c0", "true")).await;
    assert!(matches!(missing, Err(SpawnError::NotRunning(text)) if text.contains("c0")));
    let (bare, fds) = place.bare("w", &["/bin/busybox", "sleep", "1000"]);
    spawner.spawn(&bare, fds).await.unwrap();
    let (message, _) = refused(run(&spawner, &sh("w", "true")).await);
    assert!(message.contains("no container"), "{message}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_container_that_ends_while_many_are_started() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    let before = descriptors_at_rest(&spawner).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let (spawner, spec) = (spawner.clone(), sh("c", "sleep 1000"));
        tasks.spawn(async move { run(&spawner, &spec).await });
    }
    let first = tasks.spawn({
        let spawner = spawner.clone();
        async move {
            spawner.kill("c").await.unwrap();
            run(&spawner, &sh("c", "true")).await
        }
    });
    while let Some(done) = tasks.join_next_with_id().await {
        let (id, done) = done.unwrap();
        match done {
            Ok(ran) => assert_eq!(ran.exit.code, 137),
            Err(SpawnError::NotRunning(_)) => {}
            Err(other) => panic!("{other} {}", id == first.id()),
        }
    }
    assert_eq!(spawner.wait("c").await.unwrap().code, 137);
    spawner.forget("c").await.unwrap();
    has_descriptors(&spawner, before - 3).await;
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_hundred_at_once_leave_nothing_behind() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    let before = descriptors_at_rest(&spawner).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let spawner = spawner.clone();
        let spec = sh("c", &format!("echo {n}; echo {n} >&2; exit {n}"));
        tasks.spawn(async move { (n, run(&spawner, &spec).await.unwrap()) });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, ran) = done.unwrap();
        let text = format!("{n}\n");
        assert_eq!(
            (ran.out, ran.err, ran.exit.code),
            (text.clone(), text, n),
            "{n}"
        );
    }
    has_descriptors(&spawner, before).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", spawner.pid())).unwrap();
    let anonymous = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib: u64 = anonymous
        .unwrap()
        .trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse()
        .unwrap();
    assert!(kib < 2048, "{status}");
    place.finish(spawner).await;
}

/// Reads a terminal until it says `text`; returns all that it said.
async fn says(terminal: &Terminal, text: &str) -> String {
    let mut said = Vec::new();
    wharf_testkit::eventually(text, async || {
        let mut chunk = [0; 1000];
        if let Ok(length) = rustix::io::read(terminal.as_fd(), &mut chunk) {
            said.extend_from_slice(&chunk[..length]);
        }
        String::from_utf8_lossy(&said).contains(text).then_some(())
    })
    .await;
    String::from_utf8(said).unwrap()
}

async fn in_terminal(spawner: &Spawner, mut spec: ExecSpec) -> (ExecProcess, Terminal) {
    spec.streams = ExecStreams::Terminal(TerminalSize { rows: 24, cols: 80 });
    match spawner.exec(&spec).await.unwrap() {
        (process, Streams::Terminal(terminal)) => (process, terminal),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_terminal_of_the_container() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    let script = "tty; stty size; stat -c %u:%a $(tty); trap 'stty size' WINCH; while read line; do echo got $line; done; echo end; exit 3";
    let mut shell = sh("c", script);
    shell.user = "app".into();
    let (process, terminal) = in_terminal(&spawner, shell).await;
    let said = says(&terminal, "620\r\n").await;
    assert_eq!(said, "/dev/pts/0\r\n24 80\r\n1000:620\r\n");
    rustix::io::write(&terminal, b"moin\n").unwrap();
    says(&terminal, "got moin\r\n").await;
    // ^D is the end of input, ^C interrupts.
    rustix::io::write(&terminal, &[4]).unwrap();
    says(&terminal, "end\r\n").await;
    assert_eq!(process.wait().await.unwrap().code, 3);
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done";
    let (process, terminal) = in_terminal(&spawner, sh("c", script)).await;
    says(&terminal, "ready").await;
    let size = TerminalSize {
        rows: 40,
        cols: 100,
    };
    terminal.resize(size).unwrap();
    says(&terminal, "40 100\r\n").await;
    rustix::io::write(&terminal, &[3]).unwrap();
    assert_eq!(process.wait().await.unwrap().code, 130);
    // Closed, it hangs up.
    let (process, terminal) = in_terminal(&spawner, spec("c", &["sleep", "1000"])).await;
    drop(terminal);
    assert_eq!(process.wait().await.unwrap().code, 129);
    place.finish(spawner).await;
}

#[tokio::test]
async fn what_a_container_does_to_its_devices_does_not_lead_out() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "rm -f /dev/ptmx /dev/null; ln -s /etc/passwd /dev/ptmx; ln -s /proc/1/root/etc /dev/null; \
        rm -r /dev/pts /dev/shm; mv /dev /old; echo ready; sleep 1000";
    let (main, fds) = place.container("c", script);
    let process = spawner.spawn(&main, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let (process, terminal) = in_terminal(&spawner, sh("c", "tty")).await;
    says(&terminal, "/dev/pts/0\r\n").await;
    assert_eq!(process.wait().await.unwrap().code, 0);
    place.finish(spawner).await;
}

#[tokio::test]
async fn without_its_daemon_it_runs_on_in_the_container() {
    let place = Place::new();
    let (spawner, _) = place.start_with(20_000).await;
    container(&place, &spawner, "c").await;
    let before = descriptors_at_rest(&spawner).await;
    let mut detached = sh("c", "sleep 1000");
    detached.streams = ExecStreams::Null;
    let (detached, streams) = spawner.exec(&detached).await.unwrap();
    assert!(matches!(streams, Streams::Null));
    let detached_pid = detached.pid;
    let (process, streams) = spawner
        .exec(&spec("c", &["cat", "/dev/zero"]))
        .await
        .unwrap();
    let writing_pid = process.pid;
    drop((spawner, detached, process, streams));
    // Nobody reads any more: SIGPIPE, as everywhere.
    until("the writer ends", || !is_alive(writing_pid)).await;
    let (spawner, survivors) = place.start_with(20_000).await;
    assert_eq!(survivors.len(), 1, "{survivors:?}");
    assert!(is_alive(detached_pid));
    let kill = spec("c", &["busybox", "killall", "sleep"]);
    run(&spawner, &kill).await.unwrap();
    until("the detached one ends", || !is_alive(detached_pid)).await;
    has_descriptors(&spawner, before).await;
    place.finish(spawner).await;
}

#[tokio::test]
async fn one_whose_caller_gave_up_is_killed() {
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    for _ in 0..20 {
        let spec = spec("c", &["sleep", "1000"]);
        let mut starting = Box::pin(spawner.exec(&spec));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::future::Future::poll(starting.as_mut(), &mut context).is_pending());
        drop(starting);
    }
    wharf_testkit::eventually("only the container's own sleep is left", async || {
        let ran = run(&spawner, &sh("c", "ps | grep -c '[s]leep'"))
            .await
            .unwrap();
        (ran.out == "1\n").then_some(())
    })
    .await;
    place.finish(spawner).await;
}

#[tokio::test]
async fn containers_cannot_write_to_the_spawners_file() {
    let place = Place::new();
    let spawner = place.start().await;
    let exe = format!("/proc/{}/exe", spawner.pid());
    let flags = rustix::fs::statvfs(exe.as_str()).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    place.finish(spawner).await;
}

#[tokio::test]
async fn it_shows_nothing_of_the_spawner_while_it_starts() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "echo ready; while [ ! -e /stop ]; do ls -l /proc/[0-9]*/fd /proc/[0-9]*/exe 2>/dev/null | \
        grep -e '->' | grep -vE -- '-> (pipe:|/usr/bin/|/dev/null|/proc/|/$)'; done; true";
    let (main, fds) = place.container("c", script);
    let process = spawner.spawn(&main, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let seen = read_all(process.stdout);
    for _ in 0..10 {
        // It tries one after the other, when it has no more capabilities than the container.
        let mut slow = spec("c", &["true"]);
        slow.env = vec![format!("PATH={}/bin", "/no:".repeat(20_000))];
        run(&spawner, &slow).await.unwrap();
    }
    run(&spawner, &sh("c", "echo > /stop")).await.unwrap();
    assert_eq!(spawner.wait("c").await.unwrap().code, 0);
    assert_eq!(seen.await.unwrap(), "");
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_same_walls_as_the_main_process() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut spec, fds) = place.container("c", IDLE);
    spec.capabilities = wharf_sandbox::Capabilities::default().without("CHOWN");
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let script = "readlink /proc/self/ns/user; cat /proc/self/uid_map; grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; ulimit -c; id -u; stat -c %u /proc/1 /dev/pts; echo > /tmp/made; stat -c %u /tmp/made";
    let mine = run(&spawner, &sh("c", script)).await.unwrap();
    let of_main =
        |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", process.pid)).unwrap();
    let users = std::fs::read_link(format!("/proc/{}/ns/user", process.pid)).unwrap();
    let lines: Vec<&str> = mine.out.lines().collect();
    assert_eq!(lines[0], users.to_str().unwrap(), "{}", mine.err);
    assert_eq!(lines[1], of_main("uid_map").trim_end());
    for line in &lines[2..9] {
        assert!(of_main("status").lines().any(|l| l == *line), "{line}");
    }
    assert_eq!(lines[9..], ["0", "0", "0", "0", "0"], "{:?}", mine.out);
    let uid = of_main("status");
    let uid = uid
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .unwrap()
        .trim()
        .to_owned();
    assert!(!uid.starts_with("0\t"), "{uid}");
    // It is reached by the container's processes and reaches them.
    let ran = run(&spawner, &sh("c", "kill -0 1 && echo reached"))
        .await
        .unwrap();
    assert_eq!(ran.out, "reached\n", "{}", ran.err);
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_null_device_is_the_containers() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let spawner = place.start().await;
    container(&place, &spawner, "c").await;
    let mut detached = sh(
        "c",
        "chmod 600 /proc/self/fd/0 /proc/self/fd/1; stat -c %u:%a /dev/null > /tmp/seen",
    );
    detached.user = "app".into();
    detached.streams = ExecStreams::Null;
    let (process, _) = spawner.exec(&detached).await.unwrap();
    process.wait().await.unwrap();
    let seen = run(&spawner, &sh("c", "cat /tmp/seen")).await.unwrap();
    assert_eq!(seen.out, "0:666\n", "{}", seen.err);
    let host = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((host.uid(), host.mode() & 0o777), (0, 0o666));
    place.finish(spawner).await;
}
