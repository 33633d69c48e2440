//! The image configuration while a stage is built, and the variables in scope. Pure: metadata instructions are functions on [`State`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use oci_spec::image::{
    Arch, Config, ConfigBuilder, HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder, Os,
    RootFsBuilder,
};

use crate::instruction::Command;
use crate::plan::PLATFORM_ARGS;

/// Docker's default for images without one.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Build arguments that need no ARG and leave no trace in the image or the cache.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Whether a build argument needs no ARG.
pub(crate) fn is_predefined(name: &str) -> bool {
    PREDEFINED.contains(&name) || PLATFORM_ARGS.iter().any(|(n, _)| *n == name)
}

/// One entry of the image's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) created: Option<String>,
    pub(crate) created_by: String,
    pub(crate) empty: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) user: String,
    /// Absolute.
    pub(crate) workdir: String,
    pub(crate) shell: Vec<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    /// CMD stands in this stage: an ENTRYPOINT does not reset it.
    cmd_is_own: bool,
    labels: BTreeMap<String, String>,
    ports: BTreeSet<String>,
    volumes: BTreeSet<String>,
    stop_signal: Option<String>,
    author: Option<String>,
    /// What instructions and RUN see: ENV, and ARGs with a value, the last one of a name. Those of
    /// the stage that this one begins from, too.
    scope: BTreeMap<String, String>,
    /// Names of ARGs, in order, also those without a value.
    args: Vec<String>,
    pub(crate) history: Vec<Past>,
}

impl State {
    pub(crate) fn scratch() -> Self {
        let mut state = Self {
            workdir: "/".into(),
            shell: default_shell(),
            ..Self::default()
        };
        state.set_env(DEFAULT_PATH.split_once('=').unwrap_or_default());
        state
    }

    /// From a base image with so many layers.
    pub(crate) fn from_image(image: &ImageConfiguration, layers: usize) -> Self {
        let config = image.config().clone().unwrap_or_default();
        let set = |v: &Option<Vec<String>>| v.iter().flatten().cloned().collect();
        let mut history: Vec<Past> = image
            .history()
            .iter()
            .flatten()
            .map(|h| Past {
                created: h.created().clone(),
                created_by: h.created_by().clone().unwrap_or_default(),
                empty: h.empty_layer().unwrap_or(false),
            })
            .collect();
        // Readers pair history with layers, so an image without history gets one.
        let known = history.iter().filter(|h| !h.empty).count();
        for _ in known..layers {
            history.push(Past {
                created: image.created().clone(),
                created_by: "base layer".into(),
                empty: false,
            });
        }
        let env: Vec<(String, String)> = config
            .env()
            .iter()
            .flatten()
            .filter_map(|e| e.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Self {
            scope: env.iter().cloned().collect(),
            env,
            user: config.user().clone().unwrap_or_default(),
            workdir: absolute("/", config.working_dir().as_deref().unwrap_or("/")),
            shell: default_shell(),
            entrypoint: config.entrypoint().clone(),
            cmd: config.cmd().clone(),
            labels: config
                .labels()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            ports: set(config.exposed_ports()),
            volumes: set(config.volumes()),
            stop_signal: config.stop_signal().clone(),
            author: image.author().clone(),
            history,
            ..Self::default()
        }
    }

    /// A stage that begins where another ended: everything carries over, ARGs too. At its start, an
    /// ENV goes before an ARG of the same name.
    pub(crate) fn child(&self) -> Self {
        let mut child = self.clone();
        child.cmd_is_own = false;
        child.scope.extend(self.env.iter().cloned());
        child
    }

    pub(crate) fn set_env(&mut self, (name, value): (&str, &str)) {
        match self.env.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => value.clone_into(v),
            None => self.env.push((name.to_owned(), value.to_owned())),
        }
        self.scope.insert(name.to_owned(), value.to_owned());
    }

