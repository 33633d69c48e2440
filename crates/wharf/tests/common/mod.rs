//! A real node in a temporary directory, the real wrangler, and a small HTTP client. Everything is ended and looked for on drop.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)] // each test binary uses a part; a panic is a failed test

pub mod direct;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The wranglers that `cargo xtask setup` installs.
pub const WRANGLERS: [&str; 2] = ["4.86.0", "4.164.0"];

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

pub fn tools() -> PathBuf {
    let tools = repository().join("target/tools");
    assert!(
        tools.join("workerd").exists(),
        "the pinned tools are missing: run `cargo xtask setup`"
    );
    tools
}

pub struct Node {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    extra: Vec<String>,
    /// Shell commands before the daemon's, in a mount namespace that is its own.
    mounts: Option<String>,
    pub gateway: SocketAddr,
    pub control: SocketAddr,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|e| panic!("{} {e}: {}", self.status, self.body))
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

impl Node {
    pub fn start() -> Node {
        Node::start_with(&[])
    }

    pub fn start_with(extra: &[&str]) -> Node {
        let dir = tempfile::Builder::new()
            .prefix("wharf")
            .tempdir_in("/tmp")
            .unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut node = Node {
            dir,
            child: None,
            extra: extra.iter().map(|s| s.to_string()).collect(),
            mounts: None,
            gateway: any,
            control: any,
        };
        node.launch();
        node
    }

    /// Arguments of `wharf up` from the next launch on.
    pub fn set_extra(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(|s| s.to_string()).collect();
    }

    /// From the next launch on, the daemon has a mount namespace of its own, where these commands
    /// of the shell were run.
    pub fn set_mounts(&mut self, commands: &str) {
        self.mounts = Some(commands.to_owned());
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Directories of instances, those that are being removed included. Some wait for another instance (`.gone-spare-*`): a fixed number at most.
    pub fn instance_directories(&self) -> usize {
        let all = std::fs::read_dir(self.data_dir().join("instances"));
        let is_spare = |name: &str| name.starts_with(".gone-spare-");
        all.map_or(0, |all| {
            all.flatten()
                .filter(|e| !is_spare(&e.file_name().to_string_lossy()))
                .count()
        })
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wharf"));
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .env("WHARF_WORKERD", tools().join("workerd"));
        command
    }

    /// Starts the daemon; after the first time on the same ports, so that clients find it again.
    pub fn launch(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mut command = match &self.mounts {
            None => self.command(),
            Some(mounts) => {
                let plain = self.command();
                let mut command = Command::new("unshare");
                let script = format!("{mounts} && exec \"$@\"");
                command
                    .args([
                        "--mount",
                        "--propagation=private",
                        "sh",
                        "-c",
                        &script,
                        "sh",
                    ])
                    .arg(plain.get_program())
                    .args(plain.get_args())
                    .env("WHARF_WORKERD", tools().join("workerd"));
                command
            }
        };
        command
            .arg("up")
            .args([
                "--listen",
                &self.gateway.to_string(),
                "--control-listen",
                &self.control.to_string(),
            ])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("wharf up ended with {status}:\n{}", self.log());
            }
            let out = self.command().args(["status", "--json"]).output().unwrap();
            if out.status.success() {
                let status: Value = serde_json::from_slice(&out.stdout).unwrap();
                self.gateway = status["gateway"].as_str().unwrap().parse().unwrap();
                self.control = status["control"].as_str().unwrap().parse().unwrap();
                break;
            }
            assert!(
                Instant::now() < deadline,
                "the node does not come up:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        // `wharf env` needs the token file, written just before the gateway opens.
        wait_until("the token", || self.data_dir().join("token").exists());
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|c| c.try_wait().unwrap().is_none())
    }

    pub fn kill_9(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends the daemon as Ctrl-C does; panics if it does not go.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(child.id() as i32).unwrap(),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        let deadline = Instant::now() + Duration::from_secs(45);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("wharf up does not stop:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn status(&self) -> Value {
        let out = self.command().args(["status", "--json"]).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).unwrap()
    }

    pub fn env(&self) -> Vec<(String, String)> {
        let out = self.command().args(["env", "--json"]).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        let map = value.as_object().unwrap();
        map.iter()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
            .collect()
    }

