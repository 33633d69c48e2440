//! Containers that begin from the memory of a Python that has its imports done.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Read;
use std::os::fd::AsFd;

use wharf_sandbox::{PYTHON_RESUME, ProcessImage, ProcessSpec, Root, SpawnFds, Spawner};

use self::support::{Place, Ran, bind};

const LIMIT: u64 = 1 << 30;

/// A container with the host's Python.
fn python(place: &Place, id: &str, argv: &[&str]) -> (ProcessSpec, SpawnFds) {
    let (mut spec, fds) = place.container(id, "");
    let upper = place.path(&format!("{id}-upper"));
    spec.root = Root::Overlay {
        lower: std::env::var_os("FORKS_ROOT")
            .map(Into::into)
            .into_iter()
            .collect(),
        upper,
        work: place.path(&format!("{id}-work")),
    };
    for path in ["/usr", "/lib", "/lib64", "/bin"] {
        if std::path::Path::new(path).exists() {
            spec.mounts.push(bind(path.as_ref(), path, true));
        }
    }
    spec.argv = argv.iter().map(|word| (*word).to_owned()).collect();
    spec.env = vec!["PATH=/usr/bin:/bin".to_owned()];
    (spec, fds)
}

/// The memory of a Python that has imported these modules.
async fn prepared(
    place: &Place,
    spawner: &Spawner,
    modules: &[&str],
) -> Result<ProcessImage, String> {
    prepared_with(place, spawner, modules, |_| {}).await
}

async fn prepared_with(
    place: &Place,
    spawner: &Spawner,
    modules: &[&str],
    change: impl FnOnce(&mut ProcessSpec),
) -> Result<ProcessImage, String> {
    let argv = [&["python3", "-c", PYTHON_RESUME], modules].concat();
    let (mut spec, mut fds) = python(place, "prepared", &argv);
    change(&mut spec);
    spec.stdin_pipe = true;
    let (mut says, says_here) = std::io::pipe().unwrap();
    fds.inherit.push((3, says_here.into()));
    let process = spawner.spawn(&spec, fds).await.unwrap();
    let pid = process.pid;
    let image = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        says.read_to_string(&mut text).unwrap();
        match text.as_str() {
            "ready" => ProcessImage::capture(pid, LIMIT).map_err(|error| error.to_string()),
            _ => Err(text),
        }
    });
    let image = image.await.unwrap();
    spawner.kill("prepared").await.unwrap();
    spawner.wait("prepared").await.unwrap();
    spawner.forget("prepared").await.unwrap();
    image
}

/// Runs a command to its end, from the image; also why it was an ordinary start, if it was.
async fn run(
    place: &Place,
    spawner: &Spawner,
    image: &ProcessImage,
    id: &str,
    argv: &[&str],
    change: impl FnOnce(&mut ProcessSpec),
) -> (Ran, Option<String>) {
    let (mut spec, mut fds) = python(place, id, argv);
    change(&mut spec);
    fds.image = Some(image.as_fd().try_clone_to_owned().unwrap());
    let mut process = spawner.spawn(&spec, fds).await.unwrap();
    let note = process.not_restored.take();
    let (out, err) = (
        support::read_all(process.stdout),
        support::read_all(process.stderr),
    );
    let exit = spawner.wait(id).await.unwrap();
    let ran = Ran {
        exit,
        out: out.await.unwrap(),
        err: err.await.unwrap(),
    };
    spawner.forget(id).await.unwrap();
    (ran, note)
}

/// All that a program can see of how it was started.
const SEEN: &str = r#"
import ctypes, json, os, signal, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
getenv = libc.getenv
getenv.restype = ctypes.c_char_p
def answer(*call):
    return 0 if libc.syscall(*call) >= 0 else ctypes.get_errno()
keys = {"Name", "Pid", "NSpid", "PPid", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
        "Seccomp_filters", "Threads", "SigBlk", "SigIgn", "SigCgt", "TracerPid", "x86_Thread_features"}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
child = os.fork()
if child == 0:
    os._exit(9)
