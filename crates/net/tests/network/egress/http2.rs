//! HTTP/2, of clients that speak nothing else.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Channel, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

type Body = BoxBody<Bytes, Infallible>;

async fn client(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Body> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(256 * 1024)
        .handshake(TokioIo::new(io))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn post(url: &str) -> http::request::Builder {
    Request::post(url)
        .header("te", "trailers")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
}

/// One text out; all that comes back, and the trailer.
async fn exchange(sender: &mut SendRequest<Body>, url: &str) -> (String, Option<String>) {
    let request = post(url).body(Full::from("question ").boxed()).unwrap();
    let answer = timeout(WAIT, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 200);
    let body = timeout(WAIT, answer.into_body().collect())
        .await
        .unwrap()
        .unwrap();
    let trailer = body
        .trailers()
        .and_then(|t| Some(t.get("x-after")?.to_str().unwrap().to_owned()));
    (
        String::from_utf8(body.to_bytes().to_vec()).unwrap(),
        trailer,
    )
}

const SEEN: &str = "worker saw POST /rpc host=a.example cookie=a=1; b=2 HTTP/1.1\nquestion end\n";

fn mapping(question: &workerd::Question) -> Verdict {
    match (question.sni.as_deref(), question.host.as_deref()) {
        (Some("a.example"), _) | (_, Some("a.example")) => Verdict::Http,
        _ => Verdict::Nothing,
    }
}

#[tokio::test]
async fn requests_reach_the_worker_by_tls_and_without() {
    let workerd = Workerd::new(mapping).await;
    let (network, world) = mapped(&workerd, &["a.example"], false, World::default()).await;
    let tls = tls::connect_tls(&network, "11.0.0.1:443", "a.example", &["h2"])
        .await
        .unwrap();
    let clear = connect_inside(&network, "11.0.0.1:50051").await.unwrap();
    for (mut sender, scheme) in [(client(tls).await, "https"), (client(clear).await, "http")] {
        for _ in 0..2 {
            let (seen, trailer) = exchange(&mut sender, &format!("{scheme}://a.example/rpc")).await;
            assert_eq!(seen, SEEN);
            assert_eq!(trailer.as_deref(), Some("yes"));
        }
        // Many at once.
        let all = (0..50).map(|_| {
            let mut sender = sender.clone();
            async move {
                exchange(&mut sender, &format!("{scheme}://a.example/rpc"))
                    .await
                    .0
            }
        });
        for seen in futures_util::future::join_all(all).await {
            assert_eq!(seen, SEEN);
        }
    }
    assert_eq!(dialled(&world), [""; 0]);
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let workerd = Workerd::new(mapping).await;
    let (network, _) = mapped(&workerd, &["a.example"], false, World::default()).await;
    let tls = tls::connect_tls(&network, "11.0.0.1:443", "a.example", &["h2"])
        .await
        .unwrap();
    let mut sender = client(tls).await;
    let (mut body, channel) = Channel::<Bytes, Infallible>::new(1);
    let request = post("https://a.example/chat")
        .body(channel.boxed())
        .unwrap();
    let answer = timeout(WAIT, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    let mut answer = answer.into_body();
    let mut next = async || {
        let frame = timeout(WAIT, answer.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    };
    assert!(next().await.starts_with("worker saw POST /chat"));
    for word in ["one", "two"] {
        body.send_data(Bytes::from(word)).await.unwrap();
        assert_eq!(next().await, word);
    }
    drop(body);
    assert_eq!(next().await, "end\n");
}

#[tokio::test]
async fn other_hosts_requests_go_outside_whole() {
    let workerd = Workerd::new(mapping).await;
    let (outside, world) = server(&["203.0.113.5:80"]).await;
    tokio::spawn(async move {
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            let seen = format!("outside saw {} {:?}", request.uri(), request.version());
            let frames = [
                Ok::<_, Infallible>(Frame::data(Bytes::from(seen))),
                Ok(Frame::trailers(
                    [("x-after".parse().unwrap(), "outside".parse().unwrap())]
                        .into_iter()
                        .collect(),
                )),
            ];
            Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(
                frames,
            ))))
        });
        let stream = accept(&outside).await;
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
    let (network, world) = mapped(&workerd, &["a.example"], true, world).await;
    let mut sender = client(connect_inside(&network, "203.0.113.5:80").await.unwrap()).await;
    for _ in 0..2 {
        let (seen, trailer) = exchange(&mut sender, "http://b.example/rpc").await;
        assert_eq!(seen, "outside saw http://b.example/rpc HTTP/2.0");
        assert_eq!(trailer.as_deref(), Some("outside"));
        assert_eq!(exchange(&mut sender, "http://a.example/rpc").await.0, SEEN);
    }
    assert_eq!(dialled(&world), ["203.0.113.5:80"]);

    // Without internet, that one request fails.
    network.set_policy(wharf_net::Policy { internet: false });
    let request = post("http://b.example/rpc")
        .body(Full::from("x").boxed())
        .unwrap();
    timeout(WAIT, sender.send_request(request))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(exchange(&mut sender, "http://a.example/rpc").await.0, SEEN);
}

#[tokio::test]
async fn a_thousand_small_headers_reach_a_worker() {
    let workerd = Workerd::new(mapping).await;
    let (network, _) = mapped(&workerd, &["a.example"], false, World::default()).await;
    let mut sender = client(connect_inside(&network, "11.0.0.1:50051").await.unwrap()).await;
    let mut request = post("http://a.example/many");
    for n in 0..1000 {
        request = request.header(format!("x-{n}"), "v");
    }
    let request = request.body(Full::from("x").boxed()).unwrap();
    let answer = timeout(WAIT, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 200);
    // The Worker sends back as many.
    assert_eq!(answer.headers()["x-999"], "v");
}

#[tokio::test]
async fn headers_that_contradict_each_other_are_refused() {
    let workerd = Workerd::new(mapping).await;
    let (network, _) = mapped(&workerd, &["a.example"], false, World::default()).await;
    let mut sender = client(connect_inside(&network, "11.0.0.1:50051").await.unwrap()).await;
    let request = post("http://a.example/")
        .header("authorization", "Basic YQ==")
        .header("authorization", "Basic Yg==")
        .body(Full::from("x").boxed())
        .unwrap();
    let answer = timeout(WAIT, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 400);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("authorization"));
}
