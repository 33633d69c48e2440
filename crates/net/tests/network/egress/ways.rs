//! Which way a connection goes.

use super::*;

const WEB: &str = "203.0.113.5:80";
const WEB6: &str = "[2001:db8::5]:80";

/// A Worker with an HTTP mapping for `a.example` on any port.
fn a_example(question: &workerd::Question) -> Verdict {
    match question.host.as_deref() {
        Some("a.example" | "a.example:8080") => Verdict::Http,
        _ => Verdict::Nothing,
    }
}

#[tokio::test]
async fn a_mapped_host_is_the_workers_whatever_the_address_and_the_port() {
    let workerd = Workerd::new(a_example).await;
    let (_outside, world) = server(&[WEB, WEB6]).await;
    let (network, world) = mapped(&workerd, &["a.example"], true, world).await;
    for address in [WEB, WEB6, "203.0.113.5:8080"] {
        let answer = get(&network, address, "a.example").await;
        assert!(
            answer.contains("worker saw GET /x host=a.example"),
            "{answer}"
        );
    }
    let asked: Vec<_> = workerd.asked().into_iter().map(|q| q.to).collect();
    assert_eq!(asked, [WEB, WEB6, "203.0.113.5:8080"]);
    assert_eq!(dialled(&world), [""; 0], "nobody went outside");
}

