//! How long a start takes, from the request to the first byte of output: without and with a user
//! namespace, with a disk as well, on gVisor's kernel (if runsc is there), and the floor (fork and
//! exec without any wall), in turn, one every 150 ms. On a busy machine the tenth percentile says
//! most. `cargo run --release -p wharf-sandbox --example start -- [n]`
#![allow(clippy::unwrap_used, reason = "a bench may stop at once")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use wharf_sandbox::{
    Capabilities, DiskMount, IdRanges, IsolationSpec, Limits, ProcessSpec, Root, SpawnFds, Spawner,
    SpawnerConfig, disk::Template, netns,
};

const SPAWNER: &str = "--spawner";
const LAYERS: usize = 5;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == SPAWNER) {
        return wharf_sandbox::spawner::run(&args);
    }
    let n = args.get(1).map_or(100, |n| n.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(bench(n));
    ExitCode::SUCCESS
}

struct Side {
    name: &'static str,
    spawner: Option<Spawner>,
    template: Option<Template>,
    isolation: IsolationSpec,
    times: Vec<Duration>,
}

async fn bench(n: usize) {
    let dir = PathBuf::from(format!("/var/tmp/wharf-start-{}", std::process::id()));
    let layers = dir.join("layers");
    for layer in 0..LAYERS {
        std::fs::create_dir_all(layers.join(layer.to_string()).join("bin")).unwrap();
    }
    std::fs::copy("/bin/busybox", layers.join("0/bin/busybox")).unwrap();
    let mut sides = vec![Side {
        name: "floor",
        spawner: None,
        template: None,
        isolation: IsolationSpec::Namespace,
        times: Vec::new(),
    }];
    let ids = IdRanges::default();
    let mut kinds = vec![
        ("no user namespace", "none", None, IsolationSpec::Namespace),
        (
            "user namespace",
            "users",
            Some(ids),
            IsolationSpec::Namespace,
        ),
        (
            "user namespace, disk",
            "disk",
            Some(ids),
            IsolationSpec::Namespace,
        ),
    ];
    let runsc = PathBuf::from("/usr/bin/runsc");
    if runsc.exists() {
        let isolation = IsolationSpec::Gvisor { runsc };
        kinds.push(("the same, gVisor", "disk-gvisor", Some(ids), isolation));
    }
    for (name, short, ids, isolation) in kinds {
        let template = short
            .starts_with("disk")
            .then(|| Template::make(&dir, 2_000_000_000).unwrap());
        let config = SpawnerConfig {
            socket: dir.join(short),
            command: vec!["/proc/self/exe".into(), SPAWNER.into()],
            grace_ms: 1000,
            cgroup_name: format!("wharf-start-{}-{short}", std::process::id()),
            ids,
        };
        let (spawner, _) = Spawner::start(config).await.unwrap();
        sides.push(Side {
            name,
            spawner: Some(spawner),
            template,
            isolation,
            times: Vec::new(),
        });
    }
    for round in 0..n + 3 {
        for side in &mut sides {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let time = match &side.spawner {
                None => floor(),
                Some(spawner) => start(spawner, side, &dir, round).await,
            };
            if round >= 3 {
                side.times.push(time);
            }
        }
    }
    for side in &mut sides {
        side.times.sort_unstable();
        let at = |q: f64| side.times[((side.times.len() - 1) as f64 * q) as usize].as_micros();
        println!(
            "{:20} p10 {:6} us  p50 {:6} us  p90 {:6} us  p99 {:6} us",
            side.name,
            at(0.1),
            at(0.5),
            at(0.9),
            at(0.99)
        );
        if let Some(spawner) = &side.spawner {
            spawner.shutdown().await.unwrap();
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

fn floor() -> Duration {
    let begin = Instant::now();
    let mut command = Command::new("/bin/busybox");
    let mut child = command
        .args(["echo", "x"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    let time = begin.elapsed();
    child.wait().unwrap();
    time
}

async fn start(spawner: &Spawner, side: &Side, dir: &Path, round: usize) -> Duration {
    let instance = dir.join(format!("i{round}"));
    let (upper, work) = (instance.join("upper"), instance.join("work"));
    for made in [&instance, &upper, &work] {
        std::fs::create_dir(made).unwrap();
    }
    let network: OwnedFd = netns::create(netns::Redirect {
        tcp_port: 1,
        dns_port: 2,
        ipv6: false,
    })
    .unwrap();
    let disk = side.template.as_ref().map(|it| it.disk().unwrap());
    let id = format!("i{round}");
    let spec = ProcessSpec {
        id: id.clone(),
        label: String::new(),
        argv: ["/bin/busybox", "echo", "x"].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: String::new(),
        root: Root::Overlay {
            lower: (0..LAYERS)
                .map(|n| dir.join("layers").join(n.to_string()))
                .collect(),
            upper,
            work,
        },
        hostname: Some("bench".into()),
        mounts: vec![],
        limits: Limits {
            memory_bytes: Some(256 << 20),
            cpu_millis: Some(1000),
            pids: Some(1024),
            nofile: Some(1024),
            disk_bytes: None,
        },
        stdin_pipe: false,
        disk: disk.as_ref().map(|disk| DiskMount {
            device: disk.device().to_owned(),
            at: instance.clone(),
        }),
        capabilities: Capabilities::default(),
        no_new_privileges: false,
        read_only: false,
        isolation: side.isolation.clone(),
    };
    let fds = SpawnFds {
        netns: Some(network),
        sys: None,
        disk: disk
            .as_ref()
            .map(|d| d.mount().try_clone_to_owned().unwrap()),
        image: None,
        inherit: vec![],
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let begin = Instant::now();
    let process = spawner.spawn(&spec, fds).await.unwrap();
    let mut byte = [0];
    std::fs::File::from(process.stdout)
        .read_exact(&mut byte)
        .unwrap();
    let time = begin.elapsed();
    spawner.wait(&id).await.unwrap();
    spawner.forget(&id).await.unwrap();
    if let Some(disk) = disk {
        disk.empty().unwrap();
    }
    std::fs::remove_dir_all(instance).unwrap();
    time
}
