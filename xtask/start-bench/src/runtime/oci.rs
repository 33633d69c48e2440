//! runc and crun: `<runtime> run --detach` of a bundle.
//!
//! Run and measured by an agent, a small process of its own (this executable with a hidden first argument): Debian's crun refuses to work where
//! cgroup v1 has the controllers and v2 has one too, so it must not see the v2 hierarchy. The agent's mount namespace hides it from both.

mod spec;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Runtime;
use crate::class::{self, Class};
use crate::look;
use crate::place::Place;

/// First argument under which this executable becomes the agent.
pub(crate) const AGENT_VERB: &str = "__oci-agent";

/// A command that sees no cgroup v2 hierarchy beside one of v1.
pub(crate) fn without_hybrid_cgroups() -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=private", "sh", "-c"])
        .arg("! mountpoint -q /sys/fs/cgroup/unified || umount --lazy /sys/fs/cgroup/unified; exec \"$@\"")
        .arg("sh");
    command
}

/// To the agent, one a line.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Start a container of a bundle.
    Start { name: String, bundle: PathBuf },
    /// Remove it.
    Stop,
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// Its process, and how long the first byte took.
    Started { pid: i32, nanoseconds: u64 },
    /// It is removed.
    Stopped,
    /// In words.
    Failed { reason: String },
}

/// One OCI runtime, behind its agent.
pub(crate) struct Oci {
    name: &'static str,
    place: Arc<Place>,
    agent: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    pid: Option<i32>,
}

impl Oci {
    pub(crate) fn new(name: &'static str, place: Arc<Place>) -> Result<Oci> {
        let root = place.dir().join(name);
        fs::create_dir_all(&root)?;
        let mut agent = without_hybrid_cgroups()
            .arg(std::env::current_exe()?)
            .args([AGENT_VERB, name])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let to = agent.stdin.take().context("no pipe")?;
        let from = agent.stdout.take().context("no pipe")?;
        Ok(Oci {
            name,
            place,
            agent,
            to: Some(to),
            from: BufReader::new(from),
            pid: None,
        })
    }

    /// The bundle of a class; made once.
    fn bundle(&self, class: &Class) -> Result<PathBuf> {
        let name = format!("bundle-{}-{}", self.name, class.name);
        let bundle = self.place.dir().join(name);
        if !bundle.exists() {
            let cgroup = format!("{}/{}", self.place.cgroup(), self.name);
            let config = spec::config(class, &self.place.rootfs(class), &cgroup)?;
            fs::create_dir(&bundle)?;
            fs::write(bundle.join("config.json"), config.to_string())?;
        }
        Ok(bundle)
    }

    fn ask(&mut self, ask: &Ask) -> Result<Said> {
        let to = self.to.as_mut().context("the agent has ended")?;
        writeln!(to, "{}", serde_json::to_string(ask)?)?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        match serde_json::from_str(&line).context("the agent has ended")? {
            Said::Failed { reason } => bail!("{reason}"),
            said => Ok(said),
        }
    }
}

impl Runtime for Oci {
    fn name(&self) -> &'static str {
        self.name
    }

    fn level(&self) -> &'static str {
        "engine"
    }

    fn start(&mut self, class: &Class, name: &str) -> Result<Instant> {
        let bundle = self.bundle(class)?;
        let name = name.to_owned();
        let start = Instant::now();
        match self.ask(&Ask::Start { name, bundle })? {
            Said::Started { pid, nanoseconds } => {
                self.pid = Some(pid);
                Ok(start + Duration::from_nanos(nanoseconds))
            }
            said => bail!("the agent said {said:?}"),
        }
    }

    fn pid(&mut self) -> Result<i32> {
        self.pid.context("no container")
    }

    fn stop(&mut self) -> Result<()> {
        self.pid = None;
        self.ask(&Ask::Stop).map(drop)
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        // The end of its input: it removes its container and ends.
        drop(self.to.take());
        if let Err(error) = self.agent.wait() {
            eprintln!("the agent of {}: {error}", self.name);
        }
    }
}

/// The agent's side: `<verb> runc <state directory>`.
///
/// # Errors
/// Its input or output is broken.
pub(crate) fn agent(arguments: &[String]) -> Result<()> {
    let [program, root] = arguments else {
        bail!("the agent needs a runtime and a directory");
    };
    let mut agent = Agent {
        program,
        root: Path::new(root),
        container: None,
    };
    for line in std::io::stdin().lines() {
        let said = match serde_json::from_str(&line?)? {
            Ask::Start { name, bundle } => agent.start(&name, &bundle),
            Ask::Stop => agent.stop().map(|()| Said::Stopped),
        };
        let said = said.unwrap_or_else(|error| Said::Failed {
            reason: format!("{error:#}"),
        });
        println!("{}", serde_json::to_string(&said)?);
    }
    agent.stop()
}

struct Agent<'a> {
    program: &'a str,
    root: &'a Path,
    container: Option<String>,
}

impl Agent<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(self.root);
        // The container keeps them open: not this process's own.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn start(&mut self, name: &str, bundle: &Path) -> Result<Said> {
        let (pid_file, log) = (self.root.join("pid"), self.root.join("log"));
        if let Err(error) = fs::remove_file(&pid_file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        self.container = Some(name.to_owned());
        let mut command = self.command();
        command
            .arg("--log")
            .arg(&log)
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(bundle)
            .arg(name);
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("{} can't be started", self.program))?;
        let mut ended: Option<ExitStatus> = None;
        // The app may answer before the runtime's own process has ended.
        let pid = loop {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            if let Ok(pid) = text.trim().parse::<i32>() {
                break pid;
            }
            if let Some(status) = ended {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let said = log.lines().last().unwrap_or_default();
                bail!("{} run: {status}: {said}", self.program);
            }
            ended = child.try_wait()?;
            std::thread::sleep(Duration::from_micros(50));
        };
        let first_byte = look::first_byte_inside(pid, class::PORT);
        child.wait()?;
        let nanoseconds = u64::try_from((first_byte? - start).as_nanos())?;
        Ok(Said::Started { pid, nanoseconds })
    }

    fn stop(&mut self) -> Result<()> {
        let Some(name) = self.container.take() else {
            return Ok(());
        };
        let status = self.command().args(["delete", "--force", &name]).status()?;
        if !status.success() {
            bail!("{} delete: {status}", self.program);
        }
        Ok(())
    }
}
