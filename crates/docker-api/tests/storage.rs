//! workerd's conversation about snapshots (contract: workerd, 1.3), word for word, and what hostile or plain Docker clients get.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;
use wharf_docker_api::script::router;
use wharf_engine::{Isolation, Limits, Owner};
use wharf_image::tar::{Entry, Kind, TarReader, TarWriter};
use wharf_node::{ApplicationInfo, Applications};
use wharf_snapshot::Snapshots;
use wharf_testkit::engine::{Daemon, World};
use wharf_testkit::until;

const SPAWNER: &str = env!("CARGO_BIN_EXE_wharf-docker-api-spawner-test");

struct OneApplication;

impl Applications for OneApplication {
    fn find<'a>(
        &'a self,
        script: &'a str,
        _unique_key: &'a str,
        _object_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        Box::pin(async move {
            Ok(ApplicationInfo {
                id: "app".into(),
                name: script.into(),
                image: Some("busybox:latest".into()),
                named_images: Vec::new(),
                limits: Limits::default(),
                largest: Limits::default(),
                max_instances: 9,
                min_instances: 0,
                isolation: None,
                no_new_privileges: false,
                variables: Vec::new(),
            })
        })
    }
}

/// One script's side.
struct Client {
    router: axum::Router,
}

impl Client {
    fn new(script: &str, daemon: &Daemon, snapshots: &Snapshots) -> Client {
        let router = router(
            script.into(),
            daemon.engine.clone(),
            daemon.networks.clone(),
            snapshots.clone(),
            Arc::new(OneApplication),
        );
        Client { router }
    }

    async fn bytes(&self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(axum::body::Body::new(Full::from(body)));
        let answer = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = answer.status();
        (
            status,
            answer.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let (status, bytes) = self.bytes(method, path, body).await;
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        (status.as_u16(), value)
    }

    async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, value) = self.call(method, path, body).await;
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {value}"
        );
        value
    }

    async fn create(&self, name: &str, image: &str, script: &str, mounts: Value) -> (u16, Value) {
        let proxy = format!("{name}-proxy");
        let _ = self
            .call(
                "POST",
                &format!("/containers/create?name={proxy}"),
                json!({}),
            )
            .await;
        let body = json!({
            "Image": image, "Cmd": ["/bin/sh", "-c", script],
            "HostConfig": {"NetworkMode": format!("container:{proxy}"), "Mounts": mounts},
        });
        self.call("POST", &format!("/containers/create?name={name}"), body)
            .await
    }

    async fn run(&self, name: &str, image: &str, script: &str, mounts: Value) {
        let (status, made) = self.create(name, image, script, mounts).await;
        assert_eq!(status, 201, "{made}");
        self.ok("POST", &format!("/containers/{name}/start"), Value::Null)
            .await;
    }

    /// The first half of snapshotDirectory(): an archive.
    async fn get_archive(&self, name: &str, dir: &str) -> (StatusCode, Vec<u8>) {
        let path = format!("/containers/{name}/archive?path={dir}/.");
        let (status, bytes) = self.bytes("GET", &path, Vec::new()).await;
        (status, bytes.to_vec())
    }

    /// The second: it goes into a volume. Returns the status of the PUT.
    async fn put_archive(&self, id: &str, archive: Vec<u8>) -> StatusCode {
        let volume = format!("workerd-snap-{id}");
        let labels = json!({"dev.workerd.snapshot-created-at": "1"});
        self.ok(
            "POST",
            "/volumes/create",
            json!({"Name": volume, "Labels": labels}),
        )
        .await;
        let binds = json!([format!("{volume}:/mnt")]);
        let body = json!({"Image": "wharf:sidecar", "HostConfig": {"Binds": binds}});
        let helper = self.ok("POST", "/containers/create", body).await;
        let helper = helper["Id"].as_str().unwrap();
        let path = format!("/containers/{helper}/archive?path=/mnt");
        let (status, _) = self.bytes("PUT", &path, archive).await;
        self.ok(
            "DELETE",
            &format!("/containers/{helper}?force=true"),
            Value::Null,
        )
        .await;
        status
    }

    async fn snapshot(&self, name: &str, dir: &str) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        let (status, archive) = self.get_archive(name, dir).await;
        assert_eq!(status, 200);
        assert_eq!(self.put_archive(&id, archive).await, 200);
        id
    }

    /// What a restore does before the create; returns the mount, or the exit code of `cp`.
    async fn clone_of(&self, id: &str, target: &str) -> Result<Value, u64> {
        let clone = format!("workerd-snap-clone-{}", uuid::Uuid::new_v4());
        self.ok("POST", "/volumes/create", json!({"Name": clone}))
            .await;
        let body = json!({
            "Image": "wharf:sidecar", "Entrypoint": ["/bin/cp"], "Cmd": ["-a", "/src/.", "/dst/"],
            "HostConfig": {"Binds": [format!("workerd-snap-{id}:/src:ro"), format!("{clone}:/dst")]},
        });
        let helper = self.ok("POST", "/containers/create", body).await;
        let at = format!("/containers/{}", helper["Id"].as_str().unwrap());
        self.ok("POST", &format!("{at}/start"), Value::Null).await;
        let ended = self
            .ok(
                "POST",
                &format!("{at}/wait?condition=not-running"),
                Value::Null,
            )
            .await;
        self.ok("DELETE", &at, Value::Null).await;
        match ended["StatusCode"].as_u64().unwrap() {
            0 => Ok(
                json!({"Type": "volume", "Source": clone, "Target": target, "VolumeOptions": {"NoCopy": true}}),
            ),
            code => Err(code),
        }
    }
}

