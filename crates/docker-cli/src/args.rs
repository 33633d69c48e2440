//! The command line's grammar, after Docker's reference.

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "docker",
    about = "Docker-compatible commands of Wharf",
    disable_version_flag = true,
    disable_help_subcommand = true
)]
pub(crate) struct Docker {
    /// Daemon socket
    #[arg(short = 'H', long, env = "DOCKER_HOST")]
    pub(crate) host: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what the daemon is
    Info(Format),
    /// Show versions
    Version(Format),
    /// Build an image from a Dockerfile
    Build(Build),
    /// Build (buildx's spelling)
    #[command(subcommand)]
    Buildx(Buildx),
    /// List images
    Images(ListImages),
    /// Image commands
    #[command(subcommand)]
    Image(Image),
    /// Remove images
    Rmi(Remove),
    /// Give an image another name
    Tag(Tag),
    /// Push an image to this node's registry
    Push(Push),
    /// Make sure that an image is here
    Pull(Pull),
    /// Check a registry's credentials
    Login(Login),
    /// Forget a registry's credentials (none are kept)
    Logout {
        /// Registry
        server: Option<String>,
    },
    /// Manifest commands
    #[command(subcommand)]
    Manifest(Manifest),
    /// Show a container or an image
    Inspect(Inspect),
    /// List containers
    Ps(Ps),
    /// Show a container's output
    Logs(Logs),
    /// Create a container, start it and show its output
    Run(Run),
    /// Create a container
    Create(Create),
    /// Start containers
    Start(Names),
    /// Stop containers: a signal, and SIGKILL after a time
    Stop(Stop),
    /// Send a signal to containers
    Kill(Kill),
    /// Remove containers
    Rm(RemoveContainers),
    /// Wait until containers end, and print their exit codes
    Wait(Names),
}

#[derive(Debug, Args)]
pub(crate) struct Format {
    /// Go template, or `json`
    #[arg(short, long)]
    pub(crate) format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Buildx {
    /// Build an image from a Dockerfile
    Build(Build),
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Name of the result
    #[arg(short, long = "tag")]
    pub(crate) tag: Vec<String>,
    /// Dockerfile; `-` reads it from standard input
    #[arg(short, long)]
    pub(crate) file: Option<String>,
    /// KEY=VALUE, or KEY to take it from the environment
    #[arg(long)]
    pub(crate) build_arg: Vec<String>,
    /// KEY=VALUE
    #[arg(long)]
    pub(crate) label: Vec<String>,
    /// Last stage to build
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// Only linux/amd64
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// Do not use the layer cache
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// The result always goes to the local store
    #[arg(long)]
    pub(crate) load: bool,
    /// Only `false`: provenance attestations are not made
    #[arg(long)]
    pub(crate) provenance: Option<String>,
    /// `default` and `host` mean the same: outbound through the daemon
    #[arg(long)]
    pub(crate) network: Option<String>,
    /// Print only the image's id
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// `auto`, `plain`; the output is always plain
    #[arg(long)]
    pub(crate) progress: Option<String>,
    /// Directory that COPY reads from
    pub(crate) context: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListImages {
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Go template per image, or `json`
    #[arg(long)]
    pub(crate) format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Show images
    Inspect(Inspect),
    /// Remove images
    #[command(alias = "remove")]
    Rm(Remove),
    /// List images
    #[command(alias = "list")]
    Ls(ListImages),
    /// Build an image
    Build(Build),
    /// Give an image another name
    Tag(Tag),
    /// Push an image to this node's registry
    Push(Push),
    /// Make sure that an image is here
    Pull(Pull),
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Go template, or `json`
    #[arg(short, long)]
    pub(crate) format: Option<String>,
    /// `image` or `container`
    #[arg(long = "type")]
    pub(crate) kind: Option<String>,
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Accepted: images in use are kept by their instances
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    pub(crate) source: String,
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only linux/amd64
    #[arg(long)]
    pub(crate) platform: Option<String>,
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    #[arg(short, long)]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    pub(crate) server: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Manifest {
    /// Show a manifest of this node's registry
    Inspect {
        /// With the descriptor
        #[arg(short, long)]
        verbose: bool,
        /// Accepted: the registry is on loopback
        #[arg(long)]
        insecure: bool,
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that have ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only those for which this holds: ancestor=IMAGE, label=KEY[=VALUE], name=NAME, id=ID, status=STATUS, exited=CODE
    #[arg(short, long)]
    pub(crate) filter: Vec<String>,
    /// Go template per container, or `json`
    #[arg(long)]
    pub(crate) format: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long)]
    pub(crate) tail: Option<String>,
    /// Name or id
    pub(crate) container: String,
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Do not wait for its end; print its id
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) create: Create,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name; made up if absent
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Remove it when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// KEY=VALUE, or KEY to take it from the environment
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// KEY=VALUE
    #[arg(short, long)]
    pub(crate) label: Vec<String>,
    /// [[ADDRESS:]PORT:]CONTAINER-PORT; on 127.0.0.1 if no address is given
    #[arg(short, long)]
    pub(crate) publish: Vec<String>,
    /// bridge, none or container:NAME
    #[arg(long)]
    pub(crate) network: Option<String>,
    /// The isolation class: namespace, gvisor or microvm
    #[arg(long)]
    pub(crate) runtime: Option<String>,
    /// no-new-privileges[=true|=false]: set-user-id programs have no effect
    #[arg(long)]
    pub(crate) security_opt: Vec<String>,
    /// Instead of the image's entrypoint
    #[arg(long)]
    pub(crate) entrypoint: Option<String>,
    /// Instead of the image's user
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Instead of the image's working directory
    #[arg(short, long)]
    pub(crate) workdir: Option<String>,
    pub(crate) image: String,
    /// Instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds until SIGKILL
    #[arg(short = 't', long = "timeout", alias = "time")]
    pub(crate) timeout: Option<u32>,
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Name or number
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: String,
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveContainers {
    /// Also those that run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Accepted: a container has no volumes of its own
    #[arg(short, long)]
    pub(crate) volumes: bool,
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}
