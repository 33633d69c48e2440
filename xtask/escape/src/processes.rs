//! Other processes, ways out of the file system, descriptors, the working directory, and the program's own file.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use wharf_sandbox::weak::Wall;
use wharf_sandbox::{Mount, Root};

use crate::case::{Case, Side, Walls};
use crate::world::{Setup, World};

const FOUND: &str = "the host's file";
/// A System V key that only the suite's victim has.
const KEY: &str = "20260801";

pub(crate) fn cases() -> Vec<Case> {
    let shared = "no PID namespace, no Landlock; no user namespace";
    let walls = || Walls::privileged(&[Wall::PidNamespace, Wall::Landlock]);
    let other = |name, about| {
        Case::inside(name, about)
            .arguments(|world, _| vec![world.victim().to_string()])
            .expect(&["ESRCH"])
            .weak(shared, walls(), &["worked"])
    };
    let marker = |name, about| {
        Case::inside(name, about)
            .arguments(|world, _| vec![world.marker()])
            .expect(&["nothing"])
    };
    vec![
        other("ptrace-host", "trace a process of the host's"),
        other("read-memory-host", "read a process's memory"),
        other("pidfd-getfd-host", "take a process's descriptor")
            .expect(&["pidfd_open: ESRCH", "pidfd_open: EINVAL"]),
        other("signal-host", "signal a process"),
        other("priority-host", "change a process's priority"),
        other("limits-host", "read a process's limits"),
        Case::inside(
            "signal-landlock",
            "signal a process whose number is seen: Landlock holds it",
        )
        .probe("signal-host")
        .since_linux(6, 12)
        .arguments(|world, _| vec![world.victim().to_string()])
        .held(Walls::privileged(&[Wall::PidNamespace]))
        .weak("no Landlock", walls(), &["worked"]),
        Case::inside("pidfd-getfd", "take a descriptor of a process of its own").weak(
            "no filter",
            Walls::without(&[Wall::Seccomp]),
            &["worked"],
        ),
        Case::inside("priority", "run before the machine's other processes")
            .emulated()
            .expect(&["EACCES"])
            .weak(
                "all capabilities, no user namespace",
                Walls::privileged(&[]),
                &["worked"],
            ),
        Case::inside("processes-seen", "list processes")
            .expect(&["itself"])
            .weak(
                "no PID namespace",
                Walls::without(&[Wall::PidNamespace]),
                &["others"],
            ),
        marker("double-chroot", "leave a chroot by a second one").weak(
            "chroot in place of pivot_root",
            Walls::without(&[Wall::Pivot]),
            &[FOUND],
        ),
        marker(
            "symbolic-links",
            "links to the host's files, and through /proc's own",
        )
        .weak("the host's directory is mounted", Walls::ALL, &[FOUND])
        .change(|world, side, setup| {
            if side == Side::Weak {
                setup.spec.mounts.push(world.outside_mounted());
            }
            Ok(())
        }),
        Case::inside("inherited-descriptors", "descriptors that nobody gave it")
            .expect(&["the standard ones"])
            .weak(
                "descriptors are kept at exec",
                Walls::without(&[Wall::Descriptors]),
                &["others"],
            ),
        marker(
            "leaked-directory",
            "the host's files by a directory's descriptor",
        )
        .change(|_, side, setup| {
            if side == Side::Weak {
                let root = OwnedFd::from(File::open("/")?);
                setup.fds.inherit.push((7, root));
            }
            Ok(())
        })
        .without("it is given the descriptor of the host's /", &[FOUND]),
        Case::outside(
            "exec-directory",
            "a process beside, in /proc/self/fd/N (CVE-2024-21626)",
            exec_directory,
        )
        .expect(&["nothing"])
        .weak("links of /proc are followed", Walls::ALL, &[FOUND]),
        Case::outside(
            "image-directory",
            "an image whose WORKDIR is /proc/self/fd/N (CVE-2024-21626)",
            image_directory,
        )
        .expect(&["nothing"])
        .weak("links of /proc are followed", Walls::ALL, &[FOUND]),
        Case::outside(
            "linked-directory",
            "an image whose WORKDIR is a link to /proc/self/fd/N",
            linked_directory,
        )
        .expect(&["nothing"])
        .weak("links of /proc are followed", Walls::ALL, &[FOUND]),
        Case::outside(
            "own-program",
            "change the daemon's program by /proc/self/exe (CVE-2019-5736)",
            own_program,
        )
        .expect(&["EROFS"])
        .weak(
            "it runs from no read-only mount; no user namespace",
            Walls::ALL,
            &["worked"],
        ),
        Case::outside(
            "linked-system-directories",
            "an image whose /proc, /sys or /dev is a link",
            linked_system,
        )
        .expect(&["not started"])
        .weak("the image's links are followed", Walls::ALL, &["started"])
        .emulated(),
        Case::outside(
            "linked-etc",
            "an image whose /etc leads to the host's, where files are mounted",
            linked_etc,
        )
        .expect(&["nothing outside"])
        .weak(
            "the image's links are followed",
            Walls::ALL,
            &["made outside"],
        ),
        Case::outside(
            "exec-filter",
            "a refused call by a process beside the main one",
            |world, side| beside(world, side, "keyctl", Wall::Seccomp),
        )
        .weak("no filter", Walls::ALL, &["worked"]),
        Case::outside(
            "exec-capabilities",
            "what a process beside the main one begins with",
            |world, side| beside(world, side, "capabilities", Wall::Capabilities),
        )
        .expect(&["Docker's at most"])
        .weak("all capabilities", Walls::ALL, &["more"])
        .emulated(),
        Case::outside(
            "joining-process",
            "the host's files by a process that is just being put into the container",
            joining,
        )
        .expect(&["nothing"])
        .weak(
            "it is dumpable; no Landlock, all capabilities, no user namespace",
            Walls::ALL,
            &[FOUND],
        ),
        Case::outside(
            "session-keyring",
            "the keyring of whoever started it (the filter is down)",
            session_keyring,
        )
        .expect(&["each its own"])
        .weak("none is made; no user namespace", Walls::ALL, &["one"]),
        Case::inside("host-paths", "paths of the host's, by mounts and disks")
            .arguments(|world, _| vec![world.own_name()])
            .change(|world, side, setup| {
                world.on_disk(setup)?;
                if side == Side::Weak {
                    setup.spec.mounts.push(world.outside_mounted());
                }
                Ok(())
            })
            .expect(&["none"])
            .without("the host's directory is mounted", &["/proc/self/mountinfo"]),
        Case::outside(
            "setuid-on-host",
            "a set-user-id program of an image, run by a user of the host's",
            setuid_on_host,
        )
        .expect(&["not run"])
        .without("the node's directories are open to all", &["root"]),
        Case::outside(
            "shared-memory",
            "System V shared memory of another container",
            shared_memory,
        )
        .expect(&["ENOENT"])
        .weak("no IPC namespace", Walls::ALL, &["another's"]),
    ]
}

