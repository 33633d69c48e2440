//! The API over a real store, with effects that note what they are told and answer as a test wants.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use http::{Method, Request, StatusCode, header};
use serde_json::Value;
use tower::ServiceExt;
use wharf_control::{ControlConfig, Effects, router};
use wharf_model::{InstanceState, InstanceView, Version};
use wharf_store::Store;

/// Effects under the test's control.
#[derive(Default)]
pub(crate) struct Recorder {
    /// What was called, in order.
    pub(crate) calls: Mutex<Vec<String>>,
    /// What the next `script_changed` and `application_changed` calls answer; nothing left: success.
    pub(crate) answers: Mutex<VecDeque<Result<(), String>>>,
    /// Classes that no version exports.
    pub(crate) missing_classes: Mutex<Vec<String>>,
    /// Images that can't be started.
    pub(crate) bad_images: Mutex<Vec<String>>,
    /// While held, `script_changed` waits.
    pub(crate) gate: tokio::sync::Mutex<()>,
    inside: AtomicUsize,
    /// The most `script_changed` calls at a time.
    pub(crate) most_inside: AtomicUsize,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Recorder {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
    pub(crate) fn fail_next(&self, reason: &str) {
        self.answers.lock().unwrap().push_back(Err(reason.into()));
    }
    fn answer(&self) -> Result<(), String> {
        self.answers.lock().unwrap().pop_front().unwrap_or(Ok(()))
    }
}

impl Effects for Recorder {
    fn script_changed<'a>(&'a self, script: &'a str) -> Answer<'a, Result<(), String>> {
        self.note(format!("script_changed {script}"));
        Box::pin(async {
            let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_inside.fetch_max(inside, Ordering::SeqCst);
            drop(self.gate.lock().await);
            tokio::task::yield_now().await;
            self.inside.fetch_sub(1, Ordering::SeqCst);
            self.answer()
        })
    }
    fn missing_classes<'a>(
        &'a self,
        _: &'a Version,
        classes: BTreeSet<String>,
    ) -> Answer<'a, Result<BTreeSet<String>, String>> {
        let missing = self.missing_classes.lock().unwrap();
        let found = classes.into_iter().filter(|c| missing.contains(c));
        let found = Ok(found.collect());
        Box::pin(async { found })
    }
    fn script_deleted<'a>(&'a self, script: &'a str) -> Answer<'a, ()> {
        self.note(format!("script_deleted {script}"));
        Box::pin(async {})
    }
    fn address_changed<'a>(&'a self, script: &'a str) -> Answer<'a, Result<(), String>> {
        self.note(format!("address_changed {script}"));
        Box::pin(async { self.answer() })
    }
    fn application_changed<'a>(&'a self, id: &'a str) -> Answer<'a, Result<(), String>> {
        self.note(format!("application_changed {id}"));
        Box::pin(async { self.answer() })
    }
    fn check_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Result<(), String>> {
        self.note(format!("check_image {reference}"));
        let bad = self
            .bad_images
            .lock()
            .unwrap()
            .iter()
            .any(|image| image == reference);
        Box::pin(async move {
            if bad {
                Err("no such image on this node".into())
            } else {
                Ok(())
            }
        })
    }
    fn prepare_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Result<(), String>> {
        self.note(format!("prepare_image {reference}"));
        let bad = self.bad_images.lock().unwrap();
        let found = bad.iter().any(|image| image == reference);
        Box::pin(async move {
            match found {
                true => Err("no such image on this node".into()),
                false => Ok(()),
            }
        })
    }
    fn instances<'a>(&'a self, application: &'a str) -> Answer<'a, Vec<InstanceView>> {
        let instance = InstanceView {
            id: format!("{application}-1"),
            name: "instance".to_owned(),
            created_ms: 0,
            state: InstanceState::Running,
        };
        Box::pin(async move { vec![instance] })
    }
}

