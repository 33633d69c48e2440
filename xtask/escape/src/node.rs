//! With an engine and the sockets of scripts: files that change while they are copied, output without end, and a script that asks for another's
//! container.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use http::Request;
use tokio::net::{UnixListener, UnixStream};
use wharf_docker_api::script::router;
use wharf_engine::{Create, Engine, EngineConfig, Limits, Owner};
use wharf_image::ImageStore;
use wharf_image::tar::{Entry, Kind, TarReader, TarWriter};
use wharf_net::{NetConfig, Networks};
use wharf_node::{ApplicationInfo, Applications};
use wharf_sandbox::Spawner;
use wharf_snapshot::{SnapshotConfig, Snapshots};
use wharf_testkit::Place;
use wharf_testkit::engine::shell;

use crate::case::{Case, Side};
use crate::world::World;

const FOUND: &str = "the host's file";
const NOTHING: &str = "nothing";
pub(crate) const LOG_BYTES: u64 = 1 << 20;
/// How often something is done while names change; and most times where it must be seen to go wrong.
const ROUNDS: (usize, usize) = (60, 200_000);

pub(crate) fn cases() -> Vec<Case> {
    let race = |name, about, how| {
        Case::outside(name, about, how).expect(&[NOTHING]).without(
            "files by the container's paths, as the host follows them",
            &[FOUND],
        )
    };
    vec![
        Case::outside(
            "log-flood",
            "output without end, which the host's disk would keep",
            log_flood,
        )
        .expect(&["within twice the limit"])
        .without("a limit of 64 MiB", &["beyond"]),
        race(
            "copy-in-race",
            "links that are swapped while files are copied in (CVE-2018-15664)",
            copy_in_race,
        ),
        race(
            "copy-out-race",
            "links that are swapped while files are copied out",
            copy_out_race,
        ),
        race(
            "snapshot-race",
            "links that are swapped while a snapshot is taken",
            snapshot_race,
        ),
        Case::outside(
            "script-names",
            "another script's container, by every way to write its name",
            script_names,
        )
        .expect(&[NOTHING])
        .without("the other script's socket", &["reached"]),
    ]
}

/// An engine with a spawner of its own.
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) spawner: Spawner,
    pub(crate) images: ImageStore,
    engine: Engine,
    pub(crate) networks: Networks,
    snapshots: Snapshots,
}

impl Node {
    pub(crate) async fn start(world: &World, log_bytes: u64) -> Result<Node> {
        let place = Place::new(&std::env::current_exe()?.display().to_string());
        let (spawner, survivors) = place.start(20_000).await;
        let images = ImageStore::open(&place.path("images"))?;
        images.import_rootfs("probe:latest", image(world)?.as_slice())?;
        let networks = Networks::new(NetConfig {
            pool_size: 0,
            hold_ms: 1000,
            dns_servers: Vec::new(),
            allow_private: false,
        });
        let config = EngineConfig {
            bandwidth_per_cpu: None,
            dir: place.path("instances"),
            log_bytes,
            stop_grace_ms: 500,
            adopt_idle_ms: 60_000,
            isolation: world.class.isolation(),
            preloads: 0,
            microvm: world.class.machines(place.path("guest"))?,
        };
        let engine = Engine::start(
            config,
            spawner.clone(),
            survivors,
            images.clone(),
            networks.clone(),
        )
        .await?;
        let snapshots = Snapshots::open(
            &place.path("snapshots"),
            SnapshotConfig {
                max_bytes: 32 << 20,
                owner_bytes: 64 << 20,
                ttl_ms: 3_600_000,
                offer_ms: 60_000,
            },
        )?;
        Ok(Node {
            place,
            spawner,
            images,
            engine,
            networks,
            snapshots,
        })
    }

    pub(crate) async fn end(self) {
        self.engine.remove_all(None).await;
        self.place.finish(&self.spawner).await;
    }

    async fn run(&self, owner: &Owner, name: &str, arguments: &[&str]) -> Result<()> {
        let mut cmd = vec!["/probe".to_owned()];
        cmd.extend(arguments.iter().map(|a| (*a).to_owned()));
        let create = Create {
            image: "probe".to_owned(),
            cmd,
            ..shell(owner, name, "")
        };
        self.engine.create(create).await?;
        Ok(self.engine.start_instance(owner, name).await?)
    }

