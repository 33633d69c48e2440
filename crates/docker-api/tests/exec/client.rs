//! A client of one socket, as workerd and Docker's own are: an exec's start takes the connection over.

use std::path::PathBuf;

use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use wharf_testkit::engine::World;

/// A socket that serves a router.
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Socket {
    pub(crate) fn serve(world: &World, name: &str, router: axum::Router) -> Socket {
        let path = world.place.dir.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(wharf_docker_api::serve_unix(listener, router, async {
            let _ = stopped.await;
        }));
        Socket { path, stop, served }
    }

    pub(crate) async fn close(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.text(method, path, body).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub(crate) async fn text(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .unwrap();
        let answer = wharf_testkit::ask(stream, request).await.unwrap();
        (answer.status().as_u16(), answer.into_body())
    }

    /// Creates an exec in the container `c`; all streams attached unless `body` says otherwise.
    pub(crate) async fn create(&self, body: Value) -> String {
        let mut all =
            json!({"AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Tty": false});
        let fields = body.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(fields);
        let (status, made) = self.call("POST", "/containers/c/exec", all).await;
        assert_eq!(status, 201, "{made}");
        made["Id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn sh(&self, script: &str) -> String {
        self.create(json!({"Cmd": ["sh", "-c", script]})).await
    }

    /// Starts it; the connection is at the beginning of the stream.
    pub(crate) async fn start(&self, id: &str, body: Value) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        let body = body.to_string();
        let head = format!(
            "POST /exec/{id}/start HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(answer.contains("\r\nupgrade: tcp\r\n"), "{answer}");
        stream
    }

    pub(crate) async fn inspect(&self, id: &str) -> Value {
        let (status, exec) = self
            .call("GET", &format!("/exec/{id}/json"), Value::Null)
            .await;
        assert_eq!(status, 200, "{exec}");
        exec
    }

    /// Its exit code, which is known when the stream has ended.
    pub(crate) async fn code(&self, id: &str) -> i64 {
        let exec = self.inspect(id).await;
        assert_eq!(exec["Running"], false, "{exec}");
        exec["ExitCode"].as_i64().unwrap()
    }

    /// Runs a script without input: output, error, exit code.
    pub(crate) async fn run(&self, script: &str) -> (String, String, i64) {
        let id = self.sh(script).await;
        let mut stream = self.start(&id, json!({"Detach": false})).await;
        stream.shutdown().await.unwrap();
        let [out, err] = frames(&mut stream).await;
        (out, err, self.code(&id).await)
    }
}

/// Reads frames to the end: standard output and error.
pub(crate) async fn frames(stream: &mut UnixStream) -> [String; 2] {
    let mut all = [Vec::new(), Vec::new()];
    while let Some((stream, bytes)) = frame(stream).await {
        all[usize::from(stream) - 1].extend(bytes);
    }
    all.map(|bytes| String::from_utf8(bytes).unwrap())
}

/// The next frame: which stream, and its bytes. `None` at the end.
pub(crate) async fn frame(stream: &mut UnixStream) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 8];
    if stream.read(&mut header[..1]).await.unwrap() == 0 {
        return None;
    }
    stream.read_exact(&mut header[1..]).await.unwrap();
    assert_eq!(header[1..4], [0, 0, 0]);
    let length = u32::from_be_bytes(header[4..].try_into().unwrap());
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.unwrap();
    Some((header[0], bytes))
}

/// Reads a raw stream until it has said `text`.
pub(crate) async fn says(stream: &mut UnixStream, text: &str) -> String {
    let mut said = String::new();
    while !said.contains(text) {
        let mut bytes = [0; 1000];
        let length = stream.read(&mut bytes).await.unwrap();
        assert!(length > 0, "the end, after {said:?}");
        said.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    said
}
