//! Which script a host names.

use http::uri::Authority;

/// The host a request is for, in lower case and without its port; `None` when the header is not a host (RFC 9110, 7.2).
pub(crate) fn host_of(value: &[u8]) -> Option<String> {
    // Narrower than RFC 3986: what no DNS name, address or port contains is a mistake or an attack (`a@b`, `a,b`).
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte);
    if !value.iter().all(fits) {
        return None;
    }
    let authority = Authority::try_from(value).ok()?;
    let host = authority.host();
    let rest = authority.as_str().get(host.len()..)?;
    let port_is_fine = match rest.strip_prefix(':') {
        None => rest.is_empty(),
        Some(port) => port.is_empty() || port.parse::<u16>().is_ok(),
    };
    (port_is_fine && !host.is_empty()).then(|| host.to_ascii_lowercase())
}

/// The script in `<script>.<base>`; `host` as [`host_of`] gives it.
pub(crate) fn script_of<'a>(host: &'a str, bases: &[String]) -> Option<&'a str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    bases.iter().find_map(|base| {
        let script = host.strip_suffix(base.as_str())?.strip_suffix('.')?;
        (!script.is_empty() && !script.contains('.')).then_some(script)
    })
}

/// Base domains as [`script_of`] compares them.
pub(crate) fn normalise(bases: &[String]) -> Vec<String> {
    bases
        .iter()
        .map(|base| base.trim_matches('.').to_ascii_lowercase())
        .filter(|base| !base.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn script(host: &str) -> Option<String> {
        let bases = normalise(&["localhost".to_owned(), ".Apps.Example.org".to_owned()]);
        script_of(&host_of(host.as_bytes())?, &bases).map(str::to_owned)
    }

    #[test]
    fn a_script_is_the_label_before_a_base_domain() {
        assert_eq!(script("hello.localhost").as_deref(), Some("hello"));
        assert_eq!(script("hello.localhost:8080").as_deref(), Some("hello"));
        assert_eq!(script("Hello.LOCALHOST.:80").as_deref(), Some("hello"));
        assert_eq!(
            script("my_app-2.apps.example.org").as_deref(),
            Some("my_app-2")
        );
    }

    #[test]
    fn other_hosts_name_no_script() {
        for host in [
            "localhost",
            ".localhost",
            "a.b.localhost",
            "hellolocalhost",
            "hello.localhost.evil.org",
            "apps.example.org",
            "[::1]:8080",
            "127.0.0.1",
        ] {
            assert_eq!(script(host), None, "{host}");
        }
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        for host in [
            "",
            ":80",
            "user@hello.localhost",
            "hello.localhost/x",
            "hello localhost",
            "hello.localhost:port",
            "hello.localhost:99999",
            "hello.localhost?x",
            "hello.localhost,evil.org",
            "h\u{e9}llo.localhost",
        ] {
            assert_eq!(host_of(host.as_bytes()), None, "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_a_script_is_one_label(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(host) = host_of(&bytes)
                && let Some(script) = script_of(&host, &["localhost".to_owned()])
            {
                prop_assert!(!script.contains(['.', '/', ':', '@', ' ']));
                prop_assert_eq!(script.to_ascii_lowercase(), script);
            }
        }
    }
}