#[tokio::test]
async fn other_hosts_go_outside_and_workerd_is_not_asked() {
    let workerd = Workerd::new(a_example).await;
    let (outside, world) = server(&[WEB]).await;
    let (network, world) = mapped(&workerd, &["a.example"], true, world).await;
    let mut app = connect_inside(&network, WEB).await.unwrap();
    // In pieces: what was read to find the name is not lost.
    for piece in [
        "GE",
        "T / HTTP/1.1\r\nHo",
        "st: b.exam",
        "ple\r\n",
        "\r\nrest",
    ] {
        app.write_all(piece.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut there = accept(&outside).await;
    let got = read_until(&mut there, "rest").await;
    assert_eq!(got, "GET / HTTP/1.1\r\nHost: b.example\r\n\r\nrest");
    there
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut app, "204").await;
    assert_eq!(workerd.asked(), []);
    assert_eq!(dialled(&world), [WEB]);
}

#[tokio::test]
async fn without_internet_only_mapped_hosts_go_anywhere() {
    let workerd = Workerd::new(a_example).await;
    let (_outside, world) = server(&[WEB]).await;
    let (network, world) = mapped(&workerd, &["a.example"], false, world).await;
    assert!(get(&network, WEB, "a.example").await.contains("worker saw"));
    let mut app = connect_inside(&network, WEB).await.unwrap();
    app.write_all(b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")
        .await
        .unwrap();
    assert_reset(&mut app).await;
    let mut app = connect_inside(&network, WEB).await.unwrap();
    app.write_all(b"anything else\n").await.unwrap();
    assert_reset(&mut app).await;
    assert_eq!(dialled(&world), [""; 0]);
}

#[tokio::test]
async fn a_client_that_takes_its_time_is_intercepted_too() {
    let workerd = Workerd::new(a_example).await;
    let (outside, world) = server(&[WEB]).await;
    for names in [&["a.example"][..], &["*"]] {
        let (network, _) = mapped(
            &workerd,
            names,
            true,
            World {
                hosts: world.hosts.clone(),
                ..World::default()
            },
        )
        .await;
        let mut app = connect_inside(&network, WEB).await.unwrap();
        let _there = if names == ["a.example"] {
            // By now it is known that the client waits: the server may want to speak.
            Some(accept(&outside).await)
        } else {
            eventually(|| !workerd.asked().is_empty()).await;
            None
        };
        app.write_all(b"GET /late HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .await
            .unwrap();
        let answer = read_until(&mut app, "end\n").await;
        assert!(answer.contains("worker saw GET /late"), "{answer}");
        workerd.forget();
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let workerd = Workerd::new(|q| match q.to.as_str() {
        "203.0.113.5:3306" => Verdict::Tcp,
        _ => Verdict::Nothing,
    })
    .await;
    // Outside, with mappings by name.
    let (outside, world) = server(&["203.0.113.5:25"]).await;
    let (network, _) = mapped(&workerd, &["a.example"], true, world).await;
    let mut app = connect_inside(&network, "203.0.113.5:25").await.unwrap();
    let mut there = accept(&outside).await;
    there.write_all(b"220 mail\n").await.unwrap();
    read_until(&mut app, "220 mail\n").await;
    app.write_all(b"EHLO me\n").await.unwrap();
    read_until(&mut there, "EHLO me\n").await;
    assert_eq!(workerd.asked(), []);

    // The Worker itself, by a mapping of TCP, with and without internet.
    for internet in [true, false] {
        let (network, _) = mapped(&workerd, &["*"], internet, World::default()).await;
        let mut app = connect_inside(&network, "203.0.113.5:3306").await.unwrap();
        if !internet {
            // It is asked for in the form that it cannot dial, which this stand-in does not know.
            eventually(|| workerd.asked().iter().any(|q| q.to == "203.0.113.5:0xcea")).await;
            continue;
        }
        read_until(&mut app, "220 hello\n").await;
        app.write_all(b"SELECT 1\n").await.unwrap();
        read_until(&mut app, "SELECT 1\n").await;
    }
}

#[tokio::test]
async fn a_mapping_by_address_has_tcp_http_and_what_has_no_name() {
    let workerd = Workerd::new(|q| match (q.to.as_str(), &q.host) {
        ("192.0.2.7:0x1e61", None) => Verdict::Tcp,
        ("192.0.2.7:0x50", None) => Verdict::Http,
        _ => Verdict::Nothing,
    })
    .await;
    let (network, world) = mapped(&workerd, &["*"], false, World::default()).await;
    let mut app = connect_inside(&network, "192.0.2.7:7777").await.unwrap();
    app.write_all(b"ping\n").await.unwrap();
    app.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut app).await.unwrap(), b"220 hello\nping\n");
    // With a name it is asked for by that first, then without.
    assert!(
        get(&network, "192.0.2.7:80", "b.example")
            .await
            .contains("worker saw")
    );
    let mut app = connect_inside(&network, "192.0.2.7:80").await.unwrap();
    app.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    read_until(&mut app, "worker saw").await;
    // No mapping: an end.
    let mut app = connect_inside(&network, "192.0.2.7:81").await.unwrap();
    app.write_all(b"ping\n").await.unwrap();
    assert!(
        read_to_end(&mut app)
            .await
            .is_ok_and(|bytes| bytes.is_empty())
    );
    assert_eq!(dialled(&world), [""; 0]);
}

#[tokio::test]
async fn what_workerd_passes_through_ends_with_the_internet_and_the_workers_own_does_not() {
    let (outside, _) = server(&[]).await;
    let port = outside.local_addr().unwrap().port();
    let workerd = Workerd::new(move |q| match q.host.as_deref() {
        Some("a.example") => Verdict::Http,
        _ => Verdict::Pass(port),
    })
    .await;
    let (network, world) = mapped(&workerd, &["*"], true, World::default()).await;
    let mut passed = connect_inside(&network, WEB).await.unwrap();
    passed
        .write_all(b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")
        .await
        .unwrap();
    let mut there = accept(&outside).await;
    read_until(&mut there, "b.example").await;
    let mut workers = connect_inside(&network, WEB).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    workers.write_all(request).await.unwrap();
    read_until(&mut workers, "end\n").await;

    network.set_policy(wharf_net::Policy { internet: false });
    read_to_end(&mut passed).await.unwrap_err();
    workers.write_all(request).await.unwrap();
    read_until(&mut workers, "end\n").await;
    assert_eq!(dialled(&world), [""; 0], "one connection outside is enough");
}

/// The stand-in dials what it is asked for, as workerd does.
#[tokio::test]
async fn no_mapping_makes_a_private_address_reachable() {
    const PRIVATE: [&str; 5] = [
        "169.254.169.254:80",
        "10.1.2.3:80",
        "192.168.0.1:443",
        "[fd00::5]:80",
        "11.0.0.1:80",
    ];
    for names in [
        &["*"][..],
        &["*.internal"],
        &["169.254.169.254", "metadata.internal", "*"],
    ] {
        for internet in [true, false] {
            let workerd = Workerd::new(|_| Verdict::Nothing).await;
            let (_outside, world) = server(&PRIVATE).await;
            let (network, world) = mapped(&workerd, names, internet, world).await;
            for address in PRIVATE {
                for sent in [
                    &b"GET / HTTP/1.1\r\nHost: metadata.internal\r\n\r\n"[..],
                    b"GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
                    b"ping\n",
                    b"",
                ] {
                    let mut app = connect_inside(&network, address).await.unwrap();
                    app.write_all(sent).await.unwrap();
                    app.shutdown().await.unwrap();
                    // An end or a reset, and not a byte.
                    assert!(read_to_end(&mut app).await.unwrap_or_default().is_empty());
                }
            }
            let forms: Vec<_> = workerd.asked().into_iter().map(|q| q.to).collect();
            assert!(!forms.is_empty());
            assert!(forms.iter().all(|to| to.contains(":0x")), "{forms:?}");
            assert_eq!(dialled(&world), [""; 0]);
        }
    }
}

#[tokio::test]
async fn with_the_operators_leave_private_addresses_are_dialled() {
    let workerd = Workerd::new(|_| Verdict::Nothing).await;
    let (outside, world) = server(&["10.1.2.3:80"]).await;
    let allowed = NetConfig {
        allow_private: true,
        ..config()
    };
    let (network, _) = mapped_in(allowed, &workerd, &["a.example"], true, world).await;
    let mut app = connect_inside(&network, "10.1.2.3:80").await.unwrap();
    app.write_all(b"GET / HTTP/1.1\r\nHost: intranet\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut accept(&outside).await, "intranet").await;
}

#[tokio::test]
async fn when_workerd_is_away_or_refuses_what_may_be_mapped_goes_nowhere() {
    let workerd = Workerd::new(|_| Verdict::Refuse).await;
    let (_outside, world) = server(&[WEB]).await;
    let (network, world) = mapped(&workerd, &["a.example"], true, world).await;
    for away in [false, true] {
        if away {
            let free = TcpListener::bind("127.0.0.1:0")
                .await
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            assert_eq!(
                put_egress(&network, &format!(r#"{{"port":{free}}}"#)).await,
                204
            );
        }
        let mut app = connect_inside(&network, WEB).await.unwrap();
        app.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .await
            .unwrap();
        assert_reset(&mut app).await;
    }
    assert_eq!(dialled(&world), [""; 0]);
}

/// Takes as long as the mappings have to be quiet.
#[tokio::test]
async fn after_an_adoption_unmapped_names_reach_the_internet_again_when_the_mappings_are_back() {
    let (outside, world) = server(&[WEB]).await;
    let port = outside.local_addr().unwrap().port();
    let first = Workerd::new(move |_| Verdict::Pass(port)).await;
    let (network, world) = mapped(&first, &["*"], true, world).await;
    let request = b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n";
    let mut app = connect_inside(&network, WEB).await.unwrap();
    app.write_all(request).await.unwrap();
    read_until(&mut accept(&outside).await, "b.example").await;

    // Another process: it does not know of the internet.
    let second = Workerd::new(a_example).await;
    let adopt = format!(r#"{{"port":{}}}"#, second.port());
    assert_eq!(put_egress(&network, &adopt).await, 204);
    let back = format!(
        r#"{{"port":{},"dns":{{"allowHostnames":["a.example","*"]}}}}"#,
        second.port()
    );
    assert_eq!(put_egress(&network, &back).await, 204);
    assert!(get(&network, WEB, "a.example").await.contains("worker saw"));
    let mut app = connect_inside(&network, WEB).await.unwrap();
    app.write_all(request).await.unwrap();
    assert!(read_to_end(&mut app).await.unwrap_or_default().is_empty());
    assert_eq!(dialled(&world), [""; 0], "not yet");
    let mut there = timeout(WAIT, async {
        loop {
            let mut app = connect_inside(&network, WEB).await.unwrap();
            app.write_all(request).await.unwrap();
            tokio::select! {
                there = accept(&outside) => return there,
                _ = read_to_end(&mut app) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
    .unwrap();
    read_until(&mut there, "b.example").await;
    assert!(get(&network, WEB, "a.example").await.contains("worker saw"));
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    timeout(WAIT, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn workerd_is_asked_in_its_own_network() {
    let networks = Networks::with_dialer(config(), Arc::new(World::default()));
    let worker = networks.create_for_worker().await.unwrap();
    let workerd = Workerd::on(listen_inside(&worker, "127.0.0.1:0"), |_| Verdict::Http);
    let network = networks.of_worker(worker.clone()).create().await.unwrap();
    let body = format!(
        r#"{{"port":{},"dns":{{"allowHostnames":["a.example"]}},"internet":{{"enabled":false}}}}"#,
        workerd.port()
    );
    let mut control = connect_inside(&worker, &network.ingress().to_string())
        .await
        .unwrap();
    let put = format!(
        "PUT /egress HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    control.write_all(put.as_bytes()).await.unwrap();
    read_until(&mut control, "204").await;
    let answer = get(&network, "192.0.2.1:80", "a.example").await;
    assert!(answer.contains("200"), "{answer}");
    assert_eq!(workerd.asked().len(), 1);

    // The next process has not said yet where it listens; what is mapped is refused until then, not asked for at the old port.
    let next = networks.create_for_worker().await.unwrap();
    networks
        .of_worker(next.clone())
        .claim(&network)
        .await
        .unwrap();
    assert_eq!(network.egress().port, None);
    let mut app = connect_inside(&network, "192.0.2.1:80").await.unwrap();
    app.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await
        .unwrap();
    let end = timeout(WAIT, app.read(&mut [0])).await.unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert_eq!(workerd.asked().len(), 1);
}