    /// The real wrangler, with only Wharf's variables set.
    pub fn wrangler(&self, version: &str, project: &Path, args: &[&str]) -> Output {
        self.wrangler_command(version, project, args)
            .output()
            .unwrap()
    }

    pub fn wrangler_command(&self, version: &str, project: &Path, args: &[&str]) -> Command {
        // Its folder also has the Node that it runs on.
        let bin = tools().join(format!("wrangler-{version}/node_modules/.bin"));
        let mut dirs = vec![bin.clone()];
        dirs.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        let path = std::env::join_paths(dirs).unwrap();
        let mut command = Command::new(bin.join("wrangler"));
        command
            .args(args)
            .current_dir(project)
            .env("PATH", path)
            .env("HOME", self.dir.path())
            .env("CI", "true")
            .envs(self.env())
            .stdin(Stdio::null());
        command
    }

    /// wrangler that must succeed; returns what it printed.
    pub fn wrangler_ok(&self, version: &str, project: &Path, args: &[&str]) -> String {
        let out = self.wrangler(version, project, args);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(
            out.status.success(),
            "wrangler {version} {args:?}: {}\n{text}\n--- node:\n{}",
            out.status,
            self.log()
        );
        text
    }

    /// Instances in `wharf status`.
    pub fn instances(&self) -> Vec<Value> {
        self.status()["instances"].as_array().unwrap().clone()
    }

    /// A running instance, by the end of its name (the object's id), or the only one.
    pub fn running(&self, object: &str) -> Option<Value> {
        self.instances()
            .into_iter()
            .find(|i| i["name"].as_str().unwrap().ends_with(object) && !i["pid"].is_null())
    }

