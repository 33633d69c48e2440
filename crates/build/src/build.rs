//! Carries out a plan: stage by stage, step by step, with the layer cache.
//!
//! Owns: the order of things, progress, cache keys. Blocking work (hashing, copying, committing) runs on the blocking pool.

mod layers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::UnboundedSender;
use wharf_image::{Image, ImageStore, Layer};
use wharf_net::Networks;
use wharf_sandbox::Spawner;

use crate::cache::Cache;
use crate::dockerignore::Dockerignore;
use crate::instruction::{Instruction, Step};
use crate::parse::fail;
use crate::plan::{self, Base, Plan};
use crate::source::Origin;
use crate::state::State;
use crate::tree::Tree;
use crate::trouble::{Context, Result as Tried, Trouble};
use crate::{BuildError, BuildRequest, Progress, words};

/// Time of an image that no step of any build made a layer for.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What all builds share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) images: ImageStore,
    pub(crate) spawner: Spawner,
    pub(crate) networks: Networks,
    pub(crate) cache: Cache,
    /// Cache mounts in use, by directory.
    pub(crate) turns: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

/// A finished or growing stage.
#[derive(Debug, Clone)]
struct Done {
    state: State,
    layers: Vec<Layer>,
    /// RFC 3339: of the base and of the newest layer.
    created: Option<String>,
}

struct Build {
    shared: Arc<Shared>,
    request: BuildRequest,
    plan: Plan,
    escape: char,
    progress: UnboundedSender<Progress>,
    context: Arc<Origin>,
    number: usize,
    total: usize,
    done: Vec<Option<Done>>,
    images: HashMap<String, Image>,
}

/// Says which step it is, once it is known whether the cache has it; at the latest when it fails.
struct Announce {
    progress: UnboundedSender<Progress>,
    number: usize,
    total: usize,
    text: String,
    cached: bool,
}

impl Announce {
    fn say(mut self, cached: bool) {
        self.cached = cached;
    }
}

impl Drop for Announce {
    fn drop(&mut self) {
        // A receiver that is gone does not stop the build.
        let _ = self.progress.send(Progress::Step {
            number: self.number,
            total: self.total,
            text: std::mem::take(&mut self.text),
            cached: self.cached,
        });
    }
}

/// Steps that a user waits for; the others only change the configuration.
fn is_shown(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::From { .. }
            | Instruction::Run(_)
            | Instruction::Copy(_)
            | Instruction::Workdir(_)
    )
}

pub(crate) async fn build(
    shared: Arc<Shared>,
    request: BuildRequest,
    progress: UnboundedSender<Progress>,
) -> Result<Image, BuildError> {
    let file = crate::parse::parse(&request.dockerfile)?;
    let steps = crate::instruction::steps(&file)?;
    let plan = plan::plan(
        steps,
        file.escape,
        &request.build_args,
        request.target.as_deref(),
    )?;
    let context = context(&request.context).map_err(|e| BuildError::Failed(e.to_string()))?;
    let total = (0..plan.stages.len())
        .filter(|i| plan.needed[*i])
        .map(|i| {
            1 + plan.stages[i]
                .steps
                .iter()
                .filter(|s| is_shown(&s.instruction))
                .count()
        })
        .sum();
    let mut build = Build {
        done: vec![None; plan.stages.len()],
        shared,
        request,
        plan,
        escape: file.escape,
        progress,
        context: Arc::new(context),
        number: 0,
        total,
        images: HashMap::new(),
    };
    build.warn_unused();
    for i in 0..build.plan.stages.len() {
        if build.plan.needed[i] {
            let done = build.stage(i).await?;
            build.done[i] = Some(done);
        }
    }
    build.finish().await
}

