//! Containers on gVisor's kernel: the same contract, another kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use wharf_sandbox::{
    Capabilities, ExecSpec, ExecStreams, Exit, IsolationSpec, ProcessSpec, Root, SpawnError,
    Spawner, Streams, TerminalSize,
};
use wharf_testkit::is_alive;

use self::support::{Place, Ran, file, read_all};

fn on_gvisor(spec: &mut ProcessSpec) {
    spec.isolation = IsolationSpec::Gvisor {
        runsc: wharf_testkit::runsc(),
    };
}

async fn run(place: &Place, spawner: &Spawner, id: &str, script: &str) -> Ran {
    place.run_with(spawner, id, script, on_gvisor).await
}

/// gVisor's kernel has none of this (COMPATIBILITY.md).
#[tokio::test]
async fn programs_gain_nothing_whatever_their_file_says() {
    let place = Place::new();
    let spawner = place.start().await;
    let layer = place.path("programs");
    wharf_testkit::set_id::write(&layer);
    let ran = place
        .run_with(&spawner, "c", wharf_testkit::set_id::LOOK, |spec| {
            on_gvisor(spec);
            if let Root::Overlay { lower, .. } = &mut spec.root {
                lower.insert(0, layer.clone());
            }
            spec.user = "app".into();
        })
        .await;
    let none =
        |line: &&str| line.contains("Uid: 1000 1000") && line.contains("CapEff: 0000000000000000");
    assert_eq!(ran.out.lines().filter(none).count(), 5, "{ran:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn its_kernel_is_not_the_hosts_and_the_rest_is_as_asked() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "cat /proc/version; dmesg | head -3; id -u; id -g; id -G; hostname; pwd; echo $A $HOME; \
        cat /etc/greeting; ulimit -n; grep MemTotal /proc/meminfo; touch made /tmp/also; ls -ln made; \
        echo to-stderr >&2; echo -n > /dev/null; grep Cap /proc/self/status; exit 42";
    let ran = place
        .run_with(&spawner, "c", script, |spec| {
            on_gvisor(spec);
            spec.user = "app".into();
            spec.cwd = "/home/app/work".into();
            spec.env.push("A=b".into());
            spec.limits.nofile = Some(99);
            spec.limits.memory_bytes = Some(256 << 20);
            spec.mounts = vec![file("/etc/greeting", "hello\n")];
        })
        .await;
    assert!(ran.out.contains("Starting gVisor"), "{ran:?}");
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(!ran.out.contains(host.trim()), "{ran:?}");
    let wanted = "1000\n1001\n1001 50\ninside\n/home/app/work\nb /home/app\nhello\n99\nMemTotal:         262144 kB\n";
    assert!(ran.out.contains(wanted), "{ran:?}");
    assert!(ran.out.contains(" 1000     1001 "), "{ran:?}");
    assert!(ran.out.contains("CapEff:\t0000000000000000"), "{ran:?}");
    assert_eq!(ran.err, "to-stderr\n");
    let exit = Exit {
        code: 42,
        signal: None,
        oom_killed: false,
    };
    assert_eq!(ran.exit, exit);
    // On disk as with any other container: where a snapshot finds it, owned by the ids inside.
    use std::os::unix::fs::MetadataExt;
    for path in ["c-upper/home/app/work/made", "c-upper/tmp/also"] {
        let made = std::fs::metadata(place.dir.path().join(path)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 1001), "{path}");
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn what_is_written_is_on_disk_while_it_runs_and_changes_from_outside_are_seen() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "echo one > /data; mkdir /dir; echo ready; while ! test -e /dir/from-outside; do sleep 0.05; done; cat /dir/from-outside";
    let (mut spec, fds) = place.container("c", script);
    on_gvisor(&mut spec);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let data = std::fs::read_to_string(place.dir.path().join("c-upper/data")).unwrap();
    assert_eq!(data, "one\n");
    let root = spec.isolation.class().root_of(process.pid);
    wharf_sandbox::files_as(wharf_sandbox::root_of_process(process.pid).unwrap(), || {
        std::fs::write(root.join("dir/from-outside"), "two\n").unwrap();
    })
    .unwrap();
    assert_eq!(support::first_line(&process).await, "two");
    assert_eq!(spawner.wait("c").await.unwrap().code, 0);
    place.finish(spawner).await;
}

#[tokio::test]
async fn its_processes_are_nobody_outside_and_leave_nothing() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut spec, fds) = place.container("c", "sleep 1000 & sleep 1000 & echo ready; wait");
    on_gvisor(&mut spec);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let (_sleeps, _streams) = spawner.exec(&exec(&["sleep", "1000"])).await.unwrap();
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let of_container = namespace(process.pid);
    assert_ne!(of_container, namespace(std::process::id() as i32));
    let members: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| namespace(*pid) == of_container)
        .collect();
    assert!(members.len() >= 3, "keeper, kernel, files: {members:?}");
    let mut execs = 0;
    for pid in &members {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
        for id in uid.split_whitespace().skip(1) {
            assert!(id.parse::<u32>().unwrap() >= 0x7000_0000, "{pid}: {uid}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let line = String::from_utf8_lossy(&line).into_owned();
        // What serves the container, or lives beside that, can make few system calls.
        if *pid != process.pid {
            assert!(status.contains("Seccomp:\t2"), "{line}: {status}");
        }
        if line.contains("\0exec\0") {
            assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
            execs += 1;
        }
    }
    assert_eq!(execs, 1);
    // The keeper has the spawner's memory: nobody inside may read it, and it holds nothing.
    let keeper = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap();
    assert_eq!(keeper.count(), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(format!("/proc/{}/mem", process.pid)).unwrap();
    assert_eq!(owner.uid(), 0, "it is not dumpable");
    spawner.kill("c").await.unwrap();
    let exit = spawner.wait("c").await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    for pid in members {
        assert!(!is_alive(pid));
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn refusals_are_those_of_other_containers() {
    let place = Place::new();
    let spawner = place.start().await;
    let refused = async |id: &str, change: &dyn Fn(&mut ProcessSpec)| {
        let (mut spec, fds) = place.container(id, "");
        on_gvisor(&mut spec);
        change(&mut spec);
        match support::run(&spawner, &spec, fds).await {
            Err(SpawnError::Refused { message, exit_code }) => (message, exit_code),
            other => panic!("{other:?}"),
        }
    };
    let argv = |words: &'static [&str]| {
        move |spec: &mut ProcessSpec| spec.argv = words.iter().map(|w| (*w).to_owned()).collect()
    };
    let (text, code) = refused("none", &argv(&["nothing-here"])).await;
    assert!(code == 127 && text.contains("not found in $PATH"), "{text}");
    let (text, code) = refused("path", &argv(&["/nothing"])).await;
    assert!(code == 127 && text.contains("no such file"), "{text}");
    let (text, code) = refused("file", &argv(&["/etc/passwd"])).await;
    assert!(code == 126 && text.contains("permission denied"), "{text}");
    let (text, code) = refused("user", &|spec| spec.user = "nobody-known".into()).await;
    assert!(code == 125 && text.contains("nobody-known"), "{text}");
    let (text, code) = refused("format", &|spec| {
        let Root::Overlay { upper, .. } = &spec.root else {
            unreachable!()
        };
        let path = upper.join("junk");
        std::fs::write(&path, "\x01\x02junk").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        spec.argv = vec!["/junk".into()];
    })
    .await;
    assert!(
        code == 126 && text.contains("exec format error"),
        "{code} {text}"
    );
    let (text, code) = refused("missing", &|spec| {
        spec.isolation = IsolationSpec::Gvisor {
            runsc: "/nowhere/runsc".into(),
        };
    })
    .await;
    assert!(code == 125 && text.contains("/nowhere/runsc"), "{text}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn short_lives_keep_their_exit_codes_and_output() {
    let place = Place::new();
    let spawner = place.start().await;
    for (n, code) in [0, 1, 7, 255].into_iter().enumerate() {
        let script = format!("echo out {code}; exit {code}");
        let ran = run(&place, &spawner, &format!("c{n}"), &script).await;
        assert_eq!((ran.exit.code, ran.out), (code, format!("out {code}\n")));
    }
    let ran = run(&place, &spawner, "killed", "kill -9 $$; sleep 100").await;
    // Process 1 of a PID namespace is not killed from inside, there as here.
    assert!(ran.exit.code == 0 || ran.exit.code == 137, "{ran:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn signals_reach_the_program() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let (mut spec, fds) = place.container("c", script);
    on_gvisor(&mut spec);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    assert!(spawner.signal("c", 0).await.unwrap());
    assert!(spawner.signal("c", libc::SIGUSR1).await.unwrap());
    assert_eq!(support::first_line(&process).await, "usr1");
    assert!(spawner.signal("c", libc::SIGTERM).await.unwrap());
    assert_eq!(support::first_line(&process).await, "term");
    let exit = spawner.wait("c").await.unwrap();
    assert_eq!((exit.code, exit.signal), (3, None));
    assert!(!spawner.signal("c", libc::SIGTERM).await.unwrap());
    idle(&place, &spawner, "d").await;
    let error = spawner.signal("d", 64).await.unwrap_err().to_string();
    assert!(error.contains("signal 64"), "{error}");
    place.finish(spawner).await;
}

async fn idle(place: &Place, spawner: &Spawner, id: &str) -> i32 {
    let (mut spec, fds) = place.container(id, "echo ready; sleep 1000");
    on_gvisor(&mut spec);
    spec.capabilities = Capabilities::default().without("NET_RAW");
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    process.pid
}

fn exec(argv: &[&str]) -> ExecSpec {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    ExecSpec {
        id: format!("exec-{number}"),
        container: "c".to_owned(),
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "X=y".into()],
        cwd: "/tmp".into(),
        user: String::new(),
        nofile: None,
        streams: ExecStreams::Pipes { stdin: true },
    }
}

#[tokio::test]
async fn processes_inside_a_running_one() {
    let place = Place::new();
    let spawner = place.start().await;
    idle(&place, &spawner, "c").await;
    let mut spec = exec(&[
        "sh",
        "-c",
        "cat /proc/version | cut -c1-13; id -u; id -G; pwd; echo $X $HOME; cat; echo err >&2; exit 9",
    ]);
    spec.user = "app".into();
    let (process, streams) = spawner.exec(&spec).await.unwrap();
    let Streams::Pipes {
        stdin: Some(stdin),
        stdout,
        stderr,
    } = streams
    else {
        panic!()
    };
    let (out, err) = (read_all(stdout), read_all(stderr));
    let mut stdin = File::from(stdin);
    stdin.write_all(b"given\n").unwrap();
    drop(stdin);
    assert_eq!(process.wait().await.unwrap().code, 9);
    let out = out.await.unwrap();
    assert_eq!(
        out,
        "Linux version\n1000\n1001 50\n/tmp\ny /home/app\ngiven\n"
    );
    assert_eq!(err.await.unwrap(), "err\n");

    for (argv, code) in [(["/nothing"], 127), (["/etc/passwd"], 126)] {
        match spawner.exec(&exec(&argv)).await {
            Err(SpawnError::Refused { exit_code, .. }) => assert_eq!(exit_code, code),
            other => panic!("{other:?}"),
        }
    }
    let mut nowhere = exec(&["true"]);
    nowhere.cwd = "/no/such".into();
    assert!(matches!(
        spawner.exec(&nowhere).await,
        Err(SpawnError::Refused { exit_code: 127, .. })
    ));
    // What only gVisor can tell, with its words.
    let junk = place.dir.path().join("c-upper/junk");
    std::fs::write(&junk, "\x01\x02junk").unwrap();
    std::fs::set_permissions(&junk, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    match spawner.exec(&exec(&["/junk"])).await {
        Err(SpawnError::Refused { exit_code, message }) => {
            assert!(
                exit_code == 126 && message.contains("exec format error"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn signals_reach_processes_inside() {
    let place = Place::new();
    let spawner = place.start().await;
    idle(&place, &spawner, "c").await;
    let script = "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let (process, streams) = spawner.exec(&exec(&["sh", "-c", script])).await.unwrap();
    let Streams::Pipes { stdout, .. } = streams else {
        panic!()
    };
    let mut out = File::from(stdout);
    let mut line = [0; 6];
    out.read_exact(&mut line).unwrap();
    assert!(process.signal(libc::SIGTERM).await.unwrap());
    assert_eq!(process.wait().await.unwrap().code, 4);
    let (process, _streams) = spawner.exec(&exec(&["sleep", "1234"])).await.unwrap();
    assert!(process.signal(libc::SIGKILL).await.unwrap());
    assert_eq!(process.wait().await.unwrap().code, 137);
    // The process itself is gone, too, not only who asked for it.
    let (process, streams) = spawner.exec(&exec(&["ps"])).await.unwrap();
    let Streams::Pipes { stdout, .. } = streams else {
        panic!()
    };
    let listed = read_all(stdout).await.unwrap();
    process.wait().await.unwrap();
    assert!(!listed.contains("1234"), "{listed}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_terminal_inside() {
    let place = Place::new();
    let spawner = place.start().await;
    idle(&place, &spawner, "c").await;
    let mut spec = exec(&[
        "sh",
        "-c",
        "test -t 0 && echo terminal; stty size; trap 'echo int; exit 5' INT; echo ready; while :; do sleep 0.05; done",
    ]);
    spec.streams = ExecStreams::Terminal(TerminalSize { rows: 33, cols: 77 });
    let (process, streams) = spawner.exec(&spec).await.unwrap();
    let Streams::Terminal(terminal) = streams else {
        panic!()
    };
    let mut seen = String::new();
    let mut file = File::from(terminal.as_fd().try_clone_to_owned().unwrap());
    let mut read_until = |what: &str, file: &mut File| {
        let mut chunk = [0; 256];
        while !seen.contains(what) {
            match file.read(&mut chunk) {
                Ok(0) => panic!("{seen}"),
                Ok(n) => seen.push_str(&String::from_utf8_lossy(&chunk[..n])),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err(e) => panic!("{e}: {seen}"),
            }
        }
        seen.clone()
    };
    let seen = read_until("ready", &mut file);
    assert!(
        seen.contains("terminal") && seen.contains("33 77"),
        "{seen}"
    );
    file.write_all(b"\x03").unwrap();
    read_until("int", &mut file);
    assert_eq!(process.wait().await.unwrap().code, 5);
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_memory_bomb_is_told_as_out_of_memory() {
    let place = Place::new();
    let spawner = place.start().await;
    let ran = place
        .run_with(
            &spawner,
            "memory",
            "head -c 400m /dev/zero | tail -c 300m > /dev/null; echo survived",
            |spec| {
                on_gvisor(spec);
                spec.limits.memory_bytes = Some(128 << 20);
            },
        )
        .await;
    assert!(ran.exit.oom_killed, "{ran:?}");
    assert_ne!(ran.exit.code, 0);
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_limit_of_cpu_holds_from_the_start_on() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut spec, fds) = place.container("cpu", "echo ready; while :; do :; done");
    on_gvisor(&mut spec);
    spec.limits.cpu_millis = Some(62);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    let mut usage = spawner.usage("cpu").await.unwrap();
    while usage.throttled_periods == Some(0) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        usage = spawner.usage("cpu").await.unwrap();
    }
    assert!(usage.throttled_periods.is_some(), "{usage:?}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn the_processes_limit_holds() {
    let place = Place::new();
    let spawner = place.start().await;
    let ran = place
        .run_with(
            &spawner,
            "pids",
            "i=0; while [ $i -lt 600 ]; do sleep 100 & i=$((i+1)); done; echo all",
            |spec| {
                on_gvisor(spec);
                spec.limits.pids = Some(64);
            },
        )
        .await;
    assert!(
        !ran.out.contains("all") || ran.err.contains("fork"),
        "{ran:?}"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn one_that_outlives_its_daemon_is_found_again() {
    let place = Place::new();
    let spawner = place.start().await;
    let pid = idle(&place, &spawner, "c").await;
    drop(spawner);
    let (spawner, survivors) = place.start_with(20_000).await;
    assert_eq!(survivors.len(), 1);
    assert_eq!(survivors[0].process.pid, pid);
    let (process, streams) = spawner.exec(&exec(&["echo", "still here"])).await.unwrap();
    let Streams::Pipes { stdout, .. } = streams else {
        panic!()
    };
    assert_eq!(read_all(stdout).await.unwrap(), "still here\n");
    process.wait().await.unwrap();
    // Its shell has no handler, and is process 1: only what it cannot ignore ends it.
    spawner.kill("c").await.unwrap();
    assert_eq!(spawner.wait("c").await.unwrap().code, 137);
    place.finish(spawner).await;
}
