use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const MEMORY: Memory = Memory {
    budget: 100 * MIB,
    reserve: 50 * MIB,
};

fn wanted(application: &str, min: u32, recipe: u64) -> Event {
    Event::Wanted {
        application: application.to_owned(),
        min,
        max: 20,
        recipe: Some(recipe),
    }
}

fn started(application: &str) -> Event {
    Event::Started {
        application: application.to_owned(),
    }
}

/// Carries out effects at once, each instance of this size.
struct World {
    policy: Policy,
    now: u64,
    bytes: u64,
    made: u64,
    alive: Vec<String>,
    discarded: usize,
}

impl World {
    fn new(bytes: u64) -> Self {
        World {
            policy: Policy::new(MEMORY),
            now: 0,
            bytes,
            made: 0,
            alive: Vec::new(),
            discarded: 0,
        }
    }

    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.policy.handle(self.now, event) {
                match effect {
                    Effect::Prepare { .. } => {
                        self.made += 1;
                        let id = self.made.to_string();
                        self.alive.push(id.clone());
                        events.push(Event::Prepared {
                            id,
                            bytes: self.bytes,
                        });
                    }
                    Effect::Discard { id } => {
                        self.alive.retain(|other| *other != id);
                        self.discarded += 1;
                    }
                }
            }
        }
    }

    /// Lets time pass, as the keeper does.
    fn pass(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(at) = self.policy.wake_at(self.now).filter(|at| *at <= until) {
            self.now = at;
            self.tell(Event::Tick);
        }
        self.now = until;
        self.tell(Event::Tick);
    }

    fn hand(&mut self) {
        let id = self.alive.remove(0);
        self.tell(Event::Gone { id, handed: true });
    }
}

#[test]
fn the_minimum_is_kept_and_filled_up_after_use() {
    let mut world = World::new(MIB);
    world.tell(wanted("a", 2, 1));
    assert_eq!(world.alive.len(), 2);
    world.tell(started("a"));
    world.hand();
    assert_eq!(world.alive.len(), 1, "the start's own moment");
    world.pass(AFTER_START_MS);
    assert_eq!(world.alive.len(), 2);
    assert_eq!(world.policy.figures("a", world.now).handed, 1);
}

#[test]
fn a_burst_is_expected_again_for_a_while() {
    let mut world = World::new(MIB);
    world.tell(wanted("a", 1, 1));
    for _ in 0..5 {
        world.tell(started("a"));
        world.now += 500;
    }
    // Those that came alone are no burst.
    world.pass(60_000);
    assert_eq!(world.alive.len(), 5);
    world.tell(started("a"));
    world.pass(WINDOW_MS - 63_000);
    assert_eq!(world.alive.len(), 5);
    world.pass(63_000);
    assert_eq!(world.alive.len(), 1);
    assert_eq!(world.made - 1, 4);
}

#[test]
fn without_a_minimum_there_are_none_however_often_it_is_started() {
    let mut world = World::new(MIB);
    world.tell(wanted("a", 0, 1));
    (0..30).for_each(|_| world.tell(started("a")));
    world.pass(10_000);
    assert_eq!(world.made, 0);
}

#[test]
fn another_recipe_makes_the_rest_stale_also_what_is_under_way() {
    let mut policy = Policy::new(MEMORY);
    let prepare = |recipe| Effect::Prepare {
        application: "a".to_owned(),
        recipe,
    };
    assert_eq!(policy.handle(0, wanted("a", 1, 1)), [prepare(1)]);
    assert_eq!(policy.handle(1, wanted("a", 1, 2)), []);
    let id = "1".to_owned();
    let ready = Event::Prepared {
        id: id.clone(),
        bytes: MIB,
    };
    assert_eq!(
        policy.handle(2, ready),
        [Effect::Discard { id }, prepare(2)]
    );
}

#[test]
fn one_that_fails_is_tried_ever_more_rarely_until_it_changes() {
    let mut policy = Policy::new(MEMORY);
    let mut now = 0;
    assert_eq!(policy.handle(now, wanted("a", 1, 1)).len(), 1);
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(policy.handle(now, Event::Failed), []);
        let at = policy.wake_at(now).unwrap();
        assert_eq!(policy.handle(at - 1, Event::Tick), []);
        assert_eq!(policy.handle(at, Event::Tick).len(), 1);
        waits.push(at - now);
        now = at;
    }
    assert_eq!(waits[..4], [1000, 2000, 4000, 8000]);
    assert_eq!(waits[11], LAST_RETRY_MS);
    policy.handle(now, Event::Failed);
    assert_eq!(policy.figures("a", now).failures, 13);
    assert_eq!(policy.handle(now + 1, wanted("a", 1, 2)).len(), 1);
}

#[test]
fn the_budget_holds_as_many_as_fit_and_no_more_are_tried() {
    let mut world = World::new(30 * MIB);
    world.tell(wanted("a", 10, 1));
    world.pass(3_600_000);
    assert_eq!((world.alive.len(), world.made), (3, 3));
    assert!(world.policy.figures("a", world.now).is_short);
    // Too big for it at all: found out once.
    let mut world = World::new(101 * MIB);
    world.tell(wanted("a", 1, 1));
    world.pass(3_600_000);
    assert_eq!((world.alive.len(), world.made), (0, 1));
}

