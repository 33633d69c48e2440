//! What a client meets: routing, headers, malformed requests, limits.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::common::{config, gateway, mirror, read_request};

const GET: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";

#[tokio::test]
async fn a_request_reaches_the_script_that_its_host_names() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    it.worker("other", 2, mirror);
    let reply = it
        .ask("GET /a/b?c=d HTTP/1.1\r\nHost: HELLO.localhost:1234\r\nAccept: */*\r\n\r\n")
        .await;
    assert_eq!(reply.status, 200);
    let text = reply.text();
    assert!(text.contains("GET /a/b?c=d HTTP/1.1\r\n"), "{text}");
    assert!(text.contains("host: HELLO.localhost:1234\r\n"), "{text}");
    assert!(text.contains("accept: */*\r\n"), "{text}");
}

#[tokio::test]
async fn who_the_client_is_comes_from_the_gateway_alone() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let reply = it
        .ask(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nCF-Connecting-IP: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
             X-Forwarded-Proto: https\r\nForwarded: for=6.6.6.6\r\nCF-Ray: x\r\nCF-IPCountry: AQ\r\nCF-Visitor: x\r\nX-Internal-CF: {}\r\n\
             X-Kept: 1\r\n\r\n",
        )
        .await;
    let text = reply.text();
    assert!(!text.contains("6.6.6.6") && !text.contains("AQ"), "{text}");
    assert!(!text.contains("x-internal-cf"), "{text}");
    assert!(text.contains("cf-connecting-ip: 127.0.0.1\r\n"), "{text}");
    assert!(text.contains("x-forwarded-for: 127.0.0.1\r\n"), "{text}");
    assert!(text.contains("x-forwarded-proto: http\r\n"), "{text}");
    assert!(text.contains("x-kept: 1\r\n"), "{text}");
    let ray = reply.header("cf-ray").unwrap();
    assert!(text.contains(&format!("cf-ray: {ray}\r\n")), "{text}");
    assert_eq!(ray.len(), "0123456789abcdef-WHF".len());
}

