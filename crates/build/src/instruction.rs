//! Logical lines into typed instructions, variables not yet substituted. What is no Dockerfile is
//! refused here, with its line; what is one and is not supported becomes
//! [`Instruction::Unsupported`], which is refused where a stage is needed that has it. Pure.

use crate::BuildError;
use crate::parse::{File, Heredoc, Line, fail, raw_words};

/// An instruction and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// 1-based.
    pub(crate) line: usize,
    /// As written, on one line.
    pub(crate) text: String,
    pub(crate) instruction: Instruction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Instruction {
    From {
        image: String,
        platform: Option<String>,
        name: Option<String>,
    },
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run(Run),
    Copy(Copy),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Workdir(String),
    User(String),
    Expose(String),
    Volume(Vec<String>),
    Stopsignal(String),
    Maintainer(String),
    Healthcheck,
    /// Why it cannot be carried out here.
    Unsupported(String),
}

/// Why there is no instruction.
enum Refusal {
    /// It is wrong.
    Wrong(String),
    /// It is right, and not supported.
    Unsupported(String),
}

impl From<String> for Refusal {
    fn from(message: String) -> Refusal {
        Refusal::Wrong(message)
    }
}

impl From<&str> for Refusal {
    fn from(message: &str) -> Refusal {
        Refusal::Wrong(message.to_owned())
    }
}

fn unsupported<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(message.into()))
}

/// Shell form or exec form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Shell(String),
    Exec(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) command: Command,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) caches: Vec<CacheMount>,
    /// `--network`: whether the internet is there.
    pub(crate) network: bool,
}

/// `--mount=type=cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheMount {
    pub(crate) target: String,
    /// Empty: the target.
    pub(crate) id: String,
    pub(crate) read_only: bool,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    /// ADD, not COPY.
    pub(crate) add: bool,
    /// Local tar archives are unpacked.
    pub(crate) unpack: bool,
    pub(crate) sources: Vec<String>,
    /// Files given as here-documents.
    pub(crate) inline: Vec<Heredoc>,
    pub(crate) dest: String,
    pub(crate) from: Option<String>,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
}

/// Types every line.
pub(crate) fn steps(file: &File) -> Result<Vec<Step>, BuildError> {
    file.lines
        .iter()
        .map(|line| {
            let instruction = match instruction(line, file.escape) {
                Ok(instruction) => instruction,
                Err(Refusal::Unsupported(message)) => Instruction::Unsupported(message),
                Err(Refusal::Wrong(message)) => return Err(fail(line.number, message)),
            };
            Ok(Step {
                line: line.number,
                text: text(line),
                instruction,
            })
        })
        .collect()
}

fn text(line: &Line) -> String {
    let mut out = line.keyword.clone();
    for (name, value) in &line.flags {
        out.push_str(" --");
        out.push_str(name);
        if let Some(v) = value {
            out.push('=');
            out.push_str(v);
        }
    }
    for word in line.rest.split_whitespace() {
        out.push(' ');
        out.push_str(word);
    }
    out
}

