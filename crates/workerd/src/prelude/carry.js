// What ctx.container accepts but workerd keeps to itself, carried to the container engine (contract: workerd, 1.4).
//
// start():                the options that workerd drops travel in a variable of the environment, which the engine takes out again.
// setLabels(), inspect(): the engine keeps the labels, so they outlive this process.
// setInactivityTimeout(): the engine is told too, for the time when there is no process.
// snapshotDirectory():    workerd only saw a token in place of the files; the engine knows their size.
// monitor():              the engine says why a start failed.
//
// This module is evaluated before any of the Worker's own, and takes its binding out of `env` at once.

import { env as importable } from "cloudflare:workers";

const BINDING = "__WHARF_ENGINE";
const VARIABLE = "__WHARF_START";
// Sizes that the platform has, but workerd's start() does not know.
const HIDDEN_SIZES = new Set(["basic", "dev", "standard"]);
const RETRY_MS = 20;
// All that workerd says of a start that the engine refused.
const FAILED = "Container failed to start";

let engine;
const objects = new WeakMap();
const patched = new WeakSet();

function takeBinding(env) {
  if (env?.[BINDING] !== undefined) {
    engine ??= env[BINDING];
    delete env[BINDING];
  }
}
takeBinding(importable);

/** The class as the runtime sees it: the same in all, except that its objects' containers are known here before its constructor runs. */
export function carrying(Class, uniqueKey) {
  if (typeof Class !== "function") return Class;
  const proxy = new Proxy(Class, {
    construct(target, args, newTarget) {
      const [ctx, env] = args;
      // Where importable env is switched off.
      takeBinding(env);
      const container = ctx?.container;
      if (container) {
        objects.set(container, { name: `workerd-${uniqueKey}-${ctx.id}`, start: undefined, last: undefined });
        patch(Object.getPrototypeOf(container));
      }
      return Reflect.construct(target, args, newTarget === proxy ? target : newTarget);
    },
  });
  return proxy;
}

function patch(prototype) {
  if (patched.has(prototype)) return;
  patched.add(prototype);
  const native = Object.getOwnPropertyDescriptors(prototype);
  const replace = (name, value) =>
    Object.defineProperty(prototype, name, { configurable: true, enumerable: true, writable: true, ...native[name], value });

  replace("start", function start(options) {
    const object = objects.get(this);
    if (!object) return native.start.value.call(this, options);
    const token = crypto.randomUUID();
    native.start.value.call(this, withCarried(options, token));
    object.start = token;
  });

  replace("monitor", function monitor() {
    const ended = native.monitor.value.call(this);
    const object = objects.get(this);
    if (!object?.start) return ended;
    const { start } = object;
    return ended.catch(async (error) => {
      if (error?.message === FAILED) {
        const answer = await engine.fetch(`${address(object, "failure")}/${start}`);
        if (answer.ok) error.message += `: ${(await answer.json()).reason}`;
      }
      throw error;
    });
  });

  replace("setLabels", async function setLabels(labels) {
    const object = objects.get(this);
    if (native.setLabels) await native.setLabels.value.call(this, labels);
    else if (!this.running) throw new Error("setLabels() cannot be called on a container that is not running.");
    if (object) await inOrder(object, () => tell(this, object, "labels", { labels: strings(labels) }, "setLabels"));
  });

  replace("inspect", async function inspect() {
    const object = objects.get(this);
    const info = await native.inspect.value.call(this);
    if (!object || !info) return info;
    await object.last;
    const answer = await engine.fetch(address(object, "labels"));
    // Gone since: what the runtime knows must do.
    if (answer.status === 404) return info;
    return { ...info, labels: (await read(answer)).labels };
  });

  // Behind a compatibility flag.
  if (native.snapshotDirectory) {
    replace("snapshotDirectory", async function snapshotDirectory(options) {
      const snapshot = await native.snapshotDirectory.value.call(this, options);
      return objects.has(this) ? await sized(snapshot) : snapshot;
    });
  }

  replace("setInactivityTimeout", async function setInactivityTimeout(durationMs) {
    const object = objects.get(this);
    await native.setInactivityTimeout.value.call(this, durationMs);
    if (object && this.running) {
      await inOrder(object, () => tell(this, object, "inactivity", { ms: Number(durationMs) }, "setInactivityTimeout"));
    }
  });
}

/** The snapshot with its real size. */
async function sized(snapshot) {
  const answer = await engine.fetch(`http://engine/snapshots/${snapshot.id}`);
  if (answer.ok) return { ...snapshot, size: (await answer.json()).size };
  await answer.body?.cancel();
  return snapshot;
}

/** The options with what workerd drops in a variable. Whatever is wrong with the rest is left to workerd to say. */
function withCarried(options, token) {
  const given = options ?? {};
  const env = given.env ?? {};
  if (typeof given !== "object" || typeof env !== "object") return options;
  if (Object.hasOwn(env, VARIABLE)) {
    throw new TypeError(`The environment variable ${VARIABLE} is reserved for the platform; give yours another name.`);
  }
  const { instance, hardTimeout, labels } = given;
  const carried = { token };
  if (hardTimeout !== undefined) {
    carried.hardTimeoutMs = Math.trunc(Number(hardTimeout));
    if (!(carried.hardTimeoutMs > 0)) throw new RangeError("Hard timeout must be greater than 0");
    carried.hardTimeoutMs = Math.min(carried.hardTimeoutMs, Number.MAX_SAFE_INTEGER);
  }
  if (instance !== undefined) {
    const { vcpu, memoryMib, diskMb } = instance ?? {};
    carried.instance =
      typeof instance === "object"
        ? { vcpu: Number(vcpu), memoryMib: Number(memoryMib), diskMb: Number(diskMb) }
        : String(instance);
  }
  if (labels !== undefined) carried.labels = strings(labels);
  const changed = { env: { value: { ...env, [VARIABLE]: JSON.stringify(carried) } } };
  if (HIDDEN_SIZES.has(carried.instance)) changed.instance = { value: undefined };
  // The original behind it: options that this module does not know stay what they are.
  return Object.create(given, changed);
}

function strings(labels) {
  return Object.fromEntries(Object.entries(labels ?? {}).map(([name, value]) => [name, String(value)]));
}

/** One after the other, so that the last call is the one that counts. */
function inOrder(object, task) {
  const done = (object.last ?? Promise.resolve()).then(task);
  object.last = done.catch(() => {});
  return done;
}

function address(object, what) {
  return `http://engine/containers/${encodeURIComponent(object.name)}/${what}`;
}

async function tell(container, object, what, body, method) {
  const request = { method: "PUT", body: JSON.stringify({ token: object.start, ...body }) };
  for (;;) {
    const answer = await engine.fetch(address(object, what), request);
    // start() returns before the engine has heard of it.
    if (answer.status === 404 && container.running) {
      await answer.body?.cancel();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    } else if (answer.status === 404) {
      throw new Error(`${method}() cannot be called on a container that is not running.`);
    } else {
      return await read(answer);
    }
  }
}

async function read(answer) {
  if (answer.status === 204) return undefined;
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message);
  return body;
}
