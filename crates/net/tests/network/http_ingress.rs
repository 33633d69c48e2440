//! HTTP through the ingress, with apps that are played byte by byte.

use crate::*;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n";

/// A tunnel to port 8080 and the listener behind it.
async fn tunnel(network: &Network) -> (TcpStream, TcpListener) {
    let app = listen_inside(network, "127.0.0.1:8080");
    let (status, client) = connect(network, 8080).await;
    assert_eq!(status, 200);
    (client, app)
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Reads until what was read ends with this.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        match timeout(WAIT, stream.read_u8()).await.unwrap() {
            Ok(byte) => got.push(byte),
            Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&got)),
        }
    }
    String::from_utf8(got).unwrap()
}

async fn read_head(stream: &mut TcpStream) -> String {
    read_until(stream, "\r\n\r\n").await
}

/// One exchange on connections that are there; returns what the client got.
async fn exchange(
    client: &mut TcpStream,
    inside: &mut TcpStream,
    request: &str,
    answer: &str,
    end: &str,
) -> String {
    send(client, request).await;
    read_head(inside).await;
    send(inside, answer).await;
    read_until(client, end).await
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn messages_arrive_as_they_were_sent() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST /a%20b?c=%7B HTTP/1.1\r\nHost: x\r\nX-MiXed: 1\r\nX-Twice: 1\r\nX-Twice: 2\r\nContent-Length: 4\r\n\r\nbody",
    )
    .await;
    let got = read_until(&mut inside, "body").await;
    assert_eq!(
        got,
        "POST /a%20b?c=%7B HTTP/1.1\r\nHost: x\r\nX-MiXed: 1\r\nX-Twice: 1\r\nX-Twice: 2\r\nContent-Length: 4\r\n\r\nbody"
    );
    let answer = "HTTP/1.1 207 Quite Fine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-lower: \u{e9}\r\nContent-Length: 2\r\n\r\nok";
    send(&mut inside, answer).await;
    assert_eq!(read_until(&mut client, "\r\n\r\nok").await, answer);
}

#[tokio::test]
async fn what_the_app_closes_costs_no_request() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    for round in 0..3 {
        send(&mut client, GET).await;
        let mut inside = accept(&app).await;
        read_head(&mut inside).await;
        send(&mut inside, HELLO).await;
        assert_eq!(read_until(&mut client, "hello").await, HELLO, "{round}");
        // Without having said so.
        drop(inside);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_app_that_says_close_does_not_close_the_clients_connection() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    for _ in 0..3 {
        let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nKeep-Alive: timeout=5\r\nContent-Length: 5\r\n\r\nhello";
        send(&mut client, GET).await;
        let mut inside = accept(&app).await;
        read_head(&mut inside).await;
        send(&mut inside, answer).await;
        assert_eq!(read_until(&mut client, "hello").await, HELLO);
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    for _ in 0..3 {
        exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
    }
    for _ in 0..3 {
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        exchange(&mut client, &mut inside, post, HELLO, "hello").await;
    }
}

/// The app closes just as the request comes: it has not read it, but that nobody can know.
#[tokio::test]
async fn a_get_is_sent_again_and_a_post_is_not() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
    send(&mut client, GET).await;
    read_head(&mut inside).await;
    drop(inside);
    let mut inside = accept(&app).await;
    assert_eq!(read_head(&mut inside).await, GET);
    send(&mut inside, HELLO).await;
    assert_eq!(read_until(&mut client, "hello").await, HELLO);

    let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n";
    send(&mut client, post).await;
    send(&mut client, "body").await;
    read_until(&mut inside, "body").await;
    drop(inside);
    assert_reset(&mut client).await;
    // Nobody has sent it twice.
    let again = timeout(Duration::from_millis(100), app.accept()).await;
    assert!(again.is_err(), "sent again");
}

#[tokio::test]
async fn a_new_connection_that_breaks_off_is_the_apps_answer() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(&mut client, GET).await;
    read_head(&mut inside).await;
    drop(inside);
    assert_reset(&mut client).await;
}

/// A POST to a connection that has been idle for longer than a moment gets a new one: the app's timer cannot meet it.
#[tokio::test]
async fn a_post_does_not_trust_an_old_connection() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    send(&mut client, post).await;
    let mut second = accept(&app).await;
    read_head(&mut second).await;
    send(&mut second, HELLO).await;
    assert_eq!(read_until(&mut client, "hello").await, HELLO);
    assert_eq!(read_to_end(&mut inside).await.unwrap(), b"");
}

