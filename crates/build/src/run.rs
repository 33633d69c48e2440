//! RUN: one process in the sandbox on a fresh upper directory, with its own network.
//!
//! Owns: the life of that process. When the build is dropped, the process is killed, and only then is its upper directory removed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedMutexGuard, oneshot};
use wharf_net::{Networks, Policy};
use wharf_sandbox::{Exit, Limits, Mount, ProcessSpec, Root, SpawnError, SpawnFds, Spawner};

use crate::cache::Scratch;
use crate::instruction::{CacheMount, Command, Run};
use crate::trouble::{Context, Result, Trouble};
use crate::{PROCESS_LABEL, Progress};

/// A bound against fork bombs; nothing else is limited.
const PIDS: u64 = 4096;
const HOSTNAME: &str = "build";
/// Where a script with its own `#!` line appears; /dev is the sandbox's own, so that no layer sees it.
const SCRIPTS: &str = "/dev/pipes";

/// Everything that a RUN needs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    /// Topmost first.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) network: bool,
    /// Host directory and mount.
    pub(crate) caches: Vec<(PathBuf, CacheMount)>,
    /// Path inside and content.
    pub(crate) script: Option<(String, String)>,
    pub(crate) scratch: Scratch,
    /// Held as long as the cache mounts are in use.
    pub(crate) turns: Vec<OwnedMutexGuard<()>>,
}

/// The command line of a RUN, and the script to mount if a single here-document brings its own interpreter.
pub(crate) fn command(run: &Run, shell: &[String]) -> (Vec<String>, Option<(String, String)>) {
    let shelled = |text: String| shell.iter().cloned().chain([text]).collect();
    let text = match &run.command {
        Command::Exec(argv) => return (argv.clone(), None),
        Command::Shell(text) => text,
    };
    let [only] = run.heredocs.as_slice() else {
        return (shelled(with_heredocs(text, run)), None);
    };
    if !text.starts_with("<<") || text.split_whitespace().count() != 1 {
        return (shelled(with_heredocs(text, run)), None);
    }
    let Some(interpreter) = only.content.strip_prefix("#!") else {
        return (shelled(only.content.clone()), None);
    };
    // What the kernel does with a script: interpreter, the rest of the line as one argument, path.
    let line = interpreter.lines().next().unwrap_or_default().trim();
    let path = format!("{SCRIPTS}/{}", only.name);
    let argv = match line.split_once([' ', '\t']) {
        Some((program, argument)) => {
            vec![program.to_owned(), argument.trim().to_owned(), path.clone()]
        }
        None => vec![line.to_owned(), path.clone()],
    };
    (argv, Some((path, only.content.clone())))
}

/// The shell itself reads the here-documents.
fn with_heredocs(text: &str, run: &Run) -> String {
    let mut script = text.to_owned();
    for heredoc in &run.heredocs {
        script.push('\n');
        script.push_str(&heredoc.content);
        script.push_str(&heredoc.name);
    }
    script
}

/// Paths at which the sandbox will mount something.
pub(crate) fn mount_points(job: &Job) -> Vec<PathBuf> {
    ["/etc/resolv.conf", "/etc/hosts", "/proc", "/sys", "/dev"]
        .into_iter()
        .map(PathBuf::from)
        .chain(job.caches.iter().map(|(_, m)| PathBuf::from(&m.target)))
        .collect()
}

/// Runs to the end; gives the scratch directory back.
pub(crate) async fn run(
    spawner: Spawner,
    networks: Networks,
    job: Job,
    progress: UnboundedSender<Progress>,
) -> Result<(Exit, Scratch)> {
    let (alive, dropped) = oneshot::channel::<()>();
    // A task of its own, so that it can clean up after this future is dropped.
    let task = tokio::spawn(guarded(spawner, networks, job, progress, dropped));
    let result = task
        .await
        .map_err(|e| std::io::Error::other(e.to_string()))
        .context(|| "running the command".to_owned())?;
    drop(alive);
    result
}

