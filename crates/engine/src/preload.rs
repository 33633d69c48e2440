//! Interpreters with their imports done, as process images: made ahead, given to starts, and
//! forgotten.
//!
//! Owns: which image has one, when one is made, and how much memory all of them have.
//! Must not: hold up a start. One that finds nothing ready is an ordinary one.
//!
//! ```text
//! (none) --a create, or an image made ready--> making --made--> ready
//!   ready --its application has another image, too many--> (none)
//!   making --failed--> waiting --the next create after a while--> making
//! ```
//! The process in which an image is made has walls of its own like any container: the instance's
//! limits, no way out by network. It has ended before the image is used, and what was written in it
//! is gone.

mod make;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use wharf_sandbox::{Limits, ProcessImage};

use crate::record::{InstanceSpec, PreloadKey};
use crate::{Create, Shared, merge};

/// The label of an image that asks for it: the modules to import ahead.
pub(crate) const LABEL: &str = "wharf.preload";
/// After a failure: from the first to the second, doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// The most images that are known at a time, whatever their state.
const MAX_ENTRIES: usize = 256;
/// Modules in one label.
const MAX_MODULES: usize = 64;

/// What it takes to make an image.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) key: PreloadKey,
    /// The image's name, for people.
    pub(crate) reference: String,
    /// The application whose instances it is for. Each has one image once it has been rolled out.
    pub(crate) application: Option<String>,
    pub(crate) modules: Vec<String>,
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) limits: Limits,
}

/// An image, for `wharf status`.
#[derive(Debug, Clone, Serialize)]
pub struct Preload {
    /// Image reference.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// Modules that are imported.
    pub modules: Vec<String>,
    /// `making`, `ready` or `failed`.
    pub state: &'static str,
    /// Memory that it holds, bytes.
    pub bytes: u64,
    /// Starts that began from it.
    pub restored: u64,
    /// Starts of its image that did not.
    pub ordinary: u64,
    /// Why the last of those did not, or why it could not be made.
    pub reason: Option<String>,
}

#[derive(Debug)]
enum State {
    Making,
    Ready(Arc<ProcessImage>),
    Failed { until: Instant },
}

#[derive(Debug)]
struct Entry {
    reference: String,
    application: Option<String>,
    modules: Vec<String>,
    state: State,
    used: Instant,
    failures: u32,
    restored: u64,
    ordinary: u64,
    reason: Option<String>,
}

/// All of a node.
#[derive(Debug)]
pub(crate) struct Preloads {
    /// The most images that are kept; 0: none is made.
    most: usize,
    entries: Mutex<BTreeMap<PreloadKey, Entry>>,
    /// Lets one image be made at a time.
    maker: tokio::sync::Semaphore,
}

