//! The registry over real HTTP on loopback, as clients use it.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use wharf_image::{Digest, ImageStore};
use wharf_registry::Access;

const TOKEN: &str = "s3cret";
const PULL_ONLY: &str = "pull-only";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Server {
    address: std::net::SocketAddr,
    images: ImageStore,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
    fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|e| match e {}).boxed()
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let images = ImageStore::open(dir.path()).unwrap();
    let router = wharf_registry::router(
        images.clone(),
        Arc::new(|token| match token {
            TOKEN => Some(Access::Push),
            PULL_ONLY => Some(Access::Pull),
            _ => None,
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    images.set_registry_hosts(&[address.to_string()]);
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server {
        address,
        images,
        task,
        _dir: dir,
    }
}

impl Server {
    async fn raw(&self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("authorization", format!("Bearer {TOKEN}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.raw(request.body(body).unwrap()).await.unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], full("")).await
    }

    async fn put_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let answer = self
            .send(Method::POST, &path, &[], full(bytes.to_vec()))
            .await;
        assert_eq!(answer.status, StatusCode::CREATED);
        digest
    }

    async fn put_manifest(&self, path: &str, media_type: &str, body: &str) -> Answer {
        self.send(
            Method::PUT,
            path,
            &[("content-type", media_type)],
            full(body.to_owned()),
        )
        .await
    }

    /// Pushes an image of one file; returns the manifest's body.
    async fn push(&self, name: &str, tag: &str, content: &str, extra: Value) -> String {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", content.as_bytes())
            .unwrap();
        let tar = tar.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &tar).unwrap();
        let layer = gzip.finish().unwrap();
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar).as_str()]}}).to_string();
        let layer_digest = self.put_blob(name, &layer).await;
        let config_digest = self.put_blob(name, config.as_bytes()).await;
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest.as_str(), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer_digest.as_str(), "size": layer.len()}]});
        for (key, value) in extra.as_object().into_iter().flatten() {
            manifest[key] = value.clone();
        }
        let body = manifest.to_string();
        let reference = if tag.is_empty() {
            Digest::of(body.as_bytes()).to_string()
        } else {
            tag.to_owned()
        };
        let answer = self
            .put_manifest(
                &format!("/v2/{name}/manifests/{reference}"),
                MANIFEST,
                &body,
            )
            .await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(
            answer.header("docker-content-digest"),
            Digest::of(body.as_bytes()).as_str()
        );
        body
    }
}

#[tokio::test]
async fn only_the_token_opens() {
    use base64::Engine;
    let server = server().await;
    let basic = |text: &str| {
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(text)
        )
    };
    for (authorization, open) in [
        (None, false),
        (Some("Bearer wrong".to_owned()), false),
        (Some(basic("v1:wrong")), false),
        (Some(basic(TOKEN)), false),
        (Some(format!("Bearer {TOKEN}")), true),
        (Some(basic(&format!("v1:{TOKEN}"))), true),
        (Some(basic(&format!(":{TOKEN}"))), true),
    ] {
        for path in ["/v2/", "/v2", "/v2/_catalog"] {
            let mut request = Request::get(path).header("host", "x");
            if let Some(value) = &authorization {
                request = request.header("authorization", value);
            }
            let answer = server.raw(request.body(full("")).unwrap()).await.unwrap();
            assert_eq!(
                answer.header("docker-distribution-api-version"),
                "registry/2.0"
            );
            if open {
                assert_eq!(answer.status, StatusCode::OK);
            } else {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization:?}");
                assert_eq!(answer.header("www-authenticate"), "Basic realm=\"wharf\"");
                assert_eq!(answer.code(), "UNAUTHORIZED");
            }
        }
    }
}