    async fn output(&self, owner: &Owner, name: &str) -> Result<String> {
        let entries = self.engine.logs(owner, name).await?;
        let bytes: Vec<u8> = entries
            .into_iter()
            .filter(|e| !e.0)
            .flat_map(|e| e.2)
            .collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A container that swaps names in /race, and the number of its process.
    async fn swapping(&self, owner: &Owner) -> Result<i32> {
        self.run(owner, RACER, &["swap-links"]).await?;
        wharf_testkit::eventually("names are swapped", async || {
            let said = self.output(owner, RACER).await.unwrap_or_default();
            said.contains("holds").then_some(())
        })
        .await;
        self.engine
            .inspect(owner, RACER)
            .await?
            .pid
            .context("it has ended")
    }

    /// The socket of a script's process.
    fn socket(&self, script: &str) -> Result<PathBuf> {
        let path = self.place.dir.path().join(format!("{script}.sock"));
        if path.exists() {
            return Ok(path);
        }
        let router = router(
            script.to_owned(),
            self.engine.clone(),
            self.networks.clone(),
            self.snapshots.clone(),
            Arc::new(NoApplications),
        );
        let listener = UnixListener::bind(&path)?;
        tokio::spawn(wharf_docker_api::serve_unix(
            listener,
            router,
            std::future::pending::<()>(),
        ));
        Ok(path)
    }
}

const RACER: &str = "racer";

/// A script in whose stead nothing is created here.
struct NoApplications;

impl Applications for NoApplications {
    fn find<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<ApplicationInfo, String>> + Send + 'a>> {
        let found = Ok(ApplicationInfo {
            min_instances: 0,
            id: "app".to_owned(),
            name: "app".to_owned(),
            image: Some("probe".to_owned()),
            named_images: Vec::new(),
            limits: Limits::default(),
            largest: Limits::default(),
            max_instances: 9,
            variables: Vec::new(),
            isolation: None,
            no_new_privileges: false,
        });
        Box::pin(std::future::ready(found))
    }
}

/// The hostile program, /race with the path of the host's directory in it, and /exit, which leads there.
fn image(world: &World) -> Result<Vec<u8>> {
    let mut tar = TarWriter::new(Vec::new());
    let program = fs::read(world.layer().join("probe"))?;
    let outside = world.outside().display().to_string();
    for (path, content, mode) in [
        ("probe", &program[..], 0o755),
        ("race/outside", outside.as_bytes(), 0o644),
    ] {
        let mut entry = Entry::bare(Kind::File, path.as_bytes().to_vec());
        entry.mode = mode;
        entry.size = content.len() as u64;
        tar.append(&entry, &mut &content[..])?;
    }
    let mut exit = Entry::bare(Kind::Symlink, b"exit".to_vec());
    exit.link = outside.into_bytes();
    tar.append(&exit, &mut std::io::empty())?;
    Ok(tar.finish()?)
}

fn owner() -> Owner {
    Owner::Script("hostile".to_owned())
}

fn log_flood(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let limit = if side == Side::Held {
            LOG_BYTES
        } else {
            64 << 20
        };
        let node = Node::start(world, limit).await?;
        node.run(&owner(), "loud", &["log-flood", "8"]).await?;
        node.engine.wait(&owner(), "loud", false).await?;
        let kept = size(&node.place.dir.path().join("instances"))?;
        let seen = if kept <= 2 * LOG_BYTES {
            "within twice the limit"
        } else {
            "beyond"
        };
        node.end().await;
        Ok(seen.to_owned())
    }
    .boxed_local()
}

/// Bytes of all files below a directory; the instance's own disk has no name there.
fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() {
            size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(sum)
}

fn copy_in_race(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let node = Node::start(world, LOG_BYTES).await?;
        let pid = node.swapping(&owner()).await?;
        let mut seen = NOTHING;
        let marker = world.marker();
        let before = fs::read(&marker)?;
        match side {
            Side::Held => {
                let mut entry = Entry::bare(Kind::File, b"victim".to_vec());
                entry.size = 4;
                let mut tar = TarWriter::new(Vec::new());
                tar.append(&entry, &mut &b"mine"[..])?;
                let tar = tar.finish()?;
                let mut done = 0;
                for _ in 0..ROUNDS.0 {
                    let archive = Box::new(std::io::Cursor::new(tar.clone()));
                    // It may well be refused: there is a file, or a link to nowhere.
                    let extracted = node
                        .engine
                        .extract(&owner(), RACER, Path::new("/race/x"), 1 << 20, archive)
                        .await;
                    done += u32::from(extracted.is_ok());
                }
                anyhow::ensure!(done > 0, "nothing was ever copied in");
            }
            Side::Weak => {
                for _ in 0..ROUNDS.1 {
                    let _ = fs::write(format!("/proc/{pid}/root/race/x/victim"), "mine");
                    if fs::read(&marker)? != before {
                        break;
                    }
                }
            }
        }
        if fs::read(&marker)? != before {
            seen = FOUND;
            fs::write(&marker, before)?;
        }
        node.end().await;
        Ok(seen.to_owned())
    }
    .boxed_local()
}

/// Whether the host's file is among these bytes.
fn shows(world: &World, bytes: &[u8]) -> Result<bool> {
    let secret = fs::read(world.marker())?;
    Ok(bytes.windows(secret.len()).any(|window| window == secret))
}

/// As the host follows the container's paths.
fn by_path(world: &World, pid: i32) -> Result<&'static str> {
    for _ in 0..ROUNDS.1 {
        let read = fs::read(format!("/proc/{pid}/root/race/x/victim"));
        if shows(world, &read.unwrap_or_default())? {
            return Ok(FOUND);
        }
    }
    Ok(NOTHING)
}

