//! The commands of containers.

use std::io::Write;

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::{Outcome, local, print_line, render, text};
use crate::args;
use crate::client::{Client, ClientError, empty, escape, json_body};

pub(super) async fn ps(client: &Client, p: args::Ps) -> Outcome {
    let mut path = format!("/containers/json?all={}", p.all);
    let mut filters = Map::new();
    for filter in &p.filter {
        let (name, value) = filter.split_once('=').ok_or_else(|| {
            local(format!(
                "invalid filter \"{filter}\": it must be NAME=VALUE"
            ))
        })?;
        let values = filters
            .entry(name.to_owned())
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(values) = values {
            values.push(value.into());
        }
    }
    if !filters.is_empty() {
        path += &format!("&filters={}", escape(&Value::Object(filters).to_string()));
    }
    let list = client.json(Method::GET, &path, empty()).await?;
    if p.format.is_none() && !p.quiet {
        print_line(&format!(
            "{:<14} {:<40} {:<24} {:<28} NAMES",
            "CONTAINER ID", "IMAGE", "STATUS", "PORTS"
        ));
    }
    for c in list.as_array().into_iter().flatten() {
        let id = text(c, "Id").get(..12).unwrap_or_default();
        let name = c
            .pointer("/Names/0")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .trim_start_matches('/');
        match &p.format {
            _ if p.quiet => print_line(id),
            Some(f) => {
                let row = json!({
                    "ID": id, "Image": c["Image"], "Names": name, "Status": c["Status"], "State": c["State"], "Ports": ports(c),
                });
                print_line(&render(f, &row)?);
            }
            None => print_line(&format!(
                "{id:<14} {:<40} {:<24} {:<28} {name}",
                text(c, "Image"),
                text(c, "Status"),
                ports(c),
            )),
        }
    }
    Ok(0)
}

