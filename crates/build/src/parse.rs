//! Text of a Dockerfile into logical lines: directives, comments, continuations, here-documents, flags.
//!
//! Follows the line rules of the Dockerfile reference ("Format", "Escape", "Here-documents"). It is our own because here-documents in the
//! middle of a RUN (`RUN cat <<EOF > /etc/x`), several of them, comments between continued lines and errors with positions are all needed at once.
//! Owns: lines. Must not: know what an instruction means, substitute variables, do I/O.

use crate::BuildError;

/// One instruction as written, continuation lines joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// 1-based line on which it begins.
    pub(crate) number: usize,
    /// Upper case.
    pub(crate) keyword: String,
    /// `--name` or `--name=value`, in order.
    pub(crate) flags: Vec<(String, Option<String>)>,
    /// What follows the flags, trimmed.
    pub(crate) rest: String,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// A here-document that belongs to a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// The delimiter, unquoted.
    pub(crate) name: String,
    /// Variables are substituted in COPY and ADD: the delimiter was not quoted.
    pub(crate) expand: bool,
    /// With its final newline.
    pub(crate) content: String,
}

/// A parsed file.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) escape: char,
    pub(crate) lines: Vec<Line>,
}

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

pub(crate) fn fail(line: usize, message: impl Into<String>) -> BuildError {
    BuildError::Dockerfile {
        line,
        message: message.into(),
    }
}

/// Parses the whole text. Every keyword of the result is a known one.
pub(crate) fn parse(text: &str) -> Result<File, BuildError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw: Vec<&str> = text
        .split('\n')
        .map(|l| l.strip_suffix('\r').unwrap_or(l))
        .collect();
    let escape = directives(&raw)?;
    let mut lines = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let number = at + 1;
        let first = raw[at].trim_start();
        at += 1;
        if first.trim().is_empty() || first.starts_with('#') {
            continue;
        }
        let (mut joined, mut more) = continuation(first, escape);
        while more && at < raw.len() {
            let next = raw[at];
            at += 1;
            // Comments and blank lines between continued lines do not end the instruction.
            if next.trim_start().starts_with('#') || next.trim().is_empty() {
                continue;
            }
            let (part, again) = continuation(next, escape);
            joined.push_str(&part);
            more = again;
        }
        if joined.trim().is_empty() {
            continue;
        }
        lines.push(logical(number, joined.trim(), escape, &raw, &mut at)?);
    }
    Ok(File { escape, lines })
}

/// The parser directives at the top (`# escape=`); `syntax` and `check` are known and ignored.
fn directives(raw: &[&str]) -> Result<char, BuildError> {
    let mut escape = None;
    for (i, line) in raw.iter().enumerate() {
        let Some((key, value)) = line
            .trim_start()
            .strip_prefix('#')
            .and_then(|l| l.split_once('='))
        else {
            break;
        };
        match (key.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("syntax" | "check", _) => {}
            ("escape", _) if escape.is_some() => {
                return Err(fail(i + 1, "only one escape directive is possible"));
            }
            ("escape", "\\") => escape = Some('\\'),
            ("escape", "`") => escape = Some('`'),
            ("escape", other) => {
                return Err(fail(
                    i + 1,
                    format!("the escape character must be \\ or `, not {other:?}"),
                ));
            }
            _ => break,
        }
    }
    Ok(escape.unwrap_or('\\'))
}

