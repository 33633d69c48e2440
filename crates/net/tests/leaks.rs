//! What many networks leave behind. The only test here, because it counts what the whole process has open. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wharf_net::{Direct, NetConfig, Networks, Target};

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}"))
        .unwrap()
        .count()
}

async fn cycle(networks: &Networks) {
    let network = networks.create().await.unwrap();
    network.set_target(Target::Ended);
    let mut client = TcpStream::connect(network.ingress()).await.unwrap();
    client
        .write_all(b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 400");
}

#[tokio::test]
async fn two_hundred_networks_leave_no_descriptor_and_no_thread() {
    let config = NetConfig {
        pool_size: 3,
        hold_ms: 1000,
        dns_servers: Vec::new(),
        allow_private: false,
    };
    let networks = Networks::with_dialer(config.clone(), Arc::new(Direct));
    let full = async || {
        while networks.ready() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    cycle(&networks).await;
    full().await;
    let descriptors = count("fd");
    for _ in 0..200 {
        cycle(&networks).await;
    }
    full().await;
    // Tasks end and idle threads of the runtime go in their own time; a leak of one in each cycle would be in the hundreds.
    let bound = tokio::time::Instant::now() + Duration::from_secs(30);
    while count("fd") > descriptors && tokio::time::Instant::now() < bound {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(count("fd"), descriptors);

    // And the pool itself goes.
    drop(networks);
    while count("task") > 20 || count("fd") > descriptors - 3 {
        assert!(
            tokio::time::Instant::now() < bound + Duration::from_secs(30),
            "{} threads, {} descriptors",
            count("task"),
            count("fd")
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
