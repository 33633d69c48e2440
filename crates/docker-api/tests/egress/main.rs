//! Egress interception with everything real: workerd, a Worker that maps what its container reaches, and the container, which runs what the test
//! sends it (Python).
#![allow(clippy::unwrap_used)] // a panic is a failed test

mod node;

use wharf_engine::Isolation;

use self::node::Node;

/// One test, since it takes a while to make the place for it.
#[tokio::test]
async fn what_a_container_reaches_is_the_workers() {
    reaches_the_workers(Isolation::Namespace).await;
}

#[tokio::test]
async fn what_a_container_on_gvisor_reaches_is_the_workers() {
    wharf_testkit::runsc();
    reaches_the_workers(Isolation::Gvisor).await;
}

#[tokio::test]
async fn what_a_container_in_a_machine_reaches_is_the_workers() {
    reaches_the_workers(Isolation::Microvm).await;
}

async fn reaches_the_workers(class: Isolation) {
    let mut node = Node::new(class).await;
    http_is_mapped_by_host_pattern_address_and_port(&node).await;
    https_is_mapped_under_a_certificate_that_the_container_was_given(&node).await;
    websockets_go_through_both(&node).await;
    http2_is_translated_for_clients_that_speak_nothing_else(&node).await;
    tcp_is_mapped_also_for_servers_that_speak_first(&node).await;
    private_addresses_stay_out_of_reach_with_internet_and_any_mappings(&node).await;
    a_new_process_of_workerd_has_no_mappings_until_they_are_made_again(&mut node).await;
    node.end().await;
}

/// What a container's request sees: the status and the body.
fn get(url: &str) -> String {
    format!(
        r#"
import urllib.request, urllib.error
context = ssl.create_default_context(cafile=CA) if os.path.exists(CA) else None
try:
    answer = urllib.request.urlopen("{url}", timeout=20, context=context)
    print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print("failed", error)
"#
    )
}

/// What comes back from an address after some bytes were sent there.
fn exchange(host: &str, port: u16, bytes: &str) -> String {
    format!(
        r#"
try:
    s = socket.create_connection(("{host}", {port}), timeout=20)
    s.sendall(b"{bytes}")
    s.shutdown(socket.SHUT_WR)
    while True:
        got = s.recv(4096)
        if not got: break
        print(got.decode(), end="")
    print("end")
except OSError as error:
    print("failed", error)
"#
    )
}

async fn http_is_mapped_by_host_pattern_address_and_port(node: &Node) {
    let app = node.object("http");
    app.map("Http", "my.kv", "named").await;
    app.map("Http", "*.wild.example:8080", "wild").await;
    app.start(false).await;
    app.map("Http", "192.0.2.0/24:8123", "range").await;
    app.map("Http", "[2001:db8::7]:80", "six").await;
    for (url, answer) in [
        ("http://my.kv/a?b", "200 named GET http://my.kv/a?b"),
        ("http://MY.KV/", "200 named GET http://my.kv/"),
        (
            "http://a.wild.example:8080/",
            "200 wild GET http://a.wild.example:8080/",
        ),
        (
            "http://192.0.2.9:8123/",
            "200 range GET http://192.0.2.9:8123/",
        ),
        ("http://[2001:db8::7]/", "200 six GET http://[2001:db8::7]/"),
    ] {
        assert_eq!(app.run(&get(url)).await.trim(), answer, "{url}");
    }
    // Neither by another port, nor by another name or address: there is no internet.
    for url in [
        "http://my.kv:81/",
        "http://wild.example:8080/",
        "http://192.0.3.9:8123/",
        "http://192.0.2.9/",
    ] {
        let answer = app.run(&get(url)).await;
        assert!(answer.starts_with("failed"), "{url}: {answer}");
    }
    // Replaced while it runs; and then all that is left.
    app.map("Http", "my.kv", "renamed").await;
    app.map_all("all").await;
    assert_eq!(
        app.run(&get("http://my.kv/")).await.trim(),
        "200 renamed GET http://my.kv/"
    );
    assert_eq!(
        app.run(&get("http://192.0.3.9/")).await.trim(),
        "200 all GET http://192.0.3.9/"
    );
    assert_eq!(
        app.run(&get("http://other.example/")).await.trim(),
        "200 all GET http://other.example/"
    );
    // A body, by a client that lets the server close.
    let post = r#"POST / HTTP/1.0\r\nHost: my.kv\r\nContent-Length: 5\r\n\r\nhello"#;
    let answer = app.run(&exchange("my.kv", 80, post)).await;
    assert!(
        answer.contains("renamed POST http://my.kv/ hello"),
        "{answer}"
    );
}

