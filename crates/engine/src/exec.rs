//! Processes beside the main one in a running instance.
//!
//! Owns: what such a process gets from its container, and that it gets into the start that was
//! meant. Must not: keep them. They belong to whoever holds the handle, run on without one, and end
//! with the container.

use wharf_sandbox::{ExecProcess, ExecSpec, ExecStreams, SpawnError, Streams};

use crate::lifecycle::State;
use crate::merge::set_env;
use crate::record::InstanceSpec;
use crate::{Engine, EngineError, Owner};

/// A process to start in a running instance.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `K=V`, over the container's; an entry without `=` removes.
    pub env: Vec<String>,
    /// User, if not the container's.
    pub user: Option<String>,
    /// Working directory, if not the container's. Must be there.
    pub working_dir: Option<String>,
    /// Its standard streams.
    pub streams: ExecStreams,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is no such container, it does not run, or not in the generation that was asked for.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The program, its user or its directory is at fault.
    #[error("{message}")]
    NotStarted {
        /// For a person.
        message: String,
        /// 127 not found, 126 else, as a shell and Docker have it.
        exit_code: i32,
    },
}

impl Engine {
    /// Starts a process in an instance that runs in its `generation`
    /// ([`crate::Inspect::generation`]); returns when the program has begun.
    ///
    /// A caller who goes away in the middle loses only the handle.
    pub async fn exec(
        &self,
        owner: &Owner,
        reference: &str,
        generation: u64,
        exec: Exec,
    ) -> Result<(ExecProcess, Streams), ExecError> {
        let handle = self.find_to_touch(owner, reference)?;
        let spec = &handle.spec;
        let not_running =
            || EngineError::Conflict(format!("container {} is not running", spec.name));
        {
            let view = handle.view.borrow();
            if view.status.generation != generation {
                return Err(EngineError::Conflict(format!(
                    "container {} has been started anew since this was asked for; ask again",
                    spec.name
                ))
                .into());
            }
            if !matches!(view.state, State::Running | State::Stopping) {
                return Err(not_running().into());
            }
        }
        let request = specify(spec, generation, exec)?;
        let spawner = self.shared.spawner.clone();
        // A task of its own: half-way, the spawner would have to kill the process.
        let started = tokio::spawn(async move { spawner.exec(&request).await });
        let started = started
            .await
            .map_err(|error| EngineError::Internal(format!("exec: {error}")))?;
        started.map_err(|error| match error {
            SpawnError::NotRunning(_) => not_running().into(),
            SpawnError::Refused { message, exit_code } => ExecError::NotStarted {
                message,
                exit_code: if exit_code == 127 { 127 } else { 126 },
            },
            SpawnError::Exhausted(reason) => EngineError::Limit(reason).into(),
            SpawnError::Spawner(_) => EngineError::Internal(error.to_string()).into(),
        })
    }
}

/// Docker's rules: the container's environment, user and directory unless others are given; TERM
/// for a terminal.
fn specify(spec: &InstanceSpec, generation: u64, exec: Exec) -> Result<ExecSpec, EngineError> {
    let mut env = Vec::new();
    let term = matches!(exec.streams, ExecStreams::Terminal(_)).then(|| "TERM=xterm".to_owned());
    for entry in term.iter().chain(&spec.env).chain(&exec.env) {
        set_env(&mut env, entry)?;
    }
    let given = |text: Option<String>, default: &String| {
        text.filter(|t| !t.is_empty())
            .unwrap_or_else(|| default.clone())
    };
    let cwd = given(exec.working_dir, &spec.working_dir);
    if !cwd.starts_with('/') {
        return Err(EngineError::Invalid(format!(
            "the working directory \"{cwd}\" is invalid, it needs to be an absolute path"
        )));
    }
    Ok(ExecSpec {
        id: format!("exec-{}", uuid::Uuid::new_v4().simple()),
        container: spec.process(generation),
        argv: exec.argv,
        env,
        cwd,
        user: given(exec.user, &spec.user),
        nofile: spec.limits.nofile,
        streams: exec.streams,
    })
}
