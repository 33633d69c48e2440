use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds {
    start_ms: 30_000,
    drain_ms: 10_000,
    term_ms: 5_000,
};

/// A world that carries out effects, at the mercy of the test, and holds the machine to its promises.
struct World {
    machine: Machine,
    now: u64,
    alive: Option<ProcessId>,
    ready: bool,
    killed: bool,
    draining: bool,
    held: BTreeMap<ProcessId, usize>,
    waiting: BTreeSet<Waiter>,
    next_waiter: Waiter,
    next_target: Target,
    timer: Option<(u64, u64)>,
    settled: Option<(Target, bool)>,
    gone: bool,
    starts: usize,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(BOUNDS),
            now: 0,
            alive: None,
            ready: false,
            killed: false,
            draining: false,
            held: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_waiter: 0,
            next_target: 0,
            timer: None,
            settled: None,
            gone: false,
            starts: 0,
        }
    }

    fn send(&mut self, event: Event) {
        let from_timer = matches!(event, Event::Timer(_));
        for effect in self.machine.handle(self.now, event) {
            match effect {
                Effect::Start(process, target) => {
                    assert_eq!(self.alive, None, "a second process was started");
                    assert!(!self.gone);
                    assert_eq!(target, self.next_target, "an old version was started");
                    self.alive = Some(process);
                    self.ready = false;
                    self.killed = false;
                    self.draining = false;
                    self.starts += 1;
                }
                Effect::Drain(process) => {
                    assert_eq!(self.alive, Some(process));
                    self.draining = true;
                }
                Effect::Terminate(process) => {
                    assert_eq!(self.alive, Some(process));
                    assert!(self.draining);
                    let held = self.held.get(&process).copied().unwrap_or(0);
                    assert!(
                        held == 0 || from_timer || self.machine.want == Want::Gone,
                        "terminated under {held} requests"
                    );
                }
                Effect::Kill(process) => {
                    assert_eq!(self.alive, Some(process));
                    self.killed = true;
                }
                Effect::Timer(number, after) => self.timer = Some((number, self.now + after)),
                Effect::Grant(waiter, process) => {
                    assert!(self.waiting.remove(&waiter), "answered twice");
                    assert_eq!(self.alive, Some(process));
                    assert!(
                        self.ready && !self.draining && !self.killed,
                        "granted on a closing process"
                    );
                    *self.held.entry(process).or_default() += 1;
                }
                Effect::Refuse(waiter, _) => {
                    assert!(self.waiting.remove(&waiter), "answered twice");
                }
                Effect::Settled(target, result) => self.settled = Some((target, result.is_ok())),
                Effect::Gone => {
                    assert_eq!(self.alive, None);
                    self.gone = true;
                }
            }
        }
    }

    fn set(&mut self) {
        self.next_target += 1;
        self.send(Event::Set(self.next_target));
    }

    fn acquire(&mut self) {
        self.next_waiter += 1;
        self.waiting.insert(self.next_waiter);
        self.send(Event::Acquire(self.next_waiter));
    }

    fn release(&mut self) {
        if let Some((&process, held)) = self.held.iter_mut().find(|(_, n)| **n > 0) {
            *held -= 1;
            self.send(Event::Release(process));
        }
    }

    fn started(&mut self) {
        if let Some(process) = self.alive
            && !self.ready
            && !self.killed
        {
            self.ready = true;
            self.send(Event::Started(process));
        }
    }

    fn ended(&mut self) {
        if let Some(process) = self.alive.take() {
            self.send(Event::Ended(process, "why".into()));
        }
    }

    fn hung(&mut self) {
        if let Some(process) = self.alive {
            self.send(Event::Hung(process, "a loop".into()));
        }
    }

    fn timer(&mut self) {
        if let Some((number, at)) = self.timer.take() {
            self.now = self.now.max(at);
            self.send(Event::Timer(number));
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Set,
    Acquire,
    Release,
    Started,
    Ended,
    Hung,
    Timer,
    StaleTimer,
    Pass(u64),
    Remove,
    Shutdown,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Set),
        8 => Just(Step::Acquire),
        6 => Just(Step::Release),
        6 => Just(Step::Started),
        3 => Just(Step::Ended),
        2 => Just(Step::Hung),
        4 => Just(Step::Timer),
        1 => Just(Step::StaleTimer),
        2 => (0u64..100_000).prop_map(Step::Pass),
        1 => Just(Step::Remove),
        1 => Just(Step::Shutdown),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn promises_hold_in_any_order_of_events(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                // A new script is a new machine; the caller sees to it.
                Step::Set if world.machine.want == Want::Gone => {}
                Step::Set => world.set(),
                Step::Acquire => world.acquire(),
                Step::Release => world.release(),
                Step::Started => world.started(),
                Step::Ended => world.ended(),
                Step::Hung => world.hung(),
                Step::Timer => world.timer(),
                Step::StaleTimer => world.send(Event::Timer(0)),
                Step::Pass(ms) => world.now += ms,
                Step::Remove => world.send(Event::Remove),
                Step::Shutdown => world.send(Event::Shutdown),
            }
        }
        // From here on the world is kind: processes start and end as asked; then nobody may be left waiting.
        for _ in 0..10 {
            if world.killed || world.draining {
                world.ended();
            } else {
                world.started();
            }
            world.timer();
        }
        if world.next_target > 0 {
            prop_assert!(world.waiting.is_empty(), "still waiting: {:?} in {:?}", world.waiting, world.machine);
            if world.machine.want == Want::Gone {
                prop_assert!(world.gone);
            } else {
                prop_assert_eq!(world.machine.phase(), Phase::Ready);
                prop_assert_eq!(world.settled, Some((world.next_target, true)));
            }
        }
    }
}