async fn https_is_mapped_under_a_certificate_that_the_container_was_given(node: &Node) {
    let app = node.object("https");
    app.start(false).await;
    app.map("Https", "secure.example", "named").await;
    app.map("Https", "*.wild.example:8443", "wild").await;
    app.map("Https", "192.0.2.7", "address").await;
    for (url, answer) in [
        (
            "https://secure.example/x",
            "200 named GET https://secure.example/x",
        ),
        (
            "https://a.wild.example:8443/",
            "200 wild GET https://a.wild.example:8443/",
        ),
        ("https://192.0.2.7/", "200 address GET https://192.0.2.7/"),
    ] {
        assert_eq!(app.run(&get(url)).await.trim(), answer, "{url}");
    }
    for url in [
        "https://other.example/",
        "https://192.0.2.8/",
        "http://secure.example/",
    ] {
        let answer = app.run(&get(url)).await;
        assert!(answer.starts_with("failed"), "{url}: {answer}");
    }
    // As strict as a client can be about the certificates.
    let strict = r#"
context = ssl.create_default_context(cafile=CA)
context.verify_flags |= ssl.VERIFY_X509_STRICT
s = context.wrap_socket(socket.create_connection(("secure.example", 443)), server_hostname="secure.example")
print(s.version(), len(s.getpeercert()["subjectAltName"]))
"#;
    assert_eq!(app.run(strict).await.trim(), "TLSv1.3 1");
}

/// A WebSocket client by hand: the handshake, one message each way (RFC 6455), by TCP or TLS.
const WEBSOCKET: &str = r#"
def websocket(s, host):
    s.sendall(f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head: head += s.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    def read(n):
        got = b""
        while len(got) < n: got += s.recv(n - len(got))
        return got
    for text in (b"one", b"two"):
        s.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
        print(read(read(2)[1]).decode())
websocket(socket.create_connection(("ws.example", 80)), "ws.example")
context = ssl.create_default_context(cafile=CA)
websocket(context.wrap_socket(socket.create_connection(("ws.example", 443)), server_hostname="ws.example"), "ws.example")
"#;

async fn websockets_go_through_both(node: &Node) {
    let app = node.object("websocket");
    app.start(false).await;
    app.map("Http", "ws.example", "plain").await;
    app.map("Https", "ws.example", "tls").await;
    let answer = app.run(WEBSOCKET).await;
    assert_eq!(answer.trim(), "plain one\nplain two\ntls one\ntls two");
}

/// An HTTP/2 client by hand (RFC 9113): a request with a body, and the answer's DATA. Fields go as literals (RFC 7541, 6.2.2).
const HTTP2: &str = r#"
def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
def http2(s, scheme):
    fields = [(":method", "POST"), (":scheme", scheme), (":authority", "rpc.example"), (":path", "/call"), ("te", "trailers")]
    block = b"".join(b"\0" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in fields)
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4, 1, block) + frame(0, 1, 1, b"payload"))
    def read(n):
        got = b""
        while len(got) < n:
            more = s.recv(n - len(got))
            assert more, "cut"
            got += more
        return got
    body = b""
    while True:
        head = read(9)
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        payload = read(int.from_bytes(head[:3], "big"))
        if kind == 4 and not flags & 1: s.sendall(frame(4, 1, 0))
        if kind in (3, 7): print("reset", payload)
        if kind == 0: body += payload
        if stream == 1 and (kind == 3 or flags & 1): break
    print(body.decode())
