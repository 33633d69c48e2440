//! One script's process: which one shall run, whether requests may go to it, what to do when it ends.
//!
//! Owns: the decisions. Must not: do I/O or read a clock; the time comes with each event, effects go out.
//!
//! ```text
//!                 Set                     Started
//!        Idle ───────────> Starting ──────────────────> Ready
//!          ^               │   ^  ^                     │   │
//!          │   StartFailed │   │  │ Timer        Exited │   │ Set, or Shutdown
//!          │               v   │  │                     │   v
//!          │             Backoff ─┘  <──────────────────┘  Draining     requests in flight end, new ones are held
//!          │                   │                            │
//!          │                   │ Exited                     │ none in flight, or Timer
//!          └─────────────── Stopping <──────────────────────┘          SIGTERM, then on Timer SIGKILL
//!             Exited, and nothing shall run: Gone
//! ```
//!
//! Hung: Ready -> Condemned (SIGKILL), and from there as from Ready when it has exited, with the reason that came with Hung.
//!
//! Rules: a new process is started only after the exit of the one before was seen, because two processes must never open one
//! Durable Object storage (contract: workerd, 3.3). Every state but `Idle` and `Ready` is left by a timer at the latest, so a
//! held request is always answered.

use std::collections::VecDeque;

/// Numbers what a script shall run; later is greater.
pub(crate) type Target = u64;
/// Numbers the processes of one script.
pub(crate) type ProcessId = u64;
/// Numbers those who wait for a process.
pub(crate) type Waiter = u64;

/// First pause after a failure, milliseconds; doubled by each further one.
const BACKOFF_FIRST_MS: u64 = 100;
/// Longest pause between starts, milliseconds.
const BACKOFF_MOST_MS: u64 = 30_000;
/// After a crash, requests are held over a pause up to this long, milliseconds; over longer ones they get the reason.
const HOLD_MOST_MS: u64 = 1_000;
/// A process that has been ready for so long was healthy: earlier failures are forgotten.
const HEALTHY_MS: u64 = 60_000;

/// How long things may take, milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// A process to become ready.
    pub(crate) start_ms: u64,
    /// Requests in flight before a swap.
    pub(crate) drain_ms: u64,
    /// A process to end after SIGTERM.
    pub(crate) term_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Something (else) shall run.
    Set(Target),
    /// Nothing shall run any more, now.
    Remove,
    /// Nothing shall run any more; requests in flight may finish.
    Shutdown,
    /// A request wants the process.
    Acquire(Waiter),
    /// A request is done.
    Release(ProcessId),
    /// The process accepts requests.
    Started(ProcessId),
    /// The process is dead, or was never born; the reason is for people.
    Ended(ProcessId, String),
    /// The process does not answer any more and shall be ended; the reason is for people.
    Hung(ProcessId, String),
    /// The timer with this number has run out.
    Timer(u64),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start a process; answer with `Started` or `Ended`.
    Start(ProcessId, Target),
    /// No new requests go to the process: idle connections to it can be closed.
    Drain(ProcessId),
    /// Send SIGTERM.
    Terminate(ProcessId),
    /// Send SIGKILL.
    Kill(ProcessId),
    /// Send `Timer` with this number after so many milliseconds.
    Timer(u64, u64),
    /// The waiter may use the process; `Release` follows.
    Grant(Waiter, ProcessId),
    /// The waiter gets nothing: the reason, or `None` when the script is gone.
    Refuse(Waiter, Option<String>),
    /// The target is ready, or its first start has failed.
    Settled(Target, Result<(), String>),
    /// Nothing runs and nothing shall.
    Gone,
}

