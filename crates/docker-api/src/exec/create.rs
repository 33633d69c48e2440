//! `POST /containers/<name>/exec`: what is to be started, kept under an id.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::start::{Process, Waiting};
use super::stream::Attached;
use super::table::{ContainerStart, Entry, Facts, Phase};
use super::workerd::{Recognised, recognise};
use super::{Answer, Context, check_running, read};
use crate::errors::ApiError;
use crate::fields::others;

/// A longer name is no path that could be executed (path_resolution(7)).
const MAX_PROGRAM: usize = 4096;

/// The body. Docker clients write null for what is not set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Body {
    attach_stdin: Option<bool>,
    attach_stdout: Option<bool>,
    attach_stderr: Option<bool>,
    tty: Option<bool>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    console_size: Option<[u16; 2]>,
}

pub(super) async fn create(
    State(execs): Context,
    Path(name): Path<String>,
    request: Request,
) -> Answer {
    let body: Body = read(request.into_body(), others::EXEC).await?;
    let container = execs.engine.inspect(&execs.owner, &name).await?;
    check_running(&container)?;
    let argv = body.cmd.unwrap_or_default();
    let env = body.env.unwrap_or_default();
    let bytes = argv
        .iter()
        .chain(&env)
        .map(|s| s.len() + size_of::<String>());
    let bytes = bytes.sum();
    let Some(program) = argv.first().filter(|p| !p.is_empty()) else {
        return Err(ApiError::bad_request("no exec command specified"));
    };
    let facts = Facts {
        program: program.get(..MAX_PROGRAM).unwrap_or(program).to_owned(),
        tty: body.tty == Some(true),
        attached: Attached {
            stdin: body.attach_stdin == Some(true),
            stdout: body.attach_stdout == Some(true),
            stderr: body.attach_stderr == Some(true),
        },
    };
    let process = |argv, by_workerd| {
        Waiting::Process(Process {
            argv,
            env,
            user: body.user,
            working_dir: body.working_dir,
            console_size: body.console_size,
            by_workerd,
        })
    };
    let (waiting, token) = match recognise(argv) {
        Recognised::Kill { token, signal } => (Waiting::Kill { token, signal }, None),
        Recognised::Program { token, argv } => (process(argv, true), Some(token)),
        Recognised::Other(argv) => (process(argv, false), None),
    };
    let id = format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    );
    let entry = Entry {
        container: ContainerStart {
            owner: container.owner,
            id: container.id,
            generation: container.generation,
        },
        token,
        facts,
        pid: 0,
        phase: Phase::Created(waiting, bytes),
    };
    let now_ms = execs.now_ms();
    execs.table().insert(id.clone(), entry, now_ms);
    Ok((StatusCode::CREATED, Json(json!({ "Id": id }))).into_response())
}
