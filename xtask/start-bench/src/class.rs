//! The image classes: what runs in each, the same for every runtime.

use std::path::PathBuf;

/// The port that the app listens on inside its own network.
pub(crate) const PORT: u16 = 8080;
/// What it may write, bytes: Cloudflare's `basic`.
pub(crate) const DISK: u64 = 4_000_000_000;
/// Memory limit of every container, bytes.
pub(crate) const MEMORY: u64 = 3072 << 20;
/// CPU limit of every container, thousandths of a core.
pub(crate) const CPU_MILLIS: u64 = 1000;
/// Limit of processes and threads.
pub(crate) const PIDS: u64 = 4096;

/// One class, with its root file system.
#[derive(Debug, Clone)]
pub(crate) struct Class {
    /// `static`, `busybox`, ...: in the report, in the Worker's URL and in image names.
    pub(crate) name: String,
    /// The root file system, a tar.
    pub(crate) rootfs: PathBuf,
    /// What runs.
    pub(crate) argv: Vec<String>,
}

impl std::str::FromStr for Class {
    type Err = String;

    /// `name=rootfs.tar=["program","argument"]`.
    fn from_str(text: &str) -> Result<Class, String> {
        let parts: Vec<_> = text.splitn(3, '=').collect();
        let [name, rootfs, argv] = parts[..] else {
            return Err("a class is name=rootfs.tar=[\"program\",...]".to_owned());
        };
        Ok(Class {
            name: name.to_owned(),
            rootfs: rootfs.into(),
            argv: serde_json::from_str(argv).map_err(|e| e.to_string())?,
        })
    }
}

impl Class {
    /// The image's name in every image store.
    pub(crate) fn image(&self) -> String {
        format!("wharf-bench/{}:1", self.name)
    }

    /// Variables of the process. One BLAS thread: more are of no use behind a limit of one core, and starting them takes longer than the app.
    pub(crate) fn env(&self, port: u16) -> Vec<String> {
        vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            format!("PORT={port}"),
            "OPENBLAS_NUM_THREADS=1".to_owned(),
        ]
    }
}
