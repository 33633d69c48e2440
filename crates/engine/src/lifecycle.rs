//! The life of an instance as a pure state machine: event in, effects out. No clock, no I/O, no
//! randomness.
//!
//! ```text
//!            Start            Spawned           Stop
//!  Created ────────> Starting ───────> Running ──────> Stopping
//!     │               ▲    │              │               │  GraceElapsed: KillAll
//!     │         Start │    │ SpawnFailed  │ Exited        │  Exited
//!     │               │    ▼              ▼               ▼
//!     │              Exited <─────────────┴───────────────┘
//!     │                 │
//!     └─── Remove ──────┴──> (CleanUp) ── Cleaned ──> Removed
//! ```
//!
//! * A start with a hard timeout is stopped when that is over; it counts from `Spawned`, also for
//!   who adopts the process (`Adopted`).
//! * `Stop` while Starting is kept until `Spawned`; `Remove{force}` of anything that lives first
//!   kills it, then cleans up.
//! * Each `Spawn` has a new generation. Events of processes (`Spawned`, `Exited`, `GraceElapsed`,
//!   ...) carry theirs; those of an earlier one change nothing.
//! * Every token that comes in is answered exactly once, at the latest by the removal.

mod ended;

use wharf_sandbox::Exit;

#[cfg(test)]
mod tests;

pub use self::ended::{EndedBy, describe};

/// State of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The instance was made and never started.
    Created,
    /// The spawner was asked.
    Starting,
    /// Its process runs.
    Running,
    /// Was asked to stop; SIGKILL follows after the grace.
    Stopping,
    /// The process has ended.
    Exited(wharf_sandbox::Exit),
    /// Gone.
    Removed,
}

impl State {
    /// Whether a process lives or is about to.
    pub fn is_live(&self) -> bool {
        matches!(self, State::Starting | State::Running | State::Stopping)
    }
}

/// Names whoever waits for an answer; chosen by the caller, unique within the instance.
pub type Token = u64;

/// What a waiter waits for (Docker's `condition`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// No process: at once if there is none.
    NotRunning,
    /// The next exit, even if it has exited before.
    NextExit,
    /// The removal.
    Removed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A start is asked for.
    Start(Token),
    /// The spawner has started the process.
    Spawned {
        /// Which start.
        generation: u64,
    },
    /// The spawner could not start the process.
    SpawnFailed {
        /// Which start.
        generation: u64,
        /// Exit code a shell would give (127: not found, 126: not executable, 125: else).
        code: i32,
        /// Whether the request, the machine or a shortage is at fault.
        fault: Fault,
        /// For a person.
        message: String,
    },
    /// A new daemon has taken over the process, which ran already.
    Adopted {
        /// For how long it has run, milliseconds.
        ran_ms: u64,
    },
    /// The time that the process may run is over.
    HardTimeout {
        /// The start that this is about.
        generation: u64,
    },
    /// A signal shall be sent.
    Signal {
        /// Its number.
        signal: i32,
        /// The caller that waits for the answer.
        token: Token,
    },
    /// A stop is asked for: stop signal, then SIGKILL.
    Stop {
        /// Time between the two, milliseconds.
        grace_ms: u64,
        /// Why.
        by: EndedBy,
        /// The caller that waits for the answer.
        token: Token,
    },
    /// The time between the two is over.
    GraceElapsed {
        /// The start that this is about.
        generation: u64,
    },
    /// The process has ended.
    Exited {
        /// The start that this is about.
        generation: u64,
        /// How.
        exit: Exit,
    },
    /// The removal is asked for.
    Remove {
        /// Whether to remove it even if it runs.
        force: bool,
        /// Why.
        by: EndedBy,
        /// The caller that waits for the answer.
        token: Token,
    },
    /// Somebody waits.
    Wait {
        /// For what.
        until: Until,
        /// The caller that waits.
        token: Token,
    },
    /// These do not wait any more (their connection is gone).
    Abandoned(Vec<Token>),
    /// Everything that the instance had is gone.
    Cleaned,
}

