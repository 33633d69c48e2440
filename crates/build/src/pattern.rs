//! Wildcards: Go's `filepath.Match` for COPY sources, and the same with `**` for `.dockerignore`. Linear time in the text, whatever the pattern. Pure.

/// A compiled pattern over `/`-separated paths.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// A final `**`
    Rest,
    /// `**/`, first half: may be skipped as a whole.
    Dirs,
    /// `**/`, second half: any text up to a slash.
    DirsBody,
    /// `[a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Whether a COPY source has wildcards at all.
pub(crate) fn is_wild(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Takes the escapes off a source without wildcards (`a\*b` is the file `a*b`).
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().or(Some('\\'))),
            c => out.push(c),
        }
    }
    out
}

impl Pattern {
    /// `double_star`: whether `**` crosses directories (`.dockerignore`) or is two single stars (COPY).
    pub(crate) fn new(text: &str, double_star: bool) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if double_star && chars.peek() == Some(&'*') => {
                    while chars.peek() == Some(&'*') {
                        chars.next();
                    }
                    if chars.peek() == Some(&'/') {
                        chars.next();
                    }
                    if chars.peek().is_none() {
                        tokens.push(Token::Rest);
                    } else {
                        tokens.extend([Token::Dirs, Token::DirsBody]);
                    }
                }
                '*' => tokens.push(Token::Star),
                '?' => tokens.push(Token::One),
                '\\' => match chars.next() {
                    Some(next) => tokens.push(Token::Literal(next)),
                    None => return Err(bad(text)),
                },
                '[' => {
                    let negated = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        let low = match chars.next() {
                            Some(']') if !ranges.is_empty() => break,
                            Some('\\') => chars.next(),
                            Some('-' | ']') | None => None,
                            other => other,
                        }
                        .ok_or_else(|| bad(text))?;
                        let high = if chars.next_if_eq(&'-').is_some() {
                            match chars.next() {
                                Some('\\') => chars.next(),
                                Some('-' | ']') | None => None,
                                other => other,
                            }
                            .ok_or_else(|| bad(text))?
                        } else {
                            low
                        };
                        ranges.push((low, high));
                    }
                    tokens.push(Token::Class { negated, ranges });
                }
                c => tokens.push(Token::Literal(c)),
            }
        }
        Ok(Self { tokens })
    }

    /// Whether the whole text matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let end = self.tokens.len();
        let mut states = vec![false; end + 1];
        self.reach(&mut states, 0);
        for c in text.chars() {
            let mut next = vec![false; end + 1];
            for (i, token) in self.tokens.iter().enumerate().filter(|(i, _)| states[*i]) {
                match token {
                    Token::Literal(l) if *l == c => self.reach(&mut next, i + 1),
                    Token::One if c != '/' => self.reach(&mut next, i + 1),
                    Token::Star if c != '/' => self.reach(&mut next, i),
                    Token::Rest => self.reach(&mut next, i),
                    Token::DirsBody => {
                        self.reach(&mut next, i);
                        if c == '/' {
                            self.reach(&mut next, i + 1);
                        }
                    }
                    Token::Class { negated, ranges }
                        if c != '/'
                            && ranges.iter().any(|(l, h)| (*l..=*h).contains(&c)) != *negated =>
                    {
                        self.reach(&mut next, i + 1);
                    }
                    _ => {}
                }
            }
            states = next;
        }
        states[end]
    }

    /// Marks a state and those reached from it without reading.
    fn reach(&self, states: &mut [bool], at: usize) {
        if states[at] {
            return;
        }
        states[at] = true;
        match self.tokens.get(at) {
            Some(Token::Star | Token::Rest) => self.reach(states, at + 1),
            Some(Token::Dirs) => {
                self.reach(states, at + 1);
                self.reach(states, at + 2);
            }
            _ => {}
        }
    }
}

fn bad(text: &str) -> String {
    format!("the pattern {text:?} is malformed (an unclosed [ or a trailing \\)")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn go(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern, false).expect(pattern).matches(text)
    }
    fn ignore(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern, true).expect(pattern).matches(text)
    }

    #[test]
    fn as_go_filepath_match() {
        for (p, t, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("*.txt", ".txt", true),
            ("[", "a", false),
        ] {
            if p == "[" {
                assert!(Pattern::new(p, false).is_err());
            } else {
                assert_eq!(go(p, t), want, "{p} {t}");
            }
        }
        for p in ["[]a]", "[-]", "[x-]", "[a-b-c]", "a[", "a\\"] {
            assert!(Pattern::new(p, false).is_err(), "{p}");
        }
    }

    #[test]
    fn double_star_crosses_directories() {
        for (p, t, want) in [
            ("**/foo", "foo", true),
            ("**/foo", "a/b/foo", true),
            ("**/foo", "a/bfoo", false),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("**", "x/y", true),
            ("**/*.go", "x/y.go", true),
            ("*.go", "x/y.go", false),
            ("a.b", "axb", false),
        ] {
            assert_eq!(ignore(p, t), want, "{p} {t}");
        }
    }

    /// Plain backtracking, as a second opinion on small inputs.
    fn slow(p: &[char], t: &[char]) -> bool {
        match p.first() {
            None => t.is_empty(),
            Some('*') => slow(&p[1..], t) || (!t.is_empty() && t[0] != '/' && slow(p, &t[1..])),
            Some('?') => !t.is_empty() && t[0] != '/' && slow(&p[1..], &t[1..]),
            Some(c) => t.first() == Some(c) && slow(&p[1..], &t[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_backtracking(p in "[ab/*?]{0,8}", t in "[ab/]{0,8}") {
            let (pc, tc): (Vec<char>, Vec<char>) = (p.chars().collect(), t.chars().collect());
            prop_assert_eq!(go(&p, &t), slow(&pc, &tc));
        }

        #[test]
        fn escaped_text_matches_itself_only(t in "[ab*?\\[\\]\\\\/]{1,8}") {
            let p: String = t.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(go(&p, &t));
            let longer = format!("{}x", t);
            prop_assert!(!go(&p, &longer));
            prop_assert_eq!(unescape(&p), t);
        }
    }
}
