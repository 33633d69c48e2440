//! Processes beside the main one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Read;

use wharf_engine::{EngineError, Exec, ExecError, ExecStreams, Owner, Streams};
use wharf_testkit::engine::{Daemon, World, script_owner, shell};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-engine-spawner-test");
const IDLE: &str = "echo ready; sleep 1000";

fn sh(script: &str) -> Exec {
    Exec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        user: None,
        working_dir: None,
        streams: ExecStreams::Pipes { stdin: false },
    }
}

/// Standard output and exit code.
async fn run(daemon: &Daemon, generation: u64, exec: Exec) -> Result<(String, i32), ExecError> {
    let owner = script_owner();
    let (process, streams) = daemon.engine.exec(&owner, "a", generation, exec).await?;
    let Streams::Pipes { stdout, .. } = streams else {
        panic!("{streams:?}")
    };
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::from(stdout)
            .read_to_string(&mut text)
            .unwrap();
        text
    });
    let exit = process.wait().await.unwrap();
    Ok((reading.await.unwrap(), exit.code))
}

#[tokio::test]
async fn it_has_what_the_container_has_unless_others_are_given() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let owner = script_owner();
    let mut request = shell(&owner, "a", IDLE);
    request.env = vec!["A=container".into(), "B=container".into()];
    request.user = Some("app".into());
    request.working_dir = Some("/tmp".into());
    daemon.engine.create(request).await.unwrap();
    daemon.engine.start_instance(&owner, "a").await.unwrap();

    let script = "echo $A $B $C ${TERM-none} $(id -u) $HOME $(pwd); hostname; exit 5";
    let (out, code) = run(&daemon, 1, sh(script)).await.unwrap();
    let id = daemon.engine.inspect(&owner, "a").await.unwrap().id;
    let host = &id[..12];
    assert_eq!(
        (out, code),
        (
            format!("container container none 1000 /home/app /tmp\n{host}\n"),
            5
        )
    );
    let mut other = sh(script);
    other.env = vec!["B=exec".into(), "C=exec".into(), "A".into()];
    other.user = Some("root".into());
    other.working_dir = Some("/etc".into());
    let (out, _) = run(&daemon, 1, other).await.unwrap();
    assert_eq!(out, format!("exec exec none 0 /root /etc\n{host}\n"));

    let mut bad = sh("true");
    bad.working_dir = Some("tmp".into());
    let bad = run(&daemon, 1, bad).await;
    assert!(matches!(
        bad,
        Err(ExecError::Engine(EngineError::Invalid(_)))
    ));
    for (program, code) in [("/nope", 127), ("/etc/passwd", 126)] {
        let mut missing = sh("");
        missing.argv = vec![program.into()];
        let missing = run(&daemon, 1, missing).await;
        assert!(
            matches!(&missing, Err(ExecError::NotStarted { message, exit_code }) if message.contains(program) && *exit_code == code),
            "{missing:?}"
        );
    }
    world.end(daemon).await;
}

#[tokio::test]
async fn nothing_gets_into_another_start() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let (owner, engine) = (script_owner(), &daemon.engine);
    let conflict = |result: Result<(String, i32), ExecError>| match result {
        Err(ExecError::Engine(EngineError::Conflict(text))) => text,
        other => panic!("{other:?}"),
    };
    daemon.create(&owner, "a", IDLE).await;
    assert!(conflict(run(&daemon, 0, sh("true")).await).contains("not running"));
    engine.start_instance(&owner, "a").await.unwrap();
    let (process, _streams) = engine.exec(&owner, "a", 1, sh("sleep 1000")).await.unwrap();
    engine.stop(&owner, "a", Some(0)).await.unwrap();
    assert_eq!(process.wait().await.unwrap().code, 137);
    assert!(conflict(run(&daemon, 1, sh("true")).await).contains("not running"));
    engine.start_instance(&owner, "a").await.unwrap();
    assert!(conflict(run(&daemon, 1, sh("true")).await).contains("anew"));
    assert_eq!(run(&daemon, 2, sh("true")).await.unwrap().1, 0);
    let other = engine
        .exec(&Owner::Script("other".to_owned()), "a", 2, sh("true"))
        .await;
    assert!(matches!(
        other,
        Err(ExecError::Engine(EngineError::NotFound(_)))
    ));
    world.end(daemon).await;
}

#[test]
fn an_adopted_container_takes_more() {
    let world = World::new(SPAWNER);
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    // Its end is that of the first daemon.
    runtime().block_on(async {
        let daemon = world.daemon(60_000).await;
        daemon.run(&script_owner(), "a", IDLE).await;
    });
    runtime().block_on(async {
        let daemon = world.daemon(60_000).await;
        let (out, code) = run(&daemon, 1, sh("echo here")).await.unwrap();
        assert_eq!((out.as_str(), code), ("here\n", 0));
        world.end(daemon).await;
    });
}
