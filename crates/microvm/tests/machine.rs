//! Containers in virtual machines: the same contract, another kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use wharf_sandbox::{
    ExecSpec, ExecStreams, Exit, IsolationSpec, Machine, Process, ProcessSpec, Root, SpawnError,
    Spawner, Streams, TerminalSize,
};
use wharf_testkit::is_alive;
use wharf_testkit::set_id::{self, DOCKER, LOOK, gained, nothing_gained};

use self::support::{Place, next_line, read_all};

#[tokio::test]
async fn its_kernel_is_not_the_hosts_and_the_rest_is_as_asked() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "cat /proc/version; id -u; id -g; id -G; hostname; pwd; echo $A $HOME; \
        cat /etc/greeting; ulimit -n; touch made /tmp/also; ls -ln made; \
        echo to-stderr >&2; echo -n > /dev/null; grep Cap /proc/self/status; exit 42";
    let ran = place
        .run_with(&spawner, "c", script, |spec| {
            spec.user = "app".into();
            spec.cwd = "/home/app/work".into();
            spec.env.push("A=b".into());
            spec.limits.nofile = Some(99);
            spec.limits.memory_bytes = Some(256 << 20);
            spec.mounts = vec![support::file("/etc/greeting", "hello\n")];
        })
        .await;
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(ran.out.starts_with("Linux version"), "{ran:?}");
    assert!(!ran.out.contains(host.trim()), "{ran:?}");
    let wanted = "1000\n1001\n1001 50\ninside\n/home/app/work\nb /home/app\nhello\n99\n";
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
async fn programs_gain_what_their_file_says() {
    let place = Place::new();
    let spawner = place.start().await;
    let layer = place.path("programs");
    set_id::write(&layer);
    let script = format!("{LOOK}; exec sleep 1000");
    for (no_new_privileges, expected) in [(false, gained(DOCKER)), (true, nothing_gained())] {
        let (mut spec, fds) = place.container("c", &script);
        if let Root::Overlay { lower, .. } = &mut spec.root {
            lower.insert(0, layer.clone());
        }
        spec.user = "app".into();
        spec.no_new_privileges = no_new_privileges;
        let process = spawner.spawn(&spec, fds).await.unwrap();
        let mut lines = Vec::new();
        for _ in &expected {
            lines.push(next_line(&process).await);
        }
        assert_eq!(set_id::said(&lines.join("\n")), expected);
        let look = ExecSpec {
            user: "app".to_owned(),
            ..exec(&["sh", "-c", LOOK])
        };
        let (_, out, err) = executed(&spawner, &look).await;
        assert_eq!(set_id::said(&out), expected, "{err}");
        spawner.kill("c").await.unwrap();
        spawner.wait("c").await.unwrap();
        spawner.forget("c").await.unwrap();
    }
    place.finish(spawner).await;
}

async fn idle(place: &Place, spawner: &Spawner, change: impl FnOnce(&mut ProcessSpec)) -> Process {
    let (mut spec, fds) = place.container("c", "echo ready; sleep 1000");
    change(&mut spec);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(next_line(&process).await, "ready");
    process
}

