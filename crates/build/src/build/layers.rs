//! The steps that make layers: WORKDIR, COPY and ADD, RUN. Each computes its key, asks the cache, and else works on a fresh upper directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use tokio::sync::OwnedMutexGuard;
use wharf_image::{ImageStore, Layer};

use super::{Announce, Build, Done, Shared, blocking};
use crate::cache::{Key, Made, Scratch};
use crate::dockerignore::Dockerignore;
use crate::instruction::{CacheMount, Copy, Run, Step};
use crate::parse::fail;
use crate::plan::{self, Base};
use crate::source::Origin;
use crate::state::absolute;
use crate::tree::Tree;
use crate::trouble::{Context, Result as Tried, Trouble};
use crate::{BuildError, copy, instruction, leftovers, run, users, words};

/// Opens the merged tree of layers; with a scratch directory, writable.
fn open(images: &ImageStore, layers: &[Layer], scratch: Option<&Scratch>) -> Tried<Tree> {
    let lower = images.lower_dirs(layers)?;
    let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
    let upper = scratch.map(|s| (s.upper(), s.work()));
    wharf_sandbox::overlay::detached(&lower, upper.as_ref().map(|(u, w)| (&**u, &**w)))
        .map(Tree::new)
        .context(|| "merging the layers of the image".to_owned())
}

/// Turns what was written into a layer and remembers it.
fn commit(shared: &Shared, key: &str, scratch: &Scratch) -> Tried<Made> {
    let layer = match scratch.is_empty()? {
        true => None,
        false => Some(shared.images.commit_upper(&scratch.upper())?),
    };
    let created = jiff::Timestamp::now().to_string();
    shared.cache.put(key, Made { layer, created })
}

/// From the cache, if its layer is still there.
fn cached(shared: &Shared, key: &str, no_cache: bool) -> Tried<Option<Made>> {
    if no_cache {
        return Ok(None);
    }
    let Some(made) = shared.cache.get(key) else {
        return Ok(None);
    };
    if let Some(layer) = &made.layer {
        if !shared.images.has_layer(layer)? {
            return Ok(None);
        }
        shared.images.lower_dirs(std::slice::from_ref(layer))?;
    }
    Ok(Some(made))
}

impl Build {
    /// Makes the directory if it is not there; then it belongs to the current user, as Docker does it.
    pub(super) async fn workdir(
        &self,
        step: &Step,
        now: &mut Done,
        announce: Announce,
    ) -> Result<(), BuildError> {
        let shared = self.shared.clone();
        let (layers, no_cache) = (now.layers.clone(), self.request.no_cache);
        let (dir, user) = (now.state.workdir.clone(), now.state.user.clone());
        let made = blocking(step.line, move || {
            let tree = open(&shared.images, &layers, None)?;
            let walk = tree
                .walk(Path::new(&dir), None)
                .context(|| format!("WORKDIR {dir}"))?;
            if walk.missing.is_empty() {
                announce.say(true);
                return match walk.is_dir {
                    true => Ok(None),
                    false => Err(Trouble::Refused(format!(
                        "WORKDIR {dir}: it is a file in the image"
                    ))),
                };
            }
            let mut key = Key::new("workdir", &layers);
            key.list([dir.as_str(), user.as_str()]);
            let key = key.finish();
            if let Some(made) = cached(&shared, &key, no_cache)? {
                announce.say(true);
                return Ok(Some(made));
            }
            announce.say(false);
            let owner = users::owner(&tree, &user)?.ids;
            let scratch = Scratch::new(&shared.images)?;
            let tree = open(&shared.images, &layers, Some(&scratch))?;
            tree.walk(Path::new(&dir), Some(owner))
                .context(|| format!("making {dir}"))?;
            drop(tree);
            commit(&shared, &key, &scratch).map(Some)
        })
        .await?;
        match made {
            Some(made) => add(now, made, step.text.clone()),
            None => {
                let created = now.created.clone();
                now.state.remember(step.text.clone(), created, true);
            }
        }
        Ok(())
    }

