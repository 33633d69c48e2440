//! Hostile Dockerfiles, build contexts and base images: a build reads and writes nothing of the host.
//!
//! The weakening is a builder that joins the paths it is given to its directories, and lets the kernel follow them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use wharf_build::{BuildRequest, Builder, Progress};
use wharf_sandbox::Mount;

use crate::case::{Case, Side, Walls};
use crate::node::{LOG_BYTES, Node};
use crate::world::{World, said};

const FOUND: &str = "the host's file";
const NOTHING: &str = "nothing";
const TRUSTING: &str = "a builder that trusts paths";

pub(crate) fn cases() -> Vec<Case> {
    let case = |name, about, how| {
        Case::outside(name, about, how)
            .expect(&[NOTHING])
            .without(TRUSTING, &[FOUND])
    };
    vec![
        case(
            "build-context-link",
            "COPY of a link in the context to the host's file",
            |world, side| copied(world, side, "leak", |_, context| Ok(context.join("leak"))),
        ),
        case(
            "build-context-parent",
            "COPY of what is above the context",
            |world, side| {
                copied(world, side, "../outside/victim", |_, context| {
                    Ok(context.join("../outside/victim"))
                })
            },
        ),
        case(
            "build-from-link",
            "COPY --from of what is below a link in an image",
            |world, side| {
                copied(world, side, "--from=probe /exit/victim", |world, _| {
                    Ok(world.layer_exit()?.join("victim"))
                })
            },
        ),
        case(
            "build-cache-id",
            "RUN --mount=type=cache whose id is a path",
            |world, side| {
                let id = format!(
                    "{}{}",
                    "../".repeat(12).trim_end_matches('/'),
                    world.outside().display()
                );
                let step = format!("RUN --mount=type=cache,id={id},target=/m");
                mounted(world, side, step, |world, cache| {
                    Ok(cache
                        .join("../".repeat(12))
                        .join(world.outside().strip_prefix("/")?))
                })
            },
        ),
        Case::outside(
            "build-target-link",
            "COPY to below a link in the base image",
            target,
        )
        .expect(&["nothing outside"])
        .without(TRUSTING, &["changed outside"]),
    ]
}

/// What a build of this Dockerfile in this context says, and the directory of its image's files if there is one.
async fn build(node: &Node, context: &Path, dockerfile: &str) -> Result<(String, Option<PathBuf>)> {
    let cache = node.place.dir.path().join("build");
    let builder = Builder::new(
        node.images.clone(),
        node.spawner.clone(),
        node.networks.clone(),
        cache,
    );
    let request = BuildRequest {
        context: context.to_owned(),
        dockerfile: dockerfile.to_owned(),
        tags: vec!["result:latest".to_owned()],
        ..BuildRequest::default()
    };
    let (sender, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let built = builder.build(request, sender).await;
    let mut output = Vec::new();
    while let Some(progress) = progress.recv().await {
        if let Progress::Output(part) = progress {
            output.extend(part);
        }
    }
    let mut text = String::from_utf8_lossy(&output).into_owned();
    let layer = match built {
        Ok(image) => node.images.lower_dirs(&image.layers)?.into_iter().next(),
        Err(error) => {
            text.push_str(&format!("\n{error}"));
            None
        }
    };
    Ok((text, layer))
}

/// What a builder would take that trusts the path; the second argument is its own directory.
type Source = fn(&World, &Path) -> Result<PathBuf>;

/// Beside the directory that the host's file is in.
fn context(world: &World) -> Result<PathBuf> {
    let context = world.place.path(&world.fresh("context"));
    symlink(world.marker(), context.join("leak"))?;
    fs::write(context.join("own"), "mine")?;
    Ok(context)
}

fn copied<'a>(
    world: &'a World,
    side: Side,
    source: &'static str,
    naive: Source,
) -> LocalBoxFuture<'a, Result<String>> {
    async move {
        let context = context(world)?;
        let secret = fs::read(world.marker())?;
        let got = match side {
            Side::Held => {
                let node = Node::start(world, LOG_BYTES).await?;
                let dockerfile = format!("FROM probe\nCOPY {source} /got");
                let (_, layer) = build(&node, &context, &dockerfile).await?;
                // Not followed here either: a link in the image is the container's matter.
                let got = layer.map(|layer| layer.join("got"));
                let got = got.filter(|got| got.symlink_metadata().is_ok_and(|m| m.is_file()));
                let got = got.map(fs::read).transpose()?;
                node.end().await;
                got
            }
            Side::Weak => {
                let got = world.place.path(&world.fresh("copied")).join("got");
                fs::copy(naive(world, &context)?, &got)?;
                Some(fs::read(got)?)
            }
        };
        Ok(if got == Some(secret) { FOUND } else { NOTHING }.to_owned())
    }
    .boxed_local()
}

/// Whether a RUN step with this mount finds the host's file in it.
fn mounted(
    world: &World,
    side: Side,
    step: String,
    naive: Source,
) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        match side {
            Side::Held => {
                let node = Node::start(world, LOG_BYTES).await?;
                let dockerfile =
                    format!("FROM probe\n{step} [\"/probe\", \"read-file\", \"/m/victim\"]");
                let (text, _) = build(&node, &context(world)?, &dockerfile).await?;
                node.end().await;
                // Refused, or mounted and empty.
                Ok(said(&text).unwrap_or_else(|| NOTHING.to_owned()))
            }
            Side::Weak => {
                let cache = world.place.path("build/mounts");
                let mut setup = world.setup("mounted", "read-file", &["/m/victim".to_owned()])?;
                setup.spec.mounts.push(Mount::Bind {
                    source: naive(world, &cache)?,
                    target: "/m".into(),
                    read_only: true,
                });
                world.run(&Walls::ALL, setup).await
            }
        }
    }
    .boxed_local()
}

fn target(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let before = fs::read(world.marker())?;
        match side {
            Side::Held => {
                let node = Node::start(world, LOG_BYTES).await?;
                let dockerfile = "FROM probe\nCOPY own /exit/victim";
                build(&node, &context(world)?, dockerfile).await?;
                node.end().await;
            }
            Side::Weak => {
                fs::write(world.layer_exit()?.join("victim"), "mine")?;
            }
        }
        let after = fs::read(world.marker())?;
        fs::write(world.marker(), &before)?;
        Ok(if after == before {
            "nothing outside"
        } else {
            "changed outside"
        }
        .to_owned())
    }
    .boxed_local()
}
