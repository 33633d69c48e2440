// /<class>/<name>: an object of that class and name answers out of its container; DELETE destroys the container.
import { Container, getContainer } from "@cloudflare/containers";

class App extends Container {
  defaultPort = 8080;
  sleepAfter = "10m";
}

export class Static extends App {}
export class Busybox extends App {}
export class Python extends App {}
export class Node extends App {}
export class Numpy extends App {}

export default {
  async fetch(request, env) {
    const [, kind, name] = new URL(request.url).pathname.split("/");
    const binding = env[kind.toUpperCase()];
    if (!binding || !name) return new Response("ask for /<class>/<name>\n", { status: 404 });
    const object = getContainer(binding, name);
    if (request.method === "DELETE") {
      await object.destroy();
      return new Response("destroyed\n");
    }
    return object.fetch(new Request("http://container/"));
  },
};
