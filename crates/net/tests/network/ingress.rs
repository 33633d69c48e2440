use std::time::Instant;

use wharf_net::Target;

use crate::*;

#[tokio::test]
async fn a_connection_is_held_until_the_app_listens() {
    for addr in ["127.0.0.1:8080", "0.0.0.0:8080", "[::1]:8080"] {
        let network = network(config()).await;
        let held = tokio::spawn({
            let network = network.clone();
            async move { connect(&network, 8080).await }
        });
        network.set_target(Target::Running(Instant::now()));
        // Wherever in the hold this falls, the outcome is the same.
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!held.is_finished());
        let app = listen_inside(&network, addr);
        let mut inside = accept(&app).await;
        let (status, mut client) = held.await.unwrap();
        assert_eq!(status, 200, "{addr}");
        client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        inside.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
    }
}

#[tokio::test]
async fn a_port_that_never_listens_is_refused_after_the_bound() {
    let network = network(NetConfig {
        hold_ms: 60,
        ..config()
    })
    .await;
    network.set_target(Target::Running(Instant::now()));
    let (status, rest) = connect(&network, 4321).await;
    assert_eq!(status, 503);
    let text = body(rest).await;
    // As workerd says it, and as @cloudflare/containers understands it.
    assert!(
        text.starts_with("Container is not listening to port 4321"),
        "{text}"
    );
    assert!(text.contains("the container is not listening"), "{text}");
    // The app may still come later.
    let app = listen_inside(&network, "127.0.0.1:4321");
    assert_eq!(connect(&network, 4321).await.0, 200);
    accept(&app).await;
}

#[tokio::test]
async fn a_container_that_has_ended_is_refused_at_once_also_for_those_who_wait() {
    // The bound is longer than any test waits.
    let network = network(NetConfig {
        hold_ms: 3_600_000,
        ..config()
    })
    .await;
    let waiting = tokio::spawn({
        let network = network.clone();
        async move { connect(&network, 8080).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    network.set_target(Target::Ended("exit code 1".into()));
    for (status, rest) in [waiting.await.unwrap(), connect(&network, 8080).await] {
        assert_eq!(status, 503);
        let text = body(rest).await;
        assert!(text.contains("it has ended: exit code 1"), "{text}");
    }
    // A new start in the same network.
    network.set_target(Target::Pending);
    let app = listen_inside(&network, "127.0.0.1:8080");
    assert_eq!(connect(&network, 8080).await.0, 200);
    accept(&app).await;
}

#[tokio::test]
async fn each_way_ends_for_itself() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");

    let (_, mut client) = connect(&network, 8080).await;
    let mut inside = accept(&app).await;
    client.write_all(b"all I have").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut inside).await.unwrap(), b"all I have");
    inside.write_all(b"the answer").await.unwrap();
    inside.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"the answer");

    let (_, mut client) = connect(&network, 8080).await;
    let mut inside = accept(&app).await;
    inside.write_all(b"hello").await.unwrap();
    inside.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"hello");
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut inside).await.unwrap(), b"bye");
}

#[tokio::test]
async fn ten_megabytes_each_way_at_once_arrive_whole() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    let (_, client) = connect(&network, 8080).await;
    let inside = accept(&app).await;
    let pattern = |seed: usize| -> Vec<u8> {
        (0..10 << 20)
            .map(|i| (i * 31 + i / 4096 + seed) as u8)
            .collect()
    };
    let exchange = |stream: TcpStream, sent: Vec<u8>| async move {
        let (mut read, mut write) = stream.into_split();
        let sending = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        timeout(WAIT * 3, read.read_to_end(&mut got))
            .await
            .unwrap()
            .unwrap();
        sending.await.unwrap();
        got
    };
    let (down, up) = tokio::join!(exchange(client, pattern(1)), exchange(inside, pattern(2)));
    assert!(down == pattern(2), "what the client got");
    assert!(up == pattern(1), "what the app got");
}

#[tokio::test]
async fn bytes_sent_right_behind_the_request_are_not_lost() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    let (status, _client) = request(
        &network,
        "CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: x\r\n\r\nearly bird",
    )
    .await;
    assert_eq!(status, 200);
    let mut got = [0; 10];
    accept(&app).await.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"early bird");
}

#[tokio::test]
async fn when_one_side_is_cut_the_other_is_too() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    let (_, client) = connect(&network, 8080).await;
    let mut inside = accept(&app).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_reset(&mut inside).await;

    let (_, mut client) = connect(&network, 8080).await;
    let inside = accept(&app).await;
    inside.set_zero_linger().unwrap();
    drop(inside);
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn many_connections_at_once_all_arrive() {
    let network = network(config()).await;
    let app = listen_inside(&network, "127.0.0.1:8080");
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let network = network.clone();
            tokio::spawn(async move { connect(&network, 8080).await })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap().0, 200);
    }
    for _ in 0..100 {
        accept(&app).await;
    }
}

