//! A node of this checkout for demo, bench and conformance: built, started, deployed to, and ended with nothing left.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::progress::{run, step};
use crate::{interrupt, setup};

/// A running `wharf up` with a data directory of its own.
pub(crate) struct Node {
    child: Child,
    data_dir: PathBuf,
    binary: PathBuf,
}

/// Fails with the mend when a port is taken; before anything is built.
pub(crate) fn check_port(address: SocketAddr, option: &str) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) => bail!(
            "{address} can't be used: {e}; stop what listens there (`ss -ltnp`), or choose another with {option}"
        ),
    }
}

/// An address on loopback that nobody listens on now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// How to build the wharf executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Fast to build; shares its work with the tests.
    Dev,
    /// Fast to run, for figures.
    Release,
}

/// Builds the wharf executable.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    let (directory, arguments): (_, &[&str]) = match profile {
        Profile::Dev => ("debug", &["build", "--package", "wharf"]),
        Profile::Release => ("release", &["build", "--package", "wharf", "--release"]),
    };
    step("building wharf (some minutes the first time)", || {
        let mut cargo = setup::cargo();
        run(cargo.args(arguments).current_dir(setup::root()))
    })?;
    interrupt::check()?;
    Ok(setup::root().join("target").join(directory).join("wharf"))
}

impl Node {
    /// Starts a node with a data directory of its own; its log is a file there.
    pub(crate) fn start(binary: &Path, gateway: SocketAddr, control: SocketAddr) -> Result<Node> {
        let workerd = setup::tools()?.workerd;
        let data_dir = std::env::temp_dir().join(format!("wharf-{}", std::process::id()));
        std::fs::create_dir_all(&data_dir)?;
        let log = std::fs::File::create(data_dir.join("log"))?;
        let child = Command::new(binary)
            .arg("--data-dir")
            .arg(&data_dir)
            .args([
                "up",
                "--dev",
                "--listen",
                &gateway.to_string(),
                "--control-listen",
                &control.to_string(),
            ])
            .env("WHARF_WORKERD", workerd)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group: Ctrl-C reaches this program first, which ends the node in order.
            .process_group(0)
            .spawn()
            .with_context(|| binary.display().to_string())?;
        let mut node = Node {
            child,
            data_dir,
            binary: binary.to_owned(),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(gateway).is_err() || !node.data_dir.join("token").exists() {
            if let Some(status) = node.child.try_wait()? {
                bail!("the node ended with {status}:\n{}", node.log());
            }
            if Instant::now() > deadline {
                bail!("the node does not come up within 30 s:\n{}", node.log());
            }
            interrupt::check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(node)
    }

    /// What the node printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.data_dir.join("log")).unwrap_or_default()
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The operator's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.data_dir.join("run/wharf.sock")
    }

    /// The `wharf` command for this node.
    pub(crate) fn wharf(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--data-dir").arg(&self.data_dir);
        command
    }

    /// A program that does [`Node::deploy`], for others to run.
    pub(crate) fn write_deploy(&self, project: &Path, file: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let wrangler = setup::tools()?.wrangler;
        let text = format!(
            "#!/bin/sh\ncd '{}' && PATH='{}' exec '{}' --data-dir '{}' wrangler deploy\n",
            project.display(),
            wrangler.path().to_string_lossy(),
            self.binary.display(),
            self.data_dir.display()
        );
        std::fs::write(file, text)?;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// `wharf wrangler deploy` of a project, exactly as a user runs it.
    pub(crate) fn deploy(&self, project: &Path) -> Result<()> {
        let wrangler = setup::tools()?.wrangler;
        let deployed = step(&format!("wrangler deploy ({})", wrangler.version), || {
            run(self
                .wharf()
                .args(["wrangler", "deploy"])
                .current_dir(project)
                .env("PATH", wrangler.path()))
        });
        interrupt::check()?;
        deployed
            .map(drop)
            .with_context(|| format!("the node said:\n{}", self.log()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let deadline = Instant::now() + Duration::from_secs(45);
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => break,
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                _ => {
                    eprintln!(
                        "the node did not stop in time and is killed; its log:\n{}",
                        self.log()
                    );
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break;
                }
            }
        }
        if let Err(e) = std::fs::remove_dir_all(&self.data_dir) {
            eprintln!("{} is left behind: {e}", self.data_dir.display());
        }
    }
}

/// A keep-alive HTTP/1.1 client of the few features that measuring needs.
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    host: String,
}

/// An answer and how long its first byte took.
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: u16,
    /// Body.
    pub(crate) body: Vec<u8>,
    /// Request sent to first byte of the answer.
    pub(crate) first_byte: Duration,
}

impl Http {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr, host: &str) -> std::io::Result<Http> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Http {
            stream: BufReader::new(stream),
            host: host.to_owned(),
        })
    }

    /// GET.
    pub(crate) fn get(&mut self, path: &str) -> std::io::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        let started = Instant::now();
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.stream.fill_buf()?;
        let first_byte = started.elapsed();
        let bad =
            |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| bad(&line))?;
        let (mut length, mut chunked) = (None, false);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse::<usize>().ok(),
                "transfer-encoding" => chunked = value.contains("chunked"),
                _ => {}
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                line.clear();
                self.stream.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(|_| bad(&line))?;
                let start = body.len();
                body.resize(start + size, 0);
                self.stream.read_exact(&mut body[start..])?;
                line.clear();
                self.stream.read_line(&mut line)?;
                if size == 0 {
                    return Ok(Answer {
                        status,
                        body,
                        first_byte,
                    });
                }
            }
        }
        body.resize(length.ok_or_else(|| bad("an answer without a length"))?, 0);
        self.stream.read_exact(&mut body)?;
        Ok(Answer {
            status,
            body,
            first_byte,
        })
    }
}
