//! One workerd process from its folder to its end.
//!
//! Owns: the order of things at start and at the end, the reason texts. Must not: decide whether a process runs; the script's machine does.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_bindings::Entry;
use wharf_net::{NetError, Network, Policy};
use wharf_sandbox::{Exit, Limits, ProcessSpec, Root, SpawnError, SpawnFds};

use crate::config::{Place, Plan, plan};
use crate::folder::{self, Folder, FolderError};
use crate::output::Output;
use crate::probe;
use crate::relay;
use crate::supervisor::Inner;
use crate::walls::Program;
use crate::{Desired, EnginePaths, config::ConfigError, prelude};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// workerd finds the pipe for its ready signal here.
const CONTROL_FD: i32 = 3;
/// After a process has ended, its last output is waited for so long.
const OUTPUT_MS: u64 = 1_000;
/// How long a request waits for the reason why its process has ended.
const END_MS: u64 = 5_000;
/// Labels of processes in the spawner begin so.
pub(crate) const LABEL_PREFIX: &str = "workerd:";

/// How far a process shall be ended; only ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    No,
    /// SIGTERM: workerd finishes what runs.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// A process that accepts requests, as its users see it.
#[derive(Debug)]
pub(crate) struct Running {
    /// Unique among all processes of this daemon.
    pub(crate) number: u64,
    /// In the host's PID namespace.
    pub(crate) pid: i32,
    /// Requests.
    pub(crate) http: PathBuf,
    /// Scheduled events; absent when the version has no code.
    pub(crate) dispatcher: Option<PathBuf>,
    /// What other scripts bind.
    pub(crate) entries: BTreeMap<Entry, PathBuf>,
    /// Cancelled when the process shall be replaced.
    pub(crate) draining: CancellationToken,
    /// Cancelled right before the process is told to end.
    pub(crate) closing: CancellationToken,
    pub(crate) load: probe::Load,
    end: watch::Sender<Option<End>>,
}

/// How a process came to its end.
#[derive(Debug, Clone)]
enum End {
    /// It was told to.
    Asked,
    /// By itself, or for what it did.
    Unasked(String),
}

impl Running {
    /// See [`crate::Lease::end_reason`].
    pub(crate) async fn end_reason(&self) -> Option<String> {
        let mut end = self.end.subscribe();
        if end.borrow().is_none() && !probe::is_ending(self.pid) {
            return None;
        }
        // The sender is in `self`.
        let known = end.wait_for(Option::is_some);
        let known = tokio::time::timeout(Duration::from_millis(END_MS), known).await;
        match known.ok()?.ok()?.as_ref()? {
            End::Asked => None,
            End::Unasked(reason) => Some(reason.clone()),
        }
    }

    /// The first reason is the right one.
    fn ends(&self, end: End) {
        self.end.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(end);
            }
            first
        });
    }
}

