//! One script's sockets, and everything that they must not reach of another's: whatever name is asked for, however it is written.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Request;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use wharf_docker_api::script;
use wharf_engine::lifecycle::State;
use wharf_engine::{Limits, Owner};
use wharf_node::{ApplicationInfo, Applications};
use wharf_snapshot::Snapshots;
use wharf_testkit::engine::{Daemon, World};

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");

/// Each script has the application behind its own class, `<script>-Box`, as the daemon's store has it.
struct OwnApplications;

impl Applications for OwnApplications {
    fn find<'a>(
        &'a self,
        script: &'a str,
        unique_key: &'a str,
        _object_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async move {
            if unique_key != format!("{script}-Box") {
                return Err("no Durable Object class behind this container".to_owned());
            }
            Ok(ApplicationInfo {
                id: script.into(),
                name: script.into(),
                image: Some("busybox".into()),
                named_images: Vec::new(),
                limits: Limits::default(),
                largest: Limits::default(),
                max_instances: 5,
                min_instances: 0,
                isolation: None,
                no_new_privileges: false,
                variables: Vec::new(),
            })
        })
    }
}

/// The two sockets of one script's process.
struct Script {
    docker: std::path::PathBuf,
    prelude: std::path::PathBuf,
}

impl Script {
    fn open(world: &World, daemon: &Daemon, snapshots: &Snapshots, name: &str) -> Script {
        let dir = world.place.dir.path();
        let script = Script {
            docker: dir.join(format!("{name}-docker")),
            prelude: dir.join(format!("{name}-prelude")),
        };
        let docker = script::router(
            name.into(),
            daemon.engine.clone(),
            daemon.networks.clone(),
            snapshots.clone(),
            Arc::new(OwnApplications),
        );
        let prelude =
            script::prelude::router(name.into(), daemon.engine.clone(), snapshots.clone());
        for (path, router) in [(&script.docker, docker), (&script.prelude, prelude)] {
            let listener = UnixListener::bind(path).unwrap();
            let never = std::future::pending::<()>();
            tokio::spawn(wharf_docker_api::serve_unix(listener, router, never));
        }
        script
    }

    async fn docker(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        call(&self.docker, method, path, body).await
    }

    async fn start(&self, name: &str) {
        let (status, made) = self
            .docker(
                "POST",
                &format!("/containers/create?name={name}-proxy"),
                Some(json!({"Image": "wharf:sidecar"})),
            )
            .await;
        assert_eq!(status, 201, "{made}");
        self.docker("POST", &format!("/containers/{name}-proxy/start"), None)
            .await;
        let (status, made) = self.create(name, &format!("{name}-proxy")).await;
        assert_eq!(status, 201, "{made}");
        let (status, _) = self
            .docker("POST", &format!("/containers/{name}/start"), None)
            .await;
        assert_eq!(status, 204);
    }

    async fn create(&self, name: &str, network: &str) -> (u16, Value) {
        let body = json!({"Image": "wharf:application", "Cmd": ["/bin/sh", "-c", "while :; do sleep 1; done"],
            "Env": ["__WHARF_START={\"token\":\"t\",\"labels\":{\"whose\":\"mine\"}}"],
            "HostConfig": {"NetworkMode": format!("container:{network}")}});
        let path = format!("/containers/create?name={name}");
        self.docker("POST", &path, Some(body)).await
    }
}

async fn call(
    socket: &std::path::Path,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "localhost")
        .body(body.map(|b| b.to_string()).unwrap_or_default())
        .unwrap();
    let answer = wharf_testkit::ask(stream, request).await.unwrap();
    let body = serde_json::from_str(answer.body()).unwrap_or(Value::Null);
    (answer.status().as_u16(), body)
}

