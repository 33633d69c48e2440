//! A container's network by way of its machine: the same ports, the same ways out, the same rules.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use wharf_sandbox::netns::{self, Listeners};

use self::support::{Place, next_line};

#[tokio::test]
async fn it_is_reached_and_reaches_as_without_a_machine() {
    let place = Place::new();
    let spawner = place.start().await;
    // One listens at every address, one at loopback alone.
    let script = "nc -lp 8080 -e cat & \
        echo by-http > /page; httpd -p 127.0.0.1:9090 -h /; \
        (echo question; sleep 1) | nc 203.0.113.7 4321; \
        nslookup -type=a example.test 192.0.2.1 2>&1 | tail -3; \
        nc -w 1 127.0.0.1 1 < /dev/null || echo refused; \
        sleep 1000";
    let (spec, fds) = place.container("c", script);
    let inside = fds.netns.as_ref().unwrap().try_clone().unwrap();
    // In the daemon's place: what is redirected arrives here.
    let (out, dns, mut listeners) = netns::run_inside(inside.as_fd(), || {
        (
            TcpListener::bind((Ipv4Addr::LOCALHOST, 64001)).unwrap(),
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 64053)).unwrap(),
            Listeners::here(64001).unwrap(),
        )
    })
    .unwrap();
    let process = spawner.spawn(&spec, fds).await.unwrap();

    let answering = tokio::task::spawn_blocking(move || {
        let (mut connection, _) = out.accept().unwrap();
        let to = netns::original_destination(connection.as_fd()).unwrap();
        let mut question = [0; 9];
        connection.read_exact(&mut question).unwrap();
        connection.write_all(b"an answer\n").unwrap();
        (to, String::from_utf8_lossy(&question).into_owned())
    });
    assert_eq!(next_line(&process).await, "an answer");
    let (to, question) = answering.await.unwrap();
    assert_eq!(to, "203.0.113.7:4321".parse::<SocketAddr>().unwrap());
    assert_eq!(question, "question\n");

    let resolving = tokio::task::spawn_blocking(move || {
        let mut question = [0; 512];
        let (length, from) = dns.recv_from(&mut question).unwrap();
        // The question with an answer: A, for a minute, 198.51.100.5.
        let mut answer = question[..length].to_vec();
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 5]);
        dns.send_to(&answer, from).unwrap();
    });
    resolving.await.unwrap();
    let mut said = String::new();
    while !said.contains("refused") {
        said += &next_line(&process).await;
    }
    assert!(said.contains("198.51.100.5"), "{said}");

    let web = "GET /page HTTP/1.0\r\n\r\n";
    for (port, question, wanted) in [(8080, "hello\n", "hello\n"), (9090, web, "by-http\n")] {
        wharf_testkit::until("the port", || listeners.is_listening(port).unwrap()).await;
        let inside = inside.try_clone().unwrap();
        let got = tokio::task::spawn_blocking(move || {
            netns::run_inside(inside.as_fd(), || {
                let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                connection.write_all(question.as_bytes()).unwrap();
                connection.shutdown(std::net::Shutdown::Write).unwrap();
                let mut got = String::new();
                connection.read_to_string(&mut got).unwrap();
                got
            })
            .unwrap()
        });
        let got = got.await.unwrap();
        assert!(got.ends_with(wanted), "{got}");
    }
    // It served one, and listens no more.
    wharf_testkit::until("its end", || !listeners.is_listening(8080).unwrap()).await;
    place.finish(spawner).await;
}