fn exec_directory(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let walls = walls(side, &[Wall::MagicLinks]);
        let held = world
            .hold(&walls, world.setup("exec-directory", "stay", &[])?)
            .await?;
        let mut seen = "nothing".to_owned();
        for number in 0..40 {
            let cwd = format!("/proc/self/fd/{number}");
            let marker = world.marker();
            let id = world.fresh("exec");
            let got = held
                .exec(id, &cwd, &["/probe", "working-directory", &marker])
                .await?;
            if got == FOUND {
                seen = got;
            }
        }
        held.end().await?;
        Ok(seen)
    }
    .boxed_local()
}

fn image_directory(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    by_directory(world, side, |n, _| Ok(format!("/proc/self/fd/{n}"))).boxed_local()
}

fn linked_directory(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    by_directory(world, side, |n, layer| {
        symlink(format!("/proc/self/fd/{n}"), layer.join("work"))?;
        Ok("/work".to_owned())
    })
    .boxed_local()
}

async fn by_directory(
    world: &World,
    side: Side,
    directory: fn(i32, &Path) -> Result<String>,
) -> Result<String> {
    let walls = walls(side, &[Wall::MagicLinks]);
    // The spawner's numbers depend on how many processes it has made ahead. Behind the walls none
    // leads out, so that a few are enough.
    let numbers = match side {
        Side::Held => 3..32,
        Side::Weak => 3..160,
    };
    for number in numbers {
        let layer = world.place.path(&world.fresh("work-layer"));
        let mut setup = world.setup("directory", "working-directory", &[world.marker()])?;
        setup.spec.cwd = directory(number, &layer)?;
        // While it starts it holds one that leads out, wherever its number is.
        setup
            .fds
            .inherit
            .push((100, OwnedFd::from(File::open("/")?)));
        below(&mut setup, &layer);
        if world.run(&walls, setup).await? == FOUND {
            return Ok(FOUND.to_owned());
        }
    }
    Ok("nothing".to_owned())
}

