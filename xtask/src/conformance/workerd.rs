//! `cargo xtask conformance workerd`: the container-client suite in workerd's repository, run with the pinned binary against the operator's socket.
//!
//! Each test is a run of `workerd test` of its own with an empty directory for its Durable Objects, so that none can hang or spoil another.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::base_image::{Kind, base_image};
use crate::node::{Node, Profile, build, free_address};
use crate::progress::{run as run_command, step};
use crate::{debian, interrupt, setup};

const TESTS: &str = "src/workerd/server/tests/container-client/test.js";
const CONFIG: &str = "src/workerd/server/tests/container-client/container-client.wd-test";
const APP: &str = "images/container-client-test/app.js";
const PACKAGE: &str = "images/container-client-test/package.json";
/// The socket that the suite's configuration names.
const SOCKET: &str = "unix:/var/run/docker.sock";
const IMAGE: &str = "cloudflare/workerd/container-client-test";
/// The app is where the suite's own build puts it: a test looks for that path in the command of process 1.
const DOCKERFILE: &str = r#"
FROM conformance-base:latest
COPY node /usr/local/bin/node
WORKDIR /images/container-client-test
COPY ws node_modules/ws
COPY app.js package.json ./
CMD ["node", "/images/container-client-test/app.js"]
"#;
/// Longer than any test takes on a busy machine; the slowest waits for alarms and evictions.
const MOST: Duration = Duration::from_secs(240);
/// Lines of a failed test's output that are shown.
const LINES_SHOWN: usize = 25;

/// What the suite can be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the suite's files are, under their paths in workerd's repository
    #[arg(long)]
    suite: PathBuf,
    /// Only tests whose names contain this
    #[arg(long)]
    filter: Option<String>,
    /// Compatibility date; the suite's own build runs it with this one and, as "all compat flags", with 2999-12-31
    #[arg(long, default_value = "2000-01-01")]
    compat_date: String,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Use an optimised build of the node
    #[arg(long)]
    release: bool,
}

/// How one test went.
#[derive(Debug, Serialize)]
struct Outcome {
    test: String,
    passed: bool,
    seconds: f64,
    /// The end of what it printed, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

/// Runs the suite and prints the results; the last line is `N passed, M failed`. Ends this process with code 1 if a test failed.
///
/// # Errors
/// A file of the suite is missing, or the node does not come up.
pub(crate) fn run(options: &Options) -> Result<()> {
    let outcomes = run_tests(options)?;
    let passed = outcomes.iter().filter(|it| it.passed).count();
    let failed = outcomes.len() - passed;
    if options.json {
        let all = serde_json::json!({ "passed": passed, "failed": failed, "tests": outcomes });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        println!("{passed} passed, {failed} failed");
    }
    if failed > 0 {
        // No error: the lines above are the result.
        std::process::exit(1);
    }
    Ok(())
}

/// Everything that was started has ended when it returns.
fn run_tests(options: &Options) -> Result<Vec<Outcome>> {
    if !debian::is_root() {
        bail!("the suite must run as root: its node makes namespaces, mounts and cgroups");
    }
    let suite = Suite::read(&options.suite)?;
    let filter = options.filter.as_deref().unwrap_or_default();
    let tests: Vec<_> = suite.tests().filter(|name| name.contains(filter)).collect();
    ensure!(
        !tests.is_empty(),
        "no test of the suite has \"{filter}\" in its name"
    );
    interrupt::install()?;
    let tools = setup::tools()?;
    let rootfs = base_image(Kind::Debian)?;
    let profile = if options.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let binary = build(profile)?;
    let node = Node::start(&binary, free_address()?, free_address()?)?;
    let place = tempfile::tempdir()?;
    step("the suite's image", || {
        suite.build_image(&node, &rootfs, tools.wrangler.modules(), place.path())
    })?;
    let runner = Runner {
        workerd: tools.workerd.clone(),
        config: suite.configuration(&node.socket(), place.path())?,
        compat_date: options.compat_date.clone(),
        place: place.path().to_owned(),
    };

    let mut outcomes = Vec::new();
    for test in tests {
        interrupt::check()?;
        let outcome = runner.run(test)?;
        if !options.json {
            report(&outcome);
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn report(outcome: &Outcome) {
    let word = if outcome.passed { "PASS" } else { "FAIL" };
    println!("{word} {} ({:.1} s)", outcome.test, outcome.seconds);
    for line in outcome.output.iter().flat_map(|text| text.lines()) {
        println!("     {line}");
    }
}

/// The suite's files.
struct Suite {
    dir: PathBuf,
    tests: String,
    config: String,
}

impl Suite {
    fn read(dir: &Path) -> Result<Suite> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("the suite's folder {}", dir.display()))?;
        let missing: Vec<_> = [TESTS, CONFIG, APP, PACKAGE]
            .into_iter()
            .filter(|file| !dir.join(file).is_file())
            .collect();
        ensure!(
            missing.is_empty(),
            "{} is not workerd's suite: it has no {}. Take the folders src/workerd/server/tests/container-client and images/container-client-test of workerd's repository",
            dir.display(),
            missing.join(", ")
        );
        let read = |file: &str| fs::read_to_string(dir.join(file)).with_context(|| file.to_owned());
        Ok(Suite {
            tests: read(TESTS)?,
            config: read(CONFIG)?,
            dir,
        })
    }

    /// Names of the tests: what the module exports as constants.
    fn tests(&self) -> impl Iterator<Item = &str> {
        self.tests.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("export const ")?.split_once(" = {")?;
            Some(name)
        })
    }

