//! A project's lock file decides which wrangler deploys it: every one since containers came does.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use self::common::{Node, Project, WRANGLERS, tools};

/// One wrangler, as `target/tools` has it.
#[derive(Clone, Copy)]
struct Wrangler {
    version: &'static str,
    /// Which of the pinned wranglers' Nodes it runs on.
    node_of: &'static str,
    /// The esbuild that it bundles with. It refuses any other.
    esbuild: &'static str,
    /// The smallest instance type, by the name that this version knows.
    instance_type: &'static str,
}

const NODE_20: &str = WRANGLERS[0];
const NODE_22: &str = WRANGLERS[1];

impl Wrangler {
    fn command(self, node: &Node, project: &Path, arguments: &[&str]) -> Command {
        let modules = tools().join("wranglers/node_modules");
        // Runs the right Node first, with the variables of `wharf env`.
        let mut command = node.wrangler_command(self.node_of, project, &[]);
        let path = command
            .get_envs()
            .find_map(|(name, value)| (name == "PATH").then(|| value.unwrap().to_owned()));
        let variables: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command =
            Command::new(tools().join(format!("wrangler-{}/node_modules/.bin/node", self.node_of)));
        let script = modules.join(format!("wrangler-{}/bin/wrangler.js", self.version));
        command
            .arg(script)
            .args(arguments)
            .current_dir(project)
            .envs(variables)
            .env("PATH", path.unwrap())
            .env(
                "ESBUILD_BINARY_PATH",
                modules.join(format!("esbuild-{}/bin/esbuild", self.esbuild)),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn ok(self, node: &Node, project: &Path, arguments: &[&str], input: &str) {
        let mut command = self.command(node, project, arguments);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        assert!(
            out.status.success(),
            "wrangler {} {arguments:?}: {}\n{}{}\n--- node:\n{}",
            self.version,
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            node.log()
        );
    }
}

/// First deploy, redeploy, `secret put` and `delete` of a project with a container.
fn a_life(wrangler: Wrangler) {
    let node = Node::start();
    let project = Project::copy_of("hello");
    let config = std::fs::read_to_string(project.path().join("wrangler.jsonc")).unwrap();
    project.write(
        "wrangler.jsonc",
        &config.replace("\"lite\"", &format!("\"{}\"", wrangler.instance_type)),
    );
    let hello = || {
        let answer = node.get("hello", "/api/hello");
        assert_eq!(answer.status, 200, "{}\n{}", answer.body, node.log());
        answer.json()
    };
    project.build_server("one");
    wrangler.ok(&node, &project.path(), &["deploy"], "");
    assert_eq!(hello()["version"], "one");
    assert_eq!(node.get("hello", "/api/count").json()["count"], 1);

    project.build_server("two");
    wrangler.ok(&node, &project.path(), &["deploy"], "");
    assert_eq!(hello()["version"], "two");

    let put = ["secret", "put", "KEY", "--name", "hello"];
    wrangler.ok(&node, &project.path(), &put, "s3cret\n");
    assert_eq!(node.get("hello", "/api/count").json()["count"], 2);

    wrangler.ok(&node, &project.path(), &["delete", "--force"], "");
    assert_eq!(node.get("hello", "/api/hello").status, 404);
}

macro_rules! wranglers {
    ($($test:ident: $version:literal, $node_of:ident, $esbuild:literal, $instance_type:literal;)*) => {
        $(#[test]
        fn $test() {
            a_life(Wrangler {
                version: $version,
                node_of: $node_of,
                esbuild: $esbuild,
                instance_type: $instance_type,
            });
        })*
    };
}

// The two pinned ones, 4.86.0 and 4.164.0, do more than this in `deploy.rs`.
wranglers! {
    wrangler_4_22_deploys: "4.22.0", NODE_20, "0.25.4", "dev";
    wrangler_4_24_deploys: "4.24.3", NODE_20, "0.25.4", "dev";
    wrangler_4_28_deploys: "4.28.0", NODE_20, "0.25.4", "dev";
    wrangler_4_32_deploys: "4.32.0", NODE_20, "0.25.4", "dev";
    wrangler_4_37_deploys: "4.37.0", NODE_20, "0.25.4", "dev";
    wrangler_4_42_deploys: "4.42.0", NODE_20, "0.25.4", "lite";
    wrangler_4_45_deploys: "4.45.0", NODE_20, "0.25.4", "lite";
    wrangler_4_50_deploys: "4.50.0", NODE_20, "0.25.4", "lite";
    wrangler_4_58_deploys: "4.58.0", NODE_20, "0.27.0", "lite";
    wrangler_4_65_deploys: "4.65.0", NODE_20, "0.27.3", "lite";
    wrangler_4_72_deploys: "4.72.0", NODE_20, "0.27.3", "lite";
    wrangler_4_80_deploys: "4.80.0", NODE_20, "0.27.3", "lite";
    wrangler_4_100_deploys: "4.100.0", NODE_22, "0.27.3", "lite";
    wrangler_4_125_deploys: "4.125.0", NODE_22, "0.28.1", "lite";
    wrangler_4_150_deploys: "4.150.0", NODE_22, "0.28.2", "lite";
}
