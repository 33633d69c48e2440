//! What outlives the daemon: `instance.json` in the instance's directory, and the label that the
//! spawner keeps with the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};
use wharf_sandbox::{Exit, Limits};

use crate::Owner;
use crate::lifecycle::EndedBy;
use crate::merge::Merged;

/// The record's file in an instance's directory.
pub(crate) const FILE: &str = "instance.json";
/// The one that is written before it becomes the record.
pub(crate) const WRITTEN: &str = "instance.json.new";
/// Begins each label of this crate.
const LABEL_KIND: &str = "instance:";

/// What an interpreter was made with: a start that differs in any of it begins by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PreloadKey {
    pub(crate) image_id: String,
    pub(crate) user: String,
}

/// What never changes after create.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstanceSpec {
    pub(crate) id: String,
    pub(crate) owner: Owner,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) diff_ids: Vec<String>,
    /// All layers, with a snapshot's on top.
    pub(crate) lower: Vec<PathBuf>,
    #[serde(default)]
    pub(crate) snapshot: Option<PathBuf>,
    #[serde(default)]
    pub(crate) volumes: Vec<crate::VolumeMount>,
    pub(crate) application: Option<crate::Application>,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    pub(crate) stop_signal: i32,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    /// The disk's device, if it has a disk.
    pub(crate) device: Option<PathBuf>,
    /// What the start was called, to tell it from others of the name.
    #[serde(default)]
    pub(crate) start_token: Option<String>,
    #[serde(default)]
    pub(crate) hard_timeout_ms: Option<u64>,
    /// Which imports done ahead its first start may begin from, or why none; `None`: its image asks
    /// for none.
    #[serde(default)]
    pub(crate) preload: Option<Result<PreloadKey, String>>,
    #[serde(default)]
    pub(crate) own_network: crate::OwnNetwork,
    #[serde(default)]
    pub(crate) auto_remove: bool,
    /// Its first process was started ahead, and then handed to it.
    #[serde(default, rename = "handed")]
    pub(crate) handover: Option<Handover>,
    #[serde(default)]
    pub(crate) isolation: crate::Isolation,
    #[serde(default)]
    pub(crate) no_new_privileges: bool,
    #[serde(default)]
    pub(crate) surroundings: crate::Surroundings,
    pub(crate) created_ms: i64,
}

/// A process that was started before its instance was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// The spawner's name for it.
    pub(crate) process: String,
    /// The start that it is of, among those of the instance's name.
    pub(crate) generation: u64,
    /// The ingress that leads to it.
    pub(crate) ingress: SocketAddr,
}

impl InstanceSpec {
    /// The instance `id` that a request makes.
    pub(crate) fn new(
        request: crate::Create,
        image: &wharf_image::Image,
        lower: Vec<PathBuf>,
        merged: Merged,
        id: String,
        isolation: crate::Isolation,
        device: Option<PathBuf>,
    ) -> Self {
        let layers = image.layers.iter();
        Self {
            id,
            owner: request.owner,
            name: request.name,
            image: request.image,
            image_id: image.id.as_str().to_owned(),
            diff_ids: layers
                .map(|layer| layer.diff_id.as_str().to_owned())
                .collect(),
            lower,
            snapshot: request.snapshot.map(|snapshot| snapshot.files),
            volumes: request.volumes,
            application: request.application,
            argv: merged.argv,
            env: merged.env,
            user: merged.user,
            working_dir: merged.working_dir,
            stop_signal: merged.stop_signal,
            labels: merged.labels,
            limits: request.limits,
            device,
            start_token: request.start.token,
            hard_timeout_ms: request.start.hard_timeout_ms,
            own_network: request.own_network,
            auto_remove: request.auto_remove,
            isolation,
            no_new_privileges: request.no_new_privileges,
            surroundings: request.surroundings,
            preload: None,
            handover: None,
            created_ms: crate::now_ms(),
        }
    }

    /// As asked for; else Docker's rule: the first twelve digits of the id.
    pub(crate) fn hostname(&self) -> &str {
        let asked = self.surroundings.hostname.as_deref();
        asked.unwrap_or(&self.id[..12])
    }

    /// The spawner's name for the process of one start.
    pub(crate) fn process(&self, generation: u64) -> String {
        match &self.handover {
            Some(handover) if generation <= handover.generation => handover.process.clone(),
            _ => process_id(&self.id, generation),
        }
    }
}