#[tokio::test]
async fn no_name_reaches_another_scripts_container() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let snapshots = world.snapshots();
    let victim = Script::open(&world, &daemon, &snapshots, "victim");
    let hostile = Script::open(&world, &daemon, &snapshots, "hostile");
    let object = "ab".repeat(32);
    let theirs = format!("workerd-victim-Box-{object}");
    let own = format!("workerd-hostile-Box-{object}");
    victim.start(&theirs).await;
    hostile.start(&own).await;
    let owner = Owner::Script("victim".into());
    let before = daemon.engine.inspect(&owner, &theirs).await.unwrap();
    let id = &before.id;

    let mut names = vec![
        theirs.clone(),
        format!("%2F{theirs}"),
        format!("..%2F{theirs}"),
        format!("%2e%2e%2fcontainers%2f{theirs}"),
        format!("{own}%2F..%2F{theirs}"),
        format!("{own}%00{theirs}"),
        theirs.replace('w', "%77").replace('-', "%2D"),
        id.clone(),
        id[..12].to_owned(),
        format!("{theirs}-proxy"),
    ];
    // A prefix that fits the victim's container alone.
    names.extend((1..=4).map(|n| id[..n].to_owned()));
    for name in names {
        for (method, path) in [
            ("GET", format!("/containers/{name}/json")),
            ("POST", format!("/containers/{name}/start")),
            ("POST", format!("/containers/{name}/stop")),
            ("POST", format!("/containers/{name}/kill?signal=SIGKILL")),
            (
                "POST",
                format!("/containers/{name}/wait?condition=next-exit"),
            ),
            ("DELETE", format!("/containers/{name}?force=true")),
        ] {
            // An own container's id may begin the same.
            if daemon
                .engine
                .inspect(&Owner::Script("hostile".into()), &name)
                .await
                .is_ok()
            {
                continue;
            }
            let (status, answer) = hostile.docker(method, &path, None).await;
            assert!(
                matches!(status, 400 | 404),
                "{method} {path}: {status} {answer}"
            );
            // What was asked for may come back, no more.
            assert!(
                name == *id || !answer.to_string().contains(id.as_str()),
                "{answer}"
            );
        }
        let labels = json!({"labels": {"whose": "hostile"}});
        for (method, path, body) in [
            ("GET", format!("/containers/{name}/labels"), None),
            ("PUT", format!("/containers/{name}/labels"), Some(labels)),
            (
                "PUT",
                format!("/containers/{name}/inactivity"),
                Some(json!({"ms": 1})),
            ),
            ("GET", format!("/containers/{name}/failure/t"), None),
        ] {
            if daemon
                .engine
                .inspect(&Owner::Script("hostile".into()), &name)
                .await
                .is_ok()
            {
                continue;
            }
            let (status, answer) = call(&hostile.prelude, method, &path, body).await;
            assert!(
                matches!(status, 400 | 404),
                "{method} {path}: {status} {answer}"
            );
        }
    }
    // Nor can one be made in its name, or in its network.
    let (status, answer) = hostile.create(&theirs, &format!("{own}-proxy")).await;
    assert_eq!(status, 503, "{answer}");
    let other = format!("workerd-hostile-Box-{}", "cd".repeat(32));
    let (status, answer) = hostile.create(&other, &format!("{theirs}-proxy")).await;
    assert_eq!(status, 404, "{answer}");
    for mode in [
        "host",
        "bridge",
        &format!("container:{theirs}"),
        &format!("container:{id}"),
        "container:",
    ] {
        let body = json!({"Image": "wharf:application", "HostConfig": {"NetworkMode": mode}});
        let path = format!("/containers/create?name={other}");
        let (status, answer) = hostile.docker("POST", &path, Some(body)).await;
        assert!(matches!(status, 400 | 404), "{mode}: {status} {answer}");
    }
    // There is no list, and nothing of the operator's.
    for (path, expected) in [
        ("/containers/json?all=1", 501),
        ("/info", 501),
        ("/version", 501),
        ("/images/json", 501),
        ("/wharf/status", 404),
        ("/v1.43/containers/json", 501),
    ] {
        let (status, answer) = hostile.docker("GET", path, None).await;
        assert_eq!(status, expected, "{path}: {answer}");
    }

    let after = daemon.engine.inspect(&owner, &theirs).await.unwrap();
    assert_eq!((after.state, after.pid), (State::Running, before.pid));
    assert_eq!(after.object_labels["whose"], "mine");
    world.end(daemon).await;
}
