//! `POST /exec/<id>/start`: the process starts, and the connection becomes its raw stream.
//!
//! Each start has a task, which owns the process's streams to their end. The handler only waits for the start and hands over the connection,
//! so that a client may go at any moment.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_util::io::ReaderStream;
use wharf_engine::{Exec, ExecError, ExecProcess, ExecStreams, Streams};

use super::stream::{self, Attached};
use super::table::{ContainerStart, Facts, Phase, Refusal};
use super::{Answer, Context, Execs, Running, read, terminal_size, unknown};
use crate::errors::ApiError;
use crate::fields::others;
use crate::{frames, upgrade};

/// Bytes between a process and a client whose connection cannot be taken over.
const BUFFER: usize = 64 * 1024;
/// How long a client may take to receive the answer's head before output follows all the same.
const HEAD_LIMIT: Duration = Duration::from_secs(1);
/// Exit code of workerd's kill helper when there is no file with a number.
const NO_SUCH_TOKEN: i32 = 3;
/// Exit code of a process that could not be started through no fault of its own, as Docker has it.
const NOT_STARTED: i32 = 126;
/// Exit code of a process whose end nobody saw, as for containers.
const UNSEEN: i32 = 255;

/// What waits for its start.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A process.
    Process(Process),
    /// workerd's kill helper: nothing is started for it.
    Kill { token: String, signal: i32 },
}

/// A process to start.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) working_dir: Option<String>,
    pub(super) console_size: Option<[u16; 2]>,
    /// Whether it came in workerd's wrapper.
    pub(super) by_workerd: bool,
}

/// The body.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartBody {
    detach: Option<bool>,
    console_size: Option<[u16; 2]>,
}

/// A client's connection.
trait Client: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Client for T {}

/// One start on its way.
struct Start {
    id: String,
    container: ContainerStart,
    facts: Facts,
    detach: bool,
    /// Told once, when there is a process or will be none.
    told: oneshot::Sender<Result<(), ApiError>>,
    /// Dropped when there is no client (any more).
    client: oneshot::Receiver<Box<dyn Client>>,
}

pub(super) async fn start(
    State(execs): Context,
    Path(id): Path<String>,
    mut request: Request,
) -> Answer {
    let upgrade = upgrade::asked(&mut request);
    let body: StartBody = read(request.into_body(), others::EXEC_START).await?;
    let detach = body.detach == Some(true);
    let (waiting, container, facts) = execs.begin(&id)?;
    let (told, started) = oneshot::channel();
    let (client, connected) = oneshot::channel();
    let tty = facts.tty;
    let by_workerd = !matches!(&waiting, Waiting::Process(process) if !process.by_workerd);
    let start = Start {
        id,
        container,
        facts,
        detach,
        told,
        client: connected,
    };
    match waiting {
        Waiting::Process(mut process) => {
            process.console_size = body.console_size.or(process.console_size);
            tokio::spawn(execs.run(start, process));
        }
        Waiting::Kill { token, signal } => {
            tokio::spawn(execs.kill(start, token, signal));
        }
    }
    let gone = || {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the exec's task has ended",
        )
    };
    started.await.map_err(|_| gone())??;
    Ok(match (detach, upgrade) {
        (true, _) => StatusCode::OK.into_response(),
        (false, Some(upgrade)) => {
            upgrade::switch(upgrade, content_type(tty), async move |connection| {
                let connection = after_head(connection.into_inner(), by_workerd).await;
                // A start whose task has gone has ended.
                drop(client.send(connection));
            })
        }
        (false, None) => stream_in_body(client, tty),
    })
}

fn content_type(tty: bool) -> &'static str {
    if tty {
        frames::RAW
    } else {
        frames::MULTIPLEXED
    }
}

/// The connection, when the client has received the answer's head. docker-py reads the head through a buffer, and loses whatever of the
/// output comes with it; Docker never is that fast. workerd loses nothing.
async fn after_head(connection: Upgraded, by_workerd: bool) -> Box<dyn Client> {
    match connection.downcast::<TokioIo<UnixStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            if !by_workerd
                && let Err(error) = wharf_sandbox::received(stream.as_fd(), HEAD_LIMIT).await
            {
                tracing::debug!(%error, "not known whether a client has read the head");
            }
            let (read, write) = stream.into_split();
            let already = std::io::Cursor::new(parts.read_buf);
            Box::new(tokio::io::join(already.chain(read), write))
        }
        Err(connection) => Box::new(TokioIo::new(connection)),
    }
}

/// A client that did not ask for it gets the output as the answer's body, and can give no input.
fn stream_in_body(client: oneshot::Sender<Box<dyn Client>>, tty: bool) -> Response {
    let (output, ours) = tokio::io::duplex(BUFFER);
    drop(client.send(Box::new(tokio::io::join(tokio::io::empty(), ours))));
    let body = Body::from_stream(ReaderStream::new(output));
    ([(header::CONTENT_TYPE, content_type(tty))], body).into_response()
}