fn container(n: usize) -> String {
    format!("workerd-app-Box-{n:064x}")
}

fn script(name: &str) -> Owner {
    Owner::Script(name.to_owned())
}

async fn output(daemon: &Daemon, name: &str) -> String {
    daemon
        .engine
        .wait(&script("hello"), name, false)
        .await
        .unwrap();
    daemon.output(&script("hello"), name, false).await
}

const IMAGE: &str = "wharf:application";
const WAIT: &str = "echo ready; while :; do sleep 0.02; done";

#[tokio::test]
async fn a_directory_comes_back_without_passing_through_the_client() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let snapshots = world.snapshots();
    let client = Client::new("hello", &daemon, &snapshots);
    let (a, b) = (container(1), container(2));
    let write = "mkdir -p /app/data/in; echo kept > /app/data/in/file; dd if=/dev/urandom of=/app/data/big bs=1M count=8 2>/dev/null; chown -R 1000:1001 /app/data";
    client
        .run(&a, IMAGE, &format!("{write}; {WAIT}"), Value::Null)
        .await;
    daemon.says(&script("hello"), &a, "ready").await;

    let (status, archive) = client.get_archive(&a, "/app/data").await;
    assert_eq!(status, 200);
    // A token, not eight megabytes.
    assert!(archive.len() <= 4096);
    let id = uuid::Uuid::new_v4().to_string();
    assert_eq!(client.put_archive(&id, archive.clone()).await, 200);
    // Good once.
    let other = uuid::Uuid::new_v4().to_string();
    assert_eq!(client.put_archive(&other, archive).await, 410);
    let listed = client
        .ok(
            "GET",
            "/volumes?filters=%7B%22name%22%3A%5B%22workerd-snap-%22%5D%7D",
            Value::Null,
        )
        .await;
    let volumes = listed["Volumes"].as_array().unwrap();
    let kept = volumes
        .iter()
        .find(|v| v["Name"] == format!("workerd-snap-{id}"));
    assert_eq!(
        kept.unwrap()["Labels"]["dev.workerd.snapshot-created-at"],
        "1"
    );

    // By labels, too: `wrangler dev` removes at its end what has its session's.
    for (label, found) in [
        ("dev.workerd.snapshot-created-at=1", true),
        ("dev.workerd.snapshot-created-at=2", false),
        ("dev.workerd.session=x", false),
    ] {
        let path = format!("/volumes?filters=%7B%22label%22%3A%5B%22{label}%22%5D%7D");
        let listed = client.ok("GET", &path, Value::Null).await;
        let volumes = listed["Volumes"].as_array().unwrap();
        let name = format!("workerd-snap-{id}");
        let is_there = volumes.iter().any(|v| v["Name"] == name.as_str());
        assert_eq!(is_there, found, "{label}: {volumes:?}");
    }

    // Another object, another place, and the snapshot stays as it is.
    let mount = client.clone_of(&id, "/restored/here").await.unwrap();
    let check = "cat /restored/here/in/file; stat -c %u:%g /restored/here /restored/here/in/file; wc -c < /restored/here/big; echo changed > /restored/here/in/file";
    client.run(&b, IMAGE, check, json!([mount])).await;
    assert_eq!(
        output(&daemon, &b).await,
        "kept\n1000:1001\n1000:1001\n8388608\n"
    );
    let files = snapshots
        .get("script hello", &format!("workerd-snap-{id}"))
        .unwrap()
        .files;
    assert_eq!(
        std::fs::read_to_string(files.join("in/file")).unwrap(),
        "kept\n"
    );

    // In use, then not, then gone.
    let volume = format!("/volumes/workerd-snap-{id}");
    assert_eq!(client.call("DELETE", &volume, Value::Null).await.0, 409);
    client
        .ok(
            "DELETE",
            &format!("/containers/{b}?force=true"),
            Value::Null,
        )
        .await;
    client.ok("DELETE", &volume, Value::Null).await;
    assert_eq!(client.call("GET", &volume, Value::Null).await.0, 404);
    assert!(!files.exists());
    world.end(daemon).await;
    assert_eq!(world.directories(), 0);
}