/// A layer above the image's.
fn below(setup: &mut Setup, layer: &Path) {
    if let Root::Overlay { lower, .. } = &mut setup.spec.root {
        lower.insert(0, layer.to_owned());
    }
}

fn walls(side: Side, down: &[Wall]) -> Walls {
    match side {
        Side::Held => Walls::ALL,
        Side::Weak => Walls::without(down),
    }
}

/// The image's program is /proc/self/exe: the spawner's own file, which runs this function.
fn own_program(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let walls = match side {
            Side::Held => Walls::ALL,
            Side::Weak => Walls::privileged(&[Wall::ReadOnlyProgram]),
        };
        let mut setup = world.setup("own-program", "", &[])?;
        setup.spec.argv = vec!["/proc/self/exe".to_owned(), "--own-file".to_owned()];
        // Its C library is the host's.
        let libraries = ["/usr", "/lib", "/lib64"].map(Path::new);
        for source in libraries.into_iter().filter(|path| path.exists()) {
            setup.spec.mounts.push(Mount::Bind {
                source: source.to_owned(),
                target: source.to_owned(),
                read_only: true,
            });
        }
        world.run(&walls, setup).await
    }
    .boxed_local()
}

/// Sets the mode of its own file to what it is.
pub(crate) fn own_file() -> ExitCode {
    let own = Path::new("/proc/self/exe");
    let set = own.metadata().and_then(|m| {
        std::fs::set_permissions(own, PermissionsExt::from_mode(m.permissions().mode()))
    });
    let seen = match set.map_err(|e| e.raw_os_error()) {
        Ok(()) => "worked".to_owned(),
        Err(Some(30)) => "EROFS".to_owned(),
        Err(other) => format!("{other:?}"),
    };
    println!("{}", serde_json::json!({"probe": "own-file", "seen": seen}));
    ExitCode::SUCCESS
}

fn linked_system(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let walls = walls(side, &[Wall::Rooted]);
        for name in ["proc", "sys", "dev"] {
            let layer = world.place.path(&world.fresh("linked-layer"));
            std::fs::create_dir(layer.join("elsewhere"))?;
            symlink("elsewhere", layer.join(name))?;
            let mut setup = world.setup("linked-system", "processes-seen", &[])?;
            below(&mut setup, &layer);
            if world.run(&walls, setup).await? != "not started" {
                return Ok("started".to_owned());
            }
        }
        Ok("not started".to_owned())
    }
    .boxed_local()
}

fn linked_etc(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let walls = walls(side, &[Wall::Rooted]);
        // Not the directory whose picture must stay.
        let target = world.place.path(&world.fresh("linked-etc"));
        let layer = world.place.path(&world.fresh("etc-layer"));
        symlink(&target, layer.join("leads"))?;
        let mut setup = world.setup("linked-etc", "processes-seen", &[])?;
        below(&mut setup, &layer);
        setup.spec.mounts.push(Mount::File {
            target: "/leads/resolv.conf".into(),
            content: "mine".to_owned(),
        });
        world.run(&walls, setup).await?;
        match std::fs::read_dir(&target)?.next() {
            Some(_) => Ok("made outside".to_owned()),
            None => Ok("nothing outside".to_owned()),
        }
    }
    .boxed_local()
}