/// `127.0.0.1:8080->80/tcp, ...`
fn ports(container: &Value) -> String {
    let ports = container["Ports"].as_array().into_iter().flatten();
    let shown = ports.map(|port| {
        let (inside, kind) = (&port["PrivatePort"], text(port, "Type"));
        match port["PublicPort"].as_u64() {
            Some(outside) => format!("{}:{outside}->{inside}/{kind}", text(port, "IP")),
            None => format!("{inside}/{kind}"),
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

pub(super) async fn logs(client: &Client, l: args::Logs) -> Outcome {
    let mut path = format!(
        "/containers/{}/logs?stdout=1&stderr=1&follow={}",
        escape(&l.container),
        l.follow
    );
    if let Some(tail) = &l.tail {
        path += &format!("&tail={}", escape(tail));
    }
    show_output(client, &path).await?;
    Ok(0)
}

/// Prints Docker's multiplexed stream as it comes: 8-byte frame headers (stream, 0, 0, 0, length big-endian).
async fn show_output(client: &Client, path: &str) -> Result<(), ClientError> {
    let mut body = client.send(Method::GET, path, empty()).await?.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ClientError::Transport(e.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        pending.extend_from_slice(&data);
        while let Some((head, rest)) = pending.split_at_checked(8) {
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let Some(chunk) = rest.get(..length) else {
                break;
            };
            // A reader that has gone away (`docker logs ... | head`) is not this command's failure.
            let _ = if head[0] == 2 {
                std::io::stderr().write_all(chunk)
            } else {
                std::io::stdout().write_all(chunk)
            };
            pending.drain(..8 + length);
        }
        let _ = std::io::stdout().flush();
    }
    Ok(())
}

pub(super) async fn run(client: &Client, r: args::Run) -> Outcome {
    if r.detach {
        let id = make(client, r.create).await?;
        post(client, &format!("/containers/{id}/start")).await?;
        print_line(&id);
        return Ok(0);
    }
    // Removed by this command after its output was read, not by the daemon before.
    let rm = r.create.rm;
    let id = make(
        client,
        args::Create {
            rm: false,
            ..r.create
        },
    )
    .await?;
    let shown = async {
        post(client, &format!("/containers/{id}/start")).await?;
        show_output(
            client,
            &format!("/containers/{id}/logs?stdout=1&stderr=1&follow=1"),
        )
        .await?;
        exit_code(client, &id).await
    };
    // A failed start has said why; the container is not in the way then.
    let shown = shown.await;
    if rm {
        client
            .json(
                Method::DELETE,
                &format!("/containers/{id}?force=1"),
                empty(),
            )
            .await?;
    }
    shown
}

pub(super) async fn create(client: &Client, c: args::Create) -> Outcome {
    let id = make(client, c).await?;
    print_line(&id);
    Ok(0)
}

async fn make(client: &Client, c: args::Create) -> Result<String, ClientError> {
    let mut env = Vec::new();
    for entry in c.env {
        if entry.contains('=') {
            env.push(entry);
        } else if let Ok(value) = std::env::var(&entry) {
            env.push(format!("{entry}={value}"));
        }
    }
    let labels: Map<String, Value> = c
        .label
        .iter()
        .map(|label| {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            (key.to_owned(), value.into())
        })
        .collect();
    let mut exposed = Map::new();
    let mut bindings = Map::new();
    for published in &c.publish {
        let (inside, binding) = port_binding(published)?;
        exposed.insert(inside.clone(), json!({}));
        let list = bindings.entry(inside).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(binding);
        }
    }
    let body = json!({
        "Image": c.image,
        "Cmd": (!c.command.is_empty()).then_some(c.command),
        "Entrypoint": c.entrypoint.map(|entrypoint| [entrypoint]),
        "Env": env,
        "User": c.user.unwrap_or_default(),
        "WorkingDir": c.workdir.unwrap_or_default(),
        "Labels": labels,
        "ExposedPorts": exposed,
        "HostConfig": {
            "AutoRemove": c.rm,
            "Runtime": c.runtime,
            "SecurityOpt": c.security_opt,
            "NetworkMode": c.network.unwrap_or_else(|| "default".to_owned()),
            "PortBindings": bindings,
        },
    });
    let name = c.name.map(|name| format!("?name={}", escape(&name)));
    let path = format!("/containers/create{}", name.unwrap_or_default());
    let made = client.json(Method::POST, &path, json_body(&body)).await?;
    Ok(text(&made, "Id").to_owned())
}

/// `[[address:]port:]inside[/tcp]` as Docker's API has it.
fn port_binding(published: &str) -> Result<(String, Value), ClientError> {
    let invalid = || {
        local(format!(
            "invalid port \"{published}\": it must be [[ADDRESS:]PORT:]CONTAINER-PORT"
        ))
    };
    let (rest, inside) = match published.rsplit_once(':') {
        Some((rest, inside)) => (Some(rest), inside),
        None => (None, published),
    };
    let (address, outside) = match rest {
        None => ("", ""),
        Some(rest) => rest.rsplit_once(':').unwrap_or(("", rest)),
    };
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let (number, kind) = inside.split_once('/').unwrap_or((inside, "tcp"));
    if !is_port(number) || !(outside.is_empty() || is_port(outside)) {
        return Err(invalid());
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    Ok((
        format!("{number}/{kind}"),
        json!({ "HostIp": address, "HostPort": outside }),
    ))
}

async fn post(client: &Client, path: &str) -> Result<Value, ClientError> {
    client.json(Method::POST, path, empty()).await
}

async fn exit_code(client: &Client, name: &str) -> Outcome {
    let answer = post(client, &format!("/containers/{}/wait", escape(name))).await?;
    let code = answer["StatusCode"].as_i64().unwrap_or(125);
    Ok(i32::try_from(code).unwrap_or(125))
}

/// Does the same to each; says what fails and goes on. Prints the name of each that it was done to, as docker does.
async fn each<F: Future<Output = Result<Option<String>, ClientError>>>(
    names: &[String],
    act: impl Fn(String) -> F,
) -> Outcome {
    let mut code = 0;
    for name in names {
        match act(name.clone()).await {
            Ok(said) => print_line(&said.unwrap_or_else(|| name.clone())),
            Err(error @ ClientError::Daemon { .. }) => {
                eprintln!("{error}");
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}

pub(super) async fn start(client: &Client, c: args::Names) -> Outcome {
    each(&c.names, async |name| {
        post(client, &format!("/containers/{}/start", escape(&name))).await?;
        Ok(None)
    })
    .await
}

pub(super) async fn stop(client: &Client, s: args::Stop) -> Outcome {
    let time = s.timeout.map(|t| format!("?t={t}")).unwrap_or_default();
    each(&s.names, async |name| {
        post(client, &format!("/containers/{}/stop{time}", escape(&name))).await?;
        Ok(None)
    })
    .await
}

pub(super) async fn kill(client: &Client, k: args::Kill) -> Outcome {
    each(&k.names, async |name| {
        let (name, signal) = (escape(&name), escape(&k.signal));
        post(client, &format!("/containers/{name}/kill?signal={signal}")).await?;
        Ok(None)
    })
    .await
}

pub(super) async fn remove(client: &Client, r: args::RemoveContainers) -> Outcome {
    each(&r.names, async |name| {
        let path = format!("/containers/{}?force={}", escape(&name), r.force);
        client.json(Method::DELETE, &path, empty()).await?;
        Ok(None)
    })
    .await
}

pub(super) async fn wait(client: &Client, c: args::Names) -> Outcome {
    each(&c.names, async |name| {
        Ok(Some(exit_code(client, &name).await?.to_string()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let binding = |text: &str| {
            port_binding(text).map(|(inside, b)| {
                format!(
                    "{inside} {} {}",
                    text_of(&b, "HostIp"),
                    text_of(&b, "HostPort")
                )
            })
        };
        fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
            text(value, key)
        }
        assert_eq!(binding("80").unwrap(), "80/tcp  ");
        assert_eq!(binding("8080:80").unwrap(), "80/tcp  8080");
        assert_eq!(
            binding("0.0.0.0:8080:80/udp").unwrap(),
            "80/udp 0.0.0.0 8080"
        );
        assert_eq!(binding("127.0.0.1::80").unwrap(), "80/tcp 127.0.0.1 ");
        assert_eq!(binding("[::1]:1:2").unwrap(), "2/tcp ::1 1");
        for bad in ["", "x", "80:", "99999:1", "a:b:c"] {
            assert!(binding(bad).is_err(), "{bad}");
        }
    }
}
