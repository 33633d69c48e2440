//! What a new daemon does with what an earlier one left: processes (from the spawner) and
//! directories.
//!
//! | process | record | what happens |
//! |---|---|---|
//! | runs | good | adopted; a script's is removed if its owner does not ask for it in time |
//! | has ended | good | its exit is recorded |
//! | any | missing or damaged | killed, forgotten, directory removed |
//! | any | started ahead, and not handed over, or not started since | the same |
//! | none | a script's | directory removed |
//! | none | the operator's | kept; exit code 255, as with Docker, if it ran when the spawner died |

use std::collections::HashSet;
use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wharf_sandbox::{Disk, Exit, Process, Survivor};

use crate::directories::GONE_PREFIX;
use crate::disks::DiskLease;
use crate::instance::{Ask, Handle, Instance, unseen_exit};
use crate::lifecycle::{EndedBy, State};
use crate::record::{Label, Record};
use crate::{EngineError, Owner, Shared, insert, log, now_ms};

/// How long the output that an ended process left is read.
const LEFT_OUTPUT: Duration = Duration::from_secs(1);

pub(crate) async fn adopt(
    shared: &Arc<Shared>,
    survivors: Vec<Survivor>,
) -> Result<(), EngineError> {
    let dir = &shared.config.dir;
    // Nobody else's business: the files of all containers, and their variables.
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o700)))
        .map_err(|error| EngineError::Internal(format!("{}: {error}", dir.display())))?;
    let mut kept = HashSet::new();
    for survivor in survivors {
        if crate::owns(&survivor.label)
            && let Some(id) = adopt_process(shared, survivor).await
        {
            kept.insert(id);
        }
    }
    let entries = std::fs::read_dir(dir)
        .map_err(|error| EngineError::Internal(format!("{}: {error}", dir.display())))?;
    for entry in entries {
        let entry =
            entry.map_err(|error| EngineError::Internal(format!("{}: {error}", dir.display())))?;
        let name = entry.file_name();
        match name.to_str() {
            Some(id) if kept.contains(id) => {}
            Some(name) if name.starts_with(GONE_PREFIX) => {
                if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                    tracing::warn!(dir = %entry.path().display(), %error, "left directory not removed");
                }
            }
            _ => adopt_directory(shared, &entry.path()),
        }
    }
    Ok(())
}

/// Returns the id if the instance is in the table now.
async fn adopt_process(shared: &Arc<Shared>, survivor: Survivor) -> Option<String> {
    let Survivor {
        label,
        process,
        exit,
        disk,
    } = survivor;
    let process_id = process.id.clone();
    let read = Label::decode(&label).and_then(|label| {
        let dir = shared.config.dir.join(&label.id);
        let record = Record::read(&dir).ok()?;
        (record.spec.id == label.id).then_some((label, dir, record))
    });
    let Some((label, dir, mut record)) = read else {
        tracing::warn!(
            process = process_id,
            "a container without a readable record is ended"
        );
        end(shared, &process_id).await;
        return None;
    };
    let id = label.id.clone();
    let mut label = label;
    let handover = record.spec.handover.as_ref();
    if let Owner::Standby(_) = record.spec.owner {
        tracing::info!(instance = id, "started ahead by an earlier daemon: ended");
        end(shared, &process_id).await;
        return None;
    } else if let Some(handover) = handover.filter(|it| it.process == process_id) {
        // Its label is that of the instance which it was before.
        let Some(started_ms) = record.status.started_ms else {
            tracing::info!(instance = id, "handed over and not started: ended");
            end(shared, &process_id).await;
            return None;
        };
        label.generation = handover.generation;
        label.started_ms = started_ms;
        label.ingress = handover.ingress;
    }
    // The label is written with each start, the record a little later.
    record.status.generation = label.generation;
    record.status.started_ms = Some(label.started_ms);
    let limit = record.spec.limits.disk_bytes;
    let disk = disk
        .zip(record.spec.device.clone().zip(limit))
        .map(|(mount, (device, bytes))| shared.disks.lease(bytes, Disk::from_mount(mount, device)));
    let handle = match exit {
        Some(exit) => adopt_ended(shared, &dir, record, process, exit, disk).await,
        None => adopt_running(shared, &dir, record, process, &label, disk).await,
    };
    match handle {
        Ok(handle) => {
            if exit.is_none() && handle.spec.owner != Owner::Operator {
                reap_if_forgotten(handle, shared.config.adopt_idle_ms);
            }
            Some(id)
        }
        Err(error) => {
            tracing::warn!(instance = id, %error, "not adopted: ended");
            end(shared, &process_id).await;
            None
        }
    }
}

