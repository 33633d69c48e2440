//! A builder with a real image store, spawner and networks, a busybox base image, and guards that leave nothing behind.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wharf_build::{BuildError, BuildRequest, Builder, Progress};
use wharf_image::{Image, ImageStore, Layer};
use wharf_net::{Dial, NetConfig, Networks};
use wharf_sandbox::Spawner;
use wharf_testkit::{Place, busybox};

pub(crate) struct Node {
    pub(crate) images: ImageStore,
    pub(crate) spawner: Spawner,
    pub(crate) builder: Builder,
    /// The build context.
    pub(crate) context: PathBuf,
    place: Place,
}

/// What a build said and made.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) result: Result<Image, BuildError>,
    /// Step texts, with whether they came from the cache.
    pub(crate) steps: Vec<(String, bool)>,
    pub(crate) output: String,
}

impl Node {
    pub(crate) async fn new() -> Node {
        Node::with(Arc::new(wharf_net::Direct)).await
    }

    pub(crate) async fn with(dialer: Arc<dyn Dial>) -> Node {
        let place = Place::new(env!("CARGO_BIN_EXE_wharf-build-spawner-test"));
        let (spawner, _) = place.start(1000).await;
        let images = ImageStore::open(&place.path("images")).unwrap();
        let networks = Networks::with_dialer(
            NetConfig {
                pool_size: 0,
                hold_ms: 1000,
                dns_servers: Vec::new(),
                allow_private: false,
            },
            dialer,
        );
        let build = place.dir.path().join("build");
        Node {
            builder: Builder::new(images.clone(), spawner.clone(), networks, build),
            images,
            spawner,
            context: place.path("context"),
            place,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.place.dir.path()
    }

    /// Imports `busybox:latest`.
    pub(crate) fn busybox(&self) {
        self.images
            .import_rootfs("busybox", &*busybox::tar())
            .unwrap();
    }

    /// Writes a file of the context.
    pub(crate) fn file(&self, path: &str, content: &str) {
        let path = self.context.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn request(&self, dockerfile: &str) -> BuildRequest {
        BuildRequest {
            context: self.context.clone(),
            dockerfile: dockerfile.to_owned(),
            tags: vec!["result:latest".to_owned()],
            ..BuildRequest::default()
        }
    }

    pub(crate) async fn build(&self, dockerfile: &str) -> Built {
        self.build_with(self.request(dockerfile)).await
    }

    pub(crate) async fn build_with(&self, request: BuildRequest) -> Built {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let result = self.builder.build(request, sender).await;
        let mut built = Built {
            result,
            steps: Vec::new(),
            output: String::new(),
        };
        let mut bytes = Vec::new();
        while let Some(progress) = receiver.recv().await {
            match progress {
                Progress::Step {
                    number,
                    total,
                    text,
                    cached,
                } => {
                    built.steps.push((text, cached));
                    assert_eq!(number, built.steps.len(), "steps are numbered from 1");
                    assert!(number <= total, "step {number} of {total}");
                }
                Progress::Output(part) => bytes.extend(part),
            }
        }
        built.output = String::from_utf8(bytes).unwrap();
        built
    }

    /// Looks into the merged tree of layers.
    pub(crate) fn look<T>(&self, layers: &[Layer], look: impl FnOnce(&Path) -> T) -> T {
        let lower = self.images.lower_dirs(layers).unwrap();
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        let tree = wharf_sandbox::overlay::detached(&lower, None).unwrap();
        look(Path::new(&format!("/proc/self/fd/{}", tree.as_raw_fd())))
    }

    pub(crate) fn read(&self, image: &Image, path: &str) -> String {
        self.look(&image.layers, |root| {
            fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
        })
    }

    /// Paths in one layer, sorted.
    pub(crate) fn layer_paths(&self, layer: &Layer) -> Vec<String> {
        fn list(dir: &Path, base: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                into.push(
                    path.strip_prefix(base)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
                if path.is_dir() && !path.is_symlink() {
                    list(&path, base, into);
                }
            }
        }
        let dir = &self.images.lower_dirs(std::slice::from_ref(layer)).unwrap()[0];
        let mut paths = Vec::new();
        list(dir, dir, &mut paths);
        paths.sort();
        paths
    }

    /// Shuts down; nothing of a build may be left.
    pub(crate) async fn finish(self) {
        let left: Vec<_> = fs::read_dir(self.dir().join("images/tmp"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        self.place.finish(&self.spawner).await;
    }
}

impl Built {
    pub(crate) fn image(self) -> Image {
        match self.result {
            Ok(image) => image,
            Err(e) => panic!("{e}\n{:?}\n{}", self.steps, self.output),
        }
    }

    pub(crate) fn error(self) -> String {
        self.result.expect_err("the build fails").to_string()
    }

    /// Whether each step but FROM came from the cache.
    pub(crate) fn cached(&self) -> Vec<bool> {
        self.steps
            .iter()
            .filter(|(text, _)| !text.contains("FROM "))
            .map(|(_, cached)| *cached)
            .collect()
    }
}