    /// The image that the suite's containers run: its app on Node, with `ws`. `modules` has both.
    fn build_image(&self, node: &Node, rootfs: &Path, modules: &Path, place: &Path) -> Result<()> {
        let context = place.join("image");
        fs::create_dir(&context)?;
        for file in [APP, PACKAGE] {
            let name = Path::new(file).file_name().unwrap_or_default();
            fs::copy(self.dir.join(file), context.join(name))?;
        }
        fs::copy(modules.join(".bin/node"), context.join("node"))
            .context("the Node beside wrangler")?;
        run_command(
            Command::new("cp")
                .arg("-r")
                .arg(modules.join("ws"))
                .arg(context.join("ws")),
        )?;
        fs::write(context.join("Dockerfile"), DOCKERFILE)?;
        let rootfs = rootfs.to_str().context("a path that is not UTF-8")?;
        let context = context.to_str().context("a path that is not UTF-8")?;
        run_command(
            node.wharf()
                .args(["image", "import", "conformance-base:latest", rootfs]),
        )?;
        let tags = ["latest", "override"].map(|tag| format!("--tag={IMAGE}:{tag}"));
        run_command(
            node.wharf()
                .args(["docker", "build"])
                .args(tags)
                .arg(context),
        )?;
        Ok(())
    }

    /// A copy of the configuration that names this node's socket.
    fn configuration(&self, socket: &Path, place: &Path) -> Result<PathBuf> {
        ensure!(
            self.config.contains(SOCKET),
            "{CONFIG} does not name {SOCKET}: this suite is another one than the task knows"
        );
        fs::write(place.join("test.js"), &self.tests)?;
        let path = place.join("container-client.wd-test");
        let own = format!("unix:{}", socket.display());
        fs::write(&path, self.config.replace(SOCKET, &own))?;
        Ok(path)
    }
}

/// Runs single tests.
struct Runner {
    workerd: PathBuf,
    config: PathBuf,
    compat_date: String,
    place: PathBuf,
}

impl Runner {
    fn run(&self, test: &str) -> Result<Outcome> {
        let storage = tempfile::tempdir_in(&self.place)?;
        let log_path = storage.path().join("log");
        let log = File::create(&log_path)?;
        let objects = storage.path().join("objects");
        fs::create_dir(&objects)?;
        let started = Instant::now();
        let mut child = Command::new(&self.workerd)
            .args(["test", "--experimental"])
            .arg(format!(
                "--directory-path=TEST_TMPDIR={}",
                objects.display()
            ))
            .arg(format!("--compat-date={}", self.compat_date))
            .arg(&self.config)
            .arg(format!("*:{test}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("workerd test")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if started.elapsed() > MOST || interrupt::happened() {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        interrupt::check()?;
        let passed = status.is_some_and(|status| status.success());
        let output = (!passed).then(|| {
            let text = fs::read(&log_path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            match status {
                Some(_) => shown,
                None => format!("{shown}\n(killed: not done after {} s)", MOST.as_secs()),
            }
        });
        Ok(Outcome {
            test: test.to_owned(),
            passed,
            seconds: started.elapsed().as_secs_f64(),
            output,
        })
    }
}
