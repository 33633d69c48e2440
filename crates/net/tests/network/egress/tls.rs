//! HTTPS, as the container sees it.

use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::*;

/// A client inside that trusts what `GET /ca` shows, and nothing else.
pub(super) async fn connect_tls(
    network: &Network,
    addr: &str,
    name: &str,
    protocols: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let (status, rest) = request(network, "GET /ca HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(status, 200);
    let mut roots = RootCertStore::empty();
    let pem = body(rest).await;
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let stream = connect_inside(network, addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    timeout(
        WAIT,
        TlsConnector::from(Arc::new(config)).connect(name, stream),
    )
    .await
    .unwrap()
}

/// A Worker with a mapping of HTTPS for `a.example`, and one for the address 192.0.2.7.
fn rule(question: &workerd::Question) -> Verdict {
    match (question.sni.as_deref(), question.to.as_str()) {
        (Some("a.example"), _) | (None, "192.0.2.7:0x1bb") => Verdict::Http,
        _ => Verdict::Nothing,
    }
}

#[tokio::test]
async fn a_mapped_name_is_the_workers_under_a_certificate_of_the_networks_own() {
    let workerd = Workerd::new(rule).await;
    let (network, world) = mapped(&workerd, &["a.example"], false, World::default()).await;
    for (address, protocols) in [
        ("11.0.0.1:443", &["h2", "http/1.1"][..]),
        ("203.0.113.5:8443", &[]),
    ] {
        let mut app = connect_tls(&network, address, "a.example", protocols)
            .await
            .unwrap();
        // Twice on one connection.
        for _ in 0..2 {
            app.write_all(b"GET /x HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\n\r\n")
                .await
                .unwrap();
            let answer = read_until(&mut app, "x-after: yes\r\n\r\n").await;
            assert!(
                answer.contains("worker saw GET /x host=a.example"),
                "{answer}"
            );
        }
        app.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(WAIT, app.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest, b"", "an end that the client can tell from a cut");
    }
    assert!(
        workerd
            .asked()
            .iter()
            .all(|q| q.sni.as_deref() == Some("a.example"))
    );
    assert_eq!(dialled(&world), [""; 0]);
}

#[tokio::test]
async fn an_address_has_a_certificate_too() {
    let workerd = Workerd::new(rule).await;
    let (network, _) = mapped(&workerd, &["*"], false, World::default()).await;
    let mut app = connect_tls(&network, "192.0.2.7:443", "192.0.2.7", &[])
        .await
        .unwrap();
    app.write_all(b"GET /x HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut app, "worker saw GET /x host=192.0.2.7").await;
}

#[tokio::test]
async fn a_socket_that_is_upgraded_carries_bytes_both_ways() {
    let workerd = Workerd::new(rule).await;
    let (network, _) = mapped(&workerd, &["a.example"], false, World::default()).await;
    let mut app = connect_tls(&network, "11.0.0.1:443", "a.example", &[])
        .await
        .unwrap();
    app.write_all(
        b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
    )
    .await
    .unwrap();
    read_until(&mut app, "\r\n\r\n").await;
    for message in ["one", "two"] {
        app.write_all(message.as_bytes()).await.unwrap();
        app.flush().await.unwrap();
        read_until(&mut app, message).await;
    }
}

#[tokio::test]
async fn other_names_go_outside_untouched() {
    let workerd = Workerd::new(rule).await;
    let (outside, world) = server(&["203.0.113.5:443"]).await;
    let (network, _) = mapped(&workerd, &["a.example"], true, world).await;
    let app = connect_tls(&network, "203.0.113.5:443", "b.example", &[]);
    let (answer, ()) = tokio::join!(app, async {
        let mut there = accept(&outside).await;
        let mut first = [0; 3];
        there.read_exact(&mut first).await.unwrap();
        assert_eq!(first, [22, 3, 1], "the client's own handshake");
    });
    answer.unwrap_err();
    assert_eq!(workerd.asked(), []);
}

#[tokio::test]
async fn an_old_ca_is_worth_nothing_in_another_network() {
    let workerd = Workerd::new(rule).await;
    let (network, _) = mapped(&workerd, &["a.example"], false, World::default()).await;
    let (other, _) = mapped(&workerd, &["a.example"], false, World::default()).await;
    assert_ne!(network.ca().pem(), other.ca().pem());
}