impl Preloads {
    pub(crate) fn new(most: usize) -> Preloads {
        Preloads {
            most,
            entries: Mutex::default(),
            maker: tokio::sync::Semaphore::new(1),
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PreloadKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an image made in the background, unless it is there, on its way, or failed a moment ago.
    pub(crate) fn want(shared: &Arc<Shared>, wanted: Wanted) {
        let preloads = &shared.preloads;
        if preloads.most == 0 || !preloads.begin(&wanted, Instant::now()) {
            return;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let preloads = &shared.preloads;
            let Ok(_turn) = preloads.maker.acquire().await else {
                return; // Never closed.
            };
            let start = Instant::now();
            let made = make::make(&shared, &wanted).await;
            match &made {
                Ok(image) => tracing::info!(
                    image = wanted.reference,
                    modules = wanted.modules.join(", "),
                    mib = image.bytes() >> 20,
                    ms = start.elapsed().as_millis() as u64,
                    "imports done ahead"
                ),
                Err(reason) => tracing::warn!(
                    image = wanted.reference,
                    reason,
                    "the modules of the label wharf.preload cannot be imported ahead; its instances start as without it"
                ),
            }
            preloads.made(&wanted.key, made, Instant::now());
        });
    }

    /// Whether it is to be made now.
    fn begin(&self, wanted: &Wanted, now: Instant) -> bool {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(&wanted.key) {
            let again = matches!(entry.state, State::Failed { until } if until <= now);
            if again {
                entry.state = State::Making;
            }
            return again;
        }
        while entries.len() >= MAX_ENTRIES {
            let oldest = entries.iter().min_by_key(|(_, e)| e.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            entries.remove(&key);
        }
        let entry = Entry {
            reference: wanted.reference.clone(),
            application: wanted.application.clone(),
            modules: wanted.modules.clone(),
            state: State::Making,
            used: now,
            failures: 0,
            restored: 0,
            ordinary: 0,
            reason: None,
        };
        entries.insert(wanted.key.clone(), entry);
        true
    }

    /// An application has this image now, or none: what was made of its others goes.
    pub(crate) fn rolled(&self, application: &str, image_id: Option<&str>) {
        self.entries().retain(|key, entry| {
            entry.application.as_deref() != Some(application)
                || image_id == Some(key.image_id.as_str())
        });
    }

    fn made(&self, key: &PreloadKey, made: Result<ProcessImage, String>, now: Instant) {
        let mut entries = self.entries();
        // Gone meanwhile: its application has another image.
        let Some(entry) = entries.get_mut(key) else {
            return;
        };
        match made {
            Ok(image) => {
                entry.state = State::Ready(Arc::new(image));
                entry.reason = None;
                entry.failures = 0;
                entry.used = now;
            }
            Err(reason) => entry.fail(reason, now),
        }
        let ready = |entry: &Entry| matches!(entry.state, State::Ready(_));
        while entries.values().filter(|entry| ready(entry)).count() > self.most {
            let oldest = entries.iter().filter(|(_, entry)| ready(entry));
            let Some(key) = oldest
                .min_by_key(|(_, e)| e.used)
                .map(|(key, _)| key.clone())
            else {
                return;
            };
            entries.remove(&key);
        }
    }

    /// What this start may begin from, if it is ready.
    pub(crate) fn take(&self, spec: &InstanceSpec) -> Option<OwnedFd> {
        let key = match spec.preload.as_ref()? {
            Ok(key) => key,
            Err(reason) => {
                self.ordinary(&spec.image_id, reason);
                return None;
            }
        };
        let mut entries = self.entries();
        let entry = entries.get_mut(key)?;
        entry.used = Instant::now();
        let State::Ready(image) = &entry.state else {
            entry.ordinary += 1;
            return None;
        };
        let copy = image.as_fd().try_clone_to_owned();
        copy.inspect_err(|error| tracing::warn!(%error, "a process image was not given"))
            .ok()
    }

    /// What became of a start that was given one.
    pub(crate) fn started(&self, spec: &InstanceSpec, outcome: Result<(), &str>) {
        match outcome {
            Ok(()) => {
                let Some(Ok(key)) = &spec.preload else {
                    return;
                };
                if let Some(entry) = self.entries().get_mut(key) {
                    entry.restored += 1;
                }
            }
            Err(reason) => self.ordinary(&spec.image_id, reason),
        }
    }

    /// An image that did harm is not given again; the next create has another made, after a while.
    pub(crate) fn broken(&self, spec: &InstanceSpec, reason: &str) {
        let Some(Ok(key)) = &spec.preload else {
            return;
        };
        if let Some(entry) = self.entries().get_mut(key) {
            entry.ordinary += 1;
            entry.fail(reason.to_owned(), Instant::now());
        }
        tracing::warn!(
            instance = spec.id,
            reason,
            "a start from imports done ahead failed; it is repeated without them"
        );
    }

    /// Told once for each reason.
    fn ordinary(&self, image_id: &str, reason: &str) {
        let mut entries = self.entries();
        let of_it = entries.iter_mut().find(|(key, _)| key.image_id == image_id);
        let Some((_, entry)) = of_it else { return };
        entry.ordinary += 1;
        if entry.reason.as_deref() != Some(reason) {
            tracing::warn!(
                image = entry.reference,
                reason,
                "an instance does not use the imports that its image asks for (label wharf.preload)"
            );
            entry.reason = Some(reason.to_owned());
        }
    }

    pub(crate) fn list(&self) -> Vec<Preload> {
        let entries = self.entries();
        let one = |(key, entry): (&PreloadKey, &Entry)| Preload {
            image: entry.reference.clone(),
            image_id: key.image_id.clone(),
            modules: entry.modules.clone(),
            state: match entry.state {
                State::Making => "making",
                State::Ready(_) => "ready",
                State::Failed { .. } => "failed",
            },
            bytes: match &entry.state {
                State::Ready(image) => image.bytes(),
                _ => 0,
            },
            restored: entry.restored,
            ordinary: entry.ordinary,
            reason: entry.reason.clone(),
        };
        entries.iter().map(one).collect()
    }
}

impl Entry {
    fn fail(&mut self, reason: String, now: Instant) {
        let pause = PAUSE.0 * 2u32.saturating_pow(self.failures.min(10));
        self.state = State::Failed {
            until: now + pause.min(PAUSE.1),
        };
        self.failures += 1;
        self.reason = Some(reason);
    }
}

/// What the image's label asks for; the error is for the image's author.
pub(crate) fn modules(text: &str) -> Result<Vec<String>, String> {
    let words = text
        .split([',', ' ', '\t', '\n'])
        .filter(|word| !word.is_empty());
    let modules: Vec<String> = words.map(str::to_owned).collect();
    let name = |word: &str| {
        let mut parts = word.split('.');
        parts.all(|part| {
            !part.is_empty()
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.chars().all(|c| c.is_alphanumeric() || c == '_')
        })
    };
    if modules.is_empty() || modules.len() > MAX_MODULES {
        return Err(format!(
            "the label wharf.preload names no modules, or more than {MAX_MODULES}: write them as in LABEL wharf.preload=\"numpy, fastapi\""
        ));
    }
    match modules.iter().find(|word| !name(word)) {
        None => Ok(modules),
        Some(word) => Err(format!(
            "the label wharf.preload: {word:?} is no name of a Python module"
        )),
    }
}

/// What a create means for preloading: nothing, or what its starts may begin from (or why they may
/// not), and what is to be made.
pub(crate) fn plan(
    image: &merge::ImageDefaults,
    image_id: &str,
    lower: &[PathBuf],
    request: &Create,
    merged: &merge::Merged,
) -> Option<(Result<PreloadKey, String>, Option<Wanted>)> {
    let text = image.labels.get(LABEL)?;
    let modules = match modules(text) {
        Ok(modules) => modules,
        Err(reason) => return Some((Err(reason), None)),
    };
    let key = PreloadKey {
        image_id: image_id.to_owned(),
        user: merged.user.clone(),
    };
    let own = environment(image);
    let wanted = Wanted {
        key: key.clone(),
        reference: request.image.clone(),
        application: request.application.as_ref().map(|a| a.id.clone()),
        modules,
        lower: lower.to_vec(),
        env: own.clone(),
        working_dir: merged.working_dir.clone(),
        limits: request.limits.clone(),
    };
    let usable = if request.snapshot.is_some() {
        Err("a container snapshot may have changed its modules".to_owned())
    } else {
        same_interpreter(&own, &merged.env).map(|()| key)
    };
    Some((usable, Some(wanted)))
}

/// As [`plan`], before there is a create.
pub(crate) fn expected(
    image: &wharf_image::Image,
    lower: Vec<PathBuf>,
    reference: &str,
    application: &str,
    limits: Limits,
) -> Option<Wanted> {
    let defaults = merge::ImageDefaults::of(&image.config);
    let modules = modules(defaults.labels.get(LABEL)?);
    let modules = modules
        .inspect_err(|reason| tracing::warn!(image = reference, reason, "label of an image"))
        .ok()?;
    let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
    let working_dir = or_empty(&defaults.working_dir);
    Some(Wanted {
        key: PreloadKey {
            image_id: image.id.as_str().to_owned(),
            user: or_empty(&defaults.user),
        },
        reference: reference.to_owned(),
        application: Some(application.to_owned()),
        modules,
        lower,
        env: environment(&defaults),
        working_dir: if working_dir.starts_with('/') {
            working_dir
        } else {
            "/".to_owned()
        },
        limits,
    })
}

/// The image's own, as its containers have it.
fn environment(image: &merge::ImageDefaults) -> Vec<String> {
    let mut env = vec![format!("PATH={}", merge::DEFAULT_PATH)];
    for entry in &image.env {
        // What merge refuses for the instance does not come this far.
        let _ = merge::set_env(&mut env, entry);
    }
    env
}

/// Variables that an interpreter, its C library or its loader reads once, when it begins, must be
/// the image's.
fn same_interpreter(image: &[String], instance: &[String]) -> Result<(), String> {
    const READ_ONCE: [&str; 7] = [
        "PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "OPENSSL_",
    ];
    let read_once = |env: &[String]| -> BTreeMap<String, String> {
        let pairs = env.iter().filter_map(|entry| entry.split_once('='));
        let ours = pairs.filter(|(key, _)| READ_ONCE.iter().any(|start| key.starts_with(start)));
        ours.map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    let (theirs, ours) = (read_once(image), read_once(instance));
    let differs = ours
        .keys()
        .chain(theirs.keys())
        .find(|key| ours.get(*key) != theirs.get(*key));
    match differs {
        None => Ok(()),
        Some(key) => Err(format!(
            "the variable {key} is not the image's: set it in the Dockerfile (ENV)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert_eq!(
            modules("numpy, fastapi.routing\tuvicorn").unwrap(),
            ["numpy", "fastapi.routing", "uvicorn"]
        );
        for wrong in ["", " , ", "os;import x", "3d", "a..b", "-c"] {
            assert!(modules(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_interpreters_own_variables_must_be_the_images() {
        let env = |list: &[&str]| list.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
        let image = env(&["PATH=/bin", "PYTHONUNBUFFERED=1"]);
        same_interpreter(
            &image,
            &env(&["PYTHONUNBUFFERED=1", "KEY=value", "HOSTNAME=x"]),
        )
        .unwrap();
        for other in [
            &["PYTHONUNBUFFERED=0"][..],
            &[],
            &["PYTHONUNBUFFERED=1", "LD_PRELOAD=/x.so"],
        ] {
            same_interpreter(&image, &env(other)).unwrap_err();
        }
    }

    fn wanted(reference: &str, image_id: &str) -> Wanted {
        Wanted {
            key: PreloadKey {
                image_id: image_id.to_owned(),
                user: String::new(),
            },
            reference: reference.to_owned(),
            application: Some("app".to_owned()),
            modules: vec!["json".to_owned()],
            lower: Vec::new(),
            env: Vec::new(),
            working_dir: "/".to_owned(),
            limits: Limits::default(),
        }
    }

    #[test]
    fn failures_are_repeated_later_and_later_and_a_new_image_ends_the_old_ones() {
        let preloads = Preloads::new(2);
        let (now, first) = (Instant::now(), wanted("app:1", "one"));
        assert!(preloads.begin(&first, now));
        assert!(!preloads.begin(&first, now), "on its way");
        preloads.made(&first.key, Err("no".to_owned()), now);
        assert!(!preloads.begin(&first, now + PAUSE.0 / 2));
        assert!(preloads.begin(&first, now + PAUSE.0));
        preloads.made(&first.key, Err("no".to_owned()), now);
        assert!(!preloads.begin(&first, now + PAUSE.0));
        assert!(preloads.begin(&first, now + PAUSE.0 * 2));
        assert_eq!(preloads.list()[0].reason.as_deref(), Some("no"));

        assert!(preloads.begin(&wanted("app:2", "two"), now));
        preloads.rolled("other", None);
        preloads.rolled("app", Some("two"));
        let images: Vec<String> = preloads.list().into_iter().map(|p| p.image_id).collect();
        assert_eq!(images, ["two"]);
        preloads.rolled("app", None);
        assert!(preloads.list().is_empty());
    }
}
