use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
use tokio::net::UdpSocket;
use wharf_net::Policy;

use crate::*;

fn query(id: u16) -> Message {
    let mut message = question("www.example.com.", RecordType::A);
    message.metadata.id = id;
    message
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The records that the network's resolver has for a question, or why there are none.
pub(crate) async fn answers(network: &Network, question: &Message) -> String {
    let answer = ask(network, &resolver(network), &question.to_vec().unwrap()).await;
    match answer.metadata.response_code {
        ResponseCode::NoError => {
            let found = answer.answers.iter().map(|record| record.data.to_string());
            found.collect::<Vec<_>>().join(" ")
        }
        code => code.to_str().to_owned(),
    }
}

fn answered(query: &[u8], truncated: bool) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.truncation = truncated;
    let name = message.queries[0].name().clone();
    if name.to_ascii().starts_with("no") {
        message.metadata.response_code = ResponseCode::NXDomain;
    } else if !truncated {
        message.add_answer(Record::from_rdata(
            name,
            60,
            RData::A(A::new(203, 0, 113, 5)),
        ));
    }
    message.to_vec().unwrap()
}

/// An upstream server that truncates by UDP (if it is asked to) and answers by TCP. Names that begin with "no" do not exist.
pub(crate) async fn upstream() -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(addr).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
            let truncated = buffer[1] == 0xff;
            // Noise from the same server is not taken for the answer.
            let noise = answered(&query(1).to_vec().unwrap(), false);
            udp.send_to(&noise, from).await.unwrap();
            udp.send_to(b"?", from).await.unwrap();
            udp.send_to(&answered(&buffer[..n], truncated), from)
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let answer = answered(&query, false);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    addr
}

fn client(network: &Network) -> UdpSocket {
    let ns = network.namespace().unwrap();
    UdpSocket::from_std(netns::bind_udp(ns.as_fd(), "0.0.0.0:0".parse().unwrap()).unwrap()).unwrap()
}

fn resolver(network: &Network) -> String {
    let text = network.resolv_conf();
    let address = text.trim().strip_prefix("nameserver ").unwrap();
    format!("{address}:53")
}

async fn ask(network: &Network, server: &str, packet: &[u8]) -> Message {
    let client = client(network);
    let server: SocketAddr = server.parse().unwrap();
    client.send_to(packet, server).await.unwrap();
    let mut buffer = [0; 2048];
    let (n, from) = timeout(WAIT, client.recv_from(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(from, server, "the answer comes from whom it was asked");
    Message::from_vec(&buffer[..n]).unwrap()
}

async fn online(dns_servers: Vec<SocketAddr>) -> Network {
    let network = network(NetConfig {
        dns_servers,
        ..config()
    })
    .await;
    network.set_policy(Policy { internet: true });
    network
}

#[tokio::test]
async fn names_are_resolved_by_the_upstream_server_whomever_the_app_asks() {
    let network = online(vec![upstream().await]).await;
    for server in [&resolver(&network), "192.0.2.53:53"] {
        let answer = ask(&network, server, &query(7).to_vec().unwrap()).await;
        assert_eq!(answer.metadata.id, 7);
        assert_eq!(answer.answers.len(), 1);
    }
}

#[tokio::test]
async fn a_truncated_answer_can_be_followed_up_by_tcp() {
    let network = online(vec![upstream().await]).await;
    let server = resolver(&network);
    let packet = query(0xff).to_vec().unwrap();
    assert!(ask(&network, &server, &packet).await.metadata.truncation);
    let mut stream = connect_inside(&network, &server).await.unwrap();
    // Two on one connection.
    for _ in 0..2 {
        stream.write_u16(packet.len() as u16).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut answer =
            vec![0; usize::from(timeout(WAIT, stream.read_u16()).await.unwrap().unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
}

#[tokio::test]
async fn without_internet_names_do_not_exist() {
    let network = network(NetConfig {
        dns_servers: vec![upstream().await],
        ..config()
    })
    .await;
    let answer = ask(&network, &resolver(&network), &query(7).to_vec().unwrap()).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(answer.metadata.id, 7);
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_away() {
    let away = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let network = online(vec![away, upstream().await]).await;
    let answer = ask(&network, &resolver(&network), &query(7).to_vec().unwrap()).await;
    assert_eq!(answer.answers.len(), 1);

    let network = online(vec![away]).await;
    let answer = ask(&network, &resolver(&network), &query(7).to_vec().unwrap()).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn nonsense_is_survived() {
    let network = online(vec![upstream().await]).await;
    let server = resolver(&network);
    let client = client(&network);
    for nonsense in [&b""[..], b"x", &[0xff; 12], &[0; 11]] {
        client.send_to(nonsense, &server).await.unwrap();
    }
    let answer = ask(&network, &server, &[0; 12]).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    let answer = ask(&network, &server, &query(9).to_vec().unwrap()).await;
    assert_eq!(answer.answers.len(), 1);
}