print(json.dumps({
    "status": {key: value.strip() for key, value in status.items() if key in keys},
    "argv": sys.argv, "orig": sys.orig_argv, "path": sys.path, "name": __name__, "file": globals().get("__file__"),
    "env": sorted(os.environ.items()), "libc": getenv(b"GIVEN").decode(),
    "cwd": os.getcwd(), "exe": os.readlink("/proc/self/exe"), "cmdline": open("/proc/self/cmdline").read(),
    "fds": sorted(os.listdir("/proc/self/fd"))[:3], "host": socket.gethostname(), "ids": os.getresuid() + os.getresgid(), "pid": os.getpid(),
    "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "child": os.waitpid(child, 0)[1],
    "limits": open("/proc/self/limits").read(), "cgroup": os.readlink("/proc/self/ns/cgroup") != os.readlink("/proc/1/ns/cgroup"),
    "refused": [answer(n, a, 0, 0, 0) for n, a in ((272, 0x10000000), (308, 0), (165, 0), (425, 0), (321, 0), (250, 0), (435, 0), (41, 38), (101, 16))],
    "write": answer(2, b"/proc/sys/kernel/hostname", 1),
}, indent=1))
"#;

fn with_app(program: &'static str) -> impl Fn(&mut ProcessSpec) {
    move |spec| {
        spec.mounts.push(support::file("/app/main.py", program));
        spec.cwd = "/app".to_owned();
        spec.user = "1234:1234".to_owned();
        spec.env.push("GIVEN=at the start".to_owned());
    }
}

