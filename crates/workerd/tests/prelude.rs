//! What the modules before a Worker's own change, and what they must not: everything as the Worker's author sees it, in a real workerd.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use wharf_model::{Module, ModuleKind};
use wharf_workerd::Desired;

use self::support::{World, with_class};

/// The Worker's container class has all that a proxy or a subclass could get wrong.
const WORKER: &str = r#"
import { DurableObject, WorkerEntrypoint, env as importable } from "cloudflare:workers";

class Base extends DurableObject {
  inherited() { return "inherited"; }
}
export class Box extends Base {
  static #count = 0;
  static made = "static";
  static count() { return Box.#count; }
  #secret = "private";
  constructor(ctx, env) {
    super(ctx, env);
    Box.#count += 1;
    this.newTarget = new.target === Box;
    this.frames = new Error("here").stack.split("\n").slice(1).map((line) => line.trim());
  }
  identity() {
    return {
      name: this.constructor.name, same: this.constructor === Box, instance: this instanceof Box && this instanceof Base,
      newTarget: this.newTarget, made: Box.made, count: Box.count(), secret: this.#secret, first: this.frames[0],
      bindings: Object.keys(this.env), importable: Object.keys(importable), exports: Object.keys(this.ctx.exports ?? {}),
    };
  }
  async run(options, after) {
    const container = this.ctx.container;
    if (container.running) await container.destroy();
    try {
      container.start(options);
      if (after) await container[after[0]](after[1]);
      const info = await container.inspect();
      await container.destroy();
      return { info };
    } catch (error) {
      return { error: `${error.name}: ${error.message}` };
    }
  }
  async fetch(request) { return Response.json(this.identity()); }
}
export class Other extends WorkerEntrypoint { hello() { return "other"; } }
export const constant = { fetch: () => new Response("constant") };
const object = (env) => env.BOX.getByName("a");
export default {
  async fetch(request, env, ctx) {
    const url = new URL(request.url);
    if (url.pathname === "/old") return object(env).fetch(request);
    if (url.pathname === "/identity") {
      return Response.json({ ...await object(env).identity(), inherited: await object(env).inherited(), bindings: Object.keys(env) });
    }
    const { options, after } = JSON.parse(decodeURIComponent(url.search.slice(1)));
    return Response.json(await object(env).run(options, after));
  },
};
"#;

fn boxed(world: &World, code: &str) -> Desired {
    let mut desired = with_class(world.desired("hello", 1, code), "Box");
    desired.version.container_classes.push("Box".into());
    desired
}

async fn identity(world: &World, path: &str) -> Value {
    let text = world.text("hello", path).await;
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

async fn run(world: &World, options: Value, after: Value) -> Value {
    let ask = json!({"options": options, "after": after}).to_string();
    let encoded: String = ask.bytes().map(|b| format!("%{b:02X}")).collect();
    let text = world.text("hello", &format!("/run?{encoded}")).await;
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

#[tokio::test]
async fn classes_stay_what_they_are() {
    let (world, _) = support::engine::world().await;
    world.deploy(boxed(&world, WORKER)).await;
    let seen = identity(&world, "/identity").await;
    assert_eq!(seen["name"], "Box");
    for fact in ["same", "instance", "newTarget"] {
        assert_eq!(seen[fact], true, "{fact}: {seen}");
    }
    assert_eq!(seen["made"], "static");
    assert_eq!(seen["count"], 1);
    assert_eq!(seen["secret"], "private");
    assert_eq!(seen["inherited"], "inherited");
    // A stack's first frame is the author's line in the author's file.
    assert_eq!(seen["first"], "at new Box (main.js:16:19)");
    // Nothing of the prelude is to be seen.
    assert_eq!(seen["bindings"], json!(["BOX"]));
    assert_eq!(seen["importable"], json!(["BOX"]));
    let mut exports: Vec<&str> = seen["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_str().unwrap())
        .collect();
    exports.sort_unstable();
    assert_eq!(exports, ["Box", "Other", "constant", "default"]);
    world.close().await;
}

#[tokio::test]
async fn any_compatibility_date_and_module_name_will_do() {
    let (world, _) = support::engine::world().await;
    let flags: [(&str, &[&str]); 5] = [
        ("2022-01-01", &[]),
        ("2024-01-01", &["nodejs_compat"]),
        ("2026-11-01", &["disallow_importable_env"]),
        ("2026-11-01", &["new_module_registry", "experimental"]),
        ("2026-11-01", &["nodejs_compat", "experimental"]),
    ];
    for (date, flags) in flags {
        let mut desired = boxed(&world, WORKER);
        desired.version.compatibility_date = date.into();
        desired.version.compatibility_flags = flags.iter().map(|f| (*f).to_owned()).collect();
        world.deploy(desired).await;
        let seen = identity(&world, "/old").await;
        assert_eq!(seen["same"], true, "{date} {flags:?}: {seen}");
        assert_eq!(seen["bindings"], json!(["BOX"]), "{date} {flags:?}");
    }
    for name in [
        "a/b/main.js",
        "with space.js",
        "per%20cent.js",
        "quo'te.mjs",
        "é.js",
    ] {
        let mut desired = boxed(&world, WORKER);
        desired.version.main_module = name.into();
        desired.version.modules[0].name = name.into();
        world.deploy(desired).await;
        assert_eq!(identity(&world, "/old").await["name"], "Box", "{name}");
    }
    world.close().await;
}

#[tokio::test]
async fn other_modules_and_re_exports_work_behind_it() {
    let (world, _) = support::engine::world().await;
    let entry = r#"
export * from "./lib/box.js";
import wasm from "./add.wasm";
import text from "./note.txt";
import { WorkerEntrypoint } from "cloudflare:workers";
export default class extends WorkerEntrypoint {
  async fetch() {
    const add = new WebAssembly.Instance(wasm).exports.add;
    return Response.json({ add: add(2, 3), text, box: await this.env.BOX.getByName("a").who() });
  }
}"#;
    let library = r#"
import { DurableObject } from "cloudflare:workers";
import * as self from "../main.js";
export class Box extends DurableObject { who() { return `${this.constructor.name} ${self.Box === Box}`; } }"#;
    // (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
    let wasm: &[u8] = b"\0asm\x01\0\0\0\x01\x07\x01\x60\x02\x7f\x7f\x01\x7f\x03\x02\x01\0\x07\x07\x01\x03add\0\0\x0a\x09\x01\x07\0\x20\0\x20\x01\x6a\x0b";
    let mut desired = boxed(&world, entry);
    for (name, kind, blob) in [
        ("lib/box.js", ModuleKind::EsModule, world.blob(library)),
        ("add.wasm", ModuleKind::Wasm, world.blob(wasm)),
        ("note.txt", ModuleKind::Text, world.blob("a note")),
    ] {
        desired.version.modules.push(Module {
            name: name.into(),
            kind,
            blob,
        });
    }
    world.deploy(desired).await;
    let seen = identity(&world, "/").await;
    assert_eq!(seen, json!({"add": 5, "text": "a note", "box": "Box true"}));
    world.close().await;
}

#[tokio::test]
async fn start_options_reach_the_engine_and_wrong_ones_the_worker() {
    let (world, engine) = support::engine::world().await;
    world.deploy(boxed(&world, WORKER)).await;
    let carried = |options: Value| async {
        engine.created.lock().unwrap().clear();
        let answer = run(&world, options, Value::Null).await;
        assert_eq!(answer["error"], Value::Null, "{answer}");
        let created = engine.created.lock().unwrap().clone();
        let env: Vec<String> = serde_json::from_value(created[0]["Env"].clone()).unwrap();
        let (carried, others): (Vec<_>, Vec<_>) = env
            .into_iter()
            .partition(|e| e.starts_with("__WHARF_START="));
        let mut carried: Value =
            serde_json::from_str(carried[0].strip_prefix("__WHARF_START=").unwrap()).unwrap();
        assert!(carried["token"].as_str().is_some_and(|t| t.len() == 36));
        carried.as_object_mut().unwrap().remove("token");
        (carried, others)
    };
    assert_eq!(carried(Value::Null).await.0, json!({}));
    let (all, env) = carried(json!({
        "env": {"A": "1"}, "enableInternet": true, "instance": "lite", "hardTimeout": 1500.7, "labels": {"team": "a=b"},
    }))
    .await;
    assert_eq!(
        all,
        json!({"instance": "lite", "hardTimeoutMs": 1500, "labels": {"team": "a=b"}})
    );
    assert_eq!(env[0], "A=1");
    let custom = json!({"vcpu": 0.5, "memoryMib": 100, "diskMb": 200});
    assert_eq!(
        carried(json!({"instance": custom})).await.0,
        json!({"instance": custom})
    );
    // workerd does not know these sizes; the platform does.
    for size in ["basic", "dev", "standard"] {
        assert_eq!(carried(json!({"instance": size})).await.0["instance"], size);
    }

    engine.created.lock().unwrap().clear();
    for (options, error) in [
        (
            json!({"env": {"__WHARF_START": "{}"}}),
            "TypeError: The environment variable __WHARF_START is reserved for the platform; give yours another name.",
        ),
        (
            json!({"hardTimeout": 0}),
            "RangeError: Hard timeout must be greater than 0",
        ),
        (
            json!({"instance": "invalid"}),
            "TypeError: Invalid container instance type.",
        ),
        (
            json!({"instance": {"vcpu": 1, "memoryMib": 0.5, "diskMb": 1}}),
            "RangeError: Container resource memoryMib must be an integer.",
        ),
        (
            json!({"labels": {"": "x"}}),
            "Error: Label names cannot be empty",
        ),
        (
            json!({"env": {"A=B": "x"}}),
            "Error: Environment variable names cannot contain '=': A=B",
        ),
    ] {
        assert_eq!(run(&world, options, Value::Null).await["error"], error);
    }
    assert!(engine.created.lock().unwrap().is_empty());
    world.close().await;
}

#[tokio::test]
async fn labels_and_inactivity_are_told_with_the_start_they_are_for() {
    let (world, engine) = support::engine::world().await;
    // With and without workerd's own setLabels().
    for flags in [&[][..], &["experimental".to_owned()]] {
        let mut desired = boxed(&world, WORKER);
        desired.version.compatibility_flags = flags.to_vec();
        world.deploy(desired).await;
        engine.told.lock().unwrap().clear();
        let answer = run(&world, json!({}), json!(["setLabels", {"a": 1}])).await;
        assert_eq!(
            answer["info"]["labels"],
            json!({"from": "the engine"}),
            "{answer}"
        );
        let (line, body) = engine.told.lock().unwrap()[0].clone();
        assert!(
            line.starts_with("PUT /containers/workerd-0123456789abcdef0123456789abcdef-"),
            "{line}"
        );
        assert_eq!(body["labels"], json!({"a": "1"}));
        let created = engine.created.lock().unwrap().last().cloned().unwrap();
        let token = body["token"].as_str().unwrap();
        assert!(created["Env"].to_string().contains(token));

        run(&world, json!({}), json!(["setInactivityTimeout", 60_000])).await;
        let told = engine.told.lock().unwrap().clone();
        let (line, body) = told.iter().rfind(|(l, _)| l.starts_with("PUT")).unwrap();
        assert!(line.ends_with("/inactivity"), "{line}");
        assert_eq!(body["ms"], 60_000);
    }
    world.close().await;
}

#[tokio::test]
async fn mistakes_are_named_as_without_it() {
    let (world, _) = support::engine::world().await;
    let broken = async |desired: Desired| {
        let check = world.supervisor.check("hello", desired).await;
        check.map_or_else(|e| e.to_string(), |()| "fine".to_owned())
    };
    let missing = r#"export default { fetch: () => new Response("x") };"#;
    let text = broken(boxed(&world, missing)).await;
    assert!(text.contains("Box"), "{text}");

    let no_default = r#"import { DurableObject } from "cloudflare:workers"; export class Box extends DurableObject {}"#;
    let mut without = boxed(&world, no_default);
    let with = broken(without.clone()).await;
    without.version.container_classes.clear();
    assert_eq!(with, broken(without).await);

    let throwing = r#"throw new Error("boom at start"); export class Box {}"#;
    let text = broken(boxed(&world, throwing)).await;
    assert!(text.contains("boom at start"), "{text}");

    let mut taken = boxed(&world, WORKER);
    taken
        .version
        .bindings
        .push(wharf_model::Binding::PlainText {
            name: "__WHARF_ENGINE".into(),
            text: String::new(),
        });
    let text = broken(taken).await;
    assert!(text.contains("__WHARF_ENGINE"), "{text}");
    world.close().await;
}
