//! The rules of the house (ARCHITECTURE.md, "Code map"): which crate may use which, who may speak
//! HTTP or SQL, which modules read no clock and do no I/O, and that the executable decides nothing.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each crate, and the crates of the product that it may use. A new arrow is a decision: add it
/// here, and say in ARCHITECTURE.md why.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("cron", &[]),
    ("http-head", &[]),
    ("sandbox", &[]),
    ("image", &[]),
    ("net", &["http-head", "sandbox"]),
    ("microvm", &["sandbox"]),
    ("store", &["model"]),
    ("bindings", &["model"]),
    ("snapshot", &["image"]),
    ("build", &["sandbox", "net", "image"]),
    ("engine", &["sandbox", "net", "image", "microvm", "model"]),
    (
        "workerd",
        &["bindings", "http-head", "model", "net", "sandbox"],
    ),
    (
        "node",
        &[
            "cron", "engine", "image", "model", "net", "snapshot", "store", "workerd",
        ],
    ),
    ("gateway", &["http-head"]),
    ("registry", &["image"]),
    ("control", &["bindings", "model", "store", "cron"]),
    ("docker-cli", &["http-head"]),
    (
        "docker-api",
        &[
            "http-head",
            "engine",
            "microvm",
            "model",
            "image",
            "build",
            "net",
            "node",
            "snapshot",
            "sandbox",
        ],
    ),
    // Wires everything.
    (
        "wharf",
        &[
            "store",
            "image",
            "registry",
            "sandbox",
            "snapshot",
            "microvm",
            "model",
            "net",
            "engine",
            "build",
            "node",
            "docker-api",
            "docker-cli",
            "workerd",
            "cron",
            "gateway",
            "control",
        ],
    ),
    // In tests alone.
    (
        "testkit",
        &["sandbox", "engine", "image", "net", "snapshot"],
    ),
];

/// Libraries that only some crates may use, and why.
const LIBRARIES: &[(&[&str], &[&str])] = &[
    // Servers of HTTP are the dialects'; the executable serves status on the operator's socket.
    (
        &["axum", "tower"],
        &["control", "docker-api", "registry", "wharf"],
    ),
    // Proxies speak it to containers and workerd.
    (
        &["hyper", "hyper-util"],
        &[
            "docker-api",
            "docker-cli",
            "gateway",
            "net",
            "testkit",
            "wharf",
            "workerd",
        ],
    ),
    (&["rusqlite"], &["image", "store"]),
    (&["libc"], &["sandbox"]),
];

/// Modules that decide without looking: no clock, no file, no network, no randomness, no task.
const PURE: &[&str] = &[
    "crates/bindings/src",
    "crates/control/src/upload/exports.rs",
    "crates/engine/src/lifecycle.rs",
    "crates/engine/src/resources.rs",
    "crates/model/src",
    "crates/net/src/ingress/hold.rs",
    "crates/node/src/admission.rs",
    "crates/node/src/environment.rs",
    "crates/node/src/request.rs",
    "crates/node/src/size.rs",
    "crates/node/src/standby/learning.rs",
    "crates/node/src/standby/policy.rs",
    "crates/workerd/src/machine.rs",
];
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "tokio::fs",
    "tokio::net",
    "tokio::spawn",
    "tokio::time::sleep",
    "rand::",
    "new_v4()",
];

/// Lines; the executable's functions wire, and what wires is short.
const LONGEST_OF_EXECUTABLE: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .into()
}

/// Each crate under `crates/` with its ordinary dependencies.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let dir = manifest.parent().unwrap();
        if dir.parent() != Some(&root().join("crates")) {
            continue;
        }
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let all = package["dependencies"].as_array().unwrap().iter();
        let ordinary = all.filter(|it| it["kind"].is_null());
        let names = ordinary.map(|it| it["name"].as_str().unwrap().to_owned());
        found.insert(name, names.collect());
    }
    found
}

#[test]
fn crates_use_only_what_is_below_them() {
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    for (name, uses) in dependencies() {
        let own = |it: &String| it.strip_prefix("wharf-").map(str::to_owned);
        for used in uses.iter().filter_map(own) {
            let allowed = allowed
                .get(&*name)
                .unwrap_or_else(|| panic!("crates/{name} is new: say in MAY_USE what it may use"));
            assert!(
                allowed.contains(&&*used),
                "crates/{name} uses wharf-{used}, which is not below it"
            );
        }
    }
}

#[test]
fn servers_databases_and_system_calls_have_their_crates() {
    for (name, uses) in dependencies() {
        for (libraries, users) in LIBRARIES {
            for library in libraries.iter().filter(|it| uses.contains(**it)) {
                assert!(
                    users.contains(&&*name),
                    "crates/{name} uses {library}, which is for {users:?}"
                );
            }
        }
    }
}

#[test]
fn pure_modules_look_at_nothing() {
    for place in PURE {
        for file in sources(&root().join(place)) {
            let text = std::fs::read_to_string(&file).unwrap();
            // Tests may.
            let code = text.split("\n#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap();
                let found = IMPURE.iter().find(|word| line.contains(**word));
                assert!(
                    found.is_none(),
                    "{}:{} has {found:?}, and is to be pure",
                    file.display(),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn functions_of_the_executable_are_short() {
    for file in sources(&root().join("crates/wharf/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let words: Vec<&str> = code.split(' ').collect();
            let is_function = words.iter().take(3).any(|word| *word == "fn");
            if !is_function || code.starts_with("//") {
                continue;
            }
            // rustfmt puts the closing brace where the function began.
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[number..].iter().position(|line| **line == end);
            let length = length.unwrap_or(0) + 1;
            assert!(
                length <= LONGEST_OF_EXECUTABLE,
                "{}:{} has {length} lines: {code}",
                file.display(),
                number + 1
            );
        }
    }
}

/// What a line at the top of a file brings: the standard library, other crates, this crate.
fn group(line: &str) -> Option<usize> {
    let path = line.strip_prefix("use ")?;
    let root = path.split([':', ';', ' ']).next()?;
    Some(match root {
        "std" | "core" | "alloc" => 0,
        "crate" | "super" | "self" => 2,
        _ => 1,
    })
}

#[test]
fn imports_come_after_modules_and_begin_with_the_standard_library() {
    for place in ["crates", "xtask"] {
        for file in sources(&root().join(place)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let mut last = None;
            for (number, line) in text.lines().enumerate() {
                // The top of a file ends with its first item.
                let is_module = line.ends_with(';') && line.contains("mod ");
                if line.starts_with("#[cfg(test)]") {
                    break;
                }
                let at_left = !line.is_empty() && !line.starts_with([' ', '}', ')', '/', '#', ']']);
                if at_left && !is_module && !line.contains("use ") {
                    break;
                }
                let place = format!("{}:{}", file.display(), number + 1);
                if is_module && at_left {
                    assert!(last.is_none(), "{place}: modules stand before imports");
                }
                if let Some(group) = group(line) {
                    let order = "the standard library, other crates, this crate";
                    assert!(last <= Some(group), "{place}: imports are {order}");
                    last = Some(group);
                }
            }
        }
    }
}

#[test]
fn a_module_is_a_file_of_its_name() {
    for place in ["crates", "xtask"] {
        for file in sources(&root().join(place)) {
            // A folder of tests would be a test by its name.
            let in_tests = file.components().any(|it| it.as_os_str() == "tests");
            assert!(
                in_tests || !file.ends_with("mod.rs"),
                "{}: call it by its folder's name, beside the folder",
                file.display()
            );
        }
    }
}

fn sources(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|it| it == "rs") {
            found.extend(sources(&path));
        }
    }
    found
}