    /// Declares an ARG: the build argument, else the default given here, else the value from before
    /// the first FROM, else the platform's. Without any, a variable of that name stays what it is.
    pub(crate) fn declare(
        &mut self,
        name: &str,
        default: Option<String>,
        build_args: &BTreeMap<String, String>,
        global: &BTreeMap<String, String>,
    ) {
        let value = build_args
            .get(name)
            .cloned()
            .or(default)
            .or_else(|| global.get(name).cloned())
            .or_else(|| {
                PLATFORM_ARGS
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| (*v).to_owned())
            });
        if let Some(value) = value {
            self.scope.insert(name.to_owned(), value);
        }
        if !self.args.iter().any(|arg| arg == name) {
            self.args.push(name.to_owned());
        }
    }

    /// A variable as instructions see it: the last ENV or ARG of that name.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.scope.get(name).cloned()
    }

    /// The ARGs with their values, for the history.
    pub(crate) fn run_args(&self) -> Vec<String> {
        let value = |name: &String| self.scope.get(name).map_or("", String::as_str);
        let args = self.args.iter();
        args.map(|name| format!("{name}={}", value(name))).collect()
    }

    /// All variables, for a step's key in the cache.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.scope
            .iter()
            .flat_map(|(name, value)| [name.as_str(), value.as_str()])
    }

    /// The environment of a RUN.
    pub(crate) fn run_env(&self, build_args: &BTreeMap<String, String>) -> Vec<String> {
        let entry = |(name, value): (&String, &String)| format!("{name}={value}");
        let mut env: Vec<String> = self.scope.iter().map(entry).collect();
        for name in PREDEFINED {
            if let Some(v) = build_args.get(name)
                && self.variable(name).is_none()
            {
                env.push(format!("{name}={v}"));
            }
        }
        if self.variable("PATH").is_none() {
            env.push(DEFAULT_PATH.to_owned());
        }
        env
    }

    pub(crate) fn set_workdir(&mut self, path: &str) {
        self.workdir = absolute(&self.workdir, path);
    }

    pub(crate) fn set_cmd(&mut self, command: &Command) {
        self.cmd = Some(self.argv(command));
        self.cmd_is_own = true;
    }

    pub(crate) fn set_entrypoint(&mut self, command: &Command) {
        self.entrypoint = Some(self.argv(command));
        if !self.cmd_is_own {
            self.cmd = None;
        }
    }

    /// A command with the shell before it in the shell form.
    pub(crate) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => self.shell.iter().cloned().chain([text.clone()]).collect(),
        }
    }

    pub(crate) fn label(&mut self, name: &str, value: &str) {
        self.labels.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn set_author(&mut self, author: &str) {
        self.author = Some(author.to_owned());
    }

    pub(crate) fn add_volume(&mut self, path: &str) -> Result<(), String> {
        if path.is_empty() {
            return Err("VOLUME: a path is empty".into());
        }
        self.volumes.insert(path.to_owned());
        Ok(())
    }

    /// Reads `80`, `80/udp`, `8000-8010/tcp`, and `[address:][port:]80`, of which the last counts.
    /// Returns whether there was more than that.
    pub(crate) fn expose(&mut self, text: &str) -> Result<bool, String> {
        let (own, is_mapping) = match text.rsplit_once(':') {
            Some((_, own)) => (own, true),
            None => (text, false),
        };
        let (range, protocol) = own.split_once('/').unwrap_or((own, "tcp"));
        let protocol = if protocol.is_empty() { "tcp" } else { protocol };
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(format!(
                "EXPOSE {text}: the protocol must be tcp, udp or sctp"
            ));
        }
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let port = |p: &str| {
            p.parse::<u16>()
                .map_err(|_| format!("EXPOSE {text}: {p:?} is not a port (0 to 65535)"))
        };
        let (low, high) = (port(low)?, port(high)?);
        if low > high {
            return Err(format!("EXPOSE {text}: the range runs backwards"));
        }
        self.ports
            .extend((low..=high).map(|p| format!("{p}/{protocol}")));
        Ok(is_mapping)
    }

    pub(crate) fn set_stop_signal(&mut self, text: &str) -> Result<(), String> {
        const NAMES: [&str; 34] = [
            "CLD", "IOT", "POLL", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE",
            "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT",
            "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
            "PWR", "SYS",
        ];
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = text.parse::<u32>().is_ok_and(|n| (1..=64).contains(&n));
        let real_time = name
            .strip_prefix("RTMIN+")
            .or_else(|| name.strip_prefix("RTMAX-"))
            .is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n <= 30))
            || matches!(name, "RTMIN" | "RTMAX");
        if !number && !real_time && !NAMES.contains(&name) {
            return Err(format!("STOPSIGNAL {text}: no such signal"));
        }
        self.stop_signal = Some(text.to_owned());
        Ok(())
    }

    pub(crate) fn remember(&mut self, created_by: String, created: Option<String>, empty: bool) {
        self.history.push(Past {
            created,
            created_by,
            empty,
        });
    }

    /// The OCI configuration; the image store fills `rootfs`.
    pub(crate) fn to_image(&self, created: &str) -> Result<ImageConfiguration, String> {
        let problem = |e: oci_spec::OciSpecError| format!("image configuration: {e}");
        let mut config: Config = ConfigBuilder::default().build().map_err(problem)?;
        config.set_env(Some(
            self.env.iter().map(|(n, v)| format!("{n}={v}")).collect(),
        ));
        config.set_user(Some(self.user.clone()).filter(|u| !u.is_empty()));
        config.set_working_dir(Some(self.workdir.clone()));
        config.set_entrypoint(self.entrypoint.clone());
        config.set_cmd(self.cmd.clone());
        config.set_stop_signal(self.stop_signal.clone());
        let list = |set: &BTreeSet<String>| {
            (!set.is_empty()).then(|| set.iter().cloned().collect::<Vec<_>>())
        };
        config.set_exposed_ports(list(&self.ports));
        config.set_volumes(list(&self.volumes));
        config.set_labels(
            (!self.labels.is_empty())
                .then(|| self.labels.clone().into_iter().collect::<HashMap<_, _>>()),
        );
        let history = self
            .history
            .iter()
            .map(|h| {
                let mut entry = HistoryBuilder::default()
                    .created_by(h.created_by.clone())
                    .build()?;
                entry.set_created(h.created.clone());
                entry.set_empty_layer(h.empty.then_some(true));
                Ok(entry)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(problem)?;
        let mut image = ImageConfigurationBuilder::default()
            .created(created)
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .config(config)
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids(Vec::<String>::new())
                    .build()
                    .map_err(problem)?,
            )
            .history(history)
            .build()
            .map_err(problem)?;
        image.set_author(self.author.clone());
        Ok(image)
    }
}