/// A node's control API.
pub(crate) struct Node {
    _dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) effects: Arc<Recorder>,
    pub(crate) router: Router,
    pub(crate) account: String,
    pub(crate) token: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Reply {
    /// The result of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(self.body["success"], true, "{}", self.body);
        self.body["result"].clone()
    }
    /// The message of an error with this status and code.
    #[track_caller]
    pub(crate) fn error(self, status: u16, code: u64) -> String {
        assert_eq!(
            (
                self.status.as_u16(),
                self.body["errors"][0]["code"].as_u64()
            ),
            (status, Some(code)),
            "{}",
            self.body
        );
        assert_eq!(self.body["success"], false);
        self.body["errors"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

pub(crate) const BOUNDARY: &str = "----test";

/// A part of a multipart body: name, file name, content type, content.
pub(crate) type Part<'a> = (&'a str, Option<&'a str>, Option<&'a str>, &'a [u8]);

/// A multipart body.
pub(crate) fn multipart(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, content_type, content) in parts {
        let file = file
            .map(|file| format!("; filename=\"{file}\""))
            .unwrap_or_default();
        let content_type = content_type
            .map(|t| format!("Content-Type: {t}\r\n"))
            .unwrap_or_default();
        body.extend_from_slice(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n{content_type}\r\n").as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// An upload of one module with this metadata; `main_module` is filled in.
pub(crate) fn upload(metadata: Value) -> Vec<u8> {
    let mut metadata = metadata;
    if metadata.get("main_module").is_none() {
        metadata["main_module"] = "index.js".into();
    }
    if metadata.get("compatibility_date").is_none() {
        metadata["compatibility_date"] = "2026-01-01".into();
    }
    let code = b"export default { fetch() { return new Response('hi') } }";
    multipart(&[
        ("metadata", None, None, metadata.to_string().as_bytes()),
        (
            "./index.js",
            Some("./index.js"),
            Some("application/javascript+module"),
            code,
        ),
    ])
}

fn api(store: &Store, effects: &Arc<Recorder>) -> Router {
    let config = ControlConfig {
        account_id: store.account_id(),
        registry_host: "127.0.0.1:7400".into(),
        script_url: "http://{script}.localhost:8080".into(),
    };
    router(
        config,
        store.clone(),
        Arc::clone(effects) as Arc<dyn Effects>,
    )
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let effects = Arc::new(Recorder::default());
        let account = store.account_id();
        let token = store.first_token(|_| Ok(())).unwrap().unwrap();
        let router = api(&store, &effects);
        Self {
            _dir: dir,
            store,
            effects,
            router,
            account,
            token,
        }
    }

    /// Another API over the same store, as a second node would have.
    pub(crate) fn beside(&self) -> Router {
        api(&self.store, &self.effects)
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        Reply {
            status,
            body: serde_json::from_slice(&body).unwrap(),
        }
    }

    /// A request with the token; `path` is below the account, or below the root if it starts with a slash.
    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let uri = match path.starts_with('/') {
            true => format!("/client/v4{path}"),
            false => format!("/client/v4/accounts/{}/{path}", self.account),
        };
        Request::builder()
            .method(method)
            .uri(uri)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::USER_AGENT, "wrangler/4.164.0")
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap())
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(
            self.request(Method::DELETE, path)
                .body(Body::empty())
                .unwrap(),
        )
        .await
    }

    /// Sends JSON, with the Content-Type that some of wrangler's requests have.
    pub(crate) async fn json(&self, method: Method, path: &str, body: Value) -> Reply {
        let request = self
            .request(method, path)
            .header(header::CONTENT_TYPE, "text/plain;charset=UTF-8")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.send(request).await
    }

    /// Sends a multipart body.
    pub(crate) async fn form(&self, method: Method, path: &str, body: Vec<u8>) -> Reply {
        self.send(self.form_request(method, path, body)).await
    }

    pub(crate) fn form_request(&self, method: Method, path: &str, body: Vec<u8>) -> Request<Body> {
        self.request(method, path)
            .header(
                header::CONTENT_TYPE,
                format!("multipart/form-data; boundary={BOUNDARY}"),
            )
            .body(Body::from(body))
            .unwrap()
    }

    /// `wrangler deploy` of a Worker that is new: PUT.
    pub(crate) async fn put(&self, script: &str, metadata: Value) -> Reply {
        self.form(
            Method::PUT,
            &format!("workers/scripts/{script}?excludeScript=true&bindings_inherit=strict"),
            upload(metadata),
        )
        .await
    }

    /// The version that serves.
    pub(crate) fn deployed_version(&self, script: &str) -> Version {
        self.store.deployed_version(script).unwrap().unwrap()
    }

    /// The id of the version that serves.
    pub(crate) fn deployed(&self, script: &str) -> Option<String> {
        self.store.script(script).unwrap()?.deployed_version
    }
}