#[tokio::test]
async fn a_restored_program_sees_what_one_from_the_beginning_sees() {
    let place = Place::new();
    let spawner = place.start().await;
    let image = prepared(
        &place,
        &spawner,
        &["json", "decimal", "random", "ctypes", "threading"],
    )
    .await
    .unwrap();
    for (number, argv) in [
        &["python3", "main.py", "one", "-u"][..],
        &["python3", "-u", "-m", "main", "one"],
        &[
            "/usr/bin/python3",
            "-c",
            "exec(open('main.py').read())",
            "one",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let (mut spec, fds) = python(&place, &format!("ordinary-{number}"), argv);
        with_app(SEEN)(&mut spec);
        let ordinary = support::run(&spawner, &spec, fds).await.unwrap();
        assert_eq!(ordinary.exit.code, 0, "{ordinary:?}");
        let id = format!("restored-{number}");
        let (restored, note) = run(&place, &spawner, &image, &id, argv, with_app(SEEN)).await;
        assert_eq!(note, None);
        assert_eq!(restored.out, ordinary.out, "{argv:?}: {}", restored.err);
        assert_eq!(restored.exit.code, 0);
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn restored_programs_share_nothing_but_what_was_imported() {
    let place = Place::new();
    let spawner = place.start().await;
    let image = prepared(&place, &spawner, &["random", "ssl", "decimal"])
        .await
        .unwrap();
    let program = "import os, random, ssl, sys
assert 'decimal' in sys.modules
print(os.getpid(), os.listdir('/proc/1/task'), [n for n in os.listdir('/proc') if n.isdigit()])
print(random.random(), ssl.RAND_bytes(8).hex())
print(*(os.readlink(f'/proc/self/ns/{n}') for n in ('mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup', 'user')))
print(open('/proc/self/uid_map').read())
decimal = sys.modules['decimal']
print(hasattr(decimal, 'changed'), os.path.exists('/tmp/file'))
decimal.changed = True
os.makedirs('/tmp', exist_ok=True)
open('/tmp/file', 'w').close()
sys.stdin.read()
";
    let mut processes = Vec::new();
    for id in ["a", "b"] {
        let (mut spec, mut fds) = python(&place, id, &["python3", "-u", "-c", program]);
        spec.stdin_pipe = true;
        fds.image = Some(image.as_fd().try_clone_to_owned().unwrap());
        let process = spawner.spawn(&spec, fds).await.unwrap();
        assert_eq!(process.not_restored, None);
        processes.push(process);
    }
    let mut outputs = Vec::new();
    for mut process in processes {
        drop(process.stdin.take());
        let out = support::read_all(process.stdout);
        assert_eq!(spawner.wait(&process.id).await.unwrap().code, 0);
        spawner.forget(&process.id).await.unwrap();
        outputs.push(out.await.unwrap());
    }
    let lines: Vec<Vec<&str>> = outputs.iter().map(|o| o.lines().collect()).collect();
    assert_eq!(lines[0][0], "1 ['1'] ['1']");
    assert_eq!(lines[0][0], lines[1][0]);
    for at in [1, 2, 3] {
        let words = |n: usize| lines[n][at].split_whitespace().collect::<Vec<_>>();
        let same = words(0)
            .into_iter()
            .zip(words(1))
            .filter(|(a, b)| a == b)
            .count();
        // The map of ids is `0 first count`.
        assert_eq!(same, if at == 3 { 2 } else { 0 }, "{outputs:#?}");
    }
    assert_eq!(
        (lines[0][5], lines[1][5]),
        ("False False", "False False"),
        "{outputs:#?}"
    );
    place.finish(spawner).await;
}

#[tokio::test]
async fn restored_programs_end_as_others_do() {
    let place = Place::new();
    let spawner = place.start().await;
    let image = prepared(&place, &spawner, &["json"]).await.unwrap();
    for (number, program) in [
        "import sys; sys.exit(42)",
        "import sys; print('x'); sys.exit('a reason')",
        "def f():\n  raise ValueError('wrong')\nf()",
        "import os, signal; signal.signal(15, lambda *_: os._exit(6)); os.kill(1, 15); signal.pause()",
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(8)",
        "import atexit; atexit.register(print, 'goodbye')",
        "nonsense(",
    ]
    .into_iter()
    .enumerate()
    {
        let argv = ["python3", "-c", program];
        let (spec, fds) = python(&place, &format!("ordinary-{number}"), &argv);
        let ordinary = support::run(&spawner, &spec, fds).await.unwrap();
        let id = format!("restored-{number}");
        let (restored, note) = run(&place, &spawner, &image, &id, &argv, |_| {}).await;
        assert_eq!(note, None);
        let ends = |ran: &Ran| (ran.exit, ran.out.clone(), ran.err.clone());
        assert_eq!(ends(&restored), ends(&ordinary), "{program}");
    }
    place.finish(spawner).await;
}

#[tokio::test]
async fn what_cannot_be_restored_starts_from_the_beginning_and_says_why() {
    let place = Place::new();
    let spawner = place.start().await;
    let image = prepared(&place, &spawner, &["json"]).await.unwrap();
    for (id, argv, why) in [
        ("a", &["sh", "-c", "echo fine"][..], "its command is"),
        (
            "b",
            &["python3", "-O", "-c", "print('fine')"],
            "the option -O",
        ),
    ] {
        let (ran, note) = run(&place, &spawner, &image, id, argv, |_| {}).await;
        assert_eq!((ran.out.as_str(), ran.exit.code), ("fine\n", 0), "{ran:?}");
        assert!(
            note.as_ref().is_some_and(|note| note.contains(why)),
            "{note:?}"
        );
    }
    // A program that does not begin at all is told as ever.
    let (spec, mut fds) = python(&place, "c", &["/nowhere"]);
    fds.image = Some(image.as_fd().try_clone_to_owned().unwrap());
    let refused = spawner.spawn(&spec, fds).await.unwrap_err();
    assert!(refused.to_string().contains("no such file"), "{refused}");
    place.finish(spawner).await;
}

#[tokio::test]
async fn what_does_not_fit_into_an_image_is_named() {
    let place = Place::new();
    let spawner = place.start().await;
    for (module, content, why) in [
        (
            "keeps",
            "file = open('/etc/kept', 'w')",
            "keeps a file open: /etc/kept",
        ),
        (
            "shares",
            "import mmap; m = mmap.mmap(-1, 4096)",
            "shares memory",
        ),
        (
            "fails",
            "import nothing_like_this",
            "No module named 'nothing_like_this'",
        ),
        ("exits", "raise SystemExit(3)", "SystemExit: 3"),
    ] {
        let error = prepared_with(&place, &spawner, &[module], |spec| {
            spec.mounts.push(support::file("/etc/kept", ""));
            spec.mounts
                .push(support::file(&format!("/{module}.py"), content));
        })
        .await
        .unwrap_err();
        assert!(error.contains(why), "{module}: {error}");
    }
    place.finish(spawner).await;
}
