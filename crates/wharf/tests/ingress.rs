//! A Worker with the published `@cloudflare/containers` and a container that listens late, never, or closes its connections early.

#![allow(clippy::unwrap_used)] // a panic is a failed test

mod common;

use std::time::{Duration, Instant};

use self::common::{Node, Project, WRANGLERS};

/// `/<object>/<what>?<variables>`: the variables are the container's.
const WORKER: &str = r#"import { Container } from "@cloudflare/containers";
import { DurableObject } from "cloudflare:workers";
export class Counter extends DurableObject {}
export class Hello extends Container {
  defaultPort = 8080;
  sleepAfter = "5m";
  async fetch(request) {
    const url = new URL(request.url);
    this.envVars = Object.fromEntries(url.searchParams);
    switch (url.pathname.split("/")[2]) {
      case "start":
        await this.start();
        return new Response("started");
      case "direct": {
        if (!this.ctx.container.running) this.ctx.container.start({ env: this.envVars });
        try {
          return await this.ctx.container.getTcpPort(8080).fetch("http://x/");
        } catch (error) {
          return new Response(String(error), { status: 500 });
        }
      }
      case "posts": {
        // Each is sent when the app's timer for idle connections fires.
        const port = this.ctx.container.getTcpPort(8080);
        const keepAlive = Number(this.envVars.KEEP_ALIVE);
        const failed = [];
        for (let i = 0; i < 60; i++) {
          try {
            const answer = await port.fetch("http://x/", { method: "POST", body: "x" });
            await answer.text();
          } catch (error) {
            failed.push(`${i}: ${error}`);
          }
          await scheduler.wait(keepAlive + 20);
        }
        const count = await (await port.fetch("http://x/")).text();
        return Response.json({ failed, count });
      }
      default:
        return this.containerFetch(new Request("http://x/"), 8080);
    }
  }
}
export default { fetch: (request, env) => env.HELLO.getByName(new URL(request.url).pathname.split("/")[1]).fetch(request) };"#;

fn deployed(node: &Node) {
    let project = Project::copy_of("hello");
    project.write("server/server.c", include_str!("server.c"));
    project.write("src/index.ts", WORKER);
    project.build_server("1");
    node.wrangler_ok(WRANGLERS[1], &project.path(), &["deploy"]);
}

#[test]
fn an_app_that_closes_idle_connections_costs_no_post() {
    let node = Node::start();
    deployed(&node);
    let path = |what: &str| format!("/keep/{what}?KEEP_ALIVE=150");
    assert_eq!(node.get("hello", &path("get")).status, 200);
    let answer = node.get("hello", &path("posts")).json();
    assert_eq!(answer["failed"], serde_json::json!([]));
    assert_eq!(answer["count"], "60", "each was served once");
}

#[test]
fn a_slow_app_is_served_and_a_dead_or_silent_one_is_not_waited_for() {
    let node = Node::start();
    deployed(&node);

    // Longer than the bound.
    let answer = node.get("hello", "/slow/get?LISTEN_AFTER=4000");
    assert_eq!((answer.status, answer.body.as_str()), (200, "0"));
    let status = node.status();
    let instance = &status["instances"][0];
    assert_eq!(instance["listening"], serde_json::json!([8080]), "{status}");

    // The package waits for the container, not for the port.
    let started = Instant::now();
    assert_eq!(
        node.get("hello", "/batch/start?LISTEN_AFTER=-1").body,
        "started"
    );
    assert!(started.elapsed() < Duration::from_secs(8));

    let started = Instant::now();
    let answer = node.get("hello", "/silent/direct?LISTEN_AFTER=-1");
    assert!(
        answer
            .body
            .contains("Container is not listening to port 8080"),
        "{}",
        answer.body
    );
    assert!(started.elapsed() < Duration::from_secs(8));

    let started = Instant::now();
    let answer = node.get("hello", "/dead/get?LISTEN_AFTER=-1&EXIT_AFTER=500");
    assert_eq!(answer.status, 500, "{}", answer.body);
    assert!(answer.body.contains("3"), "{}", answer.body);
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{}",
        answer.body
    );
}
