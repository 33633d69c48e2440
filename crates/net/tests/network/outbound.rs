use wharf_net::Policy;

use crate::*;

const INTERNET: Policy = Policy { internet: true };
const WEB: &str = "203.0.113.5:80";
const WEB6: &str = "[2001:db8::5]:443";

/// A world in which these addresses lead to one server.
pub(crate) async fn server(addresses: &[&str]) -> (TcpListener, World) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let real = server.local_addr().unwrap();
    let world = World {
        hosts: addresses
            .iter()
            .map(|a| (a.parse().unwrap(), real))
            .collect(),
        ipv6: true,
        ..World::default()
    };
    (server, world)
}

fn dialled(world: &World) -> Vec<String> {
    world
        .dialled
        .lock()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[tokio::test]
async fn nothing_goes_out_unless_it_is_allowed() {
    let (_server, world) = server(&[WEB]).await;
    let (network, world) = in_world(config(), world).await;
    assert_refused(&network, WEB).await;
    assert_eq!(dialled(&world), [""; 0]);
}

#[tokio::test]
async fn with_internet_bytes_go_to_where_the_app_meant_and_back() {
    let (server, world) = server(&[WEB, WEB6]).await;
    let (network, world) = in_world(config(), world).await;
    assert_eq!(
        put_egress(&network, r#"{"internet":{"enabled":true}}"#).await,
        204
    );
    for address in [WEB, WEB6] {
        let mut app = connect_inside(&network, address).await.unwrap();
        let mut outside = accept(&server).await;
        app.write_all(b"question").await.unwrap();
        app.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut outside).await.unwrap(), b"question");
        outside.write_all(b"answer").await.unwrap();
        outside.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut app).await.unwrap(), b"answer");
    }
    assert_eq!(dialled(&world), [WEB, WEB6]);
}

#[tokio::test]
async fn private_addresses_need_to_be_allowed_apart() {
    const PRIVATE: [&str; 3] = ["10.1.2.3:80", "169.254.169.254:80", "[fd00::1]:80"];
    let (_server, world) = server(&PRIVATE).await;
    let (network, world) = in_world(config(), world).await;
    network.set_policy(INTERNET);
    for address in PRIVATE {
        assert_refused(&network, address).await;
    }
    assert_eq!(dialled(&world), [""; 0]);

    let (server, world) = server(&PRIVATE).await;
    let allowed = NetConfig {
        allow_private: true,
        ..config()
    };
    let (network, world) = in_world(allowed, world).await;
    network.set_policy(INTERNET);
    for address in PRIVATE {
        let _app = connect_inside(&network, address).await.unwrap();
        accept(&server).await;
    }
    assert_eq!(dialled(&world), PRIVATE);
}

#[tokio::test]
async fn the_hosts_loopback_is_out_of_reach_whatever_is_allowed() {
    let (_server, world) = server(&["127.0.0.1:64001"]).await;
    let allowed = NetConfig {
        allow_private: true,
        ..config()
    };
    let (network, world) = in_world(allowed, world).await;
    network.set_policy(INTERNET);
    // Straight to the daemon's own listener inside.
    assert_refused(&network, "127.0.0.1:64001").await;
    assert_eq!(dialled(&world), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_reached_is_reset() {
    let (network, world) = in_world(config(), World::default()).await;
    network.set_policy(INTERNET);
    assert_refused(&network, WEB).await;
    assert_eq!(dialled(&world), [WEB]);
}

#[tokio::test]
async fn switching_the_internet_off_cuts_what_is_open() {
    let (server, world) = server(&[WEB]).await;
    let (network, _world) = in_world(config(), world).await;
    network.set_policy(INTERNET);
    let mut app = connect_inside(&network, WEB).await.unwrap();
    let mut outside = accept(&server).await;
    assert_eq!(
        put_egress(&network, r#"{"internet":{"enabled":false}}"#).await,
        204
    );
    assert_reset(&mut app).await;
    assert_reset(&mut outside).await;
}

#[tokio::test]
async fn without_ipv6_outside_programs_learn_it_at_once() {
    let network = network(config()).await;
    network.set_policy(INTERNET);
    let error = connect_inside(&network, WEB6).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
}