/// Effects to perform, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask the spawner for the process.
    Spawn {
        /// Its generation.
        generation: u64,
    },
    /// Send a signal to the main process.
    Signal {
        /// Which process.
        generation: u64,
        /// Number.
        signal: i32,
        /// To be answered with the outcome.
        token: Option<Token>,
    },
    /// Send `GraceElapsed` after this time.
    ArmTimer {
        /// Which process.
        generation: u64,
        /// Milliseconds.
        ms: u64,
    },
    /// Send `HardTimeout` after this time, if the process still runs then.
    ArmHardTimeout {
        /// Which process.
        generation: u64,
        /// Milliseconds.
        ms: u64,
    },
    /// The process is stopped because its hard timeout is over: to be recorded.
    NoteHardTimeout {
        /// The timeout, milliseconds.
        ms: u64,
    },
    /// SIGKILL to every process of the instance.
    KillAll {
        /// Which.
        generation: u64,
    },
    /// Write the record: it differs from what is on disk.
    Persist,
    /// The exit is recorded; the spawner may forget it.
    Forget {
        /// Which process.
        generation: u64,
    },
    /// Remove everything that the instance has, then send `Cleaned`.
    CleanUp,
    /// Answer somebody.
    Reply {
        /// Whom.
        token: Token,
        /// What.
        answer: Answer,
    },
}

/// What is at fault when a start fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request's (Docker answers 400).
    Request,
    /// Something is used up, and may be there later (503).
    Shortage,
    /// The machine's (500).
    Machine,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The process ended, like this.
    Exit(Exit),
    /// Already so.
    NotModified,
    /// The process did not start.
    StartFailed {
        /// Whether the request, the machine or a shortage is at fault.
        fault: Fault,
        /// For a person.
        message: String,
    },
    /// There is no process.
    NotRunning,
    /// The instance runs, and `force` was not given.
    StillRunning,
    /// The instance is being removed.
    BeingRemoved,
    /// The instance has been removed.
    Gone,
}

/// How long a process may run, and how it is ended then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardTimeout {
    /// Time from its start, milliseconds.
    pub ms: u64,
    /// Time from the stop signal to SIGKILL, milliseconds.
    pub grace_ms: u64,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
    generation: u64,
    stop_signal: i32,
    hard_timeout: Option<HardTimeout>,
    removing: bool,
    /// A stop that came while Starting.
    stop_after_start: Option<u64>,
    /// Who or what first asked for the end of this process.
    ending: Option<EndedBy>,
    /// The last signal that its owner sent.
    signalled: Option<i32>,
    starters: Vec<Token>,
    stoppers: Vec<Token>,
    removers: Vec<Token>,
    waiters: Vec<(Until, Token)>,
}

impl Machine {
    /// A new or adopted instance; `generation` is that of its last start (or of its name's last
    /// start).
    pub fn new(state: State, generation: u64, stop_signal: i32) -> Self {
        Machine {
            state,
            generation,
            stop_signal,
            hard_timeout: None,
            removing: false,
            stop_after_start: None,
            ending: None,
            signalled: None,
            starters: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
            waiters: Vec::new(),
        }
    }