fn ready() -> World {
    let mut world = World::new();
    world.set();
    world.started();
    assert_eq!(world.settled, Some((1, true)));
    world
}

#[test]
fn a_request_before_the_first_start_waits() {
    let mut world = World::new();
    world.acquire();
    world.set();
    assert_eq!(world.waiting.len(), 1);
    world.started();
    assert!(world.waiting.is_empty());
    assert_eq!(world.held[&1], 1);
}

#[test]
fn a_new_version_waits_for_requests_in_flight_and_holds_new_ones() {
    let mut world = ready();
    world.acquire();
    world.set();
    assert_eq!(world.machine.phase(), Phase::Draining);
    world.acquire();
    assert_eq!(world.waiting.len(), 1, "held, not refused");
    assert_eq!(world.starts, 1);
    world.release();
    world.ended();
    assert_eq!(world.starts, 2);
    world.started();
    assert!(world.waiting.is_empty());
    assert_eq!(world.held[&2], 1);
    assert_eq!(world.settled, Some((2, true)));
}

#[test]
fn a_request_that_never_ends_does_not_stop_a_deploy() {
    let mut world = ready();
    world.acquire();
    world.set();
    world.timer(); // drain: SIGTERM
    assert!(!world.killed);
    world.timer(); // SIGKILL
    assert!(world.killed);
    world.ended();
    world.started();
    assert_eq!(world.settled, Some((2, true)));
    // The old request's end means nothing to the new process.
    world.acquire();
    world.send(Event::Release(1));
    world.set();
    assert_eq!(world.machine.phase(), Phase::Draining);
}

#[test]
fn after_a_crash_requests_wait_shortly_then_get_the_reason() {
    let mut world = ready();
    for pause in [100, 200, 400, 800, 1600] {
        let before = world.now;
        world.ended();
        world.acquire();
        assert_eq!(world.waiting.is_empty(), pause > HOLD_MOST_MS, "{pause}");
        world.timer();
        assert_eq!(world.now - before, pause);
        world.started();
    }
    assert_eq!(world.machine.crashes(), 5);
    assert_eq!(world.machine.last_error(), Some("why"));
    world.now += HEALTHY_MS;
    world.ended();
    let before = world.now;
    world.timer();
    assert_eq!(world.now - before, 100, "a minute of health starts anew");
}

#[test]
fn a_version_that_does_not_start_refuses_and_is_not_started_hot() {
    let mut world = World::new();
    world.set();
    world.acquire();
    world.ended();
    assert!(world.waiting.is_empty());
    assert_eq!(world.settled, Some((1, false)));
    world.acquire();
    assert!(world.waiting.is_empty());
    for _ in 0..20 {
        world.timer();
        world.ended();
    }
    let before = world.now;
    world.timer();
    assert_eq!(world.now - before, BACKOFF_MOST_MS);
    // A mended version starts at once.
    world.ended();
    world.set();
    world.started();
    assert_eq!(world.settled, Some((2, true)));
}

#[test]
fn a_start_that_hangs_is_ended_and_said_so() {
    let mut world = World::new();
    world.set();
    world.timer();
    assert!(world.killed);
    world.ended();
    assert!(
        world
            .machine
            .last_error()
            .unwrap()
            .contains("did not become ready within 30000 ms")
    );
}

#[test]
fn an_idle_connection_may_not_join_a_closing_process() {
    let mut world = ready();
    assert!(world.machine.join(1));
    world.set();
    assert!(!world.machine.join(1));
    assert_eq!(world.machine.phase(), Phase::Draining);
}

#[test]
fn a_hung_process_is_killed_and_its_loop_is_the_reason() {
    let mut world = ready();
    for (pause, held) in [
        (100, true),
        (200, true),
        (400, true),
        (800, true),
        (1600, false),
    ] {
        world.hung();
        assert!(world.killed);
        world.acquire();
        assert_eq!(world.waiting.len(), 1, "not given to the dying one");
        world.ended();
        assert_eq!(world.machine.last_error(), Some("a loop"));
        assert_eq!(world.waiting.len(), usize::from(held), "{pause}");
        let before = world.now;
        world.timer();
        assert_eq!(world.now - before, pause);
        world.started();
        assert!(world.waiting.is_empty());
    }
    assert_eq!(world.machine.crashes(), 5);
}

#[test]
fn a_hung_process_that_is_being_replaced_leaves_no_trace() {
    let mut world = ready();
    world.hung();
    world.set();
    world.ended();
    world.started();
    assert_eq!(world.machine.crashes(), 0);
    assert_eq!(world.machine.last_error(), None);
    // The next crash has its own reason.
    world.ended();
    assert_eq!(world.machine.last_error(), Some("why"));
}