#[tokio::test]
async fn when_nobody_listens_any_more_the_client_hears_it_before_it_asks() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
    drop(app);
    drop(inside);
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;name=value\r\none\r\n",
    )
    .await;
    read_until(&mut inside, "\r\n\r\n3\r\none\r\n").await;
    send(
        &mut inside,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
    )
    .await;
    read_until(&mut client, "\r\n\r\n5\r\nfirst\r\n").await;
    for round in 0..3 {
        send(&mut client, "3\r\ntwo\r\n").await;
        let got = read_until(&mut inside, "\r\n3\r\ntwo\r\n".trim_start()).await;
        assert_eq!(got, "3\r\ntwo\r\n", "{round}");
        send(&mut inside, "6\r\nsecond\r\n").await;
        read_until(&mut client, "6\r\nsecond\r\n").await;
    }
    send(&mut inside, "0\r\n\r\n").await;
    read_until(&mut client, "0\r\n\r\n").await;
    send(&mut client, "0\r\n\r\n").await;
    read_until(&mut inside, "0\r\n\r\n").await;
    // And the connection goes on.
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
}

#[tokio::test]
async fn trailers_arrive() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .await;
    let got = read_until(&mut inside, "1\r\n\r\n").await;
    assert!(
        got.to_lowercase().ends_with("0\r\nx-sum: 1\r\n\r\n"),
        "{got}"
    );
    send(
        &mut inside,
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\nX-Sum: 2\r\n\r\n",
    )
    .await;
    let got = read_until(&mut client, "2\r\n\r\n").await;
    assert!(
        got.to_lowercase().ends_with("0\r\nx-sum: 2\r\n\r\n"),
        "{got}"
    );
}

/// workerd takes the first head for the answer, whatever its status (contract: workerd, 1.5).
#[tokio::test]
async fn early_heads_are_not_passed_on() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let answer = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n{HELLO}"
    );
    let got = exchange(&mut client, &mut inside, GET, &answer, "hello").await;
    assert_eq!(got, HELLO);
}

#[tokio::test]
async fn answers_without_a_body_keep_their_headers() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (request, answer) in [
        (head, "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        (GET, "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"),
        (GET, "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let got = exchange(&mut client, &mut inside, request, answer, "\r\n\r\n").await;
        assert_eq!(got, answer);
    }
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
}

#[tokio::test]
async fn a_head_without_a_length_gets_none() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let answer = "HTTP/1.1 200 OK\r\nX: 1\r\n\r\n";
    let head = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    let got = exchange(&mut client, &mut inside, head, answer, "\r\n\r\n").await;
    assert_eq!(got, answer);
}

#[tokio::test]
async fn apps_of_http_1_0_and_without_length_are_understood() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    for answer in [
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
    ] {
        send(&mut client, GET).await;
        let mut inside = accept(&app).await;
        read_head(&mut inside).await;
        send(&mut inside, answer).await;
        drop(inside);
        let got = read_until(&mut client, "0\r\n\r\n").await;
        assert_eq!(
            got.to_lowercase(),
            "http/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
    }
}

#[tokio::test]
async fn a_broken_answer_is_seen_as_broken() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    // Cut in the middle of a body of known and of unknown length.
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzzz\r\n",
    ] {
        let (_, mut client) = connect(&network, 8080).await;
        let mut inside = accept(&app).await;
        send(&mut client, GET).await;
        read_head(&mut inside).await;
        send(&mut inside, answer).await;
        read_until(&mut client, "hello").await;
        drop(inside);
        let rest = read_to_end(&mut client).await;
        assert_eq!(
            rest.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset,
            "{answer}"
        );
    }
    // Not HTTP at all, or of two lengths.
    for answer in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "HTTP/1.1 two\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad\0Name: 1\r\n\r\n",
    ] {
        let (_, mut client) = connect(&network, 8080).await;
        let mut inside = accept(&app).await;
        send(&mut client, GET).await;
        read_head(&mut inside).await;
        send(&mut inside, answer).await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 502"), "{answer}: {head}");
        let text = read_until(&mut client, "\n").await;
        assert!(text.contains("container's answer"), "{text}");
    }
}

