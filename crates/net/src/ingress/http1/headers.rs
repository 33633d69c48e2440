//! What of a message's headers belongs to one connection and is not passed on (RFC 9110, 7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

const OWN: [HeaderName; 3] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes what is meant for this connection alone. An upgrade that is asked for or granted is asked for or granted by this side too;
/// returns whether there is one.
pub(super) fn strip(headers: &mut HeaderMap) -> bool {
    let mut upgrade = false;
    let mut named = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|&b| b == b',') {
            match option.trim_ascii() {
                b"" => {}
                o if o.eq_ignore_ascii_case(b"upgrade") => {
                    upgrade = headers.contains_key(header::UPGRADE);
                }
                o if o.eq_ignore_ascii_case(b"close") || o.eq_ignore_ascii_case(b"keep-alive") => {}
                o => named.extend(HeaderName::from_bytes(o).ok().filter(|n| !is_needed(n))),
            }
        }
    }
    for name in OWN.iter().chain(&named) {
        headers.remove(name);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    } else {
        headers.remove(header::UPGRADE);
    }
    upgrade
}

/// Headers that a `Connection` header must not take away: what frames and routes the message, and `TE`, without which trailers would get lost.
fn is_needed(name: &HeaderName) -> bool {
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::TE,
        header::UPGRADE,
    ]
    .contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(pairs: &[(&str, &str)]) -> (bool, Vec<String>) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let upgrade = strip(&mut headers);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        left.sort();
        (upgrade, left)
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let (upgrade, left) = stripped(&[
            ("Connection", "close, X-Mine"),
            ("Connection", "te"),
            ("Keep-Alive", "timeout=5"),
            ("X-Mine", "1"),
            ("X-Other", "2"),
            ("TE", "trailers"),
        ]);
        assert!(!upgrade);
        assert_eq!(left, ["te: trailers", "x-other: 2"]);
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let (upgrade, left) = stripped(&[
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
        ]);
        assert!(upgrade);
        assert_eq!(left, ["connection: Upgrade", "upgrade: websocket"]);
    }

    #[test]
    fn an_upgrade_that_connection_does_not_name_is_none() {
        let (upgrade, left) = stripped(&[("Upgrade", "h2c")]);
        assert!(!upgrade);
        assert_eq!(left, Vec::<String>::new());
    }

    #[test]
    fn what_frames_the_message_cannot_be_taken_away() {
        let (_, left) = stripped(&[
            ("Connection", "content-length, host"),
            ("Content-Length", "5"),
            ("Host", "x"),
        ]);
        assert_eq!(left, ["content-length: 5", "host: x"]);
    }
}
