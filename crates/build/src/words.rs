//! Variable substitution and quoting in instruction arguments, by the rules of the Dockerfile reference ("Environment replacement").
//!
//! `$x`, `${x}`, `${x:-d}`, `${x-d}`, `${x:+a}`, `${x+a}`, `${x:?m}`, `${x?m}`; single quotes are literal, double quotes substitute, the escape character
//! takes the meaning off what follows. Pure.

use std::iter::Peekable;
use std::str::Chars;

/// Where values come from; `None` is unset.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Substitutes and unquotes one argument.
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

/// Substitutes variables but leaves quotes alone: the content of a here-document.
pub(crate) fn expand_heredoc(
    text: &str,
    escape: char,
    lookup: Lookup<'_>,
) -> Result<String, String> {
    let mut out = Out::default();
    Lexer::new(text, escape, lookup, false).until(None, &mut out)?;
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
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>, quotes: bool) -> Self {
        Self {
            chars: text.chars().peekable(),
            escape,
            lookup,
            quotes,
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
                c if c == self.escape => match self.chars.next() {
                    // A here-document is not a word: only what would be substituted can be escaped.
                    Some(next) if !self.quotes && next != '$' && next != self.escape => {
                        out.quoted(c);
                        out.quoted(next);
                    }
                    Some(next) => out.quoted(next),
                    None => out.quoted(c),
                },
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
                c if c == self.escape => match self.chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        out.quoted(next);
                    }
                    Some(next) => {
                        out.quoted(c);
                        out.quoted(next);
                    }
                    None => break,
                },
                c => out.quoted(c),
            }
        }
        Err("a double quote is not closed".into())
    }

    /// After a `$`.
    fn dollar(&mut self) -> Result<String, String> {
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            return Ok(match name.is_empty() {
                true => "$".into(),
                false => (self.lookup)(&name).unwrap_or_default(),
            });
        }
        self.chars.next();
        let name = self.name();
        if name.is_empty() {
            return Err("bad substitution: ${ needs a name".into());
        }
        let value = (self.lookup)(&name);
        match self.chars.next() {
            Some('}') => Ok(value.unwrap_or_default()),
            Some(':') => {
                let value = value.filter(|v| !v.is_empty());
                let operator = self.chars.next();
                self.modified(&name, value, operator, "is not set or empty")
            }
            operator => self.modified(&name, value, operator, "is not set"),
        }
    }

    fn modified(
        &mut self,
        name: &str,
        value: Option<String>,
        operator: Option<char>,
        state: &str,
    ) -> Result<String, String> {
        match operator {
            Some(op @ ('-' | '+' | '?')) => {
                let mut word = Out::default();
                self.until(Some('}'), &mut word)?;
                match (op, value) {
                    ('-', Some(v)) => Ok(v),
                    ('+', None) => Ok(String::new()),
                    ('?', Some(v)) => Ok(v),
                    ('?', None) if word.text.is_empty() => Err(format!("{name} {state}")),
                    ('?', None) => Err(format!("{name}: {}", word.text)),
                    _ => Ok(word.text),
                }
            }
            Some(other) => Err(format!(
                "${{{name}{other}...}}: this modifier is not supported; :-, :+ and :? are"
            )),
            None => Err(format!("${{{name} has no closing brace")),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        let digits = self.chars.peek().is_some_and(char::is_ascii_digit);
        while let Some(&c) = self.chars.peek() {
            let fits = if digits {
                c.is_ascii_digit()
            } else {
                c == '_' || c.is_ascii_alphanumeric()
            };
            if !fits {
                break;
            }
            name.push(c);
            self.chars.next();
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
                "${x%al}",
                "${x%...}: this modifier is not supported; :-, :+ and :? are",
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
            expand_heredoc("it's \"$x\" \\$x \\n \\\\\n", '\\', &env).expect("text"),
            "it's \"val\" $x \\n \\\n"
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
            let _ = expand_heredoc(&word, '\\', &env);
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
