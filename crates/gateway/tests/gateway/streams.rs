//! Connections and bodies: keep-alive, streaming, upgrades, retries, the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::common::{config, gateway, header, mirror, read_head, read_request, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
const TEN_MIB: usize = 10 << 20;

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let mut client = it.connect().await;
    for _ in 0..20 {
        client.send(GET).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 200);
        // The response's end and the connection's return are two steps; a request between them may open another.
        let number = reply.text().lines().next().unwrap().to_owned();
        assert!(
            ["connection 0", "connection 1"].contains(&&*number),
            "{number}"
        );
    }
    assert_eq!(it.scripts.held.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let mut client = it.connect().await;
    client
        .send(format!(
            "{}{}",
            GET.replace("GET /", "GET /first"),
            GET.replace("GET /", "GET /second")
        ))
        .await;
    assert!(client.reply().await.text().contains("GET /first "));
    assert!(client.reply().await.text().contains("GET /second "));
}

#[tokio::test]
async fn a_new_process_gets_new_connections() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let mut client = it.connect().await;
    client.send(GET).await;
    assert_eq!(client.reply().await.status, 200);
    it.worker("hello", 2, |mut stream, _| async move {
        let mut buffer = Vec::new();
        while read_request(&mut stream, &mut buffer).await.is_some() {
            let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew";
            stream.write_all(reply).await.unwrap();
        }
    });
    client.send(GET).await;
    assert_eq!(client.reply().await.text(), "new");
}

