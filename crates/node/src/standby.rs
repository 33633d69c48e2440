//! Instances of applications, started ahead of their Durable Objects' requests (`min_instances` of an application).
//!
//! Owns: what is known of each application ([`learning`]), the policy ([`policy`]), and the task that carries out what it decides. The engine keeps the instances, and decides itself
//! whether one fits a start.
//! Must not: start what no application asked for, or anything while a workerd could be kept waiting: all of it is in the background.
//!
//! A recipe is a start without what is one object's own. When it is used it goes the same way as a
//! real start ([`Caller::admit`]): so image, limits and variables are those of that moment.

mod learning;
mod memory;
mod policy;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use wharf_engine::{Create, Engine, OwnNetwork, Owner, Standby, StandbyEvent};

use self::learning::Learning;
use self::policy::{Effect, Event, Memory, Policy};
use crate::admission::{Caller, Place};
use crate::applications::{Applications, Observer};
use crate::object::Object;
use crate::recipe::{Recipe, StandbyTarget};

/// Between two looks at the machine's memory.
const LOOK: Duration = Duration::from_secs(5);
/// What part of the machine's memory they may hold, and what part they leave.
const SHARE: u64 = 10;

/// How it stands with an application's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The application's id.
    pub application: String,
    /// Its name.
    pub application_name: String,
    /// How many it asks for at least.
    pub min_instances: u32,
    /// How many there shall be now: as many as it lately started in a burst.
    pub wanted: u32,
    /// How many are ready.
    pub ready: u32,
    /// Whether one is being prepared.
    pub preparing: bool,
    /// What those that are ready hold, bytes.
    pub memory_bytes: u64,
    /// How many were handed to objects since the daemon's start.
    pub handed: u64,
    /// Why there are fewer than wanted, if there is a reason that lasts.
    pub reason: Option<String>,
}

/// Keeps instances started ahead. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Standbys {
    messages: mpsc::UnboundedSender<Message>,
    status: Arc<Mutex<Vec<Status>>>,
}

#[derive(Debug)]
enum Message {
    Wanted(StandbyTarget),
    Gone {
        application: String,
    },
    ScriptChanged {
        script: String,
    },
    ScriptGone {
        script: String,
    },
    Started {
        target: StandbyTarget,
        recipe: Box<Recipe>,
    },
    Stop(oneshot::Sender<()>),
}

impl Standbys {
    /// Begins to keep them, all together within `budget_bytes` (`None`: a tenth of the machine's memory), and so that the machine has a tenth left. To be called
    /// within a tokio runtime.
    pub fn new(
        engine: Engine,
        applications: Arc<dyn Applications>,
        budget_bytes: Option<u64>,
    ) -> Standbys {
        let (messages, receiver) = mpsc::unbounded_channel();
        let status = Arc::default();
        let share = memory::read().map(|machine| machine.total / SHARE);
        let memory = Memory {
            budget: budget_bytes.or(share).unwrap_or(0),
            reserve: share.unwrap_or(0),
        };
        let keeper = Keeper {
            events: engine.watch_standbys(),
            engine,
            applications,
            messages: receiver,
            status: Arc::clone(&status),
            policy: Policy::new(memory),
            known: BTreeMap::new(),
            recipes: 0,
            began: Instant::now(),
            preparing: None,
        };
        tokio::spawn(keeper.run());
        Standbys { messages, status }
    }

    /// An application was deployed or changed, or is there at the node's start. What was started of it before is discarded: image, limits or variables may be others now.
    pub fn application(&self, target: StandbyTarget) {
        self.tell(Message::Wanted(target));
    }

    /// An application is no more.
    pub fn application_gone(&self, id: &str) {
        self.tell(Message::Gone {
            application: id.to_owned(),
        });
    }

    /// A script was deployed: the variables of its applications' instances are others now.
    pub fn script_changed(&self, script: &str) {
        self.tell(Message::ScriptChanged {
            script: script.to_owned(),
        });
    }

    /// A script was deleted, and its applications' instances with it.
    pub fn script_gone(&self, script: &str) {
        self.tell(Message::ScriptGone {
            script: script.to_owned(),
        });
    }

    /// How it stands, by application name. Of those that ask for any.
    pub fn status(&self) -> Vec<Status> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.clone()
    }

    /// Prepares no more, for good; returns when nothing is under way. What is ready stays, for the engine to end.
    pub async fn stop(&self) {
        let (stopped, receiver) = oneshot::channel();
        self.tell(Message::Stop(stopped));
        // An error means that it has stopped before.
        let _ = receiver.await;
    }

    fn tell(&self, message: Message) {
        // Stopped: then nothing is kept any more.
        let _ = self.messages.send(message);
    }
}

