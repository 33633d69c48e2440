//! An instance that was started ahead and becomes another one: its task, process, disk and log
//! stay, and its name, owner and life are new.
//!
//! ```text
//!  standby:       Running (frozen) ── Become ──> the object's
//!  the object's:  Created (frozen) ── Start ──> Starting ── Thawed ──> Running
//!                        │ Remove: killed first
//! ```
//!
//! Must not: decide who gets it ([`crate::standby`]).

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use wharf_net::Target;
use wharf_sandbox::{SpawnError, Spawner};

use super::{Answer, Event, Handle, Instance, InternalEvent, NewLife};
use crate::lifecycle::{HardTimeout, Machine, State};
use crate::record::{InstanceStatus, Record};
use crate::{EngineError, isolation, now_ms};

/// A process of the instance's earlier life.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Its generation then,
    before: u64,
    /// and since.
    now: u64,
    state: AheadState,
    /// Its end, seen before the answer to the thaw.
    early: Option<InternalEvent>,
}

#[derive(Debug, PartialEq, Eq)]
enum AheadState {
    /// Frozen, for its start.
    Frozen,
    /// The process ended before its start was asked for.
    Ended,
    /// Is being let run.
    Thawing,
    /// No more: it was started.
    Started,
}

impl Instance {
    /// An end that is seen before the start is answered comes after it.
    pub(super) fn in_order(&mut self, internal_event: InternalEvent) -> Option<InternalEvent> {
        match (&internal_event, &mut self.ahead) {
            (InternalEvent::Exited { generation, .. }, Some(ahead))
                if ahead.before == *generation && ahead.state == AheadState::Thawing =>
            {
                ahead.early = Some(internal_event);
                None
            }
            _ => Some(internal_event),
        }
    }

    /// The start of the present life that an end is of; `None` if nobody has been told that it
    /// runs.
    pub(super) fn generation_now(&mut self, generation: u64) -> Option<u64> {
        let Some(ahead) = self.ahead.as_mut().filter(|it| it.before == generation) else {
            return Some(generation);
        };
        match ahead.state {
            AheadState::Thawing | AheadState::Started => Some(ahead.now),
            AheadState::Frozen | AheadState::Ended => {
                ahead.state = AheadState::Ended;
                self.pid = None;
                self.publish();
                None
            }
        }
    }

    /// Takes over the life of another instance. Only a standby that runs and stands still can.
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
            spec,
            generation,
            object_labels,
            network: asked,
        } = life;
        let record = Record {
            spec: spec.clone(),
            status: InstanceStatus {
                generation,
                object_labels,
                ..InstanceStatus::default()
            },
        };
        // From here on, a daemon that finds it knows that it was meant to be handed over.
        record.write(&self.handle.dir).map_err(|error| {
            EngineError::Internal(format!("{}: {error}", self.handle.dir.display()))
        })?;
        let handle = Arc::new(Handle {
            spec: spec.clone(),
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
        let hard_timeout = spec.hard_timeout_ms.map(|ms| HardTimeout {
            ms,
            grace_ms: self.shared.config.stop_grace_ms,
        });
        self.machine = Machine::new(State::Created, generation, spec.stop_signal)
            .with_hard_timeout(hard_timeout);
        self.status = record.status;
        self.own_network = false;
        self.published.clear();
        self.was_live = false;
        self.hard_timeout = None;
        self.ahead = Some(Ahead {
            before,
            now: generation + 1,
            state: AheadState::Frozen,
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
        self.status.error = None;
        let state = std::mem::replace(&mut ahead.state, AheadState::Thawing);
        let (spawner, internal_sender) =
            (self.shared.spawner.clone(), self.internal_sender.clone());
        let (id, handle) = (self.spec().process(generation), self.handle.clone());
        let wakes_within = isolation::wakes_within(self.spec().isolation);
        tokio::spawn(async move {
            // Whoever copies its files has them to himself.
            let _turn = handle.files.lock().await;
            let result = match state {
                AheadState::Frozen => {
                    let thawed = spawner.thaw(&id).await;
                    if !wakes_within.is_zero() {
                        tokio::time::sleep(wakes_within).await;
                    }
                    thawed
                }
                AheadState::Ended | AheadState::Thawing | AheadState::Started => Err(SpawnError::Spawner(
                    "the instance that was started ahead has ended before it was needed: start again"
                        .to_owned(),
                )),
            };
            let _ = internal_sender.send(InternalEvent::Thawed { generation, result });
        });
        true
    }

    pub(super) fn thawed(&mut self, generation: u64, result: Result<(), SpawnError>) -> Event {
        if let Some(ahead) = &mut self.ahead {
            ahead.state = AheadState::Started;
            if let Some(early) = ahead.early.take() {
                let _ = self.internal_sender.send(early);
            }
        }
        match result {
            Ok(()) => {
                if let Some(network) = self.handle.network() {
                    network.set_target(Target::Running(Instant::now()));
                }
                self.status.started_ms = Some(now_ms());
                Event::Spawned { generation }
            }
            Err(error) => {
                let (spawner, id) = (self.shared.spawner.clone(), self.spec().process(generation));
                tokio::spawn(async move { end(&spawner, &id).await });
                self.spawned(generation, Err(error))
            }
        }
    }

    /// Ends the process that waits for a start which does not come.
    pub(super) async fn end_what_is_ahead(&mut self) {
        let Some(ahead) = &self.ahead else { return };
        if matches!(ahead.state, AheadState::Thawing | AheadState::Started) {
            return;
        }
        let id = self.spec().process(ahead.now);
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