impl Execs {
    fn begin(&self, id: &str) -> Result<(Waiting, ContainerStart, Facts), ApiError> {
        let mut table = self.table();
        let waiting = table.begin(id).map_err(|refusal| match refusal {
            Refusal::Unknown => unknown(id),
            Refusal::Started => {
                let text = format!("exec {id} has been started already; create another");
                ApiError::new(StatusCode::CONFLICT, text)
            }
            Refusal::TooMany => {
                let text = format!(
                    "{} processes beside its main one run in the container; let some end",
                    super::table::MAX_LIVE
                );
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        })?;
        let entry = table.get(id).ok_or_else(|| unknown(id))?;
        Ok((waiting, entry.container.clone(), entry.facts.clone()))
    }

    /// From the start to the end of the stream.
    async fn run(self: Arc<Self>, start: Start, process: Process) {
        let Start {
            id,
            container,
            facts,
            detach,
            told,
            client,
        } = start;
        let by_workerd = process.by_workerd;
        let exec = Exec {
            streams: streams(&facts, detach, process.console_size),
            argv: process.argv,
            env: process.env,
            user: process.user,
            working_dir: process.working_dir,
        };
        let started = self
            .engine
            .exec(&container.owner, &container.id, container.generation, exec);
        // Whoever waits for the answer may have gone, here and below.
        match started.await {
            Ok((process, streams)) => {
                let exit = self.clone().watch(&id, process, by_workerd, &streams);
                let _ = told.send(Ok(()));
                let attached = if detach {
                    Attached::default()
                } else {
                    facts.attached
                };
                let carried = stream::carry(streams, attached, client.await.ok(), async {
                    let _ = exit.await;
                });
                if let Err(error) = carried.await {
                    tracing::warn!(id, %error, "the streams of an exec cannot be used");
                }
            }
            Err(ExecError::Engine(error)) => {
                self.ended(&id, NOT_STARTED);
                let _ = told.send(Err(error.into()));
            }
            Err(ExecError::NotStarted { message, exit_code }) => {
                self.ended(&id, exit_code);
                if detach {
                    let _ = told.send(Err(ApiError::bad_request(message)));
                    return;
                }
                // Docker has given away the connection by now: its answer is in the stream. A shell, in whose place this is for workerd, says it
                // on standard error.
                let _ = told.send(Ok(()));
                if let Ok(client) = client.await
                    && let Err(error) =
                        stream::say(&format!("{message}\r\n"), by_workerd, facts.tty, client).await
                {
                    tracing::debug!(id, %error, "the client of an exec has gone");
                }
            }
        }
    }

    /// Notes the start and, when it comes, the end, of which the receiver is told.
    fn watch(
        self: Arc<Self>,
        id: &str,
        process: ExecProcess,
        by_workerd: bool,
        streams: &Streams,
    ) -> oneshot::Receiver<()> {
        let terminal = match streams {
            Streams::Terminal(terminal) => terminal
                .try_clone()
                .inspect_err(|error| tracing::warn!(%error, "a terminal cannot be resized"))
                .ok(),
            _ => None,
        };
        let process = Arc::new(process);
        let running = Running {
            process: process.clone(),
            terminal,
        };
        // Docker tells the host's number. What workerd's wrapper would have found out is the container's.
        let pid = if by_workerd {
            process.inside_pid
        } else {
            process.pid
        };
        self.table().running(id, running, pid);
        let (ended, exit) = oneshot::channel();
        let id = id.to_owned();
        tokio::spawn(async move {
            let code = match process.wait().await {
                Ok(exit) => exit.code,
                Err(error) => {
                    tracing::warn!(id, %error, "the end of an exec was not seen");
                    UNSEEN
                }
            };
            self.ended(&id, code);
            let _ = ended.send(());
        });
        exit
    }

    /// workerd's kill helper, with the exit codes that its shell would have; but a process that has ended by itself is no error.
    async fn kill(self: Arc<Self>, start: Start, token: String, signal: i32) {
        let process = {
            let table = self.table();
            let found = table.by_token(&start.container.id, &token);
            match found.map(|entry| &entry.phase) {
                Some(Phase::Running(running)) => Ok(running.process.clone()),
                Some(Phase::Ended(_)) => Err(0),
                Some(Phase::Created(..) | Phase::Starting) | None => Err(NO_SUCH_TOKEN),
            }
        };
        let result = match process {
            Ok(process) => process.signal(signal).await.map(|_| 0),
            Err(code) => Ok(code),
        };
        let told = match result {
            Ok(code) => {
                self.ended(&start.id, code);
                Ok(())
            }
            Err(error) => {
                self.ended(&start.id, NOT_STARTED);
                let text = error.to_string();
                Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text))
            }
        };
        let _ = start.told.send(told);
    }
}

fn streams(facts: &Facts, detach: bool, console_size: Option<[u16; 2]>) -> ExecStreams {
    if facts.tty {
        ExecStreams::Terminal(terminal_size(console_size))
    } else if detach {
        ExecStreams::Null
    } else {
        let stdin = facts.attached.stdin;
        ExecStreams::Pipes { stdin }
    }
}