/// Why a process is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("cannot start workerd: {0}")]
    Spawn(#[from] SpawnError),
    #[error("cannot prepare workerd's sockets: {0}")]
    Io(#[from] std::io::Error),
    #[error("cannot find out what {} needs to run: {error}", path.display())]
    Program {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("no network for workerd: {0}")]
    Network(#[from] NetError),
    /// workerd's own words.
    #[error("{reason}")]
    Ended {
        reason: String,
        /// Entries that the Worker does not export.
        missing: BTreeSet<Entry>,
    },
}

/// A folder that waits for its process.
#[derive(Debug)]
pub(crate) struct Prepared {
    number: u64,
    uid: u32,
    /// As [`wharf_model::Version::cpu_limit_ms`].
    cpu_limit_ms: Option<u64>,
    plan: Plan,
    folder: Folder,
    /// Durable Object storage, if it has any.
    storage: Option<PathBuf>,
    program: Program,
}

/// What a process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To serve.
    Serve,
    /// To see whether it starts: nothing is stored, nothing outside is reached.
    Trial,
}

/// Makes the folder of the next process.
pub(crate) async fn prepare(
    inner: &Arc<Inner>,
    desired: Arc<Desired>,
    entries: BTreeSet<Entry>,
    purpose: Purpose,
) -> Result<Prepared, StartError> {
    let number = inner.next_process();
    let inner = inner.clone();
    let work = move || {
        let uid = inner.config.uid_base + desired.script_number;
        let dir = inner.config.run_dir.join(number.to_string());
        folder::roots_dir(&inner.config.run_dir)?;
        let program = inner.program().map_err(|error| StartError::Program {
            path: inner.config.binary.clone(),
            error,
        })?;
        let storage = (purpose == Purpose::Serve && !desired.namespaces.is_empty())
            .then(|| inner.storage(desired.script_number).join("do"));
        if let Some(storage) = &storage {
            // Root's own folder around it: the Worker's user can't put a link in its place.
            folder::roots_dir(&inner.config.storage_dir)?;
            folder::roots_dir(&inner.storage(desired.script_number))?;
            folder::private_dir(storage, uid)?;
        }
        let place = Place {
            dir: dir.clone(),
            storage: storage.clone(),
            allow_private: inner.config.allow_private,
        };
        let plan = plan(&desired, &place, &entries)?;
        let blob = |hash: &str| inner.sockets.blob(hash);
        let folder = Folder::make(dir, &plan, uid, &blob)?;
        Ok(Prepared {
            number,
            uid,
            cpu_limit_ms: desired.version.cpu_limit_ms(),
            plan,
            folder,
            storage,
            program: program.clone(),
        })
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(StartError::Io(std::io::Error::other(error))))
}

/// A process that runs, with everything that must live as long.
pub(crate) struct Process {
    inner: Arc<Inner>,
    id: String,
    /// Its own limit, in place of the node's.
    cpu_limit_ms: Option<u64>,
    output: Output,
    pumps: tokio::task::JoinSet<()>,
    /// Held until the process has ended.
    docker: Option<crate::DockerSocket>,
    docker_socket: PathBuf,
    _relays: relay::Relays,
    _folder: Folder,
    /// Nothing is carried for it any more when this is dropped.
    _network: Network,
    pub(crate) running: Arc<Running>,
}

impl Process {
    /// Starts workerd and waits until it listens everywhere. When this fails, nothing of it is left. A `Kill` on `stop` ends it.
    pub(crate) async fn start(
        inner: &Arc<Inner>,
        script: &str,
        prepared: Prepared,
        purpose: Purpose,
        stop: &mut watch::Receiver<Stop>,
    ) -> Result<Self, StartError> {
        let Prepared {
            number,
            uid,
            cpu_limit_ms,
            plan,
            folder,
            storage,
            program,
        } = prepared;
        let dir = folder.path().to_owned();
        let docker_socket = dir.join("docker.sock");
        let paths = EnginePaths {
            docker: docker_socket.clone(),
            prelude: dir.join(prelude::ENGINE_SOCKET),
        };
        let network = inner.networks.create_for_worker().await?;
        network.set_policy(Policy {
            internet: purpose == Purpose::Serve,
        });
        let docker = match (plan.containers, purpose) {
            (true, Purpose::Serve) => {
                let opened = inner.sockets.docker(script, paths, uid, network.clone());
                Some(opened.await?)
            }
            _ => None,
        };
        let relays = match purpose {
            Purpose::Serve => relay::Relays::open(inner, script, &dir, uid, &plan.outgoing)?,
            Purpose::Trial => relay::Relays::default(),
        };

        let (control, control_write) = std::io::pipe()?;
        let id = format!("workerd-{number}");
        let mut env = plan.env;
        env.push(program.library_path());
        let own: Vec<&Path> = std::iter::once(dir.as_path())
            .chain(storage.as_deref())
            .collect();
        let spec = ProcessSpec {
            id: id.clone(),
            label: format!(
                "{LABEL_PREFIX}{}",
                serde_json::json!({"script": script, "process": number})
            ),
            argv: vec![
                inner.config.binary.to_string_lossy().into_owned(),
                "serve".into(),
                // Static assets, and what later versions bind, are behind this flag.
                "--experimental".into(),
                format!("--control-fd={CONTROL_FD}"),
                dir.join("config.capnp").to_string_lossy().into_owned(),
                "config".into(),
            ],
            env,
            cwd: dir.to_string_lossy().into_owned(),
            user: format!("{uid}:{uid}"),
            root: Root::Bare,
            hostname: Some("worker".to_owned()),
            mounts: program.mounts(&own, network.resolv_conf()),
            limits: Limits {
                memory_bytes: inner.config.memory_bytes,
                cpu_millis: inner.config.cpu_millis,
                pids: Some(inner.config.pids),
                nofile: Some(inner.config.nofile),
                disk_bytes: None,
            },
            stdin_pipe: false,
            disk: None,
            capabilities: wharf_sandbox::Capabilities::NONE,
            no_new_privileges: true,
            read_only: false,
            isolation: wharf_sandbox::IsolationSpec::Namespace,
        };
        let fds = SpawnFds {
            netns: Some(network.namespace()?),
            sys: None,
            disk: None,
            image: None,
            inherit: vec![(CONTROL_FD, OwnedFd::from(control_write))],
        };
        let spawned = inner.spawner.spawn(&spec, fds).await?;

        let mut process = Self {
            inner: inner.clone(),
            id,
            cpu_limit_ms,
            output: Output::default(),
            pumps: tokio::task::JoinSet::new(),
            docker,
            docker_socket,
            _relays: relays,
            _folder: folder,
            _network: network,
            running: Arc::new(Running {
                number,
                pid: spawned.pid,
                http: dir.join("http.sock"),
                dispatcher: plan.listens.contains("disp").then(|| dir.join("disp.sock")),
                entries: plan
                    .entries
                    .iter()
                    .map(|(entry, file)| (entry.clone(), dir.join(file)))
                    .collect(),
                draining: CancellationToken::new(),
                closing: CancellationToken::new(),
                load: probe::Load::default(),
                end: watch::Sender::new(None),
            }),
        };
        for stream in [spawned.stdout, spawned.stderr] {
            process.follow(script, stream);
        }
        if process
            .listens(OwnedFd::from(control), plan.listens, stop)
            .await
        {
            return Ok(process);
        }
        let reason = process.finish().await;
        let missing = missing_entries(&process.output, &plan.entries);
        Err(StartError::Ended { reason, missing })
    }

    fn follow(&mut self, script: &str, stream: OwnedFd) {
        let (output, script, process) =
            (self.output.clone(), script.to_owned(), self.running.number);
        match pipe::Receiver::from_owned_fd(stream) {
            Ok(stream) => {
                self.pumps.spawn(async move {
                    let each =
                        |line: &str| tracing::info!(target: "worker", script, process, "{line}");
                    output.follow(stream, each).await;
                });
            }
            Err(error) => tracing::error!(%error, script, "cannot read what a process prints"),
        }
    }

    /// Waits until all sockets listen; false when the process ends before, or is killed.
    async fn listens(
        &self,
        control: OwnedFd,
        mut sockets: BTreeSet<String>,
        stop: &mut watch::Receiver<Stop>,
    ) -> bool {
        let Ok(control) = pipe::Receiver::from_owned_fd(control) else {
            return false;
        };
        let mut lines = BufReader::new(control).lines();
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line,
                // The pipe closes with the process, unless a child of it lives on.
                _ = self.inner.spawner.wait(&self.id) => return false,
                _ = stop.wait_for(|s| *s != Stop::No) => return false,
            };
            let Ok(Some(line)) = line else { return false };
            if let Ok(Control::Listen { socket }) = serde_json::from_str(&line) {
                sockets.remove(&socket);
            }
            if sockets.is_empty() {
                return true;
            }
        }
    }

    /// Serves until the process ends, of itself or by `stop`; the reason it ended. `hung` is told once if it does not answer any more.
    pub(crate) async fn run(
        &mut self,
        stop: &mut watch::Receiver<Stop>,
        hung: impl FnOnce(String),
    ) -> String {
        let running = self.running.clone();
        let limit_ms = self.cpu_limit_ms.unwrap_or(self.inner.config.watchdog_ms);
        let setting = match self.cpu_limit_ms {
            Some(_) => "limits.cpu_ms of its configuration",
            None => "workerd.watchdog_ms",
        };
        let watched = async move {
            match &running.dispatcher {
                Some(socket) => {
                    let limit = Duration::from_millis(limit_ms);
                    probe::hung(running.pid, socket, &running.load, limit).await
                }
                // Without code nothing computes.
                None => std::future::pending().await,
            }
        };
        tokio::pin!(watched);
        let mut hung = Some(hung);
        let mut done = Stop::No;
        loop {
            let asked = *stop.borrow_and_update();
            if asked > done {
                done = asked;
                self.running.ends(End::Asked);
                self.stop(asked).await;
            }
            tokio::select! {
                computed_ms = &mut watched, if hung.is_some() && done == Stop::No => {
                    let reason = format!(
                        "{EXCEEDED}: its JavaScript computed for {computed_ms} ms without a pause and was ended ({setting})"
                    );
                    self.running.ends(End::Unasked(reason.clone()));
                    if let Some(hung) = hung.take() {
                        hung(reason);
                    }
                }
                exit = self.inner.spawner.wait(&self.id) => break self.conclude(exit).await,
                changed = stop.changed() => if changed.is_err() {
                    // Nobody is left to ask for more.
                    self.stop(Stop::Kill).await;
                    break self.finish().await;
                },
            }
        }
    }

    async fn stop(&self, how: Stop) {
        self.running.draining.cancel();
        self.running.closing.cancel();
        // workerd deletes every container when it is told to end (contract: workerd, 1.7). Each such request is a new connection to
        // the engine's socket, so without the path they all fail and the containers live on for the next process to adopt.
        if let Err(error) = std::fs::remove_file(&self.docker_socket)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.docker_socket.display(), "cannot detach the containers of a process");
        }
        let result = match how {
            Stop::No => return,
            Stop::Terminate => self.inner.spawner.signal(&self.id, SIGTERM).await.map(drop),
            Stop::Kill => self.inner.spawner.kill(&self.id).await,
        };
        if let Err(error) = result {
            tracing::error!(%error, process = self.id, "cannot end a workerd process");
        }
    }

    /// Kills the process and waits for its end.
    pub(crate) async fn finish(&mut self) -> String {
        self.stop(Stop::Kill).await;
        let exit = self.inner.spawner.wait(&self.id).await;
        self.conclude(exit).await
    }

    /// What it has printed, as far as it is kept.
    pub(crate) fn printed(&self) -> Vec<String> {
        self.output.all()
    }

    async fn conclude(&mut self, exit: Result<Exit, SpawnError>) -> String {
        self.running.draining.cancel();
        self.running.closing.cancel();
        // Before anybody hears of the end: what the next process asks for must not look forgotten.
        self.docker = None;
        let pumps = async { while self.pumps.join_next().await.is_some() {} };
        let bound = Duration::from_millis(OUTPUT_MS);
        if tokio::time::timeout(bound, pumps).await.is_err() {
            self.pumps.abort_all();
        }
        if let Err(error) = self.inner.spawner.forget(&self.id).await {
            tracing::warn!(%error, process = self.id, "cannot forget an ended process");
        }
        let tail = self.output.tail();
        let reason = match exit {
            Ok(exit) => reason(&exit, self.inner.config.memory_bytes, &tail),
            Err(error) => format!("lost sight of the workerd process: {error}"),
        };
        self.running.ends(End::Unasked(reason.clone()));
        reason
    }
}

