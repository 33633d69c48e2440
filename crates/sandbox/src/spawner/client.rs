//! The daemon's handle.
//!
//! It finds the spawner, or starts one. When the connection ([`link`]) breaks, the next
//! [`Spawner::spawn`] makes another one; what ran under the broken one is ended, as its callers
//! have been told so.

mod exec;
mod link;

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};

pub use self::exec::{ExecProcess, Streams, Terminal};
use self::link::{Link, Lost, State, Wire, drive, failed, lock, unexpected};
use super::process::READY;
use super::protocol::{Message, ReplyBody, Request, RequestBody, VERSION};
use super::{Exit, Process, SpawnError, SpawnerConfig, Survivor};
use crate::IdRanges;
use crate::cgroup::Usage;
use crate::frame::Frame;
use crate::spec::{ProcessSpec, SpawnFds};

/// How often to look for a spawner, start one, and look again (one may be ending at the same time).
const ATTEMPTS: u32 = 200;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);
/// How long a freeze may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// Handle to the spawner process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spawner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: SpawnerConfig,
    link: Mutex<Link>,
    /// Held while a broken connection is replaced.
    reconnecting: tokio::sync::Mutex<()>,
}

impl Spawner {
    /// Connects to the spawner that listens at `config.socket`, or starts one. Also removes what a
    /// spawner that died left: every process in the cgroup is killed, empty cgroups are removed.
    pub async fn start(config: SpawnerConfig) -> Result<(Spawner, Vec<Survivor>), SpawnError> {
        let socket = std::path::absolute(&config.socket).map_err(failed)?;
        let config = SpawnerConfig { socket, ..config };
        let Greeted {
            link,
            survivors,
            lost,
        } = connect_or_start(&config).await?;
        let shared = Shared {
            config,
            link: Mutex::new(link),
            reconnecting: tokio::sync::Mutex::new(()),
        };
        let spawner = Spawner {
            shared: Arc::new(shared),
        };
        spawner.end_lost(lost).await;
        Ok((spawner, survivors))
    }

    /// Ends processes whose descriptors did not come: nobody could hear them any more.
    async fn end_lost(&self, lost: Vec<String>) {
        for id in lost {
            tracing::error!(
                id,
                "the descriptors of a running process were lost: it is ended (are there enough? raise LimitNOFILE= of the service, or ulimit -n)"
            );
            let ended = async {
                self.kill(&id).await?;
                self.wait(&id).await?;
                self.forget(&id).await
            };
            if let Err(error) = ended.await {
                tracing::error!(id, %error, "the process could not be ended");
            }
        }
    }

    /// The spawner's own process number.
    pub fn pid(&self) -> u32 {
        self.current().pid
    }