#[tokio::test]
async fn a_token_for_pulling_does_not_push() {
    let server = server().await;
    for (method, path, status) in [
        ("GET", "/v2/_catalog", StatusCode::OK),
        ("POST", "/v2/acc/app/blobs/uploads/", StatusCode::FORBIDDEN),
        ("DELETE", "/v2/acc/app/manifests/v1", StatusCode::FORBIDDEN),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "x")
            .header("authorization", format!("Bearer {PULL_ONLY}"));
        let answer = server.raw(request.body(full("")).unwrap()).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_pushed_runs_and_is_pulled() {
    let server = server().await;
    let body = server.push("acc/app", "v1", "hello", json!({})).await;
    let digest = Digest::of(body.as_bytes());

    // It runs here.
    let image = server
        .images
        .resolve(&format!("{}/acc/app:v1", server.address))
        .unwrap();
    let dirs = server.images.lower_dirs(&image.layers).unwrap();
    assert_eq!(
        std::fs::read_to_string(dirs[0].join("file")).unwrap(),
        "hello"
    );
    assert_eq!(
        image.repo_digests,
        [format!("{}/acc/app@{digest}", server.address)]
    );

    // And is pulled as it was.
    for reference in ["v1", digest.as_str()] {
        let path = format!("/v2/acc/app/manifests/{reference}");
        let answer = server.get(&path).await;
        assert_eq!(answer.body, body);
        assert_eq!(answer.header("content-type"), MANIFEST);
        let head = server.send(Method::HEAD, &path, &[], full("")).await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.header("docker-content-digest"), digest.as_str());
        assert_eq!(head.header("content-length"), body.len().to_string());
        assert!(head.body.is_empty());
    }
    let layer = &image.layers[0];
    let path = format!("/v2/acc/app/blobs/{}", layer.digest);
    let whole = server.get(&path).await;
    assert_eq!(Digest::of(&whole.body), layer.digest);
    let head = server.send(Method::HEAD, &path, &[], full("")).await;
    assert_eq!(head.header("content-length"), layer.size.to_string());
    let part = server
        .send(Method::GET, &path, &[("range", "bytes=2-5")], full(""))
        .await;
    assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.body, whole.body[2..6]);
    assert_eq!(
        part.header("content-range"),
        format!("bytes 2-5/{}", layer.size)
    );
    let outside = server
        .send(Method::GET, &path, &[("range", "bytes=99999-")], full(""))
        .await;
    assert_eq!(outside.status, StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn a_blob_in_chunks_survives_a_break() {
    let server = server().await;
    let begun = server
        .send(Method::POST, "/v2/a/b/blobs/uploads/", &[], full(""))
        .await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    assert_eq!(begun.header("range"), "0-0");
    let location = begun.header("location").to_owned();
    assert!(location.ends_with(begun.header("docker-upload-uuid")));

    let chunk = |range: &'static str, body: &'static str| {
        let (server, location) = (&server, &location);
        async move {
            let headers = [("content-range", range)];
            let headers = if range.is_empty() { &[][..] } else { &headers };
            server
                .send(Method::PATCH, location, headers, full(body))
                .await
        }
    };
    let first = chunk("0-4", "01234").await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    assert_eq!(first.header("range"), "0-4");
    // Out of order, twice the same, not what it says, nonsense.
    for range in ["7-8", "0-4"] {
        let answer = chunk(range, "78").await;
        assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(answer.header("range"), "0-4");
        assert_eq!(answer.header("location"), location);
    }
    let answer = chunk("5-9", "567").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::BAD_REQUEST, "SIZE_INVALID")
    );
    let answer = chunk("x", "5").await;
    assert_eq!(answer.code(), "BLOB_UPLOAD_INVALID");

    // A client that breaks off in the middle keeps what arrived.
    let mut stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 5\r\n\r\n56"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    let mut seen = String::new();
    // What the server noticed of it is a matter of moments.
    for _ in 0..500 {
        let status = server.get(&location).await;
        assert_eq!(status.status, StatusCode::NO_CONTENT);
        seen = status.header("range").to_owned();
        if seen == "0-6" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(seen, "0-6");

    // The request before may still hold the upload for a moment.
    let mut streamed = chunk("", "78").await;
    for _ in 0..500 {
        if streamed.status == StatusCode::ACCEPTED {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        streamed = chunk("", "78").await;
    }
    assert_eq!(streamed.header("range"), "0-8");
    let digest = Digest::of(b"0123456789");
    let done = server
        .send(
            Method::PUT,
            &format!("{location}?digest={}", digest.as_str().replace(':', "%3A")),
            &[("content-range", "9-9")],
            full("9"),
        )
        .await;
    assert_eq!(done.status, StatusCode::CREATED);
    assert_eq!(done.header("location"), format!("/v2/a/b/blobs/{digest}"));
    assert_eq!(done.header("docker-content-digest"), digest.as_str());
    assert_eq!(server.get(done.header("location")).await.body, "0123456789");
    assert_eq!(server.get(&location).await.code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn what_is_not_what_it_says_does_not_come_in() {
    let server = server().await;
    let wrong = Digest::of(b"other");
    for query in [
        format!("?digest={wrong}"),
        "?digest=sha512:abc".to_owned(),
        "?digest=".to_owned(),
    ] {
        let answer = server
            .send(
                Method::POST,
                &format!("/v2/a/blobs/uploads/{query}"),
                &[],
                full("content"),
            )
            .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.code(), "DIGEST_INVALID");
    }
    let begun = server
        .send(Method::POST, "/v2/a/blobs/uploads/", &[], full(""))
        .await;
    let location = begun.header("location").to_owned();
    let no_digest = server
        .send(Method::PUT, &location, &[], full("content"))
        .await;
    assert_eq!(no_digest.code(), "DIGEST_INVALID");
    let path = format!("{location}?digest={wrong}");
    let answer = server.send(Method::PUT, &path, &[], full("content")).await;
    assert_eq!(answer.code(), "DIGEST_INVALID");
    assert_eq!(server.get(&location).await.status, StatusCode::NOT_FOUND);
    let blob = format!("/v2/a/blobs/{}", Digest::of(b"content"));
    assert_eq!(server.get(&blob).await.code(), "BLOB_UNKNOWN");

    let begun = server
        .send(Method::POST, "/v2/a/blobs/uploads/", &[], full(""))
        .await;
    let location = begun.header("location").to_owned();
    let cancelled = server.send(Method::DELETE, &location, &[], full("")).await;
    assert_eq!(cancelled.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get(&location).await.code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_blob_that_is_here_is_not_sent_again() {
    let server = server().await;
    let digest = server.put_blob("one", b"shared").await;
    let head = server
        .send(
            Method::HEAD,
            &format!("/v2/two/blobs/{digest}"),
            &[],
            full(""),
        )
        .await;
    assert_eq!(head.status, StatusCode::OK);
    let mount = format!("/v2/two/blobs/uploads/?mount={digest}&from=one");
    let mounted = server.send(Method::POST, &mount, &[], full("")).await;
    assert_eq!(mounted.status, StatusCode::CREATED);
    assert_eq!(
        mounted.header("location"),
        format!("/v2/two/blobs/{digest}")
    );
    let other = Digest::of(b"not here");
    let mount = format!("/v2/two/blobs/uploads/?mount={other}&from=one");
    let session = server.send(Method::POST, &mount, &[], full("")).await;
    assert_eq!(session.status, StatusCode::ACCEPTED);
    assert!(
        session
            .header("location")
            .starts_with("/v2/two/blobs/uploads/")
    );
}

#[tokio::test]
async fn a_large_blob_streams_both_ways() {
    let server = server().await;
    // 48 MiB in pieces, so that no side may hold it whole by accident.
    let pieces: Vec<Bytes> = (0..768u32)
        .map(|n| Bytes::from(n.to_le_bytes().repeat(16 * 1024)))
        .collect();
    let digest = Digest::of(&pieces.concat());
    let body = StreamBody::new(
        futures_util::stream::iter(pieces.clone()).map(|p| Ok(hyper::body::Frame::data(p))),
    );
    let path = format!("/v2/big/blobs/uploads/?digest={digest}");
    let answer = server
        .send(Method::POST, &path, &[], BodyExt::boxed(body))
        .await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let answer = server.get(&format!("/v2/big/blobs/{digest}")).await;
    assert_eq!(Digest::of(&answer.body), digest);
}

#[tokio::test]
async fn manifests_are_checked() {
    let server = server().await;
    let body = server.push("a", "1", "x", json!({})).await;
    let mut absent: Value = serde_json::from_str(&body).unwrap();
    absent["layers"][0]["digest"] = json!(Digest::of(b"absent").as_str());
    let put = |reference: &str, media_type: &'static str, body: String| {
        let path = format!("/v2/a/manifests/{reference}");
        let server = &server;
        async move { server.put_manifest(&path, media_type, &body).await }
    };
    let answer = put("2", MANIFEST, absent.to_string()).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN")
    );
    assert_eq!(
        put("2", MANIFEST, "{".to_owned()).await.code(),
        "MANIFEST_INVALID"
    );
    assert_eq!(
        put("2", "text/plain", body.clone()).await.code(),
        "MANIFEST_INVALID"
    );
    assert_eq!(
        put("-bad", MANIFEST, body.clone()).await.code(),
        "MANIFEST_INVALID"
    );
    let wrong = Digest::of(b"other");
    assert_eq!(
        put(wrong.as_str(), MANIFEST, body.clone()).await.code(),
        "DIGEST_INVALID"
    );
    let huge = put("2", MANIFEST, " ".repeat(5 << 20)).await;
    assert_eq!(huge.status, StatusCode::PAYLOAD_TOO_LARGE);
    for (path, code) in [
        ("/v2/a/manifests/2", "MANIFEST_UNKNOWN"),
        ("/v2/none/manifests/1", "MANIFEST_UNKNOWN"),
        ("/v2/none/tags/list", "NAME_UNKNOWN"),
        ("/v2/A/tags/list", "NAME_INVALID"),
        ("/v2/a/blobs/sha256:12", "DIGEST_INVALID"),
        ("/v2/a/manifests/sha256:12", "DIGEST_INVALID"),
        ("/v2/a/what", "NAME_UNKNOWN"),
        ("/v2/a/tags/list?n=x", "PAGINATION_NUMBER_INVALID"),
    ] {
        assert_eq!(server.get(path).await.code(), code, "{path}");
    }
    let answer = server
        .send(Method::POST, "/v2/a/manifests/1", &[], full(""))
        .await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.header("allow"), "GET, HEAD, PUT, DELETE");
    let blob = format!("/v2/a/blobs/{}", Digest::of(b"x"));
    let answer = server.send(Method::DELETE, &blob, &[], full("")).await;
    assert_eq!(answer.code(), "UNSUPPORTED");
}

#[tokio::test]
async fn lists_and_wranglers_way_of_deleting() {
    let server = server().await;
    for tag in ["b", "a", "c"] {
        server.push("acc/app", tag, tag, json!({})).await;
    }
    server.push("acc/other", "x", "x", json!({})).await;
    assert_eq!(
        server.get("/v2/_catalog").await.json(),
        json!({"repositories": ["acc/app", "acc/other"]})
    );
    let page = server.get("/v2/_catalog?n=1").await;
    assert_eq!(
        page.header("link"),
        "</v2/_catalog?n=1&last=acc/app>; rel=\"next\""
    );
    let page = server.get("/v2/_catalog?n=1&last=acc/app").await;
    assert_eq!(page.json(), json!({"repositories": ["acc/other"]}));
    assert_eq!(page.header("link"), "");
    assert_eq!(
        server.get("/v2/_catalog?tags=true").await.json(),
        json!({"repositories": {"acc/app": ["a", "b", "c"], "acc/other": ["x"]}})
    );
    assert_eq!(
        server.get("/v2/acc/app/tags/list?n=2").await.json(),
        json!({"name": "acc/app", "tags": ["a", "b"]})
    );

    let path = "/v2/acc/app/manifests/a";
    let head = server
        .send(
            Method::HEAD,
            path,
            &[(
                "accept",
                "application/vnd.docker.distribution.manifest.v2+json",
            )],
            full(""),
        )
        .await;
    assert_eq!(head.status, StatusCode::OK);
    assert!(head.header("docker-content-digest").starts_with("sha256:"));
    let deleted = server.send(Method::DELETE, path, &[], full("")).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    assert_eq!(server.get(path).await.code(), "MANIFEST_UNKNOWN");
    let again = server.send(Method::DELETE, path, &[], full("")).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    let collected = server
        .send(Method::PUT, "/v2/gc/layers", &[], full(""))
        .await;
    assert_eq!(collected.status, StatusCode::OK);
    assert_eq!(
        server.get("/v2/acc/app/tags/list").await.json()["tags"],
        json!(["b", "c"])
    );
}

#[tokio::test]
async fn referrers_point_back_to_what_they_are_about() {
    let server = server().await;
    let body = server.push("app", "1", "x", json!({})).await;
    let subject = Digest::of(body.as_bytes());
    let path = format!("/v2/app/referrers/{subject}");
    let none = server.get(&path).await;
    assert_eq!(none.header("content-type"), INDEX);
    assert_eq!(none.json()["manifests"], json!([]));
    let signature = json!({"artifactType": "application/x-signature", "annotations": {"by": "me"},
        "subject": {"mediaType": MANIFEST, "digest": subject.as_str(), "size": body.len()}});
    let signature = server.push("app", "", "signature", signature).await;
    let answer = server
        .put_manifest("/v2/app/manifests/signature", MANIFEST, &signature)
        .await;
    assert_eq!(answer.header("oci-subject"), subject.as_str());
    let found = server.get(&path).await.json();
    assert_eq!(
        found["manifests"],
        json!([{"mediaType": MANIFEST, "digest": Digest::of(signature.as_bytes()).as_str(), "size": signature.len(),
                "artifactType": "application/x-signature", "annotations": {"by": "me"}}])
    );
    let filtered = server.get(&format!("{path}?artifactType=other")).await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(filtered.json()["manifests"], json!([]));
}

#[tokio::test]
async fn a_client_that_knows_no_indexes_gets_its_image() {
    let server = server().await;
    let here = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let image = server.push("multi", "", "x", json!({})).await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": MANIFEST,
        "digest": Digest::of(image.as_bytes()).as_str(), "size": image.len(), "platform": {"os": "linux", "architecture": here}}]})
    .to_string();
    let answer = server
        .put_manifest("/v2/multi/manifests/1", INDEX, &index)
        .await;
    assert_eq!(answer.status, StatusCode::CREATED);
    for (accept, expected) in [
        (MANIFEST, &image),
        ("*/*", &index),
        ("application/vnd.oci.image.index.v1+json;q=0.9, x/y", &index),
    ] {
        let answer = server
            .send(
                Method::GET,
                "/v2/multi/manifests/1",
                &[("accept", accept)],
                full(""),
            )
            .await;
        assert_eq!(answer.body, *expected, "{accept}");
    }
}
