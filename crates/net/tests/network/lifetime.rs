use wharf_net::Policy;

use crate::*;

#[tokio::test]
async fn the_last_clone_ends_the_listeners_and_what_is_carried() {
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = "203.0.113.5:80";
    let world = World {
        hosts: [(web.parse().unwrap(), outside.local_addr().unwrap())].into(),
        ..World::default()
    };
    let (network, _world) = in_world(config(), world).await;
    network.set_policy(Policy { internet: true });
    let app = listen_inside(&network, "127.0.0.1:8080");
    let (_, mut client) = connect(&network, 8080).await;
    let mut inside = accept(&app).await;
    let mut outbound = connect_inside(&network, web).await.unwrap();
    let mut there = accept(&outside).await;
    let ingress = network.ingress();

    drop(network.clone());
    client.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    inside.read_exact(&mut got).await.unwrap();

    drop(network);
    for stream in [&mut client, &mut inside, &mut outbound, &mut there] {
        assert_reset(stream).await;
    }
    timeout(WAIT, async {
        while TcpStream::connect(ingress).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_survivor_is_adopted_at_its_old_ingress() {
    /// Ends the process also when the test fails.
    struct Survivor(std::process::Child);
    impl Drop for Survivor {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
    let world = Arc::new(World::default());
    let networks = Networks::with_dialer(config(), world.clone());
    let network = networks.create().await.unwrap();
    let ns = network.namespace().unwrap();
    let survivor = netns::run_inside(ns.as_fd(), || {
        std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap()
    });
    let survivor = Survivor(survivor.unwrap());
    let app = listen_inside(&network, "127.0.0.1:8080");
    let (ingress, ca) = (network.ingress(), network.ca().key());
    drop((network, ns, networks));

    let networks = Networks::with_dialer(config(), world);
    let pid = survivor.0.id().cast_signed();
    // The old daemon's listeners close in the background here; a daemon that died has none.
    let adopted = timeout(WAIT, async {
        loop {
            match networks.adopt(pid, ingress, Some(ca.clone())).await {
                Ok(network) if network.ingress() == ingress => return network,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(connect(&adopted, 8080).await.0, 200);
    accept(&app).await;
    // Its way out is served again too, by the policy that starts anew.
    assert_refused(&adopted, "203.0.113.5:80").await;

    assert_eq!(adopted.ca().key(), ca, "what it trusts is still of use");
    // With the port taken, another one.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(adopted);
    let again = timeout(WAIT, async {
        loop {
            match networks.adopt(pid, taken.local_addr().unwrap(), None).await {
                Ok(network) => return network,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
    .unwrap();
    assert_ne!(again.ingress(), taken.local_addr().unwrap());
    assert_eq!(connect(&again, 8080).await.0, 200);
}

#[tokio::test]
async fn a_process_without_a_network_of_its_own_is_not_adopted() {
    let networks = Networks::with_dialer(config(), Arc::new(World::default()));
    let own = std::process::id().cast_signed();
    let error = networks
        .adopt(own, "127.0.0.1:0".parse().unwrap(), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&own.to_string()), "{error}");
}

#[tokio::test]
async fn the_pool_fills_up_again() {
    let filled = NetConfig {
        pool_size: 2,
        ..config()
    };
    let networks = Networks::with_dialer(filled, Arc::new(World::default()));
    let full = async || {
        timeout(WAIT, async {
            while networks.ready() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    };
    full().await;
    let (a, b) = (
        networks.create().await.unwrap(),
        networks.create().await.unwrap(),
    );
    let (c, d) = (
        networks.create().await.unwrap(),
        networks.create().await.unwrap(),
    );
    full().await;
    let ports: std::collections::HashSet<_> =
        [a, b, c, d].iter().map(|n| n.ingress().port()).collect();
    assert_eq!(ports.len(), 4);
}