async fn adopt_ended(
    shared: &Arc<Shared>,
    dir: &Path,
    mut record: Record,
    process: Process,
    exit: Exit,
    disk: Option<DiskLease>,
) -> Result<Arc<Handle>, EngineError> {
    let writer = log::Writer::new(dir, shared.config.log_bytes, watch::Sender::default());
    let rest = log::pump(writer, process.stdout, process.stderr);
    // Also without the end of the pipes what they hold has been read by then.
    let _ = tokio::time::timeout(LEFT_OUTPUT, rest).await;
    record.status.exit = Some(exit);
    // Nobody else could reach it, except for what was begun before.
    record.status.ended_by = match exit.oom_killed {
        true => Some(EndedBy::OutOfMemory),
        false => record.status.ended_by.or(Some(EndedBy::Itself)),
    };
    record.status.finished_ms.get_or_insert_with(now_ms);
    record
        .write(dir)
        .map_err(|error| EngineError::Internal(format!("{}: {error}", dir.display())))?;
    if let Err(error) = shared.spawner.forget(&process.id).await {
        tracing::warn!(process = process.id, %error, "the spawner keeps an ended process");
    }
    let state = State::Exited(exit);
    let instance = Instance::new(
        shared.clone(),
        record,
        dir.to_owned(),
        state,
        None,
        true,
        disk,
    );
    insert(shared, instance)
}

async fn adopt_running(
    shared: &Arc<Shared>,
    dir: &Path,
    mut record: Record,
    process: Process,
    label: &Label,
    disk: Option<DiskLease>,
) -> Result<Arc<Handle>, EngineError> {
    record.status.exit = None;
    record.status.ended_by = None;
    record.status.finished_ms = None;
    let networks = &shared.networks;
    let ingress = match record.spec.owner {
        Owner::Operator => label.ingress,
        // It was in the network of a workerd that has ended; the next one claims it.
        Owner::Script(_) | Owner::Standby(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    let adopted = networks.adopt(process.pid, ingress, label.ca.clone()).await;
    let network = adopted.map_err(|error| EngineError::Internal(error.to_string()))?;
    let age_ms = now_ms().saturating_sub(label.started_ms);
    let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
    let now = Instant::now();
    network.limit_bandwidth(shared.config.bandwidth(&record.spec.limits));
    network.set_target(wharf_net::Target::Running(
        now.checked_sub(age).unwrap_or(now),
    ));
    let published = match record.spec.own_network.apply(&network).await {
        Ok(published) => published,
        Err(error) => {
            tracing::warn!(name = record.spec.name, %error, "a port of an adopted container is not published");
            Vec::new()
        }
    };
    let mut instance = Instance::new(
        shared.clone(),
        record,
        dir.to_owned(),
        State::Running,
        Some(network),
        true,
        disk,
    );
    instance.adopt(process, published);
    insert(shared, instance)
}

/// Kills a process and forgets it.
async fn end(shared: &Shared, process_id: &str) {
    let spawner = &shared.spawner;
    let ended = async {
        spawner.kill(process_id).await?;
        spawner.wait(process_id).await?;
        spawner.forget(process_id).await
    };
    if let Err(error) = ended.await {
        tracing::error!(process = process_id, %error, "left process not ended");
    }
}

/// Removes an instance of a Durable Object for which nobody asks from now on within the bound: what
/// its object has said (`setInactivityTimeout()`), or else the engine's.
pub(crate) fn reap_if_forgotten(handle: Arc<Handle>, idle_ms: u64) {
    let seen = handle.touch();
    let idle_ms = handle.view.borrow().status.inactivity_ms.unwrap_or(idle_ms);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(idle_ms)).await;
        if handle.touches() != seen {
            return;
        }
        tracing::info!(
            instance = handle.spec.id,
            name = handle.spec.name,
            idle_ms,
            "its object has not woken: removed"
        );
        // Gone already is as good.
        let _ = handle
            .ask(Ask::Remove {
                force: true,
                by: EndedBy::Reaper,
            })
            .await;
    });
}

/// A directory to which no process belongs.
fn adopt_directory(shared: &Arc<Shared>, dir: &Path) {
    let record = Record::read(dir)
        .inspect_err(
            |error| tracing::warn!(dir = %dir.display(), %error, "no readable record: removed"),
        )
        .ok()
        .filter(|record| record.spec.owner == Owner::Operator && dir.ends_with(&record.spec.id));
    let Some(mut record) = record else {
        return shared.directories.discard(dir, false);
    };
    let status = &mut record.status;
    if status.started_ms.is_some() && status.exit.is_none() {
        status.exit = Some(unseen_exit());
        status.ended_by = Some(EndedBy::Unseen);
        status.finished_ms = Some(now_ms());
        status.error = Some("the machine or the spawner ended while it ran".to_owned());
        if let Err(error) = record.write(dir) {
            tracing::warn!(dir = %dir.display(), %error, "instance.json not written");
        }
    }
    let state = record.status.exit.map_or(State::Created, State::Exited);
    let instance = Instance::new(
        shared.clone(),
        record,
        dir.to_owned(),
        state,
        None,
        true,
        None,
    );
    if let Err(error) = insert(shared, instance) {
        tracing::warn!(dir = %dir.display(), %error, "not taken over: removed");
        shared.directories.discard(dir, false);
    }
}