/// Cloudflare's words for a Worker that was ended for what it used; users know the number.
const EXCEEDED: &str = "error 1102, Worker exceeded resource limits";

/// What V8 prints before it gives up, below the limit of the process.
const HEAP_LIMIT: &str = "JavaScript heap out of memory";

/// What workerd writes to the control pipe.
#[derive(serde::Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Control {
    Listen { socket: String },
}

fn reason(exit: &Exit, memory_bytes: Option<u64>, tail: &str) -> String {
    let how = match (exit.oom_killed, exit.signal, memory_bytes) {
        (true, _, Some(bytes)) => format!(
            "{EXCEEDED}: its process used more than its {} MiB of memory and was ended (workerd.memory_mib)",
            bytes / (1024 * 1024)
        ),
        (true, _, None) => "the machine ran out of memory and ended the Worker's process".into(),
        _ if tail.contains(HEAP_LIMIT) => {
            format!("{EXCEEDED}: its JavaScript heap reached V8's own limit")
        }
        (false, Some(SIGKILL), _) => "the Worker's process was killed (signal 9)".into(),
        (false, Some(signal), _) => {
            format!("the Worker's process crashed (signal {signal})")
        }
        (false, None, _) => format!("the Worker's process ended with exit code {}", exit.code),
    };
    if tail.is_empty() {
        how
    } else {
        format!("{how}:\n{tail}")
    }
}

