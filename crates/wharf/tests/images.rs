//! Images: import, build, push, and a Python application from a base image made of Debian packages.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::process::Output;

use self::common::{Node, Project, WRANGLERS, tools};

fn docker(node: &Node, args: &[&str]) -> Output {
    node.command().arg("docker").args(args).output().unwrap()
}

fn text(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

fn import(node: &Node, name: &str, kind: &str) {
    let images = std::fs::read_dir(tools().join("images"))
        .into_iter()
        .flatten()
        .flatten();
    let tar = images
        .map(|e| e.path())
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&format!("{kind}-")))
        })
        .unwrap_or_else(|| panic!("run `cargo xtask base-image {kind}`"));
    let out = node
        .command()
        .args(["image", "import", name])
        .arg(&tar)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
}

#[test]
fn the_docker_command_line_as_wrangler_uses_it() {
    let node = Node::start();
    import(&node, "busybox:1", "busybox");
    let context = Project::new(&[
        (
            "Dockerfile",
            "FROM busybox:1\nARG WHO=nobody\nCOPY file /there/\nRUN echo built for $WHO > /who\nCMD [\"sh\"]\n",
        ),
        ("file", "content"),
    ]);
    let path = context.path();
    let dir = path.to_str().unwrap();
    assert!(docker(&node, &["info"]).status.success());
    let build = [
        "build",
        "--load",
        "-t",
        "app:one",
        "--platform",
        "linux/amd64",
        "--provenance=false",
        "--build-arg",
        "WHO=me",
        dir,
    ];
    let out = docker(&node, &build);
    assert!(out.status.success(), "{}", text(&out));
    let inspect = |name: &str, format: &str| {
        let out = docker(&node, &["image", "inspect", name, "--format", format]);
        assert!(out.status.success(), "{}", text(&out));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    assert_eq!(inspect("app:one", "{{ json .RepoDigests }}"), "[]");
    assert_eq!(
        inspect("app:one", "{{ .Size }} {{ len .RootFS.Layers }}")
            .split(' ')
            .nth(1),
        Some("3")
    );
    // The same build again changes nothing.
    let id = inspect("app:one", "{{ .Id }}");
    let again = docker(&node, &build);
    assert!(text(&again).contains("(cached)"), "{}", text(&again));
    assert_eq!(inspect("app:one", "{{ .Id }}"), id);

    let account = node
        .env()
        .into_iter()
        .find(|(k, _)| k == "CLOUDFLARE_ACCOUNT_ID")
        .unwrap()
        .1;
    let remote = format!("{}/{account}/app:one", node.control);
    assert!(docker(&node, &["tag", "app:one", &remote]).status.success());
    assert!(
        !docker(&node, &["manifest", "inspect", "-v", &remote])
            .status
            .success(),
        "not pushed yet"
    );
    let pushed = docker(&node, &["push", &remote]);
    assert!(
        text(&pushed).contains("Layer already exists"),
        "{}",
        text(&pushed)
    );
    let digests = inspect(&remote, "{{ json .RepoDigests }}");
    assert!(
        digests.contains(&format!("{}/{account}/app@sha256:", node.control)),
        "{digests}"
    );
    let manifest = docker(&node, &["manifest", "inspect", "-v", &remote]);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).unwrap();
    assert!(digests.contains(manifest["Descriptor"]["digest"].as_str().unwrap()));

    // The registry wants the token.
    let url = format!("http://{}/v2/{account}/app/manifests/one", node.control);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    assert_eq!(agent.get(&url).call().unwrap().status().as_u16(), 401);
    let token = node
        .env()
        .into_iter()
        .find(|(k, _)| k == "CLOUDFLARE_API_TOKEN")
        .unwrap()
        .1;
    let answer = agent
        .get(&url)
        .header("Authorization", format!("Bearer {token}"))
        .call()
        .unwrap();
    assert_eq!(answer.status().as_u16(), 200);

    let bad = Project::new(&[("Dockerfile", "FROM busybox:1\nRUN true\nCOPPY a b\n")]);
    let out = docker(&node, &["build", bad.path().to_str().unwrap()]);
    assert!(!out.status.success());
    assert!(
        text(&out).contains("Dockerfile:3") && text(&out).contains("COPY"),
        "{}",
        text(&out)
    );

    assert!(docker(&node, &["image", "rm", "app:one"]).status.success());
    assert!(
        docker(&node, &["image", "inspect", &remote])
            .status
            .success(),
        "the other name stays"
    );
}