    pub(super) async fn copy(
        &mut self,
        stage: usize,
        step: &Step,
        copy: &Copy,
        now: &mut Done,
        announce: Announce,
    ) -> Result<(), BuildError> {
        let (state, escape) = (&now.state, self.escape);
        let wrong = |m: String| fail(step.line, m);
        let expand =
            |text: &String| words::expand(text, escape, &|n| state.variable(n)).map_err(wrong);
        let mut job = copy::Job {
            dest: expand(&copy.dest)?,
            workdir: state.workdir.clone(),
            chown: copy.chown.as_ref().map(expand).transpose()?,
            chmod: copy.chmod.as_ref().map(expand).transpose()?,
            unpack: copy.unpack,
            inline: Vec::new(),
        };
        if job.dest.is_empty() {
            return Err(fail(
                step.line,
                "the destination is empty after substitution",
            ));
        }
        for heredoc in &copy.inline {
            let content = match heredoc.expand {
                true => words::expand_heredoc(&heredoc.content, &|n| state.variable(n))
                    .map_err(wrong)?,
                false => heredoc.content.clone(),
            };
            job.inline.push((heredoc.name.clone(), content));
        }
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = expand(source)?;
            if copy.add
                && let Some(refusal) = instruction::url(&source)
            {
                return Err(wrong(refusal));
            }
            sources.push(source);
        }
        let from = match &copy.from {
            None => None,
            Some(from) => Some(
                match plan::copy_source(&self.plan.stages, stage, from, step.line)? {
                    Base::Stage(i) => self.finished(i, step.line)?.layers.clone(),
                    Base::Image(reference) => self.image(&reference, step.line).await?.layers,
                    Base::Scratch => Vec::new(),
                },
            ),
        };
        let (shared, context) = (self.shared.clone(), self.context.clone());
        let (layers, no_cache) = (now.layers.clone(), self.request.no_cache);
        let (made, warnings) = blocking(step.line, move || {
            let origin = match from {
                None => context,
                Some(from) => Arc::new(Origin {
                    tree: open(&shared.images, &from, None)?,
                    context: false,
                    ignore: Dockerignore::default(),
                }),
            };
            let mut found = Vec::new();
            for source in &sources {
                found.extend(origin.find(source)?);
            }
            let mut key = Key::new(if job.unpack { "add" } else { "copy" }, &layers);
            // Joined, since `b` in /a and /a/b are the same; the slash decides what a file becomes.
            key.add(&absolute(&job.workdir, &job.dest));
            key.add(if job.dest.ends_with(['/', '.']) {
                "into"
            } else {
                "as"
            });
            key.add(if origin.context { "context" } else { "from" });
            key.list(job.chown.as_deref());
            key.list(job.chmod.as_deref());
            key.list(
                job.inline
                    .iter()
                    .flat_map(|(n, c)| [n.as_str(), c.as_str()]),
            );
            origin.hash(&found, &mut key.0)?;
            let key = key.finish();
            if let Some(made) = cached(&shared, &key, no_cache)? {
                announce.say(true);
                return Ok((made, Vec::new()));
            }
            announce.say(false);
            let scratch = Scratch::new(&shared.images)?;
            let target = open(&shared.images, &layers, Some(&scratch))?;
            let warnings = copy::write(&job, &origin, &found, &target)?;
            drop(target);
            Ok((commit(&shared, &key, &scratch)?, warnings))
        })
        .await?;
        for warning in warnings {
            self.note(format!("warning: Dockerfile:{}: {warning}\n", step.line));
        }
        add(now, made, step.text.clone());
        Ok(())
    }

    pub(super) async fn run(
        &self,
        step: &Step,
        run: &Run,
        now: &mut Done,
        announce: Announce,
    ) -> Result<(), BuildError> {
        let state = &now.state;
        let (argv, script) = run::command(run, &state.shell);
        let mut caches = run.caches.clone();
        for cache in &mut caches {
            for text in [&mut cache.target, &mut cache.id] {
                *text = words::expand(text, self.escape, &|n| state.variable(n))
                    .map_err(|m| fail(step.line, m))?;
            }
            cache.target = absolute(&state.workdir, &cache.target);
        }
        let env = state.run_env(&self.request.build_args);
        let shown_args = state.run_args();
        let mut key = Key::new("run", &now.layers);
        key.list(argv.iter().map(String::as_str));
        key.list(script.iter().flat_map(|(p, c)| [p.as_str(), c.as_str()]));
        key.list(state.variables());
        key.list([state.workdir.as_str(), state.user.as_str()]);
        key.add(if run.network { "network" } else { "no network" });
        key.list(
            caches
                .iter()
                .flat_map(|c| [c.target.as_str(), c.id.as_str()]),
        );
        let key = key.finish();

        let mut history = String::from("RUN ");
        if !shown_args.is_empty() {
            history.push_str(&format!("|{} {} ", shown_args.len(), shown_args.join(" ")));
        }
        history.push_str(&argv.join(" "));

        let (shared, no_cache, wanted) = (self.shared.clone(), self.request.no_cache, key.clone());
        if let Some(made) = blocking(step.line, move || cached(&shared, &wanted, no_cache)).await? {
            announce.say(true);
            add(now, made, history);
            return Ok(());
        }
        announce.say(false);
        if now.layers.is_empty() {
            return Err(fail(
                step.line,
                "RUN needs a program, and there are no files in this stage yet; build in another stage and COPY --from it",
            ));
        }

        let (shared, layers) = (self.shared.clone(), now.layers.clone());
        let (turns, caches) = self.cache_mounts(step.line, caches).await?;
        let (cwd, user, network) = (state.workdir.clone(), state.user.clone(), run.network);
        let (job, parent, placeholders) = blocking(step.line, move || {
            let job = run::Job {
                argv,
                env,
                cwd,
                user,
                lower: shared.images.lower_dirs(&layers)?,
                network,
                caches,
                script,
                scratch: Scratch::new(&shared.images)?,
                turns,
            };
            let parent = open(&shared.images, &layers, None)?;
            let points = run::mount_points(&job);
            let placeholders = leftovers::find(&parent, points.iter().map(PathBuf::as_path))?;
            Ok((job, parent, placeholders))
        })
        .await?;
        let (exit, scratch) = run::run(
            self.shared.spawner.clone(),
            self.shared.networks.clone(),
            job,
            self.progress.clone(),
        )
        .await
        .map_err(|e| e.at(step.line))?;
        if exit.code != 0 {
            return Err(BuildError::Run {
                line: step.line,
                command: step
                    .text
                    .strip_prefix("RUN ")
                    .unwrap_or(&step.text)
                    .to_owned(),
                code: exit.code,
            });
        }
        let shared = self.shared.clone();
        let made = blocking(step.line, move || {
            leftovers::remove(&placeholders, &scratch.upper(), &parent)?;
            commit(&shared, &key, &scratch)
        })
        .await?;
        add(now, made, history);
        Ok(())
    }

    /// Makes the directories of cache mounts and waits until no other RUN uses them. Taken in one order, so that builds cannot wait for each other in a ring.
    async fn cache_mounts(
        &self,
        line: usize,
        mounts: Vec<CacheMount>,
    ) -> Result<(Vec<OwnedMutexGuard<()>>, Vec<(PathBuf, CacheMount)>), BuildError> {
        let mut found = Vec::new();
        for m in mounts {
            let id = if m.id.is_empty() { &m.target } else { &m.id };
            let dir = self
                .shared
                .cache
                .mount(id, m.mode, m.uid, m.gid)
                .map_err(|e| e.at(line))?;
            found.push((dir, m));
        }
        let mut dirs: Vec<PathBuf> = found.iter().map(|(d, _)| d.clone()).collect();
        dirs.sort();
        dirs.dedup();
        let mut held = Vec::new();
        for dir in dirs {
            let lock = self
                .shared
                .turns
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(dir)
                .or_default()
                .clone();
            held.push(lock.lock_owned().await);
        }
        Ok((held, found))
    }
}

/// Puts what a step made on top. The image is as old as its newest layer, so that a build from the cache gives the same image again.
fn add(now: &mut Done, made: Made, text: String) {
    let newer = match (&now.created, made.created.parse::<jiff::Timestamp>()) {
        (Some(old), Ok(new)) => old.parse::<jiff::Timestamp>().map_or(true, |old| new > old),
        _ => true,
    };
    now.state
        .remember(text, Some(made.created.clone()), made.layer.is_none());
    if newer {
        now.created = Some(made.created);
    }
    now.layers.extend(made.layer);
}