async fn guarded(
    spawner: Spawner,
    networks: Networks,
    job: Job,
    progress: UnboundedSender<Progress>,
    dropped: oneshot::Receiver<()>,
) -> Result<(Exit, Scratch)> {
    let network = networks
        .create()
        .await
        .map_err(failed("making a network"))?;
    network.set_policy(Policy {
        internet: job.network,
    });
    let id = format!("build-{}", uuid::Uuid::new_v4().simple());
    let spec = spec(&id, &job, network.resolv_conf());
    let fds = SpawnFds {
        netns: Some(network.namespace().map_err(failed("making a network"))?),
        sys: network.system_files(),
        disk: None,
        image: None,
        inherit: Vec::new(),
    };
    let process = spawner.spawn(&spec, fds).await.map_err(|e| match e {
        SpawnError::Refused { message, .. } => Trouble::Refused(message),
        other => failed("starting the command")(other),
    })?;
    let work = async {
        tokio::join!(
            pump(process.stdout, &progress),
            pump(process.stderr, &progress),
            spawner.wait(&id)
        )
    };
    let ended = tokio::select! {
        ended = work => Some(ended),
        _ = dropped => None,
    };
    let result = match ended {
        Some((out, err, exit)) => {
            let exit = exit.map_err(failed("waiting for the command"));
            out.and(err)
                .context(|| "reading the output of the command".to_owned())
                .and(exit)
        }
        None => Err(Trouble::Refused("the build was cancelled".into())),
    };
    if result.is_err() {
        // Already ended is as good as killed.
        let _ = spawner.kill(&id).await;
        spawner
            .wait(&id)
            .await
            .map_err(failed("waiting for the command"))?;
    }
    spawner
        .forget(&id)
        .await
        .map_err(failed("letting go of the command"))?;
    drop((network, job.turns));
    Ok((result?, job.scratch))
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> Trouble {
    move |e| Trouble::Io {
        context: doing.to_owned(),
        source: std::io::Error::other(e.to_string()),
    }
}

fn spec(id: &str, job: &Job, resolv_conf: String) -> ProcessSpec {
    let mut mounts = vec![
        Mount::File {
            target: "/etc/resolv.conf".into(),
            content: resolv_conf,
        },
        Mount::File {
            target: "/etc/hosts".into(),
            content: format!(
                "127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            ),
        },
    ];
    mounts.extend(job.caches.iter().map(|(source, m)| Mount::Bind {
        source: source.clone(),
        target: m.target.clone().into(),
        read_only: m.read_only,
    }));
    if let Some((target, content)) = &job.script {
        mounts.push(Mount::File {
            target: Path::new(target).to_owned(),
            content: content.clone(),
        });
    }
    ProcessSpec {
        id: id.to_owned(),
        label: PROCESS_LABEL.to_owned(),
        argv: job.argv.clone(),
        env: job.env.clone(),
        cwd: job.cwd.clone(),
        user: job.user.clone(),
        root: Root::Overlay {
            lower: job.lower.clone(),
            upper: job.scratch.upper(),
            work: job.scratch.work(),
        },
        hostname: Some(HOSTNAME.to_owned()),
        mounts,
        limits: Limits {
            pids: Some(PIDS),
            ..Limits::default()
        },
        stdin_pipe: false,
        disk: None,
        capabilities: wharf_sandbox::Capabilities::default(),
        no_new_privileges: false,
        read_only: false,
        isolation: wharf_sandbox::IsolationSpec::Namespace,
    }
}

/// Passes output on as it comes. A receiver that is gone does not stop the build.
async fn pump(fd: OwnedFd, progress: &UnboundedSender<Progress>) -> std::io::Result<()> {
    let mut pipe = pipe::Receiver::from_owned_fd(fd)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match pipe.read(&mut buffer).await? {
            0 => return Ok(()),
            n => {
                let _ = progress.send(Progress::Output(buffer[..n].to_vec()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instruction::{Instruction, steps};

    fn of(text: &str) -> (Vec<String>, Option<(String, String)>) {
        let file = crate::parse::parse(text).expect("parses");
        let mut steps = steps(&file).expect("steps");
        let Instruction::Run(run) = steps.remove(0).instruction else {
            panic!("a RUN")
        };
        command(&run, &["/bin/sh".into(), "-c".into()])
    }

    #[test]
    fn forms() {
        let sh = |text: &str| (vec!["/bin/sh".to_owned(), "-c".into(), text.into()], None);
        assert_eq!(of("RUN echo $x"), sh("echo $x"));
        assert_eq!(of("RUN [\"a\", \"b c\"]").0, ["a", "b c"]);
        assert_eq!(of("RUN <<E\na\nb\nE"), sh("a\nb\n"));
        assert_eq!(
            of("RUN cat <<E > /f && x\na $y\nE"),
            sh("cat <<E > /f && x\na $y\nE")
        );
        assert_eq!(
            of("RUN cat <<A <<B\n1\nA\n2\nB"),
            sh("cat <<A <<B\n1\nA\n2\nB")
        );
    }

    #[test]
    fn a_script_brings_its_interpreter() {
        let (argv, script) = of("RUN <<E\n#!/usr/bin/env python3 -u\nprint(1)\nE");
        assert_eq!(argv, ["/usr/bin/env", "python3 -u", "/dev/pipes/E"]);
        assert!(
            script
                .is_some_and(|(path, text)| path == "/dev/pipes/E" && text.ends_with("print(1)\n"))
        );
        assert_eq!(of("RUN <<E\n#!/bin/x\nE").0, ["/bin/x", "/dev/pipes/E"]);
    }
}
