//! Docker's shapes of published ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wharf_engine::Published;

use crate::errors::ApiError;

/// `HostConfig.PortBindings`: by `80/tcp`.
pub(crate) type Bindings = BTreeMap<String, Option<Vec<Binding>>>;

/// One of them.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Binding {
    host_ip: Option<String>,
    host_port: Option<String>,
}

/// What is to be published. Without an address it is shown on 127.0.0.1 alone, unlike with Docker: a port is open to others only when one says so.
pub(crate) fn parse(bindings: &Bindings) -> Result<Vec<Published>, ApiError> {
    let mut published = Vec::new();
    for (port, bindings) in bindings {
        let invalid = |what: &str| ApiError::bad_request(format!("invalid port {port}: {what}"));
        let (number, kind) = port.split_once('/').unwrap_or((port, "tcp"));
        let inside = number
            .parse()
            .map_err(|_| invalid("it must be a number from 1 to 65535"))?;
        if inside == 0 {
            return Err(invalid("it must be a number from 1 to 65535"));
        }
        if kind != "tcp" {
            return Err(invalid("only TCP ports can be published"));
        }
        let any = [Binding::default()];
        let bindings = match bindings.as_deref() {
            None | Some([]) => &any,
            Some(bindings) => bindings,
        };
        for Binding { host_ip, host_port } in bindings {
            let address = match host_ip.as_deref().unwrap_or_default() {
                "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                text => text
                    .parse()
                    .map_err(|_| invalid(&format!("\"{text}\" is no address")))?,
            };
            let outside = match host_port.as_deref().unwrap_or_default() {
                "" => 0,
                text => text
                    .parse()
                    .map_err(|_| invalid(&format!("\"{text}\" is no port of the host")))?,
            };
            published.push(Published {
                inside,
                outside: SocketAddr::new(address, outside),
            });
        }
    }
    Ok(published)
}

/// `NetworkSettings.Ports` of a container.
pub(crate) fn settings(published: &[Published]) -> Value {
    let mut ports = Map::new();
    for Published { inside, outside } in published {
        let binding =
            json!({ "HostIp": outside.ip().to_string(), "HostPort": outside.port().to_string() });
        if let Value::Array(bindings) = ports
            .entry(format!("{inside}/tcp"))
            .or_insert_with(|| json!([]))
        {
            bindings.push(binding);
        }
    }
    Value::Object(ports)
}

/// `Ports` of a row of the container list.
pub(crate) fn row(published: &[Published]) -> Value {
    let rows = published.iter().map(|Published { inside, outside }| {
        json!({ "IP": outside.ip().to_string(), "PrivatePort": inside, "PublicPort": outside.port(), "Type": "tcp" })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        let bindings: Bindings = serde_json::from_str(text).unwrap();
        let published = parse(&bindings).map_err(|e| e.message)?;
        Ok(published
            .iter()
            .map(|p| format!("{}>{}", p.outside, p.inside))
            .collect())
    }

    #[test]
    fn ports_are_on_loopback_unless_an_address_is_given() {
        assert_eq!(
            parsed(
                r#"{"80/tcp":[{"HostIp":"","HostPort":"8080"},{"HostIp":"0.0.0.0","HostPort":""}],"81":null}"#
            ),
            Ok(vec![
                "127.0.0.1:8080>80".into(),
                "0.0.0.0:0>80".into(),
                "127.0.0.1:0>81".into()
            ])
        );
        for bad in [
            r#"{"80/udp":[]}"#,
            r#"{"0/tcp":[]}"#,
            r#"{"x":[]}"#,
            r#"{"80/tcp":[{"HostIp":"host"}]}"#,
            r#"{"80/tcp":[{"HostPort":"8080-8090"}]}"#,
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn published_ports_are_grouped_by_the_port_inside() {
        let at = |inside, outside: &str| Published {
            inside,
            outside: outside.parse().unwrap(),
        };
        let both = [at(80, "127.0.0.1:1"), at(80, "[::1]:2")];
        assert_eq!(
            settings(&both),
            json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}, {"HostIp": "::1", "HostPort": "2"}]})
        );
    }
}
