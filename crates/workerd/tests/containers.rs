//! A version change must not end the containers of the objects: workerd deletes them on SIGTERM unless its engine is out of reach.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use support::{World, with_class};
use tokio::task::JoinSet;
use wharf_workerd::{DockerSocket, EnginePaths, Sockets, Supervisor, WorkerdConfig};

/// An engine that remembers what it was asked; a container that was started runs until it is deleted.
#[derive(Default)]
struct Engine {
    running: Mutex<BTreeSet<String>>,
    asked: Mutex<Vec<String>>,
    sidecar_port: u16,
}

impl Engine {
    fn answer(&self, request: &http::request::Parts) -> (StatusCode, serde_json::Value) {
        let path = request.uri.path();
        let line = format!("{} {path}", request.method);
        self.asked.lock().unwrap().push(line);
        let mut running = self.running.lock().unwrap();
        let parts: Vec<&str> = path.split('/').collect();
        let name = parts.get(2).copied().unwrap_or_default();
        match (&request.method, parts.last().copied().unwrap_or_default()) {
            (_, "volumes") => (StatusCode::OK, json!({"Volumes": [], "Warnings": []})),
            (_, "bridge") => (
                StatusCode::OK,
                json!({"Name": "bridge", "Id": "b", "IPAM": {"Config": [{"Subnet": "127.0.0.0/8", "Gateway": "127.0.0.1"}]}}),
            ),
            (_, "create") => (StatusCode::CREATED, json!({"Id": "x", "Warnings": []})),
            (&Method::DELETE, _) => {
                let found = running.remove(name);
                let status = if found { 204 } else { 404 };
                (StatusCode::from_u16(status).unwrap(), json!({}))
            }
            (_, "start") => {
                running.insert(name.to_owned());
                (StatusCode::NO_CONTENT, json!({}))
            }
            (_, "json") if running.contains(name) => (
                StatusCode::OK,
                json!({"State": {"Status": "running", "Running": true}, "Config": {"Image": "wharf:application"},
                    "NetworkSettings": {"Ports": {"39001/tcp": [{"HostIp": "127.0.0.1", "HostPort": self.sidecar_port.to_string()}]}}}),
            ),
            _ => (
                StatusCode::NOT_FOUND,
                json!({"message": "no such container"}),
            ),
        }
    }
}

async fn serve(engine: Arc<Engine>, listener: tokio::net::UnixListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let engine = engine.clone();
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let engine = engine.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let (parts, body) = request.into_parts();
                    // Closed with bytes unread, the connection would be reset under workerd, answer and all.
                    let _ = body.collect().await;
                    let (status, body) = engine.answer(&parts);
                    let name = path.split('/').nth(2).unwrap_or_default().to_owned();
                    if path.ends_with("/wait") && engine.running.lock().unwrap().contains(&name) {
                        std::future::pending::<()>().await;
                    }
                    let body = if status == StatusCode::NO_CONTENT {
                        String::new()
                    } else {
                        body.to_string()
                    };
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    Ok::<_, std::convert::Infallible>(response)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The sidecar's control: says yes to everything.
async fn sidecar(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(|request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            let body = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(body))))
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

struct Engines {
    blobs: PathBuf,
    engine: Arc<Engine>,
}

impl Sockets for Engines {
    fn docker(
        &self,
        _: &str,
        paths: EnginePaths,
        uid: u32,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<DockerSocket>> + Send + '_>> {
        Box::pin(async move {
            let listener = support::bind(&paths.docker, uid)?;
            let mut tasks = JoinSet::new();
            tasks.spawn(serve(self.engine.clone(), listener));
            Ok(Box::new(tasks) as DockerSocket)
        })
    }
    fn blob(&self, hash: &str) -> PathBuf {
        self.blobs.join(hash)
    }
}

#[tokio::test]
async fn containers_live_on_when_a_version_is_replaced() {
    let mut world = World::new().await;
    let control = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let engine = Arc::new(Engine {
        sidecar_port: control.local_addr().unwrap().port(),
        ..Engine::default()
    });
    let sidecar = tokio::spawn(sidecar(control));
    let dir = world.place.dir.path();
    world.supervisor = Supervisor::new(
        WorkerdConfig::new(support::binary(dir), dir.join("w"), dir.join("scripts")),
        world.spawner.clone(),
        Arc::new(Engines {
            blobs: dir.join("blobs"),
            engine: engine.clone(),
        }),
    );
    let code = r#"
import { DurableObject } from "cloudflare:workers";
export class Box extends DurableObject {
  async fetch(request) {
    switch (new URL(request.url).pathname) {
      case "/start":
        this.ctx.container.start({ enableInternet: false });
        this.ctx.container.monitor().catch(() => {});
        // A start that nobody waits for is given up with its request.
        while (!this.started) await scheduler.wait(10);
        break;
      case "/started":
        this.started = true;
    }
    return new Response(String(this.ctx.container.running));
  }
}
export default { fetch(request, env) { return env.BOX.getByName("a").fetch(request); } };"#;
    let version = |world: &World, code: &str| {
        let mut desired = with_class(world.desired("hello", 1, code), "Box");
        desired.version.container_classes.push("Box".into());
        desired
    };
    world.deploy(version(&world, code)).await;
    assert_eq!(world.text("hello", "/").await, "false");
    let both_run = wharf_testkit::eventually("the container and its sidecar run", async || {
        (engine.running.lock().unwrap().len() == 2).then_some(())
    });
    let (start, ()) = tokio::join!(world.text("hello", "/start"), async {
        both_run.await;
        world.text("hello", "/started").await;
    });
    assert_eq!(start, "true");
    engine.asked.lock().unwrap().clear();

    world.deploy(version(&world, &format!("{code}//"))).await;
    assert_eq!(world.text("hello", "/").await, "true", "adopted");
    let asked = engine.asked.lock().unwrap().clone();
    assert!(
        !asked.iter().any(|line| line.starts_with("DELETE")),
        "{asked:?}"
    );
    assert_eq!(engine.running.lock().unwrap().len(), 2);
    sidecar.abort();
    world.close().await;
}
