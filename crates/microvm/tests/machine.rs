//! Containers in virtual machines: the same contract, another kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::Place;
use wharf_sandbox::Exit;

#[tokio::test]
async fn its_kernel_is_not_the_hosts_and_the_rest_is_as_asked() {
    let place = Place::new();
    let spawner = place.start().await;
    let script = "cat /proc/version; id -u; id -g; id -G; hostname; pwd; echo $A $HOME; \
        cat /etc/greeting; ulimit -n; touch made /tmp/also; ls -ln made; \
        echo to-stderr >&2; echo -n > /dev/null; grep Cap /proc/self/status; exit 42";
    let ran = place
        .run_with(&spawner, "c", script, |spec| {
            spec.user = "app".into();
            spec.cwd = "/home/app/work".into();
            spec.env.push("A=b".into());
            spec.limits.nofile = Some(99);
            spec.limits.memory_bytes = Some(256 << 20);
            spec.mounts = vec![support::file("/etc/greeting", "hello\n")];
        })
        .await;
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert!(ran.out.starts_with("Linux version"), "{ran:?}");
    assert!(!ran.out.contains(host.trim()), "{ran:?}");
    let wanted = "1000\n1001\n1001 50\ninside\n/home/app/work\nb /home/app\nhello\n99\n";
    assert!(ran.out.contains(wanted), "{ran:?}");
    assert!(ran.out.contains(" 1000     1001 "), "{ran:?}");
    assert!(ran.out.contains("CapEff:\t0000000000000000"), "{ran:?}");
    assert_eq!(ran.err, "to-stderr\n");
    let exit = Exit {
        code: 42,
        signal: None,
        oom_killed: false,
    };
    assert_eq!(ran.exit, exit);
    // On disk as with any other container: where a snapshot finds it, owned by the ids inside.
    use std::os::unix::fs::MetadataExt;
    for path in ["c-upper/home/app/work/made", "c-upper/tmp/also"] {
        let made = std::fs::metadata(place.dir.path().join(path)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 1001), "{path}");
    }
    place.finish(spawner).await;
}