#[tokio::test]
async fn an_unknown_host_is_told_what_exists_only_in_dev() {
    let dev = gateway(config()).await;
    dev.worker("hello", 1, mirror);
    for host in ["nobody.localhost", "localhost", "127.0.0.1:8080"] {
        let reply = dev
            .ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .await;
        assert_eq!(reply.status, 404);
        let link = format!("http://hello.localhost:{}", dev.address.port());
        assert!(reply.text().contains(&link), "{}", reply.text());
        assert!(reply.text().contains("wharf wrangler deploy"));
        assert!(reply.header("cf-ray").is_some());
    }
    let mut settings = config();
    settings.dev = false;
    let real = gateway(settings).await;
    real.worker("hello", 1, mirror);
    let reply = real
        .ask("GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
        .await;
    assert_eq!(reply.status, 404);
    assert!(!reply.text().contains("hello"), "{}", reply.text());
}

#[tokio::test]
async fn a_worker_without_an_address_is_not_served_and_strangers_do_not_learn_of_it() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    it.worker("other", 2, mirror);
    it.scripts
        .private
        .lock()
        .unwrap()
        .insert("hello".to_owned());
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 404);
    assert!(
        reply.text().contains("\"workers_dev\" is false"),
        "{}",
        reply.text()
    );
    let reply = it
        .ask("GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
        .await;
    assert!(reply.text().contains("http://other.localhost"));
    assert!(!reply.text().contains("http://hello.localhost"));

    let mut settings = config();
    settings.dev = false;
    let real = gateway(settings).await;
    real.worker("hello", 1, mirror);
    real.scripts
        .private
        .lock()
        .unwrap()
        .insert("hello".to_owned());
    let reason = |reply: &crate::common::Reply| {
        let text = reply.text();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let private = real.ask(GET).await;
    let unknown = real
        .ask("GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
        .await;
    assert_eq!(private.status, 404);
    assert_eq!(reason(&private), reason(&unknown));
    assert_eq!(
        real.scripts.acquired.load(Ordering::SeqCst),
        1,
        "only for the unknown host"
    );

    real.scripts.private.lock().unwrap().clear();
    assert_eq!(real.ask(GET).await.status, 200);
}

#[tokio::test]
async fn a_broken_worker_is_a_503_with_the_reason() {
    let it = gateway(config()).await;
    it.scripts
        .set("hello", Err("Uncaught SyntaxError".to_owned()));
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    assert!(reply.text().contains("Uncaught SyntaxError"));
    let reply = it
        .ask("GET / HTTP/1.1\r\nHost: hello.localhost\r\nAccept: application/json\r\n\r\n")
        .await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert!(reply.text().starts_with("{\"error\":{"), "{}", reply.text());
}

#[tokio::test]
async fn a_process_that_is_gone_is_a_502() {
    let it = gateway(config()).await;
    it.scripts.set("hello", Ok((it.gone(), 1)));
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("is gone"), "{}", reply.text());
    assert_eq!(it.scripts.held.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_process_that_is_back_in_a_moment_is_waited_for() {
    let it = gateway(config()).await;
    it.scripts.set("hello", Ok((it.gone(), 1)));
    let mut client = it.connect().await;
    client
        .send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    crate::common::until(|| it.scripts.acquired.load(Ordering::SeqCst) == 1).await;
    it.worker("hello", 2, mirror);
    let reply = client.reply().await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().ends_with("abc"), "{}", reply.text());
}

#[tokio::test]
async fn a_worker_that_closes_without_an_answer_is_a_502_and_runs_once() {
    let it = gateway(config()).await;
    let (seen, mut runs) = tokio::sync::mpsc::unbounded_channel();
    it.worker("hello", 1, move |mut stream, _| {
        let seen = seen.clone();
        async move {
            read_request(&mut stream, &mut Vec::new()).await;
            seen.send(()).unwrap();
        }
    });
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 502);
    assert!(
        reply
            .text()
            .contains("closed the connection without a response")
    );
    assert!(runs.recv().await.is_some());
    assert!(runs.try_recv().is_err(), "a first try is not repeated");
}

#[tokio::test]
async fn a_process_that_ended_under_a_request_is_a_503_with_the_reason_and_gets_it_once() {
    let it = gateway(config()).await;
    *it.scripts.end_reason.lock().unwrap() = Some("error 1102, a loop".to_owned());
    let (seen, mut runs) = tokio::sync::mpsc::unbounded_channel();
    it.worker("hello", 1, move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let mut read = Vec::new();
            read_request(&mut stream, &mut read).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
            read_request(&mut stream, &mut read).await;
            seen.send(()).unwrap();
        }
    });
    assert_eq!(it.ask(GET).await.status, 200);
    // On the connection that was kept, where it could be repeated.
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 503);
    let text = reply.text();
    assert!(
        text.contains("hello") && text.contains("error 1102, a loop"),
        "{text}"
    );
    assert!(runs.recv().await.is_some());
    assert!(runs.try_recv().is_err(), "it would end the next one too");
}

#[tokio::test]
async fn a_response_that_is_not_http_is_a_502() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        stream.write_all(b"SSH-2.0-oops\r\n\r\n").await.unwrap();
    });
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("not valid HTTP"), "{}", reply.text());
}