fn context(dir: &Path) -> Tried<Origin> {
    let opening = || format!("opening the build context {}", dir.display());
    let tree = Tree::of_host(dir).context(opening)?;
    let ignore = match tree
        .stat(Path::new(".dockerignore"), true)
        .context(opening)?
    {
        Some(node) if !node.is_dir() => {
            let mut text = Vec::new();
            tree.file(Path::new(".dockerignore"))
                .and_then(|mut f| std::io::Read::read_to_end(&mut f, &mut text))
                .context(|| "reading .dockerignore".to_owned())?;
            Dockerignore::parse(&String::from_utf8_lossy(&text))?
        }
        _ => Dockerignore::default(),
    };
    Ok(Origin {
        tree,
        context: true,
        ignore,
    })
}

/// Runs blocking work; its panic or the runtime's end becomes an error.
async fn blocking<T: Send + 'static>(
    line: usize,
    work: impl FnOnce() -> Tried<T> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| e.at(line)),
        Err(e) => Err(BuildError::Failed(format!("Dockerfile:{line}: {e}"))),
    }
}

impl Build {
    fn announce(&mut self, stage: usize, text: &str) -> Announce {
        self.number += 1;
        let text = match self.plan.needed.iter().filter(|n| **n).count() {
            1 => text.to_owned(),
            _ => format!("[{}] {text}", self.plan.stages[stage].label(stage)),
        };
        Announce {
            progress: self.progress.clone(),
            number: self.number,
            total: self.total,
            text,
            cached: false,
        }
    }

    fn note(&self, text: String) {
        let _ = self.progress.send(Progress::Output(text.into_bytes()));
    }

    /// Docker warns too: usually it is a typing mistake.
    fn warn_unused(&self) {
        for name in self.request.build_args.keys() {
            let known = self.plan.declared_args.iter().any(|d| d == name)
                || crate::state::is_predefined(name);
            if !known {
                self.note(format!(
                    "warning: the build argument {name} is not used: the Dockerfile has no ARG {name}\n"
                ));
            }
        }
    }

    async fn image(&mut self, reference: &str, line: usize) -> Result<Image, BuildError> {
        if let Some(image) = self.images.get(reference) {
            return Ok(image.clone());
        }
        let (images, name) = (self.shared.images.clone(), reference.to_owned());
        let image = blocking(line, move || {
            // Its message says how to get an image onto this node.
            images
                .resolve(&name)
                .map_err(|e| Trouble::Refused(e.to_string()))
        })
        .await?;
        let (os, architecture) = (image.config.os(), image.config.architecture());
        if *os != oci_spec::image::Os::Linux || *architecture != oci_spec::image::Arch::Amd64 {
            return Err(fail(
                line,
                format!(
                    "the image {reference} is for {os}/{architecture}; only linux/amd64 can be built on"
                ),
            ));
        }
        self.images.insert(reference.to_owned(), image.clone());
        Ok(image)
    }

    async fn stage(&mut self, index: usize) -> Result<Done, BuildError> {
        let stage = self.plan.stages[index].clone();
        self.announce(index, &stage.from.text).say(false);
        let mut now = match &stage.base {
            Base::Scratch => Done {
                state: State::scratch(),
                layers: Vec::new(),
                created: None,
            },
            Base::Stage(earlier) => {
                let earlier = self.finished(*earlier, stage.from.line)?;
                Done {
                    state: earlier.state.child(),
                    ..earlier.clone()
                }
            }
            Base::Image(reference) => {
                let image = self.image(reference, stage.from.line).await?;
                Done {
                    state: State::from_image(&image.config, image.layers.len()),
                    created: image.config.created().clone(),
                    layers: image.layers,
                }
            }
        };
        for step in &stage.steps {
            self.step(index, step, &mut now).await?;
        }
        Ok(now)
    }

    fn finished(&self, index: usize, line: usize) -> Result<&Done, BuildError> {
        match self.done.get(index) {
            Some(Some(done)) => Ok(done),
            _ => Err(fail(line, "that stage is not built yet")),
        }
    }

