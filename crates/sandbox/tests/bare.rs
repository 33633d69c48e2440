//! What a runtime in a bare root has and has not: the walls of workerd's processes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::OwnedFd;

use wharf_sandbox::Mount;

use self::support::{Place, bind, first_line, run};

/// No process can be started in there: everything is done by the shell itself.
const STATUS: &str = r#"
    while read -r line; do echo "$line"; done < /proc/self/status
    for n in 3 4 5; do read -r text <&$n; echo "got $text"; done
    for fd in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$fd ] && echo "open $fd"; done
    true
"#;

#[tokio::test]
async fn it_has_no_privileges_and_exactly_the_given_descriptors() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, mut fds) = place.bare("w", &["/bin/busybox", "sh", "-c", STATUS]);
    let pipe = |text: &str| {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(text.as_bytes()).unwrap();
        OwnedFd::from(read)
    };
    fds.inherit = vec![
        (4, pipe("four\n")),
        (3, pipe("three\n")),
        (5, pipe("five\n")),
    ];
    let ran = run(&spawner, &spec, fds).await.unwrap();
    let words: Vec<Vec<&str>> = ran
        .out
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    let text = format!("{ran:?}");
    let find = |name: &str| {
        words
            .iter()
            .find(|w| w.first() == Some(&name))
            .unwrap_or_else(|| panic!("{name}: {text}"))[1..]
            .to_vec()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(find(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(find("NoNewPrivs:"), ["1"]);
    let places: u64 = find("FDSize:")[0].parse().unwrap();
    assert!(
        places >= 8192,
        "its table of descriptors would grow: {text}"
    );
    assert_eq!(find("Seccomp:"), ["2"]);
    assert_eq!(find("Uid:"), ["12345"; 4]);
    assert_eq!(find("Gid:"), ["12345"; 4]);
    assert!(find("Groups:").is_empty());
    assert_eq!(find("NSpid:").len(), 1, "no other PID namespace: {text}");
    assert!(
        ran.out.contains("got three\ngot four\ngot five\n"),
        "{text}"
    );
    let open: Vec<&str> = words
        .iter()
        .filter(|w| w.first() == Some(&"open"))
        .map(|w| w[1])
        .collect();
    assert_eq!(open, ["0", "1", "2", "3", "4", "5"], "{text}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn its_namespaces_are_its_own() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.bare("w", &["/bin/busybox", "sleep", "1000"]);
    let process = spawner.spawn(&spec, fds).await.unwrap();
    let link = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let inside = link(&process.pid.to_string(), kind).unwrap();
        assert_ne!(inside, link("self", kind).unwrap(), "{kind}");
    }
    spawner.kill("w").await.unwrap();
    spawner.wait("w").await.unwrap();
    place.finish(spawner).await;
}

#[tokio::test]
async fn its_root_has_what_was_asked_for_and_nothing_else() {
    let place = Place::new();
    let spawner = place.start().await;
    let own = place.path("own");
    std::fs::write(own.join("given"), "").unwrap();
    std::os::unix::fs::chown(&own, Some(12345), Some(12345)).unwrap();
    let script = r#"
        echo text > "$OWN/written" && echo "wrote"
        for path in / /etc /dev /bin "$OWN"; do echo > "$path/new" 2>/dev/null; [ -e "$path/new" ] && echo "made $path/new"; done
        read -r line < /etc/resolv.conf; echo "read $line"
        read -r byte < /dev/null || echo "null works"
        : < /dev/urandom && echo "urandom works"
        for path in /* /dev/* /proc/*; do echo "seen $path"; done
        echo ready
        read -r forever <&3
    "#;
    let (mut spec, mut fds) = place.bare("w", &["/bin/busybox", "sh", "-c", script]);
    spec.env.push(format!("OWN={}", own.display()));
    spec.mounts.push(bind(&own, own.to_str().unwrap(), false));
    spec.mounts.push(Mount::File {
        target: "/etc/resolv.conf".into(),
        content: "nameserver 192.0.2.1\n".into(),
    });
    spec.cwd = own.to_str().unwrap().to_owned();
    let (read, write) = std::io::pipe().unwrap();
    fds.inherit = vec![(3, read.into())];
    let process = spawner.spawn(&spec, fds).await.unwrap();
    let mut seen = BTreeSet::new();
    let mut said = BTreeSet::new();
    loop {
        let line = first_line(&process).await;
        match line.split_once(' ') {
            Some(("seen", path)) => drop(seen.insert(path.to_owned())),
            _ if line == "ready" => break,
            _ => drop(said.insert(line)),
        }
    }
    let top = own.components().nth(1).unwrap().as_os_str();
    let top = format!("/{}", top.to_str().unwrap());
    let at_root: BTreeSet<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|path| path.matches('/').count() == 1)
        .collect();
    assert_eq!(
        at_root,
        BTreeSet::from(["/bin", "/dev", "/etc", "/proc", top.as_str()])
    );
    let devices: Vec<&String> = seen.iter().filter(|p| p.starts_with("/dev/")).collect();
    assert_eq!(
        devices,
        ["/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"]
    );
    let of_proc: Vec<&String> = seen.iter().filter(|p| p.starts_with("/proc/")).collect();
    assert_eq!(of_proc, ["/proc/1", "/proc/self", "/proc/thread-self"]);
    for line in [
        "wrote",
        "read nameserver 192.0.2.1",
        "null works",
        "urandom works",
    ] {
        assert!(said.contains(line), "{line}: {said:?}");
    }
    let made: Vec<&String> = said.iter().filter(|l| l.starts_with("made")).collect();
    assert_eq!(made, [&format!("made {}/new", own.display())]);
    assert_eq!(
        std::fs::read_to_string(own.join("written")).unwrap(),
        "text\n"
    );

    // The same as the host's root sees it, and nothing of it on the host.
    let root = format!("/proc/{}/root", process.pid);
    let names: BTreeSet<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| format!("/{}", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    assert_eq!(
        names.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        at_root
    );
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", process.pid)).unwrap();
    assert_eq!(
        mounts.lines().count(),
        4,
        "root, proc, busybox, its own directory: {mounts}"
    );
    drop(write);
    spawner.kill("w").await.unwrap();
    spawner.wait("w").await.unwrap();
    place.finish(spawner).await;
}

#[tokio::test]
async fn it_starts_no_other_process() {
    let place = Place::new();
    let spawner = place.start().await;
    let (spec, fds) = place.bare(
        "w",
        &["/bin/busybox", "sh", "-c", "/bin/busybox id; echo after"],
    );
    let ran = run(&spawner, &spec, fds).await.unwrap();
    assert!(!ran.out.contains("uid="), "{ran:?}");
    assert!(ran.err.contains("fork"), "{ran:?}");
    place.finish(spawner).await;
}