    /// Where a Worker's containers are reached: the ports of 127.0.0.1 in the network of its workerd on which root listens, which is the daemon.
    pub fn ingresses(&self, script: &str) -> Vec<u16> {
        const REDIRECTED: [u16; 2] = [64001, 64053];
        // proc_net_tcp(5): local address, state (0A listens), user.
        let table = format!("/proc/{}/net/tcp", self.workerd(script));
        let table = std::fs::read_to_string(table).unwrap();
        let ports = table.lines().skip(1).filter_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let port = u16::from_str_radix(columns[1].strip_prefix("0100007F:")?, 16).unwrap();
            (columns[3] == "0A" && columns[7] == "0").then_some(port)
        });
        ports.filter(|port| !REDIRECTED.contains(port)).collect()
    }

    /// A connection to a port of 127.0.0.1 as the workerd of a script makes it.
    pub fn dial_as(&self, script: &str, port: u16) -> std::io::Result<std::net::TcpStream> {
        let namespace = wharf_sandbox::netns::of_process(self.workerd(script))?;
        wharf_sandbox::netns::run_inside(namespace.as_fd(), || {
            std::net::TcpStream::connect(("127.0.0.1", port))
        })?
    }

    /// The workerd process of a script.
    pub fn workerd(&self, script: &str) -> i32 {
        let status = self.status();
        let scripts = status["scripts"].as_array().unwrap();
        let found = scripts.iter().find(|s| s["script"] == script).unwrap();
        found["pid"].as_i64().expect("workerd runs") as i32
    }

    pub fn get(&self, script: &str, path: &str) -> Answer {
        self.request("GET", script, path, &[], "")
    }

    pub fn request(
        &self,
        method: &str,
        script: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .into();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.gateway))
            .header("Host", format!("{script}.localhost"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // A GET with a length of 0 is one with a body to a Worker.
        let answer = match body {
            "" => agent.run(request.body(()).unwrap()),
            body => agent.run(request.body(body.to_owned()).unwrap()),
        };
        let mut response = answer
            .unwrap_or_else(|e| panic!("{method} {script}{path}: {e}\n--- node:\n{}", self.log()));
        let headers = response.headers().iter();
        Answer {
            status: response.status().as_u16(),
            headers: headers
                .map(|(n, v)| (n.to_string(), v.to_str().unwrap_or_default().to_owned()))
                .collect(),
            body: response.body_mut().read_to_string().unwrap(),
        }
    }

    /// Host pids of everything that runs below this node's spawner, daemon excluded.
    pub fn processes(&self) -> Vec<u32> {
        let marker = self.data_dir().to_str().unwrap().to_owned();
        let own = self.child.as_ref().map(Child::id);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            if pid == std::process::id() || Some(pid) == own {
                continue;
            }
            let read =
                |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let mentions = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(&marker);
            // Containers show the node's directories in their overlay mount, workerd and the spawner in their arguments.
            if mentions(read("cmdline")) || mentions(read("mountinfo")) {
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if self.child.is_some() {
            if failed {
                eprintln!("--- node's log:\n{}", self.log());
            }
            self.stop();
        }
        let mut left = self.processes();
        // The spawner says that all is gone, and then ends itself.
        for _ in 0..40 {
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            left = self.processes();
        }
        for pid in &left {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if !failed {
            assert!(left.is_empty(), "processes are left behind: {left:?}");
            assert!(
                !self.data_dir().join("run").exists(),
                "sockets are left behind"
            );
        }
    }
}

/// A copy of an example that the test may change; node_modules is linked.
pub struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    pub fn copy_of(example: &str) -> Project {
        let dir = tempfile::Builder::new()
            .prefix("wharf-project")
            .tempdir_in("/tmp")
            .unwrap();
        let source = repository().join("examples").join(example);
        let status = Command::new("cp")
            .args(["-a", "--no-target-directory"])
            .arg(&source)
            .arg(dir.path().join("p"))
            .status()
            .unwrap();
        assert!(status.success());
        assert!(
            source.join("node_modules").exists(),
            "run `cargo xtask setup` first"
        );
        Project { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("p")
    }

    pub fn write(&self, file: &str, content: &str) {
        let path = self.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// An empty project with these files.
    pub fn new(files: &[(&str, &str)]) -> Project {
        let dir = tempfile::Builder::new()
            .prefix("wharf-project")
            .tempdir_in("/tmp")
            .unwrap();
        std::fs::create_dir(dir.path().join("p")).unwrap();
        let project = Project { dir };
        for (file, content) in files {
            project.write(file, content);
        }
        project
    }

    /// A copy of `tests/projects/<name>`, with the app of `tests/app` in its folder `app`. `package` is the version of
    /// @cloudflare/containers that it imports, if any.
    pub fn fixture(name: &str, package: Option<&str>) -> Project {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let project = Project::new(&[]);
        let (source, target) = (tests.join("projects").join(name), project.path());
        for entry in std::fs::read_dir(&source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
        }
        if let Some(version) = package {
            let modules = tools().join(format!("containers-{version}/node_modules"));
            assert!(modules.exists(), "run `cargo xtask setup` first");
            std::os::unix::fs::symlink(modules, target.join("node_modules")).unwrap();
        }
        let app = target.join("app");
        std::fs::create_dir(&app).unwrap();
        std::fs::copy(tests.join("app/Dockerfile"), app.join("Dockerfile")).unwrap();
        std::fs::copy("/bin/busybox", app.join("busybox")).expect("busybox-static is installed");
        let out = Command::new("gcc")
            .args(["-static", "-O2", "-pthread", "-Wall", "-Wextra", "-o"])
            .arg(app.join("app"))
            .arg(tests.join("app/app.c"))
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        project
    }

    /// Compiles the hello example's server with a version of its own.
    pub fn build_server(&self, version: &str) {
        let out = Command::new("npm")
            .args(["run", "--silent", "build:server"])
            .env("VERSION", version)
            .current_dir(self.path())
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

/// SIGKILL.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The spawner of a node: its process id, and the name of its cgroups.
pub fn spawner_of(node: &Node) -> (i32, String) {
    let is_spawner = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|c| c.trim() == "wharf-spawner")
    };
    let pid = node
        .processes()
        .into_iter()
        .find(is_spawner)
        .expect("the spawner");
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8(arguments).unwrap();
    // ..., the cgroups' name, the ids of containers.
    let name = arguments
        .trim_end_matches('\0')
        .rsplit('\0')
        .nth(1)
        .unwrap();
    (pid as i32, name.to_owned())
}

/// In how many hierarchies a node's cgroups are.
pub fn cgroups_of(name: &str) -> usize {
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(base).unwrap().flatten().map(|e| e.path());
    let all = std::iter::once(base.to_owned()).chain(hierarchies);
    all.filter(|h| h.join(name).exists()).count()
}
