//! Limits on what a container sends and receives. That something takes at least so long is no matter of the machine's speed.

use std::time::{Duration, Instant};

use crate::*;

const RATE: u64 = 4_000_000;
const BYTES: usize = 2_000_000;
/// Half a second, less what goes at once, and what goes last and is waited for by nobody.
const AT_LEAST: Duration = Duration::from_millis(300);

/// Sends on one connection what is read on the other; how long it took.
async fn carried(from: &mut TcpStream, to: &mut TcpStream) -> Duration {
    let begin = Instant::now();
    let bytes = vec![7; BYTES];
    let send = async {
        from.write_all(&bytes).await.unwrap();
        begin
    };
    let mut got = vec![0; BYTES];
    let receive = async { to.read_exact(&mut got).await.unwrap() };
    timeout(WAIT, async { tokio::join!(send, receive) })
        .await
        .unwrap();
    begin.elapsed()
}

#[tokio::test]
async fn what_goes_out_and_comes_in_is_limited_each_way() {
    const WEB: &str = "203.0.113.5:80";
    let (server, world) = crate::outbound::server(&[WEB]).await;
    let (network, _world) = in_world(config(), world).await;
    network.set_policy(wharf_net::Policy { internet: true });
    network.limit_bandwidth(Some(RATE));
    let mut app = connect_inside(&network, WEB).await.unwrap();
    let mut outside = accept(&server).await;
    let sent = carried(&mut app, &mut outside).await;
    assert!(sent >= AT_LEAST, "{sent:?}");
    let received = carried(&mut outside, &mut app).await;
    assert!(received >= AT_LEAST, "{received:?}");
}

#[tokio::test]
async fn two_connections_share_the_limit() {
    let network = network(config()).await;
    network.limit_bandwidth(Some(RATE));
    let listener = listen_inside(&network, "127.0.0.1:8080");
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (status, mut client) = connect(&network, 8080).await;
        assert_eq!(status, 200);
        let mut app = accept(&listener).await;
        // Not HTTP.
        app.write_all(b"hello").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
        ends.push((app, client));
    }
    let [(app, client), (other_app, other_client)] = &mut ends[..] else {
        unreachable!()
    };
    let begin = Instant::now();
    tokio::join!(carried(app, client), carried(other_app, other_client));
    assert!(begin.elapsed() >= AT_LEAST * 2, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn http_is_limited_too() {
    let network = network(config()).await;
    network.limit_bandwidth(Some(RATE));
    let listener = listen_inside(&network, "127.0.0.1:8080");
    let (_, mut client) = connect(&network, 8080).await;
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {BYTES}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut app = accept(&listener).await;
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(timeout(WAIT, app.read_u8()).await.unwrap().unwrap());
    }
    let received = carried(&mut client, &mut app).await;
    assert!(received >= AT_LEAST, "{received:?}");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
    app.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(timeout(WAIT, client.read_u8()).await.unwrap().unwrap());
    }
    let sent = carried(&mut app, &mut client).await;
    assert!(sent >= AT_LEAST, "{sent:?}");
}
