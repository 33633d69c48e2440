// What the README of @cloudflare/containers shows, in the current version.
//
//   /hooked/<object>/<method>   one RPC method of the object (argument: the body, JSON)   /hooked/<object>/app/<path>
//   /ports/<object>/...         /api, /admin and the rest go to ports of their own; /ws is a WebSocket on 3000
//   /configured/<object>/...    the app with variables and a command of its own           /random/... one of three
//   /guarded/<object>/...       the app with outbound handlers; methods as above
import { Container, ContainerProxy, getContainer, getRandom, switchPort } from "@cloudflare/containers";

export { ContainerProxy };

export class Hooked extends Container {
  defaultPort = 8080;
  sleepAfter = "3s";
  labels = { hooked: "yes" };

  async note(event) {
    await this.ctx.storage.put("events", [...(await this.events()), event]);
  }
  async events() {
    return (await this.ctx.storage.get("events")) ?? [];
  }
  async onStart() {
    await this.note("start");
  }
  async onStop({ exitCode, reason }) {
    await this.note(`stop ${exitCode} ${reason}`);
  }
  async onError(error) {
    await this.note(`error ${error instanceof Error ? error.message : error}`);
    throw error;
  }
  async onActivityExpired() {
    await this.note("expired");
    await this.stop();
  }
  async later({ seconds, payload }) {
    const { type, callback } = await this.schedule(seconds, "fired", payload);
    return { type, callback };
  }
  async fired(payload) {
    await this.note(`fired ${JSON.stringify(payload)}`);
  }
  async halt(signal) {
    await this.stop(signal ?? undefined);
  }
  async kill() {
    await this.destroy();
  }
  async begin(options) {
    await this.startAndWaitForPorts({ startOptions: options ?? {}, ports: [8080] });
  }
  async status() {
    return (await this.getState()).status;
  }
  async shown() {
    return (await this.ctx.container.inspect())?.labels ?? null;
  }
}

export class Ports extends Container {
  requiredPorts = [8080, 3000, 80];
  entrypoint = ["/app", "8080", "3000", "80"];
  async fetch(request) {
    const { pathname } = new URL(request.url);
    if (pathname === "/ws") return await super.fetch(switchPort(request, 3000));
    const port = pathname.startsWith("/api") ? 3000 : pathname.startsWith("/admin") ? 8080 : 80;
    return await this.containerFetch(request, port);
  }
}

export class Configured extends Container {
  defaultPort = 9000;
  sleepAfter = "2h";
  envVars = { NODE_ENV: "production", LOG_LEVEL: "info" };
  entrypoint = ["/app", "--config", "production.json", "9000"];
  enableInternet = true;
  async echo(body) {
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const first = await this.containerFetch("http://example.com/echo", request);
    const second = await this.containerFetch("https://example.com/who", { method: "GET" }, 9000);
    return { first: await first.json(), port: (await second.json()).port };
  }
}

export class Guarded extends Container {
  defaultPort = 8080;
  enableInternet = false;
  interceptHttps = true;
  allowedHosts = ["named.example", "switched.example", "*.caught.example", "denied.example"];
  deniedHosts = ["denied.example"];
  async switchHost() {
    await this.setOutboundByHost("switched.example", "switched");
  }
  async switchAll() {
    await this.setOutboundHandler("switched");
  }
  async allow(host) {
    await this.allowHost(host);
  }
}
// Assigned, not declared: the package learns of them by setters, which a field of ES2022 goes past.
Guarded.outboundByHost = {
  "named.example": (request, _env, ctx) => new Response(`named ${new URL(request.url).pathname} ${ctx.containerId}`),
};
Guarded.outboundHandlers = { switched: () => new Response("switched") };
Guarded.outbound = (request) => new Response(`caught ${request.url}`);

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const [, kind, name, ...rest] = url.pathname.split("/");
    const inside = (path) => new Request(new URL(`/${path.join("/")}${url.search}`, url), request);
    if (kind === "random") return await (await getRandom(env.CONFIGURED, 3)).fetch(inside([name, ...rest]));
    const object = getContainer(env[kind.toUpperCase()], name);
    const isMethod = (kind === "hooked" || kind === "guarded" || rest[0] === "echo-rpc") && rest[0] !== "app";
    if (!isMethod) return await object.fetch(inside(rest[0] === "app" ? rest.slice(1) : rest));
    try {
      const method = rest[0] === "echo-rpc" ? "echo" : rest[0];
      return Response.json((await object[method](await request.json())) ?? null);
    } catch (error) {
      return Response.json({ error: error.message }, { status: 500 });
    }
  },
};
