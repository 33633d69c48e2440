//! Variable substitution and quoting in instruction arguments, by the rules of the Dockerfile
//! reference ("Environment replacement"), and where it says nothing by what BuildKit does.
//!
//! | | |
//! |---|---|
//! | `$x`, `${x}` | the value, or nothing |
//! | `${x:-w}`, `${x-w}` | `w` where `x` is unset (with the colon: or empty) |
//! | `${x:+w}`, `${x+w}` | `w` where it is not |
//! | `${x:?w}`, `${x?w}` | an error that says `w` where it is |
//! | `${x#p}`, `${x##p}`, `${x%p}`, `${x%%p}` | without the shortest or longest prefix or suffix that matches `p` |
//! | `${x/p/w}`, `${x//p/w}` | with `w` in place of the first match of `p`, or of all |
//!
//! Single quotes are literal, double quotes substitute, the escape character takes the meaning off
//! what follows. Pure.

use std::iter::Peekable;
use std::str::Chars;

use crate::shell_pattern;

/// Where values come from; `None` is unset.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How deep substitutions may be nested: each takes some of the stack.
const MAX_DEPTH: usize = 64;

/// Substitutes and unquotes one argument.
///
/// # Errors
/// Names the mistake, for a person; the next two do the same.
pub(crate) fn expand(word: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    let mut out = Out::default();
    Lexer::new(word, escape, lookup, true).until(None, &mut out)?;
    Ok(out.text)
}

/// Substitutes, unquotes and splits at white space outside quotes (EXPOSE).
pub(crate) fn expand_words(
    text: &str,
    escape: char,
    lookup: Lookup<'_>,
) -> Result<Vec<String>, String> {
    let mut out = Out {
        split: true,
        ..Out::default()
    };
    Lexer::new(text, escape, lookup, true).until(None, &mut out)?;
    out.end_word();
    Ok(out.words)
}

/// Substitutes variables but leaves quotes alone: the content of a here-document. There, the escape
/// character is always a backslash.
pub(crate) fn expand_heredoc(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let mut out = Out::default();
    Lexer::new(text, '\\', lookup, false).until(None, &mut out)?;
    Ok(out.text)
}

#[derive(Default)]
struct Out {
    text: String,
    words: Vec<String>,
    split: bool,
    in_word: bool,
}