/// Entries that another script binds but this Worker does not export make workerd refuse its whole config:
/// `Socket "rpc-1" refers to service "main" with a named entrypoint "X", but "main" has no such named entrypoint.`
fn missing_entries(output: &Output, entries: &BTreeMap<Entry, String>) -> BTreeSet<Entry> {
    let lines = output.all();
    entries
        .iter()
        .filter(|(entry, file)| {
            let name = file.trim_end_matches(".sock");
            let start = format!("Socket \"{name}\" refers to service ");
            entry.entrypoint.is_some()
                && lines.iter().any(|line| {
                    line.starts_with(&start) && line.contains("no such named entrypoint")
                })
        })
        .map(|(entry, _)| entry.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_by_what_was_exceeded() {
        let exit = |code, signal, oom_killed| Exit {
            code,
            signal,
            oom_killed,
        };
        let killed = reason(&exit(137, Some(SIGKILL), true), Some(64 << 20), "");
        assert!(killed.contains("1102") && killed.contains("64 MiB"));
        let heap = "message = : allocation failed: JavaScript heap out of memory";
        let aborted = reason(&exit(1, None, false), Some(4 << 30), heap);
        assert!(
            aborted.contains("1102") && aborted.contains("V8"),
            "{aborted}"
        );
        let crashed = reason(&exit(139, Some(11), false), None, "");
        assert!(!crashed.contains("1102") && crashed.contains("signal 11"));
    }
}