/// What the state is called towards people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Starting, or about to.
    Starting,
    /// Serving.
    Ready,
    /// Requests of the old process finish, or it ends.
    Draining,
    /// Waiting before the next attempt.
    Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Starting {
        process: ProcessId,
        target: Target,
        timed_out: bool,
    },
    Ready {
        process: ProcessId,
        since_ms: u64,
    },
    Draining {
        process: ProcessId,
    },
    Stopping {
        process: ProcessId,
    },
    /// Killed for what it did; `Machine::verdict` says what.
    Condemned {
        process: ProcessId,
        since_ms: u64,
    },
    Backoff {
        hold: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    Run(Target),
    Gone,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Machine {
    bounds: Bounds,
    state: State,
    want: Want,
    in_flight: usize,
    waiters: VecDeque<Waiter>,
    failures: u32,
    crashes: u32,
    last_error: Option<String>,
    /// Why a process is condemned.
    verdict: Option<String>,
    last_process: ProcessId,
    timer: u64,
}

impl Machine {
    /// Nothing runs yet.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: State::Idle,
            want: Want::Nothing,
            in_flight: 0,
            waiters: VecDeque::new(),
            failures: 0,
            crashes: 0,
            last_error: None,
            verdict: None,
            last_process: 0,
            timer: 0,
        }
    }

    /// For people.
    pub(crate) fn phase(&self) -> Phase {
        match self.state {
            State::Idle | State::Starting { .. } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Draining { .. } | State::Stopping { .. } | State::Condemned { .. } => {
                Phase::Draining
            }
            State::Backoff { .. } => Phase::Backoff,
        }
    }

    /// Processes that ended unasked since the target was set.
    pub(crate) fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Why the last one did.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Whether nothing shall run any more.
    pub(crate) fn leaving(&self) -> bool {
        self.want == Want::Gone
    }

    /// One more request on a process, if it takes any now. For connections that stay open between requests.
    pub(crate) fn join(&mut self, process: ProcessId) -> bool {
        let ready = matches!(self.state, State::Ready { process: p, .. } if p == process);
        self.in_flight += usize::from(ready);
        ready
    }

    /// Takes an event at a time (milliseconds on any clock that does not go back).
    pub(crate) fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Set(target) => self.set(target, &mut out),
            Event::Remove => self.leave(false, &mut out),
            Event::Shutdown => self.leave(true, &mut out),
            Event::Acquire(waiter) => self.acquire(waiter, &mut out),
            Event::Release(process) => self.release(process, &mut out),
            Event::Started(process) => self.started(process, now_ms, &mut out),
            Event::Ended(process, reason) => self.ended(process, reason, now_ms, &mut out),
            Event::Hung(process, reason) => self.hung(process, reason, &mut out),
            Event::Timer(number) if number == self.timer => self.timed_out(&mut out),
            Event::Timer(_) => {}
        }
        out
    }

    fn set(&mut self, target: Target, out: &mut Vec<Effect>) {
        match self.want {
            Want::Gone => return,
            Want::Run(current) if current >= target => return,
            Want::Run(_) | Want::Nothing => {}
        }
        self.want = Want::Run(target);
        self.failures = 0;
        self.crashes = 0;
        self.last_error = None;
        match self.state {
            State::Idle | State::Backoff { .. } => self.start(out),
            // It serves nobody yet, so it need not end in order.
            State::Starting { process, .. } => {
                self.state = State::Stopping { process };
                out.push(Effect::Kill(process));
                self.start_timer(self.bounds.term_ms, out);
            }
            State::Ready { process, .. } => self.drain(process, out),
            State::Condemned { process, .. } => self.state = State::Stopping { process },
            State::Draining { .. } | State::Stopping { .. } => {}
        }
    }

    fn leave(&mut self, drain: bool, out: &mut Vec<Effect>) {
        self.want = Want::Gone;
        self.refuse_all(None, out);
        match self.state {
            State::Idle | State::Backoff { .. } => {
                self.state = State::Idle;
                out.push(Effect::Gone);
            }
            State::Starting { process, .. } => {
                self.state = State::Stopping { process };
                out.push(Effect::Kill(process));
                self.start_timer(self.bounds.term_ms, out);
            }
            State::Ready { process, .. } if drain => self.drain(process, out),
            State::Ready { process, .. } => {
                out.push(Effect::Drain(process));
                self.terminate(process, out);
            }
            State::Condemned { process, .. } => self.state = State::Stopping { process },
            State::Draining { process } if !drain => self.terminate(process, out),
            State::Draining { .. } | State::Stopping { .. } => {}
        }
    }

    fn acquire(&mut self, waiter: Waiter, out: &mut Vec<Effect>) {
        match (self.want, self.state) {
            (Want::Gone, _) => out.push(Effect::Refuse(waiter, None)),
            (_, State::Ready { process, .. }) => {
                self.in_flight += 1;
                out.push(Effect::Grant(waiter, process));
            }
            (_, State::Backoff { hold: false }) => {
                out.push(Effect::Refuse(waiter, self.last_error.clone()));
            }
            _ => self.waiters.push_back(waiter),
        }
    }

    fn release(&mut self, process: ProcessId, out: &mut Vec<Effect>) {
        match self.state {
            State::Ready { process: p, .. } if p == process => {
                self.in_flight = self.in_flight.saturating_sub(1);
            }
            State::Draining { process: p } if p == process => {
                self.in_flight = self.in_flight.saturating_sub(1);
                if self.in_flight == 0 {
                    self.terminate(process, out);
                }
            }
            // Of a process that is ending or has ended.
            _ => {}
        }
    }

    fn started(&mut self, process: ProcessId, now_ms: u64, out: &mut Vec<Effect>) {
        let State::Starting {
            process: p, target, ..
        } = self.state
        else {
            return;
        };
        if p != process {
            return;
        }
        self.state = State::Ready {
            process,
            since_ms: now_ms,
        };
        self.timer += 1;
        self.in_flight = self.waiters.len();
        out.push(Effect::Settled(target, Ok(())));
        for waiter in self.waiters.drain(..) {
            out.push(Effect::Grant(waiter, process));
        }
    }

    fn ended(&mut self, process: ProcessId, reason: String, now_ms: u64, out: &mut Vec<Effect>) {
        match self.state {
            State::Starting {
                process: p,
                target,
                timed_out,
            } if p == process => {
                let reason = if timed_out {
                    format!(
                        "the Worker did not become ready within {} ms; {reason}",
                        self.bounds.start_ms
                    )
                } else {
                    reason
                };
                self.failures = self.failures.saturating_add(1);
                self.last_error = Some(reason.clone());
                self.refuse_all(Some(&reason), out);
                out.push(Effect::Settled(target, Err(reason)));
                self.back_off(false, out);
            }
            State::Ready {
                process: p,
                since_ms,
            } if p == process => {
                self.crashed(reason, now_ms.saturating_sub(since_ms), out);
            }
            State::Condemned {
                process: p,
                since_ms,
            } if p == process => {
                let reason = self.verdict.take().unwrap_or(reason);
                self.crashed(reason, now_ms.saturating_sub(since_ms), out);
            }
            State::Draining { process: p } | State::Stopping { process: p } if p == process => {
                self.timer += 1;
                match self.want {
                    Want::Run(_) => self.start(out),
                    Want::Nothing | Want::Gone => {
                        self.state = State::Idle;
                        out.push(Effect::Gone);
                    }
                }
            }
            _ => {}
        }
    }

    fn crashed(&mut self, reason: String, lived_ms: u64, out: &mut Vec<Effect>) {
        if lived_ms >= HEALTHY_MS {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.crashes = self.crashes.saturating_add(1);
        self.last_error = Some(reason.clone());
        self.back_off(true, out);
        if self.state == (State::Backoff { hold: false }) {
            self.refuse_all(Some(&reason), out);
        }
    }

    fn hung(&mut self, process: ProcessId, reason: String, out: &mut Vec<Effect>) {
        // One that drains or stops is ended by its timers.
        let State::Ready {
            process: p,
            since_ms,
        } = self.state
        else {
            return;
        };
        if p != process {
            return;
        }
        self.state = State::Condemned { process, since_ms };
        self.verdict = Some(reason);
        out.push(Effect::Kill(process));
        self.start_timer(self.bounds.term_ms, out);
    }

    fn timed_out(&mut self, out: &mut Vec<Effect>) {
        match self.state {
            State::Starting {
                process, target, ..
            } => {
                self.state = State::Starting {
                    process,
                    target,
                    timed_out: true,
                };
                out.push(Effect::Kill(process));
                self.start_timer(self.bounds.term_ms, out);
            }
            State::Draining { process } => self.terminate(process, out),
            // Again and again, should it ever not die at once.
            State::Stopping { process } | State::Condemned { process, .. } => {
                out.push(Effect::Kill(process));
                self.start_timer(self.bounds.term_ms, out);
            }
            State::Backoff { .. } => self.start(out),
            State::Idle | State::Ready { .. } => {}
        }
    }

    fn start(&mut self, out: &mut Vec<Effect>) {
        let Want::Run(target) = self.want else { return };
        self.last_process += 1;
        self.in_flight = 0;
        self.state = State::Starting {
            process: self.last_process,
            target,
            timed_out: false,
        };
        out.push(Effect::Start(self.last_process, target));
        self.start_timer(self.bounds.start_ms, out);
    }

    fn drain(&mut self, process: ProcessId, out: &mut Vec<Effect>) {
        out.push(Effect::Drain(process));
        if self.in_flight == 0 {
            self.terminate(process, out);
        } else {
            self.state = State::Draining { process };
            self.start_timer(self.bounds.drain_ms, out);
        }
    }

    fn terminate(&mut self, process: ProcessId, out: &mut Vec<Effect>) {
        self.state = State::Stopping { process };
        out.push(Effect::Terminate(process));
        self.start_timer(self.bounds.term_ms, out);
    }

    fn back_off(&mut self, crashed: bool, out: &mut Vec<Effect>) {
        let doublings = self.failures.saturating_sub(1).min(20);
        let pause = (BACKOFF_FIRST_MS << doublings).min(BACKOFF_MOST_MS);
        self.state = State::Backoff {
            hold: crashed && pause <= HOLD_MOST_MS,
        };
        self.start_timer(pause, out);
    }

    fn start_timer(&mut self, after_ms: u64, out: &mut Vec<Effect>) {
        self.timer += 1;
        out.push(Effect::Timer(self.timer, after_ms));
    }

    fn refuse_all(&mut self, reason: Option<&str>, out: &mut Vec<Effect>) {
        for waiter in self.waiters.drain(..) {
            out.push(Effect::Refuse(waiter, reason.map(str::to_owned)));
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
