//! A stand-in for the container engine: it says yes to everything, and remembers what it was asked.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wharf_workerd::{DockerSocket, EnginePaths, Sockets, Supervisor, WorkerdConfig};

use super::{binary, bind};

/// A container that was started runs until it is deleted.
#[derive(Default)]
pub struct Engine {
    pub running: Mutex<BTreeSet<String>>,
    pub asked: Mutex<Vec<String>>,
    /// Bodies of creates with a command or variables: those of containers, not of sidecars.
    pub created: Mutex<Vec<Value>>,
    /// Requests of the prelude: line and body.
    pub told: Mutex<Vec<(String, Value)>>,
    /// In the network of the process that opened its sockets last.
    sidecar_port: AtomicU16,
}

impl Engine {
    fn answer(&self, request: &http::request::Parts, body: &[u8]) -> (StatusCode, Value) {
        let path = request.uri.path();
        let line = format!("{} {path}", request.method);
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        if path.ends_with("/labels") || path.ends_with("/inactivity") {
            let labels = json!({"labels": {"from": "the engine"}});
            self.told.lock().unwrap().push((line, body));
            let status = match request.method {
                Method::GET => StatusCode::OK,
                _ => StatusCode::NO_CONTENT,
            };
            return (status, labels);
        }
        self.asked.lock().unwrap().push(line);
        if body["Env"].is_array() {
            self.created.lock().unwrap().push(body);
        }
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
                    "NetworkSettings": {"Ports": {"39001/tcp": [{"HostIp": "127.0.0.1", "HostPort": self.sidecar_port.load(Ordering::Relaxed).to_string()}]}}}),
            ),
            (_, "wait") => (StatusCode::OK, json!({"StatusCode": 137})),
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
                    let body = body.collect().await.map(|b| b.to_bytes());
                    let (status, body) = engine.answer(&parts, &body.unwrap_or_default());
                    let name = path.split('/').nth(2).unwrap_or_default().to_owned();
                    while path.ends_with("/wait") && engine.running.lock().unwrap().contains(&name)
                    {
                        tokio::time::sleep(Duration::from_millis(5)).await;
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
        network: wharf_net::Network,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<DockerSocket>> + Send + '_>> {
        Box::pin(async move {
            let mut tasks = JoinSet::new();
            let namespace = network.namespace().map_err(std::io::Error::other)?;
            let any = "127.0.0.1:0".parse().unwrap();
            let control = wharf_sandbox::netns::listen_tcp(namespace.as_fd(), any)?;
            let port = control.local_addr()?.port();
            self.engine.sidecar_port.store(port, Ordering::Relaxed);
            tasks.spawn(sidecar(tokio::net::TcpListener::from_std(control)?));
            for path in [paths.docker, paths.prelude] {
                tasks.spawn(serve(self.engine.clone(), bind(&path, uid)?));
            }
            Ok(Box::new(tasks) as DockerSocket)
        })
    }
    fn blob(&self, hash: &str) -> PathBuf {
        self.blobs.join(hash)
    }
}

/// A world whose supervisor has this engine.
pub async fn world() -> (super::World, Arc<Engine>) {
    let mut world = super::World::new().await;
    let engine = Arc::new(Engine::default());
    let dir = world.place.dir.path();
    world.supervisor = Supervisor::new(
        WorkerdConfig::new(binary(dir), dir.join("w"), dir.join("scripts")),
        world.spawner.clone(),
        super::networks(false),
        Arc::new(Engines {
            blobs: dir.join("blobs"),
            engine: engine.clone(),
        }),
    );
    (world, engine)
}