impl Observer for Standbys {
    fn started(&self, target: StandbyTarget, recipe: Recipe) {
        let recipe = Box::new(recipe);
        self.tell(Message::Started { target, recipe });
    }
}

/// What is known of an application.
#[derive(Debug)]
struct Known {
    target: StandbyTarget,
    learning: Learning<Recipe>,
    /// What the policy was told last: a number, and what it stands for.
    recipe: Option<(u64, Recipe)>,
    failure: Option<String>,
}

struct Keeper {
    engine: Engine,
    applications: Arc<dyn Applications>,
    messages: mpsc::UnboundedReceiver<Message>,
    events: mpsc::UnboundedReceiver<StandbyEvent>,
    status: Arc<Mutex<Vec<Status>>>,
    policy: Policy,
    known: BTreeMap<String, Known>,
    recipes: u64,
    began: Instant,
    preparing: Option<(String, JoinHandle<Result<Standby, String>>)>,
}

impl Keeper {
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = self.now();
            let wake = self.policy.wake_at(now);
            let wake = wake.map(|at| Duration::from_millis(at.saturating_sub(now)));
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(Message::Stop(stopped)) => {
                        self.stop().await;
                        // Whoever asked may have gone.
                        let _ = stopped.send(());
                        return;
                    }
                    Some(message) => self.hear(message).await,
                    None => return self.stop().await,
                },
                Some(event) = self.events.recv() => {
                    let event = match event {
                        StandbyEvent::Handed { id } => Event::Gone { id, handed: true },
                        StandbyEvent::Ended { id } => {
                            tracing::warn!(instance = id, "started ahead, and has ended before it was needed");
                            Event::Gone { id, handed: false }
                        }
                    };
                    self.feed(event).await;
                }
                (application, prepared) = done(&mut self.preparing) => self.prepared(&application, prepared).await,
                () = sleep(wake) => self.feed(Event::Tick).await,
                _ = look.tick() => {
                    if !self.known.is_empty() {
                        if let Some(bytes) = memory::read().map(|machine| machine.available) {
                            self.feed(Event::Available { bytes }).await;
                        } else {
                            self.feed(Event::Tick).await;
                        }
                    }
                }
            }
            self.publish();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::Wanted(target) => {
                let id = target.id.clone();
                self.know(target);
                self.renew(&id).await;
            }
            Message::Gone { application } => {
                self.known.remove(&application);
                self.feed(Event::Unwanted { application }).await;
            }
            Message::ScriptChanged { script } => {
                for id in self.of_script(&script) {
                    self.renew(&id).await;
                }
            }
            Message::ScriptGone { script } => {
                for application in self.of_script(&script) {
                    self.known.remove(&application);
                    self.feed(Event::Unwanted { application }).await;
                }
            }
            Message::Started { target, recipe } => {
                let id = target.id.clone();
                let changed = self.know(target);
                let Some(known) = self.known.get_mut(&id) else {
                    return;
                };
                known.learning.started(*recipe);
                let told = known.recipe.as_ref().map(|(_, recipe)| recipe);
                if changed || known.learning.current() != told {
                    self.renew(&id).await;
                }
                self.feed(Event::Started { application: id }).await;
            }
            Message::Stop(_) => {}
        }
    }

    fn of_script(&self, script: &str) -> Vec<String> {
        let of_it = self.known.values().filter(|it| it.target.script == script);
        of_it.map(|it| it.target.id.clone()).collect()
    }

    /// Returns whether it is news.
    fn know(&mut self, target: StandbyTarget) -> bool {
        match self.known.get_mut(&target.id) {
            Some(known) => {
                let news = known.target != target;
                known.target = target;
                news
            }
            None => {
                let known = Known {
                    target,
                    learning: Learning::new(Recipe::usual()),
                    recipe: None,
                    failure: None,
                };
                self.known.insert(known.target.id.clone(), known);
                true
            }
        }
    }

    /// Tells the policy of an application anew: everything that was started of it is stale.
    async fn renew(&mut self, id: &str) {
        self.recipes += 1;
        let number = self.recipes;
        let Some(known) = self.known.get_mut(id) else {
            return;
        };
        known.failure = None;
        known.recipe = known.learning.current().map(|it| (number, it.clone()));
        let event = Event::Wanted {
            application: id.to_owned(),
            min: known.target.min_instances,
            max: known.target.max_instances,
            recipe: known.recipe.as_ref().map(|(number, _)| *number),
        };
        self.feed(event).await;
    }

    async fn feed(&mut self, event: Event) {
        for effect in self.policy.handle(self.now(), event) {
            match effect {
                Effect::Discard { id } => {
                    // Here, not in the background: what is stale is in nobody's way any more when the next thing is done.
                    self.engine.discard_standby(&id).await;
                }
                Effect::Prepare {
                    application,
                    recipe,
                } => {
                    let known = self.known.get(&application);
                    let recipe = known
                        .and_then(|it| it.recipe.clone().filter(|(number, _)| *number == recipe));
                    let found = known.map(|it| it.target.clone()).zip(recipe);
                    let (engine, applications) = (self.engine.clone(), self.applications.clone());
                    let task = tokio::spawn(async move {
                        let Some((target, (_, recipe))) = found else {
                            return Err("it has changed meanwhile".to_owned());
                        };
                        let create = create(&engine, applications, &target, recipe).await?;
                        let prepared = engine.prepare_standby(create).await;
                        prepared.map_err(|error| error.to_string())
                    });
                    self.preparing = Some((application, task));
                }
            }
        }
    }

    async fn prepared(&mut self, application: &str, prepared: Result<Standby, String>) {
        let known = self.known.get_mut(application);
        match prepared {
            Ok(Standby {
                id,
                memory_bytes: bytes,
                ready_ms,
            }) => {
                tracing::info!(application, instance = id, bytes, ready_ms, "started ahead");
                if let Some(known) = known {
                    known.failure = None;
                }
                self.feed(Event::Prepared { id, bytes }).await;
            }
            Err(reason) => {
                if let Some(known) = known {
                    let name = &known.target.name;
                    tracing::warn!(application = name, reason, "not started ahead");
                    known.failure = Some(reason);
                }
                self.feed(Event::Failed).await;
            }
        }
    }

    /// The engine ends what is half-way with the rest.
    async fn stop(&mut self) {
        if let Some((_, task)) = self.preparing.take() {
            task.abort();
            let _ = task.await;
        }
    }

    fn publish(&self) {
        let now = self.now();
        let target = self.known.values().filter(|it| it.target.min_instances > 0);
        let mut all: Vec<Status> = target
            .map(|Known { target, learning, failure, .. }| {
                let figures = self.policy.figures(&target.id, now);
                let reason = match failure {
                    _ if learning.current().is_none() => Some("its starts differ each time (variables, command or size): nothing is started ahead until two in a row are the same".to_owned()),
                    Some(failure) if figures.failures > 0 => {
                        let retry = figures.retry_at.unwrap_or(now).saturating_sub(now);
                        let seconds = retry.div_ceil(1000);
                        Some(format!("{failure}; tried {} times, again in {seconds} s", figures.failures))
                    }
                    _ if figures.is_short => Some(format!("there is no memory for more within containers.standby_mib, the machine is short of it, or there are {} of all applications", policy::MOST)),
                    _ => None,
                };
                Status {
                    application: target.id.clone(),
                    application_name: target.name.clone(),
                    min_instances: target.min_instances,
                    wanted: figures.wanted,
                    ready: figures.ready,
                    preparing: figures.preparing,
                    memory_bytes: figures.memory_bytes,
                    handed: figures.handed,
                    reason,
                }
            })
            .collect();
        all.sort_by(|a, b| a.application_name.cmp(&b.application_name));
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// The end of what is being prepared; never, if nothing is. Cancel safe.
async fn done(
    preparing: &mut Option<(String, JoinHandle<Result<Standby, String>>)>,
) -> (String, Result<Standby, String>) {
    let Some((application, task)) = preparing else {
        return std::future::pending().await;
    };
    let result = match task.await {
        Ok(result) => result,
        Err(error) => Err(format!("preparing: {error}")),
    };
    let application = std::mem::take(application);
    *preparing = None;
    (application, result)
}

async fn sleep(wake: Option<Duration>) {
    match wake {
        Some(wake) => tokio::time::sleep(wake).await,
        None => std::future::pending().await,
    }
}

/// The order that a start of an object of the application would become now, by this recipe.
async fn create(
    engine: &Engine,
    applications: Arc<dyn Applications>,
    target: &StandbyTarget,
    recipe: Recipe,
) -> Result<Create, String> {
    let Recipe { start, internet } = recipe;
    let caller = Caller::Script {
        script: target.script.clone(),
        applications,
    };
    // No instance of such an application is told its object's id.
    let object = Object::nobody(&target.unique_key);
    let admitted = caller.admit(engine, Some(&object), &start).await;
    let admitted = admitted.map_err(|refusal| refusal.message)?;
    let image = admitted.image.clone();
    let image = image.ok_or("its objects name an image with each start")?;
    let place = Place {
        own_network: OwnNetwork {
            internet,
            publish: Vec::new(),
        },
        ..Place::default()
    };
    let owner = Owner::Script(target.script.clone());
    Ok(admitted.create(owner, object.to_string(), image, start, place))
}
