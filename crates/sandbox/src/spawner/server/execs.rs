//! Processes inside containers: from the request to the end, which is told once and then forgotten.
//!
//! ```text
//! Starting --report closed--> Running --reaped--> told, gone
//!     \--report has an error--> Refused --reaped--> reply, gone
//! ```
//! They live and die in the container's PID namespace: when its main process ends, the kernel kills
//! them, and lets the main process be reaped only after them. So their ends are always told before
//! the container's. One whose daemon is gone runs on, and its end is told to nobody.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::WaitStatus;

use super::connections::is_connected;
use super::runsc::{self, Report};
use super::{Requester, Server, State};
use crate::child::class::{ExecReport, IsolationClass, SignalRoute, SignalTarget};
use crate::spawner::exec::{self, Container};
use crate::spawner::protocol::{Message, ReplyBody};
use crate::spec::ExecSpec;
use crate::sys;

#[derive(Debug)]
pub(super) struct Exec {
    pid: i32,
    /// On gVisor, known when it is running.
    inside_pid: i32,
    pidfd: OwnedFd,
    /// [`ExecSpec::container`], and its class.
    container: String,
    class: IsolationClass,
    requester: Requester,
    pub(super) state: ExecState,
}

#[derive(Debug)]
pub(super) enum ExecState {
    Starting {
        report: OwnedFd,
        text: Vec<u8>,
        ends: Vec<OwnedFd>,
    },
    Running,
    Refused {
        message: String,
        exit_code: i32,
    },
}

impl Exec {
    /// What to poll while it starts.
    pub(super) fn report(&self) -> Option<&OwnedFd> {
        match &self.state {
            ExecState::Starting { report, .. } => Some(report),
            _ => None,
        }
    }
}

impl Server {
    pub(super) fn exec(&mut self, spec: &ExecSpec, requester: Requester) -> Result<(), ReplyBody> {
        let refuse = |message: String| ReplyBody::Refused {
            message,
            exit_code: 125,
        };
        exec::check(spec).map_err(refuse)?;
        if self.entries.contains_key(&spec.id) || self.execs.contains_key(&spec.id) {
            let text = format!("a process with the id {} exists already", spec.id);
            return Err(refuse(text));
        }
        let not_running = || ReplyBody::NotRunning {
            message: format!("container {} is not running", spec.container),
        };
        let entry = self
            .entries
            .get(&spec.container)
            .filter(|e| self.ending.is_none() && matches!(e.state, State::Running))
            .ok_or_else(not_running)?;
        if !entry.is_container {
            return Err(refuse(format!("{} is no container", spec.container)));
        }
        let container = Container {
            pid: entry.pid,
            pidfd: entry.pidfd.as_fd(),
            cgroup: &entry.cgroup,
            users: entry.users.as_ref(),
            capabilities: entry.capabilities,
            no_new_privileges: entry.no_new_privileges,
            class: entry.class,
        };
        let launched = match exec::launch(&container, &self.walls.filters.container, spec) {
            Ok(launched) => launched,
            // Its main process has ended, and is about to be reaped (setns(2), pid_namespaces(7)).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOMEM)) => {
                return Err(not_running());
            }
            Err(error) => {
                return Err(ReplyBody::Failed {
                    message: format!("starting process {}: {error}", spec.id),
                });
            }
        };
        let exec = Exec {
            pid: launched.pid,
            inside_pid: launched.inside_pid,
            pidfd: launched.pidfd,
            container: spec.container.clone(),
            class: entry.class,
            requester,
            state: ExecState::Starting {
                report: launched.report,
                text: Vec::new(),
                ends: launched.ends,
            },
        };
        self.execs.insert(spec.id.clone(), exec);
        Ok(())
    }

    /// Sends a signal. A process that is not there has ended.
    pub(super) fn signal_exec(&mut self, id: &str, signal: i32) -> ReplyBody {
        let Some(exec) = self.execs.get(id) else {
            return ReplyBody::Signalled(false);
        };
        // Until it runs there is nothing to signal but what starts it, a process of this kernel.
        if matches!(exec.state, ExecState::Running)
            && let target = SignalTarget::Inside(exec.inside_pid)
            && let SignalRoute::Program(argv) = exec.class.signal(target, signal)
        {
            let container = exec.container.clone();
            return self.signal_by_program(&container, signal, argv);
        }
        match sys::signal_process(exec.pidfd.as_fd(), signal) {
            Ok(found) => ReplyBody::Signalled(found),
            Err(error) => ReplyBody::Failed {
                message: format!("signal {signal} to process {id}: {error}"),
            },
        }
    }

    /// As [`Server::read_report`].
    pub(super) fn read_exec_report(&mut self, id: &str) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        let ExecState::Starting { report, text, ends } = &mut exec.state else {
            return;
        };
        match exec.class.exec_report() {
            ExecReport::Closed if !super::processes::read_to_end(report, text, id) => return,
            ExecReport::Closed => {}
            ExecReport::Number => match runsc::read_report(report, text) {
                Report::Unfinished => return,
                Report::Started(inside) => {
                    exec.inside_pid = inside;
                    text.clear();
                }
                Report::Nothing => return runsc::never_started(exec),
                Report::Failed => {}
            },
        }
        if let Some((exit_code, message)) = text.split_first() {
            exec.state = ExecState::Refused {
                message: String::from_utf8_lossy(message).into_owned(),
                exit_code: i32::from(*exit_code),
            };
            return;
        }
        let ends = std::mem::take(ends);
        exec.state = ExecState::Running;
        let (requester, body) = (
            exec.requester,
            ReplyBody::ExecStarted {
                id: id.to_owned(),
                pid: exec.pid,
                inside_pid: exec.inside_pid,
            },
        );
        if is_connected(&self.daemon, requester) {
            self.reply(requester, body, ends);
        } else {
            // Nobody will ever learn of it.
            if let ReplyBody::Failed { message } = self.signal_exec(id, libc::SIGKILL) {
                eprintln!("spawner: {message}");
            }
        }
    }

    /// `false` when the process is none of these.
    pub(super) fn exec_reaped(&mut self, pid: i32, status: WaitStatus) -> bool {
        let found = self.execs.iter().find(|(_, e)| e.pid == pid);
        let Some(id) = found.map(|(id, _)| id.clone()) else {
            return false;
        };
        self.read_exec_report(&id); // Before its end, the requester must learn of its start.
        let Some(mut exec) = self.execs.remove(&id) else {
            return false;
        };
        if exec.class.exec_report() == ExecReport::Number {
            runsc::never_started(&mut exec);
        }
        match exec.state {
            ExecState::Refused { message, exit_code } => {
                let body = ReplyBody::Refused { message, exit_code };
                self.reply(exec.requester, body, Vec::new());
            }
            _ if self.is_connected(exec.requester) => {
                let exit = super::processes::exit_of(status);
                self.send(&Message::ExecExited { id, exit }, Vec::new());
            }
            _ => {}
        }
        true
    }
}
