import { DurableObject } from "cloudflare:workers";

const decode = (bytes) => new TextDecoder().decode(bytes);

export class Box extends DurableObject {
  /** Processes that more than one request is about, by name. */
  kept = {};

  async fetch(request) {
    const container = this.ctx.container;
    const { pathname } = new URL(request.url);
    const { name, cmd, options = {}, ...rest } = await request.json();
    const kept = this.kept[name];
    try {
      switch (pathname) {
        case "/start":
          container.start({
            entrypoint: ["/busybox", "sleep", "100000"],
            env: { BASE: "from start", BOTH: "from start" },
            enableInternet: false,
          });
          container.monitor().catch(() => {});
          await (await container.exec(["/busybox", "true"])).output();
          return Response.json("started");
        case "/run": {
          if ("input" in rest) options.stdin = new Response(rest.input).body;
          const process = await container.exec(cmd, options);
          const { stdout, stderr, exitCode } = await process.output();
          return Response.json({ stdout: decode(stdout), stderr: decode(stderr), exitCode, pid: process.pid, isPty: process.isPty });
        }
        case "/many": {
          const runs = Array.from({ length: rest.count }, async (_, n) => {
            const process = await container.exec(["/busybox", "sh", "-c", `echo out ${n}; echo err ${n} >&2; exit ${n}`]);
            const { stdout, stderr, exitCode } = await process.output();
            return [decode(stdout), decode(stderr), exitCode];
          });
          return Response.json(await Promise.all(runs));
        }
        case "/open": {
          const abort = new AbortController();
          if (rest.abortable) options.signal = abort.signal;
          const process = await container.exec(cmd, options);
          this.kept[name] = { process, abort, reader: process.stdout?.getReader(), writer: process.stdin?.getWriter(), said: "" };
          return Response.json({ pid: process.pid });
        }
        case "/says":
          while (!kept.said.includes(rest.text)) {
            const { value, done } = await kept.reader.read();
            if (done) throw new Error(`the end, after ${JSON.stringify(kept.said)}`);
            kept.said += decode(value);
          }
          return Response.json(kept.said);
        case "/write":
          await kept.writer.write(new TextEncoder().encode(rest.text));
          return Response.json("written");
        case "/close":
          await kept.writer.close();
          return Response.json("closed");
        case "/kill":
          kept.process.kill(rest.signal);
          return Response.json(await kept.process.exitCode);
        case "/signal":
          kept.process.kill(rest.signal);
          return Response.json("sent");
        case "/abort":
          kept.abort.abort();
          return Response.json(await kept.process.exitCode);
        case "/resize":
          kept.process.resize(rest.cols, rest.rows);
          return Response.json("resized");
        case "/exit":
          return Response.json(await kept.process.exitCode);
        case "/read": {
          // At least so many bytes; all, if not said.
          let bytes = 0;
          while (bytes < (rest.bytes ?? Infinity)) {
            const { value, done } = await kept.reader.read();
            if (done) break;
            bytes += value.byteLength;
          }
          return Response.json(bytes);
        }
        case "/destroy":
          await container.destroy();
          return Response.json(await kept.process.exitCode);
      }
      throw new Error(`no such page: ${pathname}`);
    } catch (error) {
      return new Response(String(error.stack ?? error), { status: 500 });
    }
  }
}

export default {
  fetch(request, env) {
    return env.BOX.getByName("a").fetch(request);
  },
};