/// A Worker that answers the first request of each connection and closes the connection when it has the second.
async fn closes_when_reused(mut stream: tokio::net::UnixStream, requests: Arc<AtomicUsize>) {
    let mut buffer = Vec::new();
    for reply in [Some("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), None] {
        if read_request(&mut stream, &mut buffer).await.is_none() {
            return;
        }
        requests.fetch_add(1, Ordering::SeqCst);
        if let Some(reply) = reply {
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_kept_connection_that_closes_in_the_race_is_not_noticed_by_a_get() {
    let it = gateway(config()).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    it.worker("hello", 1, move |stream, _| {
        closes_when_reused(stream, count.clone())
    });
    let mut client = it.connect().await;
    for _ in 0..10 {
        client.send(GET).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.text()), (200, "ok"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        requests.load(Ordering::SeqCst) > 10,
        "no request ever met a closing connection"
    );
}

#[tokio::test]
async fn a_post_that_may_have_arrived_is_not_sent_twice() {
    let it = gateway(config()).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    it.worker("hello", 1, move |stream, _| {
        closes_when_reused(stream, count.clone())
    });
    let mut client = it.connect().await;
    let post = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\n\r\nabc";
    let (mut answered, mut failed) = (0, 0);
    for _ in 0..10 {
        client.send(post).await;
        match client.reply().await.status {
            200 => answered += 1,
            502 => failed += 1,
            status => panic!("{status}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(failed > 0, "no request ever met a closing connection");
    assert_eq!(requests.load(Ordering::SeqCst), answered + failed);
}

#[tokio::test]
async fn connections_that_the_worker_closed_while_idle_are_not_used() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, number| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
        stream.write_all(reply.as_bytes()).await.unwrap();
    });
    let mut client = it.connect().await;
    for number in 0..5 {
        client
            .send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\n\r\nabc")
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.text()), (200, &*number.to_string()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn ten_mebibytes_stream_up_and_down_through_a_slow_reader() {
    let it = gateway(config()).await;
    // Echoes while it reads, and counts what it could send before the client reads.
    let echoed = Arc::new(AtomicUsize::new(0));
    let count = echoed.clone();
    it.worker("hello", 1, move |stream, _| {
        let count = count.clone();
        async move {
            let (mut reader, mut writer) = stream.into_split();
            let mut buffer = Vec::new();
            read_head(&mut reader, &mut buffer).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {TEN_MIB}\r\n\r\n");
            writer.write_all(head.as_bytes()).await.unwrap();
            while count.load(Ordering::SeqCst) < TEN_MIB {
                if buffer.is_empty() {
                    reader.read_buf(&mut buffer).await.unwrap();
                }
                writer.write_all(&buffer).await.unwrap();
                count.fetch_add(buffer.len(), Ordering::SeqCst);
                buffer.clear();
            }
        }
    });
    let sent: Vec<u8> = (0..TEN_MIB).map(|i| (i * 31 % 251) as u8).collect();
    let mut client = it.connect().await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {TEN_MIB}\r\n\r\n"
        ))
        .await;
    let (mut reader, mut writer) = client.stream.into_split();
    let body = sent.clone();
    let upload = tokio::spawn(async move {
        writer.write_all(&body).await.unwrap();
        writer
    });
    // Nobody reads the answer: kernel buffers fill, and the gateway must stop taking more instead of collecting it.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = echoed.load(Ordering::SeqCst);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    assert!(
        before < TEN_MIB,
        "the whole body was taken although nobody reads it"
    );
    let mut received = Vec::new();
    assert!(
        read_head(&mut reader, &mut received)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    while received.len() < TEN_MIB {
        assert!(reader.read_buf(&mut received).await.unwrap() > 0);
        if received.len() % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(received == sent);
    drop(upload.await.unwrap());
    until(|| it.scripts.held.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_body_arrives_piece_by_piece() {
    let it = gateway(config()).await;
    let more = Arc::new(Notify::new());
    let go_on = more.clone();
    it.worker("hello", 1, move |mut stream, _| {
        let more = more.clone();
        async move {
            read_request(&mut stream, &mut Vec::new()).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                .await
                .unwrap();
            more.notified().await;
            stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
        }
    });
    let mut client = it.connect().await;
    client.send(GET).await;
    let head = client.head().await.unwrap();
    assert_eq!(header(&head, "transfer-encoding"), Some("chunked"));
    assert_eq!(client.take(10).await, b"5\r\nfirst\r\n");
    assert_eq!(
        it.scripts.held.load(Ordering::SeqCst),
        1,
        "the process is held while its response is on its way"
    );
    go_on.notify_one();
    assert_eq!(client.take(14).await, b"4\r\nlast\r\n0\r\n\r\n");
    until(|| it.scripts.held.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn chunks_and_lengths_arrive_as_they_were_sent() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    for method in ["POST", "GET", "DELETE"] {
        let reply = it
            .ask(&format!(
                "{method} / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
            ))
            .await;
        let text = reply.text();
        assert!(text.contains("transfer-encoding: chunked\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nabcde"), "{text}");
        let reply = it
            .ask(&format!(
                "{method} / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\nabcde"
            ))
            .await;
        let text = reply.text();
        assert!(text.contains("content-length: 5\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nabcde"), "{text}");
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_here() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let mut client = it.connect().await;
    client
        .send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n")
        .await;
    assert_eq!(
        client.head().await.unwrap(),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.send("abc").await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 200);
    let text = reply.text();
    assert!(!text.to_lowercase().contains("expect"), "{text}");
    assert!(text.ends_with("abc"), "{text}");
}

#[tokio::test]
async fn head_and_204_have_no_body_and_keep_the_connection() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Some((head, _)) = read_request(&mut stream, &mut buffer).await {
            let reply: &[u8] = if head.starts_with("HEAD /stream") {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            } else if head.starts_with("HEAD") {
                b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
            } else if head.contains("/304") {
                b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"
            } else {
                b"HTTP/1.1 204 No Content\r\n\r\n"
            };
            stream.write_all(reply).await.unwrap();
        }
    });
    let mut client = it.connect().await;
    client.send(GET.replace("GET", "HEAD")).await;
    let reply = client.reply_to("HEAD").await;
    assert_eq!(reply.header("content-length"), Some("1234"));
    client.send(GET.replace("GET /", "HEAD /stream")).await;
    let reply = client.reply_to("HEAD").await;
    assert_eq!((reply.status, reply.header("content-length")), (200, None));
    client.send(GET).await;
    assert_eq!(client.reply().await.status, 204);
    client.send(GET.replace("GET /", "GET /304")).await;
    let reply = client.reply_to("HEAD").await;
    assert_eq!((reply.status, reply.header("etag")), (304, Some("\"x\"")));
    client.send(GET).await;
    assert_eq!(client.reply().await.status, 204);
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_body_up_to_the_end_of_the_connection() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        let (head, _) = read_request(&mut stream, &mut Vec::new()).await.unwrap();
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            )
            .await
            .unwrap();
    });
    let reply = it
        .ask("GET / HTTP/1.0\r\nHost: hello.localhost\r\n\r\n")
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("transfer-encoding"), None);
    assert_eq!(reply.text(), "hello");
}

#[tokio::test]
async fn trailers_reach_a_client_that_takes_them() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        let (head, _) = read_request(&mut stream, &mut Vec::new()).await.unwrap();
        assert_eq!(header(&head, "te"), Some("trailers"));
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
            )
            .await
            .unwrap();
    });
    let mut client = it.connect().await;
    client
        .send("GET / HTTP/1.1\r\nHost: hello.localhost\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n")
        .await;
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(
        answer.ends_with("2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_worker_lost_in_the_middle_of_a_body_closes_the_client_too() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .await
            .unwrap();
    });
    let mut client = it.connect().await;
    client.send(GET).await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 200"));
    let body = client.rest().await;
    assert!(
        !body.ends_with(b"0\r\n\r\n"),
        "a cut body must not look whole"
    );
    until(|| it.scripts.held.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_request() {
    let it = gateway(config()).await;
    let ended = Arc::new(Notify::new());
    let tell = ended.clone();
    it.worker("hello", 1, move |mut stream, _| {
        let tell = tell.clone();
        async move {
            let mut buffer = Vec::new();
            read_request(&mut stream, &mut buffer).await;
            while crate::common::fill(&mut stream, &mut buffer).await {}
            tell.notify_one();
        }
    });
    let mut client = it.connect().await;
    client.send(GET).await;
    until(|| it.scripts.held.load(Ordering::SeqCst) == 1).await;
    drop(client);
    ended.notified().await;
    until(|| it.scripts.held.load(Ordering::SeqCst) == 0).await;
}

/// A Worker that accepts a WebSocket and sends back what comes, a word of greeting first.
async fn websocket_echo(mut stream: tokio::net::UnixStream, _: usize) {
    let mut buffer = Vec::new();
    let (head, _) = read_request(&mut stream, &mut buffer).await.unwrap();
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "connection"), Some("Upgrade"));
    assert_eq!(header(&head, "sec-websocket-key"), Some("abc"));
    stream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: xyz\r\n\r\nwelcome")
        .await
        .unwrap();
    loop {
        buffer.clear();
        if !crate::common::fill(&mut stream, &mut buffer).await {
            return;
        }
        if stream.write_all(&buffer).await.is_err() {
            return;
        }
    }
}

