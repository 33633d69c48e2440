//! A simulated spawner and random callers drive the machine; the rules are checked after each step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// How long each process of the simulation may run.
const TIMEOUT_MS: u64 = 9000;

/// What a caller or the world does next. The world's answers apply only if something is
/// outstanding.
#[derive(Debug, Clone)]
enum Step {
    Start,
    Signal(i32),
    Stop(u64),
    Remove(bool),
    Wait(Until),
    SpawnAnswers(bool),
    ProcessEnds(i32),
    TimerFires,
    TimeIsOver,
    StaleEvents,
    CleanUpDone,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Start),
        1 => (1..32i32).prop_map(Step::Signal),
        2 => (0..5000u64).prop_map(Step::Stop),
        1 => any::<bool>().prop_map(Step::Remove),
        2 => prop_oneof![Just(Until::NotRunning), Just(Until::NextExit), Just(Until::Removed)].prop_map(Step::Wait),
        4 => proptest::bool::weighted(0.8).prop_map(Step::SpawnAnswers),
        3 => (0..256i32).prop_map(Step::ProcessEnds),
        2 => Just(Step::TimerFires),
        1 => Just(Step::TimeIsOver),
        1 => Just(Step::StaleEvents),
        2 => Just(Step::CleanUpDone),
    ]
}

/// The world around one machine.
struct World {
    machine: Machine,
    next_token: Token,
    asked: BTreeMap<Token, Event>,
    answers: BTreeMap<Token, Answer>,
    spawning: Option<u64>,
    live: Option<u64>,
    kill_asked: bool,
    timers: Vec<u64>,
    /// The start whose time is bounded.
    bounded: Option<u64>,
    timed_out: Vec<u64>,
    cleaning: bool,
    spawns: u64,
    last_exit: Option<Exit>,
}

impl World {
    fn new() -> Self {
        World {
            machine: Machine::new(State::Created, 7, 15).with_hard_timeout(Some(HardTimeout {
                ms: TIMEOUT_MS,
                grace_ms: 5,
            })),
            next_token: 0,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            spawning: None,
            live: None,
            kill_asked: false,
            timers: Vec::new(),
            bounded: None,
            timed_out: Vec::new(),
            cleaning: false,
            spawns: 0,
            last_exit: None,
        }
    }

    fn ask(&mut self, make: impl FnOnce(Token) -> Event) -> Token {
        self.next_token += 1;
        let event = make(self.next_token);
        self.asked.insert(self.next_token, event.clone());
        self.feed(event);
        self.next_token
    }

    fn feed(&mut self, event: Event) {
        for effect in self.machine.handle(event) {
            self.apply(effect);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn { generation } => {
                assert!(
                    self.spawning.is_none() && self.live.is_none(),
                    "two processes of one instance"
                );
                assert!(!self.cleaning, "started while its directory is removed");
                self.spawns += 1;
                assert_eq!(generation, 7 + self.spawns, "one generation per start");
                self.spawning = Some(generation);
                self.kill_asked = false;
            }
            Effect::Signal {
                generation, token, ..
            } => {
                assert_eq!(self.live, Some(generation), "signal to no process");
                if let Some(token) = token {
                    self.answer(token, Answer::Done);
                }
            }
            Effect::KillAll { generation } => {
                assert_eq!(self.live, Some(generation), "kill of no process");
                self.kill_asked = true;
            }
            Effect::ArmTimer { generation, .. } => self.timers.push(generation),
            Effect::ArmHardTimeout { generation, ms } => {
                assert_eq!((self.live, ms), (Some(generation), TIMEOUT_MS));
                self.bounded = Some(generation);
            }
            Effect::NoteHardTimeout { ms } => {
                assert_eq!(ms, TIMEOUT_MS);
                self.timed_out.push(self.machine.generation());
            }
            Effect::Persist => {}
            Effect::Forget { generation } => {
                assert_eq!(generation, self.machine.generation());
                assert!(self.live.is_none(), "forgot a live process");
            }
            Effect::CleanUp => {
                assert!(self.spawning.is_none() && self.live.is_none());
                assert!(!self.cleaning, "cleaned up twice");
                self.cleaning = true;
            }
            Effect::Reply { token, answer } => self.answer(token, answer),
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        if let (Some(Event::Wait { until, .. }), Answer::Exit(exit)) =
            (self.asked.get(&token), &answer)
        {
            match self.last_exit {
                Some(last) => assert_eq!(*exit, last, "an exit that did not happen"),
                None => assert_eq!(exit.code, 0, "an exit although it never ran"),
            }
            if *until == Until::Removed {
                assert_eq!(*self.machine.state(), State::Removed);
            }
        }
        assert!(
            self.answers.insert(token, answer).is_none(),
            "answered twice"
        );
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Start => {
                self.ask(Event::Start);
            }
            Step::Signal(signal) => {
                let signal = *signal;
                self.ask(|token| Event::Signal { signal, token });
            }
            Step::Stop(grace_ms) => {
                let grace_ms = *grace_ms;
                self.ask(|token| Event::Stop {
                    grace_ms,
                    by: EndedBy::Stop,
                    token,
                });
            }
            Step::Remove(force) => {
                let force = *force;
                self.ask(|token| Event::Remove {
                    force,
                    by: EndedBy::Destroy,
                    token,
                });
            }
            Step::Wait(until) => {
                let until = *until;
                self.ask(|token| Event::Wait { until, token });
            }
            Step::SpawnAnswers(success) => self.spawn_answers(*success),
            Step::ProcessEnds(code) => self.process_ends(Exit {
                code: *code,
                signal: None,
                oom_killed: false,
            }),
            Step::TimerFires => {
                if let Some(generation) = self.timers.pop() {
                    self.feed(Event::GraceElapsed { generation });
                }
            }
            Step::TimeIsOver => {
                if let Some(generation) = self.bounded.take() {
                    self.feed(Event::HardTimeout { generation });
                    assert_ne!(
                        *self.machine.state(),
                        State::Running,
                        "runs beyond its time"
                    );
                }
            }
            Step::StaleEvents => {
                let generation = self.machine.generation() - 1;
                let before = self.machine.state().clone();
                let exit = Exit {
                    code: 99,
                    signal: None,
                    oom_killed: false,
                };
                self.feed(Event::Spawned { generation });
                self.feed(Event::Exited { generation, exit });
                self.feed(Event::GraceElapsed { generation });
                self.feed(Event::HardTimeout { generation });
                assert_eq!(before, *self.machine.state());
            }
            Step::CleanUpDone => self.clean_up_done(),
        }
    }

