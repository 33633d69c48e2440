//! A stand-in for workerd's egress listener.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;

use crate::*;

/// A question to workerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) to: String,
    pub(crate) sni: Option<String>,
    pub(crate) host: Option<String>,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// A mapping of HTTP: the Worker tells what it saw, and ends with "end".
    Http,
    /// A mapping of TCP, whose Worker greets first and then repeats.
    Tcp,
    /// No mapping, and no internet.
    Nothing,
    /// No mapping; a server outside is played by this port of the host.
    Pass(u16),
    Refuse,
}

pub(crate) struct Workerd {
    port: u16,
    asked: Arc<Mutex<Vec<Question>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Workerd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Workerd {
    pub(crate) async fn new(rule: impl Fn(&Question) -> Verdict + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), rule)
    }

    pub(crate) fn on(
        listener: TcpListener,
        rule: impl Fn(&Question) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let rule = Arc::new(rule);
        let task = tokio::spawn({
            let asked = asked.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(connection(stream, asked.clone(), rule.clone()));
                }
            }
        });
        Self { port, asked, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }

    /// Forgets what it was asked.
    pub(crate) fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }
}

async fn connection(
    mut stream: TcpStream,
    asked: Arc<Mutex<Vec<Question>>>,
    rule: Arc<impl Fn(&Question) -> Verdict>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let first = lines.next().unwrap();
    let to = first
        .strip_prefix("CONNECT ")
        .unwrap()
        .strip_suffix(" HTTP/1.1")
        .unwrap();
    let field = |name: &str| {
        let mut lines = head.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };
    let question = Question {
        to: to.to_owned(),
        sni: field("X-Tls-Sni"),
        host: field("X-Hostname"),
    };
    let verdict = rule(&question);
    asked.lock().unwrap().push(question);
    let status = match verdict {
        Verdict::Http => "200 OK",
        Verdict::Refuse => "400 Bad Request",
        _ => "202 Accepted",
    };
    let greeting = if matches!(verdict, Verdict::Tcp) {
        "220 hello\n"
    } else {
        ""
    };
    let answer = format!("HTTP/1.1 {status}\r\n\r\n{greeting}");
    stream.write_all(answer.as_bytes()).await.unwrap();
    match verdict {
        Verdict::Http => {
            let service = hyper::service::service_fn(worker);
            let _ = hyper::server::conn::http1::Builder::new()
                .max_headers(5000)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        }
        Verdict::Tcp => {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
        Verdict::Pass(port) => {
            let mut outside = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut outside).await;
        }
        Verdict::Nothing | Verdict::Refuse => {}
    }
}

/// The Worker: sends back headers that begin with `x-`, says what it sees, at once, then repeats
/// the body as it comes, then ends.
async fn worker(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    if request.headers().contains_key("upgrade") {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let mut answer = Response::new(BoxBody::default());
        *answer.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        answer
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        answer
            .headers_mut()
            .insert("upgrade", "echo".parse().unwrap());
        return Ok(answer);
    }
    let text = |name: &str| {
        let value = request.headers().get(name);
        value.map_or("-", |v| v.to_str().unwrap()).to_owned()
    };
    let of_many = |name: &HeaderName| name.as_str().starts_with("x-");
    let many: HeaderMap = request
        .headers()
        .iter()
        .filter(|(name, _)| of_many(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let seen = format!(
        "worker saw {} {} host={} cookie={} {:?}\n",
        request.method(),
        request.uri(),
        text("host"),
        text("cookie"),
        request.version()
    );
    let first = futures_util::stream::once(async { Ok(Frame::data(Bytes::from(seen))) });
    let echoed = futures_util::StreamExt::filter_map(
        http_body_util::BodyStream::new(request.into_body()),
        async |frame| match frame {
            Ok(frame) => Some(Ok(Frame::data(frame.into_data().ok()?))),
            Err(error) => Some(Err(error)),
        },
    );
    let last = futures_util::stream::iter([
        Ok(Frame::data(Bytes::from_static(b"end\n"))),
        Ok(Frame::trailers(
            [("x-after".parse().unwrap(), "yes".parse().unwrap())]
                .into_iter()
                .collect(),
        )),
    ]);
    let body = futures_util::StreamExt::chain(futures_util::StreamExt::chain(first, echoed), last);
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(body)));
    answer
        .headers_mut()
        .insert("trailer", "x-after".parse().unwrap());
    answer
        .headers_mut()
        .insert("keep-alive", "timeout=5".parse().unwrap());
    answer.headers_mut().extend(many);
    Ok(answer)
}
