//! The two shell scripts that workerd wraps around `ctx.container.exec()` (contract: workerd, 1.3), recognised so that neither a shell nor a
//! writable /tmp is needed in the image.
//!
//! workerd does not learn a process's number inside the container from Docker. So its wrapper writes the number to a file before it becomes the
//! program, and `kill()` is a second exec of a shell that reads the file. Here the first runs the program itself, under the token in the
//! file's name, and the second is carried out by the engine. Pure.

/// Around the token in the file's name.
const FILE: (&str, &str) = ("/tmp/.workerd-exec-", ".pid");

/// What a command turns out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recognised {
    /// The wrapper: this program is meant, and may be killed by this token.
    Program {
        /// What it is called in [`Recognised::Kill`].
        token: String,
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// `kill()`: this signal to the program of this token.
    Kill {
        /// As above.
        token: String,
        /// Number.
        signal: i32,
    },
    /// Neither: any command.
    Other(Vec<String>),
}

/// Compares a command with both forms. Only exactly these are taken: everything else runs as it is.
pub(super) fn recognise(argv: Vec<String>) -> Recognised {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    if let ["/bin/sh", "-c", script, rest @ ..] = words.as_slice() {
        if let (Some(token), ["sh", program @ ..]) = (wrapper(script), rest)
            && !program.is_empty()
        {
            let argv = program.iter().map(|w| (*w).to_owned()).collect();
            let token = token.to_owned();
            return Recognised::Program { token, argv };
        }
        if let (Some((token, signal)), []) = (killer(script), rest) {
            let token = token.to_owned();
            return Recognised::Kill { token, signal };
        }
    }
    Recognised::Other(argv)
}

fn wrapper(script: &str) -> Option<&str> {
    token(
        script
            .strip_prefix("echo $$ > ")?
            .strip_suffix("; exec \"$@\"")?,
    )
}

/// `kill -N "$(cat FILE)"`, with or without a look at the file before.
fn killer(script: &str) -> Option<(&str, i32)> {
    let (looked_at, kill) = match script.strip_prefix("[ -s ") {
        Some(rest) => {
            let (file, kill) = rest.split_once(" ] || exit 3; ")?;
            (Some(file), kill)
        }
        None => (None, script),
    };
    let (signal, file) = kill
        .strip_prefix("kill -")?
        .strip_suffix(")\"")?
        .split_once(" \"$(cat ")?;
    if looked_at.is_some_and(|looked_at| looked_at != file) {
        return None;
    }
    let signal = signal.parse().ok().filter(|n| (1..=64).contains(n))?;
    Some((token(file)?, signal))
}

fn token(file: &str) -> Option<&str> {
    let token = file.strip_prefix(FILE.0)?.strip_suffix(FILE.1)?;
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (!token.is_empty() && token.len() <= 64 && token.bytes().all(valid)).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0b0e7a3c-5ad1-4a56-9df6-0123456789ab";

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn both_forms() {
        let prologue = format!("echo $$ > /tmp/.workerd-exec-{UUID}.pid; exec \"$@\"");
        let argv = ["/bin/sh", "-c", &prologue, "sh", "ls", "-l", "a b"];
        assert_eq!(
            recognise(strings(&argv)),
            Recognised::Program {
                token: UUID.into(),
                argv: strings(&["ls", "-l", "a b"])
            }
        );
        let file = format!("/tmp/.workerd-exec-{UUID}.pid");
        for script in [
            format!("kill -9 \"$(cat {file})\""),
            format!("[ -s {file} ] || exit 3; kill -9 \"$(cat {file})\""),
        ] {
            assert_eq!(
                recognise(strings(&["/bin/sh", "-c", &script])),
                Recognised::Kill {
                    token: UUID.into(),
                    signal: 9
                }
            );
        }
    }

    #[test]
    fn anything_else_runs_as_it_is() {
        let file = format!("/tmp/.workerd-exec-{UUID}.pid");
        let wrapper = format!("echo $$ > {file}; exec \"$@\"");
        let killer = format!("kill -9 \"$(cat {file})\"");
        for argv in [
            vec![],
            vec!["/bin/sh"],
            vec!["/bin/sh", "-c", "true"],
            vec!["/bin/sh", "-c", &wrapper],
            vec!["/bin/sh", "-c", &wrapper, "sh"],
            vec!["/bin/sh", "-c", &wrapper, "bash", "ls"],
            vec!["sh", "-c", &wrapper, "sh", "ls"],
            vec!["/bin/sh", "-c", &killer, "sh"],
            vec!["/bin/sh", "-c", &killer.replace("-9", "-0")],
            vec!["/bin/sh", "-c", &killer.replace("-9", "-KILL")],
            vec!["/bin/sh", "-c", &killer.replace(".pid", ".pid /etc/x")],
            vec![
                "/bin/sh",
                "-c",
                &wrapper.replace("-exec-", "-exec-../"),
                "sh",
                "ls",
            ],
        ] {
            let argv = strings(&argv);
            assert_eq!(recognise(argv.clone()), Recognised::Other(argv));
        }
        let other = format!("[ -s /etc/passwd ] || exit 3; {killer}");
        let argv = strings(&["/bin/sh", "-c", &other]);
        assert_eq!(recognise(argv.clone()), Recognised::Other(argv));
    }
}
