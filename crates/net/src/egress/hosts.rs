//! Which names may have a mapping. Pure.
//!
//! workerd alone knows the mappings; it says their host patterns, and `*` as soon as there is one by address. So this answers "no" only if
//! workerd would find none, and "perhaps" otherwise: a wrong "perhaps" costs a question, a wrong "no" would let a connection pass by the Worker.

/// Host patterns of mappings (contract: workerd, 1.5): `*` stands for any characters, also none, also dots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hosts {
    patterns: Vec<String>,
    /// `*` is among them.
    any: bool,
}

impl Hosts {
    pub(crate) fn new<'a>(patterns: impl IntoIterator<Item = &'a String>) -> Self {
        let mut patterns: Vec<_> = patterns
            .into_iter()
            .map(|pattern| pattern.to_ascii_lowercase())
            .collect();
        patterns.sort();
        patterns.dedup();
        let any = patterns.iter().any(|pattern| pattern == "*");
        Self { patterns, any }
    }

    /// There are no mappings.
    pub(crate) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// There may be mappings by address or port, which need no name.
    pub(crate) fn any(&self) -> bool {
        self.any
    }

    /// Whether a name may have a mapping. Takes a Host field's value, a name of DNS or of TLS.
    pub(crate) fn may_match(&self, host: &str) -> bool {
        if self.any {
            return true;
        }
        match plain(host) {
            Some(name) => self.names(&name),
            None => !self.is_empty(),
        }
    }

    /// Whether a pattern other than `*` matches the name.
    pub(crate) fn names(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.patterns
            .iter()
            .any(|pattern| pattern != "*" && matches(pattern.as_bytes(), name.as_bytes()))
    }
}

/// The host without its port, in lower case. `None` for what workerd's URL parser may turn into something else: user names, escapes, Unicode,
/// numbers that become addresses.
fn plain(host: &str) -> Option<String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bytes_are_plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let last = name.trim_end_matches('.').rsplit('.').next()?;
    let is_number = last.starts_with(|c: char| c.is_ascii_digit());
    (bytes_are_plain && !is_number).then(|| name.to_ascii_lowercase())
}

/// Glob matching in linear space and at worst quadratic time: only the last `*` is ever tried again.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, n));
        } else if n == name.len() {
            return p == pattern.len();
        } else if pattern.get(p) == name.get(n) {
            p += 1;
            n += 1;
        } else if let Some((after, from)) = retry {
            retry = Some((after, from + 1));
            (p, n) = (after, from + 1);
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts(patterns: &[&str]) -> Hosts {
        let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
        Hosts::new(&patterns)
    }

    #[test]
    fn patterns_match_as_documented() {
        for (pattern, yes, no) in [
            (
                "example.com",
                &["example.com", "EXAMPLE.com:8080"][..],
                &["sub.example.com", "example.comm", ""][..],
            ),
            (
                "*.example.com",
                &["api.example.com", "a.b.example.com"],
                &["example.com"],
            ),
            (
                "google.*",
                &["google.com", "google.co.uk"],
                &["maps.google.com"],
            ),
            (
                "api.*.com",
                &["api.stripe.com", "api.a.b.com"],
                &["api.stripe.co.uk"],
            ),
            ("*", &["anything", "1.1.1.1", ""], &[]),
            ("a*b*c", &["abc", "a1b2c", "abbcc"], &["ab", "acb"]),
        ] {
            for host in yes {
                assert!(hosts(&[pattern]).may_match(host), "{pattern} {host}");
            }
            for host in no {
                assert!(!hosts(&[pattern]).may_match(host), "{pattern} {host}");
            }
        }
        assert!(!hosts(&[]).may_match("x"));
        assert!(
            !hosts(&["*"]).names("x"),
            "an address' mapping names nobody"
        );
    }

    #[test]
    fn what_a_url_parser_may_read_otherwise_is_left_to_it() {
        for host in [
            "x@evil.example",
            "%65vil.example",
            "evil\u{3002}example",
            "127.1",
            "0x7f000001",
            "evil.example/",
            "[::1]",
        ] {
            assert!(hosts(&["evil.example"]).may_match(host), "{host}");
        }
    }

    proptest! {
        /// Every name that a pattern was made from is matched by it.
        #[test]
        fn a_name_with_holes_matches(parts in proptest::collection::vec(("[a-c.]{0,4}", "[a-c.]{0,4}"), 1..5)) {
            let pattern: String = parts.iter().map(|(kept, _)| format!("{kept}*")).collect();
            let name: String = parts.iter().map(|(kept, hole)| format!("{kept}{hole}")).collect();
            prop_assert!(matches(pattern.as_bytes(), name.as_bytes()));
        }

        /// Without a `*` a pattern matches itself alone.
        #[test]
        fn plain_patterns_are_equality(a in "[ab]{0,3}", b in "[ab]{0,3}") {
            prop_assert_eq!(matches(a.as_bytes(), b.as_bytes()), a == b);
        }

        #[test]
        fn agrees_with_the_obvious_definition(pattern in "[ab*]{0,7}", name in "[ab]{0,9}") {
            fn obvious(p: &[u8], n: &[u8]) -> bool {
                match p.split_first() {
                    None => n.is_empty(),
                    Some((b'*', p)) => (0..=n.len()).any(|i| obvious(p, &n[i..])),
                    Some((c, p)) => n.first() == Some(c) && obvious(p, &n[1..]),
                }
            }
            prop_assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), obvious(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
