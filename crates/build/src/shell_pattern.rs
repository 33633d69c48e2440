//! The patterns of `${x#p}`, `${x%p}` and `${x/p/w}`: `*` is any text, `?` one character, a
//! backslash takes their meaning off. Brackets mean nothing here, as in BuildKit. Pure.

use regex::{NoExpand, Regex};

/// The value without the shortest, or longest, prefix that matches.
pub(crate) fn without_prefix(value: &str, pattern: &str, longest: bool) -> Result<String, String> {
    let found = compile(pattern, longest, "^")?.find(value);
    Ok(value[found.map_or(0, |found| found.end())..].to_owned())
}

/// The value without the shortest, or longest, suffix that matches.
pub(crate) fn without_suffix(value: &str, pattern: &str, longest: bool) -> Result<String, String> {
    // Regular expressions prefer what begins first, so both are turned around.
    let turned = pieces(pattern)?.into_iter().rev();
    let regex = build(pattern, turned, longest, "^")?;
    let backwards: String = value.chars().rev().collect();
    let end = regex.find(&backwards).map_or(0, |found| found.end());
    Ok(value[..value.len() - end].to_owned())
}

/// The value with `by` in place of the first match, or of all.
pub(crate) fn replace(value: &str, pattern: &str, by: &str, all: bool) -> Result<String, String> {
    let regex = compile(pattern, true, "")?;
    let limit = if all { 0 } else { 1 };
    Ok(regex.replacen(value, limit, NoExpand(by)).into_owned())
}

#[derive(Clone, Copy)]
enum Piece {
    Any,
    One,
    Is(char),
}

fn pieces(pattern: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::Any,
            '?' => Piece::One,
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\' | '/' | '}')) => Piece::Is(c),
                Some(other) => {
                    return Err(format!(
                        "the pattern {pattern:?} has a \\ before {:?}: only * ? \\ / and }} can be escaped",
                        other.to_string()
                    ));
                }
                None => return Err(format!("the pattern {pattern:?} ends in a \\")),
            },
            c => Piece::Is(c),
        });
    }
    Ok(pieces)
}

fn compile(pattern: &str, longest: bool, anchor: &str) -> Result<Regex, String> {
    build(pattern, pieces(pattern)?.into_iter(), longest, anchor)
}

