//! Image references as Docker writes them: `hello`, `acc/hello:1`, `127.0.0.1:7400/acc/hello@sha256:...`.
//!
//! The grammar and the normalisation are those of distribution's `reference` package: a first component that has a dot, a colon or is
//! `localhost` is a host; without one the host is `docker.io`, and a single name there is in `library/`.

use std::fmt::Write as _;

use crate::error::{ImageError, Result};
use crate::{Digest, digest::is_hex};

const DEFAULT_HOST: &str = "docker.io";
const OFFICIAL: &str = "library/";

/// A parsed reference, normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry host, with its port if it has one; `docker.io` if none was written.
    pub host: String,
    /// Repository within it: `library/hello`, `acc/hello`.
    pub repository: String,
    /// Tag, if one was written.
    pub tag: Option<String>,
    /// Digest, if one was written.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises. An error says which part is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            ImageError::Invalid(format!(
                "invalid image reference \"{}\": {why}",
                text.escape_default()
            ))
        };
        if text.len() == 64 && is_hex(text) {
            return Err(wrong("64 hex digits are an image id, not a name"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (
                named,
                Some(Digest::parse(digest).map_err(|e| wrong(&e.to_string()))?),
            ),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it belongs to the host's port.
        let last = named.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match named[last..].find(':') {
            Some(at) => (&named[..last + at], Some(&named[last + at + 1..])),
            None => (named, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(wrong(
                "a tag is at most 128 letters, digits, '_', '.' or '-', and does not begin with '.' or '-'",
            ));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                // Lower case, unless it is a host by its capitals alone: then it would not be one
                // when it is read again.
                let lower = first.to_ascii_lowercase();
                let is_host = lower.contains(['.', ':']) || lower == "localhost";
                (if is_host { lower } else { first.to_owned() }, rest)
            }
            _ => (DEFAULT_HOST.to_owned(), name),
        };
        let host = if host == "index.docker.io" {
            DEFAULT_HOST.to_owned()
        } else {
            host
        };
        if !is_host(&host) {
            return Err(wrong("the registry host is not a host name or address"));
        }
        let repository = if host == DEFAULT_HOST && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path.to_owned()
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong("a repository name must be lower case"));
        }
        if path.is_empty() || !is_repository(&repository) {
            return Err(wrong(
                "a repository name is lower-case letters and digits, with '.', '_', '-' between them, in parts divided by '/'",
            ));
        }
        if host.len() + 1 + repository.len() > 255 {
            return Err(wrong("the name is longer than 255 characters"));
        }
        Ok(Self {
            host,
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// `host/repository`, in full.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/repository:tag` in full, with `latest` where no tag was written. The key of a local name.
    pub fn tagged(&self) -> String {
        format!("{}:{}", self.name(), self.tag_or_latest())
    }

    /// The tag, or `latest`.
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// As people know it: without `docker.io/` and `library/`, with tag and digest as far as they were given.
    pub fn familiar(&self) -> String {
        let mut text = familiar(&self.name()).to_owned();
        if let Some(tag) = &self.tag {
            let _ = write!(text, ":{tag}");
        }
        if let Some(digest) = &self.digest {
            let _ = write!(text, "@{digest}");
        }
        text
    }
}

/// Takes `docker.io/` and `library/` off a full name.
pub(crate) fn familiar(full: &str) -> &str {
    match full
        .strip_prefix(DEFAULT_HOST)
        .and_then(|r| r.strip_prefix('/'))
    {
        Some(rest) => match rest.strip_prefix(OFFICIAL) {
            // `docker.io/library/a/b` is `library/a/b` to people, not `a/b`, which would be another repository.
            // 64 hex digits would be an image's id.
            Some(single) if single.contains('/') || single.len() == 64 && is_hex(single) => rest,
            Some(single) => single,
            None => rest,
        },
        None => full,
    }
}

/// A tag, as the distribution specification defines it.
pub fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// A repository name, as the distribution specification defines it.
pub fn is_repository(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alnum(first)
        && alnum(last)
        && bytes
            .split(|b| alnum(b))
            .filter(|separator| !separator.is_empty())
            .all(|separator| {
                matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
            })
}

fn is_host(text: &str) -> bool {
    let port_ok = |port: &str| {
        !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit())
    };
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(port_ok));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    port.is_none_or(port_ok)
        && name.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        for (text, full, shown) in [
            ("hello", "docker.io/library/hello:latest", "hello"),
            ("hello:1", "docker.io/library/hello:1", "hello:1"),
            ("acc/hello:1", "docker.io/acc/hello:1", "acc/hello:1"),
            (
                "docker.io/library/hello:1",
                "docker.io/library/hello:1",
                "hello:1",
            ),
            (
                "index.docker.io/hello:1",
                "docker.io/library/hello:1",
                "hello:1",
            ),
            (
                "docker.io/library/a/b:1",
                "docker.io/library/a/b:1",
                "library/a/b:1",
            ),
            (
                "127.0.0.1:7400/acc/hello:tag",
                "127.0.0.1:7400/acc/hello:tag",
                "127.0.0.1:7400/acc/hello:tag",
            ),
            (
                "localhost/hello",
                "localhost/hello:latest",
                "localhost/hello",
            ),
            ("LOCAL/hello", "LOCAL/hello:latest", "LOCAL/hello"),
            (
                "Registry.Example/hello",
                "registry.example/hello:latest",
                "registry.example/hello",
            ),
            (
                "[::1]:7400/hello:a",
                "[::1]:7400/hello:a",
                "[::1]:7400/hello:a",
            ),
            ("a__b/c-_d", "", ""),
            (
                "a__b/c---d:X.y-z",
                "docker.io/a__b/c---d:X.y-z",
                "a__b/c---d:X.y-z",
            ),
        ] {
            match Reference::parse(text) {
                Ok(reference) => {
                    assert_eq!(reference.tagged(), full, "{text}");
                    assert_eq!(reference.familiar(), shown, "{text}");
                }
                Err(_) => assert_eq!(full, "", "{text}"),
            }
        }
    }

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        let id = "a".repeat(64);
        for text in [
            "Fd/d",
            "LOCALHOST/x",
            "Index.docker.io/x",
            &format!("library/{id}"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(
                Reference::parse(&reference.familiar()).unwrap(),
                reference,
                "{text}"
            );
        }
    }

    #[test]
    fn digests_ports_and_tags_are_told_apart() {
        let digest = Digest::of(b"x");
        let reference = Reference::parse(&format!("localhost:5000/a/b:t@{digest}")).unwrap();
        assert_eq!(reference.host, "localhost:5000");
        assert_eq!(reference.repository, "a/b");
        assert_eq!(reference.tag.as_deref(), Some("t"));
        assert_eq!(reference.digest, Some(digest));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, why) in [
            ("", "repository name"),
            ("Hello", "lower case"),
            ("a//b", "repository name"),
            ("a/", "repository name"),
            ("docker.io/", "repository name"),
            ("../x", "host"),
            ("a:", "tag"),
            ("a:.x", "tag"),
            ("a@sha256:12", "64 lower-case hex"),
            ("a b", "repository name"),
            ("host.:80/a", "host"),
            (&"a".repeat(64), "image id"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = Reference::parse(&text);
        }
        #[test]
        fn full_and_familiar_forms_mean_the_same(
            text in "(([a-z]{1,5}\\.[a-z]{2}|localhost|127\\.0\\.0\\.1:80)/)?([a-z0-9]{1,4}/){0,2}[a-z0-9]{1,6}(:[a-zA-Z0-9_.]{1,4})?"
        ) {
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.familiar()).unwrap();
                prop_assert_eq!(&again, &reference);
                let full = Reference::parse(&reference.tagged()).unwrap();
                prop_assert_eq!(full.tagged(), reference.tagged());
            }
        }
    }
}
