//! A thousand starts and stops leave the machine as it was.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::path::Path;

use self::common::{Node, Project, WRANGLERS, wait_until};

/// Asks for `n` lives of an object's container, one after the other: started, asked, destroyed.
const WORKER: &str = r#"import { DurableObject } from "cloudflare:workers";
export class Hello extends DurableObject {
  async live(n) {
    const container = this.ctx.container;
    for (let i = 0; i < n; i++) {
      container.start();
      const ended = container.monitor().catch(() => {});
      const answer = await container.getTcpPort(8080).fetch("http://container/");
      if (!answer.ok) throw new Error("life " + i + ": " + answer.status);
      await answer.arrayBuffer();
      await container.destroy();
      await ended;
    }
    return n;
  }
}
export class Counter extends DurableObject {}
export default { async fetch(request, env) {
  const url = new URL(request.url);
  const object = env.HELLO.getByName(url.searchParams.get("object"));
  return new Response(String(await object.live(Number(url.searchParams.get("n")))));
} };"#;

/// What could be left behind, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    processes: usize,
    daemon_descriptors: usize,
    spawner_descriptors: usize,
    namespaces: usize,
    mounts: usize,
    cgroups: usize,
    instances: usize,
    /// 64 KiB each; the node's own databases and logs breathe a little.
    disk_blocks: u64,
}

/// By how much a pool that was being filled may have been short.
const POOLS: usize = 8;

fn entries(dir: impl AsRef<Path>) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Directories in all cgroup hierarchies below the one that this node's spawner has.
fn cgroups(name: &str) -> usize {
    fn below(dir: &Path) -> usize {
        let children = std::fs::read_dir(dir).into_iter().flatten().flatten();
        children
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| 1 + below(&e.path()))
            .sum()
    }
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(base).unwrap().flatten().map(|e| e.path());
    std::iter::once(base.to_owned())
        .chain(hierarchies)
        .map(|h| below(&h.join(name)))
        .sum()
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
            Err(_) => 0, // Gone meanwhile.
        })
        .sum()
}

/// Distinct namespaces of the processes, and those that descriptors of the daemon or the spawner keep.
fn namespaces(pids: &[u32]) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    for pid in pids {
        for dir in ["ns", "fd"] {
            let links = std::fs::read_dir(format!("/proc/{pid}/{dir}"));
            for link in links.into_iter().flatten().flatten() {
                if let Ok(target) = std::fs::read_link(link.path())
                    && let Some(target) = target.to_str()
                    && target.contains(":[")
                    && !["pipe:", "socket:", "anon_inode:"]
                        .iter()
                        .any(|kind| target.starts_with(kind))
                {
                    seen.insert(target.to_owned());
                }
            }
        }
    }
    seen.len()
}

impl Machine {
    fn look(node: &Node) -> Machine {
        let spawner = node
            .processes()
            .into_iter()
            .find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|c| c.trim() == "wharf-spawner")
            })
            .expect("the spawner");
        let arguments = std::fs::read(format!("/proc/{spawner}/cmdline")).unwrap();
        let arguments = String::from_utf8(arguments).unwrap();
        // ..., the cgroups' name, the ids of containers.
        let cgroup_name = arguments.trim_end_matches('\0').rsplit('\0').nth(1);
        let cgroups = cgroups(cgroup_name.unwrap());
        assert!(cgroups > 0, "workerd has one: {arguments:?}");
        let mut pids = node.processes();
        pids.push(node.pid());
        Machine {
            processes: pids.len(),
            daemon_descriptors: entries(format!("/proc/{}/fd", node.pid())),
            spawner_descriptors: entries(format!("/proc/{spawner}/fd")),
            namespaces: namespaces(&pids),
            // Of this node alone: others on the machine mount, too.
            mounts: std::fs::read_to_string(format!("/proc/{}/mountinfo", node.pid()))
                .unwrap()
                .lines()
                .filter(|line| line.contains(node.data_dir().to_str().unwrap()))
                .count(),
            cgroups,
            instances: node.instance_directories(),
            disk_blocks: disk_bytes(&node.data_dir()) >> 16,
        }
    }

    fn is_within(&self, before: &Machine) -> bool {
        // Less is fine: networks of objects that have gone to sleep are let go. The pools may hold a few more, the daemon's log and databases may have
        // grown by some pages: nothing grows with each life.
        self.processes <= before.processes
            && self.daemon_descriptors <= before.daemon_descriptors + POOLS
            && self.spawner_descriptors <= before.spawner_descriptors + POOLS
            && self.namespaces <= before.namespaces + POOLS
            && self.mounts <= before.mounts
            && self.cgroups <= before.cgroups
            && self.instances <= before.instances
            && self.disk_blocks <= before.disk_blocks + 16
    }
}

#[test]
fn a_thousand_lives_leave_the_machine_as_it_was() {
    let node = Node::start();
    let project = Project::copy_of("hello");
    project.build_server("one");
    project.write("src/index.ts", WORKER);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    let live = |n: usize| {
        std::thread::scope(|scope| {
            for object in ["a", "b", "c", "d"] {
                let node = &node;
                scope.spawn(move || {
                    // Short of the client's limit per request.
                    for _ in 0..n.div_ceil(25) {
                        let answer =
                            node.get("hello", &format!("/api/x?object={object}&n={}", n.min(25)));
                        assert_eq!(answer.body, n.min(25).to_string(), "{}", node.log());
                    }
                });
            }
        });
    };
    // Once around, so that pools, caches and the objects' storage are there.
    live(5);
    let mut before = Machine::look(&node);
    // Until it is at rest: the pool fills up in the background, and workerd closes what it kept open.
    wait_until("the node at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = Machine::look(&node);
        std::mem::replace(&mut before, now.clone()) == now
    });
    live(250);
    let mut after = Machine::look(&node);
    let start = std::time::Instant::now();
    while !after.is_within(&before) && start.elapsed().as_secs() < 30 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        after = Machine::look(&node);
    }
    assert!(
        after.is_within(&before),
        "before {before:#?}\nafter {after:#?}"
    );
}