fn exec(argv: &[&str]) -> ExecSpec {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
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

/// Its exit code, output and errors.
async fn executed(spawner: &Spawner, spec: &ExecSpec) -> (i32, String, String) {
    let (process, streams) = spawner.exec(spec).await.unwrap();
    let Streams::Pipes { stdout, stderr, .. } = streams else {
        panic!()
    };
    let (out, err) = (read_all(stdout), read_all(stderr));
    let code = process.wait().await.unwrap().code;
    (code, out.await.unwrap(), err.await.unwrap())
}

#[tokio::test]
async fn what_is_written_is_on_disk_while_it_runs_and_changes_from_outside_are_seen() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "echo one > /data; mkdir /dir; ln -s data /link; chmod 640 /data; echo ready; \
        while ! test -e /dir/from-outside; do sleep 0.05; done; cat /dir/from-outside; \
        echo two >> /data; mv /data /dir/data; rm /link; echo moved; sleep 100";
    let (spec, fds) = place.container("c", script);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(next_line(&process).await, "ready");
    let upper = place.dir.path().join("c-upper");
    assert_eq!(
        std::fs::read_to_string(upper.join("data")).unwrap(),
        "one\n"
    );
    let link = std::fs::read_link(upper.join("link")).unwrap();
    assert_eq!(link.to_str(), Some("data"));
    let root = spec.isolation.class().root_of(process.pid);
    wharf_sandbox::files_as(wharf_sandbox::root_of_process(process.pid).unwrap(), || {
        std::fs::write(root.join("dir/from-outside"), "given\n").unwrap();
    })
    .unwrap();
    assert_eq!(next_line(&process).await, "given");
    assert_eq!(next_line(&process).await, "moved");
    let data = std::fs::read_to_string(upper.join("dir/data")).unwrap();
    assert_eq!(data, "one\ntwo\n");
    assert!(!upper.join("link").exists());
    place.finish(spawner).await;
}