#[tokio::test]
async fn a_snapshot_of_a_restored_directory_has_both_and_mounts_overlap() {
    restored_directory(Isolation::Namespace).await;
}

#[tokio::test]
async fn a_snapshot_of_a_restored_directory_has_both_and_mounts_overlap_on_gvisor() {
    wharf_testkit::runsc();
    restored_directory(Isolation::Gvisor).await;
}

#[tokio::test]
async fn a_snapshot_of_a_restored_directory_has_both_and_mounts_overlap_in_a_machine() {
    restored_directory(Isolation::Microvm).await;
}

async fn restored_directory(class: Isolation) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon_of(60_000, class).await;
    let client = Client::new("hello", &daemon, &world.snapshots());
    let names: Vec<String> = (1..5).map(container).collect();
    let write = "mkdir -p /p/child /c; echo parent > /p/file; echo masked > /p/child/masked; echo child > /c/file";
    client
        .run(&names[0], IMAGE, &format!("{write}; {WAIT}"), Value::Null)
        .await;
    daemon.says(&script("hello"), &names[0], "ready").await;
    let parent = client.snapshot(&names[0], "/p").await;
    let child = client.snapshot(&names[0], "/c").await;

    // The child's mount is named first, and still lies in the parent's.
    let mounts = json!([
        client.clone_of(&child, "/tmp/r/child").await.unwrap(),
        client.clone_of(&parent, "/tmp/r").await.unwrap(),
    ]);
    let change = "echo new > /tmp/r/new; rm /tmp/r/file; echo more > /tmp/r/child/more";
    client
        .run(&names[1], IMAGE, &format!("{change}; {WAIT}"), mounts)
        .await;
    daemon.says(&script("hello"), &names[1], "ready").await;
    let both = client.snapshot(&names[1], "/tmp/r").await;
    let mount = client.clone_of(&both, "/r").await.unwrap();
    client
        .run(
            &names[2],
            IMAGE,
            "cd /r; find . -type f | sort",
            json!([mount.clone()]),
        )
        .await;
    assert_eq!(
        output(&daemon, &names[2]).await,
        "./child/file\n./child/more\n./new\n"
    );

    let twice = json!([mount, client.clone_of(&both, "/r/").await.unwrap()]);
    let (status, refusal) = client.create(&names[3], IMAGE, "true", twice).await;
    assert_eq!(
        (status, refusal["message"].as_str()),
        (400, Some("Duplicate mount point: /r"))
    );
    // Without a snapshot a volume is an empty directory.
    let clone = format!("workerd-snap-clone-{}", uuid::Uuid::new_v4());
    client
        .ok("POST", "/volumes/create", json!({"Name": clone}))
        .await;
    let empty = json!([{"Type": "volume", "Source": clone, "Target": "/empty"}]);
    client
        .run(
            &names[3],
            IMAGE,
            "ls -a /empty; touch /empty/x; ls /empty",
            empty,
        )
        .await;
    assert_eq!(
        output(&daemon, &names[3]).await,
        ".
..
x
"
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn a_container_snapshot_is_a_layer_without_mounts_and_of_one_script() {
    container_snapshot(Isolation::Namespace).await;
}

#[tokio::test]
async fn a_container_snapshot_is_a_layer_without_mounts_and_of_one_script_on_gvisor() {
    wharf_testkit::runsc();
    container_snapshot(Isolation::Gvisor).await;
}

#[tokio::test]
async fn a_container_snapshot_is_a_layer_without_mounts_and_of_one_script_in_a_machine() {
    container_snapshot(Isolation::Microvm).await;
}

async fn container_snapshot(class: Isolation) {
    let world = World::new(SPAWNER);
    let daemon = world.daemon_of(60_000, class).await;
    let snapshots = world.snapshots();
    let client = Client::new("hello", &daemon, &snapshots);
    let names: Vec<String> = (1..6).map(container).collect();
    let write = "mkdir -p /src /app; echo mounted > /src/file; rm /etc/group; echo own > /app/own";
    client
        .run(&names[0], IMAGE, &format!("{write}; {WAIT}"), Value::Null)
        .await;
    daemon.says(&script("hello"), &names[0], "ready").await;
    let dir = client.snapshot(&names[0], "/src").await;
    let commit = |container: &str| {
        let name = format!("workerd-container-snap-{}", uuid::Uuid::new_v4());
        let path = format!("/commit?container={container}&pause=true&repo={name}");
        (name, path)
    };
    let (first, path) = commit(&names[0]);
    client.ok("POST", &path, Value::Null).await;
    let image = client
        .ok("GET", &format!("/images/{first}/json"), Value::Null)
        .await;
    let base = daemon
        .engine
        .inspect(&script("hello"), &names[0])
        .await
        .unwrap()
        .image_id;
    assert_eq!(image["Parent"], base.as_str());
    assert!(
        image["Size"].as_u64().unwrap() > 0 && image["Id"].as_str().unwrap().starts_with("sha256:")
    );

    // One on the other, with a mount that is no part of the second.
    let mount = client.clone_of(&dir, "/mounted/here").await.unwrap();
    let check = "cat /app/own; ls /etc/group /mounted/here; echo second > /app/second; ";
    client
        .run(
            &names[1],
            &first,
            &format!("{check} {WAIT}"),
            json!([mount]),
        )
        .await;
    daemon.says(&script("hello"), &names[1], "ready").await;
    let (second, path) = commit(&names[1]);
    client.ok("POST", &path, Value::Null).await;
    client
        .ok(
            "DELETE",
            &format!("/containers/{}?force=true", names[0]),
            Value::Null,
        )
        .await;
    client.run(&names[2], &second, "cat /app/own /app/second; ls /mounted /etc/group /proc/1/comm; ls -a /etc | grep -c host", Value::Null).await;
    assert_eq!(
        output(&daemon, &names[2]).await,
        "own\nsecond\n/proc/1/comm\n2\n"
    );
    let files = snapshots.get("script hello", &second).unwrap().files;
    for made in [
        "proc",
        "sys",
        "dev",
        "mounted",
        "etc/hosts",
        "etc/resolv.conf",
    ] {
        assert!(!files.join(made).exists(), "{made}");
    }

    // The first is in use by the second container, not by the second snapshot.
    let remove = format!("/images/{first}?noprune=true");
    assert_eq!(client.call("DELETE", &remove, Value::Null).await.0, 409);
    client
        .ok(
            "DELETE",
            &format!("/containers/{}?force=true", names[1]),
            Value::Null,
        )
        .await;
    client.ok("DELETE", &remove, Value::Null).await;
    assert_eq!(
        client
            .call("GET", &format!("/images/{first}/json"), Value::Null)
            .await
            .0,
        404
    );
    client
        .run(&names[3], &second, "cat /app/own", Value::Null)
        .await;
    assert_eq!(output(&daemon, &names[3]).await, "own\n");

    let stranger = Client::new("other", &daemon, &snapshots);
    assert_eq!(
        stranger
            .call("GET", &format!("/images/{second}/json"), Value::Null)
            .await
            .0,
        404
    );
    assert_eq!(
        stranger
            .call("DELETE", &format!("/images/{second}"), Value::Null)
            .await
            .0,
        404
    );
    let (status, refusal) = stranger
        .create(&names[4], &second, "true", Value::Null)
        .await;
    assert_eq!(status, 404, "{refusal}");
    world.end(daemon).await;
}

#[tokio::test]
async fn one_script_has_nothing_of_anothers() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let snapshots = world.snapshots();
    let (client, stranger) = (
        Client::new("hello", &daemon, &snapshots),
        Client::new("other", &daemon, &snapshots),
    );
    let (a, b) = (container(1), container(2));
    client
        .run(
            &a,
            IMAGE,
            &format!("mkdir /d; echo secret > /d/file; {WAIT}"),
            Value::Null,
        )
        .await;
    daemon.says(&script("hello"), &a, "ready").await;
    assert_eq!(stranger.get_archive(&a, "/d").await.0, 404);
    // Not even with the archive in hand.
    let (_, archive) = client.get_archive(&a, "/d").await;
    let id = uuid::Uuid::new_v4().to_string();
    assert_eq!(stranger.put_archive(&id, archive.clone()).await, 410);
    assert_eq!(client.put_archive(&id, archive).await, 200);
    let volume = format!("/volumes/workerd-snap-{id}");
    client.ok("GET", &volume, Value::Null).await;
    // The stranger has made a volume of that name for itself: it is another one, and empty.
    let listed = stranger.ok("GET", "/volumes", Value::Null).await;
    assert_eq!(listed["Volumes"].as_array().unwrap().len(), 1);
    assert_eq!(stranger.clone_of(&id, "/x").await, Err(1));
    stranger.ok("DELETE", &volume, Value::Null).await;
    assert_eq!(stranger.call("GET", &volume, Value::Null).await.0, 404);
    client.ok("GET", &volume, Value::Null).await;

    // A clone is its owner's too.
    let mount = client.clone_of(&id, "/x").await.unwrap();
    let (status, refusal) = stranger.create(&b, IMAGE, "true", json!([mount])).await;
    assert_eq!(status, 400, "{refusal}");
    world.end(daemon).await;
}

