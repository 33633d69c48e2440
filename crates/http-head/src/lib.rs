//! Rules for the heads of HTTP messages that every proxy here follows: how many fields a head may
//! have, and what happens to a field that was sent more than once.
//!
//! workerd joins all lines of a field with ", " before a Worker sees them, except `Set-Cookie`
//! (seen with workerd 1.20261117.1). For a list that is right (RFC 9110, 5.3). For a cookie, a date
//! or a URL it makes a value that nobody sent, so such fields are reduced to one line first.
//!
//! Owns: these rules. Must not: read or write messages, or know which header belongs to which hop.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The shortest line that a field can have: a one-letter name, a colon, and the end of the line.
const SHORTEST_FIELD: usize = 4;

/// More fields than this do not fit into an [`http::HeaderMap`]: reserving room for 24,576 fields
/// is the most that it can do.
const MOST_FIELDS: usize = 24_000;

/// How many fields fit into a head of so many bytes, for HTTP libraries that want a bound on the
/// number of fields. With this number, the bound on bytes is the one that counts.
#[must_use]
pub const fn fields_within(bytes: usize) -> usize {
    let fields = bytes / SHORTEST_FIELD;
    if fields < MOST_FIELDS {
        fields
    } else {
        MOST_FIELDS
    }
}

/// Fields with one value, of which a second and different value is an attack or a serious mistake:
/// whoever checks one of them and whoever acts on the other would disagree. nginx refuses most of
/// these as well. `Host`, `Content-Length` and `Transfer-Encoding` are the HTTP server's own
/// business: it frames and routes messages by them.
const UNAMBIGUOUS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONTENT_RANGE,
    header::EXPECT,
    header::IF_MODIFIED_SINCE,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::ORIGIN,
];

/// Other fields with one value. The first line counts, as in Node.js.
const SINGLE: [HeaderName; 15] = [
    header::AGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::FROM,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::RANGE,
    header::REFERER,
    header::RETRY_AFTER,
    header::SERVER,
    header::USER_AGENT,
];

/// A request has one of these fields more than once, with different values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguous(pub HeaderName);

/// Gives a request one line of each field whose lines may not be joined with a comma. Several
/// `Cookie` lines become one, joined with "; " (RFC 6265, 5.4; RFC 9113, 8.2.3).
///
/// # Errors
/// A field that decides what the request means has several values. The answer is 400.
pub fn unite_request(headers: &mut HeaderMap) -> Result<(), Ambiguous> {
    join_cookies(headers);
    for name in UNAMBIGUOUS {
        let mut values = headers.get_all(&name).iter();
        let first = values.next();
        if values.any(|value| Some(value) != first) {
            return Err(Ambiguous(name));
        }
        keep_first(headers, &name);
    }
    for name in &SINGLE {
        keep_first(headers, name);
    }
    Ok(())
}

/// Gives a response one line of each field whose lines may not be joined with a comma.
/// Lists, `Set-Cookie` and `WWW-Authenticate` stay as they are.
pub fn unite_response(headers: &mut HeaderMap) {
    for name in SINGLE.iter().chain([&header::CONTENT_RANGE]) {
        keep_first(headers, name);
    }
}

fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
    if cookies.len() < 2 {
        return;
    }
    let joined = cookies
        .iter()
        .map(|cookie| cookie.as_bytes().trim_ascii())
        .filter(|cookie| !cookie.is_empty())
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    // Always valid: the parts were, and so is what joins them.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

fn keep_first(headers: &mut HeaderMap, name: &HeaderName) {
    let mut values = headers.get_all(name).iter();
    if let (Some(first), Some(_)) = (values.next(), values.next()) {
        let first = first.clone();
        headers.insert(name, first);
    }
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
    fn cookies_are_joined_with_semicolons() {
        let mut headers = map(&[
            ("cookie", "a=1"),
            ("x", "1"),
            ("cookie", ""),
            ("cookie", "b=2; c=3"),
            ("x", "2"),
        ]);
        unite_request(&mut headers).unwrap();
        assert_eq!(
            headers,
            map(&[("cookie", "a=1; b=2; c=3"), ("x", "1"), ("x", "2")])
        );
    }

    #[test]
    fn the_first_value_of_a_single_field_counts() {
        let mut headers = map(&[
            ("user-agent", "one"),
            ("user-agent", "two"),
            ("content-type", "text/plain"),
            ("content-type", "text/html"),
            ("accept", "a"),
            ("accept", "b"),
        ]);
        unite_request(&mut headers).unwrap();
        assert_eq!(
            headers,
            map(&[
                ("user-agent", "one"),
                ("content-type", "text/plain"),
                ("accept", "a"),
                ("accept", "b"),
            ])
        );
    }

    #[test]
    fn two_different_authorizations_are_refused() {
        let mut twice = map(&[("authorization", "Basic a"), ("authorization", "Basic a")]);
        unite_request(&mut twice).unwrap();
        assert_eq!(twice, map(&[("authorization", "Basic a")]));
        let mut both = map(&[("authorization", "Basic a"), ("authorization", "Basic b")]);
        assert_eq!(
            unite_request(&mut both),
            Err(Ambiguous(header::AUTHORIZATION))
        );
    }

    #[test]
    fn a_response_keeps_its_cookies_and_challenges_apart() {
        let kept = [
            ("set-cookie", "a=1; Expires=Wed, 09 Jun 2027 10:18:14 GMT"),
            ("set-cookie", "b=2"),
            ("www-authenticate", "Basic realm=\"a\""),
            ("www-authenticate", "Bearer"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authenticate", "Negotiate"),
            ("date", "Wed, 09 Jun 2027 10:18:14 GMT"),
        ];
        let mut headers = map(&kept);
        headers.append("date", "Thu, 10 Jun 2027 10:18:14 GMT".parse().unwrap());
        unite_response(&mut headers);
        assert_eq!(headers, map(&kept));
    }

    #[test]
    fn as_many_fields_as_are_allowed_fit_into_a_map() {
        assert_eq!(fields_within(64 * 1024), 16 * 1024);
        HeaderMap::<HeaderValue>::new().reserve(fields_within(usize::MAX));
    }
}