#[tokio::test]
async fn its_programs_are_nobody_outside_and_leave_nothing() {
    let place = Place::new();
    let spawner = place.start().await;
    let process = idle(&place, &spawner, |_| {}).await;
    let (_sleeps, _streams) = spawner.exec(&exec(&["sleep", "1000"])).await.unwrap();
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let of_container = namespace(process.pid);
    assert_ne!(of_container, namespace(std::process::id() as i32));
    let members: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| namespace(*pid) == of_container)
        .collect();
    let mut programs = Vec::new();
    for pid in &members {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
        for id in uid.split_whitespace().skip(1) {
            assert!(id.parse::<u32>().unwrap() >= 0x7000_0000, "{pid}: {uid}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let line = String::from_utf8_lossy(&line).into_owned();
        let program = line.split('\0').next().unwrap().to_owned();
        if program != "/virtiofsd" {
            assert!(
                status.contains("CapPrm:\t0000000000000000"),
                "{line}: {status}"
            );
        }
        // The host's files are not there but those that it needs. (virtiofsd's root is the
        // container's.)
        let etc = format!("/proc/{pid}/root/etc");
        assert!(program == "/virtiofsd" || !std::path::Path::new(&etc).exists());
        programs.push(program);
    }
    programs.sort();
    let wanted = ["/qemu", "/virtiofsd", "wharf", "wharf"];
    assert_eq!(programs, wanted);
    // The request, with the container's secrets, is not there any more.
    let state = spec_state(process.pid);
    assert!(state.is_dir() && !state.join("request").exists());
    spawner.kill("c").await.unwrap();
    let exit = spawner.wait("c").await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    for pid in members {
        assert!(!is_alive(pid));
    }
    place.finish(spawner).await;
}

fn spec_state(pid: i32) -> std::path::PathBuf {
    format!("/proc/{pid}/root/state").into()
}

#[tokio::test]
async fn refusals_are_those_of_other_containers() {
    let place = Place::new();
    let spawner = place.start().await;
    let refused = async |id: &str, change: &dyn Fn(&mut ProcessSpec)| {
        let (mut spec, fds) = place.container(id, "");
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
    let (text, code) = refused("file", &argv(&["/etc/passwd"])).await;
    assert!(code == 126 && text.contains("permission denied"), "{text}");
    let (text, code) = refused("user", &|spec| spec.user = "nobody-known".into()).await;
    assert!(code == 125 && text.contains("nobody-known"), "{text}");
    // What is missing of the machine is named; a machine that does not come up says what it said.
    let broken = |change: fn(&mut Machine)| {
        move |spec: &mut ProcessSpec| {
            if let IsolationSpec::Microvm(machine) = &mut spec.isolation {
                change(machine);
            }
        }
    };
    let gone = broken(|machine| machine.qemu = "/nowhere/qemu".into());
    let (text, code) = refused("missing", &gone).await;
    assert!(code == 125 && text.contains("/nowhere/qemu"), "{text}");
    let junk = broken(|machine| machine.kernel = "/etc/passwd".into());
    let (text, code) = refused("junk", &junk).await;
    assert!(code == 125 && text.contains("QEMU"), "{text}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn signals_and_standard_input_reach_the_program() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; read line; echo got $line; while :; do sleep 0.05; done";
    let (mut spec, fds) = place.container("c", script);
    spec.stdin_pipe = true;
    let mut process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(next_line(&process).await, "ready");
    let mut stdin = File::from(process.stdin.take().unwrap());
    stdin.write_all(b"a line\n").unwrap();
    assert_eq!(next_line(&process).await, "got a line");
    assert!(spawner.signal("c", 0).await.unwrap());
    assert!(spawner.signal("c", 10).await.unwrap());
    assert_eq!(next_line(&process).await, "usr1");
    assert!(spawner.signal("c", 15).await.unwrap());
    assert_eq!(next_line(&process).await, "term");
    let exit = spawner.wait("c").await.unwrap();
    assert_eq!((exit.code, exit.signal), (3, None));
    assert!(!spawner.signal("c", 15).await.unwrap());
    place.finish(spawner).await;
}

#[tokio::test]
async fn processes_inside_a_running_one() {
    let place = Place::new();
    let spawner = place.start().await;
    idle(&place, &spawner, |_| {}).await;
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
    // Much of it, both ways.
    let (code, out, _) = executed(
        &spawner,
        &exec(&[
            "sh",
            "-c",
            "head -c 5m /dev/zero | wc -c; head -c 3m /dev/zero",
        ]),
    )
    .await;
    assert_eq!((code, out.len()), (0, 3 * 1024 * 1024 + "5242880\n".len()));

    let (process, streams) = spawner.exec(&exec(&["wc", "-c"])).await.unwrap();
    let Streams::Pipes { stdin, stdout, .. } = streams else {
        panic!()
    };
    let mut stdin = File::from(stdin.unwrap());
    let writing = tokio::task::spawn_blocking(move || stdin.write_all(&vec![b'x'; 5_000_000]));
    assert_eq!(read_all(stdout).await.unwrap(), "5000000\n");
    writing.await.unwrap().unwrap();
    assert_eq!(process.wait().await.unwrap().code, 0);
    // Input that nobody reads.
    let (process, streams) = spawner.exec(&exec(&["true"])).await.unwrap();
    let Streams::Pipes { stdin, .. } = streams else {
        panic!()
    };
    let mut stdin = File::from(stdin.unwrap());
    let writing = tokio::task::spawn_blocking(move || stdin.write_all(&[b'x'; 1 << 20]));
    assert_eq!(process.wait().await.unwrap().code, 0);
    // How much of it is on the way when nobody takes it any more is not said.
    let _ = writing.await.unwrap();

    let script = "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let (process, streams) = spawner.exec(&exec(&["sh", "-c", script])).await.unwrap();
    let Streams::Pipes { stdout, .. } = streams else {
        panic!()
    };
    let mut out = File::from(stdout);
    let mut line = [0; 6];
    out.read_exact(&mut line).unwrap();
    assert!(process.signal(15).await.unwrap());
    assert_eq!(process.wait().await.unwrap().code, 4);
    let (process, _streams) = spawner.exec(&exec(&["sleep", "1234"])).await.unwrap();
    assert!(process.signal(9).await.unwrap());
    assert_eq!(process.wait().await.unwrap().code, 137);
    // The process itself is gone, too, not only who stands for it.
    wharf_testkit::eventually("the process's end", async || {
        let (_, listed, _) = executed(&spawner, &exec(&["ps"])).await;
        (!listed.contains("1234")).then_some(())
    })
    .await;
    a_terminal(&spawner).await;
    one_that_outlives_its_daemon_is_found_again(place, spawner).await;
}

async fn a_terminal(spawner: &Spawner) {
    let mut spec = exec(&[
        "sh",
        "-c",
        "test -t 0 && echo terminal; stty size; trap 'echo int; exit 5' INT; trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done",
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
    let size = TerminalSize {
        rows: 44,
        cols: 111,
    };
    terminal.resize(size).unwrap();
    read_until("44 111", &mut file);
    file.write_all(b"\x03").unwrap();
    read_until("int", &mut file);
    assert_eq!(process.wait().await.unwrap().code, 5);
}

async fn one_that_outlives_its_daemon_is_found_again(place: Place, spawner: Spawner) {
    drop(spawner);
    let (spawner, survivors) = place.0.start(20_000).await;
    assert_eq!(survivors.len(), 1);
    let (code, out, _) = executed(&spawner, &exec(&["echo", "still here"])).await;
    assert_eq!((code, out.as_str()), (0, "still here\n"));
    spawner.kill("c").await.unwrap();
    assert_eq!(spawner.wait("c").await.unwrap().code, 137);
    place.finish(spawner).await;
}

#[tokio::test]
async fn limits_hold_inside_and_are_told() {
    let place = Place::new();
    let spawner = place.start().await;
    let bomb = "head -c 400m /dev/zero | tail -c 300m > /dev/null; echo survived";
    let ran = place.run_with(&spawner, "memory", bomb, |_| {}).await;
    assert!(ran.exit.oom_killed, "{ran:?}");
    // The guest's kernel kills the one that was too large, as this one does.
    assert!(ran.out.contains("survived"), "{ran:?}");

    let forks = "i=0; while [ $i -lt 100 ]; do sleep 100 & i=$((i+1)); done; echo all";
    let (mut spec, fds) = place.container("pids", forks);
    spec.limits.pids = Some(24);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    let err = read_all(process.stderr);
    spawner.wait("pids").await.unwrap();
    assert!(err.await.unwrap().contains("fork"));
    let usage = spawner.usage("pids").await.unwrap();
    assert!(
        usage.pids_limit_hits.is_some_and(|hits| hits > 0),
        "{usage:?}"
    );

    let (mut spec, fds) = place.container("cpu", "echo ready; while :; do :; done");
    spec.limits.cpu_millis = Some(300);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(next_line(&process).await, "ready");
    wharf_testkit::eventually("throttling", async || {
        let usage = spawner.usage("cpu").await.unwrap();
        usage.throttled_periods.filter(|periods| *periods > 0)
    })
    .await;
    place.finish(spawner).await;
}

#[tokio::test]
async fn a_machine_that_dies_is_an_end_with_a_reason() {
    let place = Place::new();
    let spawner = place.start().await;
    let process = idle(&place, &spawner, |_| {}).await;
    let children = format!("/proc/{0}/task/{0}/children", process.pid);
    let children = std::fs::read_to_string(children).unwrap();
    let qemu = children
        .split_whitespace()
        .map(|pid| pid.parse::<i32>().unwrap())
        .find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            line.starts_with(b"/qemu")
        });
    wharf_testkit::kill(qemu.unwrap());
    let err = read_all(process.stderr);
    assert_eq!(spawner.wait("c").await.unwrap().code, 137);
    let err = err.await.unwrap();
    assert!(
        err.contains("the virtual machine") && err.contains("QEMU"),
        "{err}"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn it_stands_still_and_goes_on() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
    let (spec, fds) = place.container("c", script);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(next_line(&process).await, "1");
    spawner.freeze("c").await.unwrap();
    let used = async || spawner.usage("c").await.unwrap().cpu_us;
    let before = used().await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(used().await, before);
    spawner.thaw("c").await.unwrap();
    while next_line(&process).await != "10" {}
    place.finish(spawner).await;
}
