//! `docker exec` and `ctx.container.exec()`: processes beside the main one of a container (contract: workerd, 1.3).
//!
//! Owns: the execs of one socket, from their creation until some time after their end, and the carrying of their bytes. An id is known on
//! the socket that made it and on no other.
//! Must not: know what a socket is beyond whose containers it can see.
//!
//! As with Docker, a process whose client has gone runs on: its input ends and its output is dropped. A terminal without a client gets ^D,
//! which ends a shell. When the daemon has gone, pipes break and terminals hang up; a detached process has neither, and lives on. All of
//! them end with their container, with exit code 137.

mod create;
mod start;
mod stream;
mod table;
mod workerd;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use wharf_engine::{Engine, ExecProcess, Inspect, Owner, Terminal, TerminalSize};

use self::table::{Phase, Table};
use crate::errors::ApiError;
use crate::fields::{self, Field};
use crate::json as docker_json;

/// Largest request body: more than execve(2) takes.
const MAX_BODY: usize = 4 << 20;

/// The execs of one socket.
struct Execs {
    engine: Engine,
    /// Whose containers it can see.
    owner: Owner,
    table: Mutex<Table<start::Waiting, Running>>,
    /// What the table's times count from.
    began: Instant,
}

/// The handles of a process that runs.
struct Running {
    process: Arc<ExecProcess>,
    terminal: Option<Terminal>,
}

type Context = State<Arc<Execs>>;
type Answer = Result<Response, ApiError>;

/// The routes, for a router of any state.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(engine: Engine, owner: Owner) -> Router<S> {
    let execs = Execs {
        engine,
        owner,
        table: Mutex::default(),
        began: Instant::now(),
    };
    Router::new()
        .route("/containers/{name}/exec", post(create::create))
        .route("/exec/{id}/start", post(start::start))
        .route("/exec/{id}/resize", post(resize))
        .route("/exec/{id}/json", get(inspect))
        .with_state(Arc::new(execs))
}

impl Execs {
    fn table(&self) -> MutexGuard<'_, Table<start::Waiting, Running>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the table.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn ended(&self, id: &str, code: i32) {
        let now_ms = self.now_ms();
        self.table().ended(id, code, now_ms);
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("No such exec instance: {id}"))
}

/// A JSON body, whatever its Content-Type.
async fn read<T: DeserializeOwned>(body: Body, known: &[Field]) -> Result<T, ApiError> {
    let bytes = axum::body::to_bytes(body, MAX_BODY)
        .await
        .map_err(|error| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?;
    fields::read(&bytes, known)
}

/// Docker's `ConsoleSize`: height and width. 0 is the default, which is that of Cloudflare.
fn terminal_size(console_size: Option<[u16; 2]>) -> TerminalSize {
    let or = |n: u16, default| if n == 0 { default } else { n };
    let [rows, cols] = console_size.unwrap_or_default();
    TerminalSize {
        rows: or(rows, 24),
        cols: or(cols, 80),
    }
}

async fn inspect(State(execs): Context, Path(id): Path<String>) -> Answer {
    let table = execs.table();
    let entry = table.get(&id).ok_or_else(|| unknown(&id))?;
    let code = match entry.phase {
        Phase::Ended(code) => Some(code),
        _ => None,
    };
    let facts = &entry.facts;
    let answer = json!({
        "ID": id,
        "ContainerID": entry.container.id,
        "Running": matches!(entry.phase, Phase::Starting | Phase::Running(_)),
        "ExitCode": code,
        "Pid": entry.pid,
        "CanRemove": false,
        "DetachKeys": "",
        "OpenStdin": facts.attached.stdin,
        "OpenStdout": facts.attached.stdout,
        "OpenStderr": facts.attached.stderr,
        "ProcessConfig": {
            "tty": facts.tty,
            "entrypoint": facts.program,
            "arguments": [],
            "privileged": false,
        },
    });
    Ok(Json(answer).into_response())
}

#[derive(Debug, Deserialize)]
struct ResizeQuery {
    h: u16,
    w: u16,
}

async fn resize(
    State(execs): Context,
    Path(id): Path<String>,
    Query(query): Query<ResizeQuery>,
) -> Answer {
    let table = execs.table();
    let entry = table.get(&id).ok_or_else(|| unknown(&id))?;
    if !entry.facts.tty {
        return Err(ApiError::bad_request(format!("exec {id} has no terminal")));
    }
    let size = TerminalSize {
        rows: query.h,
        cols: query.w,
    };
    match &entry.phase {
        Phase::Running(running) => {
            if let Some(terminal) = &running.terminal {
                terminal.resize(size).map_err(|error| {
                    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                })?;
            }
        }
        // Nobody looks at it any more: the end came first, as it may.
        Phase::Ended(_) => {}
        Phase::Created(..) | Phase::Starting => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("exec {id} is not started; give ConsoleSize with the start"),
            ));
        }
    }
    Ok(StatusCode::OK.into_response())
}

/// Whether a process can be started in it.
fn check_running(container: &Inspect) -> Result<(), ApiError> {
    if docker_json::status(&container.state) == "running" {
        return Ok(());
    }
    let text = format!("container {} is not running", container.name);
    Err(ApiError::new(StatusCode::CONFLICT, text))
}
