// The broker as its own documentation sets it up: `node server.js PORT [CERT KEY]`.
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { Aedes } from "aedes";

const [port, cert, key] = process.argv.slice(2);
const broker = await Aedes.createBroker();
const server = cert
  ? createTlsServer({ cert: readFileSync(cert), key: readFileSync(key) }, broker.handle)
  : createServer(broker.handle);
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
