//! How many instances are started ahead, of which applications, within how much memory. Pure: event in, effects out; the time is an argument.
//!
//! * Of an application that asks for `min`, so many are kept, and as many as it lately had starts in a burst ([`BURST_MS`] within [`WINDOW_MS`]), up to
//!   its `max_instances`.
//! * One is prepared at a time, and not in the moment after a start, which needs the processor itself. What is below its minimum comes first.
//! * There are [`MOST`] of all applications, each of which takes a range of user ids, a network and a disk.
//! * All together hold no more memory than the budget, and leave the machine a reserve. What one holds is known from the last one.
//! * One that does not come to be, or ends while it waits, is tried again later and later ([`FIRST_RETRY_MS`], doubled up to [`LAST_RETRY_MS`]).
//! * A recipe is what is started: when it changes, all of the earlier one are discarded. Without one there are none.
//!
//! ```text
//!            Prepare                Prepared                    Gone (handed)
//!  wanted ───────────> preparing ─────────────> ready ────────────────────────> wanted
//!    ▲                     │ Failed               │ too many, too big, stale: Discard
//!    └──── later <─────────┘                      └──> gone
//! ```

use std::collections::{BTreeMap, VecDeque};

/// Starts that come within so long are a burst: none of them could have what was prepared after the first.
const BURST_MS: u64 = 10_000;
/// For how long a burst is expected to come again.
const WINDOW_MS: u64 = 600_000;
/// Starts that are remembered of one application, and so the most that are kept of it beyond its minimum.
const MAX_STARTS: usize = 64;
/// Of all applications together.
pub(super) const MOST: usize = 256;
/// After a start, the processor is its.
const AFTER_START_MS: u64 = 100;
const FIRST_RETRY_MS: u64 = 1_000;
const LAST_RETRY_MS: u64 = 300_000;
/// How long after one was given up for want of memory no other is prepared.
const AFTER_SHORTAGE_MS: u64 = 30_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// An application asks for this. `recipe` names what is to be started; another one than before makes all that is ready stale.
    Wanted {
        application: String,
        min: u32,
        max: u32,
        recipe: Option<u64>,
    },
    /// There is no such application any more, or it asks for none.
    Unwanted { application: String },
    /// It has started an instance.
    Started { application: String },
    /// What was to be prepared is ready, and holds so many bytes.
    Prepared { id: String, bytes: u64 },
    /// It does not come.
    Failed,
    /// One that was ready was handed over, or has ended by itself.
    Gone { id: String, handed: bool },
    /// What the machine has left, bytes.
    Available { bytes: u64 },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Prepare one; `Prepared` or `Failed` follows.
    Prepare { application: String, recipe: u64 },
    /// End one that is ready.
    Discard { id: String },
}

/// Of all applications, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// The most that all together may hold.
    pub(super) budget: u64,
    /// What the machine shall have left.
    pub(super) reserve: u64,
}

#[derive(Debug, Default)]
struct Application {
    min: u32,
    max: u32,
    recipe: Option<u64>,
    starts: VecDeque<u64>,
    ready: Vec<Ready>,
    /// What one of this recipe holds.
    bytes: Option<u64>,
    failures: u32,
    not_before: u64,
    handed: u64,
}

#[derive(Debug)]
struct Ready {
    id: String,
    bytes: u64,
}

/// What there is of an application, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) min: u32,
    pub(super) wanted: u32,
    pub(super) ready: u32,
    pub(super) preparing: bool,
    pub(super) memory_bytes: u64,
    pub(super) handed: u64,
    /// In a row.
    pub(super) failures: u32,
    /// When the next try is, if the last one failed.
    pub(super) retry_at: Option<u64>,
    /// There is no memory for one more.
    pub(super) is_short: bool,
}

/// The state.
#[derive(Debug)]
pub(super) struct Policy {
    memory: Memory,
    available: Option<u64>,
    applications: BTreeMap<String, Application>,
    preparing: Option<(String, u64)>,
    /// Nothing is prepared before: a start is under way, or memory was short.
    not_before: u64,
}

impl Application {
    fn wanted(&self, now: u64) -> u32 {
        if self.min == 0 || self.recipe.is_none() {
            return 0;
        }
        let recent = || self.starts.iter().filter(|at| now < **at + WINDOW_MS);
        let burst = |from: u64| {
            recent()
                .filter(|at| (from..from + BURST_MS).contains(at))
                .count()
        };
        let most = recent().map(|at| burst(*at)).max().unwrap_or(0);
        u32::try_from(most)
            .unwrap_or(u32::MAX)
            .max(self.min)
            .min(self.max)
    }

    fn count(&self) -> u32 {
        u32::try_from(self.ready.len()).unwrap_or(u32::MAX)
    }

    fn failed(&mut self, now: u64) {
        let wait = FIRST_RETRY_MS << self.failures.min(20);
        self.not_before = now + wait.min(LAST_RETRY_MS);
        self.failures = self.failures.saturating_add(1);
    }
}

impl Policy {
    pub(super) fn new(memory: Memory) -> Self {
        Policy {
            memory,
            available: None,
            applications: BTreeMap::new(),
            preparing: None,
            not_before: 0,
        }
    }

