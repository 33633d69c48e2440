//! A gateway on a real port, and Workers' processes in its place: servers on Unix sockets that read and write raw bytes.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wharf_gateway::{Endpoint, GatewayConfig, Unavailable, Upstream, Upstreams};

/// Socket and number, or why there is none.
type Process = Result<(PathBuf, u64), String>;

/// The supervisor's place: scripts and their sockets.
#[derive(Default)]
pub(crate) struct Scripts {
    processes: Mutex<HashMap<String, Process>>,
    /// Scripts without an address.
    pub(crate) private: Mutex<HashSet<String>>,
    /// Guards that are held now.
    pub(crate) held: Arc<AtomicUsize>,
    /// Cancelled: every process is about to end.
    pub(crate) closing: CancellationToken,
    pub(crate) acquired: AtomicUsize,
    /// What is said of a process whose connection broke off.
    pub(crate) end_reason: Mutex<Option<String>>,
}

impl Scripts {
    pub(crate) fn set(&self, script: &str, process: Process) {
        self.processes
            .lock()
            .unwrap()
            .insert(script.to_owned(), process);
    }
}

/// Counts as held until it is dropped or becomes a tunnel.
struct Held {
    count: Option<Arc<AtomicUsize>>,
    closing: CancellationToken,
    end_reason: Option<String>,
}

impl Held {
    fn release(&mut self) {
        if let Some(count) = self.count.take() {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl wharf_gateway::Guard for Held {
    fn upgraded(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.release();
        Box::pin(self.closing.clone().cancelled_owned())
    }

    fn answered(&self) {}

    fn end_reason(&self) -> Pin<Box<dyn Future<Output = Option<String>> + Send>> {
        Box::pin(std::future::ready(self.end_reason.clone()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

impl Upstreams for Scripts {
    fn acquire<'a>(
        &'a self,
        script: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Upstream, Unavailable>> + Send + 'a>> {
        Box::pin(async move {
            self.acquired.fetch_add(1, Ordering::SeqCst);
            match self.processes.lock().unwrap().get(script) {
                None => Err(Unavailable::NoScript(script.to_owned())),
                Some(Err(reason)) => Err(Unavailable::Broken(reason.clone())),
                Some(Ok((socket, process))) => {
                    self.held.fetch_add(1, Ordering::SeqCst);
                    let held = Held {
                        count: Some(self.held.clone()),
                        closing: self.closing.clone(),
                        end_reason: self.end_reason.lock().unwrap().clone(),
                    };
                    Ok(Upstream {
                        endpoint: Endpoint::Unix(socket.clone()),
                        process: *process,
                        guard: Box::new(held),
                    })
                }
            }
        })
    }

    fn is_public(&self, script: &str) -> bool {
        !self.private.lock().unwrap().contains(script)
    }

    fn scripts(&self) -> Vec<String> {
        let mut names: Vec<_> = self.processes.lock().unwrap().keys().cloned().collect();
        names.sort();
        names
    }
}

/// A running gateway; it ends with this.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) scripts: Arc<Scripts>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<std::io::Result<()>>>,
    dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub(crate) fn config() -> GatewayConfig {
    GatewayConfig {
        base_domains: vec!["localhost".to_owned()],
        dev: true,
        max_header_bytes: 16 * 1024,
        idle_timeout_ms: 30_000,
        max_connections: 100,
        has_room: || true,
        strip_headers: vec![http::HeaderName::from_static("x-internal-cf")],
    }
}

pub(crate) async fn gateway(config: GatewayConfig) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let scripts = Arc::new(Scripts::default());
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(wharf_gateway::serve(
        listener,
        config,
        scripts.clone(),
        async {
            let _ = stopped.await;
        },
    ));
    Running {
        address,
        scripts,
        stop: Some(stop),
        task: Some(task),
        dir: tempfile::tempdir().unwrap(),
    }
}

impl Running {
    /// A process for `script` whose every connection is served by `serve(stream, number of the connection)`.
    pub(crate) fn worker<F, Fut>(&self, script: &str, process: u64, serve: F)
    where
        F: Fn(UnixStream, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let path = self.dir.path().join(format!("{script}-{process}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, number));
                number += 1;
            }
        });
        self.scripts.set(script, Ok((path, process)));
    }

    /// A socket path at which nobody listens.
    pub(crate) fn gone(&self) -> PathBuf {
        self.dir.path().join("gone.sock")
    }

    pub(crate) async fn connect(&self) -> Client {
        Client {
            stream: TcpStream::connect(self.address).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    /// One request on its own connection.
    pub(crate) async fn ask(&self, request: &str) -> Reply {
        let mut client = self.connect().await;
        client.send(request).await;
        client.reply().await
    }

    pub(crate) fn begin_stop(&mut self) -> JoinHandle<std::io::Result<()>> {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.take().unwrap()
    }
}

/// A client that speaks bytes.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The head of the next response; `None` when the gateway closed instead.
    pub(crate) async fn head(&mut self) -> Option<String> {
        read_head(&mut self.stream, &mut self.buffer).await
    }

    /// The next response with a body of a known length, or up to the end of the connection.
    pub(crate) async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub(crate) async fn reply_to(&mut self, method: &str) -> Reply {
        let head = self.head().await.expect("closed without an answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = header(&head, "content-length").map(|it| it.parse::<usize>().unwrap());
        let body = if method == "HEAD" || status == 204 {
            Vec::new()
        } else if let Some(length) = length {
            self.take(length).await
        } else if header(&head, "transfer-encoding").is_some() {
            read_chunked(&mut self.stream, &mut self.buffer).await
        } else {
            self.rest().await
        };
        Reply { status, head, body }
    }

    pub(crate) async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(fill(&mut self.stream, &mut self.buffer).await, "cut off");
        }
        self.buffer.drain(..length).collect()
    }

    /// All until the gateway closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while fill(&mut self.stream, &mut self.buffer).await {}
        std::mem::take(&mut self.buffer)
    }
}

/// False at the end, also when it is a reset.
pub(crate) async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> bool {
    stream.read_buf(buffer).await.is_ok_and(|n| n > 0)
}

pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|it| it == b"\r\n\r\n") {
            let head = buffer.drain(..end + 4).collect();
            return Some(String::from_utf8(head).unwrap());
        }
        if !fill(stream, buffer).await {
            return None;
        }
    }
}

pub(crate) async fn read_chunked(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(2).position(|it| it == b"\r\n") {
                break end;
            }
            assert!(fill(stream, buffer).await, "cut off in a chunk's size");
        };
        let size = std::str::from_utf8(&buffer[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        buffer.drain(..end + 2);
        while buffer.len() < size + 2 {
            assert!(fill(stream, buffer).await, "cut off in a chunk");
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
        if size == 0 {
            return body;
        }
    }
}

/// Reads a request with its body; `None` at the end of the connection.
pub(crate) async fn read_request(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
) -> Option<(String, Vec<u8>)> {
    let head = read_head(stream, buffer).await?;
    let body = if header(&head, "transfer-encoding").is_some() {
        read_chunked(stream, buffer).await
    } else {
        let length = header(&head, "content-length").map_or(0, |it| it.parse::<usize>().unwrap());
        while buffer.len() < length {
            if !fill(stream, buffer).await {
                return None;
            }
        }
        buffer.drain(..length).collect()
    };
    Some((head, body))
}

/// A Worker that answers every request with what it got.
pub(crate) async fn mirror(mut stream: UnixStream, number: usize) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut buffer).await {
        let text = format!("connection {number}\n{head}{}", body.escape_ascii());
        let reply = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
