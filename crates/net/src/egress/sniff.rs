//! What a connection is, by the first bytes that its client sends. Pure, for bytes of any kind.
//!
//! [`sniff`] looks at all that has come so far and may be asked again with more; what it has once decided stays decided. It never wants more
//! than [`MAX_HEAD`] bytes, and what it cannot tell within them is [`Sniffed::Other`].
//! Where a name could be hidden from it, it errs towards a name: whoever asks wants to know what may be intercepted.

mod http;
mod tls;

/// The most that a client's head is read for its name. Servers' own limits are lower.
pub(crate) const MAX_HEAD: usize = 32 * 1024;

/// What a client without a better idea of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// Too little to tell.
    More,
    /// A TLS ClientHello, and the name in it (RFC 6066, 3): lower case, without a dot at its end.
    Tls(Option<String>),
    /// An HTTP/1 request, and the value of its Host field (RFC 9112, 3.2), as it came.
    Http(Option<String>),
    /// HTTP/2 without TLS and without having asked whether the server speaks it.
    Http2,
    /// None of these.
    Other,
}

/// Looks at the first bytes of a connection.
pub(crate) fn sniff(bytes: &[u8]) -> Sniffed {
    let found = match bytes.first() {
        None => Sniffed::More,
        Some(&tls::HANDSHAKE) => tls::sniff(bytes),
        Some(_) if PREFACE.starts_with(&bytes[..bytes.len().min(PREFACE.len())]) => {
            if bytes.len() < PREFACE.len() {
                Sniffed::More
            } else {
                Sniffed::Http2
            }
        }
        Some(_) => http::sniff(bytes),
    };
    match found {
        Sniffed::More if bytes.len() >= MAX_HEAD => Sniffed::Other,
        found => found,
    }
}

/// Looks at it in pieces, and sees that what was once decided stays decided and that a name can be asked with.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut decided = None;
    // All short beginnings, and some of the long ones.
    let ends = (0..bytes.len()).filter(|end| *end < 300 || end % 61 == 0);
    for end in ends.chain([bytes.len()]) {
        let now = sniff(&bytes[..end]);
        match &decided {
            None if now == Sniffed::More => {}
            None => decided = Some(now),
            Some(before) => assert_eq!(*before, now, "after {end} bytes"),
        }
    }
    if let Some(Sniffed::Tls(Some(name)) | Sniffed::Http(Some(name))) = decided {
        assert!(!name.is_empty());
        super::Hosts::new(&["*.a*b.example".to_owned()]).may_match(&name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds it byte by byte and sees that a decision stays, whatever follows.
    fn in_pieces(bytes: &[u8]) -> Sniffed {
        let mut decided = None;
        for end in 0..=bytes.len() {
            let now = sniff(&bytes[..end]);
            match &decided {
                None if now == Sniffed::More => {}
                None => decided = Some(now),
                Some(before) => assert_eq!(*before, now, "after {end} bytes"),
            }
        }
        decided.unwrap_or(Sniffed::More)
    }

    fn hello(name: &str) -> Vec<u8> {
        let config = crate::egress::tls::tests::client(rustls::RootCertStore::empty(), &[]);
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake in records of `size` bytes, as a client may split it.
    fn in_records(record: &[u8], size: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for part in record[5..].chunks(size) {
            all.extend_from_slice(&record[..3]);
            all.extend_from_slice(&(part.len() as u16).to_be_bytes());
            all.extend_from_slice(part);
        }
        all
    }

    #[test]
    fn names_are_found_in_what_a_tls_client_sends() {
        for (name, found) in [
            ("www.example.com", Some("www.example.com")),
            ("WWW.Example.com", Some("www.example.com")),
            ("192.0.2.1", None),
        ] {
            let found = Sniffed::Tls(found.map(str::to_owned));
            let hello = hello(name);
            assert_eq!(in_pieces(&hello), found);
            assert_eq!(in_pieces(&in_records(&hello, 7)), found);
        }
    }

    #[test]
    fn hosts_are_found_in_requests() {
        for (text, host) in [
            (
                "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
                Some("a.example"),
            ),
            (
                "GET / HTTP/1.1\nhost:a.example:81  \n\n",
                Some("a.example:81"),
            ),
            ("PROPFIND /x HTTP/1.1\r\nA: b\r\nHOST:\ta\r\n", Some("a")),
            ("GET / HTTP/1.0\r\nA: b\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", None),
            ("GET\t/  HTTP/1.1\r\nHost : a\r\n", Some("a")),
            // Empty lines in front are ignored (RFC 9112, 2.2).
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Some("a")),
        ] {
            let found = Sniffed::Http(host.map(str::to_owned));
            assert_eq!(in_pieces(text.as_bytes()), found, "{text}");
        }
    }

    #[test]
    fn other_protocols_are_not_taken_for_these() {
        for other in [
            &b"EHLO me\r\n"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"SSH-2.0-x\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"GET /\r\n",
            b"get / HTTP/2.0\r\n",
            // Found by fuzzing.
            b" GET / HTTP/1.1\r\nHost: a\r\n",
            b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
        ] {
            assert_eq!(in_pieces(other), Sniffed::Other, "{other:?}");
        }
        assert_eq!(in_pieces(PREFACE), Sniffed::Http2);
        assert_eq!(
            in_pieces(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
            Sniffed::Other
        );
    }

    #[test]
    fn a_head_without_end_is_given_up() {
        let mut request = b"GET / HTTP/1.1\r\nX: ".to_vec();
        request.resize(MAX_HEAD - 1, b'x');
        assert_eq!(sniff(&request), Sniffed::More);
        request.push(b'x');
        assert_eq!(sniff(&request), Sniffed::Other);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            fuzz(&bytes);
        }

        /// Damage to a ClientHello, which random bytes would hardly reach the inside of.
        #[test]
        fn damaged_hellos(at: proptest::sample::Index, value: u8, cut: proptest::sample::Index) {
            let mut bytes = hello("www.example.com");
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(cut.index(bytes.len() + 1));
            fuzz(&bytes);
        }

        #[test]
        fn any_name_is_found(name in "[a-z0-9]{1,20}(\\.[a-z][a-z0-9]{0,20}){1,4}", size in 1usize..600) {
            let bytes = in_records(&hello(&name), size);
            prop_assert_eq!(sniff(&bytes), Sniffed::Tls(Some(name)));
        }

        #[test]
        fn any_host_is_found(
            method in "[A-Z-]{1,12}",
            target in "/[!-~]{0,30}",
            before in proptest::collection::vec("[A-Za-z-]{1,9}: [ -~]{0,20}", 0..5),
            host in "[!-~]{1,30}",
        ) {
            prop_assume!(before.iter().all(|line| !line.to_lowercase().starts_with("host:")));
            let fields: String = before.iter().map(|line| format!("{line}\r\n")).collect();
            let head = format!("{method} {target} HTTP/1.1\r\n{fields}Host: {host}\r\n");
            prop_assert_eq!(in_pieces(head.as_bytes()), Sniffed::Http(Some(host)));
        }
    }
}
