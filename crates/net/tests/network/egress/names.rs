//! What names the container finds.

use hickory_proto::rr::RecordType::{self, A, AAAA, TXT};

use super::*;
use crate::dns::{answers, question, upstream};

/// Asks for a name; what was found, or the error's code.
async fn look_up(network: &Network, name: &str, kind: RecordType) -> String {
    answers(network, &question(name, kind)).await
}

#[tokio::test]
async fn a_mapped_name_exists_without_internet_and_no_other() {
    let workerd = Workerd::new(|_| Verdict::Http).await;
    let world = World {
        ipv6: true,
        ..World::default()
    };
    let (network, _) = mapped(&workerd, &["my.kv", "*.example"], false, world).await;
    for (name, kind, found) in [
        ("my.kv.", A, "11.0.0.1"),
        ("MY.kv.", A, "11.0.0.1"),
        ("my.kv.", AAAA, "fd00::1"),
        ("my.kv.", TXT, ""),
        ("a.b.example.", A, "11.0.0.1"),
        ("other.kv.", A, "Non-Existent Domain"),
        ("example.", A, "Non-Existent Domain"),
    ] {
        assert_eq!(look_up(&network, name, kind).await, found, "{name} {kind}");
    }
    // What it leads to is the Worker's.
    assert!(
        get(&network, "11.0.0.1:80", "my.kv")
            .await
            .contains("worker saw GET /x host=my.kv")
    );
    assert!(
        get(&network, "[fd00::1]:80", "my.kv")
            .await
            .contains("worker saw")
    );
}

#[tokio::test]
async fn without_ipv6_a_mapped_name_has_only_the_other_address() {
    let workerd = Workerd::new(|_| Verdict::Http).await;
    let (network, _) = mapped(&workerd, &["my.kv"], false, World::default()).await;
    assert_eq!(look_up(&network, "my.kv.", AAAA).await, "");
    assert_eq!(look_up(&network, "my.kv.", A).await, "11.0.0.1");
}

#[tokio::test]
async fn with_internet_a_mapped_name_that_exists_keeps_its_address() {
    let workerd = Workerd::new(|_| Verdict::Http).await;
    let config = NetConfig {
        dns_servers: vec![upstream().await],
        ..config()
    };
    // The server of these tests knows www.example.com, and no name that begins with "no".
    for names in [&["*.example.com", "no.kv"][..], &["*"]] {
        let (network, _) = mapped_in(config.clone(), &workerd, names, true, World::default()).await;
        assert_eq!(
            look_up(&network, "www.example.com.", A).await,
            "203.0.113.5"
        );
        assert_eq!(look_up(&network, "no.kv.", A).await, "11.0.0.1");
        let other = look_up(&network, "nobody.kv.", A).await;
        assert_eq!(
            other,
            if names == ["*"] {
                "11.0.0.1"
            } else {
                "Non-Existent Domain"
            }
        );
    }
}

#[tokio::test]
async fn a_mapped_name_exists_also_when_no_server_answers() {
    let workerd = Workerd::new(|_| Verdict::Http).await;
    let away = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let config = NetConfig {
        dns_servers: vec![away],
        ..config()
    };
    let (network, _) = mapped_in(config, &workerd, &["my.kv", "*"], true, World::default()).await;
    assert_eq!(look_up(&network, "my.kv.", A).await, "11.0.0.1");
    assert_eq!(
        look_up(&network, "www.example.com.", A).await,
        "Server Failure"
    );
}

/// A host without IPv6, whose containers have it for their mappings' sake.
#[tokio::test]
async fn ipv6_addresses_are_mapped_without_ipv6_outside_and_nobody_is_sent_to_others() {
    let workerd = Workerd::new(|_| Verdict::Http).await;
    let config = NetConfig {
        dns_servers: vec![upstream().await],
        ..config()
    };
    let (network, world) = mapped_in(config, &workerd, &["*"], true, World::default()).await;
    assert!(
        get(&network, "[2001:db8::7]:80", "[2001:db8::7]")
            .await
            .contains("worker saw")
    );
    assert_eq!(look_up(&network, "www.example.com.", AAAA).await, "");
    assert_eq!(
        look_up(&network, "www.example.com.", A).await,
        "203.0.113.5"
    );
    assert_eq!(dialled(&world), [""; 0]);
}
