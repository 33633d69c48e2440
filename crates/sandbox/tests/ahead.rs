//! Processes that are made before it is known which container they become: what they become sees no
//! difference, and they leave nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use wharf_sandbox::{IdRanges, Limits, Spawner, SpawnerConfig};
use wharf_testkit::{is_alive, kill, until};

use self::support::{Place, Ran, all_is_made_ahead, children};

/// A spawner that has had a container, and has made others ahead since.
async fn warm(place: &Place) -> Spawner {
    let spawner = place.start().await;
    assert_eq!(place.run(&spawner, "first", "exit 0").await.exit.code, 0);
    all_is_made_ahead(&spawner, 0).await;
    spawner
}

/// Everything that a program can see of its walls and its place.
const LOOK: &str = r#"
id; pwd; hostname; umask; env | sort; ulimit -a
grep -v -E '^(Pid|NSpid|VmPeak|VmSize|VmHWM|VmRSS|Rss|VmData|VmStk|VmPTE|.*ctxt_switches|Cpus_allowed|Mems_allowed|NSpgid|NSsid|Ngid|Tgid|PPid|NStgid|SigQ|Threads)' /proc/self/status
cat /proc/self/cgroup /proc/self/uid_map /proc/self/gid_map /proc/self/oom_score_adj
cut -d ' ' -f 4- /proc/self/mountinfo | sed -e 's/ - overlay .*/ - overlay/' | sort
ls -l /proc/self/fd | sed -e 's/.* [0-9][0-9]:[0-9][0-9] //' -e 's/pipe:.*/pipe/' | sort
ps -o pid,ppid,pgid,sid,comm
for d in / /dev /dev/pts /dev/shm /sys/fs/cgroup /sys/fs/cgroup/*/ /proc/acpi /sys/firmware; do echo "$d:"; ls -lna "$d" | sed -e 's/[A-Z][a-z][a-z] [ 0-9:]* /when /' -e 's/^\(..........\) *[0-9]* /\1 /'; done
cat /proc/keys /proc/kcore 2>&1 | head -c 100
echo x > /proc/sys/kernel/hostname; echo $?
echo x > /sys/fs/cgroup/x; echo $?
mknod /dev/x c 1 3; echo $?
mount -t tmpfs x /tmp; echo $?
cat /etc/one; echo more >> /etc/one; echo $?
read line; echo "read $line"
"#;

/// Whether the process began before that time since the start of the machine, seconds.
fn began_before(pid: i32, time: f64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    // Field 22, in hundredths of a second (proc_pid_stat(5)).
    let ticks: f64 = after_name
        .split_whitespace()
        .nth(19)
        .unwrap()
        .parse()
        .unwrap();
    ticks / 100.0 < time
}

fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// Looks around in a container; whether it was made ahead.
async fn look(place: &Place, spawner: &Spawner, id: &str) -> (Ran, bool) {
    let (mut spec, fds) = place.container(id, LOOK);
    spec.stdin_pipe = true;
    spec.env.push("WHO=me".to_owned());
    spec.cwd = "/a/new/directory".to_owned();
    spec.user = "123:456".to_owned();
    spec.mounts = vec![support::file("/etc/one", "one\n")];
    spec.limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_millis: Some(500),
        pids: Some(100),
        nofile: Some(512),
        disk_bytes: None,
    };
    // The clock of /proc/PID/stat has hundredths.
    let before = uptime();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let process = spawner.spawn(&spec, fds).await.unwrap();
    let ahead = began_before(process.pid, before);
    let mut stdin = std::fs::File::from(process.stdin.unwrap());
    std::io::Write::write_all(&mut stdin, b"a line\n").unwrap();
    let (out, err) = (
        support::read_all(process.stdout),
        support::read_all(process.stderr),
    );
    let exit = spawner.wait(id).await.unwrap();
    let usage = spawner.usage(id).await.unwrap();
    assert!(
        usage.memory_peak_bytes.is_none_or(|peak| peak < 64 << 20),
        "{usage:?}"
    );
    let ran = Ran {
        exit,
        out: out.await.unwrap(),
        err: err.await.unwrap(),
    };
    spawner.forget(id).await.unwrap();
    (ran, ahead)
}

#[tokio::test]
async fn what_was_made_ahead_sees_what_an_ordinary_process_sees() {
    let place = Place::new();
    let spawner = place.start().await;
    let (ordinary, ahead) = look(&place, &spawner, "ordinary").await;
    assert!(!ahead);
    all_is_made_ahead(&spawner, 0).await;
    let (other, ahead) = look(&place, &spawner, "ahead").await;
    assert!(ahead);
    assert_eq!(ordinary.exit, other.exit);
    let ids = |ran: &Ran| {
        let map = ran.out.lines().find(|line| line.starts_with("         0 "));
        map.unwrap().to_owned()
    };
    assert_ne!(ids(&ordinary), ids(&other), "each has ids of its own");
    // What differs between any two: the host's ids, and the number of the cgroup, as the host's
    // mount of it shows it.
    let alike = |ran: &Ran| -> Vec<String> {
        let is_id = |word: &str| word.len() == 10 && word.parse::<u32>().is_ok();
        let is_cgroup = |word: &str| {
            let number = word.strip_prefix('c').map(str::parse::<u32>);
            number.is_some_and(|it| it.is_ok())
        };
        let line = |line: &str| {
            let words = line.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
            let words = words.map(|word| {
                let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
                match is_id(bare) || is_cgroup(bare) {
                    true => word.replace(bare, "N"),
                    false => word.to_owned(),
                }
            });
            words.collect()
        };
        ran.out.lines().map(line).collect()
    };
    let (one, two) = (alike(&ordinary), alike(&other));
    for (a, b) in one.iter().zip(&two) {
        assert_eq!(a, b, "{}", other.out);
    }
    assert_eq!(one.len(), two.len(), "{}\n{}", ordinary.out, other.out);
    assert_eq!(ordinary.err, other.err);
    assert!(
        other.out.ends_with("one\n1\nread a line\n"),
        "{}",
        other.out
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn they_hold_nothing_of_others_and_end_with_the_spawner() {
    let place = Place::new();
    let spawner = warm(&place).await;
    let (spec, fds) = place.container("long", "echo ready; sleep 1000");
    let process = spawner.spawn(&spec, fds).await.unwrap();
    assert_eq!(support::first_line(&process).await, "ready");
    all_is_made_ahead(&spawner, 1).await;
    let mut waiting = children(spawner.pid());
    assert!(waiting.remove(&process.pid));
    for pid in &waiting {
        // Standard streams, three pipes and a socket of its own, the user namespace, the Landlock
        // rules, and what is mounted for it.
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count();
        assert!(open <= 16, "{open} descriptors");
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert!(
            !mounts.contains(place.dir.path().to_str().unwrap()),
            "{mounts}"
        );
    }
    // It is killed: nobody is left to tell them, and they end.
    kill(spawner.pid().cast_signed());
    until("their end", || waiting.iter().all(|pid| !is_alive(*pid))).await;
    let (spawner, survivors) = place.start_with(20_000).await;
    assert!(survivors.is_empty());
    assert!(!is_alive(process.pid));
    place.finish(spawner).await;
}

#[tokio::test]
async fn ones_that_are_killed_are_made_again_and_nobody_notices() {
    let place = Place::new();
    let spawner = warm(&place).await;
    let before = children(spawner.pid());
    before.iter().for_each(|pid| kill(*pid));
    until("their end", || before.iter().all(|pid| !is_alive(*pid))).await;
    for n in 0..3 {
        let ran = place.run(&spawner, &format!("c{n}"), "echo fine").await;
        assert_eq!(ran.out, "fine\n");
    }
    all_is_made_ahead(&spawner, 0).await;
    assert!(children(spawner.pid()).is_disjoint(&before));
    place.finish(spawner).await;
}

#[tokio::test]
async fn requests_that_they_cannot_become_are_carried_out_all_the_same() {
    let place = Place::new();
    let spawner = warm(&place).await;
    let before = children(spawner.pid());
    let shared = place.path("shared");
    std::fs::write(shared.join("file"), "of the host\n").unwrap();
    let big = "x".repeat(100_000);
    let ran = place
        .run_with(&spawner, "long", "echo ${#BIG}", |spec| {
            spec.env.push(format!("BIG={big}"));
        })
        .await;
    assert_eq!(ran.out, "100000\n");
    let ran = place
        .run_with(&spawner, "bind", "cat /shared/file", |spec| {
            spec.mounts = vec![support::bind(&shared, "/shared", true)];
        })
        .await;
    assert_eq!(ran.out, "of the host\n");
    let ran = place
        .run_with(&spawner, "file", "wc -c < /big", |spec| {
            spec.mounts = vec![support::file("/big", &"y".repeat(3 << 20))];
        })
        .await;
    assert_eq!(ran.out.trim(), (3 << 20).to_string());
    // None was used.
    all_is_made_ahead(&spawner, 0).await;
    assert_eq!(children(spawner.pid()), before);
    place.finish(spawner).await;
}

#[tokio::test]
async fn they_keep_no_range_of_ids_from_who_asks_for_one() {
    let place = Place::new();
    let config = SpawnerConfig {
        ids: Some(IdRanges {
            first: 0x7000_0000,
            count: 20,
        }),
        ..place.config(20_000)
    };
    let (spawner, _) = Spawner::start(config).await.unwrap();
    let ran = place.run(&spawner, "first", "exit 0").await;
    assert_eq!(ran.exit.code, 0);
    // Not all that could be.
    support::has_children(&spawner, 4).await;
    let shared = place.path("shared");
    for n in 0..20 {
        let (mut spec, fds) = place.container(&format!("c{n}"), "sleep 1000");
        if n < 16 {
            // Nothing that was made ahead can become these.
            spec.mounts = vec![support::bind(&shared, "/shared", true)];
        }
        spawner.spawn(&spec, fds).await.unwrap();
    }
    let (spec, fds) = place.container("more", "true");
    let refused = spawner.spawn(&spec, fds).await.unwrap_err().to_string();
    assert!(refused.contains("all 20 id ranges"), "{refused}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn limits_are_the_containers_whatever_the_last_one_had() {
    const SHOWN: &str = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes pids.max pids/pids.max 2>/dev/null";
    const BOTH: (Option<u64>, Option<u64>) = (Some(64 << 20), Some(100));
    let place = Place::new();
    let spawner = place.start().await;
    let (twice, more, less) = (
        BOTH,
        (Some(128 << 20), Some(200)),
        (Some(32 << 20), Some(50)),
    );
    let none = (None, None);
    for (n, (memory_bytes, pids)) in [BOTH, twice, more, less, none, BOTH]
        .into_iter()
        .enumerate()
    {
        let before = children(spawner.pid());
        let ran = place
            .run_with(&spawner, &format!("c{n}"), SHOWN, |spec| {
                spec.limits = Limits {
                    memory_bytes,
                    pids,
                    ..Limits::default()
                };
            })
            .await;
        let shown: Vec<&str> = ran.out.split_whitespace().collect();
        let [memory, processes] = shown[..] else {
            panic!("{ran:?}")
        };
        match memory_bytes {
            Some(bytes) => assert_eq!(memory, bytes.to_string(), "{n}"),
            None => assert!(
                memory.parse().is_ok_and(|it: u64| it > 1 << 50) || memory == "max",
                "{memory}"
            ),
        }
        assert_eq!(
            processes,
            pids.map_or("max".to_owned(), |it| it.to_string()),
            "{n}"
        );
        all_is_made_ahead(&spawner, 0).await;
        // All but the first, and the one without limits, were made ahead; a limit cannot be taken
        // from what has one.
        let used = !before.is_subset(&children(spawner.pid()));
        assert_eq!(used, n != 0 && memory_bytes.is_some(), "{n}");
    }
    place.finish(spawner).await;
}
