//! Connections that a Worker may want to see, with a stand-in for workerd that answers as the real one does (contract: workerd, 1.6). The real one is
//! asked in the tests of `docker-api`.

mod http2;
mod names;
mod tls;
mod ways;
mod workerd;

use self::workerd::{Verdict, Workerd};
use crate::*;

/// A network whose Worker has mappings for these names, and the world outside.
async fn mapped(
    workerd: &Workerd,
    names: &[&str],
    internet: bool,
    world: World,
) -> (Network, Arc<World>) {
    mapped_in(config(), workerd, names, internet, world).await
}

async fn mapped_in(
    config: NetConfig,
    workerd: &Workerd,
    names: &[&str],
    internet: bool,
    world: World,
) -> (Network, Arc<World>) {
    let (network, world) = in_world(config, world).await;
    let names = serde_json::to_string(names).unwrap();
    let body = format!(
        r#"{{"port":{},"dns":{{"allowHostnames":{names}}},"internet":{{"enabled":{internet}}}}}"#,
        workerd.port()
    );
    assert_eq!(put_egress(&network, &body).await, 204);
    (network, world)
}

/// A world in which these addresses lead to one server.
async fn server(addresses: &[&str]) -> (TcpListener, World) {
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
    let dialled = world.dialled.lock().unwrap();
    dialled.iter().map(ToString::to_string).collect()
}

/// What comes until this text has come.
async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), text: &str) -> String {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(text) {
        let n = timeout(WAIT, stream.read_buf(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert!(
            n > 0,
            "{text:?} does not come: {:?}",
            String::from_utf8_lossy(&got)
        );
    }
    String::from_utf8(got).unwrap()
}

async fn get(network: &Network, addr: &str, host: &str) -> String {
    let mut app = connect_inside(network, addr).await.unwrap();
    let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    app.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut app, "end\n").await
}