    /// `now`: milliseconds, never less than before.
    pub(super) fn handle(&mut self, now: u64, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Wanted {
                application,
                min,
                max,
                recipe,
            } => {
                let it = self.applications.entry(application).or_default();
                (it.min, it.max) = (min, max);
                if it.recipe != recipe {
                    it.recipe = recipe;
                    it.bytes = None;
                    it.failures = 0;
                    it.not_before = 0;
                    discard(it.ready.drain(..), &mut out);
                }
            }
            Event::Unwanted { application } => {
                if let Some(mut it) = self.applications.remove(&application) {
                    discard(it.ready.drain(..), &mut out);
                }
            }
            Event::Started { application } => {
                if let Some(it) = self.applications.get_mut(&application) {
                    if it.starts.len() == MAX_STARTS {
                        it.starts.pop_front();
                    }
                    it.starts.push_back(now);
                }
                // Not put off again and again by those that follow.
                if self.not_before <= now {
                    self.not_before = now + AFTER_START_MS;
                }
            }
            Event::Prepared { id, bytes } => {
                let asked = self.preparing.take();
                let ready = Ready { id, bytes };
                match self.application_of(asked) {
                    Some(it) => {
                        it.failures = 0;
                        it.bytes = Some(it.bytes.unwrap_or(0).max(bytes));
                        it.ready.push(ready);
                    }
                    None => discard([ready], &mut out),
                }
            }
            Event::Failed => {
                let asked = self.preparing.take();
                if let Some(it) = self.application_of(asked) {
                    it.failed(now);
                }
            }
            Event::Gone { id, handed } => {
                for it in self.applications.values_mut() {
                    let Some(at) = it.ready.iter().position(|ready| ready.id == id) else {
                        continue;
                    };
                    it.ready.remove(at);
                    match handed {
                        true => it.handed += 1,
                        false => it.failed(now),
                    }
                }
            }
            Event::Available { bytes } => self.available = Some(bytes),
            Event::Tick => {}
        }
        self.discard_surplus(now, &mut out);
        self.discard_for_memory(now, &mut out);
        out.extend(self.prepare(now));
        out
    }

    /// When something is to be done without an event, but for what the end of a burst's time is.
    pub(super) fn wake_at(&self, now: u64) -> Option<u64> {
        if self.preparing.is_some() {
            return None;
        }
        let waiting = self
            .applications
            .values()
            .filter(|it| it.count() < it.wanted(now));
        let at = waiting.map(|it| it.not_before.max(self.not_before)).min();
        at.filter(|at| *at > now)
    }

    pub(super) fn figures(&self, application: &str, now: u64) -> Figures {
        let Some(it) = self.applications.get(application) else {
            return Figures::default();
        };
        let preparing = self.preparing.as_ref();
        Figures {
            min: it.min,
            wanted: it.wanted(now),
            ready: it.count(),
            preparing: preparing
                .is_some_and(|(of, recipe)| of == application && it.recipe == Some(*recipe)),
            memory_bytes: it.ready.iter().map(|ready| ready.bytes).sum(),
            handed: it.handed,
            failures: it.failures,
            retry_at: (it.failures > 0).then_some(it.not_before),
            is_short: it.count() < it.wanted(now) && !self.fits(it),
        }
    }

    /// The application that something was prepared for, if it still wants that.
    fn application_of(&mut self, asked: Option<(String, u64)>) -> Option<&mut Application> {
        let (application, recipe) = asked?;
        let it = self.applications.get_mut(&application)?;
        (it.recipe == Some(recipe)).then_some(it)
    }

    fn held(&self) -> u64 {
        let ready = self.applications.values().flat_map(|it| &it.ready);
        ready.map(|ready| ready.bytes).sum()
    }

    /// What all may hold now.
    fn most(&self) -> u64 {
        let room = self.available.map_or(u64::MAX, |available| {
            available
                .saturating_add(self.held())
                .saturating_sub(self.memory.reserve)
        });
        room.min(self.memory.budget)
    }

    fn fits(&self, it: &Application) -> bool {
        // Of an unknown size: if there is any room, it is tried.
        let bytes = it.bytes.unwrap_or(1).max(1);
        let count: usize = self.applications.values().map(|it| it.ready.len()).sum();
        count < MOST && self.held().saturating_add(bytes) <= self.most()
    }

    fn discard_surplus(&mut self, now: u64, out: &mut Vec<Effect>) {
        for it in self.applications.values_mut() {
            let wanted = it.wanted(now) as usize;
            if it.ready.len() > wanted {
                discard(it.ready.drain(wanted..), out);
            }
        }
    }

    fn discard_for_memory(&mut self, now: u64, out: &mut Vec<Effect>) {
        let mut over = self.held().saturating_sub(self.most());
        while over > 0 {
            // Whoever has most beyond its minimum.
            let beyond = |it: &Application| i64::from(it.count()) - i64::from(it.min);
            let having = self
                .applications
                .values_mut()
                .filter(|it| !it.ready.is_empty());
            let Some(ready) = having
                .max_by_key(|it| beyond(it))
                .and_then(|it| it.ready.pop())
            else {
                return;
            };
            // `available` knows nothing of it yet; what is held and what is left change alike.
            over = over.saturating_sub(ready.bytes);
            self.available = self.available.map(|a| a.saturating_add(ready.bytes));
            discard([ready], out);
            self.not_before = self.not_before.max(now + AFTER_SHORTAGE_MS);
        }
    }

    fn prepare(&mut self, now: u64) -> Option<Effect> {
        if self.preparing.is_some() || now < self.not_before {
            return None;
        }
        let able = self
            .applications
            .iter()
            .filter(|(_, it)| it.count() < it.wanted(now) && it.not_before <= now && self.fits(it));
        let (application, recipe) = able
            .min_by_key(|(_, it)| (it.count() >= it.min, it.count()))
            .and_then(|(application, it)| Some((application.clone(), it.recipe?)))?;
        self.preparing = Some((application.clone(), recipe));
        Some(Effect::Prepare {
            application,
            recipe,
        })
    }
}

fn discard(ready: impl IntoIterator<Item = Ready>, out: &mut Vec<Effect>) {
    out.extend(
        ready
            .into_iter()
            .map(|Ready { id, .. }| Effect::Discard { id }),
    );
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