fn instruction(line: &Line, escape: char) -> Result<Instruction, Refusal> {
    let rest = line.rest.as_str();
    let keyword = line.keyword.as_str();
    if rest.is_empty() {
        return Err(format!("{keyword} needs an argument").into());
    }
    Ok(match keyword {
        "FROM" => from(line)?,
        "ARG" => Instruction::Arg(
            raw_words(rest, escape)
                .into_iter()
                .map(|w| match w.split_once('=') {
                    Some((name, value)) => named("ARG", name, Some(value.to_owned())),
                    None => named("ARG", &w, None),
                })
                .collect::<Result<_, String>>()?,
        ),
        "ENV" => Instruction::Env(pairs("ENV", rest, escape)?),
        "LABEL" => Instruction::Label(pairs("LABEL", rest, escape)?),
        "RUN" => run(line)?,
        "COPY" | "ADD" => copy(line, escape)?,
        "CMD" => Instruction::Cmd(command(rest)),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)),
        "SHELL" => match command(rest) {
            Command::Exec(words) if !words.is_empty() => Instruction::Shell(words),
            _ => {
                return Err("SHELL needs a JSON array, e.g. SHELL [\"/bin/bash\", \"-c\"]".into());
            }
        },
        "WORKDIR" => Instruction::Workdir(rest.into()),
        "USER" => Instruction::User(rest.into()),
        "EXPOSE" => Instruction::Expose(rest.into()),
        "VOLUME" => Instruction::Volume(list(rest)),
        "STOPSIGNAL" => Instruction::Stopsignal(rest.into()),
        "MAINTAINER" => Instruction::Maintainer(rest.into()),
        "HEALTHCHECK" => healthcheck(line)?,
        "ONBUILD" => {
            return unsupported(
                "ONBUILD is not supported: write the instruction into the Dockerfile that uses this image",
            );
        }
        other => return Err(format!("unknown instruction \"{other}\"").into()),
    })
}

fn named(
    keyword: &str,
    name: &str,
    value: Option<String>,
) -> Result<(String, Option<String>), String> {
    if name.is_empty() {
        return Err(format!("{keyword} needs a name before the ="));
    }
    Ok((name.to_owned(), value))
}

/// `a=b c="d e"`, or the old form `a everything else`.
fn pairs(keyword: &str, rest: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = raw_words(rest, escape);
    if !words.first().is_some_and(|w| w.contains('=')) {
        let (name, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("{keyword} needs a value: write {keyword} {rest}=<value>"))?;
        return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
    }
    words
        .iter()
        .map(|w| match w.split_once('=') {
            Some(("", _)) => Err(format!("{keyword} needs a name before the =")),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!(
                "{keyword}: {w:?} has no =; each entry must be name=value (quote values with spaces)"
            )),
        })
        .collect()
}

fn command(rest: &str) -> Command {
    match json(rest) {
        Some(words) => Command::Exec(words),
        None => Command::Shell(rest.to_owned()),
    }
}

/// A JSON array of strings, or nothing: then it is the shell form.
fn json(rest: &str) -> Option<Vec<String>> {
    rest.starts_with('[')
        .then(|| serde_json::from_str(rest).ok())
        .flatten()
}

fn list(rest: &str) -> Vec<String> {
    json(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect())
}

fn value(keyword: &str, name: &str, value: Option<&String>) -> Result<String, String> {
    value
        .cloned()
        .ok_or_else(|| format!("{keyword} --{name} needs a value: --{name}=<value>"))
}

fn from(line: &Line) -> Result<Instruction, String> {
    let mut platform = None;
    for (name, v) in &line.flags {
        match name.as_str() {
            "platform" => platform = Some(value("FROM", name, v.as_ref())?),
            other => return Err(format!("FROM --{other}: there is no such flag")),
        }
    }
    let words: Vec<&str> = line.rest.split_whitespace().collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, as_, name] if as_.eq_ignore_ascii_case("as") => (image, Some(name)),
        _ => return Err("FROM must be: FROM <image> [AS <name>]".into()),
    };
    if let Some(name) = name {
        let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !fits {
            return Err(format!(
                "{name:?} cannot name a stage: a letter, then letters, digits, - _ ."
            ));
        }
    }
    Ok(Instruction::From {
        image: image.to_owned(),
        platform,
        name: name.map(str::to_ascii_lowercase),
    })
}