#[tokio::test]
async fn the_sidecars_other_calls_are_answered() {
    let network = network(config()).await;
    let (status, rest) = request(&network, "GET /ca HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(status, 200);
    let pem = body(rest).await;
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    assert_eq!(pem, network.ca().pem());

    let all = r#"{"port":39123,"dns":{"allowHostnames":["*.example.com"]},"internet":{"enabled":true},"later":1}"#;
    assert_eq!(put_egress(&network, all).await, 204);
    assert!(network.policy().internet);
    // What is absent stays.
    assert_eq!(put_egress(&network, r#"{"port":39124}"#).await, 204);
    assert!(network.policy().internet);
    assert_eq!(network.egress().port, Some(39124));
    assert_eq!(network.egress().allow_hostnames, ["*.example.com"]);
    assert_eq!(
        put_egress(&network, r#"{"internet":{"enabled":false}}"#).await,
        204
    );
    assert!(!network.policy().internet);

    assert_eq!(put_egress(&network, "{").await, 400);
    let (status, rest) = request(&network, "GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(status, 404);
    assert!(body(rest).await.contains("PUT /egress"));
}

#[tokio::test]
async fn what_is_not_inside_cannot_be_asked_for() {
    let network = network(config()).await;
    let (status, _) = request(
        &network,
        "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: x\r\nX-Dst-Addr: 192.0.2.1:80\r\n\r\n",
    )
    .await;
    assert_eq!(status, 422);
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let network = network(config()).await;
    // More than is allowed, and little enough to be sent before the answer comes.
    let filler = "a".repeat(20 * 1024);
    let (status, _) = request(
        &network,
        &format!("GET /ca HTTP/1.1\r\nX: {filler}\r\n\r\n"),
    )
    .await;
    assert_eq!(status, 431);
}

#[tokio::test]
async fn dialling_directly_does_not_wait() {
    let network = network(config()).await;
    let error = network.dial(8080).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let app = listen_inside(&network, "[::1]:8080");
    network.dial(8080).await.unwrap();
    accept(&app).await;
}

#[tokio::test]
async fn a_client_that_gives_up_is_held_no_longer() {
    let network = network(NetConfig {
        hold_ms: 3_600_000,
        ..config()
    })
    .await;
    let mut client = TcpStream::connect(network.ingress()).await.unwrap();
    client
        .write_all(b"CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
}

/// What `GET /ca` gives to a program of this user; nothing if the ingress hangs up.
fn ask_as(uid: u32, network: &Network) -> String {
    use std::os::unix::process::CommandExt;
    let port = network.ingress().port().to_string();
    let mut nc = std::process::Command::new("/bin/busybox")
        .args(["nc", "-w", "10", "127.0.0.1", &port])
        .uid(uid)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = nc.stdin.take().unwrap();
    // It may have been hung up on.
    let _ = std::io::Write::write_all(
        &mut input,
        b"GET /ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut nc.stdout.take().unwrap(), &mut answer).unwrap();
    drop(input);
    nc.wait().unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_on_the_hosts_loopback_is_roots_alone() {
    let network = network(config()).await;
    for (uid, served) in [(0, true), (2_000_001, false)] {
        let network = network.clone();
        let answer = tokio::task::spawn_blocking(move || ask_as(uid, &network));
        let answer = answer.await.unwrap();
        assert_eq!(
            answer.contains("BEGIN CERTIFICATE"),
            served,
            "{uid}: {answer}"
        );
        assert!(served || answer.is_empty(), "{answer}");
    }
}

/// What `GET /ca` gives in the network of a workerd; the error of the connection.
async fn ask_in(worker: &Network, address: SocketAddr) -> io::Result<String> {
    let mut stream = connect_inside(worker, &address.to_string()).await?;
    stream
        .write_all(b"GET /ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ingress_of_a_workers_container_is_in_its_workerds_network_alone() {
    let networks = Networks::with_dialer(config(), Arc::new(World::default()));
    let (one, two) = (
        networks.create_for_worker().await.unwrap(),
        networks.create_for_worker().await.unwrap(),
    );
    assert!(one.ingress().ip().is_unspecified());
    let network = networks.of_worker(one.clone()).create().await.unwrap();
    let refused = |result: io::Result<String>| {
        let kind = result.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::ConnectionRefused);
    };
    let first = network.ingress();
    let answer = ask_in(&one, first).await.unwrap();
    assert!(answer.contains("BEGIN CERTIFICATE"), "{answer}");
    refused(ask_in(&two, first).await);
    assert!(TcpStream::connect(first).await.is_err(), "the host's root");
    // Claimed again, nothing changes.
    networks
        .of_worker(one.clone())
        .claim(&network)
        .await
        .unwrap();
    assert_eq!(network.ingress(), first);

    // The next process finds it, and the one before does not any more.
    networks
        .of_worker(two.clone())
        .claim(&network)
        .await
        .unwrap();
    let second = network.ingress();
    let answer = ask_in(&two, second).await.unwrap();
    assert!(answer.contains("BEGIN CERTIFICATE"), "{answer}");
    refused(ask_in(&one, first).await);

    // It goes with its process. An adopted container's is on the host, until somebody claims it.
    let namespace = two.namespace().unwrap();
    drop(two);
    let gone = tokio::task::spawn_blocking(move || {
        netns::run_inside(namespace.as_fd(), || {
            while std::net::TcpStream::connect(second).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    });
    timeout(WAIT, gone).await.unwrap().unwrap().unwrap();
    networks.claim(&network).await.unwrap();
    let (status, _) = request(&network, "GET /ca HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(status, 200);
}