fn shared_memory(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let walls = walls(side, &[Wall::IpcNamespace]);
        let key = [KEY.to_owned()];
        let held = world
            .hold(
                &walls,
                world.setup("shared-memory", "hold-shared-memory", &key)?,
            )
            .await?;
        let seen = world
            .run(&walls, world.setup("shared-memory", "shared-memory", &key)?)
            .await;
        held.end().await?;
        seen
    }
    .boxed_local()
}

fn joining(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let walls = match side {
            Side::Held => Walls::ALL,
            Side::Weak => Walls::privileged(&[Wall::NotDumpable, Wall::Landlock]),
        };
        let setup = world.setup("joining-process", "watch", &[world.marker()])?;
        let Root::Overlay { upper, .. } = setup.spec.root.clone() else {
            anyhow::bail!("no overlay");
        };
        let held = world.hold(&walls, setup).await?;
        let seen = upper.join("seen");
        let most = if side == Side::Held { 60 } else { 2000 };
        for _ in 0..most {
            held.exec(world.fresh("exec"), "/", &["/probe", "processes-seen"])
                .await?;
            if seen.exists() {
                break;
            }
        }
        held.end().await?;
        Ok(if seen.exists() { FOUND } else { "nothing" }.to_owned())
    }
    .boxed_local()
}

fn session_keyring(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let mut walls = Walls::privileged(&[]);
        if side == Side::Weak {
            walls = Walls::privileged(&[Wall::Keyring]);
        }
        let first = world
            .run(&walls, world.setup("keyring", "session-keyring", &[])?)
            .await?;
        let second = world
            .run(&walls, world.setup("keyring", "session-keyring", &[])?)
            .await?;
        if first.parse::<i64>().is_err() {
            return Ok(first); // Refused.
        }
        Ok(if first == second {
            "one"
        } else {
            "each its own"
        }
        .to_owned())
    }
    .boxed_local()
}

/// Layers are on the host's disk as the image has them: a set-user-id program belongs to the host's root there.
fn setuid_on_host(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        use std::os::unix::process::CommandExt;

        use wharf_image::tar::{Entry, Kind, TarWriter};
        // As the node's is, so that workerd's users reach their sockets.
        let node = world.place.path(&world.fresh("node"));
        let mode =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
        mode(&node, 0o711)?;
        let images = wharf_image::ImageStore::open(&node.join("images"))?;
        let program = std::fs::read(world.layer().join("probe"))?;
        let mut entry = Entry::bare(Kind::File, b"setuid".to_vec());
        (entry.mode, entry.size) = (0o6755, program.len() as u64);
        let mut tar = TarWriter::new(Vec::new());
        tar.append(&entry, &mut program.as_slice())?;
        let image = images.import_rootfs("setuid:latest", tar.finish()?.as_slice())?;
        let layer = images.lower_dirs(&image.layers)?.remove(0);
        if side == Side::Weak {
            for directory in layer.ancestors().take_while(|path| *path != node) {
                mode(directory, 0o755)?;
            }
        }
        let ran = std::process::Command::new(layer.join("setuid"))
            .arg("setuid-program")
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output();
        let Ok(ran) = ran else {
            return Ok("not run".to_owned());
        };
        let said: serde_json::Value = serde_json::from_slice(&ran.stdout)?;
        Ok(said["seen"].as_str().unwrap_or_default().to_owned())
    }
    .boxed_local()
}

fn beside<'a>(
    world: &'a World,
    side: Side,
    probe: &'static str,
    wall: Wall,
) -> LocalBoxFuture<'a, Result<String>> {
    async move {
        let walls = walls(side, &[wall]);
        let held = world
            .hold(&walls, world.setup("beside", "stay", &[])?)
            .await?;
        let seen = held
            .exec(world.fresh("exec"), "/", &["/probe", probe])
            .await;
        held.end().await?;
        seen
    }
    .boxed_local()
}