/// Cuts a trailing escape character; a doubled one does not continue the line.
fn continuation(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

fn logical(
    number: usize,
    text: &str,
    escape: char,
    raw: &[&str],
    at: &mut usize,
) -> Result<Line, BuildError> {
    let (word, after) = match text.find(char::is_whitespace) {
        Some(i) => (&text[..i], text[i..].trim_start()),
        None => (text, ""),
    };
    let keyword = word.to_ascii_uppercase();
    if !KEYWORDS.contains(&keyword.as_str()) {
        return Err(fail(number, unknown(word)));
    }
    let (flags, rest) = match keyword.as_str() {
        "FROM" | "RUN" | "COPY" | "ADD" | "HEALTHCHECK" => {
            flags(after, escape).map_err(|m| fail(number, m))?
        }
        _ => (Vec::new(), after),
    };
    let mut heredocs = Vec::new();
    // ONBUILD has the here-documents of what it is given.
    let given = match keyword.as_str() {
        "ONBUILD" => rest.split_whitespace().next().unwrap_or_default(),
        _ => keyword.as_str(),
    };
    if matches!(given.to_ascii_uppercase().as_str(), "RUN" | "COPY" | "ADD") {
        for (name, expand, strip_tabs) in heredoc_heads(rest, escape) {
            let mut content = String::new();
            loop {
                let Some(line) = raw.get(*at) else {
                    return Err(fail(
                        number,
                        format!("the here-document {name} has no end: no line is exactly {name}"),
                    ));
                };
                *at += 1;
                let line = if strip_tabs {
                    line.trim_start_matches('\t')
                } else {
                    line
                };
                if line == name {
                    break;
                }
                content.push_str(line);
                content.push('\n');
            }
            heredocs.push(Heredoc {
                name,
                expand,
                content,
            });
        }
    }
    Ok(Line {
        number,
        keyword,
        flags,
        rest: rest.trim().to_owned(),
        heredocs,
    })
}

fn unknown(word: &str) -> String {
    let upper = word.to_ascii_uppercase();
    let near = KEYWORDS
        .iter()
        .map(|k| (distance(k, &upper), k))
        .min_by_key(|(d, _)| *d)
        .filter(|(d, k)| *d <= 2 && *d < k.len().min(upper.chars().count()));
    match near {
        Some((_, k)) => format!("unknown instruction \"{word}\" (did you mean {k}?)"),
        None => format!("unknown instruction \"{word}\""),
    }
}

/// Edit distance in which swapping neighbours counts once (`FORM` is one away from `FROM`).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut d = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in d.iter_mut().enumerate() {
        row[0] = i;
    }
    d[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (d[i - 1][j] + 1)
                .min(d[i][j - 1] + 1)
                .min(d[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(d[i - 2][j - 2] + 1);
            }
            d[i][j] = best;
        }
    }
    d[a.len()][b.len()]
}

type Flags<'a> = (Vec<(String, Option<String>)>, &'a str);

/// Leading `--name[=value]` words; quotes and escapes inside a value are taken off. `--` alone ends them.
fn flags(text: &str, escape: char) -> Result<Flags<'_>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while rest.starts_with("--") {
        let (word, after) = flag_word(rest, escape)?;
        rest = after;
        if word == "--" {
            break;
        }
        let body = &word[2..];
        found.push(match body.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (body.to_owned(), None),
        });
    }
    Ok((found, rest))
}

fn flag_word(text: &str, escape: char) -> Result<(String, &str), String> {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return Ok((word, text[i..].trim_start())),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ if c == escape && quote != Some('\'') => match chars.next() {
                Some((_, next)) => word.push(next),
                None => word.push(c),
            },
            _ => word.push(c),
        }
    }
    match quote {
        Some(q) => Err(format!("a flag has an unclosed {q}")),
        None => Ok((word, "")),
    }
}

/// Name, whether variables are substituted, whether leading tabs go.
fn heredoc_heads(rest: &str, escape: char) -> Vec<(String, bool, bool)> {
    let mut heads = Vec::new();
    for word in raw_words(rest, escape) {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some(after) = digits.strip_prefix("<<") else {
            continue;
        };
        let (name, strip) = match after.strip_prefix('-') {
            Some(n) => (n, true),
            None => (after, false),
        };
        let plain: String = name
            .chars()
            .filter(|c| !matches!(c, '"' | '\'') && *c != escape)
            .collect();
        if plain.is_empty() || name.contains('<') {
            continue;
        }
        heads.push((plain.clone(), plain == name, strip));
    }
    heads
}