/// A request of which it is not certain where it ends goes nowhere.
#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Bad Name: 1\r\n",
        " Folded: 1\r\n",
    ] {
        let (_, mut client) = connect(&network, 8080).await;
        let mut inside = accept(&app).await;
        send(
            &mut client,
            &format!(
                "POST / HTTP/1.1\r\nHost: x\r\n{headers}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
            ),
        )
        .await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 400"), "{headers}: {head}");
        // Nothing of it has come.
        assert_eq!(
            read_to_end(&mut inside).await.unwrap_or_default(),
            b"",
            "{headers}"
        );
    }
}

/// RFC 9112, 6.3: the length is of the transfer coding then; what is passed on has one meaning only, and nothing comes after it.
#[tokio::test]
async fn of_two_framings_one_is_passed_on() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    let got = read_until(&mut inside, "0\r\n\r\n").await.to_lowercase();
    assert!(!got.contains("content-length"), "{got}");
    send(&mut inside, HELLO).await;
    read_until(&mut client, "hello").await;
    assert_eq!(read_to_end(&mut client).await.unwrap_or_default(), b"");
    let rest = read_to_end(&mut inside).await.unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let requests: String = (0..5)
        .map(|i| format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n"))
        .collect();
    send(&mut client, &requests).await;
    for i in 0..5 {
        let got = read_head(&mut inside).await;
        assert!(got.starts_with(&format!("GET /{i} ")), "{got}");
        send(
            &mut inside,
            &format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{i}"),
        )
        .await;
    }
    for i in 0..5 {
        read_head(&mut client).await;
        assert_eq!(client.read_u8().await.unwrap(), b'0' + i);
    }
}

#[tokio::test]
async fn websockets_become_raw_bytes() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly",
    )
    .await;
    let got = read_head(&mut inside).await.to_lowercase();
    assert!(
        got.contains("connection: upgrade\r\n") && got.contains("upgrade: websocket\r\n"),
        "{got}"
    );
    send(
        &mut inside,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst",
    )
    .await;
    let got = read_until(&mut client, "\r\n\r\nfirst").await;
    assert!(got.starts_with("HTTP/1.1 101 "), "{got}");
    read_until(&mut inside, "early").await;
    send(&mut client, "\x01\x02").await;
    read_until(&mut inside, "\x01\x02").await;
    inside.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
    send(&mut client, "last").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut inside).await.unwrap(), b"last");
}

#[tokio::test]
async fn an_upgrade_that_is_not_granted_is_an_answer() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let request =
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let got = exchange(&mut client, &mut inside, request, HELLO, "hello").await;
    assert_eq!(got, HELLO);
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(&mut inside, "220 mail ready\r\n").await;
    read_until(&mut client, "220 mail ready\r\n").await;
    // It stays raw, whatever comes.
    send(&mut client, GET).await;
    read_until(&mut inside, GET).await;
    send(&mut inside, "not http").await;
    read_until(&mut client, "not http").await;
}

#[tokio::test]
async fn other_protocols_are_raw() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    for bytes in [
        "\x16\x03\x01\x02",
        "*1\r\n$4\r\nPING\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\n\r\n",
        // Half a request line, perhaps: an answer is awaited all the same.
        "HELO",
    ] {
        let (_, mut client) = connect(&network, 8080).await;
        let mut inside = accept(&app).await;
        send(&mut client, bytes).await;
        assert_eq!(read_until(&mut inside, bytes).await, bytes);
        send(&mut inside, "pong").await;
        read_until(&mut client, "pong").await;
    }
}

#[tokio::test]
async fn a_request_line_may_come_in_pieces() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    for byte in GET.bytes() {
        client.write_all(&[byte]).await.unwrap();
    }
    let mut inside = accept(&app).await;
    assert_eq!(read_head(&mut inside).await, GET);
    send(&mut inside, HELLO).await;
    read_until(&mut client, "hello").await;
}

/// The client goes away: so does the request, and the app can stop working on it.
#[tokio::test]
async fn the_app_hears_that_a_client_has_gone() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    for cut in [false, true] {
        let (_, mut client) = connect(&network, 8080).await;
        let mut inside = accept(&app).await;
        send(&mut client, GET).await;
        read_head(&mut inside).await;
        if cut {
            client.set_zero_linger().unwrap();
        }
        drop(client);
        assert_eq!(read_to_end(&mut inside).await.unwrap_or_default(), b"");
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_answer() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody",
    )
    .await;
    client.shutdown().await.unwrap();
    let got = read_to_end(&mut inside).await.unwrap();
    let got = String::from_utf8_lossy(&got);
    assert!(got.ends_with("\r\n\r\nbody"), "{got}");
    send(&mut inside, HELLO).await;
    assert_eq!(read_to_end(&mut client).await.unwrap(), HELLO.as_bytes());
}

