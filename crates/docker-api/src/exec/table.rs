//! The execs of one socket, by id. Pure: no clock, no I/O; times are milliseconds of any clock that does not go back.
//!
//! ```text
//! Created ──start──> Starting ──started──> Running ──ended──> Ended ──time or number──> (forgotten)
//!    │                  └──────────────────not started──────────^
//!    └──time, number or size──> (forgotten)
//! ```
//! Nobody can lengthen a table without end: those that wait for their start or that have ended are bounded here, those that run by
//! [`MAX_LIVE`] for each container.

use std::collections::{HashMap, VecDeque};

use super::stream::Attached;

/// How long one is kept that was not started or has ended. Docker's, for ended ones.
const KEEP_MS: u64 = 300_000;
/// Most of them.
const MAX_KEPT: usize = 1000;
/// Most bytes of commands and environments that wait for their start.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// Most processes in one container beside its main one.
pub(super) const MAX_LIVE: usize = 1000;

/// One exec. `Q` is what waits for the start, `P` the handle of the process.
#[derive(Debug)]
pub(super) struct Entry<Q, P> {
    /// Where it runs.
    pub(super) container: ContainerStart,
    /// What workerd calls it in its kill helper.
    pub(super) token: Option<String>,
    pub(super) facts: Facts,
    /// 0 until it runs; also known after its end.
    pub(super) pid: i32,
    pub(super) phase: Phase<Q, P>,
}

/// One start of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerStart {
    pub(super) owner: wharf_engine::Owner,
    pub(super) id: String,
    pub(super) generation: u64,
}

/// What can be asked for at any time.
#[derive(Debug, Default, Clone)]
pub(super) struct Facts {
    pub(super) program: String,
    pub(super) tty: bool,
    pub(super) attached: Attached,
}

#[derive(Debug)]
pub(super) enum Phase<Q, P> {
    /// With what is to be started, and its size in bytes.
    Created(Q, usize),
    Starting,
    Running(P),
    /// With the exit code.
    Ended(i32),
}

impl<Q, P> Phase<Q, P> {
    fn is_live(&self) -> bool {
        matches!(self, Phase::Starting | Phase::Running(_))
    }
}

/// Why one does not start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Unknown,
    /// It was started before.
    Started,
    /// [`MAX_LIVE`] is reached.
    TooMany,
}

#[derive(Debug)]
pub(super) struct Table<Q, P> {
    entries: HashMap<String, Entry<Q, P>>,
    /// When to look whether one is to be forgotten, oldest first.
    due: VecDeque<(u64, String)>,
    waiting_bytes: usize,
}

impl<Q, P> Default for Table<Q, P> {
    fn default() -> Self {
        Table {
            entries: HashMap::new(),
            due: VecDeque::new(),
            waiting_bytes: 0,
        }
    }
}

impl<Q, P> Table<Q, P> {
    pub(super) fn insert(&mut self, id: String, entry: Entry<Q, P>, now_ms: u64) {
        if let Phase::Created(_, bytes) = entry.phase {
            self.waiting_bytes += bytes;
        }
        self.entries.insert(id.clone(), entry);
        self.keep(id, now_ms);
    }

    pub(super) fn get(&self, id: &str) -> Option<&Entry<Q, P>> {
        self.entries.get(id)
    }

    /// The one that workerd calls so, in this container.
    pub(super) fn by_token(&self, container: &str, token: &str) -> Option<&Entry<Q, P>> {
        self.entries
            .values()
            .find(|e| e.container.id == container && e.token.as_deref() == Some(token))
    }

    /// Takes what is to be started; it is Starting now.
    pub(super) fn begin(&mut self, id: &str) -> Result<Q, Refusal> {
        let entry = self.entries.get(id).ok_or(Refusal::Unknown)?;
        if !matches!(entry.phase, Phase::Created(..)) {
            return Err(Refusal::Started);
        }
        let container = &entry.container.id;
        let live = self
            .entries
            .values()
            .filter(|e| e.phase.is_live() && e.container.id == *container);
        if live.count() >= MAX_LIVE {
            return Err(Refusal::TooMany);
        }
        let entry = self.entries.get_mut(id).ok_or(Refusal::Unknown)?;
        match std::mem::replace(&mut entry.phase, Phase::Starting) {
            Phase::Created(request, bytes) => {
                self.waiting_bytes -= bytes;
                Ok(request)
            }
            _ => Err(Refusal::Started),
        }
    }

