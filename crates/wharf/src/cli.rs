//! The command line: one function a verb. What needs a running node is asked over the operator's socket.

mod describe;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};
use hyper::Method;
use serde_json::{Value, json};
use wharf_docker_cli::Client;
use wharf_docker_cli::client::{empty, escape, stream};

use self::describe::describe;
use crate::config::Config;

/// Run Cloudflare Containers apps on your own machine.
#[derive(Debug, Parser)]
#[command(name = "wharf", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Common {
    /// Configuration file [default: /etc/wharf/wharf.toml, if it exists]
    #[arg(long, global = true, env = "WHARF_CONFIG")]
    config: Option<PathBuf>,
    /// Where the node keeps its state [default: /var/lib/wharf]
    #[arg(long, global = true, env = "WHARF_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node
    Up {
        /// Gateway address [default: 127.0.0.1:8080]
        #[arg(long)]
        listen: Option<std::net::SocketAddr>,
        /// Control API and registry address [default: 127.0.0.1:7400]
        #[arg(long)]
        control_listen: Option<std::net::SocketAddr>,
        /// Development: the page for an unknown host lists the Workers that exist
        #[arg(long)]
        dev: bool,
    },
    /// Print the variables that point wrangler at this node: eval "$(wharf env)"
    Env {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run the project's own wrangler against this node
    #[command(disable_help_flag = true)]
    Wrangler {
        /// wrangler's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Docker-compatible commands
    #[command(disable_help_flag = true)]
    Docker {
        /// docker's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Say what is running
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Images of this node
    #[command(subcommand)]
    Image(Image),
    /// Get the kernel for virtual machines (isolation class microvm): Debian's package linux-image-cloud-amd64, unpacked into the data directory, not installed
    GuestKernel {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a wharf.toml with every key, its default and its meaning
    Config,
}

#[derive(Debug, Subcommand)]
enum Image {
    /// Make an image from a root file system's tar (plain, gzip or zstd); `-` reads standard input
    Import {
        /// Name of the image, e.g. debian:12
        name: String,
        /// The tar
        rootfs: PathBuf,
    },
    /// List images
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images
    Rm {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs the command line of this process; returns the exit code.
pub(crate) async fn main() -> i32 {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("wharf: {e:#}");
            1
        }
    }
}

/// `docker ...` against the socket; used by `wharf docker` and by the link that wrangler runs.
pub(crate) async fn docker(args: Vec<String>, socket: PathBuf) -> i32 {
    wharf_docker_cli::main(args, format!("unix://{}", socket.display())).await
}

/// `<data>/bin/docker` belongs to `<data>/run/wharf.sock`; the link's own path tells which node is meant.
pub(crate) fn socket_beside_executable() -> PathBuf {
    let called_as = std::env::args_os()
        .next()
        .map(PathBuf::from)
        .unwrap_or_default();
    let data_dir = called_as
        .parent()
        .and_then(Path::parent)
        .filter(|d| d.join("run/wharf.sock").exists());
    match data_dir {
        Some(dir) => dir.join("run/wharf.sock"),
        None => Config::default().socket(),
    }
}

async fn run(cli: Cli) -> anyhow::Result<i32> {
    let mut config = Config::load(cli.common.config.as_deref())?;
    if let Some(dir) = cli.common.data_dir {
        config.data_dir = std::path::absolute(&dir)?;
    }
    let socket = config.socket();
    match cli.verb {
        Verb::Up {
            listen,
            control_listen,
            dev,
        } => {
            config.gateway.listen = listen.unwrap_or(config.gateway.listen);
            config.control.listen = control_listen.unwrap_or(config.control.listen);
            config.gateway.dev |= dev;
            crate::daemon::up(config).await?;
            Ok(0)
        }
        Verb::Env { json } => show_environment(&socket, json).await,
        Verb::Wrangler { args } => wrangler(&socket, args).await,
        Verb::Docker { args } => Ok(docker(args, socket).await),
        Verb::Status { json } => status(&socket, json).await,
        Verb::Image(Image::Ls { json: false }) => Ok(docker(vec!["images".into()], socket).await),
        Verb::Image(Image::Ls { json: true }) => {
            let list = client(&socket)?
                .json(Method::GET, "/images/json", empty())
                .await?;
            print(&serde_json::to_string_pretty(&list)?);
            Ok(0)
        }
        Verb::Image(Image::Rm { names }) => {
            Ok(docker(["rmi".into()].into_iter().chain(names).collect(), socket).await)
        }
        Verb::Image(Image::Import { name, rootfs }) => import(&socket, &name, &rootfs).await,
        Verb::GuestKernel { json } => guest_kernel(&config, json).await,
        Verb::Config => {
            print(Config::documented().trim_end());
            Ok(0)
        }
    }
}

async fn show_environment(socket: &Path, json: bool) -> anyhow::Result<i32> {
    let variables = environment(socket).await?;
    if json {
        print(&serde_json::to_string_pretty(&variables)?);
    } else {
        for (key, value) in pairs(&variables) {
            print(&format!("export {key}={}", shell_quote(&value)));
        }
    }
    Ok(0)
}

/// Becomes wrangler; returns only if that fails.
async fn wrangler(socket: &Path, args: Vec<String>) -> anyhow::Result<i32> {
    let variables = environment(socket).await?;
    let program = local_wrangler().ok_or_else(|| {
        anyhow::anyhow!("no wrangler here: node_modules/.bin/wrangler is not in this folder or above, nor wrangler in PATH; run `npm install --save-dev wrangler`")
    })?;
    let error = std::process::Command::new(&program)
        .args(args)
        .envs(pairs(&variables))
        .exec();
    anyhow::bail!("{}: {error}", program.display())
}

async fn guest_kernel(config: &Config, json: bool) -> anyhow::Result<i32> {
    eprintln!("getting linux-image-cloud-amd64 (some 60 MB) ...");
    let directory = config.guest_dir();
    let package =
        tokio::task::spawn_blocking(move || wharf_microvm::package::fetch(&directory)).await??;
    let place = package.root.display();
    if json {
        print(&json!({"package": package.name, "path": package.root}).to_string());
    } else {
        print(&format!("ready: {} in {place}", package.name));
    }
    Ok(0)
}

fn print(text: &str) {
    // A reader that has gone away (`wharf status | head`) is not this command's failure.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn client(socket: &Path) -> anyhow::Result<Client> {
    Ok(Client::new(&format!("unix://{}", socket.display()))?)
}

/// The variables that wrangler reads (contract: wrangler, section 1), from the running node.
async fn environment(socket: &Path) -> anyhow::Result<Value> {
    Ok(client(socket)?
        .json(Method::GET, "/wharf/env", empty())
        .await?)
}

fn pairs(variables: &Value) -> Vec<(String, String)> {
    let entries = variables.as_object().into_iter().flatten();
    entries
        .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect()
}

fn shell_quote(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@=,+".contains(&b);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// node_modules/.bin/wrangler of this folder or one above, else wrangler from PATH.
fn local_wrangler() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let local = here
        .ancestors()
        .map(|d| d.join("node_modules/.bin/wrangler"))
        .find(|p| p.exists());
    local.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|d| d.join("wrangler"))
            .find(|p| p.exists())
    })
}