/// What each start and end changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct InstanceStatus {
    /// Number of the last start of this name; 0 before the first.
    pub(crate) generation: u64,
    pub(crate) started_ms: Option<i64>,
    pub(crate) finished_ms: Option<i64>,
    /// How the last process ended; `None` while one runs or before the first.
    pub(crate) exit: Option<Exit>,
    /// What the last process used.
    #[serde(default)]
    pub(crate) usage: Option<crate::Usage>,
    /// Who or what ended the last process, or is about to end the one that runs.
    #[serde(default)]
    pub(crate) ended_by: Option<EndedBy>,
    /// Why it did not start, or what else is to be known of its end.
    pub(crate) error: Option<String>,
    /// Labels that its object has given it; they can change.
    #[serde(default)]
    pub(crate) object_labels: BTreeMap<String, String>,
    /// How long its object lets it run on without being asked for, milliseconds.
    #[serde(default)]
    pub(crate) inactivity_ms: Option<u64>,
}

/// Everything about an instance that a new daemon needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(rename = "fixed")]
    pub(crate) spec: Arc<InstanceSpec>,
    #[serde(rename = "progress")]
    pub(crate) status: InstanceStatus,
}

impl Record {
    /// Writes the record whole or not at all (for a killed daemon; after a power cut no process is
    /// left that would need it). The two files change places, so that no new one is needed each
    /// time.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let (written, place) = (dir.join(WRITTEN), dir.join(FILE));
        let text = serde_json::to_vec(self)?;
        // Not emptied first: ext4 takes that for a replacement, and begins to write at once.
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&written)?;
        file.write_all(&text)?;
        file.set_len(text.len() as u64)?;
        match rustix::fs::renameat_with(CWD, &written, CWD, &place, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            // The first one, or a file system that cannot do it.
            Err(_) => std::fs::rename(written, place),
        }
    }

    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let record: Record = serde_json::from_slice(&std::fs::read(dir.join(FILE))?)?;
        let id = &record.spec.id;
        if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(io::Error::other("the id in instance.json is damaged"));
        }
        Ok(record)
    }
}

/// What the spawner is told of a process: enough to find its record, and what is newer than the
/// record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) id: String,
    pub(crate) generation: u64,
    pub(crate) ingress: SocketAddr,
    /// What the container may trust. Absent in labels of earlier versions.
    #[serde(default)]
    pub(crate) ca: Option<wharf_net::CaKey>,
    pub(crate) started_ms: i64,
}

impl Label {
    pub(crate) fn encode(&self) -> Result<String, serde_json::Error> {
        Ok(format!("{LABEL_KIND}{}", serde_json::to_string(self)?))
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text.strip_prefix(LABEL_KIND)?).ok()
    }
}

/// Whether a process with this label (`ProcessSpec::label`) is the engine's.
pub fn owns(label: &str) -> bool {
    label.starts_with(LABEL_KIND)
}

/// The spawner's name for one start of an instance: distinct per generation, so that nothing meant
/// for one start reaches another.
pub(crate) fn process_id(id: &str, generation: u64) -> String {
    format!("{}-{generation}", &id[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_from_others() {
        let label = Label {
            id: "a".repeat(64),
            generation: 3,
            ingress: "127.0.0.1:4000".parse().unwrap(),
            ca: None,
            started_ms: 5,
        };
        let text = label.encode().unwrap();
        assert!(owns(&text));
        assert_eq!(Label::decode(&text), Some(label));
        assert!(!owns("workerd:{}"));
        assert_eq!(Label::decode("instance:nonsense"), None);
        // An earlier version's.
        let text = text.replace(r#""ca":null,"#, "");
        assert!(Label::decode(&text).is_some_and(|label| label.ca.is_none()));
    }

    #[test]
    fn a_record_that_an_earlier_version_wrote_is_read_and_written_alike() {
        let text = serde_json::json!({
            "fixed": {
                "id": "a".repeat(64), "owner": "Operator", "name": "n", "image": "i",
                "image_id": "sha256:0", "diff_ids": [], "lower": [], "application": null,
                "argv": ["/a"], "env": [], "user": "", "working_dir": "/", "stop_signal": 15,
                "labels": {}, "limits": {}, "device": null, "created_ms": 1,
                "handed": {"process": "p", "generation": 2, "ingress": "127.0.0.1:4000"},
            },
            "progress": {
                "generation": 2, "started_ms": 5, "finished_ms": null, "exit": null, "error": null,
            },
        });
        let record: Record = serde_json::from_value(text).unwrap();
        assert_eq!(record.spec.process(2), "p");
        assert_eq!(record.status.generation, 2);
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(written["fixed"]["handed"]["process"], "p");
        assert_eq!(written["progress"]["started_ms"], 5);
    }
}
