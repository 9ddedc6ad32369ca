/** Ports for servers that are stopped and started again on the same one. */
import { once } from "node:events";
import { createServer } from "node:net";

/** Below Linux' ephemeral range (32768-60999), so that no outgoing connection takes it while nobody listens. */
const range = { from: 20_000, to: 32_000 };
const tries = 100;

/** Of loopback. */
export async function findFreePort(): Promise<number> {
  for (let n = 0; n < tries; n++) {
    const port = range.from + Math.floor(Math.random() * (range.to - range.from));
    const server = createServer().listen(port, "127.0.0.1");
    try {
      await once(server, "listening");
      server.close();
      await once(server, "close");
      return port;
    } catch {
      // Somebody has it.
    }
  }
  throw new Error(`no free port between ${range.from} and ${range.to}`);
}
