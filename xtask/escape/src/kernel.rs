//! What a container may not ask of the kernel: mounts, its files, its calls, namespaces, sockets, devices, rights.

use wharf_sandbox::weak::Wall;

use crate::case::{Case, Walls};

const ROOT: &str = "no filter, all capabilities, no user namespace";

pub(crate) fn cases() -> Vec<Case> {
    let mut all = mounts();
    all.extend(files());
    all.extend(keys());
    all.extend(calls());
    all.extend(namespaces());
    all.extend(sockets());
    all.extend(devices());
    all.extend(privileges());
    all
}

fn of(name: &'static str, about: &'static str) -> Case {
    Case::inside(name, about)
}

/// With the host's root's power.
fn rooted(name: &'static str, about: &'static str, seen: &[&'static str]) -> Case {
    of(name, about).weak(ROOT, Walls::privileged(&[]), seen)
}

/// The call reaches the kernel, which refuses its arguments.
fn filtered(name: &'static str, about: &'static str, seen: &[&'static str]) -> Case {
    of(name, about).weak("no filter", Walls::without(&[Wall::Seccomp]), seen)
}

fn mounts() -> Vec<Case> {
    let unmasked = Walls::privileged(&[Wall::Masks, Wall::ReadOnlySys]);
    vec![
        rooted("mount-tmpfs", "mount a tmpfs", &["worked"]).emulated(),
        rooted("mount-proc", "mount a /proc without masks", &["worked"]).emulated(),
        rooted("mount-sysfs", "mount a writable /sys", &["worked"]).emulated(),
        rooted(
            "mount-overlay",
            "mount an overlay of read-only directories",
            &["worked"],
        )
        .emulated(),
        rooted(
            "mount-cgroup",
            "mount the cgroup hierarchy, writable",
            &["worked"],
        )
        .emulated(),
        rooted(
            "mount-bind",
            "bind /proc/sys elsewhere, without its mask",
            &["worked"],
        )
        .emulated(),
        rooted(
            "mount-over-proc",
            "cover /proc with an own one",
            &["worked"],
        )
        .emulated(),
        rooted(
            "remount-proc-sys",
            "remount /proc/sys writable",
            &["worked"],
        )
        .emulated(),
        rooted("remount-sys", "remount /sys writable", &["worked"]).emulated(),
        rooted("unmask-keys", "unmount the mask of /proc/keys", &["worked"]).emulated(),
        rooted(
            "unmask-proc-sys",
            "unmount the read-only /proc/sys",
            &["worked"],
        )
        .emulated(),
        rooted("move-mount", "move a mount over another place", &["worked"]).emulated(),
        rooted("propagation", "make the root's mounts shared", &["worked"]).emulated(),
        rooted("pivot-root", "change the root by pivot_root", &["worked"]).emulated(),
        rooted("open-tree", "clone a mount by open_tree", &["worked"]),
        rooted(
            "move-mount-new",
            "attach a mount by move_mount",
            &["worked"],
        ),
        rooted("fsopen", "make a file system by fsopen", &["worked"]),
        rooted("fspick", "reconfigure a file system by fspick", &["worked"]),
        rooted(
            "mount-setattr",
            "make /sys writable by mount_setattr",
            &["worked"],
        ),
        of(
            "release-agent",
            "a cgroup of version 1 with a program of the host's at its end (CVE-2022-0492)",
        )
        .weak(ROOT, unmasked, &["worked"])
        .needs("/sys/fs/cgroup/pids/release_agent")
        .emulated(),
    ]
}

fn files() -> Vec<Case> {
    let open = "no masked or read-only paths; no user namespace";
    let unmasked = || Walls::privileged(&[Wall::Masks, Wall::ReadOnlySys]);
    let write = |name, about| {
        of(name, about)
            .expect(&["EROFS", "EACCES"])
            .weak(open, unmasked(), &["worked"])
    };
    vec![
        write(
            "sysrq-trigger",
            "write to /proc/sysrq-trigger (opened only)",
        )
        .expect(&["EROFS", "EACCES", "ENOENT"])
        .needs("/proc/sysrq-trigger"),
        write(
            "core-pattern",
            "name a program for the host's core dumps (opened only)",
        )
        .needs("/proc/sys/kernel/core_pattern"),
        write("sysctl-kernel", "write /proc/sys/kernel/panic (as it is)"),
        write(
            "sysctl-vm",
            "write /proc/sys/vm/overcommit_memory (as it is)",
        ),
        write(
            "sysctl-net",
            "write a setting of its own network, which the sandbox has made",
        )
        .emulated(),
        write(
            "irq-affinity",
            "say which cores the host's interrupts go to (opened only)",
        )
        .needs("/proc/irq/default_smp_affinity"),
        write(
            "sysfs-write",
            "write a setting of the host's memory in /sys (as it is)",
        )
        .needs("/sys/kernel/mm/ksm/run"),
        write(
            "uevent-helper",
            "have the host told of a device's event (opened only)",
        )
        .needs("/sys/devices/virtual/mem/null/uevent"),
        write("cgroup-limit", "raise a limit of its own cgroup (as it is)"),
        write("cgroup-child", "make a cgroup of its own"),
        of(
            "oom-score",
            "be the last one that is killed when memory runs out",
        )
        .emulated()
        .expect(&["EACCES"])
        .weak(ROOT, Walls::privileged(&[]), &["worked"])
        .needs_capability("CAP_SYS_RESOURCE", 24),
        of("kcore", "read the machine's memory by /proc/kcore")
            .expect(&["empty", "ENOENT"])
            .weak(open, unmasked(), &["content"])
            .needs("/proc/kcore"),
        of("proc-keys", "list keys by /proc/keys")
            .expect(&["empty"])
            .weak(open, unmasked(), &["content"])
            .needs("/proc/keys"),
        of(
            "timer-list",
            "list the host's timers, with addresses of the kernel",
        )
        .expect(&["empty"])
        .weak(open, unmasked(), &["content"])
        .needs("/proc/timer_list"),
        of(
            "interrupts",
            "count the host's interrupts, which tells keystrokes",
        )
        .expect(&["empty"])
        .weak(open, unmasked(), &["content"]),
        of("sys-firmware", "read the firmware's tables")
            .expect(&["empty", "ENOENT"])
            .weak(open, unmasked(), &["content"])
            .needs("/sys/firmware/acpi"),
        of("kmsg", "read the kernel's log by /proc/kmsg")
            .expect(&["EPERM", "EACCES"])
            .weak(open, unmasked(), &["worked"]),
        of("kpageflags", "read the state of the host's pages")
            .expect(&["EACCES", "ENOENT", "EPERM"])
            .weak(open, unmasked(), &["worked"])
            .emulated()
            .needs("/proc/kpageflags"),
        of("host-root-by-proc", "the host's files by /proc/<pid>/root")
            .arguments(|world, _| vec![world.marker()])
            .expect(&["nothing"])
            .weak(
                "no PID namespace, no Landlock; no user namespace",
                Walls::privileged(&[Wall::PidNamespace, Wall::Landlock]),
                &["the host's file"],
            ),
    ]
}

fn keys() -> Vec<Case> {
    vec![
        filtered("keyctl", "ask for a keyring", &["worked"]),
        filtered("add-key", "leave a key in the kernel", &["worked"]),
        filtered(
            "request-key",
            "have the host's program asked for a key",
            &["ENOKEY"],
        ),
    ]
}

fn calls() -> Vec<Case> {
    vec![
        rooted(
            "bpf",
            "load a program into the kernel",
            &["EFAULT", "EINVAL", "E2BIG"],
        ),
        filtered("perf-event-open", "count the machine's events", &["EFAULT"]),
        filtered("userfaultfd", "hold the kernel's faults up", &["EINVAL"]),
        filtered(
            "io-uring",
            "calls by a ring, which no filter sees",
            &["EFAULT"],
        )
        .emulated(),
        rooted(
            "kexec-load",
            "start another kernel",
            &["EINVAL", "EADDRNOTAVAIL"],
        )
        .may_lack("ENOSYS"),
        rooted(
            "init-module",
            "load a module",
            &["ENOEXEC", "EFAULT", "EINVAL"],
        )
        .may_lack("ENOSYS"),
        rooted("swapon", "swap to a file", &["ENOENT"]),
        rooted("swapoff", "take the host's swap away", &["ENOENT"]),
        rooted("reboot", "reboot (with wrong numbers)", &["EINVAL"]),
        filtered("clock-settime", "set the clock (to no time)", &["EINVAL"]),
        filtered(
            "settimeofday",
            "set the clock the old way (to no time)",
            &["EINVAL"],
        ),
        rooted("adjtimex", "adjust the clock (to what it is)", &["worked"]),
        rooted("syslog", "read the kernel's log", &["worked"]).emulated(),
        rooted("acct", "have every process noted", &["ENOENT"]),
        rooted(
            "quotactl",
            "change quotas of disks",
            &["ENOENT", "EINVAL", "ENODEV", "ENOSYS"],
        ),
        rooted("vhangup", "hang up a terminal", &["worked"]),
        rooted("fanotify", "watch the host's files", &["worked"]),
        filtered("mbind", "place memory on the host's nodes", &["EINVAL"]).emulated(),
        filtered("move-pages", "move another's pages", &["worked"]),
        filtered("kcmp", "compare the kernel's pointers", &["worked"]),
        filtered(
            "personality",
            "turn the randomness of addresses off",
            &["worked"],
        )
        .emulated(),
        rooted("ioperm", "a port of the hardware", &["worked"]).may_lack("ENOSYS"),
        rooted(
            "open-by-handle",
            "open a file by its handle, past every directory (\"shocker\")",
            &["worked"],
        ),
        filtered(
            "i386-door",
            "a call by the 32-bit door, with its other numbers",
            &["worked"],
        )
        .expect(&["ENOSYS"]),
        filtered(
            "type-into-terminal",
            "type into the terminal of who started it",
            &["ENOTTY"],
        )
        .emulated(),
        filtered(
            "clone3",
            "namespaces by clone3, whose flags no filter sees",
            &["EFAULT", "EINVAL"],
        )
        .expect(&["ENOSYS"]),
    ]
}

fn namespaces() -> Vec<Case> {
    vec![
        filtered("unshare-user", "a user namespace of its own", &["worked"]).emulated(),
        rooted("unshare-mount", "a mount namespace of its own", &["worked"]).emulated(),
        rooted(
            "unshare-net",
            "a network namespace of its own, without the daemon's rules",
            &["worked"],
        )
        .emulated(),
        rooted("unshare-pid", "a PID namespace of its own", &["worked"]).emulated(),
        rooted(
            "unshare-cgroup",
            "a cgroup namespace of its own",
            &["worked"],
        )
        .emulated(),
        rooted("unshare-time", "a clock of its own", &["worked"]).emulated(),
        filtered("clone-user", "a user namespace, by clone", &["worked"]).emulated(),
        rooted("clone-mount", "a mount namespace, by clone", &["worked"]).emulated(),
        filtered(
            "user-then-mount",
            "a user namespace, and mounts in it",
            &["mount worked"],
        )
        .emulated(),
        rooted("setns", "enter a namespace", &["worked"]),
        rooted("setns-pidfd", "enter a process's namespaces", &["worked"]),
        rooted("hostname", "another host name", &["worked"]).emulated(),
    ]
}

fn sockets() -> Vec<Case> {
    let network = "all capabilities, no user namespace";
    let strong = || Walls::privileged(&[]);
    vec![
        of("raw-socket", "packets of its own making")
            .weak(network, strong(), &["worked"])
            .emulated(),
        of("packet-socket", "frames of its own making")
            .weak(network, strong(), &["worked"])
            .emulated(),
        filtered("vsock", "the hypervisor's sockets", &["worked"])
            .expect(&["EAFNOSUPPORT"])
            .may_lack("EAFNOSUPPORT"),
        filtered("alg", "the kernel's cryptography", &["worked"])
            .expect(&["EAFNOSUPPORT"])
            .may_lack("EAFNOSUPPORT"),
        filtered(
            "other-families",
            "all other families of sockets",
            &["reached"],
        )
        .expect(&["none"]),
        of("abstract-socket", "an abstract socket of the host's")
            .arguments(|world, _| vec![world.abstract_name()])
            .expect(&["ECONNREFUSED"])
            .change(|_, side, setup| {
                if side == crate::case::Side::Weak {
                    setup.host_network()?;
                }
                Ok(())
            })
            .weak(
                "the host's network, no Landlock",
                Walls::without(&[Wall::Landlock]),
                &["worked"],
            ),
        of(
            "abstract-socket-landlock",
            "the same in the host's network: Landlock holds it",
        )
        .probe("abstract-socket")
        .since_linux(6, 12)
        .arguments(|world, _| vec![world.abstract_name()])
        .expect(&["EPERM"])
        .change(|_, _, setup| {
            setup.host_network()?;
            Ok(())
        })
        .weak(
            "no Landlock",
            Walls::without(&[Wall::Landlock]),
            &["worked"],
        ),
        rooted(
            "flush-rules",
            "take away the rules that lead its traffic to the daemon",
            &["worked"],
        )
        .emulated(),
        rooted("add-address", "an address of its own", &["worked"]).emulated(),
        rooted("add-route", "a route of its own", &["worked"]).emulated(),
        rooted("link-down", "change an interface", &["worked"]).emulated(),
        rooted("add-link", "an interface of its own", &["worked"]).emulated(),
    ]
}

fn devices() -> Vec<Case> {
    let open = "device nodes open; no user namespace";
    let nodes = || Walls::privileged(&[Wall::NoDevices]);
    vec![
        of(
            "mknod-kmsg",
            "make the node of the kernel's log, and open it",
        )
        .weak(open, nodes(), &["opened"]),
        of(
            "mknod-disk",
            "make the node of another instance's disk, and open it",
        )
        .arguments(|world, _| world.other_disk())
        .weak(open, nodes(), &["opened"]),
        of("mknod-in-dev", "the same in /dev").weak(open, nodes(), &["opened"]),
        of(
            "mknod-no-users",
            "without a user namespace a node can be made, and does not open",
        )
        .probe("mknod-kmsg")
        .held(Walls {
            users: false,
            ..Walls::ALL
        })
        .expect(&["made, open: EACCES"])
        .weak(open, nodes(), &["opened"]),
        of("layer-device", "open a node that the image brings along")
            .arguments(|_, _| vec!["/device".to_owned()])
            .expect(&["EACCES"])
            .weak(open, nodes(), &["worked"]),
    ]
}

/// By a user who is not root, in the image's set-user-id program, so that the user is root inside.
fn set_user_id(name: &'static str, about: &'static str, probe: &'static str) -> Case {
    of(name, about).probe(probe).change(|_, _, setup| {
        setup.spec.argv[0] = "/probe-suid".to_owned();
        setup.spec.user = "app".to_owned();
        Ok(())
    })
}

/// What such a program may do for the user, and what neither it nor root may.
fn set_user_id_programs() -> Vec<Case> {
    let power = "no filter, all capabilities, no user namespace, no no_new_privs";
    let powerful = |more: &[Wall]| {
        let mut all = vec![Wall::NoNewPrivs];
        all.extend_from_slice(more);
        Walls::privileged(&all)
    };
    let no_users = |down: &[Wall]| Walls {
        users: false,
        ..Walls::without(down)
    };
    vec![
        set_user_id(
            "setuid-no-users",
            "a set-user-id program where root inside is the host's root",
            "setuid-program",
        )
        .held(no_users(&[]))
        .expect(&["not root"])
        .weak("no no_new_privs", no_users(&[Wall::NoNewPrivs]), &["root"])
        .emulated(),
        set_user_id(
            "setuid-host-user",
            "who the root that a set-user-id program gives is to the host",
            "host-user",
        )
        .emulated()
        .expect(&["nobody"])
        .weak(
            "no user namespace, no no_new_privs",
            no_users(&[Wall::NoNewPrivs]),
            &["the host's root"],
        ),
        set_user_id(
            "setuid-capabilities",
            "what a set-user-id program gives a user",
            "capabilities",
        )
        .expect(&["Docker's at most"])
        .weak(
            "all capabilities",
            Walls::without(&[Wall::Capabilities]),
            &["more"],
        )
        .emulated(),
        set_user_id(
            "setuid-raise-capability",
            "a capability that root inside does not have, in a set-user-id program",
            "raise-capability",
        )
        .weak(
            "all capabilities",
            Walls::without(&[Wall::Capabilities]),
            &["worked"],
        )
        .emulated(),
        set_user_id(
            "setuid-mount",
            "mount a /proc without masks, in a set-user-id program",
            "mount-proc",
        )
        .weak(power, powerful(&[]), &["worked"])
        .emulated(),
        set_user_id(
            "setuid-mknod",
            "make the node of the kernel's log in a set-user-id program, and open it",
            "mknod-kmsg",
        )
        .weak(power, powerful(&[Wall::NoDevices]), &["opened"]),
        set_user_id(
            "setuid-core-pattern",
            "set the host's handler of core dumps in a set-user-id program",
            "core-pattern",
        )
        .expect(&["EROFS", "EACCES"])
        .weak(
            power,
            powerful(&[Wall::Masks, Wall::ReadOnlySys]),
            &["worked"],
        ),
    ]
}

fn privileges() -> Vec<Case> {
    let gained = "no no_new_privs";
    let walls = || Walls::without(&[Wall::NoNewPrivs]);
    let mut all = set_user_id_programs();
    all.extend([
        set_user_id(
            "setuid-program",
            "a set-user-id program of the image, by a user, where no_new_privileges is asked for",
            "setuid-program",
        )
        .change(|_, _, setup| {
            setup.spec.argv[0] = "/probe-suid".to_owned();
            setup.spec.user = "app".to_owned();
            setup.spec.no_new_privileges = true;
            Ok(())
        })
        .expect(&["not root"])
        .weak(gained, walls(), &["root"])
        .emulated(),
        of(
            "file-capabilities",
            "a program with file capabilities in the image, by a user, where no_new_privileges is asked for",
        )
        .change(|_, _, setup| {
            setup.spec.argv[0] = "/probe-caps".to_owned();
            setup.spec.user = "app".to_owned();
            setup.spec.no_new_privileges = true;
            Ok(())
        })
        .expect(&["none"])
        .weak(gained, walls(), &["some"])
        .emulated(),
        of("capabilities", "what root begins with")
            .expect(&["Docker's at most"])
            .weak(
                "all capabilities",
                Walls::without(&[Wall::Capabilities]),
                &["more"],
            )
            .emulated(),
        of("raise-capability", "a capability that it does not have")
            .weak(
                "all capabilities",
                Walls::without(&[Wall::Capabilities]),
                &["worked"],
            )
            .emulated(),
        of("host-user", "who root is to the host")
            .emulated()
            .expect(&["nobody"])
            .weak(
                "no user namespace",
                Walls {
                    users: false,
                    ..Walls::ALL
                },
                &["the host's root"],
            ),
        of(
            "big-user-id",
            "become a user of the host that none inside is",
        )
        .emulated()
        .expect(&["EINVAL"])
        .weak(
            "no user namespace",
            Walls {
                users: false,
                ..Walls::ALL
            },
            &["worked"],
        ),
        of(
            "core-dump",
            "change the limit on core dumps to one at which the host's handler is started",
        )
        .expect(&["stays at 1"])
        .weak("no filter", Walls::without(&[Wall::Seccomp]), &["changed"])
        .emulated(),
    ]);
    all
}
