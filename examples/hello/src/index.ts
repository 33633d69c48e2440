/**
 * Hello: a Worker that routes, a Durable Object that counts, and a container that answers.
 *
 *   /api/hello         one container for everybody
 *   /api/hello/<name>  one container for each name
 *   /api/count         a counter in a Durable Object
 *   /api/cron          when the cron trigger ran
 *   anything else      files from public/
 */
import { Container, getContainer } from "@cloudflare/containers";
import { DurableObject } from "cloudflare:workers";
import { Hono } from "hono";

interface Env {
  ASSETS: Fetcher;
  COUNTER: DurableObjectNamespace<Counter>;
  GREETING: string;
  HELLO: DurableObjectNamespace<Hello>;
}

/** The container: started by its first request, stopped after five quiet minutes. */
export class Hello extends Container<Env> {
  override defaultPort = 8080;
  override sleepAfter = "5m";
  override envVars = { GREETING: this.env.GREETING };
}

/** Counts, and remembers the last runs of the cron trigger. Its storage survives restarts and deploys. */
export class Counter extends DurableObject<Env> {
  async increment(): Promise<number> {
    const count = ((await this.ctx.storage.get<number>("count")) ?? 0) + 1;
    await this.ctx.storage.put("count", count);
    return count;
  }

  async cronRan(cron: string, scheduledTime: number): Promise<void> {
    const { runs } = await this.cronRuns();
    const last = { cron, scheduledTime: new Date(scheduledTime).toISOString(), ranAt: new Date().toISOString() };
    await this.ctx.storage.put({ runs: runs + 1, last });
  }

  async cronRuns(): Promise<{ runs: number; last: CronRun | null }> {
    return {
      runs: (await this.ctx.storage.get<number>("runs")) ?? 0,
      last: (await this.ctx.storage.get<CronRun>("last")) ?? null,
    };
  }
}

interface CronRun {
  cron: string;
  scheduledTime: string;
  ranAt: string;
}

const counter = (env: Env) => env.COUNTER.getByName("all");

const app = new Hono<{ Bindings: Env }>();
app.all("/api/hello", (c) => getContainer(c.env.HELLO).fetch(c.req.raw));
app.all("/api/hello/:name", (c) => getContainer(c.env.HELLO, c.req.param("name")).fetch(c.req.raw));
app.get("/api/count", async (c) => c.json({ count: await counter(c.env).increment() }));
app.get("/api/cron", async (c) => c.json(await counter(c.env).cronRuns()));
app.get("*", (c) => c.env.ASSETS.fetch(c.req.raw));

export default {
  fetch: app.fetch,
  async scheduled(event, env) {
    await counter(env).cronRan(event.cron, event.scheduledTime);
  },
} satisfies ExportedHandler<Env>;
