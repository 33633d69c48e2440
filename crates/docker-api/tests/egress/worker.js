import { DurableObject, WorkerEntrypoint } from "cloudflare:workers";

/** What the container's connections reach. */
export class Outside extends WorkerEntrypoint {
  async fetch(request) {
    const name = this.ctx.props.name;
    if (request.headers.get("Upgrade") === "websocket") {
      const [client, server] = Object.values(new WebSocketPair());
      server.accept();
      server.addEventListener("message", (event) => server.send(`${name} ${event.data}`));
      return new Response(null, { status: 101, webSocket: client });
    }
    const body = await request.text();
    return new Response(`${name} ${request.method} ${request.url} ${body}`.trim());
  }
  async connect(socket) {
    const writer = socket.writable.getWriter();
    await writer.write(new TextEncoder().encode(`220 ${this.ctx.props.name}`));
    writer.releaseLock();
    await socket.readable.pipeTo(socket.writable);
  }
}

export class Box extends DurableObject {
  async fetch(request) {
    const container = this.ctx.container;
    const { pathname, searchParams } = new URL(request.url);
    const [kind, to, name] = ["kind", "to", "name"].map((key) => searchParams.get(key));
    try {
      switch (pathname) {
        case "/start":
          container.start({
            enableInternet: searchParams.get("internet") === "true",
            entrypoint: ["python3", "-c", await request.text()],
          });
          container.monitor().catch(() => {});
          break;
        case "/map": {
          const outside = this.ctx.exports.Outside({ props: { name } });
          if (kind === "All") await container.interceptAllOutboundHttp(outside);
          else await container[`interceptOutbound${kind}`](to, outside);
          break;
        }
        case "/run":
          for (;;) {
            try {
              return await container.getTcpPort(8080).fetch("http://app/", { method: "POST", body: await request.clone().text() });
            } catch (error) {
              if (!String(error).includes("not listening")) throw error;
              await scheduler.wait(10);
            }
          }
      }
      return new Response("ok");
    } catch (error) {
      return new Response(String(error.stack ?? error), { status: 500 });
    }
  }
}

export default {
  fetch(request, env) {
    return env.BOX.getByName(new URL(request.url).hostname).fetch(request);
  },
};
