//! A node that runs out of something: what runs is served on, what would start is refused with the
//! reason, and all is well as soon as there is room again.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use rustix::process::{Pid, Resource, Rlimit};
use serde_json::{Value, json};

use self::common::direct::World;
use self::common::{Node, spawner_of, wait_until};

/// Sets how many files a process may have open.
fn limit_files(pid: i32, files: u64) {
    let limit = Rlimit {
        current: Some(files),
        maximum: Some(20_000.max(files)),
    };
    rustix::process::prlimit(Pid::from_raw(pid), Resource::Nofile, limit).unwrap();
}

fn figure(world: &World, resource: &str) -> Value {
    let status = world.node.status();
    let figures = status["resources"].as_array().unwrap();
    figures
        .iter()
        .find(|f| f["resource"] == resource)
        .unwrap()
        .clone()
}

fn used(world: &World, resource: &str) -> u64 {
    figure(world, resource)["used"].as_u64().unwrap()
}

#[test]
fn out_of_descriptors_starts_are_refused_and_what_runs_is_served() {
    let world = World::new();
    world.start("a", Value::Null);
    let daemon = world.node.pid() as i32;
    // Room for two more or so.
    limit_files(daemon, (used(&world, "descriptors") + 60) * 4 / 3);
    let mut started = 1;
    let refusal = loop {
        assert!(
            started < 15,
            "never refused: {}",
            figure(&world, "descriptors")
        );
        let refusal = failure(&world, &format!("b{started}"));
        if !refusal.is_empty() {
            break refusal;
        }
        started += 1;
    };
    for part in ["file descriptors", "are kept for what runs", "uses most"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    let short = figure(&world, "descriptors");
    assert_eq!(short["short"], true, "{short}");
    assert_eq!(short["most"]["instances"], started);
    assert!(
        world.app("a", "/who").contains("8080"),
        "what runs is served"
    );

    // Nothing is left at all: nobody can be served then, but nobody's process is taken for dead.
    let workerd = world.node.workerd("direct");
    limit_files(daemon, 16);
    std::thread::sleep(std::time::Duration::from_secs(2));
    limit_files(daemon, 4096);
    assert_eq!(world.node.workerd("direct"), workerd);
    assert!(world.app("a", "/who").contains("8080"));
    world.start("after", Value::Null);

    // The same of the spawner.
    let (spawner, _) = spawner_of(&world.node);
    limit_files(spawner, 16);
    assert_ne!(failure(&world, "c"), "");
    limit_files(spawner, 4096);
    wait_until("the spawner to have room", || {
        failure(&world, "d").is_empty()
    });
    assert!(world.app("d", "/who").contains("8080"));
    assert_eq!(spawner_of(&world.node).0, spawner, "{}", world.node.log());
    assert!(world.app("a", "/who").contains("8080"));
}

/// Asks the app of `a` on this connection, and gives the status. The connection stays open.
fn ask_on(connection: &mut TcpStream) -> String {
    let body = "\"/who\"";
    let host = "direct.localhost";
    let length = body.len();
    let request =
        format!("POST /a/app HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // The app says its port at the end of what it says; a refusal ends the connection.
    loop {
        let read = connection.read(&mut chunk).unwrap();
        answer.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&answer);
        if read == 0 || text.ends_with("\r\n0\r\n\r\n") || text.contains("8080") {
            return text.split(' ').nth(1).unwrap_or_default().to_owned();
        }
    }
}

#[test]
fn with_few_descriptors_left_new_connections_are_turned_away_and_those_that_exist_are_served() {
    let world = World::new();
    world.start("a", Value::Null);
    let daemon = world.node.pid() as i32;
    let connect = || TcpStream::connect(world.node.gateway).unwrap();
    let mut kept = connect();
    assert_eq!(ask_on(&mut kept), "200");
    // A sixteenth is left, and an eighth is kept.
    let used = used(&world, "descriptors");
    limit_files(daemon, used * 16 / 15);
    assert_eq!(ask_on(&mut connect()), "503");
    assert_eq!(ask_on(&mut kept), "200", "what exists is served");
    limit_files(daemon, 4096);
    assert_eq!(ask_on(&mut connect()), "200");
}

/// Starts are refused for want of this, and everybody is told; what runs is served on. When there
/// is room again, starts go on by themselves.
fn refused_until(world: &World, resource: &str, name: &str, give_room: impl FnOnce()) {
    wait_until("the shortage to be seen", || {
        figure(world, resource)["short"] == true
    });
    let refusal = failure(world, "refused");
    for part in ["[503]", name, "are kept for what runs", "uses most"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    assert!(
        world.app("a", "/who").contains("8080"),
        "what runs is served"
    );
    let workerd = world.node.workerd("direct");
    give_room();
    wait_until("room", || figure(world, resource)["short"] == false);
    wait_until("a start", || failure(world, "afterwards").is_empty());
    assert!(world.app("afterwards", "/who").contains("8080"));
    assert_eq!(world.node.workerd("direct"), workerd, "nobody was ended");
    world.ask("afterwards", "destroy", Value::Null);
}

/// A cgroup with a limit of processes, removed in the end.
struct Cgroup {
    base: PathBuf,
    dir: PathBuf,
    pid: u32,
}

impl Cgroup {
    /// With this process in it; `None`: this machine cannot limit processes.
    fn around(pid: u32) -> Option<Cgroup> {
        let bases = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(PathBuf::from);
        let base = bases
            .into_iter()
            .find(|b| b.join("cgroup.procs").exists())?;
        let dir = base.join(format!("wharf-test-shortage-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let cgroup = Cgroup { base, dir, pid };
        cgroup.dir.join("pids.max").exists().then_some(())?;
        std::fs::write(cgroup.dir.join("cgroup.procs"), pid.to_string()).unwrap();
        Some(cgroup)
    }

    fn limit(&self, most: &str) {
        std::fs::write(self.dir.join("pids.max"), most).unwrap();
    }

    fn used(&self) -> u64 {
        let used = std::fs::read_to_string(self.dir.join("pids.current")).unwrap();
        used.trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Gone already, if the node was ended first.
        let _ = std::fs::write(self.base.join("cgroup.procs"), self.pid.to_string());
        let _ = std::fs::remove_dir(&self.dir);
    }
}

#[test]
fn out_of_process_ids_starts_are_refused_and_what_runs_is_served() {
    let world = World::new();
    world.start("a", Value::Null);
    let Some(cgroup) = Cgroup::around(world.node.pid()) else {
        eprintln!("no controller of process ids here");
        return;
    };
    cgroup.limit(&(cgroup.used() + 15).to_string());
    refused_until(&world, "processes", "process ids", || cgroup.limit("max"));
}

/// The machine's memory as the daemon sees it is a file of the test's, as in a container with lxcfs.
#[test]
fn out_of_memory_starts_are_refused_and_what_runs_is_served() {
    let mut node = Node::start();
    let file = node.dir.path().join("meminfo");
    let available = |mib: u64| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let lines = text.lines().map(|line| match line.split_once(':') {
            Some(("MemAvailable", _)) => format!("MemAvailable: {} kB", mib << 10),
            _ => line.to_owned(),
        });
        let text = lines.collect::<Vec<_>>().join("\n") + "\n";
        // In its place: it is mounted.
        std::fs::write(&file, text).unwrap();
    };
    available(4096);
    node.set_mounts(&format!("mount --bind {} /proc/meminfo", file.display()));
    let world = World::on(node, 60_000, "");
    world.start("a", Value::Null);
    available(200);
    refused_until(&world, "memory", "memory", || available(4096));
}

#[test]
fn out_of_disk_and_inodes_starts_are_refused_and_what_runs_is_served() {
    let mut node = Node::start();
    let instances = node.data_dir().join("instances");
    let options = "size=400m,nr_inodes=4000";
    node.set_mounts(&format!(
        "mount -t tmpfs -o {options} none {}",
        instances.display()
    ));
    let world = World::on(node, 60_000, "");
    world.start("a", Value::Null);
    // From outside: the file system is in the daemon's mount namespace alone.
    let inside = PathBuf::from(format!(
        "/proc/{}/root{}",
        world.node.pid(),
        instances.display()
    ));
    let big = inside.join(".big");
    let fill = std::fs::File::create(&big).unwrap();
    let found = rustix::fs::fstatvfs(&fill).unwrap();
    let free = found.f_bavail * found.f_frsize;
    rustix::fs::fallocate(
        &fill,
        rustix::fs::FallocateFlags::empty(),
        0,
        free - (10 << 20),
    )
    .unwrap();
    refused_until(&world, "disk", "disk space", || {
        std::fs::remove_file(&big).unwrap();
        drop(fill);
    });

    let many = inside.join(".many");
    std::fs::create_dir(&many).unwrap();
    let found = rustix::fs::statvfs(&many).unwrap();
    for n in 0..found.f_favail.saturating_sub(100) {
        std::fs::write(many.join(n.to_string()), "").unwrap();
    }
    refused_until(&world, "inodes", "inodes", || {
        std::fs::remove_dir_all(&many).unwrap();
    });
}

#[test]
fn out_of_id_ranges_starts_are_refused_until_one_is_given_back() {
    let world = World::with(60_000, "id_ranges = 3\n");
    world.start("a", Value::Null);
    let mut running = vec!["a".to_owned()];
    let refusal = loop {
        assert!(running.len() < 4, "never refused");
        let object = format!("b{}", running.len());
        let refusal = failure(&world, &object);
        if !refusal.is_empty() {
            break refusal;
        }
        running.push(object);
    };
    for part in ["id ranges", "containers.id_ranges"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    assert!(world.app("a", "/who").contains("8080"));
    let last = running.pop().unwrap();
    world.ask(&last, "destroy", Value::Null);
    wait_until("a start", || failure(&world, "after").is_empty());
    assert!(world.app("a", "/who").contains("8080"));
}

#[test]
fn without_loop_devices_starts_are_refused_until_there_are_some() {
    let mut node = Node::start();
    node.set_mounts("true");
    let world = World::on(node, 60_000, "");
    world.start("a", Value::Null);
    let pid = world.node.pid().to_string();
    let inside = |words: &[&str]| {
        let done = std::process::Command::new("nsenter")
            .args(["-t", &pid, "-m"])
            .args(words)
            .status();
        assert!(done.unwrap().success(), "{words:?}");
    };
    inside(&["mount", "--bind", "/dev/null", "/dev/loop-control"]);
    // Of a size for which no disk was made ahead.
    let size = json!({"instance": {"vcpu": 0.1, "memoryMib": 100, "diskMb": 333}});
    let refusal = failure_of(&world, "b", size.clone());
    assert!(refusal.contains("no disk for the instance"), "{refusal}");
    assert!(refusal.contains("loop"), "{refusal}");
    assert!(world.app("a", "/who").contains("8080"));
    inside(&["umount", "/dev/loop-control"]);
    wait_until("a start", || {
        failure_of(&world, "after", size.clone()).is_empty()
    });
    assert!(world.app("a", "/who").contains("8080"));
}

/// Why a start failed, as the caller who asks its app hears it; empty if it did not.
fn failure(world: &World, object: &str) -> String {
    failure_of(world, object, Value::Null)
}

fn failure_of(world: &World, object: &str, options: Value) -> String {
    world.ask(object, "start", options);
    let answer = world.ask(object, "app", json!("/who"));
    match answer["status"] == 200 {
        true => String::new(),
        false => {
            // Who waits for the end hears it as well.
            let end = world.end(object);
            assert!(end.contains("failed to start"), "{end}");
            answer.to_string()
        }
    }
}

#[test]
fn an_idle_container_holds_few_descriptors() {
    /// The daemon's: two pipes of output, the disk, the listeners for what comes in and goes out,
    /// the DNS socket, and the connection on which workerd waits for the end. The spawner's: two
    /// pipes, the disk, the process and its user namespace.
    const PROCESSES: [(&str, u64); 2] = [("descriptors", 7), ("spawner_descriptors", 5)];
    let world = World::new();
    let at_rest = || {
        let mut before = [0; 2];
        wait_until("descriptors at rest", || {
            std::thread::sleep(std::time::Duration::from_millis(6_000));
            let now = PROCESSES.map(|(process, _)| used(&world, process));
            std::mem::replace(&mut before, now) == before
        });
        before
    };
    world.start("a", Value::Null);
    let before = at_rest();
    for n in 0..8 {
        world.start(&format!("b{n}"), Value::Null);
    }
    let after = at_rest();
    for (n, (process, most)) in PROCESSES.into_iter().enumerate() {
        let each = (after[n] - before[n]).div_ceil(8);
        assert!(each <= most, "{process}: {each} each");
    }
    assert!(world.app("b0", "/who").contains("8080"));
}