    /// Starts a process; returns when `execve` has succeeded or failed. When the caller gives up
    /// meanwhile, the process is ended.
    pub async fn spawn(&self, spec: &ProcessSpec, fds: SpawnFds) -> Result<Process, SpawnError> {
        let link = self.live().await?;
        let (netns, sys, image) = (fds.netns.is_some(), fds.sys.is_some(), fds.image.is_some());
        let (inherit, inherited): (Vec<i32>, Vec<OwnedFd>) = fds.inherit.into_iter().unzip();
        let descriptors = fds
            .netns
            .into_iter()
            .chain(fds.sys)
            .chain(fds.disk)
            .chain(fds.image)
            .chain(inherited)
            .collect();
        let body = RequestBody::Spawn {
            spec: Box::new(spec.clone()),
            netns,
            sys,
            image,
            inherit,
        };
        match link.call(body, descriptors).await? {
            (
                ReplyBody::Spawned {
                    id,
                    pid,
                    not_restored,
                },
                streams,
            ) => Ok(Process {
                not_restored,
                ..process(id, pid, streams)?
            }),
            (ReplyBody::Refused { message, exit_code }, _) => {
                Err(SpawnError::Refused { message, exit_code })
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Waits for the end of a process; any number of waiters, also after the end until
    /// [`Spawner::forget`]. For a container, its whole cgroup is dead when this returns.
    pub async fn wait(&self, id: &str) -> Result<Exit, SpawnError> {
        let link = self.current();
        let mut exit = {
            let state = lock(&link.state);
            if let Some(lost) = &state.lost {
                return Err(failed(lost));
            }
            state
                .exits
                .get(id)
                .ok_or_else(|| failed(format!("there is no process {id}")))?
                .subscribe()
        };
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            _ => Err(link.lost_error(id)),
        }
    }

    /// Sends a signal to the process (by pidfd). `Ok(false)` when it has ended.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<bool, SpawnError> {
        match self
            .current()
            .call(
                RequestBody::Signal {
                    id: id.to_owned(),
                    signal,
                },
                Vec::new(),
            )
            .await?
        {
            (ReplyBody::Signalled(found), _) => Ok(found),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Kills every process of its cgroup.
    pub async fn kill(&self, id: &str) -> Result<(), SpawnError> {
        self.current()
            .done(RequestBody::Kill { id: id.to_owned() })
            .await
    }

    /// What the process and all that it started has used: now, or, after the end until
    /// [`Spawner::forget`], altogether.
    pub async fn usage(&self, id: &str) -> Result<Usage, SpawnError> {
        match self
            .current()
            .call(RequestBody::Usage { id: id.to_owned() }, Vec::new())
            .await?
        {
            (ReplyBody::Usage(usage), _) => Ok(*usage),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Stops every process of its cgroup where it is, until [`Spawner::thaw`], its end, or the end
    /// of this connection. Returns when all stand still; one that hangs in the kernel makes it an
    /// error after five seconds, and then they run on.
    pub async fn freeze(&self, id: &str) -> Result<(), SpawnError> {
        let start = tokio::time::Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            let body = RequestBody::Freeze { id: id.to_owned() };
            match self.current().call(body, Vec::new()).await? {
                (ReplyBody::Frozen(true), _) => return Ok(()),
                (ReplyBody::Frozen(false), _) if start.elapsed() < FREEZE_LIMIT => {}
                (ReplyBody::Frozen(false), _) => {
                    self.thaw(id).await?;
                    return Err(failed(format!("the processes of {id} do not stand still")));
                }
                (other, _) => return Err(unexpected(other)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Lets frozen processes run again; of no effect on others.
    pub async fn thaw(&self, id: &str) -> Result<(), SpawnError> {
        self.current()
            .done(RequestBody::Thaw { id: id.to_owned() })
            .await
    }

    /// Lets go of an ended process: its exit is dropped, its cgroup removed.
    pub async fn forget(&self, id: &str) -> Result<(), SpawnError> {
        let link = self.current();
        link.done(RequestBody::Forget { id: id.to_owned() }).await?;
        lock(&link.state).exits.remove(id);
        Ok(())
    }

    /// Ends every process and the spawner itself; nothing is left.
    pub async fn shutdown(&self) -> Result<(), SpawnError> {
        let link = self.current();
        link.done(RequestBody::Shutdown).await?;
        lock(&link.state).lost = Some(Lost::ShutDown);
        Ok(())
    }

    fn current(&self) -> Link {
        lock(&self.shared.link).clone()
    }

    /// A connection that works: the current one, or a new one in place of a broken one.
    async fn live(&self) -> Result<Link, SpawnError> {
        if let Some(link) = self.current().usable()? {
            return Ok(link);
        }
        let _alone = self.shared.reconnecting.lock().await;
        if let Some(link) = self.current().usable()? {
            return Ok(link);
        }
        tracing::warn!("the connection to the spawner is gone; connecting anew");
        let Greeted {
            link,
            survivors,
            lost,
        } = connect_or_start(&self.shared.config).await?;
        let survivors = survivors.into_iter().map(|it| it.process.id);
        for id in survivors.chain(lost) {
            let mut state = lock(&link.state);
            let body = state.discard(id);
            let (_, frame) = state.frame(body, Vec::new()).map_err(failed)?;
            link.queue
                .send(frame)
                .map_err(|_| failed("the connection's task has ended"))?;
        }
        *lock(&self.shared.link) = link.clone();
        Ok(link)
    }
}

fn process(id: String, pid: i32, streams: Vec<OwnedFd>) -> Result<Process, SpawnError> {
    let mut streams = streams.into_iter();
    let (Some(stdout), Some(stderr)) = (streams.next(), streams.next()) else {
        return Err(failed("it sent no output descriptors"));
    };
    Ok(Process {
        id,
        pid,
        stdout,
        stderr,
        stdin: streams.next(),
        not_restored: None,
    })
}

async fn connect_or_start(config: &SpawnerConfig) -> Result<Greeted, SpawnError> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match Wire::connect(config).await {
            Ok(wire) => match greet(wire).await {
                Ok(Some(greeted)) => return Ok(greeted),
                Ok(None) => last = "one of another version does not end".to_owned(),
                Err(error) => last = error.to_string(), // It was ending.
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                launch(config).await?;
                continue;
            }
            Err(error) => return Err(failed(format!("{}: {error}", config.socket.display()))),
        }
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    }
    Err(failed(format!(
        "no connection at {}: {last}",
        config.socket.display()
    )))
}

/// What a spawner says first.
struct Greeted {
    link: Link,
    survivors: Vec<Survivor>,
    /// Ids of processes whose descriptors were lost on the way.
    lost: Vec<String>,
}

/// The first messages. `Ok(None)`: it was of another version and has been asked to end.
async fn greet(mut wire: Wire) -> io::Result<Option<Greeted>> {
    wire.outbox.push(Frame::new(
        &Request {
            number: 0,
            body: RequestBody::Hello,
        },
        Vec::new(),
    )?);
    wire.flush().await?;
    let (
        Message::Welcome {
            version,
            pid,
            survivors: count,
        },
        _,
    ) = wire.receive().await?
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no welcome"));
    };
    if version != VERSION {
        tracing::warn!(
            version,
            "a spawner of another version runs; ending it and its processes"
        );
        wire.outbox.push(Frame::new(
            &Request {
                number: 0,
                body: RequestBody::Shutdown,
            },
            Vec::new(),
        )?);
        wire.flush().await?;
        while wire.receive().await.is_ok() {}
        return Ok(None);
    }
    let mut state = State::default();
    let (mut survivors, mut lost) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (
            Message::Survivor {
                id,
                label,
                pid,
                exit,
            },
            streams,
        ) = wire.receive().await?
        else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no survivor"));
        };
        state.exits.insert(id.clone(), watch::Sender::new(exit));
        let Ok(mut streams) = streams else {
            lost.push(id);
            continue;
        };
        let disk = (streams.len() > 2).then(|| streams.remove(2));
        let process = process(id, pid, streams).map_err(io::Error::other)?;
        survivors.push(Survivor {
            label,
            process,
            exit,
            disk,
        });
    }
    let (sender, queue) = mpsc::unbounded_channel();
    let link = Link {
        pid,
        queue: sender,
        state: Arc::new(Mutex::new(state)),
    };
    tokio::spawn(drive(wire, Arc::clone(&link.state), queue));
    Ok(Some(Greeted {
        link,
        survivors,
        lost,
    }))
}

/// Starts the executable and waits until the spawner listens.
async fn launch(config: &SpawnerConfig) -> Result<(), SpawnError> {
    let Some((program, arguments)) = config.command.split_first() else {
        return Err(failed("no command to start it with"));
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg(&config.socket)
        .arg(config.grace_ms.to_string())
        .arg(&config.cgroup_name)
        .arg(IdRanges::to_argument(config.ids))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env_clear()
        .spawn()
        .map_err(|e| failed(format!("starting {program}: {e}")))?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).await.map_err(failed)?;
    }
    child.wait().await.map_err(failed)?; // Only the process that detaches it; the spawner lives on.
    match said.trim() {
        READY => Ok(()),
        "" => Err(failed(format!("{program} ended without a word"))),
        reason => Err(failed(reason)),
    }
}