impl Out {
    fn quoted(&mut self, c: char) {
        self.text.push(c);
        self.in_word = true;
    }
    fn plain(&mut self, c: char) {
        if self.split && c.is_whitespace() {
            self.end_word();
        } else {
            self.quoted(c);
        }
    }
    fn end_word(&mut self) {
        if self.split && self.in_word {
            self.words.push(std::mem::take(&mut self.text));
            self.in_word = false;
        }
    }
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    quotes: bool,
    /// Escape characters stay, for a pattern that has its own use of them.
    raw_escapes: bool,
    depth: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>, quotes: bool) -> Self {
        Self {
            chars: text.chars().peekable(),
            escape,
            lookup,
            quotes,
            raw_escapes: false,
            depth: 0,
        }
    }

    /// Reads to the end, or to and including `stop`.
    fn until(&mut self, stop: Option<char>, out: &mut Out) -> Result<(), String> {
        while let Some(c) = self.chars.next() {
            if Some(c) == stop {
                return Ok(());
            }
            match c {
                '\'' if self.quotes => self.single(out)?,
                '"' if self.quotes => self.double(out)?,
                '$' => {
                    for c in self.dollar()?.chars() {
                        out.plain(c);
                    }
                }
                c if c == self.escape => {
                    if self.raw_escapes {
                        out.quoted(c);
                    }
                    // The last one escapes nothing, and is dropped.
                    if let Some(next) = self.chars.next() {
                        out.quoted(next);
                    }
                }
                c => out.plain(c),
            }
        }
        match stop {
            Some(s) => Err(format!("a substitution has no closing {s:?}")),
            None => Ok(()),
        }
    }

    fn single(&mut self, out: &mut Out) -> Result<(), String> {
        out.in_word = true;
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(());
            }
            out.quoted(c);
        }
        Err("a single quote is not closed".into())
    }

    fn double(&mut self, out: &mut Out) -> Result<(), String> {
        out.in_word = true;
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(()),
                '$' => {
                    for c in self.dollar()?.chars() {
                        out.quoted(c);
                    }
                }
                c if c == self.escape => {
                    let special = |next: &char| matches!(next, '"' | '$') || *next == self.escape;
                    let escaped = self.chars.next_if(special);
                    if self.raw_escapes || escaped.is_none() {
                        out.quoted(c);
                    }
                    escaped.into_iter().for_each(|next| out.quoted(next));
                }
                c => out.quoted(c),
            }
        }
        Err("a double quote is not closed".into())
    }

    /// A word inside a substitution, up to `stop`.
    fn word(&mut self, stop: char, raw_escapes: bool) -> Result<String, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!(
                "substitutions are nested more than {MAX_DEPTH} deep"
            ));
        }
        self.depth += 1;
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let mut word = Out::default();
        self.until(Some(stop), &mut word)?;
        self.raw_escapes = before;
        self.depth -= 1;
        Ok(word.text)
    }

    /// After a `$`.
    fn dollar(&mut self) -> Result<String, String> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(match name.is_empty() {
                true => "$".into(),
                false => (self.lookup)(&name).unwrap_or_default(),
            });
        }
        let name = self.name();
        if name.is_empty() {
            return Err("bad substitution: ${ needs a name".into());
        }
        let value = (self.lookup)(&name);
        match self.chars.next() {
            None => Err(format!("${{{name} has no closing brace")),
            Some('}') => Ok(value.unwrap_or_default()),
            Some(':') => {
                let value = value.filter(|v| !v.is_empty());
                match self.chars.next() {
                    Some(op @ ('-' | '+' | '?')) => {
                        self.alternative(&name, value, op, "is not set or empty")
                    }
                    Some(other) => Err(unknown(&name, &format!(":{other}"))),
                    None => Err(format!("${{{name} has no closing brace")),
                }
            }
            Some(op @ ('-' | '+' | '?')) => self.alternative(&name, value, op, "is not set"),
            Some(op @ ('#' | '%')) => {
                let word = self.word('}', true)?;
                let (pattern, longest) = match word.strip_prefix(op) {
                    Some(pattern) => (pattern, true),
                    None => (word.as_str(), false),
                };
                let value = value.unwrap_or_default();
                match op {
                    '#' => shell_pattern::without_prefix(&value, pattern, longest),
                    _ => shell_pattern::without_suffix(&value, pattern, longest),
                }
            }
            Some('/') => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.word('/', true)?;
                let by = self.word('}', true)?;
                shell_pattern::replace(&value.unwrap_or_default(), &pattern, &by, all)
            }
            Some(other) => Err(unknown(&name, &other.to_string())),
        }
    }

    fn alternative(
        &mut self,
        name: &str,
        value: Option<String>,
        operator: char,
        state: &str,
    ) -> Result<String, String> {
        let word = self.word('}', false)?;
        match (operator, value) {
            ('-' | '?', Some(value)) => Ok(value),
            ('+', None) => Ok(String::new()),
            ('?', None) if word.is_empty() => Err(format!("{name} {state}")),
            ('?', None) => Err(format!("{name}: {word}")),
            _ => Ok(word),
        }
    }

    /// Letters, digits and `_`; or digits alone; or one of the shell's special parameters, which
    /// are never set here.
    fn name(&mut self) -> String {
        let mut name = String::new();
        if let Some(special) = self.chars.next_if(|c| "@*#?-$!".contains(*c)) {
            name.push(special);
            return name;
        }
        let digits = self.chars.peek().is_some_and(|c| c.is_numeric());
        let fits = |c: &char| match digits {
            true => c.is_numeric(),
            false => *c == '_' || c.is_alphanumeric(),
        };
        while let Some(c) = self.chars.next_if(fits) {
            name.push(c);
        }
        name
    }
}