    async fn step(&mut self, stage: usize, step: &Step, now: &mut Done) -> Result<(), BuildError> {
        let escape = self.escape;
        let scope = now.state.clone();
        let expand = |text: &str| {
            words::expand(text, escape, &|n| scope.variable(n)).map_err(|m| fail(step.line, m))
        };
        let wrong = |m: String| fail(step.line, m);
        let state = &mut now.state;
        let mut notes = Vec::new();
        match &step.instruction {
            Instruction::From { .. } => return Err(fail(step.line, "FROM inside a stage")),
            Instruction::Unsupported(what) => return Err(wrong(what.clone())),
            Instruction::Arg(args) => {
                for (name, default) in args {
                    // A default that is not needed may be wrong: `ARG A=${B:?give A or B}`.
                    let needed = default
                        .as_ref()
                        .filter(|_| !self.request.build_args.contains_key(name));
                    let default = needed
                        .map(|d| words::expand(d, escape, &|n| state.variable(n)).map_err(wrong))
                        .transpose()?;
                    state.declare(
                        name,
                        default,
                        &self.request.build_args,
                        &self.plan.global_args,
                    );
                }
            }
            // All values of one instruction see the variables from before it.
            Instruction::Env(pairs) => {
                for (name, value) in pairs {
                    state.set_env((&expand(name)?, &expand(value)?));
                }
            }
            Instruction::Label(pairs) => {
                for (name, value) in pairs {
                    state.label(&expand(name)?, &expand(value)?);
                }
            }
            Instruction::Cmd(command) => state.set_cmd(command),
            Instruction::Entrypoint(command) => state.set_entrypoint(command),
            Instruction::Shell(words) => state.shell.clone_from(words),
            Instruction::User(user) => state.user = expand(user)?,
            Instruction::Expose(ports) => {
                let ports = words::expand_words(ports, escape, &|n| scope.variable(n));
                for port in ports.map_err(wrong)? {
                    if state.expose(&port).map_err(wrong)? {
                        notes.push(format!(
                            "warning: Dockerfile:{}: EXPOSE {port}: only the container's own port counts\n",
                            step.line
                        ));
                    }
                }
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    state.add_volume(&expand(path)?).map_err(wrong)?;
                }
            }
            Instruction::Stopsignal(signal) => {
                state.set_stop_signal(&expand(signal)?).map_err(wrong)?;
            }
            Instruction::Maintainer(name) => state.set_author(name),
            Instruction::Healthcheck => self.note(format!(
                "warning: Dockerfile:{}: HEALTHCHECK is written to the image's history, but not run: instances are watched through their port\n",
                step.line
            )),
            Instruction::Workdir(path) => {
                state.set_workdir(&expand(path)?);
                let announce = self.announce(stage, &step.text);
                return self.workdir(step, now, announce).await;
            }
            Instruction::Copy(copy) => {
                let announce = self.announce(stage, &step.text);
                return self.copy(stage, step, copy, now, announce).await;
            }
            Instruction::Run(run) => {
                let announce = self.announce(stage, &step.text);
                return self.run(step, run, now, announce).await;
            }
        }
        notes.into_iter().for_each(|note| self.note(note));
        let created = now.created.clone();
        now.state.remember(step.text.clone(), created, true);
        Ok(())
    }

    async fn finish(mut self) -> Result<Image, BuildError> {
        let target = self.plan.target;
        let Some(mut done) = self.done[target].take() else {
            return Err(BuildError::Failed("the target stage was not built".into()));
        };
        for (name, value) in &self.request.labels {
            done.state.label(name, value);
        }
        let created = done.created.as_deref().unwrap_or(EPOCH);
        let config = done.state.to_image(created).map_err(BuildError::Failed)?;
        let (images, tags) = (self.shared.images.clone(), self.request.tags.clone());
        tokio::task::spawn_blocking(move || images.create(config, &done.layers, &tags))
            .await
            .map_err(|e| BuildError::Failed(e.to_string()))?
            .map_err(|e| BuildError::Failed(e.to_string()))
    }
}