    pub(super) fn running(&mut self, id: &str, process: P, pid: i32) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.pid = pid;
            entry.phase = Phase::Running(process);
        }
    }

    pub(super) fn ended(&mut self, id: &str, code: i32, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.phase = Phase::Ended(code);
            self.keep(id.to_owned(), now_ms);
        }
    }

    /// From now on for so long; then looked at again.
    fn keep(&mut self, id: String, now_ms: u64) {
        self.due.push_back((now_ms + KEEP_MS, id));
        while let Some((due_ms, _)) = self.due.front() {
            let full = self.due.len() > MAX_KEPT || self.waiting_bytes > MAX_WAITING_BYTES;
            if *due_ms > now_ms && !full {
                break;
            }
            let Some((_, id)) = self.due.pop_front() else {
                break;
            };
            // One that runs is put at the end again when it has ended; one that has ended since, is there already.
            let again = self.due.iter().any(|(_, other)| *other == id);
            if !again
                && self.entries.get(&id).is_some_and(|e| !e.phase.is_live())
                && let Some(entry) = self.entries.remove(&id)
                && let Phase::Created(_, bytes) = entry.phase
            {
                self.waiting_bytes -= bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(bytes: usize, container: &str) -> Entry<(), ()> {
        Entry {
            container: ContainerStart {
                owner: wharf_engine::Owner::Operator,
                id: container.into(),
                generation: 1,
            },
            token: Some("t".into()),
            facts: Facts::default(),
            pid: 0,
            phase: Phase::Created((), bytes),
        }
    }

    #[test]
    fn ended_ones_are_kept_for_their_time_from_the_end() {
        let mut table = Table::<(), ()>::default();
        table.insert("a".into(), entry(1, "c"), 0);
        table.begin("a").unwrap();
        table.running("a", (), 7);
        table.insert("b".into(), entry(1, "c"), KEEP_MS);
        assert!(matches!(table.get("a").unwrap().phase, Phase::Running(())));
        table.ended("a", 3, KEEP_MS + 1);
        table.insert("c".into(), entry(1, "c"), 2 * KEEP_MS);
        assert!(table.get("b").is_none(), "never started");
        assert!(matches!(table.get("a").unwrap().phase, Phase::Ended(3)));
        table.insert("d".into(), entry(1, "c"), 2 * KEEP_MS + 1);
        assert!(table.get("a").is_none());
        assert_eq!(table.begin("a").unwrap_err(), Refusal::Unknown);
    }

    #[test]
    fn each_starts_once_and_not_too_many_run() {
        let mut table = Table::<(), ()>::default();
        for n in 0..=MAX_LIVE {
            let id = n.to_string();
            table.insert(id.clone(), entry(1, "c"), 0);
            let begun = table.begin(&id);
            let expected = if n < MAX_LIVE {
                Ok(())
            } else {
                Err(Refusal::TooMany)
            };
            assert_eq!(begun, expected);
        }
        assert_eq!(table.begin("0").unwrap_err(), Refusal::Started);
        table.insert("other".into(), entry(1, "d"), 0);
        assert!(table.begin("other").is_ok(), "another container");
        assert!(table.by_token("d", "t").is_some());
        assert!(table.by_token("e", "t").is_none());
    }

    proptest! {
        /// Whatever comes: what lives is never forgotten, and what does not is bounded in number and size.
        #[test]
        fn it_stays_bounded(steps in prop::collection::vec((0..4u8, 0..3000usize, 0..10_000u64, 0..1usize << 20), 0..3000)) {
            let mut table = Table::<(), ()>::default();
            let (mut now_ms, mut live) = (0, std::collections::HashSet::new());
            for (step, number, pause_ms, bytes) in steps {
                now_ms += pause_ms;
                let id = number.to_string();
                match step {
                    0 if table.get(&id).is_none() => table.insert(id, entry(bytes, "c"), now_ms),
                    1 if table.begin(&id).is_ok() => { live.insert(id); },
                    2 if live.contains(&id) => table.running(&id, (), 7),
                    3 if live.remove(&id) => table.ended(&id, 0, now_ms),
                    _ => {}
                }
                let dead = table.entries.values().filter(|e| !e.phase.is_live());
                prop_assert!(dead.count() <= MAX_KEPT);
                prop_assert!(table.waiting_bytes <= MAX_WAITING_BYTES);
                prop_assert!(table.due.len() <= MAX_KEPT);
                let sum: usize = table.entries.values().map(|e| if let Phase::Created(_, b) = e.phase { b } else { 0 }).sum();
                prop_assert_eq!(sum, table.waiting_bytes);
                prop_assert!(live.iter().all(|id| table.get(id).is_some_and(|e| e.phase.is_live())));
            }
        }
    }
}