fn build(
    pattern: &str,
    pieces: impl Iterator<Item = Piece>,
    longest: bool,
    anchor: &str,
) -> Result<Regex, String> {
    let mut text = anchor.to_owned();
    for piece in pieces {
        match piece {
            Piece::Any if longest => text.push_str(".*"),
            Piece::Any => text.push_str(".*?"),
            Piece::One => text.push('.'),
            Piece::Is(c) => text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&text).map_err(|_| format!("the pattern {pattern:?} is too long"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::words;

    fn with(value: &str, needle: &str, word: &str) -> Result<String, String> {
        words::expand(word, '\\', &|name| match name {
            "V" => Some(value.to_owned()),
            "N" => Some(needle.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn prefixes_suffixes_and_replacements() {
        for (value, word, want) in [
            ("registry.example/app:1.2", "${V#*/}", "app:1.2"),
            (
                "registry.example/app:1.2",
                "${V%:*}",
                "registry.example/app",
            ),
            ("a/b/c", "${V#*/}", "b/c"),
            ("a/b/c", "${V##*/}", "c"),
            ("a/b/c", "${V%/*}", "a/b"),
            ("a/b/c", "${V%%/*}", "a"),
            ("1.2.3", "${V%.*}.x", "1.2.x"),
            ("abc", "${V#x}", "abc"),
            ("abc", "${V#abc}", ""),
            ("abc", "${V%}", "abc"),
            ("abc", "${V##}", "abc"),
            ("abc", "${V#*}", "abc"),
            ("abc", "${V##*}", ""),
            ("abc", "${V%?}", "ab"),
            ("a?c", "${V#a\\?}", "c"),
            ("a*c", "${V%\\*c}", "a"),
            ("a}c", "${V#a\\}}", "c"),
            ("[ab]c", "${V#[ab]}", "c"),
            ("x.y", "${V#x.}", "y"),
            ("xzy", "${V#x.}", "xzy"),
            ("\u{f6}\u{fc}a", "${V#?}", "\u{fc}a"),
            ("a-b-c", "${V/-/_}", "a_b-c"),
            ("a-b-c", "${V//-/_}", "a_b_c"),
            ("a-b-c", "${V//-/}", "abc"),
            ("/tmp/x", "${V//\\//:}", ":tmp:x"),
            ("/tmp/x", "${V//\\//\\/}", "\\/tmp\\/x"),
            ("abcabc", "${V/b*/-}", "a-"),
            ("abc", "${V//?/$$0}", "000"),
            ("abc", "${V///}", "abc"),
            ("a b", "${V#\"a \"}", "b"),
            ("", "${V#x}", ""),
            ("abc", "${U#x}", ""),
            ("abc", "x${U//a/b}y", "xy"),
        ] {
            assert_eq!(with(value, "", word).as_deref(), Ok(want), "{value} {word}");
        }
        // A value is a pattern, too, and may have slashes.
        for (value, needle, word, want) in [
            (
                "http://example.com",
                "http://",
                "${V/$N/https://}",
                "https://example.com",
            ),
            ("/a/foo/b/c", "/?/", "${V//$N/-}", "-foo-c"),
            (
                "/a*/*/*.c",
                "\\*/",
                "${V/$N/.} ${V//$N/.}",
                "/a.*/*.c /a..*.c",
            ),
            ("xxyy", "x", "${V#$N}", "xyy"),
            ("xxyy", "", "${V#$N}", "xxyy"),
            ("xxyy", "", "${V/$N/w}", "wxxyy"),
        ] {
            assert_eq!(
                with(value, needle, word).as_deref(),
                Ok(want),
                "{value} {word}"
            );
        }
    }

    /// Plain backtracking: whether the whole text matches.
    fn matches(pattern: &[char], text: &[char]) -> bool {
        match pattern.first() {
            None => text.is_empty(),
            Some('*') => (0..=text.len()).any(|n| matches(&pattern[1..], &text[n..])),
            Some('?') => !text.is_empty() && matches(&pattern[1..], &text[1..]),
            Some(c) => text.first() == Some(c) && matches(&pattern[1..], &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn shortest_and_longest_are_what_trying_all_finds(pattern in "[ab*?]{0,5}", value in "[ab]{0,6}") {
            let pattern_chars: Vec<char> = pattern.chars().collect();
            let chars: Vec<char> = value.chars().collect();
            let text = |part: &[char]| part.iter().collect::<String>();
            let fits: Vec<usize> = (0..=chars.len()).filter(|n| matches(&pattern_chars, &chars[..*n])).collect();
            let ends: Vec<usize> = (0..=chars.len()).filter(|n| matches(&pattern_chars, &chars[*n..])).collect();
            let prefix = |n: Option<&usize>| text(&chars[n.copied().unwrap_or(0)..]);
            let suffix = |n: Option<&usize>| text(&chars[..n.copied().unwrap_or(chars.len())]);
            // `##` and `%%` are not a `#` or `%` and a pattern that begins with one: these have no such letter.
            prop_assert_eq!(super::without_prefix(&value, &pattern, false).unwrap(), prefix(fits.first()));
            prop_assert_eq!(super::without_prefix(&value, &pattern, true).unwrap(), prefix(fits.last()));
            prop_assert_eq!(super::without_suffix(&value, &pattern, false).unwrap(), suffix(ends.last()));
            prop_assert_eq!(super::without_suffix(&value, &pattern, true).unwrap(), suffix(ends.first()));
        }

        #[test]
        fn an_escaped_text_is_replaced_by_itself(value in "[ab*?\\\\/}]{1,8}") {
            let pattern: String = value.chars().flat_map(|c| match c {
                'a' | 'b' => vec![c],
                c => vec!['\\', c],
            }).collect();
            prop_assert_eq!(super::replace(&value, &pattern, "x", false).unwrap(), "x");
        }
    }
}
