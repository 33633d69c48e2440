//! Starting and ending processes: exit codes, signals, users, limits, errors.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use wharf_sandbox::{Exit, Root, SpawnError};

use self::support::{Place, read_all};

fn refused(result: Result<support::Ran, SpawnError>) -> (String, i32) {
    match result {
        Err(SpawnError::Refused { message, exit_code }) => (message, exit_code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn output_and_exit_codes_are_exact() {
    let place = Place::new();
    let spawner = place.start().await;
    let ran = place
        .run(
            &spawner,
            "one",
            "echo to stdout; echo to stderr >&2; exit 42",
        )
        .await;
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("to stdout\n", "to stderr\n")
    );
    assert_eq!(
        ran.exit,
        Exit {
            code: 42,
            signal: None,
            oom_killed: false
        }
    );
    assert_eq!(place.run(&spawner, "zero", "true").await.exit.code, 0);
    assert_eq!(place.run(&spawner, "max", "exit 255").await.exit.code, 255);
    let again = place.run(&spawner, "one", "exit 1").await;
    assert_eq!(again.exit.code, 1, "a forgotten id can be used again");
    place.finish(spawner).await;
}

#[tokio::test]
async fn signals_end_processes_and_are_reported() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.container(
        "a",
        "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done",
    );
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    assert!(spawner.signal("a", 15).await.unwrap());
    assert_eq!(spawner.wait("a").await.unwrap().code, 7);
    assert!(!spawner.signal("a", 15).await.unwrap(), "it has ended");

    let (spec, fds) = place.container("b", "sleep 1000 & sleep 1000");
    spawner.spawn(&spec, fds).await.unwrap();
    spawner.kill("b").await.unwrap();
    assert_eq!(
        spawner.wait("b").await.unwrap(),
        Exit {
            code: 137,
            signal: Some(9),
            oom_killed: false
        }
    );
    assert_eq!(
        spawner.wait("b").await.unwrap().code,
        137,
        "as often as one likes"
    );
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
    std::fs::write(root.join("garbage"), "\u{1}\u{2}").unwrap();
    std::fs::set_permissions(root.join("garbage"), PermissionsExt::from_mode(0o755)).unwrap();
    let cases = [
        (
            "/server",
            "exec: \"/server\": no such file or directory",
            127,
        ),
        (
            "server",
            "exec: \"server\": executable file not found in $PATH",
            127,
        ),
        ("/plain", "exec: \"/plain\": permission denied", 126),
        ("/etc", "exec: \"/etc\": permission denied", 126),
        (
            "/script",
            "exec: \"/script\": no such file or directory (the file exists; its interpreter or loader does not)",
            127,
        ),
        ("/garbage", "exec: \"/garbage\": exec format error", 126),
    ];
    for (program, message, code) in cases {
        let (mut spec, fds) = place.container("x", "");
        spec.argv = vec![program.into()];
        assert_eq!(
            refused(support::run(&spawner, &spec, fds).await),
            (message.to_owned(), code)
        );
    }
    let (mut spec, fds) = place.container("x", "true");
    spec.user = "nobody-here".into();
    let (message, code) = refused(support::run(&spawner, &spec, fds).await);
    assert!(message.contains("nobody-here"), "{message}");
    assert_eq!(code, 125);
    let (mut spec, fds) = place.container("Bad/Id", "true");
    spec.id = "../x".into();
    assert!(
        refused(support::run(&spawner, &spec, fds).await)
            .0
            .contains("../x")
    );
    let (mut spec, fds) = place.container("x", "true");
    spec.argv = vec![];
    assert_eq!(refused(support::run(&spawner, &spec, fds).await).1, 125);
    place.finish(spawner).await;
}

#[tokio::test]
async fn users_groups_and_homes() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "echo $(id -u) $(id -g) $(id -G) $HOME";
    for (user, expected) in [
        ("", "0 0 0 /root"),
        ("app", "1000 1001 1001 50 /home/app"),
        ("1000:7", "1000 7 7 /home/app"),
        ("77", "77 0 0 /"),
        ("app:web", "1000 50 50 /home/app"),
    ] {
        let ran = place
            .run_with(&spawner, "u", script, |spec| spec.user = user.into())
            .await;
        assert_eq!(ran.out.trim(), expected, "user {user:?}: {}", ran.err);
    }
    let ran = place
        .run_with(
            &spawner,
            "cwd",
            "pwd; stat -c '%u:%g %a' .; echo $HOME; echo > /dev/stdout",
            |spec| {
                spec.user = "app".into();
                spec.cwd = "/made/for/app".into();
                spec.env.push("HOME=/elsewhere".into());
            },
        )
        .await;
    assert_eq!(
        ran.out, "/made/for/app\n1000:1001 755\n/elsewhere\n\n",
        "{}",
        ran.err
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn standard_input_is_a_pipe_if_asked_for() {
    let place = Place::new();
    let spawner = place.start().await;
    let (mut spec, fds) = place.container("in", "cat");
    spec.stdin_pipe = true;
    let mut process = spawner.spawn(&spec, fds).await.unwrap();
    let out = read_all(process.stdout);
    let mut stdin = std::fs::File::from(process.stdin.take().unwrap());
    stdin.write_all(b"through the pipe").unwrap();
    drop(stdin);
    assert_eq!(spawner.wait("in").await.unwrap().code, 0);
    assert_eq!(out.await.unwrap(), "through the pipe");
    assert_eq!(
        place.run(&spawner, "none", "cat; echo end").await.out,
        "end\n"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn big_environments_and_many_layers() {
    let place = Place::new();
    let spawner = place.start().await;
    let mut layers = Vec::new();
    for n in 0..100 {
        let layer = place.path(&format!(
            "a-rather-long-directory-name-for-one-layer-of-an-image-{n}"
        ));
        std::fs::write(layer.join(format!("file{n}")), "").unwrap();
        layers.push(layer);
    }
    layers.push(place.busybox());
    let ran = place
        .run_with(
            &spawner,
            "big",
            "ls / | grep -c file; echo ${#BIG1} ${#BIG2}",
            |spec| {
                let Root::Overlay { lower, .. } = &mut spec.root else {
                    unreachable!()
                };
                *lower = layers;
                spec.env.push(format!("BIG1={}", "x".repeat(120_000)));
                spec.env.push(format!("BIG2={}", "y".repeat(120_000)));
            },
        )
        .await;
    assert_eq!(ran.out, "100\n120000 120000\n", "{}", ran.err);
    place.finish(spawner).await;
}

#[tokio::test]
async fn many_at_once() {
    let place = Place::new();
    let spawner = place.start().await;
    place.busybox();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let spawner = spawner.clone();
        let (spec, fds) = place.container(&format!("c{n}"), &format!("echo {n}; exit {n}"));
        tasks.spawn(async move { (n, support::run(&spawner, &spec, fds).await.unwrap()) });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, ran) = done.unwrap();
        assert_eq!((ran.out.trim(), ran.exit.code), (n.to_string().as_str(), n));
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn an_image_without_any_layer() {
    let place = Place::new();
    let spawner = place.start().await;
    let busybox = std::path::Path::new("/bin/busybox");
    let (mut spec, fds) = place.container("scratch", "");
    let upper = place.path("own-upper");
    std::fs::copy(busybox, upper.join("busybox")).unwrap();
    spec.argv = vec![
        "/busybox".into(),
        "sh".into(),
        "-c".into(),
        "echo *; echo > /new".into(),
    ];
    spec.root = Root::Overlay {
        lower: vec![],
        upper: upper.clone(),
        work: place.path("own-work"),
    };
    let ran = support::run(&spawner, &spec, fds).await.unwrap();
    assert_eq!(ran.out, "busybox dev proc sys\n", "{}", ran.err);
    assert!(upper.join("new").exists());
    place.finish(spawner).await;
}
