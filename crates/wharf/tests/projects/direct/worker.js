// ctx.container without a package in between. POST /<object>/<operation> with a JSON argument; the answer is {"value"} or {"error"}.
import { DurableObject } from "cloudflare:workers";

const operations = {
  id: (box) => box.ctx.id.toString(),
  running: (box) => box.ctx.container.running,
  start(box, options) {
    box.ctx.container.start(options ?? undefined);
    return operations.monitor(box);
  },
  monitor(box) {
    box.end = box.ctx.container.monitor().then(
      () => "exited with 0",
      (error) => (error instanceof Error ? `${error.message}, exitCode ${error.exitCode}` : `reason ${error}`),
    );
    return box.ctx.container.running;
  },
  end: (box) => box.end,
  signal: (box, number) => box.ctx.container.signal(number),
  destroy: (box, reason) => box.ctx.container.destroy(reason ?? undefined),
  inspect: (box) => box.ctx.container.inspect(),
  labels: (box, labels) => box.ctx.container.setLabels(labels),
  twice: (box, [first, second]) =>
    Promise.all([box.ctx.container.setLabels(first), box.ctx.container.setLabels(second)]).then(() => null),
  inactivity: (box, ms) => box.ctx.container.setInactivityTimeout(ms),
  abort: (box) => box.ctx.abort("asked to"),
  async app(box, path) {
    const answer = await box.ctx.container.getTcpPort(8080).fetch(`http://app${path}`);
    return { status: answer.status, text: await answer.text() };
  },
};

export class Box extends DurableObject {
  async fetch(request) {
    const operation = new URL(request.url).pathname.split("/")[2];
    try {
      const value = await operations[operation](this, await request.json());
      return Response.json({ value: value ?? null });
    } catch (error) {
      return Response.json({ error: `${error.name}: ${error.message}` });
    }
  }
}

export default {
  fetch: (request, env) => env.BOX.getByName(new URL(request.url).pathname.split("/")[1]).fetch(request),
};
