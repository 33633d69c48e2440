//! Whether a start takes longer where there is more of something: files in the image, images on the node, running instances.
//!
//! Owns: what there is more of, and that it is gone afterwards. The starts are the engine's, isolated; what is compared takes turns where it can.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::class::Class;
use crate::interrupt;
use crate::measure::{isolated, percentile};
use crate::place::{Place, run};
use crate::report::{Grown, Growth};
use crate::runtime::engine::{EngineRuntime, World};

/// Files beside the program in the large image, in directories of a hundred.
const FILES: usize = 50_000;
/// Bytes of each.
const FILE_BYTES: usize = 4096;
/// Images that nothing is started of.
const IMAGES: usize = 500;
/// Instances that run meanwhile.
const RUNNING: usize = 500;
/// What the others are compared with: measured again and again, as the machine is not the same at all times.
pub(crate) const ALONE: &str = "nothing more";
/// Turns of what is compared.
const TURNS: usize = 5;

/// `n` starts of each.
pub(crate) fn growth(
    runtime: &Arc<tokio::runtime::Runtime>,
    world: &World,
    place: &Place,
    class: &Class,
    n: usize,
) -> Result<Growth> {
    eprintln!("starts where there is more:");
    let mut starts = Starts {
        engine: EngineRuntime::new(runtime.clone(), world.clone()),
        n: n.div_ceil(TURNS),
        rows: Vec::new(),
    };
    let dir = place.dir().join("growth");
    let large = large_image(world, class, &dir)?;
    let what = format!("an image of {FILES} files more");
    starts.compare(&[(ALONE, class), (&what, &large)])?;
    for i in 0..IMAGES {
        interrupt::check()?;
        small_image(world, &dir, i)?;
    }
    starts.compare(&[(&format!("{IMAGES} images more"), class)])?;
    for i in 0..IMAGES {
        interrupt::check()?;
        world.images.remove(&small(i))?;
    }
    starts.compare(&[(ALONE, class)])?;
    let running = Running::start(runtime, world, class)?;
    starts.compare(&[(&format!("{RUNNING} instances more, running"), class)])?;
    running.end()?;
    starts.compare(&[(ALONE, class)])?;
    Ok(Growth { rows: starts.rows })
}

struct Starts {
    engine: EngineRuntime,
    n: usize,
    rows: Vec<Grown>,
}

impl Starts {
    fn compare(&mut self, all: &[(&str, &Class)]) -> Result<()> {
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); all.len()];
        for _ in 0..TURNS {
            for ((_, class), times) in all.iter().zip(&mut times) {
                times.extend(isolated(&mut self.engine, class, self.n)?);
            }
        }
        for ((what, _), mut times) in all.iter().zip(times) {
            eprintln!("  {what}");
            times.sort();
            self.rows.push(Grown {
                what: (*what).to_owned(),
                n: times.len(),
                p50_ms: percentile(&times, 0.5),
                p99_ms: percentile(&times, 0.99),
                max_ms: percentile(&times, 1.0),
            });
        }
        Ok(())
    }
}

/// The class's program among many files.
fn large_image(world: &World, class: &Class, dir: &Path) -> Result<Class> {
    let root = dir.join("large");
    fs::create_dir_all(&root)?;
    run(Command::new("tar")
        .arg("-xpf")
        .arg(&class.rootfs)
        .arg("-C")
        .arg(&root))?;
    for i in 0..FILES {
        let below = root.join(format!("d{}", i / 100));
        if i % 100 == 0 {
            interrupt::check()?;
            fs::create_dir(&below)?;
        }
        fs::write(below.join(i.to_string()), vec![b'x'; FILE_BYTES])?;
    }
    let large = Class {
        name: "large".to_owned(),
        rootfs: dir.join("large.tar"),
        argv: class.argv.clone(),
    };
    import(world, &large.image(), &root, &large.rootfs)?;
    Ok(large)
}

/// One that no other is like.
fn small_image(world: &World, dir: &Path, i: usize) -> Result<()> {
    let root = dir.join("small");
    fs::create_dir_all(&root)?;
    fs::write(root.join("number"), i.to_string())?;
    import(world, &small(i), &root, &dir.join("small.tar"))
}

fn small(i: usize) -> String {
    format!("wharf-bench/small-{i}:1")
}

fn import(world: &World, name: &str, root: &Path, tar: &Path) -> Result<()> {
    run(Command::new("tar")
        .arg("-cf")
        .arg(tar)
        .arg("-C")
        .arg(root)
        .arg("."))?;
    let file = fs::File::open(tar)?;
    world
        .images
        .import_rootfs(name, file)
        .with_context(|| format!("importing {name}"))?;
    Ok(())
}

/// Instances that do nothing.
struct Running<'a> {
    runtime: &'a tokio::runtime::Runtime,
    world: &'a World,
    /// These keep them reachable.
    networks: Vec<wharf_net::Network>,
}

impl<'a> Running<'a> {
    fn start(
        runtime: &'a tokio::runtime::Runtime,
        world: &'a World,
        class: &Class,
    ) -> Result<Running<'a>> {
        let mut running = Running {
            runtime,
            world,
            networks: Vec::new(),
        };
        for i in 0..RUNNING {
            interrupt::check()?;
            let network = runtime.block_on(world.run(class, &format!("running-{i}")))?;
            running.networks.push(network);
        }
        Ok(running)
    }

    fn end(self) -> Result<()> {
        for i in 0..RUNNING {
            let name = format!("running-{i}");
            self.runtime.block_on(self.world.remove(&name))?;
        }
        Ok(())
    }
}