fn copy_out_race(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let node = Node::start(world, LOG_BYTES).await?;
        let pid = node.swapping(&owner()).await?;
        let (mut seen, mut done) = (NOTHING, 0);
        if side == Side::Weak {
            seen = by_path(world, pid)?;
        }
        let socket = node.socket("hostile")?;
        for _ in 0..if side == Side::Held { ROUNDS.0 } else { 0 } {
            for path in ["/race/x", "/race/x/victim", "/race"] {
                let path = format!("/containers/{RACER}/archive?path={path}");
                let (status, bytes) = ask(&socket, "GET", &path).await?;
                done += u32::from(status == 200);
                if shows(world, bytes.as_bytes())? {
                    seen = FOUND;
                }
            }
        }
        node.end().await;
        anyhow::ensure!(side == Side::Weak || done > 0, "nothing was copied out");
        Ok(seen.to_owned())
    }
    .boxed_local()
}

fn snapshot_race(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let node = Node::start(world, LOG_BYTES).await?;
        let pid = node.swapping(&owner()).await?;
        let mut seen = NOTHING;
        if side == Side::Weak {
            seen = by_path(world, pid)?;
        }
        let socket = node.socket("hostile")?;
        let mut taken = 0;
        for round in 0..if side == Side::Held { ROUNDS.0 } else { 0 } {
            let path = ["/race/x", "/race"][round % 2];
            let (status, archive) = ask(
                &socket,
                "GET",
                &format!("/containers/{RACER}/archive?path={path}/."),
            )
            .await?;
            if status != 200 {
                continue; // At that moment it was the link, which leads nowhere.
            }
            let mut tar = TarReader::new(archive.as_bytes());
            tar.next_entry()?.context("an archive with a token")?;
            let mut token = [0; 64];
            let length = tar.read_data(&mut token)?;
            let token = String::from_utf8_lossy(&token[..length]).into_owned();
            let (draft, _) = node
                .snapshots
                .take("script hostile", &token)
                .context("the token's snapshot")?;
            taken += 1;
            if holds(world, &draft.files())? {
                seen = FOUND;
            }
        }
        node.end().await;
        anyhow::ensure!(side == Side::Weak || taken > 0, "no snapshot was taken");
        Ok(seen.to_owned())
    }
    .boxed_local()
}

/// Whether a file below has what the host's has. Links are not followed.
fn holds(world: &World, dir: &Path) -> Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let found = match (kind.is_dir(), kind.is_file()) {
            (true, _) => holds(world, &entry.path())?,
            (_, true) => shows(world, &fs::read(entry.path())?)?,
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn script_names(world: &World, side: Side) -> LocalBoxFuture<'_, Result<String>> {
    async move {
        let node = Node::start(world, LOG_BYTES).await?;
        let victim = Owner::Script("victim".to_owned());
        let theirs = format!("workerd-victim-Box-{}", "ab".repeat(32));
        node.run(&victim, &theirs, &["stay"]).await?;
        let before = node.engine.inspect(&victim, &theirs).await?;
        let id = &before.id;
        let socket = node.socket(if side == Side::Held {
            "hostile"
        } else {
            "victim"
        })?;
        let own = format!("workerd-hostile-Box-{}", "ab".repeat(32));
        let mut seen = NOTHING;
        for name in [
            theirs.clone(),
            id.clone(),
            id[..12].to_owned(),
            id[..4].to_owned(),
            format!("%2F{theirs}"),
            format!("..%2F{theirs}"),
            format!("{own}%2F..%2F{theirs}"),
            format!("{own}%00{theirs}"),
            theirs.replace('w', "%77").replace('-', "%2D"),
            format!("../victim/containers/{theirs}"),
        ] {
            for (method, rest) in [
                ("GET", "/json"),
                ("POST", "/start"),
                ("GET", "/archive?path=/"),
                ("HEAD", "/archive?path=/probe"),
                ("PUT", "/archive?path=/"),
                ("POST", "/exec"),
                ("GET", "/logs?stdout=1"),
                ("POST", "/rename?name=mine"),
                ("POST", "/kill?signal=SIGUSR2"),
            ] {
                let (status, _) =
                    ask(&socket, method, &format!("/containers/{name}{rest}")).await?;
                // 501: the socket does not have the operation, whichever container it names.
                if !matches!(status, 400 | 404 | 501) {
                    seen = "reached";
                }
            }
        }
        for path in [
            "/containers/json?all=1",
            "/images/json",
            "/info",
            "/wharf/status",
            "/v1.43/containers/json",
        ] {
            if !matches!(ask(&socket, "GET", path).await?.0, 404 | 501) {
                seen = "reached";
            }
        }
        node.end().await;
        Ok(seen.to_owned())
    }
    .boxed_local()
}

async fn ask(socket: &Path, method: &str, path: &str) -> Result<(u16, String)> {
    let stream = UnixStream::connect(socket).await?;
    let body = if method == "POST" { "{}" } else { "" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "localhost")
        .body(body.to_owned())?;
    // A connection that breaks off was no answer.
    match wharf_testkit::ask(stream, request).await {
        Ok(answer) => Ok((answer.status().as_u16(), answer.into_body())),
        Err(_) => Ok((400, String::new())),
    }
}