fn unknown(name: &str, modifier: &str) -> String {
    format!(
        "${{{name}{modifier}...}}: there is no such modifier; there are - + ? (also with a colon before), # ## % %% / and //"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "x" => Some("val".into()),
            "two" => Some("a b".into()),
            "empty" => Some(String::new()),
            _ => None,
        }
    }

    fn ok(word: &str) -> String {
        expand(word, '\\', &env).expect(word)
    }

    #[test]
    fn substitutes_as_the_reference_says() {
        for (word, want) in [
            ("$x", "val"),
            ("${x}", "val"),
            ("$x/foo", "val/foo"),
            ("${x}_y", "val_y"),
            ("$x_y", ""),
            ("\\$x", "$x"),
            ("\\${x}", "${x}"),
            ("'$x'", "$x"),
            ("\"$x\"", "val"),
            ("\"\\$x\"", "$x"),
            ("\"a\\nb\"", "a\\nb"),
            ("a\\ b", "a b"),
            ("${u:-d}", "d"),
            ("${x:-d}", "val"),
            ("${empty:-d}", "d"),
            ("${empty-d}", ""),
            ("${u-d}", "d"),
            ("${x:+a}", "a"),
            ("${u:+a}", ""),
            ("${empty:+a}", ""),
            ("${empty+a}", "a"),
            ("${u:-$x}", "val"),
            ("${u:-${u2:-deep}}", "deep"),
            ("${u:-\"a b\"}", "a b"),
            ("${x:?no}", "val"),
            ("$", "$"),
            ("a$", "a$"),
            ("$ x", "$ x"),
            ("$1", ""),
            ("it\\'s", "it's"),
            ("hello\\", "hello"),
            ("hello\\\\", "hello\\"),
            ("$.", "$."),
            ("a$@b$$c", "abc"),
            ("${1:-d}", "d"),
            ("${x}}", "val}"),
            ("${u:-a {b}", "a {b"),
            ("${x:+${x}:}y", "val:y"),
            ("${u:-\\$x:}y", "$x:y"),
            ("$x\u{e9}", ""),
            ("", ""),
        ] {
            assert_eq!(ok(word), want, "{word}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (word, want) in [
            ("${x", "${x has no closing brace"),
            ("${x:-a", "a substitution has no closing '}'"),
            ("'a", "a single quote is not closed"),
            ("\"a", "a double quote is not closed"),
            ("${}", "bad substitution: ${ needs a name"),
            ("${u:?set it}", "u: set it"),
            ("${u?}", "u is not set"),
            (
                "${x:=a}",
                "${x:=...}: there is no such modifier; there are - + ? (also with a colon before), # ## % %% / and //",
            ),
            (
                "${x:#a}",
                "${x:#...}: there is no such modifier; there are - + ? (also with a colon before), # ## % %% / and //",
            ),
            ("${x//a}", "a substitution has no closing '/'"),
            (
                "${x#\\a}",
                "the pattern \"\\\\a\" has a \\ before \"a\": only * ? \\ / and } can be escaped",
            ),
        ] {
            assert_eq!(expand(word, '\\', &env).expect_err(word), want);
        }
    }

    #[test]
    fn words_split_outside_quotes_only() {
        assert_eq!(
            expand_words("80 $two \"$two\" 'c d' ''", '\\', &env).expect("words"),
            ["80", "a", "b", "a b", "c d", ""]
        );
    }

    #[test]
    fn heredocs_keep_quotes() {
        assert_eq!(
            expand_heredoc("it's \"$x\" \\$x \\n \\\\\n\\\n", &env).expect("text"),
            "it's \"val\" $x n \\\n\n"
        );
    }

    #[test]
    fn other_escape_character() {
        assert_eq!(expand("c:\\$x`$x", '`', &env).expect("word"), "c:\\val$x");
    }

    proptest! {
        #[test]
        fn never_panics(word in "[ -~]{0,40}|[$:{}'\"\\\\x?+-]{0,12}") {
            let _ = expand(&word, '\\', &env);
            let _ = expand_words(&word, '\\', &env);
            let _ = expand_heredoc(&word, &env);
        }

        #[test]
        fn single_quotes_keep_everything(text in "[^']{0,30}") {
            prop_assert_eq!(ok(&format!("'{text}'")), text);
        }

        #[test]
        fn escaping_every_character_keeps_everything(text in "[ -~]{0,30}") {
            let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert_eq!(ok(&escaped), text);
        }
    }
}
