//! An instance that was started ahead and becomes another one: its task, process, disk and log stay, its name, owner and life begin anew.
//!
//! ```text
//!  standby:  Running (frozen) ── Become ──> the object's: Created (frozen) ── Start ──> Starting ── Thawed ──> Running
//!                                                            │ Remove: killed first
//! ```
//!
//! Must not: decide who gets it ([`crate::standby`]).

use super::{Answer, Event, Handle, Happening, Instance, NewLife};
use crate::lifecycle::{HardTimeout, Machine, State};
use crate::record::{Progress, Record};
use crate::{EngineError, isolation, now_ms};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use wharf_net::Target;
use wharf_sandbox::{SpawnError, Spawner};

/// A process of the instance's earlier life.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Its generation then,
    before: u64,
    /// and since.
    now: u64,
    state: Waits,
    /// Its end, seen before the answer to the thaw.
    early: Option<Happening>,
}

#[derive(Debug, PartialEq, Eq)]
enum Waits {
    /// Frozen, for its start.
    Frozen,
    /// It has ended before that.
    Ended,
    /// Is being let run.
    Thawing,
    /// No more: it was started.
    Started,
}

impl Instance {
    /// An end that is seen before the start is answered comes after it.
    pub(super) fn in_order(&mut self, happening: Happening) -> Option<Happening> {
        match (&happening, &mut self.ahead) {
            (Happening::Exited { generation, .. }, Some(ahead))
                if ahead.before == *generation && ahead.state == Waits::Thawing =>
            {
                ahead.early = Some(happening);
                None
            }
            _ => Some(happening),
        }
    }

    /// The start of the present life that an end is of; `None` if nobody has been told that it runs.
    pub(super) fn generation_now(&mut self, generation: u64) -> Option<u64> {
        let Some(ahead) = self.ahead.as_mut().filter(|it| it.before == generation) else {
            return Some(generation);
        };
        match ahead.state {
            Waits::Thawing | Waits::Started => Some(ahead.now),
            Waits::Frozen | Waits::Ended => {
                ahead.state = Waits::Ended;
                self.pid = None;
                self.publish();
                None
            }
        }
    }

    /// Only of one that runs, stands still, and is nobody's.
    pub(super) fn become_another(&mut self, life: NewLife) -> Result<Answer, EngineError> {
        let network = self.handle.network();
        let (State::Running, false, Some(_), Some(network)) = (
            self.machine.state(),
            self.machine.is_removing(),
            self.pid,
            network,
        ) else {
            return Ok(Answer::NotRunning);
        };
        let before = self.machine.generation();
        let NewLife {
            fixed,
            generation,
            object_labels,
            network: asked,
        } = life;
        let record = Record {
            fixed: fixed.clone(),
            progress: Progress {
                generation,
                object_labels,
                ..Progress::default()
            },
        };
        // From here on, a daemon that finds it knows that it was meant to be handed over.
        record.write(&self.handle.dir).map_err(|error| {
            EngineError::Internal(format!("{}: {error}", self.handle.dir.display()))
        })?;
        let handle = Arc::new(Handle {
            fixed: fixed.clone(),
            dir: self.handle.dir.clone(),
            view: self.handle.view.clone(),
            network: Mutex::new(Some(asked.clone())),
            disk: self.handle.disk.clone(),
            files: self.handle.files.clone(),
            touches: AtomicU64::new(0),
            grown: self.handle.grown.clone(),
            requests: self.handle.requests.clone(),
        });
        self.shared.table().rename(handle.clone())?;
        self.handle = handle;
        // Whoever waits for the earlier life's end waits for nothing.
        self.waiting.clear();
        let hard_timeout = fixed.hard_timeout_ms.map(|ms| HardTimeout {
            ms,
            grace_ms: self.shared.config.stop_grace_ms,
        });
        self.machine = Machine::new(State::Created, generation, fixed.stop_signal)
            .with_hard_timeout(hard_timeout);
        self.progress = record.progress;
        self.own_network = false;
        self.published.clear();
        self.was_live = false;
        self.hard_timeout = None;
        self.ahead = Some(Ahead {
            before,
            now: generation + 1,
            state: Waits::Frozen,
            early: None,
        });
        self.publish();
        // Last: what fails from here on is removed whole by the caller.
        asked
            .take_over(&network)
            .map_err(|error| EngineError::Conflict(error.to_string()))?;
        Ok(Answer::Done)
    }

    /// Lets the process run that waits for this start; false if none does.
    pub(super) fn start_what_is_ahead(&mut self, generation: u64) -> bool {
        let Some(ahead) = self.ahead.as_mut().filter(|it| it.now == generation) else {
            return false;
        };
        self.progress.error = None;
        let state = std::mem::replace(&mut ahead.state, Waits::Thawing);
        let (spawner, happens) = (self.shared.spawner.clone(), self.happens.clone());
        let (id, handle) = (self.fixed().process(generation), self.handle.clone());
        let wakes_within = isolation::wakes_within(self.fixed().isolation);
        tokio::spawn(async move {
            // Whoever copies its files has them to himself.
            let _turn = handle.files.lock().await;
            let result = match state {
                Waits::Frozen => {
                    let thawed = spawner.thaw(&id).await;
                    if !wakes_within.is_zero() {
                        tokio::time::sleep(wakes_within).await;
                    }
                    thawed
                }
                Waits::Ended | Waits::Thawing | Waits::Started => Err(SpawnError::Spawner(
                    "the instance that was started ahead has ended before it was needed: start again"
                        .to_owned(),
                )),
            };
            let _ = happens.send(Happening::Thawed { generation, result });
        });
        true
    }

    pub(super) fn thawed(&mut self, generation: u64, result: Result<(), SpawnError>) -> Event {
        if let Some(ahead) = &mut self.ahead {
            ahead.state = Waits::Started;
            if let Some(early) = ahead.early.take() {
                let _ = self.happens.send(early);
            }
        }
        match result {
            Ok(()) => {
                if let Some(network) = self.handle.network() {
                    network.set_target(Target::Running(Instant::now()));
                }
                self.progress.started_ms = Some(now_ms());
                Event::Spawned { generation }
            }
            Err(error) => {
                let (spawner, id) = (
                    self.shared.spawner.clone(),
                    self.fixed().process(generation),
                );
                tokio::spawn(async move { end(&spawner, &id).await });
                self.spawned(generation, Err(error))
            }
        }
    }

    /// Ends the process that waits for a start which does not come.
    pub(super) async fn end_what_is_ahead(&mut self) {
        let Some(ahead) = &self.ahead else { return };
        if matches!(ahead.state, Waits::Thawing | Waits::Started) {
            return;
        }
        let id = self.fixed().process(ahead.now);
        end(&self.shared.spawner, &id).await;
    }
}

async fn end(spawner: &Spawner, id: &str) {
    let ended = async {
        spawner.kill(id).await?;
        spawner.wait(id).await?;
        spawner.forget(id).await
    };
    if let Err(error) = ended.await {
        tracing::error!(process = id, %error, "what was started ahead is not ended");
    }
}
