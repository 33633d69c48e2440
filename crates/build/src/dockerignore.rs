//! `.dockerignore`: which paths of the context do not take part in a build. Docker's rules: patterns are relative to the context's root, the last match wins,
//! `!` includes again, a pattern that matches a directory takes everything below with it. Pure.

use crate::pattern::Pattern;

/// The patterns of one file.
#[derive(Debug, Default)]
pub(crate) struct Dockerignore {
    rules: Vec<(bool, Pattern)>,
}

impl Dockerignore {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        for (i, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (include, pattern) = match line.strip_prefix('!') {
                Some(p) => (true, p.trim()),
                None => (false, line),
            };
            if include && pattern.is_empty() {
                return Err(format!(".dockerignore:{}: a lone ! has no meaning", i + 1));
            }
            let pattern = clean(pattern);
            if pattern.is_empty() {
                continue;
            }
            let compiled = Pattern::new(&pattern, true)
                .map_err(|e| format!(".dockerignore:{}: {e}", i + 1))?;
            rules.push((include, compiled));
        }
        Ok(Self { rules })
    }

    /// Whether `path` (relative to the context, no leading slash) is left out. It does not say that everything below it is: see [`Self::prunes`].
    pub(crate) fn excludes(&self, path: &str) -> bool {
        let mut excluded = false;
        for (include, pattern) in &self.rules {
            // Only a rule that would change the outcome needs to be tried.
            if *include == excluded && with_parents(path).any(|p| pattern.matches(p)) {
                excluded = !include;
            }
        }
        excluded
    }

    /// Whether nothing below the excluded directory can be included again, so that it need not be read.
    pub(crate) fn prunes(&self) -> bool {
        !self.rules.iter().any(|(include, _)| *include)
    }
}

/// The path and each directory above it.
fn with_parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |p| p.rfind('/').map(|i| &p[..i]))
}

/// `/a//b/./c/../d/` becomes `a/b/d`.
fn clean(pattern: &str) -> String {
    crate::state::absolute("/", pattern).split_off(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn excluded(file: &str, path: &str) -> bool {
        Dockerignore::parse(file).expect("parses").excludes(path)
    }

    #[test]
    fn docker_rules() {
        for (file, path, want) in [
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "temp", false),
            ("*/*/temp*", "somedir/subdir/temporary.txt", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("node_modules", "node_modules/a/b.js", true),
            ("node_modules", "sub/node_modules/a", false),
            ("**/node_modules", "sub/node_modules/a", true),
            ("/foo/bar", "foo/bar", true),
            ("foo/", "foo/x", true),
            ("*.md\n!README.md", "README.md", false),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                "README-secret.md",
                true,
            ),
            (
                "*.md\nREADME-secret.md\n!README*.md",
                "README-secret.md",
                false,
            ),
            ("*\n!src", "src/a/b.c", false),
            ("*\n!src", "other", true),
            ("a/..//b", "b", true),
            ("# b", "b", false),
            (" b ", "b", true),
            ("! b\nc", "b", false),
            ("", "b", false),
            (".", "b", false),
            (".git", ".github/x", false),
        ] {
            assert_eq!(excluded(file, path), want, "{file:?} {path}");
        }
        assert!(Dockerignore::parse("a\n!").is_err());
        assert_eq!(
            Dockerignore::parse("a\n[").expect_err("bad").to_string(),
            ".dockerignore:2: the pattern \"[\" is malformed (an unclosed [ or a trailing \\)"
        );
    }

    proptest! {
        #[test]
        fn what_is_below_an_excluded_directory_is_excluded(rules in prop::collection::vec("[ab*?/]{1,5}", 1..4), path in "[ab]{1,3}(/[ab]{1,3}){0,3}") {
            let file = Dockerignore::parse(&rules.join("\n")).expect("parses");
            let child = format!("{path}/x");
            prop_assert!(!file.excludes(&path) || file.excludes(&child));
        }

        #[test]
        fn a_final_negation_of_all_includes_all(rules in prop::collection::vec("!?[ab*?/]{1,5}a", 0..4), path in "[ab]{1,3}(/[ab]{1,3}){0,3}") {
            let file = Dockerignore::parse(&format!("{}\n!**", rules.join("\n"))).expect("parses");
            prop_assert!(!file.excludes(&path));
        }
    }
}