fn run(line: &Line) -> Result<Instruction, Refusal> {
    let mut caches = Vec::new();
    let mut network = true;
    for (name, v) in &line.flags {
        let v = value("RUN", name, v.as_ref())?;
        match (name.as_str(), v.as_str()) {
            ("mount", _) => caches.push(cache_mount(&v)?),
            ("network", "default") => network = true,
            ("network", "none") => network = false,
            ("security", "sandbox") => {}
            ("network", "host") | ("security", "insecure") | ("device", _) => {
                return unsupported(format!("RUN --{name}={v} is not supported"));
            }
            ("network" | "security", _) => {
                return Err(format!("RUN --{name}={v}: there is no such value").into());
            }
            _ => return Err(format!("RUN --{name}: there is no such flag").into()),
        }
    }
    Ok(Instruction::Run(Run {
        command: command(&line.rest),
        heredocs: line.heredocs.clone(),
        caches,
        network,
    }))
}

fn cache_mount(text: &str) -> Result<CacheMount, Refusal> {
    let mut kind = "bind";
    let mut mount = CacheMount {
        target: String::new(),
        id: String::new(),
        read_only: false,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let mut unknown = None;
    for part in text.split(',') {
        let (key, v) = part.split_once('=').unwrap_or((part, ""));
        let number = || {
            v.parse()
                .map_err(|_| format!("RUN --mount: {key}={v} is not a number"))
        };
        match key.to_ascii_lowercase().as_str() {
            "type" => kind = v,
            "target" | "dst" | "destination" => mount.target = v.to_owned(),
            "id" => mount.id = v.to_owned(),
            "readonly" | "ro" => mount.read_only = !matches!(v, "false" | "0"),
            "rw" | "readwrite" => mount.read_only = matches!(v, "false" | "0"),
            // A directory is used by one RUN at a time, so that nobody sees a difference.
            "sharing" if matches!(v, "shared" | "locked" | "private") => {}
            "mode" => {
                mount.mode = u32::from_str_radix(v, 8)
                    .map_err(|_| format!("RUN --mount: mode={v} is not octal"))?;
            }
            "uid" => mount.uid = number()?,
            "gid" => mount.gid = number()?,
            _ => unknown = Some(part.to_owned()),
        }
    }
    if kind != "cache" {
        return match kind {
            "bind" | "tmpfs" | "secret" | "ssh" => unsupported(format!(
                "RUN --mount=type={kind} is not supported yet; only type=cache is"
            )),
            _ => Err(format!("RUN --mount=type={kind}: there is no such type").into()),
        };
    }
    match unknown {
        Some(part) if part.starts_with("from=") || part.starts_with("source=") => {
            return unsupported(format!(
                "RUN --mount=type=cache: {part} is not supported yet"
            ));
        }
        Some(part) => {
            return Err(format!("RUN --mount=type=cache: {part} is not known").into());
        }
        None => {}
    }
    if mount.target.is_empty() {
        return Err("RUN --mount=type=cache needs target=<directory>".into());
    }
    Ok(mount)
}

fn copy(line: &Line, escape: char) -> Result<Instruction, Refusal> {
    let keyword = line.keyword.as_str();
    let add = keyword == "ADD";
    let mut copy = Copy {
        add,
        unpack: add,
        sources: Vec::new(),
        inline: line.heredocs.clone(),
        dest: String::new(),
        from: None,
        chown: None,
        chmod: None,
    };
    for (name, v) in &line.flags {
        match name.as_str() {
            "from" if !add => copy.from = Some(value(keyword, name, v.as_ref())?),
            "chown" => copy.chown = Some(value(keyword, name, v.as_ref())?),
            "chmod" => copy.chmod = Some(value(keyword, name, v.as_ref())?),
            // Only where layers may be reused differs; the files are the same.
            "link" => match v.as_deref() {
                None | Some("true" | "false") => {}
                Some(other) => {
                    return Err(format!("{keyword} --link={other}: true or false").into());
                }
            },
            "unpack" if add => match v.as_deref() {
                None | Some("true") => copy.unpack = true,
                Some("false") => copy.unpack = false,
                Some(other) => {
                    return Err(format!("ADD --unpack={other}: true or false").into());
                }
            },
            "exclude" => return unsupported(format!("{keyword} --exclude is not supported yet")),
            "parents" if !add => return unsupported("COPY --parents is not supported yet"),
            "keep-git-dir" | "checksum" if add => {
                return unsupported(format!("ADD --{name} is not supported yet"));
            }
            other => return Err(format!("{keyword} --{other}: there is no such flag").into()),
        }
    }
    let mut words = match line.heredocs.is_empty() {
        true => list(&line.rest),
        false => raw_words(&line.rest, escape),
    };
    copy.dest = words.pop().unwrap_or_default();
    if !line.heredocs.is_empty() {
        words.retain(|w| !w.starts_with("<<"));
    }
    copy.sources = words;
    if copy.dest.starts_with("<<") || copy.sources.len() + copy.inline.len() == 0 {
        return Err(format!("{keyword} needs at least one source and a destination").into());
    }
    if add && let Some(refusal) = copy.sources.iter().find_map(|s| url(s)) {
        return unsupported(refusal);
    }
    if let Some(from) = copy.from.as_deref().filter(|f| f.contains('$')) {
        return Err(format!(
            "COPY --from={from}: variables are not substituted here; give a stage a name with FROM ${{...}} AS <name> and use that"
        )
        .into());
    }
    Ok(Instruction::Copy(copy))
}

/// Why a source of an ADD, if it is a URL, cannot be added.
pub(crate) fn url(source: &str) -> Option<String> {
    let prefixes = ["http://", "https://", "ftp://", "git@", "ssh://", "git://"];
    prefixes.iter().any(|p| source.starts_with(p)).then(|| {
        format!(
            "ADD of a URL is not supported yet ({source}): download it before the build, or with RUN"
        )
    })
}

fn healthcheck(line: &Line) -> Result<Instruction, String> {
    for (name, _) in &line.flags {
        if !matches!(
            name.as_str(),
            "interval" | "timeout" | "start-period" | "start-interval" | "retries"
        ) {
            return Err(format!("HEALTHCHECK --{name} is not known"));
        }
    }
    let kind = line.rest.split_whitespace().next().unwrap_or_default();
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if line.rest.len() == 4 => Ok(Instruction::Healthcheck),
        "CMD" if line.rest.len() > 4 => Ok(Instruction::Healthcheck),
        _ => Err(
            "HEALTHCHECK must be: HEALTHCHECK [options] CMD <command>, or HEALTHCHECK NONE".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Instruction, String> {
        let file = crate::parse::parse(text).map_err(|e| e.to_string())?;
        let mut steps = steps(&file).map_err(|e| e.to_string())?;
        match steps.remove(0).instruction {
            Instruction::Unsupported(message) => Err(format!("unsupported: {message}")),
            instruction => Ok(instruction),
        }
    }

    fn refused(text: &str) -> String {
        one(text).expect_err(text)
    }

    #[test]
    fn forms_of_commands() {
        assert_eq!(
            one("CMD [\"a\", \"b c\"]"),
            Ok(Instruction::Cmd(Command::Exec(vec![
                "a".into(),
                "b c".into()
            ])))
        );
        assert_eq!(
            one("CMD [ -e x ] && y"),
            Ok(Instruction::Cmd(Command::Shell("[ -e x ] && y".into())))
        );
        assert!(refused("SHELL /bin/sh").contains("JSON array"));
    }

    #[test]
    fn env_new_and_old_form() {
        assert_eq!(
            one("ENV a=1 b=\"x y\" c=p\\ q"),
            Ok(Instruction::Env(vec![
                ("a".into(), "1".into()),
                ("b".into(), "\"x y\"".into()),
                ("c".into(), "p\\ q".into())
            ]))
        );
        assert_eq!(
            one("ENV greeting  hello = world"),
            Ok(Instruction::Env(vec![(
                "greeting".into(),
                "hello = world".into()
            )]))
        );
        assert!(refused("ENV a=1 b").contains("\"b\" has no ="));
        assert!(refused("ENV a").contains("ENV a=<value>"));
    }

    #[test]
    fn copy_forms() {
        let Ok(Instruction::Copy(c)) = one("COPY --chown=a:b --link [\"x y\", \"/z/\"]") else {
            panic!("copy")
        };
        assert_eq!(
            (c.sources, c.dest.as_str()),
            (vec!["x y".to_owned()], "/z/")
        );
        let Ok(Instruction::Copy(c)) = one("COPY a <<EOF /z/\nhi\nEOF") else {
            panic!("copy")
        };
        assert_eq!(
            (c.sources.len(), c.inline.len(), c.dest.as_str()),
            (1, 1, "/z/")
        );
        assert!(refused("COPY a").contains("at least one source"));
        assert!(refused("COPY --parents a b").contains("--parents is not supported"));
        assert!(refused("ADD https://example.com/x /x").starts_with("unsupported: ADD of a URL"));
    }

    #[test]
    fn what_is_wrong_and_what_is_not_supported_are_told_apart() {
        for text in [
            "RUN --network=host x",
            "RUN --security=insecure x",
            "RUN --device=vendor.com/x y",
            "RUN --mount=target=/x y",
            "RUN --mount=type=tmpfs,target=/x y",
            "RUN --mount=type=cache,target=/x,from=base y",
            "COPY --parents a b",
            "COPY --exclude=x a b",
            "ADD --checksum=sha256:00 a b",
            "ADD --keep-git-dir=true a b",
            "ADD git@example.com:x.git /x",
            "ONBUILD RUN x",
        ] {
            let message = refused(text);
            assert!(message.starts_with("unsupported: "), "{text}: {message}");
        }
        for text in [
            "RUN --network=moon x",
            "RUN --frobnicate=1 x",
            "RUN --mount=type=moon,target=/x y",
            "RUN --mount=type=cache,target=/x,colour=red y",
            "COPY --checksum=sha256:00 a b",
            "COPY --unpack a b",
            "ADD --unpack=perhaps a b",
            "ADD --from=x a b",
            "FROM --frobnicate=1 x",
        ] {
            let message = refused(text);
            assert!(message.starts_with("Dockerfile:1: "), "{text}: {message}");
        }
        let unpack = |text: &str| match one(text) {
            Ok(Instruction::Copy(copy)) => copy.unpack,
            other => panic!("{text}: {other:?}"),
        };
        assert!(unpack("ADD a b") && unpack("ADD --unpack a b"));
        assert!(!unpack("ADD --unpack=false a b") && !unpack("COPY a b"));
        let Ok(Instruction::Run(run)) =
            one("RUN --mount=TYPE=cache,type=cache,target=/c,sharing=private,ro=0 x")
        else {
            panic!("run")
        };
        assert!(!run.caches[0].read_only);
    }

    #[test]
    fn run_flags() {
        let Ok(Instruction::Run(r)) =
            one("RUN --mount=type=cache,target=/c,sharing=locked --network=none make")
        else {
            panic!("run")
        };
        assert_eq!(r.caches[0].target, "/c");
        assert!(!r.network);
        assert!(refused("RUN --mount=type=secret,id=x y").contains("type=secret is not supported"));
        assert!(refused("RUN --mount=target=/x y").contains("type=bind is not supported"));
        assert!(refused("RUN --security=insecure y").contains("--security=insecure"));
        assert!(refused("RUN --network=host y").contains("--network=host"));
    }

    #[test]
    fn the_rest() {
        assert!(refused("ONBUILD RUN x").contains("ONBUILD is not supported"));
        assert!(refused("FROM a b").contains("FROM must be"));
        assert!(refused("FROM a AS 1x").contains("cannot name a stage"));
        assert!(refused("HEALTHCHECK x").contains("HEALTHCHECK must be"));
        assert_eq!(
            one("HEALTHCHECK --interval=5s CMD x"),
            Ok(Instruction::Healthcheck)
        );
        assert!(refused("USER").contains("USER needs an argument"));
    }
}
