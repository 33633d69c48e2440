//! A Worker that means harm, and the containers of another: it cannot see, name or reach them. With the network as it is, and with private addresses
//! allowed.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::io::{Read, Write};

use serde_json::{Value, json};

use self::common::{Node, Project, WRANGLERS};

const HOSTILE: &str = r#"
import { connect } from "cloudflare:sockets";
import { DurableObject } from "cloudflare:workers";
import * as everything from "cloudflare:workers";

async function dial(address, text) {
  const socket = connect(address);
  const writer = socket.writable.getWriter();
  await writer.write(new TextEncoder().encode(text));
  let got = "";
  const reader = socket.readable.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done && got.length < 4096; ) {
    got += part.value;
    if (got.includes("\r\n\r\n")) break;
  }
  await socket.close();
  return got;
}
const tries = {
  dial: (_env, [address, text]) => dial(address, text),
  fetch: async (_env, [url, init]) => {
    const answer = await fetch(url, init ?? undefined);
    return `${answer.status} ${await answer.text()}`;
  },
  object: (env, id) => env.BOX.get(env.BOX.idFromString(id)).running(),
  named: async (env, name) => {
    const box = env.BOX.getByName(name);
    const id = env.BOX.idFromName(name).toString();
    return { id, ...(await box.who()) };
  },
  env: (env) => [Object.keys(env), Object.keys(process.env), Object.keys(everything)],
  // The prelude's own function, with an object of the Worker's making: it can speak for the Worker's own containers only.
  forge: async (env, [uniqueKey, id]) => await env.BOX.getByName("forger").forge(uniqueKey, id),
};
export class Box extends DurableObject {
  running() { return this.ctx.container.running; }
  async who() {
    if (!this.ctx.container.running) this.ctx.container.start();
    this.ctx.container.monitor().catch(() => {});
    return await (await this.ctx.container.getTcpPort(8080).fetch("http://app/who")).json();
  }
  async forge(uniqueKey, id) {
    const { carrying } = await import(["./__wharf", "carry.js"].join("_"));
    const container = Object.create(Object.getPrototypeOf(this.ctx.container), { running: { value: true } });
    class Fake {}
    const Carried = carrying(Fake, uniqueKey);
    new Carried({ container, id }, {});
    const inspect = Object.getPrototypeOf(this.ctx.container).inspect;
    return await inspect.call(container);
  }
}
export default {
  async fetch(request, env) {
    const [name, argument] = await request.json();
    try {
      return Response.json({ value: (await tries[name](env, argument)) ?? null });
    } catch (error) {
      return Response.json({ error: String(error) });
    }
  },
};"#;

fn config(name: &str) -> String {
    json!({
        "name": name, "main": "w.js", "compatibility_date": "2026-11-01", "compatibility_flags": ["nodejs_compat"],
        "containers": [{"class_name": "Box", "image": "./app/Dockerfile", "max_instances": 9}],
        "durable_objects": {"bindings": [{"name": "BOX", "class_name": "Box"}]},
        "migrations": [{"tag": "v1", "new_sqlite_classes": ["Box"]}],
    })
    .to_string()
}

fn deploy(node: &Node, name: &str) -> Project {
    let project = Project::fixture("direct", None);
    project.write("wrangler.json", &config(name));
    project.write("w.js", HOSTILE);
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
    project
}

fn attempt(node: &Node, script: &str, name: &str, argument: Value) -> Value {
    let body = json!([name, argument]).to_string();
    let answer = node.request("POST", script, "/", &[], &body);
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, node.log());
    answer.json()
}

const CONNECT: &str =
    "CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-Dst-Addr: 127.0.0.1:8080\r\n\r\n";

/// What the ingress answers to the workerd that it is for.
fn connect_as(node: &Node, script: &str, port: u16) -> String {
    let mut stream = node.dial_as(script, port).unwrap();
    stream.write_all(CONNECT.as_bytes()).unwrap();
    let mut head = vec![0; 12];
    stream.read_exact(&mut head).unwrap();
    String::from_utf8(head).unwrap()
}