    /// Bounds how long each of its processes may run.
    pub fn with_hard_timeout(mut self, hard_timeout: Option<HardTimeout>) -> Self {
        self.hard_timeout = hard_timeout;
        self
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Generation of the last start.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a removal has begun.
    pub fn is_removing(&self) -> bool {
        self.removing
    }

    /// Who or what has asked for the end of the process that runs.
    pub fn ending(&self) -> Option<EndedBy> {
        self.ending
    }

    /// Who or what is behind this end of the process that runs.
    pub fn cause(&self, exit: &Exit) -> EndedBy {
        // The image's own stop signal asks for an end as SIGTERM does.
        let signal = self.signalled.map(|sent| match sent {
            sent if sent == self.stop_signal => 15,
            sent => sent,
        });
        ended::cause(exit, self.ending, signal)
    }

    /// Takes an event, returns what is to be done.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Start(token) => self.start(token, &mut out),
            Event::Spawned { generation } if generation == self.generation => {
                self.spawned(&mut out);
            }
            Event::SpawnFailed {
                generation,
                code,
                fault,
                message,
            } if generation == self.generation => {
                self.spawn_failed(code, fault, &message, &mut out);
            }
            Event::Adopted { ran_ms } => self.arm_hard_timeout(ran_ms, &mut out),
            Event::HardTimeout { generation } if generation == self.generation => {
                self.timed_out(&mut out);
            }
            Event::Signal { signal, token } => self.signal(signal, token, &mut out),
            Event::Stop {
                grace_ms,
                by,
                token,
            } => self.stop(grace_ms, by, token, &mut out),
            Event::GraceElapsed { generation } if generation == self.generation => {
                if self.state == State::Stopping {
                    out.push(Effect::KillAll { generation });
                }
            }
            Event::Exited { generation, exit } if generation == self.generation => {
                if matches!(self.state, State::Running | State::Stopping) {
                    self.ended(exit, true, &mut out);
                }
            }
            Event::Remove { force, by, token } => self.remove(force, by, token, &mut out),
            Event::Wait { until, token } => self.wait(until, token, &mut out),
            Event::Abandoned(tokens) => self.waiters.retain(|(_, t)| !tokens.contains(t)),
            Event::Cleaned => self.cleaned(&mut out),
            // Of an earlier generation.
            Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::GraceElapsed { .. }
            | Event::HardTimeout { .. }
            | Event::Exited { .. } => {}
        }
        out
    }

    fn start(&mut self, token: Token, out: &mut Vec<Effect>) {
        match self.state {
            State::Removed => reply(out, token, Answer::Gone),
            _ if self.removing => reply(out, token, Answer::BeingRemoved),
            State::Created | State::Exited(_) => {
                self.generation += 1;
                self.ending = None;
                self.signalled = None;
                self.state = State::Starting;
                self.starters.push(token);
                out.push(Effect::Spawn {
                    generation: self.generation,
                });
            }
            State::Starting => self.starters.push(token),
            State::Running | State::Stopping => reply(out, token, Answer::NotModified),
        }
    }

    fn spawned(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::Starting {
            return;
        }
        self.state = State::Running;
        // The first caller has started it; the others came too late, as with Docker.
        for (n, token) in self.starters.drain(..).enumerate() {
            let answer = if n == 0 {
                Answer::Done
            } else {
                Answer::NotModified
            };
            reply(out, token, answer);
        }
        if self.removing {
            self.state = State::Stopping;
            out.push(Effect::KillAll {
                generation: self.generation,
            });
        } else if let Some(grace_ms) = self.stop_after_start.take() {
            self.begin_stop(grace_ms, out);
        }
        self.arm_hard_timeout(0, out);
        out.push(Effect::Persist);
    }

    fn arm_hard_timeout(&self, ran_ms: u64, out: &mut Vec<Effect>) {
        if self.state == State::Running
            && let Some(HardTimeout { ms, .. }) = self.hard_timeout
        {
            out.push(Effect::ArmHardTimeout {
                generation: self.generation,
                ms: ms.saturating_sub(ran_ms),
            });
        }
    }

    fn timed_out(&mut self, out: &mut Vec<Effect>) {
        if self.state == State::Running
            && let Some(HardTimeout { ms, grace_ms }) = self.hard_timeout
        {
            self.ending.get_or_insert(EndedBy::HardTimeout);
            out.push(Effect::NoteHardTimeout { ms });
            self.begin_stop(grace_ms, out);
        }
    }

    fn spawn_failed(&mut self, code: i32, fault: Fault, message: &str, out: &mut Vec<Effect>) {
        if self.state != State::Starting {
            return;
        }
        for token in self.starters.drain(..) {
            let message = message.to_owned();
            reply(out, token, Answer::StartFailed { fault, message });
        }
        let exit = Exit {
            code,
            signal: None,
            oom_killed: false,
        };
        self.ended(exit, false, out);
    }

    fn ended(&mut self, exit: Exit, had_process: bool, out: &mut Vec<Effect>) {
        self.state = State::Exited(exit);
        self.stop_after_start = None;
        if !self.removing {
            out.push(Effect::Persist);
        }
        if had_process {
            out.push(Effect::Forget {
                generation: self.generation,
            });
        }
        for token in self.stoppers.drain(..) {
            reply(out, token, Answer::Done);
        }
        self.waiters.retain(|(until, token)| {
            let answered = *until != Until::Removed;
            if answered {
                reply(out, *token, Answer::Exit(exit));
            }
            !answered
        });
        if self.removing {
            out.push(Effect::CleanUp);
        }
    }

    fn signal(&mut self, signal: i32, token: Token, out: &mut Vec<Effect>) {
        match self.state {
            State::Running | State::Stopping => {
                self.signalled = Some(signal);
                out.push(Effect::Signal {
                    generation: self.generation,
                    signal,
                    token: Some(token),
                });
            }
            State::Removed => reply(out, token, Answer::Gone),
            _ => reply(out, token, Answer::NotRunning),
        }
    }

    fn stop(&mut self, grace_ms: u64, by: EndedBy, token: Token, out: &mut Vec<Effect>) {
        if self.state.is_live() {
            self.ending.get_or_insert(by);
        }
        match self.state {
            State::Created | State::Exited(_) => reply(out, token, Answer::NotModified),
            State::Removed => reply(out, token, Answer::Gone),
            State::Starting => {
                self.stoppers.push(token);
                let shorter = self.stop_after_start.map_or(grace_ms, |g| g.min(grace_ms));
                self.stop_after_start = Some(shorter);
            }
            State::Running => {
                self.stoppers.push(token);
                self.begin_stop(grace_ms, out);
            }
            // The earliest timer wins.
            State::Stopping => {
                self.stoppers.push(token);
                out.push(Effect::ArmTimer {
                    generation: self.generation,
                    ms: grace_ms,
                });
            }
        }
    }

    fn begin_stop(&mut self, grace_ms: u64, out: &mut Vec<Effect>) {
        self.state = State::Stopping;
        let generation = self.generation;
        out.push(Effect::Signal {
            generation,
            signal: self.stop_signal,
            token: None,
        });
        out.push(Effect::ArmTimer {
            generation,
            ms: grace_ms,
        });
        // So that the reason outlives the daemon too.
        out.push(Effect::Persist);
    }

    fn remove(&mut self, force: bool, by: EndedBy, token: Token, out: &mut Vec<Effect>) {
        if self.state == State::Removed {
            return reply(out, token, Answer::Gone);
        }
        if self.removing {
            return self.removers.push(token);
        }
        if self.state.is_live() && !force {
            return reply(out, token, Answer::StillRunning);
        }
        self.removing = true;
        self.removers.push(token);
        if self.state.is_live() {
            self.ending.get_or_insert(by);
        }
        match self.state {
            State::Running | State::Stopping => {
                self.state = State::Stopping;
                out.push(Effect::KillAll {
                    generation: self.generation,
                });
            }
            // Killed when it is there.
            State::Starting => {}
            _ => out.push(Effect::CleanUp),
        }
    }

    fn wait(&mut self, until: Until, token: Token, out: &mut Vec<Effect>) {
        match (until, &self.state) {
            (_, State::Removed) => reply(out, token, Answer::Gone),
            (Until::NotRunning, State::Exited(exit)) => reply(out, token, Answer::Exit(*exit)),
            (Until::NotRunning, State::Created) => reply(out, token, Answer::Exit(never_ran())),
            _ => self.waiters.push((until, token)),
        }
    }

    fn cleaned(&mut self, out: &mut Vec<Effect>) {
        if !self.removing || self.state.is_live() || self.state == State::Removed {
            return;
        }
        let exit = match self.state {
            State::Exited(exit) => exit,
            _ => never_ran(),
        };
        self.state = State::Removed;
        for (_, token) in self.waiters.drain(..) {
            reply(out, token, Answer::Exit(exit));
        }
        for token in self.removers.drain(..) {
            reply(out, token, Answer::Done);
        }
    }
}

/// What Docker answers to a wait for a container that never ran.
fn never_ran() -> Exit {
    Exit {
        code: 0,
        signal: None,
        oom_killed: false,
    }
}

fn reply(out: &mut Vec<Effect>, token: Token, answer: Answer) {
    out.push(Effect::Reply { token, answer });
}
