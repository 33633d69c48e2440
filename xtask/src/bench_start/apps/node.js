// Answers with what Node itself has.
require("node:http")
  .createServer((_, response) => response.end("hello from node\n"))
  .listen(Number(process.env.PORT), "0.0.0.0");