#[tokio::test]
async fn malformed_requests_are_refused_and_never_reach_a_worker() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let cases: &[(u16, &str)] = &[
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.0\r\n\r\n"),
        (
            400,
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nHost: hello.localhost\r\n\r\n",
        ),
        (400, "GET / HTTP/1.1\r\nHost: hello.localhost/x\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a@hello.localhost\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : hello.localhost\r\n\r\n"),
        (
            400,
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\r\n b\r\n\r\n",
        ),
        (
            400,
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX\0: a\r\n\r\n",
        ),
        (400, "GET /\u{1} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"),
        (400, "GET / HTTP/9.9\r\nHost: hello.localhost\r\n\r\n"),
        (400, "OPTIONS * HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"),
        (
            405,
            "CONNECT hello.localhost:80 HTTP/1.1\r\nHost: hello.localhost:80\r\n\r\n",
        ),
        (
            417,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\nx",
        ),
        (
            501,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ),
        // Request smuggling: what two servers might read as different lengths.
        (
            400,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        ),
        (
            400,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: +3\r\n\r\nabc",
        ),
        (
            400,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 3, 3\r\n\r\nabc",
        ),
        (
            400,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            400,
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        ),
        (
            400,
            "POST / HTTP/1.0\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ];
    for (status, request) in cases {
        let reply = it.ask(request).await;
        assert_eq!(reply.status, *status, "{request:?}");
    }
    assert_eq!(it.scripts.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_length_beside_chunks_cannot_smuggle_a_request() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let mut client = it.connect().await;
    // By Content-Length the body would be "0\r\n\r\nG"; by chunks it is empty and a second request follows.
    client
        .send(
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: hello.localhost\r\n\r\n",
        )
        .await;
    let reply = client.reply().await;
    let text = reply.text();
    assert_eq!(reply.status, 200);
    assert!(!text.contains("content-length"), "{text}");
    assert!(!text.contains("smuggled"), "{text}");
    assert_eq!(client.rest().await, b"", "the connection is not used again");
}

#[tokio::test]
async fn bad_chunks_break_the_request_off() {
    for chunk in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "3;\nx\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
    ] {
        let it = gateway(config()).await;
        let (whole, mut got) = tokio::sync::mpsc::unbounded_channel();
        it.worker("hello", 1, move |mut stream, _| {
            let whole = whole.clone();
            async move {
                let mut bytes = Vec::new();
                while crate::common::fill(&mut stream, &mut bytes).await {}
                whole.send(bytes).unwrap();
            }
        });
        let mut client = it.connect().await;
        client
            .send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        client.send(chunk).await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{chunk:?}: {answer}"
        );
        let bytes = tokio::select! {
            bytes = got.recv() => bytes.unwrap(),
            () = tokio::time::sleep(Duration::from_secs(1)) => Vec::new(),
        };
        assert!(
            !bytes.ends_with(b"0\r\n\r\n"),
            "{chunk:?} was passed on as whole"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_431() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let big = "x".repeat(17 * 1024);
    let reply = it
        .ask(&format!(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: {big}\r\n\r\n"
        ))
        .await;
    assert_eq!(reply.status, 431);
    let fits = "x".repeat(15 * 1024);
    let reply = it
        .ask(&format!(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: {fits}\r\n\r\n"
        ))
        .await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    let mut settings = config();
    settings.idle_timeout_ms = 200;
    let it = gateway(settings).await;
    it.worker("hello", 1, mirror);

    let mut slow = it.connect().await;
    let dribble = async {
        for byte in GET.bytes().cycle().take(GET.len() - 1) {
            if slow.stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        slow.rest().await
    };
    let mut idle = it.connect().await;
    idle.send(GET).await;
    assert_eq!(idle.reply().await.status, 200);
    let (slow, rest) = tokio::join!(dribble, idle.rest());
    assert!(slow.is_empty() || slow.starts_with(b"HTTP/1.1 408"));
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_worker_may_take_longer_than_the_idle_timeout() {
    let mut settings = config();
    settings.idle_timeout_ms = 100;
    let it = gateway(settings).await;
    it.worker("hello", 1, |mut stream, _| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await
            .unwrap();
    });
    assert_eq!(it.ask(GET).await.text(), "ok");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let mut settings = config();
    settings.max_connections = 2;
    let it = gateway(settings).await;
    it.worker("hello", 1, mirror);
    let mut first = it.connect().await;
    first.send(GET).await;
    assert_eq!(first.reply().await.status, 200);
    let mut second = it.connect().await;
    second.send(GET).await;
    assert_eq!(second.reply().await.status, 200);

    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().ends_with("too many connections are open"));

    drop(first);
    loop {
        if it.ask(GET).await.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_absolute_form_target_is_its_own_host() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let reply = it
        .ask("GET http://hello.localhost/x?y HTTP/1.1\r\nHost: other.localhost\r\n\r\n")
        .await;
    let text = reply.text();
    assert!(text.contains("GET /x?y HTTP/1.1\r\n"), "{text}");
    assert!(text.contains("host: hello.localhost\r\n"), "{text}");
}

#[tokio::test]
async fn several_cookie_headers_reach_the_worker_as_one() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let reply = it
        .ask(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\nCookie: a=1\r\nX: 1\r\nCookie: b=2; c=3\r\n\
             X: 2\r\nUser-Agent: one\r\nUser-Agent: two\r\n\r\n",
        )
        .await;
    let text = reply.text();
    assert!(text.contains("cookie: a=1; b=2; c=3\r\n"), "{text}");
    assert_eq!(text.matches("cookie:").count(), 1, "{text}");
    assert!(text.contains("user-agent: one\r\n"), "{text}");
    assert_eq!(text.matches("user-agent:").count(), 1, "{text}");
    assert!(
        text.contains("x: 1\r\n") && text.contains("x: 2\r\n"),
        "{text}"
    );
}

#[tokio::test]
async fn headers_that_contradict_each_other_are_refused_by_name() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    for (name, one, other) in [
        ("authorization", "Basic YQ==", "Basic Yg=="),
        ("origin", "http://a.example", "http://b.example"),
        (
            "if-modified-since",
            "Wed, 09 Jun 2027 10:18:14 GMT",
            "Thu, 10 Jun 2027 10:18:14 GMT",
        ),
    ] {
        let ask = async |first: &str, second: &str| {
            it.ask(&format!(
                "GET / HTTP/1.1\r\nHost: hello.localhost\r\n{name}: {first}\r\n{name}: {second}\r\n\r\n"
            ))
            .await
        };
        let reply = ask(one, other).await;
        assert_eq!(reply.status, 400);
        assert!(reply.text().contains(name), "{}", reply.text());
        let reply = ask(one, one).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text().matches(&format!("{name}:")).count(), 1);
    }
}