#[test]
fn there_is_a_bound_also_for_what_holds_nothing() {
    let mut world = World::new(0);
    let (min, max, recipe) = (1000, 1000, Some(1));
    let application = "a".to_owned();
    world.tell(Event::Wanted {
        application,
        min,
        max,
        recipe,
    });
    assert_eq!(world.alive.len(), MOST);
    assert!(world.policy.figures("a", world.now).is_short);
}

#[test]
fn a_machine_short_of_memory_gives_up_what_is_beyond_minimums_first() {
    let mut world = World::new(10 * MIB);
    world.tell(wanted("a", 2, 1));
    world.tell(wanted("b", 1, 1));
    (0..4).for_each(|_| world.tell(started("b")));
    world.pass(1000);
    assert_eq!(world.alive.len(), 6);
    world.tell(Event::Available { bytes: 25 * MIB });
    let ready = |world: &World, of| world.policy.figures(of, world.now).ready;
    assert_eq!((ready(&world, "a"), ready(&world, "b")), (2, 1));
    world.tell(Event::Available { bytes: 0 });
    assert_eq!(world.alive.len(), 0);
    world.tell(Event::Available { bytes: 500 * MIB });
    assert_eq!(world.alive.len(), 0, "not at once again");
    world.pass(AFTER_SHORTAGE_MS);
    assert_eq!(world.alive.len(), 6);
}

#[derive(Debug, Clone)]
enum Step {
    Event(Event),
    /// Answers what is under way.
    Prepared(u64),
    Failed,
    Hand(usize),
    End(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let app = prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    let event = prop_oneof![
        (app.clone(), 0u32..5, 0u32..8, prop::option::of(0u64..3)).prop_map(
            |(application, min, max, recipe)| Event::Wanted {
                application,
                min,
                max,
                recipe
            }
        ),
        app.clone()
            .prop_map(|application| Event::Unwanted { application }),
        app.prop_map(|application| Event::Started { application }),
        (0u64..300).prop_map(|mib| Event::Available { bytes: mib * MIB }),
    ];
    let step = prop_oneof![
        3 => event.prop_map(Step::Event),
        4 => (0u64..60).prop_map(Step::Prepared),
        1 => Just(Step::Failed),
        2 => (0usize..5).prop_map(Step::Hand),
        1 => (0usize..5).prop_map(Step::End),
        2 => (0u64..100_000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever comes: one at a time, nothing that is not wanted, no one discarded that is not there, within budget and reserve after every event, nothing lost.
    #[test]
    fn all_promises_hold(steps in steps()) {
        let mut policy = Policy::new(MEMORY);
        let (mut now, mut made) = (0, 0u64);
        // (id, application, recipe, bytes)
        let mut alive: Vec<(String, String, u64, u64)> = Vec::new();
        let mut under_way: Option<(String, u64)> = None;
        let mut wants: BTreeMap<String, (u32, u32, Option<u64>)> = BTreeMap::new();
        for step in steps {
            let event = match step {
                Step::Event(event) => {
                    match &event {
                        Event::Wanted { application, min, max, recipe } => {
                            wants.insert(application.clone(), (*min, *max, *recipe));
                        }
                        Event::Unwanted { application } => {
                            wants.remove(application);
                        }
                        _ => {}
                    }
                    event
                }
                Step::Prepared(mib) => {
                    let Some((application, recipe)) = under_way.take() else { continue };
                    made += 1;
                    let id = made.to_string();
                    alive.push((id.clone(), application, recipe, mib * MIB));
                    Event::Prepared { id, bytes: mib * MIB }
                }
                Step::Failed if under_way.take().is_some() => Event::Failed,
                Step::Failed => continue,
                Step::Hand(n) if n < alive.len() => {
                    Event::Gone { id: alive.remove(n).0, handed: true }
                }
                Step::End(n) if n < alive.len() => {
                    Event::Gone { id: alive.remove(n).0, handed: false }
                }
                Step::Hand(_) | Step::End(_) => continue,
                Step::Pass(ms) => {
                    now += ms;
                    Event::Tick
                }
            };
            let memory_was_told = matches!(event, Event::Available { .. });
            for effect in policy.handle(now, event) {
                match effect {
                    Effect::Prepare { application, recipe } => {
                        prop_assert!(under_way.is_none(), "one at a time");
                        let (min, max, asked) = wants[&application];
                        prop_assert!(min > 0 && asked == Some(recipe));
                        let ready = alive.iter().filter(|it| it.1 == application).count();
                        prop_assert!(ready < max as usize);
                        under_way = Some((application, recipe));
                    }
                    Effect::Discard { id } => {
                        let at = alive.iter().position(|it| it.0 == id);
                        prop_assert!(at.is_some(), "discarded twice, or after its hand-over");
                        alive.remove(at.unwrap());
                    }
                }
            }
            for (id, application, recipe, _) in &alive {
                let want = wants.get(application);
                prop_assert!(want.is_some_and(|(min, _, asked)| *min > 0 && *asked == Some(*recipe)), "{id} is stale");
            }
            let held: u64 = alive.iter().map(|it| it.3).sum();
            prop_assert!(held <= MEMORY.budget);
            if memory_was_told {
                // With what was discarded for it, the machine has its reserve, or there is nothing more to discard.
                prop_assert!(held == 0 || policy.available.unwrap() >= MEMORY.reserve);
            }
            let told: u64 = ["a", "b", "c"].iter().map(|a| policy.figures(a, now).memory_bytes).sum();
            prop_assert_eq!(told, held);
        }
    }
}