async fn import(socket: &Path, name: &str, rootfs: &Path) -> anyhow::Result<i32> {
    let reader: Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin> = if rootfs == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let file = tokio::fs::File::open(rootfs).await;
        Box::new(file.map_err(|e| anyhow::anyhow!("{}: {e}", rootfs.display()))?)
    };
    let path = format!("/images/create?fromSrc=-&repo={}", escape(name));
    let mut id = String::new();
    client(socket)?
        .json_lines(Method::POST, &path, stream(reader), |line| {
            id = line["status"].as_str().unwrap_or_default().to_owned();
        })
        .await?;
    print(&id);
    Ok(0)
}

async fn status(socket: &Path, json: bool) -> anyhow::Result<i32> {
    let status = client(socket)?
        .json(Method::GET, "/wharf/status", empty())
        .await?;
    if json {
        print(&serde_json::to_string_pretty(&status)?);
        return Ok(0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    print(&describe(&status, now));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_status_says_why_something_does_not_run() {
        let status = serde_json::json!({
            "gateway": "127.0.0.1:8080", "control": "127.0.0.1:7400", "scripts": [],
            "instances": [{
                "id": "ab".repeat(32), "application": "0-1-2", "application_name": "my-app", "state": "exited (127)", "pid": null,
                "image": format!("127.0.0.1:7400/acc/my-app@sha256:{}", "cd".repeat(32)), "error": "exec: \"/nope\": no such file or directory",
            }],
            "standbys": [{"application_name": "my-app", "ready": 1, "wanted": 2, "handed": 7, "memory_bytes": 3 << 20, "reason": "it ends at once"}],
            "snapshots": [{"owner": "script my-app", "count": 3, "bytes": 1 << 21, "shared_bytes": 1}],
            "resources": [
                {"resource": "memory", "used": 1, "limit": 10, "reserve": 1, "short": false},
                {"resource": "descriptors", "used": 760, "limit": 1000, "reserve": 250, "short": true,
                 "most": {"name": "application \"my-app\"", "instances": 3}},
            ],
            "refusals": [{"application_name": "my-app", "at_ms": 5_000, "reason": "application \"my-app\" already runs 3 of max_instances 3"}],
        });
        let text = describe(&status, std::time::Duration::from_secs(7));
        assert!(text.contains("abababababab  my-app "), "{text}");
        assert!(text.contains(" my-app@sha256:cdcdcdcdcdcd\n"), "{text}");
        assert!(text.contains("  error: exec: \"/nope\""), "{text}");
        assert!(
            text.contains("my-app                   1        2        7        3\n  fewer than wanted: it ends at once"),
            "{text}"
        );
        assert!(
            text.contains("script my-app            3        2        1"),
            "{text}"
        );
        assert!(
            text.contains("descriptors              760          1000         250          application \"my-app\" (3 instances)"),
            "{text}"
        );
        assert!(!text.contains("memory  "), "{text}");
        assert!(
            text.ends_with("2 s ago: application \"my-app\" already runs 3 of max_instances 3"),
            "{text}"
        );
    }

    #[test]
    fn exported_values_survive_a_shell() {
        assert_eq!(
            shell_quote("http://127.0.0.1:7400/client/v4"),
            "http://127.0.0.1:7400/client/v4"
        );
        assert_eq!(shell_quote("it's"), r"'it'\''s'");
        assert_eq!(shell_quote(""), "''");
    }
}