#[tokio::test]
async fn what_is_not_there_is_said_and_what_is_too_big_is_refused() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let client = Client::new("hello", &daemon, &world.snapshots());
    let a = container(1);
    let write = "mkdir /big; dd if=/dev/zero of=/big/file bs=1M count=33 2>/dev/null; dd if=/dev/zero of=/big/hole bs=1 count=1 seek=4G 2>/dev/null";
    client
        .run(&a, IMAGE, &format!("{write}; {WAIT}"), Value::Null)
        .await;
    daemon.says(&script("hello"), &a, "ready").await;
    assert_eq!(client.get_archive(&a, "/does/not/exist").await.0, 404);
    assert_eq!(client.get_archive(&a, "/etc/passwd").await.0, 400);
    let (status, text) = client.get_archive(&a, "/big").await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(status, 507, "{text}");
    assert!(text.contains("snapshots.max_mib (32)"), "{text}");
    assert_eq!(
        std::fs::read_dir(world.place.path("snapshots/tmp"))
            .unwrap()
            .count(),
        0
    );
    let commit = format!(
        "/commit?container={a}&repo=workerd-container-snap-{}",
        uuid::Uuid::new_v4()
    );
    assert_eq!(client.call("POST", &commit, Value::Null).await.0, 507);
    // It runs on.
    let pid = daemon
        .engine
        .inspect(&script("hello"), &a)
        .await
        .unwrap()
        .pid
        .unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let before = stat();
    until("it runs on", || stat() != before).await;

    for (name, body) in [("", json!({})), ("x", json!({"Name": "data"}))] {
        let (status, _) = client.call("POST", "/volumes/create", body).await;
        assert_eq!(status, 501, "{name}");
    }
    let image = format!("workerd-container-snap-{}", uuid::Uuid::new_v4());
    let (status, refusal) = client
        .create(&container(2), &image, "true", Value::Null)
        .await;
    assert_eq!(status, 404, "{refusal}");
    let anonymous = json!({"Image": "wharf:sidecar", "HostConfig": {"Binds": ["/etc:/mnt"]}});
    assert_eq!(
        client.call("POST", "/containers/create", anonymous).await.0,
        501
    );
    let mount = json!([{"Type": "bind", "Source": "/etc", "Target": "/x"}]);
    assert_eq!(
        client.create(&container(3), IMAGE, "true", mount).await.0,
        501
    );
    world.end(daemon).await;
}