#[test]
fn sudo_su_and_passwd_work_unless_the_container_may_gain_no_privileges() {
    let node = Node::start();
    import(&node, "debian:sudo", "sudo");
    let context = Project::new(&[(
        "Dockerfile",
        "FROM debian:sudo
RUN useradd -m dev && echo 'dev ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/dev && printf 'root:secret-of-root\\ndev:secret-of-dev\\n' | chpasswd
USER dev
RUN id -u > /tmp/user && sudo sh -c 'id -u > /etc/made-in-a-step'
CMD [\"sudo\", \"cat\", \"/etc/shadow\"]
",
    )]);
    let path = context.path();
    let out = docker(&node, &["build", "-t", "app:1", path.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out));
    let run = |options: &[&str], command: &[&str]| {
        docker(
            &node,
            &[&["run", "--rm"], options, &["app:1"], command].concat(),
        )
    };
    let sh = |options: &[&str], script: &str| run(options, &["sh", "-c", script]);
    let said = |out: &Output| String::from_utf8_lossy(&out.stdout).into_owned();

    let out = sh(&[], "cat /tmp/user /etc/made-in-a-step; id -u; sudo id -u");
    assert_eq!(said(&out), "1000\n0\n1000\n0\n", "{}", text(&out));
    assert!(out.stderr.is_empty(), "{}", text(&out));
    let out = run(&[], &[]);
    assert!(said(&out).starts_with("root:"), "{}", text(&out));
    let out = sh(
        &[],
        "echo secret-of-root | su -c 'id -u; cat /proc/self/status'",
    );
    assert!(said(&out).starts_with("0\n"), "{}", text(&out));
    assert!(
        said(&out).contains("CapPrm:\t00000000a80425fb"),
        "{}",
        text(&out)
    );
    let script = "printf 'secret-of-dev\\nq7Xw2-new\\nq7Xw2-new\\n' | passwd && echo q7Xw2-new | su dev -c 'id -un'";
    let out = sh(&[], script);
    assert!(said(&out).ends_with("dev.\ndev\n"), "{}", text(&out));
    let out = sh(&[], "ping -c 1 -W 5 127.0.0.1");
    assert!(said(&out).contains("1 received"), "{}", text(&out));

    for option in [
        "no-new-privileges",
        "no-new-privileges:true",
        "no-new-privileges=true",
    ] {
        let out = sh(&["--security-opt", option], "sudo id -u");
        assert!(
            text(&out).contains("no new privileges"),
            "{option}: {}",
            text(&out)
        );
        assert_eq!(said(&out), "", "{option}");
    }
    let options = ["--security-opt", "no-new-privileges"];
    let out = sh(&options, "echo secret-of-root | su -c 'id -u'");
    assert_eq!(said(&out), "", "{}", text(&out));
    let out = run(&["--security-opt", "seccomp=unconfined"], &["true"]);
    assert!(text(&out).contains("seccomp=unconfined"), "{}", text(&out));
    assert!(!out.status.success());
}

#[test]
fn a_fastapi_application() {
    let node = Node::start();
    import(&node, "wharf/python:3.11", "python");
    let project = Project::copy_of("python");
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    let answer = node.get("python", "/add/2/40");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, node.log());
    assert_eq!(answer.json()["sum"], 42);
}