/// `private`: whether Workers may reach private addresses.
fn siege(node: &Node, private: bool) {
    let _victim = deploy(node, "victim");
    let victim = attempt(node, "victim", "named", json!("a"));
    let id = victim["value"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{victim}"))
        .to_owned();
    let before = node.running(&id).unwrap();
    let name = before["name"].as_str().unwrap();
    let unique_key = name
        .strip_prefix("workerd-")
        .unwrap()
        .strip_suffix(&format!("-{id}"))
        .unwrap();
    let _hostile = deploy(node, "hostile");
    let hostile = |name: &str, argument: Value| attempt(node, "hostile", name, argument);

    // Its own containers work, whatever they are called.
    for own in ["a", "../../victim", "%2e%2e%2fvictim", &id, name] {
        let answer = hostile("named", json!(own));
        let own_id = answer["value"]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{own}: {answer}"));
        let instance = node.running(own_id).unwrap();
        assert_eq!(instance["application_name"], "hostile-box");
        assert_ne!(answer["value"]["host"], victim["value"]["host"]);
    }
    // Another's object is not one of its namespace.
    let answer = hostile("object", json!(id));
    assert!(answer["error"].is_string(), "{answer}");

    // What listens in the victim's network, and on the host.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let elsewhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let of_victim = node.ingresses("victim");
    assert!(!of_victim.is_empty());
    for port in &of_victim {
        assert_eq!(connect_as(node, "victim", *port), "HTTP/1.1 200");
    }
    let own = node.ingresses("hostile");
    assert_eq!(own.len(), 5, "{own:?}");
    let mut ports = of_victim;
    ports.extend([node.gateway.port(), node.control.port()]);
    ports.extend([&listener, &elsewhere].map(|l| l.local_addr().unwrap().port()));
    ports.retain(|port| !own.contains(port));
    for port in ports {
        for host in [
            "127.0.0.1",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "10.88.71.2",
        ] {
            let answer = hostile("dial", json!([format!("{host}:{port}"), CONNECT]));
            let got = answer["value"].as_str().unwrap_or_default();
            assert_eq!(got, "", "{host}:{port}: {answer}");
            let answer = hostile("fetch", json!([format!("http://{host}:{port}/ca")]));
            assert!(answer["error"].is_string(), "{host}:{port}: {answer}");
        }
    }
    for listener in [listener, elsewhere] {
        let heard = listener.accept();
        assert!(heard.is_err(), "{heard:?}");
    }
    // Its own containers it reaches like this too, if it may dial loopback at all.
    for port in own {
        let answer = hostile("dial", json!([format!("127.0.0.1:{port}"), CONNECT]));
        let got = answer["value"].as_str().unwrap_or_default();
        assert_eq!(got.starts_with("HTTP/1.1 200"), private, "{answer}");
    }

    // Sockets of the file system, the operator's among them, are no addresses; the operator's API is not the gateway's or the control API's either.
    let run = node.data_dir().join("run");
    for socket in ["wharf.sock", "spawner.sock"] {
        let path = run.join(socket).display().to_string();
        for address in [
            format!("unix:{path}"),
            path.clone(),
            format!("unix:{path}:1"),
        ] {
            let answer = hostile(
                "dial",
                json!([address, "GET /info HTTP/1.1\r\nHost: x\r\n\r\n"]),
            );
            assert!(answer["error"].is_string(), "{address}: {answer}");
        }
        let answer = hostile("fetch", json!([format!("http://unix:{path}/info")]));
        assert!(answer["error"].is_string(), "{answer}");
    }
    let control = format!("http://{}/client/v4/accounts", node.control);
    let answer = hostile("fetch", json!([control]));
    let got = answer["value"].as_str().unwrap_or_default();
    assert!(!got.starts_with("200"), "{answer}");

    // What carries its start options speaks for its own containers alone.
    let forged = hostile("forge", json!([unique_key, id]));
    assert!(!forged.to_string().contains("labels"), "{forged}");
    let seen = hostile("env", Value::Null);
    assert!(!seen.to_string().to_uppercase().contains("WHARF"), "{seen}");

    let after = node.running(&id).unwrap();
    assert_eq!(
        (&after["pid"], &after["labels"]),
        (&before["pid"], &before["labels"])
    );
}

#[test]
fn a_hostile_worker_reaches_no_other_container() {
    let node = Node::start();
    siege(&node, false);
}

#[test]
fn nor_does_it_when_private_addresses_are_allowed() {
    let mut node = Node::start();
    node.stop();
    let config = node.dir.path().join("wharf.toml");
    std::fs::write(&config, "[network]\nallow_private = true\n").unwrap();
    node.set_extra(&["--config", config.to_str().unwrap()]);
    node.launch();
    siege(&node, true);
}