const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: hello.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: abc\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn a_websocket_is_a_tunnel_that_ends_with_the_process_and_does_not_keep_it() {
    let mut settings = config();
    settings.idle_timeout_ms = 100;
    let it = gateway(settings).await;
    it.worker("hello", 1, websocket_echo);
    let mut client = it.connect().await;
    client.send(WEBSOCKET).await;
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "sec-websocket-accept"), Some("xyz"));
    assert!(header(&head, "cf-ray").is_some());
    assert_eq!(client.take(7).await, b"welcome");
    for round in 0..3 {
        let message = format!("message {round} {}", "x".repeat(100_000));
        client.send(&message).await;
        assert_eq!(client.take(message.len()).await, message.as_bytes());
        // Idle for longer than a kept connection may be.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(it.scripts.held.load(Ordering::SeqCst), 0);
    it.scripts.closing.cancel();
    assert!(client.rest().await.is_empty(), "the tunnel is closed");
}

#[tokio::test]
async fn a_worker_that_declines_a_websocket_answers_as_usual() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let mut client = it.connect().await;
    client.send(WEBSOCKET).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("upgrade")), (200, None));
    client.send(GET).await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn other_upgrades_are_not_passed_on() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let reply = it
        .ask("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n")
        .await;
    let text = reply.text().to_lowercase();
    assert_eq!(reply.status, 200);
    assert!(
        !text.contains("h2c") && !text.contains("http2-settings"),
        "{text}"
    );
}

#[tokio::test]
async fn stopping_lets_a_request_finish_and_ends_websockets_and_idle_connections() {
    let mut it = gateway(config()).await;
    it.worker("ws", 1, websocket_echo);
    let more = Arc::new(Notify::new());
    let go_on = more.clone();
    it.worker("hello", 2, move |mut stream, _| {
        let more = more.clone();
        async move {
            read_request(&mut stream, &mut Vec::new()).await;
            more.notified().await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
                .await
                .unwrap();
        }
    });
    let mut websocket = it.connect().await;
    websocket.send(WEBSOCKET.replace("hello", "ws")).await;
    assert!(websocket.head().await.unwrap().contains(" 101 "));
    let mut idle = it.connect().await;
    let mut busy = it.connect().await;
    busy.send(GET).await;
    until(|| it.scripts.held.load(Ordering::SeqCst) == 1).await;

    let stopped = it.begin_stop();
    websocket.rest().await;
    assert_eq!(idle.rest().await, b"");
    assert!(tokio::net::TcpStream::connect(it.address).await.is_err());
    assert!(!stopped.is_finished());
    go_on.notify_one();
    assert_eq!(busy.reply().await.text(), "done");
    stopped.await.unwrap().unwrap();
    assert_eq!(it.scripts.held.load(Ordering::SeqCst), 0);
}
