//! The Host field of an HTTP/1 request (RFC 9112). Lenient as servers are: bare line feeds, empty lines in front.

use super::Sniffed;

/// Longer methods than any that is registered.
const MAX_METHOD: usize = 32;

/// Looks at the first bytes.
pub(super) fn sniff(bytes: &[u8]) -> Sniffed {
    let mut rest = bytes;
    while let Some(after) = rest
        .strip_prefix(b"\n")
        .or_else(|| rest.strip_prefix(b"\r\n"))
    {
        rest = after;
    }
    let Some((line, mut fields)) = line(rest) else {
        return if may_become_request(rest) {
            Sniffed::More
        } else {
            Sniffed::Other
        };
    };
    if !is_request(line) {
        return Sniffed::Other;
    }
    while let Some((field, rest)) = self::line(fields) {
        if field.is_empty() {
            return Sniffed::Http(None);
        }
        fields = rest;
        let Some(colon) = field.iter().position(|&b| b == b':') else {
            continue;
        };
        let (name, value) = (&field[..colon], field[colon + 1..].trim_ascii());
        // Spaces before the colon are an error that some servers overlook.
        if name.trim_ascii().eq_ignore_ascii_case(b"host") {
            let host = String::from_utf8_lossy(value).into_owned();
            return Sniffed::Http(Some(host).filter(|host| !host.is_empty()));
        }
    }
    Sniffed::More
}

/// The first line, without its end, and what follows. `None` if it has no end yet.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

/// `method SP request-target SP HTTP/1.x`
fn is_request(line: &[u8]) -> bool {
    let mut words = line.split(is_space);
    let method = words.next().is_some_and(is_method);
    let mut words = words.filter(|word| !word.is_empty());
    let version = words
        .next_back()
        .is_some_and(|version| version.starts_with(b"HTTP/1."));
    method && version && words.next().is_some()
}

/// Whether a first line without an end may become a request's.
fn may_become_request(line: &[u8]) -> bool {
    match line.iter().position(is_space) {
        Some(end) => is_method(&line[..end]),
        None if line == b"\r" => true,
        None => line.is_empty() || is_method(line),
    }
}

/// Some servers take tabs too.
fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_method(word: &[u8]) -> bool {
    // Tokens may be more than this, methods of servers that exist are not.
    (1..=MAX_METHOD).contains(&word.len())
        && word
            .iter()
            .all(|b| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_'))
}
