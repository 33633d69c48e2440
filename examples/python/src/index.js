// Every request goes to a FastAPI app in a container.
import { Container, getContainer } from "@cloudflare/containers";

export class Api extends Container {
  defaultPort = 8000;
  sleepAfter = "5m";
}

export default {
  fetch: (request, env) => getContainer(env.API).fetch(request),
};
