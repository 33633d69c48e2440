//! What happens to headers on their way: hop-by-hop ones end here, those that clients may not set are removed, ours are added.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{
    self, CONNECTION, EXPECT, FORWARDED, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};

pub(crate) const CF_RAY: HeaderName = HeaderName::from_static("cf-ray");
const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");
const CF_VISITOR: HeaderName = HeaderName::from_static("cf-visitor");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Statements about the client that only the gateway may make. The ones that it sets are overwritten, not listed.
const NOT_FROM_CLIENTS: [HeaderName; 5] = [
    HeaderName::from_static("cf-ipcountry"),
    HeaderName::from_static("cf-connecting-ipv6"),
    HeaderName::from_static("cf-pseudo-ipv4"),
    HeaderName::from_static("true-client-ip"),
    FORWARDED,
];

/// What a request says about its client, made once for each connection.
#[derive(Debug, Clone)]
pub(crate) struct ClientAddress(HeaderValue);

impl ClientAddress {
    pub(crate) fn new(peer: IpAddr) -> Self {
        // An address prints as visible ASCII only.
        let text = peer.to_canonical().to_string();
        Self(HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown")))
    }
}

/// Makes request ids: 16 hexadecimal digits, unlike any other of this process and, by the random start, of others.
#[derive(Debug)]
pub(crate) struct Rays(AtomicU64);

impl Rays {
    pub(crate) fn new() -> std::io::Result<Self> {
        let seed = getrandom::u64().map_err(std::io::Error::from)?;
        Ok(Self(AtomicU64::new(seed)))
    }

    /// As Cloudflare writes it: `<16 hex>-<place>`.
    pub(crate) fn next(&self) -> HeaderValue {
        // SplitMix64: a bijection of the counter, so ids do not repeat and neighbours do not look alike.
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let mut text = [0u8; 20];
        // The buffer is exactly twice eight bytes: encoding can't fail.
        let _ = hex::encode_to_slice(z.to_be_bytes(), &mut text[..16]);
        text[16..].copy_from_slice(b"-WHF");
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
    }
}

/// Whether the client asks for a WebSocket. Other upgrades (h2c, ...) are not passed on: a server may ignore the wish (RFC 9110, 7.8), and
/// a tunnel for a protocol that nobody reads would carry requests around the gateway.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && has_token(headers, &CONNECTION, "upgrade")
}

/// Whether the body's coding is one that can be passed on. hyper has made sure that `chunked` is last.
pub(crate) fn transfer_coding_is_known(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => true,
        (Some(value), None) => value.as_bytes().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// Makes a client's request headers those of the request to workerd.
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    client: &ClientAddress,
    ray: &HeaderValue,
    strip: &[HeaderName],
    websocket: bool,
) {
    let trailers = has_token(headers, &TE, "trailers");
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    for name in NOT_FROM_CLIENTS.iter().chain(strip) {
        headers.remove(name);
    }
    if websocket {
        upgrade_to_websocket(headers);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if chunked {
        // Said explicitly: hyper would leave out the body of a GET whose length is not known.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers.insert(CF_CONNECTING_IP, client.0.clone());
    headers.insert(X_FORWARDED_FOR, client.0.clone());
    headers.insert(X_REAL_IP, client.0.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(
        CF_VISITOR,
        HeaderValue::from_static("{\"scheme\":\"http\"}"),
    );
    headers.insert(CF_RAY, ray.clone());
}

/// Makes workerd's response headers those of the response to the client.
pub(crate) fn to_client(headers: &mut HeaderMap, ray: &HeaderValue, websocket: bool) {
    remove_hop_by_hop(headers);
    if websocket {
        upgrade_to_websocket(headers);
    }
    headers.insert(CF_RAY, ray.clone());
}

fn upgrade_to_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// RFC 9110, 7.6.1, with the names of RFC 2616, 13.5.1. What `Connection` names goes too, except what a message can't be understood without.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named
        .iter()
        .chain(&[CONNECTION, KEEP_ALIVE, PROXY_CONNECTION])
        .chain(&[TE, TRANSFER_ENCODING, UPGRADE])
        .chain(&[header::PROXY_AUTHORIZATION, header::PROXY_AUTHENTICATE])
    {
        headers.remove(name);
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn a_client_cannot_speak_for_the_gateway() {
        let mut headers = map(&[
            ("host", "hello.localhost"),
            ("cf-connecting-ip", "6.6.6.6"),
            ("cf-connecting-ip", "7.7.7.7"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "6.6.6.6"),
            ("cf-ray", "mine"),
            ("cf-ipcountry", "AQ"),
            ("cf-visitor", "{}"),
            ("true-client-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-internal-cf", "{}"),
            ("cookie", "a=b"),
        ]);
        let strip = [HeaderName::from_static("x-internal-cf")];
        let client = ClientAddress::new("::ffff:192.0.2.7".parse().unwrap());
        let ray = HeaderValue::from_static("0123456789abcdef-WHF");
        to_upstream(&mut headers, &client, &ray, &strip, false);
        let expected = map(&[
            ("host", "hello.localhost"),
            ("cookie", "a=b"),
            ("cf-connecting-ip", "192.0.2.7"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
            ("x-forwarded-proto", "http"),
            ("cf-visitor", "{\"scheme\":\"http\"}"),
            ("cf-ray", "0123456789abcdef-WHF"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn what_connection_names_ends_here_but_the_host_stays() {
        let mut headers = map(&[
            ("host", "hello.localhost"),
            ("connection", "close, X-Private,Host"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("upgrade", "h2c"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "hello.localhost")]));
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let ask = |upgrade, connection| {
            wants_websocket(&map(&[("upgrade", upgrade), ("connection", connection)]))
        };
        assert!(ask("WebSocket", "keep-alive, Upgrade"));
        assert!(!ask("h2c", "Upgrade, HTTP2-Settings"));
        assert!(!ask("websocket", "keep-alive"));
    }

    #[test]
    fn request_ids_do_not_repeat() {
        let rays = Rays::new().unwrap();
        let seen: std::collections::HashSet<_> = (0..1000).map(|_| rays.next()).collect();
        assert_eq!(seen.len(), 1000);
        assert!(
            seen.iter()
                .all(|ray| ray.len() == 20 && ray.as_bytes().ends_with(b"-WHF"))
        );
    }
}