#[tokio::test]
async fn a_body_that_ends_early_is_cut() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\nbody",
    )
    .await;
    read_until(&mut inside, "body").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut inside).await.unwrap_or_default(), b"");
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_arrives() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\nbody",
    )
    .await;
    read_until(&mut inside, "body").await;
    send(
        &mut inside,
        "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\n\r\nenoug",
    )
    .await;
    let got = read_until(&mut client, "enoug").await;
    assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
}

#[tokio::test]
async fn large_bodies_arrive_whole_both_ways() {
    const SIZE: usize = 64 << 20;
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let pattern: Vec<u8> = (0..1usize << 20)
        .map(|i| (i * 31 + i / 4096) as u8)
        .collect();
    let app_side = tokio::spawn({
        let pattern = pattern.clone();
        async move {
            read_head(&mut inside).await;
            let mut buffer = vec![0; pattern.len()];
            for _ in 0..SIZE / pattern.len() {
                inside.read_exact(&mut buffer).await.unwrap();
                assert!(buffer == pattern);
            }
            send(
                &mut inside,
                &format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"),
            )
            .await;
            for _ in 0..SIZE / pattern.len() {
                inside.write_all(&pattern).await.unwrap();
            }
            inside
        }
    });
    send(
        &mut client,
        &format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"),
    )
    .await;
    for _ in 0..SIZE / pattern.len() {
        client.write_all(&pattern).await.unwrap();
    }
    read_head(&mut client).await;
    let mut buffer = vec![0; pattern.len()];
    for _ in 0..SIZE / pattern.len() {
        timeout(WAIT, client.read_exact(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(buffer == pattern);
    }
    let mut inside = app_side.await.unwrap();
    exchange(&mut client, &mut inside, GET, HELLO, "hello").await;
}

/// What a slow client does not take, the app cannot send: nothing piles up between them.
#[tokio::test]
async fn a_slow_client_holds_the_app_up() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(&mut client, GET).await;
    read_head(&mut inside).await;
    send(
        &mut inside,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    .await;
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), inside.write_all(&chunk)).await {
        written.unwrap();
        sent += chunk.len();
        // Buffers of four sockets, and of hyper.
        assert!(sent < 64 << 20, "nobody reads, and {sent} bytes went away");
    }
    // And it goes on.
    let mut got = 0;
    let mut buffer = vec![0; 1 << 20];
    while got < sent {
        got += timeout(WAIT, client.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
    }
}

fn many(count: usize) -> String {
    (0..count).map(|n| format!("x-{n}: v\r\n")).collect()
}

#[tokio::test]
async fn a_thousand_small_headers_pass_both_ways() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", many(1000));
    send(&mut client, &request).await;
    assert_eq!(read_head(&mut inside).await, request);
    let answer = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", many(1000));
    send(&mut inside, &answer).await;
    assert_eq!(read_head(&mut client).await, answer);
}

#[tokio::test]
async fn an_answer_with_too_large_a_head_is_a_502_that_says_so() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    send(&mut client, GET).await;
    read_head(&mut inside).await;
    let big = "v".repeat(500 * 1024);
    let answer = format!("HTTP/1.1 200 OK\r\nX: {big}\r\nContent-Length: 0\r\n\r\n");
    // The ingress stops reading when it has seen enough.
    let (_, seen) = tokio::join!(
        inside.write_all(answer.as_bytes()),
        read_until(&mut client, "24000.\n")
    );
    assert!(seen.starts_with("HTTP/1.1 502 "), "{seen}");
    assert!(seen.contains("headers larger than 256 KiB"), "{seen}");
}

/// workerd would join them with a comma, which no program can read as a date.
#[tokio::test]
async fn a_repeated_date_of_an_app_reaches_workerd_once() {
    let network = network(config()).await;
    let (mut client, app) = tunnel(&network).await;
    let mut inside = accept(&app).await;
    let answer = "HTTP/1.1 200 OK\r\nDate: Wed, 09 Jun 2027 10:18:14 GMT\r\nDate: Thu, 10 Jun 2027 10:18:14 GMT\r\n\
                  Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nWWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\n\
                  Content-Length: 0\r\n\r\n";
    let got = exchange(&mut client, &mut inside, GET, answer, "\r\n\r\n").await;
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\nDate: Wed, 09 Jun 2027 10:18:14 GMT\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         WWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n"
    );
}