#[tokio::test]
async fn several_set_cookie_headers_reach_the_client_as_several() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        let reply = "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Expires=Wed, 09 Jun 2027 10:18:14 GMT\r\n\
                     Set-Cookie: b=2\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(reply.as_bytes()).await.unwrap();
    });
    let reply = it.ask(GET).await;
    let cookies: Vec<_> = reply
        .head
        .lines()
        .filter_map(|line| line.strip_prefix("set-cookie: "))
        .collect();
    assert_eq!(
        cookies,
        ["a=1; Expires=Wed, 09 Jun 2027 10:18:14 GMT", "b=2"]
    );
}

fn many(count: usize) -> String {
    (0..count).map(|n| format!("x-{n}: v\r\n")).collect()
}

#[tokio::test]
async fn a_thousand_small_headers_and_trailers_pass_both_ways() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        let (head, body) = read_request(&mut stream, &mut Vec::new()).await.unwrap();
        let seen = head.lines().filter(|line| line.starts_with("x-")).count();
        let reply = format!(
            "HTTP/1.1 200 OK\r\nX-Seen: {seen} {}\r\n{}Transfer-Encoding: chunked\r\n\
             Trailer: {}\r\n\r\n2\r\nok\r\n0\r\n{}\r\n",
            body.len(),
            many(1000),
            (0..1000).map(|n| format!("x-{n},")).collect::<String>(),
            many(1000)
        );
        stream.write_all(reply.as_bytes()).await.unwrap();
    });
    let mut client = it.connect().await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTE: trailers\r\n{}Content-Length: 2\r\n\r\nhi",
        many(1000)
    );
    client.send(request).await;
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    // The gateway itself sets x-forwarded-for, x-forwarded-proto and x-real-ip.
    assert!(head.contains("x-seen: 1003 2\r\n"), "{head}");
    assert!(head.contains("\r\nx-0: v\r\n") && head.contains("\r\nx-999: v\r\n"));
    let end = "x-999: v\r\n\r\n";
    while !client.buffer.ends_with(end.as_bytes()) {
        let seen = String::from_utf8_lossy(&client.buffer).into_owned();
        assert!(
            crate::common::fill(&mut client.stream, &mut client.buffer).await,
            "{seen}"
        );
    }
}

#[tokio::test]
async fn more_small_headers_than_the_bound_on_bytes_allows_are_a_431() {
    let it = gateway(config()).await;
    it.worker("hello", 1, mirror);
    let headers = many(2000);
    assert!(headers.len() > config().max_header_bytes);
    let reply = it
        .ask(&format!(
            "GET / HTTP/1.1\r\nHost: hello.localhost\r\n{headers}\r\n"
        ))
        .await;
    assert_eq!(reply.status, 431);
}

#[tokio::test]
async fn a_response_with_too_large_a_head_is_a_502_that_says_so() {
    let it = gateway(config()).await;
    it.worker("hello", 1, |mut stream, _| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        let big = "v".repeat(300 * 1024);
        let reply = format!("HTTP/1.1 200 OK\r\nX: {big}\r\nContent-Length: 0\r\n\r\n");
        // The gateway stops reading when it has seen enough.
        let _ = stream.write_all(reply.as_bytes()).await;
    });
    let reply = it.ask(GET).await;
    assert_eq!(reply.status, 502);
    assert!(
        reply.text().contains("headers are larger than 256 KiB"),
        "{}",
        reply.text()
    );
}
