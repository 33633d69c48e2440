//! Whether a connection speaks HTTP/1, told from its first bytes. Pure.

/// No request line is longer; what workerd sends is bounded by its own limits on URLs.
const LONGEST_LINE: usize = 64 * 1024;
/// The longest method that is in use has 17 bytes.
const LONGEST_METHOD: usize = 32;

/// What the bytes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A request line of HTTP/1.0 or 1.1.
    Http,
    /// Something else; also CONNECT, behind which anything may come.
    Other,
    /// The beginning of a request line, perhaps.
    More,
}

/// Looks at all bytes that have come so far.
pub(crate) fn verdict(bytes: &[u8]) -> Verdict {
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        return if could_begin_a_request(bytes) {
            Verdict::More
        } else {
            Verdict::Other
        };
    };
    let line = &bytes[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_http = could_begin_a_request(line)
        && !line.starts_with(b"CONNECT ")
        && (line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"))
        && line.iter().filter(|&&b| b == b' ').count() == 2;
    if is_http {
        Verdict::Http
    } else {
        Verdict::Other
    }
}

/// A method, a space, a target without control characters, as far as there are bytes.
fn could_begin_a_request(bytes: &[u8]) -> bool {
    if bytes.len() > LONGEST_LINE {
        return false;
    }
    let method = bytes.split(|&b| b == b' ').next().unwrap_or_default();
    let rest = &bytes[method.len()..];
    method.len() <= LONGEST_METHOD
        && method.iter().all(|&b| is_token(b))
        && (rest.is_empty() || !method.is_empty())
        && rest.iter().all(|&b| b >= b' ' && b != 0x7f || b == b'\r')
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_told_from_other_protocols() {
        for (bytes, expected) in [
            (&b""[..], Verdict::More),
            (b"G", Verdict::More),
            (b"GET /a HTTP/1.", Verdict::More),
            (b"GET / HTTP/1.1\r\n", Verdict::Http),
            (b"POST /a?b=c HTTP/1.0\r\nHost: x\r\n", Verdict::Http),
            (b"M-SEARCH * HTTP/1.1\n", Verdict::Http),
            (b"CONNECT a:1 HTTP/1.1\r\n", Verdict::Other),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Verdict::Other),
            (b"OPTIONS rtsp://x RTSP/1.0\r\n", Verdict::Other),
            (b"GET /\r\n", Verdict::Other),
            (b"GET / a HTTP/1.1\r\n", Verdict::Other),
            (b"EHLO example.com\r\n", Verdict::Other),
            (b"*1\r\n$4\r\nPING\r\n", Verdict::Other),
            (b"PING\r\n", Verdict::Other),
            (b"\x16\x03\x01", Verdict::Other),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Verdict::Other),
            (b" GET / HTTP/1.1\r\n", Verdict::Other),
            (b"\r\nGET / HTTP/1.1\r\n", Verdict::Other),
        ] {
            assert_eq!(verdict(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        /// More bytes never change what has been decided, and a request is never taken for something else halfway.
        #[test]
        fn a_verdict_stands(bytes in prop::collection::vec(any::<u8>(), 0..64), more in prop::collection::vec(any::<u8>(), 0..64)) {
            let before = verdict(&bytes);
            let mut all = bytes.clone();
            all.extend(more);
            if before != Verdict::More {
                prop_assert_eq!(verdict(&all), before);
            }
        }

        #[test]
        fn any_part_of_a_request_line_may_become_one(path in "/[!-~]{0,40}", cut in 0usize..60) {
            let line = format!("GET {path} HTTP/1.1\r\n");
            let cut = cut.min(line.len() - 1);
            prop_assert_eq!(verdict(&line.as_bytes()[..cut]), Verdict::More);
            prop_assert_eq!(verdict(line.as_bytes()), Verdict::Http);
        }
    }
}
