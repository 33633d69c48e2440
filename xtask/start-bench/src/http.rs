//! HTTP as far as measuring needs it: one request on a connection, and when the answer's first byte came.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long anything may take before it counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries to reach an app that does not listen yet.
const RETRY: Duration = Duration::from_micros(20);

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// When its first byte came.
    pub(crate) first_byte: Instant,
}

/// Sends a request (which must ask for the connection's end) and reads to the end.
fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Result<Answer> {
    stream.write_all(request)?;
    let mut bytes = vec![0; 16 * 1024];
    let n = read(stream, &mut bytes)?;
    let first_byte = Instant::now();
    if n == 0 {
        bail!("the connection was closed without an answer");
    }
    bytes.truncate(n);
    if let Err(error) = stream.read_to_end(&mut bytes) {
        // An app may reset its connection after a whole answer.
        if error.kind() != ErrorKind::ConnectionReset {
            return Err(error.into());
        }
    }
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("an answer without a head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("not HTTP: {head}"))?;
    let body = bytes.split_off(end + 4);
    let chunked = head
        .to_ascii_lowercase()
        .contains("\r\ntransfer-encoding: chunked");
    Ok(Answer {
        status,
        body: if chunked { dechunk(&body) } else { body },
        first_byte,
    })
}

/// With a timeout on the socket, the kernel does not start a read again that something interrupted.
fn read(stream: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(end + 2..end + 2 + size).filter(|c| !c.is_empty()) else {
            break;
        };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}

fn expect_ok(answer: Answer) -> Result<Instant> {
    if answer.status != 200 {
        let text = String::from_utf8_lossy(&answer.body);
        let text: String = text.trim().chars().take(300).collect();
        bail!("answered {}: {text}", answer.status);
    }
    Ok(answer.first_byte)
}

/// `GET /` until somebody listens; returns when the first byte of a 200 came.
pub(crate) fn first_byte_of(address: SocketAddr) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    // A sleep of 20 us is to last no 70. Reset afterwards: processes that this thread starts inherit it.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break Ok(stream),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            Err(e) => break Err(e),
        }
    };
    rustix::thread::set_current_timer_slack(None)?;
    let mut stream = stream.with_context(|| format!("{address} can't be reached"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let answer = exchange(
        &mut stream,
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )?;
    expect_ok(answer)
}

/// The same through an ingress: a CONNECT, which is held while the app starts.
pub(crate) fn first_byte_through(ingress: SocketAddr, port: u16) -> Result<Instant> {
    let mut stream = TcpStream::connect(ingress)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let host = format!("127.0.0.1:{port}");
    stream.write_all(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.ends_with(b"\r\n\r\n") {
        let n = read(&mut stream, &mut buffer)?;
        if n == 0 {
            bail!("the ingress closed the connection");
        }
        head.extend_from_slice(&buffer[..n]);
    }
    if !head.starts_with(b"HTTP/1.1 200") {
        bail!("the ingress answered {}", String::from_utf8_lossy(&head));
    }
    let answer = exchange(
        &mut stream,
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )?;
    expect_ok(answer)
}

/// One request to the gateway.
pub(crate) fn gateway(
    address: SocketAddr,
    host: &str,
    method: &str,
    path: &str,
) -> Result<Instant> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    expect_ok(exchange(&mut stream, request.as_bytes())?)
}

/// A Docker Engine API on a Unix socket; each call on a connection of its own, as workerd does it.
#[derive(Debug, Clone)]
pub(crate) struct Api(pub(crate) std::path::PathBuf);

impl Api {
    /// A call with a JSON body (or none); the answer's body as JSON (null if there is none). Fails for any status but 2xx.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.0)
            .with_context(|| format!("{} can't be reached", self.0.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answer = exchange(&mut stream, (head + &body).as_bytes())?;
        if !(200..300).contains(&answer.status) {
            let text = String::from_utf8_lossy(&answer.body);
            bail!(
                "{method} {path} answered {}: {}",
                answer.status,
                text.trim()
            );
        }
        Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    /// `docker import`.
    pub(crate) fn import(&self, rootfs: &Path, image: &str) -> Result<()> {
        let (name, tag) = image.rsplit_once(':').context("an image without a tag")?;
        let mut file = std::fs::File::open(rootfs)?;
        let mut stream = UnixStream::connect(&self.0)?;
        write!(
            stream,
            "POST /images/create?fromSrc=-&repo={name}&tag={tag} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
            file.metadata()?.len()
        )?;
        std::io::copy(&mut file, &mut stream)?;
        let answer = exchange(&mut stream, b"")?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status != 200 || text.contains("\"error\"") {
            bail!("importing {image}: {}: {text}", answer.status);
        }
        Ok(())
    }
}