http2(socket.create_connection(("rpc.example", 80), timeout=20), "http")
context = ssl.create_default_context(cafile=CA)
context.set_alpn_protocols(["h2"])
http2(context.wrap_socket(socket.create_connection(("rpc.example", 443), timeout=20), server_hostname="rpc.example"), "https")
"#;

async fn http2_is_translated_for_clients_that_speak_nothing_else(node: &Node) {
    let app = node.object("http2");
    app.start(false).await;
    app.map("Http", "rpc.example", "plain").await;
    app.map("Https", "rpc.example", "tls").await;
    let answer = app.run(HTTP2).await;
    assert_eq!(
        answer.trim(),
        "plain POST http://rpc.example/call payload\ntls POST https://rpc.example/call payload"
    );
}

async fn tcp_is_mapped_also_for_servers_that_speak_first(node: &Node) {
    let app = node.object("tcp");
    app.map("Tcp", "192.0.2.7:3306", "database").await;
    app.map("Tcp", "10.1.0.0/16", "intranet").await;
    app.start(false).await;
    let first = r#"
s = socket.create_connection(("192.0.2.7", 3306), timeout=20)
print(s.recv(100).decode())
s.sendall(b"SELECT 1")
print(s.recv(100).decode())
"#;
    assert_eq!(app.run(first).await.trim(), "220 database\nSELECT 1");
    // A private address that the Worker itself answers for; TLS is nothing else than bytes here.
    for bytes in [
        "ping",
        r"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        r"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let answer = app.run(&exchange("10.1.2.3", 80, bytes)).await;
        assert!(answer.starts_with("220 intranet"), "{bytes}: {answer}");
    }
    let answer = app.run(&exchange("192.0.2.7", 3307, "ping")).await;
    assert!(
        answer.trim() == "end" || answer.starts_with("failed"),
        "{answer}"
    );
}

/// workerd passes what no mapping takes to the internet, by a network that knows no limits. Not with a container of ours.
async fn private_addresses_stay_out_of_reach_with_internet_and_any_mappings(node: &Node) {
    let app = node.object("private");
    app.map("Http", "*", "any-http").await;
    app.start(true).await;
    app.map("Http", "198.51.100.0/24", "range").await;
    app.map("Tcp", "198.51.100.0/24", "range").await;
    // A service of the machine on an address of its own, which workerd can reach.
    let own = node::own_address();
    let service = std::net::TcpListener::bind((own, 0)).unwrap();
    service.set_nonblocking(true).unwrap();
    let port = service.local_addr().unwrap().port();
    for (host, port) in [
        (own.to_string(), port),
        ("169.254.169.254".into(), 7777),
        ("10.0.0.1".into(), 7777),
    ] {
        for bytes in ["ping", r"GET / HTTP/1.1\r\nHost: metadata\r\n\r\n", ""] {
            let answer = app.run(&exchange(&host, port, bytes)).await;
            assert!(
                answer.trim() == "end" || answer.starts_with("failed"),
                "{host}: {answer}"
            );
        }
    }
    let error = service.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nobody came");
    // The mappings themselves work, for these addresses too.
    let answer = app.run(&get("http://169.254.169.254/latest")).await;
    assert_eq!(
        answer.trim(),
        "200 any-http GET http://169.254.169.254/latest"
    );
}

async fn a_new_process_of_workerd_has_no_mappings_until_they_are_made_again(node: &mut Node) {
    let app = node.object("adopted");
    app.map("Http", "my.kv", "before").await;
    app.start(false).await;
    assert_eq!(
        app.run(&get("http://my.kv/")).await.trim(),
        "200 before GET http://my.kv/"
    );
    node.kill_workerd().await;
    let answer = app.run(&get("http://my.kv/")).await;
    assert!(answer.starts_with("failed"), "{answer}");
    app.map("Http", "my.kv", "after").await;
    assert_eq!(
        app.run(&get("http://my.kv/")).await.trim(),
        "200 after GET http://my.kv/"
    );
}