#[tokio::test]
async fn files_are_put_into_containers_and_read_out_of_them() {
    let world = World::new(SPAWNER);
    let daemon = world.daemon(60_000).await;
    let client = Client::new("hello", &daemon, &world.snapshots());
    let a = container(1);
    let (status, _) = client
        .create(
            &a,
            IMAGE,
            "cat /etc/cloudflare/certs/ca.crt; mkfifo /p; ln -s /etc/passwd /l",
            Value::Null,
        )
        .await;
    assert_eq!(status, 201);
    let mut entry = Entry::bare(Kind::File, b"cloudflare/certs/ca.crt".to_vec());
    (entry.mode, entry.size) = (0o644, 5);
    let mut tar = TarWriter::new(Vec::new());
    tar.append(&entry, &mut b"cert\n".as_slice()).unwrap();
    let archive = tar.finish().unwrap();
    let path = format!("/containers/{a}/archive?path=%2Fetc");
    let (status, text) = client.bytes("PUT", &path, archive).await;
    assert_eq!(status, 200, "{text:?}");
    assert_eq!(
        client.bytes("PUT", &path, b"no archive".to_vec()).await.0,
        400
    );
    client
        .ok("POST", &format!("/containers/{a}/start"), Value::Null)
        .await;
    assert_eq!(output(&daemon, &a).await, "cert\n");

    // A real archive, as docker cp reads it; also of a container that has ended.
    let get = |what: &str| format!("/containers/{a}/archive?path={what}");
    let (status, bytes) = client
        .bytes("GET", &get("/etc/cloudflare"), Vec::new())
        .await;
    assert_eq!(status, 200);
    let mut reader = TarReader::new(bytes.as_ref());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(
        names,
        [
            "cloudflare/",
            "cloudflare/certs/",
            "cloudflare/certs/ca.crt"
        ]
    );
    assert_eq!(client.bytes("GET", &get("/none"), Vec::new()).await.0, 404);
    assert_eq!(client.bytes("HEAD", &get("/none"), Vec::new()).await.0, 404);
    assert_eq!(client.bytes("HEAD", &get("/p"), Vec::new()).await.0, 200);
    let (_, bytes) = client.bytes("GET", &get("/l"), Vec::new()).await;
    let link = TarReader::new(bytes.as_ref())
        .next_entry()
        .unwrap()
        .unwrap();
    assert_eq!(
        (link.kind, link.link.as_slice()),
        (Kind::Symlink, b"/etc/passwd".as_slice())
    );
    assert!(Path::new("/etc/passwd").exists());
    world.end(daemon).await;
}