/// Splits at white space outside quotes, keeping quotes and escapes.
pub(crate) fn raw_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape
            && quote != Some('\'')
            && let Some(next) = chars.next()
        {
            word.push(next);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<Line> {
        parse(text).expect("parses").lines
    }

    fn message(text: &str) -> String {
        parse(text).expect_err("refused").to_string()
    }

    #[test]
    fn unknown_instruction_names_line_and_near_word() {
        assert_eq!(
            message("# c\n\nFORM scratch"),
            "Dockerfile:3: unknown instruction \"FORM\" (did you mean FROM?)"
        );
        assert_eq!(
            message("FROM x\nCPOY a b"),
            "Dockerfile:2: unknown instruction \"CPOY\" (did you mean COPY?)"
        );
        assert_eq!(
            message("FROM x\nRUN a \\\n b\nfrobnicate"),
            "Dockerfile:4: unknown instruction \"frobnicate\""
        );
    }

    #[test]
    fn continued_lines_skip_comments_and_blank_lines() {
        let l = lines("FROM a\nRUN one \\\n  # note\n\n  && two \\  \n  && three\nCMD x");
        assert_eq!(l[1].number, 2);
        assert_eq!(l[1].rest, "one   && two   && three");
        assert_eq!(l[2].keyword, "CMD");
        assert_eq!(l[2].number, 7);
    }

    #[test]
    fn doubled_escape_does_not_continue() {
        let l = lines("ENV a=b\\\\\nCMD x");
        assert_eq!(l[0].rest, "a=b\\\\");
        assert_eq!(l.len(), 2);
    }

    #[test]
    fn escape_directive_changes_the_continuation() {
        let l = lines("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\n b\nWORKDIR c:\\x\\");
        assert_eq!(l[0].rest, "a  b");
        assert_eq!(l[1].rest, "c:\\x\\");
        assert_eq!(
            message("# escape=x\nFROM a"),
            "Dockerfile:1: the escape character must be \\ or `, not \"x\""
        );
    }

    #[test]
    fn flags_come_before_the_rest() {
        let l = lines("COPY --from=b --chown=\"a b\":c --link x y --z");
        assert_eq!(
            l[0].flags,
            vec![
                ("from".into(), Some("b".into())),
                ("chown".into(), Some("a b:c".into())),
                ("link".into(), None)
            ]
        );
        assert_eq!(l[0].rest, "x y --z");
    }

    #[test]
    fn heredocs_anywhere_in_a_run() {
        let l = lines(
            "RUN cat <<EOF > /a && cat <<-'E 2' >/b\nFROM x $y\n\\\nEOF\n\tz\n\tE 2\nCMD [\"a\"]",
        );
        assert_eq!(l.len(), 2);
        assert_eq!(l[0].heredocs[0].content, "FROM x $y\n\\\n");
        assert!(l[0].heredocs[0].expand);
        assert_eq!(l[0].heredocs[1].name, "E 2");
        assert_eq!(l[0].heredocs[1].content, "z\n");
        assert!(!l[0].heredocs[1].expand);
        assert!(message("FROM a\nRUN <<EOF\nx").starts_with("Dockerfile:2: the here-document EOF"));
        assert!(lines("RUN cat <<<word")[0].heredocs.is_empty());
    }

    #[test]
    fn windows_line_ends() {
        let l = lines("FROM a\r\nRUN x \\\r\n y\r\n");
        assert_eq!(l[1].rest, "x  y");
    }

    proptest! {
        #[test]
        fn never_panics_and_lines_grow(text in "(?s)[ -~\n\t\\\\`#<\"']{0,200}|(RUN|COPY|FROM) [ -~\n]{0,80}") {
            if let Ok(f) = parse(&text) {
                prop_assert!(f.lines.windows(2).all(|w| w[0].number < w[1].number));
                prop_assert!(f.lines.iter().all(|l| KEYWORDS.contains(&l.keyword.as_str())));
            }
        }

        #[test]
        fn breaking_a_run_at_spaces_changes_nothing(words in prop::collection::vec("[a-z&|;.-]{1,6}", 1..8)) {
            let one = format!("RUN {}", words.join(" "));
            let many = format!("RUN {}", words.join(" \\\n"));
            prop_assert_eq!(&lines(&one)[0].rest, &lines(&many)[0].rest);
        }
    }
}