fn default_shell() -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into()]
}

/// Joins and cleans a path lexically, as Docker does for WORKDIR and destinations.
pub(crate) fn absolute(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_directories_are_joined() {
        let mut s = State::scratch();
        for (path, want) in [
            ("app", "/app"),
            ("x/y", "/app/x/y"),
            ("..", "/app/x"),
            ("/z/", "/z"),
            ("../../..", "/"),
        ] {
            s.set_workdir(path);
            assert_eq!(s.workdir, want);
        }
    }

    #[test]
    fn entrypoint_drops_an_inherited_command_only() {
        let words = |w: &str| Command::Exec(vec![w.into()]);
        let mut base = State::scratch();
        base.set_cmd(&words("sh"));
        let mut child = base.child();
        child.set_entrypoint(&words("e"));
        assert_eq!(child.cmd, None);
        let mut own = base.child();
        own.set_cmd(&words("c"));
        own.set_entrypoint(&words("e"));
        assert_eq!(own.cmd, Some(vec!["c".into()]));
    }

    #[test]
    fn arguments_come_from_flag_then_default_then_global() {
        let map = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let (given, global, none) = (map("A", "given"), map("A", "global"), BTreeMap::new());
        let value = |default: Option<&str>, b: &BTreeMap<_, _>, g: &BTreeMap<_, _>| {
            let mut s = State::scratch();
            s.declare("A", default.map(str::to_owned), b, g);
            s.variable("A")
        };
        assert_eq!(value(Some("d"), &given, &global).as_deref(), Some("given"));
        assert_eq!(value(Some("d"), &none, &global).as_deref(), Some("d"));
        assert_eq!(value(None, &none, &global).as_deref(), Some("global"));
        assert_eq!(value(None, &none, &none), None);
    }

    #[test]
    fn the_last_env_or_arg_of_a_name_counts_and_proxies_reach_only_the_run() {
        let mut s = State::scratch();
        let args = BTreeMap::from([
            ("A".to_owned(), "arg".to_owned()),
            ("HTTPS_PROXY".to_owned(), "p".to_owned()),
        ]);
        s.declare("A", None, &args, &BTreeMap::new());
        assert_eq!(s.run_args(), ["A=arg"]);
        s.set_env(("A", "env"));
        assert_eq!(s.run_args(), ["A=env"]);
        let env = s.run_env(&args);
        assert!(env.contains(&"A=env".to_owned()) && env.contains(&"HTTPS_PROXY=p".to_owned()));
        assert_eq!(s.variable("HTTPS_PROXY"), None);
        s.declare("A", None, &args, &BTreeMap::new());
        assert_eq!(s.variable("A").as_deref(), Some("arg"));
        assert_eq!(s.env.last(), Some(&("A".to_owned(), "env".to_owned())));
        // Without a value it takes none away.
        s.set_env(("B", "env"));
        s.declare("B", None, &BTreeMap::new(), &BTreeMap::new());
        assert_eq!(s.variable("B").as_deref(), Some("env"));
    }

    #[test]
    fn a_stage_has_the_args_of_the_one_that_it_begins_from() {
        let none = BTreeMap::new();
        let mut base = State::scratch();
        base.set_env(("E", "env"));
        base.declare("E", Some("arg".into()), &none, &none);
        base.declare("A", Some("a".into()), &none, &none);
        let mut child = base.child();
        assert_eq!(child.variable("A").as_deref(), Some("a"));
        assert_eq!(child.variable("E").as_deref(), Some("env"));
        child.declare("A", None, &none, &none);
        assert_eq!(child.variable("A").as_deref(), Some("a"));
        child.declare("A", Some("b".into()), &none, &none);
        assert_eq!(child.variable("A").as_deref(), Some("b"));
        // An image keeps its ENV alone; its ARGs are not stored.
        let image = child.to_image("1970-01-01T00:00:00Z").expect("image");
        assert_eq!(State::from_image(&image, 0).variable("A"), None);
    }

    #[test]
    fn ports_and_signals_are_checked() {
        let mut s = State::scratch();
        assert_eq!(s.expose("80"), Ok(false));
        assert_eq!(s.expose("90-91/UDP"), Ok(false));
        for mapping in ["8080:80", "127.0.0.1:8080:80/tcp", "[::1]::80/"] {
            assert_eq!(s.expose(mapping), Ok(true), "{mapping}");
        }
        assert_eq!(
            s.ports.iter().map(String::as_str).collect::<Vec<_>>(),
            ["80/tcp", "90/udp", "91/udp"]
        );
        for bad in ["x", "70000", "9-8", "80/xyz", "", "80:"] {
            assert!(s.expose(bad).is_err(), "{bad}");
        }
        for good in ["SIGTERM", "quit", "9", "SIGRTMIN+3", "SIGCLD"] {
            assert!(s.set_stop_signal(good).is_ok(), "{good}");
        }
        for bad in ["SIGNOPE", "0", "65", "SIGRTMIN+99"] {
            assert!(s.set_stop_signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_round_trip_keeps_the_configuration() {
        let mut s = State::scratch();
        s.set_env(("K", "v=w"));
        s.user = "u".into();
        s.set_workdir("/w");
        s.set_cmd(&Command::Shell("run".into()));
        s.label("l", "1");
        s.expose("80").expect("port");
        s.add_volume("/d").expect("volume");
        s.set_stop_signal("SIGINT").expect("signal");
        s.remember("X".into(), None, true);
        let image = s.to_image("1970-01-01T00:00:00Z").expect("image");
        let back = State::from_image(&image, 1);
        assert_eq!(back.env, s.env);
        assert_eq!(
            (&back.user, &back.workdir, &back.cmd),
            (&s.user, &s.workdir, &s.cmd)
        );
        assert_eq!(
            (&back.labels, &back.ports, &back.volumes),
            (&s.labels, &s.ports, &s.volumes)
        );
        assert_eq!(back.stop_signal, s.stop_signal);
        assert_eq!(
            back.history.len(),
            2,
            "a layer without history gets an entry"
        );
    }
}