    fn spawn_answers(&mut self, success: bool) {
        let Some(generation) = self.spawning.take() else {
            return;
        };
        if success {
            self.live = Some(generation);
            self.feed(Event::Spawned { generation });
        } else {
            self.last_exit = Some(Exit {
                code: 127,
                signal: None,
                oom_killed: false,
            });
            self.feed(Event::SpawnFailed {
                generation,
                code: 127,
                fault: Fault::Request,
                message: "not found".into(),
            });
        }
    }

    fn process_ends(&mut self, exit: Exit) {
        if let Some(generation) = self.live.take() {
            self.last_exit = Some(exit);
            self.feed(Event::Exited { generation, exit });
        }
    }

    fn clean_up_done(&mut self) {
        if std::mem::take(&mut self.cleaning) {
            self.feed(Event::Cleaned);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens: never two processes (checked in `apply`), a forced removal always comes to
    /// its end, nobody waits for ever, and nobody hears of an exit that did not happen.
    #[test]
    fn removal_ends_every_story(steps in proptest::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            prop_assert_eq!(world.spawning.is_some(), *world.machine.state() == State::Starting);
            prop_assert_eq!(
                world.live.is_some(),
                matches!(world.machine.state(), State::Running | State::Stopping)
            );
        }
        world.step(&Step::Remove(true));
        world.spawn_answers(true);
        if world.live.is_some() {
            prop_assert!(world.kill_asked, "removal waits for a process that nobody kills");
            world.process_ends(Exit { code: 137, signal: Some(9), oom_killed: false });
        }
        world.clean_up_done();
        prop_assert_eq!(world.machine.state(), &State::Removed);
        for (token, event) in &world.asked {
            prop_assert!(world.answers.contains_key(token), "never answered: {event:?}");
        }
        prop_assert_eq!(world.machine.generation(), 7 + world.spawns);
    }
}

#[test]
fn a_stop_ends_with_sigkill_when_the_process_ignores_it() {
    let mut world = World::new();
    world.step(&Step::Start);
    world.step(&Step::SpawnAnswers(true));
    let stop = world.ask(|token| Event::Stop {
        grace_ms: 5,
        by: EndedBy::Rollout,
        token,
    });
    assert!(!world.kill_asked);
    world.step(&Step::TimerFires);
    assert!(world.kill_asked);
    world.process_ends(Exit {
        code: 137,
        signal: Some(9),
        oom_killed: false,
    });
    assert_eq!(world.answers.get(&stop), Some(&Answer::Done));
}

#[test]
fn a_process_is_stopped_when_its_time_is_over() {
    let mut world = World::new();
    world.step(&Step::Start);
    world.step(&Step::SpawnAnswers(true));
    world.step(&Step::TimeIsOver);
    assert_eq!(world.timed_out, [8]);
    assert!(!world.kill_asked, "first the stop signal");
    world.step(&Step::TimerFires);
    assert!(world.kill_asked);
    world.step(&Step::ProcessEnds(143));
    // The next start has its own time.
    world.step(&Step::Start);
    world.step(&Step::SpawnAnswers(true));
    assert_eq!(world.bounded, Some(9));
}

#[test]
fn an_adopted_process_has_the_rest_of_its_time() {
    let bound = HardTimeout {
        ms: 1000,
        grace_ms: 5,
    };
    for (ran_ms, left) in [(0, 1000), (400, 600), (2000, 0)] {
        let mut machine = Machine::new(State::Running, 3, 15).with_hard_timeout(Some(bound));
        let effects = machine.handle(Event::Adopted { ran_ms });
        let armed = Effect::ArmHardTimeout {
            generation: 3,
            ms: left,
        };
        assert_eq!(effects, [armed]);
    }
    let mut unbounded = Machine::new(State::Running, 3, 15);
    assert_eq!(unbounded.handle(Event::Adopted { ran_ms: 1 }), []);
}

#[test]
fn a_stop_during_the_start_is_not_lost() {
    let mut machine = Machine::new(State::Created, 0, 3);
    machine.handle(Event::Start(1));
    assert!(
        machine
            .handle(Event::Stop {
                grace_ms: 100,
                by: EndedBy::Rollout,
                token: 2
            })
            .is_empty()
    );
    let effects = machine.handle(Event::Spawned { generation: 1 });
    assert!(effects.contains(&Effect::Signal {
        generation: 1,
        signal: 3,
        token: None
    }));
    assert_eq!(machine.state(), &State::Stopping);
    assert_eq!(machine.ending(), Some(EndedBy::Rollout));
}

#[test]
fn the_first_reason_for_an_end_counts_and_a_new_start_has_none() {
    let mut machine = Machine::new(State::Created, 0, 3);
    let exit = Exit {
        code: 137,
        signal: Some(9),
        oom_killed: false,
    };
    machine.handle(Event::Start(1));
    machine.handle(Event::Spawned { generation: 1 });
    assert_eq!(machine.cause(&exit), EndedBy::Itself);
    machine.handle(Event::Stop {
        grace_ms: 0,
        by: EndedBy::Stop,
        token: 2,
    });
    machine.handle(Event::Remove {
        force: true,
        by: EndedBy::Destroy,
        token: 3,
    });
    assert_eq!(machine.cause(&exit), EndedBy::Stop);

    let mut machine = Machine::new(State::Created, 0, 3);
    machine.handle(Event::Start(1));
    machine.handle(Event::Spawned { generation: 1 });
    // The image's own stop signal.
    machine.handle(Event::Signal {
        signal: 3,
        token: 2,
    });
    assert_eq!(machine.cause(&exit), EndedBy::Signal);
    machine.handle(Event::Exited {
        generation: 1,
        exit,
    });
    machine.handle(Event::Start(3));
    machine.handle(Event::Spawned { generation: 2 });
    assert_eq!(machine.cause(&exit), EndedBy::Itself);
}

#[test]
fn a_failed_start_tells_starter_and_waiter() {
    let mut world = World::new();
    let start = world.ask(Event::Start);
    let wait = world.ask(|token| Event::Wait {
        until: Until::NotRunning,
        token,
    });
    world.spawn_answers(false);
    assert!(matches!(
        world.answers.get(&start),
        Some(Answer::StartFailed {
            fault: Fault::Request,
            ..
        })
    ));
    assert!(matches!(world.answers.get(&wait), Some(Answer::Exit(exit)) if exit.code == 127));
}

#[test]
fn next_exit_does_not_take_the_last_one() {
    let mut world = World::new();
    world.step(&Step::Start);
    world.step(&Step::SpawnAnswers(true));
    world.step(&Step::ProcessEnds(3));
    let now = world.ask(|token| Event::Wait {
        until: Until::NotRunning,
        token,
    });
    let next = world.ask(|token| Event::Wait {
        until: Until::NextExit,
        token,
    });
    assert!(world.answers.contains_key(&now));
    assert!(!world.answers.contains_key(&next));
    world.step(&Step::Start);
    world.step(&Step::SpawnAnswers(true));
    world.step(&Step::ProcessEnds(4));
    assert!(matches!(world.answers.get(&next), Some(Answer::Exit(exit)) if exit.code == 4));
}
