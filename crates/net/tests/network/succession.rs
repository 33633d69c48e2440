use std::time::Instant;

use wharf_net::{NotEmpty, Policy, Target};

use crate::*;

/// A network as workerd knows it, and one in which something runs already.
async fn two() -> (Network, Network) {
    (network(config()).await, network(config()).await)
}

async fn echo(app: &TcpListener, client: &mut TcpStream) -> TcpStream {
    let mut inside = accept(app).await;
    client.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    inside.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    inside
}

#[tokio::test]
async fn an_ingress_leads_into_the_network_that_took_over_also_who_came_before() {
    let (known, ahead) = two().await;
    let app = listen_inside(&ahead, "127.0.0.1:8080");
    let (ingress, ca) = (known.ingress(), known.ca().pem());
    let held = tokio::spawn({
        let known = known.clone();
        async move { connect(&known, 8080).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!held.is_finished());
    known.take_over(&ahead).unwrap();
    drop(ahead);
    known.set_target(Target::Running(Instant::now()));
    let (status, mut client) = held.await.unwrap();
    assert_eq!(status, 200);
    echo(&app, &mut client).await;
    let (status, mut client) = connect(&known, 8080).await;
    assert_eq!(status, 200);
    let _inside = echo(&app, &mut client).await;
    // What workerd was told stays true.
    assert_eq!((known.ingress(), known.ca().pem()), (ingress, ca));
    assert_eq!(known.listening(), Some(vec![8080]));

    // And another after that: the first is gone, with what it carried.
    let next = network(config()).await;
    let other = listen_inside(&next, "127.0.0.1:8080");
    known.set_target(Target::Ended("code 0".into()));
    known.take_over(&next).unwrap();
    assert_reset(&mut client).await;
    known.set_target(Target::Running(Instant::now()));
    let (status, mut client) = connect(&known, 8080).await;
    assert_eq!(status, 200);
    echo(&other, &mut client).await;
}

#[tokio::test]
async fn what_workerd_says_afterwards_holds_for_what_runs() {
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = "203.0.113.5:80";
    let world = Arc::new(World {
        hosts: [(web.parse().unwrap(), outside.local_addr().unwrap())].into(),
        ..World::default()
    });
    let networks = Networks::with_dialer(config(), world);
    let known = networks.create().await.unwrap();
    let ahead = networks.create().await.unwrap();
    let internet = Policy { internet: true };
    ahead.set_policy(internet.clone());
    // A connection of its start.
    let mut early = connect_inside(&ahead, web).await.unwrap();
    let mut there = accept(&outside).await;
    assert_eq!(known.take_over(&ahead), Err(NotEmpty), "another policy");
    known.set_policy(internet);
    known.take_over(&ahead).unwrap();
    there.write_all(b"hi").await.unwrap();
    let mut got = [0; 2];
    early.read_exact(&mut got).await.unwrap();
    // The object takes the internet away: from that too.
    assert_eq!(
        put_egress(&known, r#"{"internet":{"enabled":false}}"#).await,
        204
    );
    assert_reset(&mut early).await;
    assert_refused(&known, web).await;
}

#[tokio::test]
async fn with_mappings_nothing_takes_over() {
    let (known, ahead) = two().await;
    let body = r#"{"port":9,"dns":{"allowHostnames":["a.example"]}}"#;
    assert_eq!(put_egress(&known, body).await, 204);
    assert_eq!(known.take_over(&ahead), Err(NotEmpty));
}
