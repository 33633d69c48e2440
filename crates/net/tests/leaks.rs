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
    network.set_target(Target::Ended("exit code 0".into()));
    let mut client = TcpStream::connect(network.ingress()).await.unwrap();
    client
        .write_all(b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 503");
}

#[tokio::test]
async fn two_hundred_networks_leave_no_descriptor_and_no_thread() {
    let config = NetConfig {
        pool_size: 3,
        hold_ms: 1000,
        dns_servers: Vec::new(),
        allow_private: false,
    };
    let before = count("fd");
    let networks = Networks::with_dialer(config, Arc::new(Direct));
    for _ in 0..200 {
        cycle(&networks).await;
    }
    drop(networks);
    // Tasks, the pool's thread and the runtime's idle threads end in their own time. The few descriptors are the runtime's.
    let bound = tokio::time::Instant::now() + Duration::from_secs(30);
    while count("task") > 20 || count("fd") > before + 3 {
        assert!(
            tokio::time::Instant::now() < bound,
            "{} threads, {} descriptors, of which {before} were open before",
            count("task"),
            count("fd")
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
